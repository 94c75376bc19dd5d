//! The kernel's command line: the base, one word per virtio device, what the user added.

use std::fmt::Write;

use crate::error::Error;
use crate::hv::Caps;
use crate::layout::{VIRTIO_BASE, VIRTIO_GSI, VIRTIO_STRIDE};

/// The longest command line that Linux takes on x86 and arm64 (`COMMAND_LINE_SIZE`), with its final zero.
pub const MAX_LEN: usize = 2048;

/// Words that every guest gets: a panic ends the VM, and on a PC no other way than the keyboard's is tried.
const BASE: &str = if cfg!(target_arch = "x86_64") { "panic=-1 reboot=k" } else { "panic=-1" };

/// What a kernel needs where the hypervisor emulates its code (`kvm_pvm`): the entry for system calls that land at CPL 3,
/// and no instructions that would have to be carried out one by one.
const EMULATED: &str = "servin.pvm clearcpuid=cx16,popcnt,smap,invpcid,fsgsbase,rdpid,xsaves,xsavec,xsaveopt";

/// Builds the command line for `devices` virtio devices. `extra` comes last, so that it wins.
///
/// # Errors
/// [`Error::Config`]: it has control characters or is too long.
pub fn build(caps: &Caps, devices: usize, extra: &str) -> Result<String, Error> {
    if extra.chars().any(char::is_control) {
        return Err(Error::Config("the kernel command line has control characters".to_owned()));
    }
    let hides_xsave = |word: &str| {
        let cleared = word.strip_prefix("clearcpuid=").unwrap_or_default();
        word == "noxsave" || cleared.split(',').any(|feature| feature == "xsave")
    };
    if caps.emulates_kernel && extra.split(' ').any(hides_xsave) {
        // User code runs natively there and sees the CPU's own CPUID.
        return Err(Error::Unsupported {
            what: "a kernel that does not save extended registers",
            why: "on this host user programs see and use AVX all the same, and would find each other's values in it; \
                  leave noxsave away"
                .to_owned(),
        });
    }
    let mut line = BASE.to_owned();
    if caps.emulates_kernel {
        line.push(' ');
        line.push_str(EMULATED);
    }
    // Elsewhere they stand in the device tree.
    for index in (0..devices as u64).filter(|_| cfg!(target_arch = "x86_64")) {
        let (at, gsi) = (VIRTIO_BASE + index * VIRTIO_STRIDE, u64::from(VIRTIO_GSI) + index);
        // Writing to a string cannot fail.
        let _ = write!(line, " virtio_mmio.device=4K@{at:#x}:{gsi}");
    }
    if !extra.is_empty() {
        // Parameters behind `--` go to PID 1.
        line.push(' ');
        line.push_str(extra);
    }
    if line.len() >= MAX_LEN {
        return Err(Error::Config(format!(
            "the kernel command line has {} bytes; {} are possible",
            line.len(),
            MAX_LEN - 1
        )));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hv::Hypervisor;
    use crate::hv::fake::Fake;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn each_device_has_a_word_and_extras_come_last() {
        let line = build(Fake::new().caps(), 2, "quiet -- one").unwrap();
        assert!(line.ends_with(
            " virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0004000:6 quiet -- one"
        ));
    }

    #[test]
    fn a_kernel_that_would_corrupt_vector_registers_is_refused() {
        let caps = Caps { emulates_kernel: true, ..Fake::new().caps().clone() };
        for words in ["quiet noxsave", "clearcpuid=smap,xsave"] {
            assert!(matches!(build(&caps, 0, words), Err(Error::Unsupported { .. })));
        }
        assert!(build(&caps, 0, "quiet").unwrap().contains("servin.pvm"));
    }

    #[test]
    fn too_long_lines_and_control_characters_are_refused() {
        assert!(build(Fake::new().caps(), 0, &"x".repeat(MAX_LEN)).is_err());
        assert!(build(Fake::new().caps(), 0, "a\nb").is_err());
    }
}
