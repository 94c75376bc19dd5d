//! The guest's physical address space and interrupt lines, one map for each architecture of guests.
//!
//! Everything begins on 16 KiB, the largest page of the hosts. Both maps are compiled everywhere; the names here are
//! those of this machine's.

pub mod aarch64;
pub mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

use crate::error::Error;

/// One MiB.
pub const MIB: u64 = 1 << 20;

/// The least memory of a VM in MiB.
pub const MIN_MEM_MIB: u64 = 32;

/// Regions are cut, and pieces placed, at multiples of this.
pub const GRANULE: u64 = 0x4000;

/// The size in bytes of a memory of `mem_mib`, which may be at most `max_mib`.
fn checked(mem_mib: u64, max_mib: u64) -> Result<u64, Error> {
    if !(MIN_MEM_MIB..=max_mib).contains(&mem_mib) {
        return Err(Error::Config(format!(
            "{mem_mib} MiB of memory; {MIN_MEM_MIB} to {max_mib} are possible"
        )));
    }
    Ok(mem_mib * MIB)
}
