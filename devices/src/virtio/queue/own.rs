//! Our own: for hosts where no crate of rings builds.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring as ring;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};

use super::{Descriptor, Setup, SetupError};
use crate::mem::GuestRam;
use crate::virtio::ChainError;

/// Bytes of a descriptor: address (8), length (4), flags (2), next (2).
const DESCRIPTOR: u64 = 16;
/// Bytes of an element of the used ring: head (4), length (4).
const USED: u64 = 8;
/// Bytes before the elements of either ring: flags (2), index (2).
const HEADER: u64 = 4;

const NEXT: u16 = ring::VRING_DESC_F_NEXT as u16;
const WRITE: u16 = ring::VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = ring::VRING_DESC_F_INDIRECT as u16;
const NO_NOTIFY: u16 = ring::VRING_USED_F_NO_NOTIFY as u16;

/// A ring in guest memory.
#[derive(Debug)]
pub(in crate::virtio) struct Queue {
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
}

/// The descriptors of one chain, in order. Ends early at one that it cannot follow.
#[derive(Debug)]
pub(in crate::virtio) struct Descriptors<'m> {
    ram: &'m GuestRam,
    head: u16,
    /// The table that is being read, and how many descriptors it has.
    table: u64,
    size: u16,
    /// The next one to read, and how many may still be: a chain that is longer than its table loops.
    next: u16,
    left: u16,
    indirect: bool,
    /// Bytes of all descriptors so far.
    bytes: u32,
}

impl Queue {
    pub(in crate::virtio) fn new(ram: &GuestRam, setup: &Setup) -> Result<Self, SetupError> {
        let &Setup { max, size, desc, avail, used, event_idx, next_avail, next_used } = setup;
        let aligned = desc.is_multiple_of(16) && avail.is_multiple_of(2) && used.is_multiple_of(4);
        if !size.is_power_of_two() || size > max || !aligned {
            return Err(SetupError::Shape);
        }
        let count = u64::from(size);
        // Each ring ends with the index at which the other side wants to hear of it (2.7.6, 2.7.8).
        let parts =
            [(desc, DESCRIPTOR * count), (avail, HEADER + 2 * count + 2), (used, HEADER + USED * count + 2)];
        let inside = |(addr, len): (u64, u64)| {
            usize::try_from(len).is_ok_and(|len| ram.check_range(GuestAddress(addr), len))
        };
        if !parts.into_iter().all(inside) {
            return Err(SetupError::OutOfRam);
        }
        Ok(Self { size, desc, avail, used, event_idx, next_avail, next_used })
    }

    pub(in crate::virtio) fn size(&self) -> u16 {
        self.size
    }

    pub(in crate::virtio) fn avail_ring(&self) -> u64 {
        self.avail
    }

    pub(in crate::virtio) fn used_ring(&self) -> u64 {
        self.used
    }

    pub(in crate::virtio) fn event_idx(&self) -> bool {
        self.event_idx
    }

    pub(in crate::virtio) fn next_avail(&self) -> u16 {
        self.next_avail
    }

    pub(in crate::virtio) fn next_used(&self) -> u16 {
        self.next_used
    }

    /// Sets how many chains were given back, without telling the driver.
    pub(in crate::virtio) fn set_next_used(&mut self, next_used: u16) {
        self.next_used = next_used;
    }

    /// Takes the next chain; `None` when the ring is empty.
    pub(in crate::virtio) fn pop<'m>(
        &mut self,
        ram: &'m GuestRam,
    ) -> Result<Option<Descriptors<'m>>, ChainError> {
        // Elements are read after the index that announces them.
        let index = load(ram, self.avail + 2, Ordering::Acquire)?;
        match index.wrapping_sub(self.next_avail) {
            0 => return Ok(None),
            ahead if ahead > self.size => return Err(ChainError::Ring),
            _ => {}
        }
        let slot = u64::from(self.next_avail & (self.size - 1));
        let head = load(ram, self.avail + HEADER + 2 * slot, Ordering::Relaxed)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(Descriptors {
            ram,
            head,
            table: self.desc,
            size: self.size,
            next: head,
            left: self.size,
            indirect: false,
            bytes: 0,
        }))
    }

    /// Puts the chain that was taken last back.
    pub(in crate::virtio) fn unpop(&mut self) {
        self.next_avail = self.next_avail.wrapping_sub(1);
    }

    /// Gives the chain that begins at `head` back, with `len` bytes written.
    pub(in crate::virtio) fn add_used(
        &mut self,
        ram: &GuestRam,
        head: u16,
        len: u32,
    ) -> Result<(), ChainError> {
        if head >= self.size {
            return Err(ChainError::Ring);
        }
        let slot = u64::from(self.next_used & (self.size - 1));
        let element = [u32::from(head).to_le(), len.to_le()];
        ram.write_obj(element, GuestAddress(self.used + HEADER + USED * slot))
            .map_err(|_| ChainError::Ring)?;
        self.next_used = self.next_used.wrapping_add(1);
        // The element is written before the index that announces it.
        store(ram, self.used + 2, self.next_used, Ordering::Release)
    }

    /// Asks for the doorbell; true when chains came meanwhile.
    pub(in crate::virtio) fn enable_notification(&mut self, ram: &GuestRam) -> Result<bool, ChainError> {
        if self.event_idx {
            let event = self.used + HEADER + USED * u64::from(self.size);
            store(ram, event, self.next_avail, Ordering::Relaxed)?;
        } else {
            store(ram, self.used, 0, Ordering::Relaxed)?;
        }
        // The wish is written before the index is looked at again (2.7.10.1).
        fence(Ordering::SeqCst);
        Ok(load(ram, self.avail + 2, Ordering::Relaxed)? != self.next_avail)
    }

    /// Asks for no doorbell, as far as the driver can be asked.
    pub(in crate::virtio) fn disable_notification(&mut self, ram: &GuestRam) -> Result<(), ChainError> {
        if self.event_idx { Ok(()) } else { store(ram, self.used, NO_NOTIFY, Ordering::Relaxed) }
    }
}

impl Descriptors<'_> {
    /// The index of the first descriptor.
    pub(in crate::virtio) fn head(&self) -> u16 {
        self.head
    }

    /// Goes on in the table that an indirect descriptor names (2.7.5.3): whole descriptors, and no table in a table.
    fn enter(&mut self, table: u64, len: u32) -> Option<()> {
        if self.indirect || !u64::from(len).is_multiple_of(DESCRIPTOR) {
            return None;
        }
        self.size = u16::try_from(u64::from(len) / DESCRIPTOR).ok()?;
        (self.table, self.next, self.left, self.indirect) = (table, 0, self.size, true);
        Some(())
    }
}

impl Iterator for Descriptors<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        loop {
            if self.left == 0 || self.next >= self.size {
                return None;
            }
            let at = self.table.checked_add(DESCRIPTOR * u64::from(self.next))?;
            let [addr, rest]: [u64; 2] = self.ram.read_obj(GuestAddress(at)).ok()?;
            let (addr, rest) = (u64::from_le(addr), u64::from_le(rest));
            let (len, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
            if flags & INDIRECT != 0 {
                self.enter(addr, len)?;
                continue;
            }
            self.bytes = self.bytes.checked_add(len)?;
            let follows = flags & NEXT != 0;
            (self.next, self.left) = if follows { (next, self.left - 1) } else { (next, 0) };
            return Some(Descriptor {
                addr: GuestAddress(addr),
                len,
                writable: flags & WRITE != 0,
                next: follows,
            });
        }
    }
}

fn load(ram: &GuestRam, at: u64, order: Ordering) -> Result<u16, ChainError> {
    ram.load(GuestAddress(at), order).map(u16::from_le).map_err(|_| ChainError::Ring)
}

fn store(ram: &GuestRam, at: u64, value: u16, order: Ordering) -> Result<(), ChainError> {
    ram.store(value.to_le(), GuestAddress(at), order).map_err(|_| ChainError::Ring)
}
