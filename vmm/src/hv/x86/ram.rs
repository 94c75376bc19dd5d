//! Guest RAM as the page walk and the access decoder reach it, for backends that need nothing more of it.

use std::sync::atomic::{AtomicU64, Ordering};

use servin_devices::mem::Mem;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileMemory};

use super::cpu::{OutOfRam, Physical};

/// The RAM of a machine, and the regions of it that the guest may only read.
#[derive(Debug, Clone, Copy)]
pub struct Ram<'a> {
    /// All of it.
    pub mem: &'a Mem,
    /// Start addresses of the read-only regions.
    pub read_only: &'a [GuestAddress],
}

impl Ram<'_> {
    fn writable(&self, gpa: u64) -> Result<GuestAddress, OutOfRam> {
        let region = self.mem.find_region(GuestAddress(gpa)).ok_or(OutOfRam { gpa })?;
        if self.read_only.contains(&region.start_addr()) {
            return Err(OutOfRam { gpa });
        }
        Ok(GuestAddress(gpa))
    }
}

impl Physical for Ram<'_> {
    fn read_physical(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), OutOfRam> {
        self.mem.read_slice(buf, GuestAddress(gpa)).map_err(|_| OutOfRam { gpa })
    }

    fn write_physical(&mut self, gpa: u64, data: &[u8]) -> Result<(), OutOfRam> {
        let at = self.writable(gpa)?;
        self.mem.write_slice(data, at).map_err(|_| OutOfRam { gpa })
    }

    fn compare_exchange_8(&mut self, gpa: u64, current: u64, new: u64) -> Result<u64, OutOfRam> {
        let at = self.writable(gpa)?;
        let slice = self.mem.get_slice(at, 8).map_err(|_| OutOfRam { gpa })?;
        let word = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| OutOfRam { gpa })?;
        slice.bitmap().mark_dirty(0, 8);
        // x86 guests and hosts agree on the order of bytes.
        match word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(found) | Err(found) => Ok(found),
        }
    }
}
