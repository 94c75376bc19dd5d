//! A PC without most of it.
//!
//! ```text
//! 0            RAM, up to 3.25 GiB
//!   0x1000       boot structures (see the constants)
//!   0x9_fc00     MP table
//!   0x10_0000    kernel and initramfs from here
//! 0xd000_0000  virtio-mmio, one transport every 16 KiB
//! 0xfec0_0000  I/O APIC, local APICs, the hypervisor's own pages
//! 4 GiB        the rest of RAM
//! ```

use super::MIB;
use crate::error::Error;

/// The most memory of a VM in MiB: 1 TiB, which every CPU with virtualization can address.
pub const MAX_MEM_MIB: u64 = MIB;

/// Where the hole for devices begins: RAM continues behind [`RAM_HIGH`].
pub const HOLE: u64 = 0xd000_0000;
/// Where RAM continues.
pub const RAM_HIGH: u64 = 1 << 32;

/// Descriptor table for the first instructions.
pub const GDT: u64 = 0x1000;
/// PVH start info, then its module list and memory map.
pub const PVH_INFO: u64 = 0x2000;
/// Boot parameters ("zero page") of the 64-bit protocol.
pub const BOOT_PARAMS: u64 = 0x3000;
/// Seed for the kernel's random numbers.
pub const RNG_SEED: u64 = 0x4000;
/// Page tables of the 64-bit protocol: three pages.
pub const PAGE_TABLES: u64 = 0x5000;
/// First stack pointer, growing down.
pub const STACK: u64 = 0x8ff0;
/// Command line.
pub const CMDLINE: u64 = 0x1_0000;
/// End of conventional memory; the MP table is here, where the kernel looks for it.
pub const MP_TABLE: u64 = 0x9_fc00;
/// Kernel and initramfs lie above this.
pub const KERNEL_MIN: u64 = MIB;

/// The first virtio-mmio transport.
pub const VIRTIO_BASE: u64 = HOLE;
/// From one transport to the next.
pub const VIRTIO_STRIDE: u64 = 0x4000;
/// Interrupt line of the first transport; the next has the next one.
pub const VIRTIO_GSI: u32 = 5;
/// The most transports: the I/O APIC has 24 lines.
pub const VIRTIO_MAX: usize = (GSIS - VIRTIO_GSI) as usize;

/// Interrupt lines of the machine.
pub const GSIS: u32 = 24;
/// The I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APIC of each vCPU.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// Start and length in bytes of each region of RAM for a VM of `mem_mib`.
///
/// # Errors
/// [`Error::Config`] when the size is out of range.
pub fn ram(mem_mib: u64) -> Result<Vec<(u64, u64)>, Error> {
    let bytes = super::checked(mem_mib, MAX_MEM_MIB)?;
    Ok(match bytes.checked_sub(HOLE) {
        None | Some(0) => vec![(0, bytes)],
        Some(rest) => vec![(0, HOLE), (RAM_HIGH, rest)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole_below_4_gib() {
        assert_eq!(ram(512).unwrap(), [(0, 512 * MIB)]);
        assert_eq!(ram(3328).unwrap(), [(0, HOLE)]);
        assert_eq!(ram(3329).unwrap(), [(0, HOLE), (RAM_HIGH, MIB)]);
        assert_eq!(ram(8192).unwrap(), [(0, HOLE), (RAM_HIGH, 8192 * MIB - HOLE)]);
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        for mib in [0, 31, MAX_MEM_MIB + 1, u64::MAX] {
            assert!(ram(mib).is_err(), "{mib}");
        }
    }
}
