//! Guest RAM: one mapping per region, on huge pages where the host gives them; nothing is paid before it is touched.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use servin_devices::mem::{GuestRam, Mem, Written};
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestAddress, GuestRegionMmap};

use crate::error::Error;
use crate::layout;

#[cfg(unix)]
pub use unix::{anonymous, count_written, populate, private, take_written, written};
#[cfg(windows)]
pub use windows::{anonymous, count_written, populate, private, take_written, written};

/// Neighbouring pages of 4 KiB, counted through RAM in the order of its regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    /// The first one.
    pub first: u32,
    /// How many.
    pub count: u32,
}

type Region = MmapRegion<Written>;

fn map(mem_mib: u64, mut region: impl FnMut(usize) -> io::Result<Region>) -> Result<Mem, Error> {
    let failed = |source| Error::Memory { mib: mem_mib, source };
    let mut regions = Vec::new();
    for (base, len) in layout::ram(mem_mib)? {
        let size = usize::try_from(len).map_err(|e| failed(io::Error::other(e)))?;
        let mapping = region(size).map_err(failed)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(base));
        regions.push(region.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?);
    }
    GuestRam::from_regions(regions).map(Arc::new).map_err(|e| failed(io::Error::other(e)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestMemoryBackend as _, GuestMemoryRegion};

    use super::*;
    use crate::layout::MIB;

    /// Where RAM begins.
    fn base() -> u64 {
        layout::ram(32).unwrap()[0].0
    }

    #[test]
    fn memory_lies_where_the_layout_says_and_costs_nothing() {
        // Windows commits memory when it is mapped.
        let mib = if cfg!(windows) { 4 * 1024 } else { 16 * 1024 };
        let mem = anonymous(mib).unwrap();
        let regions: Vec<_> = mem.iter().map(|r| (r.start_addr().0, r.len())).collect();
        assert_eq!(regions, layout::ram(mib).unwrap());
        for (start, len) in regions {
            mem.write_obj(7_u8, GuestAddress(start + len - 1)).unwrap();
            assert!(mem.write_obj(7_u8, GuestAddress(start + len)).is_err());
        }
    }

    #[cfg(unix)]
    #[test]
    fn memory_begins_on_a_huge_page() {
        let mem = anonymous(64).unwrap();
        assert_eq!(mem.get_host_address(GuestAddress(base())).unwrap().addr() % unix::HUGE, 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn written_pages_are_known_and_can_be_copied_before() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(32 * MIB).unwrap();
        let mem = private(32, file, 0).unwrap();
        let mut byte = [0];
        mem.read_slice(&mut byte, GuestAddress(base() + 0x9000)).unwrap();
        assert_eq!(written(&mem).unwrap(), []);
        mem.write_slice(b"12", GuestAddress(base() + 0x2fff)).unwrap();
        assert_eq!(written(&mem).unwrap(), [Pages { first: 2, count: 2 }]);
        populate(&mem, &[Pages { first: 8, count: 1 }, Pages { first: u32::MAX, count: 9 }]);
        assert_eq!(written(&mem).unwrap(), [(2, 2), (8, 1)].map(|(first, count)| Pages { first, count }));
    }

    #[test]
    fn private_memory_shows_the_file_and_leaves_it_alone() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(0x4000 + 32 * MIB).unwrap();
        servin_devices::os::write_all_at(&file, b"saved", 0x4000 + 0x1000).unwrap();
        file.flush().unwrap();
        let mem = private(32, file.try_clone().unwrap(), 0x4000).unwrap();
        let mut data = [0; 5];
        mem.read_slice(&mut data, GuestAddress(base() + 0x1000)).unwrap();
        assert_eq!(&data, b"saved");
        mem.write_slice(b"other", GuestAddress(base() + 0x1000)).unwrap();
        servin_devices::os::read_exact_at(&file, &mut data, 0x4000 + 0x1000).unwrap();
        assert_eq!(&data, b"saved");
        assert!(private(64, file, 0x4000).is_err());
    }
}
