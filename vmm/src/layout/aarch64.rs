//! A machine that its device tree describes.
//!
//! ```text
//! 0x0800_0000  interrupt controller: distributor, then the redistributors (GICv3) or the CPU interface (GICv2)
//! 0x0900_0000  serial port, clock
//! 0x0a00_0000  virtio-mmio, one transport every 16 KiB
//! 1 GiB        RAM: the kernel at its start, then initramfs and device tree
//! ```

use super::MIB;
use crate::error::Error;

/// The most memory of a VM in MiB: 512 GiB, so that its end stays below 1 TiB (40 bits), the least that KVM gives a
/// guest on most hosts. One that gives less refuses a memory that is too large for it.
pub const MAX_MEM_MIB: u64 = 512 << 10;

/// The interrupt controller's distributor.
pub const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
/// Length of the distributor of a GICv3. That of a GICv2 has 4 KiB.
pub const GIC_DISTRIBUTOR_LEN: u64 = 0x1_0000;
/// The redistributors of a GICv3, one for each vCPU.
pub const GIC_REDISTRIBUTORS: u64 = 0x0810_0000;
/// Length of one redistributor.
pub const GIC_REDISTRIBUTOR_LEN: u64 = 0x2_0000;
/// The CPU interface of a GICv2.
pub const GIC_CPU_INTERFACE: u64 = 0x0801_0000;
/// Length of the CPU interface.
pub const GIC_CPU_INTERFACE_LEN: u64 = 0x2000;

/// The serial port.
pub const SERIAL: u64 = 0x0900_0000;
/// Interrupt line of the serial port.
pub const SERIAL_GSI: u32 = 0;
/// The clock.
pub const RTC: u64 = 0x0901_0000;
/// Interrupt line of the clock.
pub const RTC_GSI: u32 = 1;

/// The first virtio-mmio transport.
pub const VIRTIO_BASE: u64 = 0x0a00_0000;
/// From one transport to the next.
pub const VIRTIO_STRIDE: u64 = 0x4000;
/// Interrupt line of the first transport; the next has the next one.
pub const VIRTIO_GSI: u32 = 8;
/// The most transports.
pub const VIRTIO_MAX: usize = (GSIS - VIRTIO_GSI) as usize;

/// Interrupt lines of the machine: the shared peripheral interrupts (SPI) from 0 on.
pub const GSIS: u32 = 64;
/// Interrupt of the virtual timer, as a private peripheral interrupt (PPI).
pub const VIRTUAL_TIMER_PPI: u32 = 11;

/// Where RAM begins.
pub const RAM: u64 = 0x4000_0000;

/// Start and length in bytes of each region of RAM for a VM of `mem_mib`.
///
/// # Errors
/// [`Error::Config`] when the size is out of range.
pub fn ram(mem_mib: u64) -> Result<Vec<(u64, u64)>, Error> {
    Ok(vec![(RAM, super::checked(mem_mib, MAX_MEM_MIB)?)])
}

const _: () = {
    assert!(VIRTIO_BASE + VIRTIO_MAX as u64 * VIRTIO_STRIDE <= RAM);
    assert!(GIC_REDISTRIBUTORS + crate::hv::MAX_CPUS as u64 * GIC_REDISTRIBUTOR_LEN <= SERIAL);
    assert!(RAM + MAX_MEM_MIB * MIB <= 1 << 40);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_one_piece_behind_the_devices() {
        assert_eq!(ram(512).unwrap(), [(RAM, 512 * MIB)]);
        assert_eq!(ram(MAX_MEM_MIB).unwrap(), [(RAM, MAX_MEM_MIB * MIB)]);
        for mib in [0, 31, MAX_MEM_MIB + 1, u64::MAX] {
            assert!(ram(mib).is_err(), "{mib}");
        }
    }
}
