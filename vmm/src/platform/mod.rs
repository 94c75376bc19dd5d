//! What a machine has beside its virtio devices: power, serial port, clock, and what answers for hardware that guests
//! look for and that is not there.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::io::Write;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::attach;
use servin_devices::bus::Bus;
use servin_devices::power::PowerSink;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::attach;

use crate::hv;

/// What the devices are attached to.
pub(crate) struct Platform<'a> {
    pub(crate) vm: &'a dyn hv::Vm,
    #[cfg_attr(target_arch = "x86_64", expect(dead_code, reason = "all of it is at ports"))]
    pub(crate) mmio: &'a mut Bus,
    /// The ports, which only x86 guests reach.
    #[cfg_attr(target_arch = "aarch64", expect(dead_code, reason = "there are none"))]
    pub(crate) ports: &'a mut Bus,
    /// Where the output of the serial port goes; none without.
    pub(crate) serial: Option<Box<dyn Write + Send>>,
    /// Makes a sink that ends the VM. A guest on arm64 ends it by PSCI, which is the backend's.
    #[cfg_attr(target_arch = "aarch64", expect(dead_code, reason = "PSCI is the backend's"))]
    pub(crate) power: &'a dyn Fn() -> PowerSink,
}
