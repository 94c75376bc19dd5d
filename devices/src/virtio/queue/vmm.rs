//! On the `virtio-queue` crate.

use virtio_queue::{DescriptorChain, QueueOwnedT as _, QueueT as _};
use vm_memory::GuestAddress;

use super::{Descriptor, Setup, SetupError};
use crate::mem::GuestRam;
use crate::virtio::ChainError;

/// A ring in guest memory.
#[derive(Debug)]
pub(in crate::virtio) struct Queue(virtio_queue::Queue);

/// The descriptors of one chain, in order. Ends early at one that it cannot follow.
#[derive(Debug)]
pub(in crate::virtio) struct Descriptors<'m>(DescriptorChain<&'m GuestRam>);

impl Queue {
    pub(in crate::virtio) fn new(ram: &GuestRam, setup: &Setup) -> Result<Self, SetupError> {
        let shape = |_| SetupError::Shape;
        let mut queue = virtio_queue::Queue::new(setup.max).map_err(shape)?;
        queue.try_set_size(setup.size).map_err(shape)?;
        queue.try_set_desc_table_address(GuestAddress(setup.desc)).map_err(shape)?;
        queue.try_set_avail_ring_address(GuestAddress(setup.avail)).map_err(shape)?;
        queue.try_set_used_ring_address(GuestAddress(setup.used)).map_err(shape)?;
        queue.set_event_idx(setup.event_idx);
        queue.set_ready(true);
        queue.set_next_avail(setup.next_avail);
        queue.set_next_used(setup.next_used);
        if queue.is_valid(ram) { Ok(Self(queue)) } else { Err(SetupError::OutOfRam) }
    }

    pub(in crate::virtio) fn size(&self) -> u16 {
        self.0.size()
    }

    pub(in crate::virtio) fn avail_ring(&self) -> u64 {
        self.0.avail_ring()
    }

    pub(in crate::virtio) fn used_ring(&self) -> u64 {
        self.0.used_ring()
    }

    pub(in crate::virtio) fn event_idx(&self) -> bool {
        self.0.event_idx_enabled()
    }

    pub(in crate::virtio) fn next_avail(&self) -> u16 {
        self.0.next_avail()
    }

    pub(in crate::virtio) fn next_used(&self) -> u16 {
        self.0.next_used()
    }

    /// Sets how many chains were given back, without telling the driver.
    pub(in crate::virtio) fn set_next_used(&mut self, next_used: u16) {
        self.0.set_next_used(next_used);
    }

    /// Takes the next chain; `None` when the ring is empty.
    pub(in crate::virtio) fn pop<'m>(
        &mut self,
        ram: &'m GuestRam,
    ) -> Result<Option<Descriptors<'m>>, ChainError> {
        Ok(self.0.iter(ram).map_err(|_| ChainError::Ring)?.next().map(Descriptors))
    }

    /// Puts the chain that was taken last back.
    pub(in crate::virtio) fn unpop(&mut self) {
        self.0.go_to_previous_position();
    }

    /// Gives the chain that begins at `head` back, with `len` bytes written.
    pub(in crate::virtio) fn add_used(
        &mut self,
        ram: &GuestRam,
        head: u16,
        len: u32,
    ) -> Result<(), ChainError> {
        self.0.add_used(ram, head, len).map_err(|_| ChainError::Ring)
    }

    /// Asks for the doorbell; true when chains came meanwhile.
    pub(in crate::virtio) fn enable_notification(&mut self, ram: &GuestRam) -> Result<bool, ChainError> {
        self.0.enable_notification(ram).map_err(|_| ChainError::Ring)
    }

    /// Asks for no doorbell, as far as the driver can be asked.
    pub(in crate::virtio) fn disable_notification(&mut self, ram: &GuestRam) -> Result<(), ChainError> {
        self.0.disable_notification(ram).map_err(|_| ChainError::Ring)
    }
}

impl Descriptors<'_> {
    /// The index of the first descriptor.
    pub(in crate::virtio) fn head(&self) -> u16 {
        self.0.head_index()
    }
}

impl Iterator for Descriptors<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        self.0.next().map(|descriptor| Descriptor {
            addr: descriptor.addr(),
            len: descriptor.len(),
            writable: descriptor.is_write_only(),
            next: descriptor.has_next(),
        })
    }
}
