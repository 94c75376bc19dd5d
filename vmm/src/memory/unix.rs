//! Mappings: of nothing, or copy-on-write over a file.

// A leaf that may use unsafe: madvise has no safe wrapper.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::ops::Deref as _;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use servin_devices::mem::{GuestRam, Mem, Written};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion};

use super::{Pages, Region, map};
use crate::error::Error;
use crate::layout::MIB;

/// Size of a huge page, and of a page.
pub(super) const HUGE: usize = 2 << 20;
const PAGE: NonZero<usize> = NonZero::new(0x1000).unwrap();

/// Maps zeroed RAM of `mem_mib`.
///
/// # Errors
/// The size is out of range, or the host has no address space left.
pub fn anonymous(mem_mib: u64) -> Result<Mem, Error> {
    map(mem_mib, |size| {
        let region = aligned(size)?;
        advise_huge(&region);
        Ok(region)
    })
}

/// Maps RAM of `mem_mib` over the contents of `file`, region after region from `offset` on. What the guest writes stays
/// private to it: pages are copied when they are first written, and read from the file when first touched.
///
/// # Errors
/// The size is out of range, or the file is too short.
pub fn private(mem_mib: u64, file: File, offset: u64) -> Result<Mem, Error> {
    let file = Arc::new(file);
    let mut at = offset;
    map(mem_mib, |size| {
        let from = FileOffset::from_arc(Arc::clone(&file), at);
        at += size as u64;
        if file.metadata()?.len() < at {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        builder(size)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .with_file_offset(from)
            .build()
            .map_err(plain)
    })
}

/// The pages of a [`private`] mapping that were written since it was made.
///
/// # Errors
/// The host does not tell.
pub fn written(ram: &GuestRam) -> io::Result<Vec<Pages>> {
    // Documentation/admin-guide/mm/pagemap.rst: 8 bytes a page.
    const THERE: u64 = 1 << 63 | 1 << 62; // in memory, or swapped out
    const OF_A_FILE: u64 = 1 << 61;
    let is_own = |entry| entry & THERE != 0 && entry & OF_A_FILE == 0;
    let pagemap = File::open("/proc/self/pagemap")?;
    let (mut runs, mut page) = (Vec::<Pages>::new(), 0_u32);
    let mut buffer = vec![0; 64 << 10];
    for region in ram.iter() {
        let mut entry = (region.as_ptr().addr() / PAGE.get() * 8) as u64;
        let mut left = region.size() / PAGE.get() * 8;
        while left > 0 {
            let (part, _) = buffer.split_at_mut(left.min(64 << 10));
            pagemap.read_exact_at(part, entry)?;
            for bytes in part.as_chunks::<8>().0 {
                if is_own(u64::from_ne_bytes(*bytes)) {
                    match runs.last_mut() {
                        Some(run) if run.first + run.count == page => run.count += 1,
                        _ => runs.push(Pages { first: page, count: 1 }),
                    }
                }
                page += 1;
            }
            entry += part.len() as u64;
            left -= part.len();
        }
    }
    Ok(runs)
}

/// Copies pages of a [`private`] mapping now that will be written soon. Pages that are not there are left out; where the
/// host's kernel cannot do it (before 5.14), they are copied when they are written.
#[cfg(target_os = "linux")]
pub fn populate(ram: &GuestRam, runs: &[Pages]) {
    let mut base = 0;
    for region in ram.iter() {
        let pages = region.size() / PAGE.get();
        for run in runs {
            let (first, count) = (run.first as usize, run.count as usize);
            let Some(first) = first.checked_sub(base).filter(|first| *first < pages) else { continue };
            let len = count.min(pages - first) * PAGE.get();
            let from = region.as_ptr().wrapping_add(first * PAGE.get());
            // SAFETY: the range lies within this mapping; the advice does what the first write to each page would.
            let done =
                unsafe { rustix::mm::madvise(from.cast(), len, rustix::mm::Advice::LinuxPopulateWrite) };
            if let Err(error) = done {
                log::debug!("copying pages early: {error}");
                return;
            }
        }
        base += pages;
    }
}

/// There is no such advice here: pages are copied when they are written.
#[cfg(not(target_os = "linux"))]
pub fn populate(_: &GuestRam, _: &[Pages]) {}

/// Counts from now on which pages devices write.
pub fn count_written(ram: &GuestRam) {
    ram.iter().for_each(|region| region.deref().bitmap().count(region.len()));
}

/// One bit for each page that devices wrote since the last call, region by region; `None` where they are not counted.
pub fn take_written(ram: &GuestRam) -> Option<Vec<Vec<u64>>> {
    ram.iter().map(|region| region.deref().bitmap().take()).collect()
}

fn builder(size: usize) -> MmapRegionBuilder<Written> {
    MmapRegionBuilder::new_with_bitmap(size, Written::default())
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
}

/// An anonymous mapping that begins on a huge page. Linux 6.7 and later do that by themselves; before, the mapping lies
/// directly below the last one, so one more of the right size in between moves it there.
fn aligned(size: usize) -> io::Result<Region> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let map = || builder(size).with_mmap_flags(flags).build().map_err(plain);
    let first = map()?;
    let excess = first.as_ptr().addr() % HUGE;
    if excess == 0 || size < HUGE {
        return Ok(first);
    }
    drop(first);
    let filler = MmapRegionBuilder::<()>::new(excess).with_mmap_flags(flags).build().map_err(plain)?;
    let second = map()?;
    drop(filler);
    if second.as_ptr().addr() % HUGE != 0 {
        // Only speed is lost: some pages at the ends stay small.
        log::debug!("guest memory of {} MiB does not begin on a huge page", size as u64 / MIB);
    }
    Ok(second)
}

/// macOS takes its pages as it likes.
#[cfg(not(target_os = "linux"))]
fn advise_huge(_: &Region) {}

#[cfg(target_os = "linux")]
fn advise_huge(region: &Region) {
    // SAFETY: the range is this mapping; the advice changes how it is backed, not what it holds.
    let advised = unsafe {
        rustix::mm::madvise(region.as_ptr().cast(), region.size(), rustix::mm::Advice::LinuxHugepage)
    };
    if let Err(error) = advised {
        // A kernel without transparent huge pages.
        log::debug!("huge pages for guest memory: {error}");
    }
}

fn plain(error: MmapRegionError) -> io::Error {
    match error {
        MmapRegionError::Mmap(error) => error,
        other => io::Error::other(other),
    }
}
