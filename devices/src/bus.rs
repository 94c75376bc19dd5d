//! The bus: routes guest accesses to memory-mapped or port I/O to the device that answers them.
//!
//! vCPU threads call [`Bus::read`] and [`Bus::write`]. A bad access never fails the VM: the *bus* answers it
//! with all ones (reads) or drops it (writes) and logs one rate-limited warning.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Why a device did not accept an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The device has no register of this width at this offset.
    #[error("no register of this width at this offset")]
    BadAccess,
}

/// A device on the bus. `offset` is relative to the start of the range that the device was attached at.
pub trait BusDevice: Send {
    /// Reads `data.len()` bytes (1, 2, 4 or 8) at `offset` into `data`, little-endian.
    ///
    /// # Errors
    /// [`BusError`] when there is no such register; the bus then answers with all ones.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BusError>;

    /// Writes `data` (1, 2, 4 or 8 bytes, little-endian) at `offset`.
    ///
    /// # Errors
    /// [`BusError`] when there is no such register; the bus then drops the write.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), BusError>;
}

/// A device shared between the bus and its owner.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Why a range could not be attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The length is zero or the range passes the end of the address space.
    #[error("range {base:#x}+{len:#x} is empty or wraps")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device is already attached at a part of the range.
    #[error("range {base:#x}+{len:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address of the refused range.
        base: u64,
        /// Length in bytes of the refused range.
        len: u64,
        /// First address of the device that is already there.
        other: u64,
    },
}

struct Slot {
    len: u64,
    device: SharedDevice,
}

/// An address space of devices: one for memory-mapped I/O, one for port I/O.
#[derive(Default)]
pub struct Bus {
    slots: BTreeMap<u64, Slot>,
    bad_accesses: AtomicU64,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.slots.iter().map(|(base, slot)| (base, slot.len))).finish()
    }
}

impl Bus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Attaches `device` at `base`, `len` bytes long.
    ///
    /// # Errors
    /// [`AttachError`] when the range is empty, wraps, or overlaps another device.
    pub fn attach(&mut self, base: u64, len: u64, device: SharedDevice) -> Result<(), AttachError> {
        let end = base.checked_add(len).filter(|_| len > 0).ok_or(AttachError::BadRange { base, len })?;
        if let Some((&other, slot)) = self.slots.range(..end).next_back()
            && other + slot.len > base
        {
            return Err(AttachError::Overlap { base, len, other });
        }
        self.slots.insert(base, Slot { len, device });
        Ok(())
    }

    /// Reads at `addr`. Where nothing answers, `data` is all ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        let answered = self.find(addr, data.len()).is_some_and(|(device, offset)| {
            device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data).is_ok()
        });
        if !answered {
            data.fill(0xff);
            self.warn_bad("read", addr, data.len());
        }
    }

    /// Writes `data` at `addr`. Where nothing answers, the write is dropped.
    pub fn write(&self, addr: u64, data: &[u8]) {
        let answered = self.find(addr, data.len()).is_some_and(|(device, offset)| {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data).is_ok()
        });
        if !answered {
            self.warn_bad("write", addr, data.len());
        }
    }

    /// How many accesses nobody answered.
    #[must_use]
    pub fn bad_accesses(&self) -> u64 {
        self.bad_accesses.load(Ordering::Relaxed)
    }

    fn find(&self, addr: u64, len: usize) -> Option<(&SharedDevice, u64)> {
        let (&base, slot) = self.slots.range(..=addr).next_back()?;
        let offset = addr - base;
        let end = offset.checked_add(len as u64)?;
        (end <= slot.len).then_some((&slot.device, offset))
    }

    /// Warns at the 1st, 2nd, 4th, 8th ... bad access, so that a guest cannot flood the log.
    fn warn_bad(&self, what: &str, addr: u64, len: usize) {
        let count = self.bad_accesses.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            log::warn!(
                "guest {what} of {len} bytes at {addr:#x}: no device answers ({count} such accesses so far)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), BusError> {
            if offset == 8 {
                return Err(BusError::BadAccess);
            }
            data.fill(self.0);
            Ok(())
        }
        fn write(&mut self, _: u64, data: &[u8]) -> Result<(), BusError> {
            self.0 = data[0];
            Ok(())
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::new();
        bus.attach(0x1000, 0x10, Arc::new(Mutex::new(Echo(7)))).unwrap();
        bus
    }

    #[test]
    fn accesses_reach_the_device_of_the_range() {
        let bus = bus();
        bus.write(0x100f, &[9]);
        let mut data = [0; 4];
        bus.read(0x1000, &mut data);
        assert_eq!(data, [9; 4]);
        assert_eq!(bus.bad_accesses(), 0);
    }

    #[test]
    fn an_access_that_nobody_answers_reads_all_ones() {
        let bus = bus();
        for addr in [0xfff, 0x1010, 0x100d, 0x1008, u64::MAX] {
            let mut data = [0; 4];
            bus.read(addr, &mut data);
            assert_eq!(data, [0xff; 4], "{addr:#x}");
        }
        assert_eq!(bus.bad_accesses(), 5);
    }

    #[test]
    fn overlapping_and_empty_ranges_are_refused() {
        let mut bus = bus();
        let echo = || Arc::new(Mutex::new(Echo(0)));
        assert!(matches!(bus.attach(0x100f, 1, echo()), Err(AttachError::Overlap { other: 0x1000, .. })));
        assert!(matches!(bus.attach(0xff0, 0x11, echo()), Err(AttachError::Overlap { .. })));
        assert!(matches!(bus.attach(0x2000, 0, echo()), Err(AttachError::BadRange { .. })));
        assert!(matches!(bus.attach(u64::MAX, 2, echo()), Err(AttachError::BadRange { .. })));
        bus.attach(0x1010, 1, echo()).unwrap();
        bus.attach(0xff0, 0x10, echo()).unwrap();
    }
}
