//! Guest memory as devices see it: shared, volatile, dirty-tracked when asked.
//!
//! Guest memory is never a `&[u8]`: another vCPU may change it at any time. Devices copy headers out once and
//! move payload between [`Slice`]s and files with [`read_at`] and its siblings, which hand the kernel the guest
//! pages themselves.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;
#[cfg(unix)]
mod written;

use std::sync::Arc;

use vm_memory::bitmap::{BitmapSlice, MS};
use vm_memory::{GuestMemoryMmap, VolatileSlice};

#[cfg(unix)]
pub use unix::{FileRef, StreamRef, file_ref, read_at, read_stream, send, write_at, write_stream};
#[cfg(windows)]
pub use windows::{FileRef, StreamRef, file_ref, read_at, read_stream, send, write_at};

#[cfg(unix)]
pub use written::Written;
/// What a region of guest memory keeps of the pages that devices wrote: nothing, for no dirty pages are tracked there.
#[cfg(windows)]
pub type Written = ();

/// The RAM of one guest.
pub type GuestRam = GuestMemoryMmap<Written>;

/// Guest RAM shared between the monitor, vCPUs and device workers.
pub type Mem = Arc<GuestRam>;

/// A checked piece of guest memory.
pub type Slice<'a> = VolatileSlice<'a, MS<'a, GuestRam>>;

fn mark_dirty<B: BitmapSlice>(pieces: &[VolatileSlice<'_, B>], mut done: usize) {
    for piece in pieces {
        let part = piece.len().min(done);
        piece.bitmap().mark_dirty(0, part);
        done -= part;
        if done == 0 {
            break;
        }
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::io;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use vm_memory::bitmap::Bitmap as _;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap};

    use super::*;

    fn ram() -> GuestRam {
        let size = 0x4000;
        let written = Written::default();
        written.count(size as u64);
        let region = vm_memory::mmap::MmapRegionBuilder::new_with_bitmap(size, written)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            .build();
        GuestRam::from_regions(vec![GuestRegionMmap::new(region.unwrap(), GuestAddress(0)).unwrap()]).unwrap()
    }

    #[test]
    fn a_file_is_read_into_scattered_guest_memory_and_marked_dirty() {
        let ram = ram();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let pieces =
            [ram.get_slice(GuestAddress(0x10), 3).unwrap(), ram.get_slice(GuestAddress(0x2000), 4).unwrap()];
        assert_eq!(read_at(file.as_fd(), &pieces, 1).unwrap(), 7);
        let mut got = [0; 4];
        ram.read_slice(&mut got, GuestAddress(0x2000)).unwrap();
        assert_eq!(&got, b"4567");
        let region = ram.iter().next().unwrap();
        let dirty = |at| region.bitmap().dirty_at(at);
        assert!(dirty(0x10) && dirty(0x2000) && !dirty(0x1000) && !dirty(0x3000));
    }

    #[test]
    fn guest_memory_is_sent_on_a_socket_until_it_is_full_or_gone() {
        let ram = ram();
        ram.write_slice(b"hello", GuestAddress(0x100)).unwrap();
        let pieces =
            [ram.get_slice(GuestAddress(0x100), 2).unwrap(), ram.get_slice(GuestAddress(0x102), 3).unwrap()];
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(send(ours.as_fd(), &pieces).unwrap(), 5);
        let mut got = [0; 5];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        let page = [ram.get_slice(GuestAddress(0), 0x1000).unwrap()];
        let full = std::iter::from_fn(|| Some(send(ours.as_fd(), &page))).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(send(ours.as_fd(), &page).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn guest_memory_is_written_to_a_file_at_an_offset() {
        let ram = ram();
        ram.write_slice(b"hello", GuestAddress(0x100)).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(write_at(file.as_fd(), &[ram.get_slice(GuestAddress(0x100), 5).unwrap()], 2).unwrap(), 5);
        let mut all = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"\0\0hello");
    }
}
