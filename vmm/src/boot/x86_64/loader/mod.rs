//! Kernel files into RAM: ELF and bzImage.
//!
//! Two files give the same names: `vmm` stands on the `linux-loader` crate, which does not build for Windows; `own` is
//! ours, taken there. A test holds the two against each other.

#[cfg(any(test, windows))]
#[cfg_attr(not(windows), allow(dead_code))]
mod own;
#[cfg(not(windows))]
#[cfg(test)]
mod tests;
#[cfg(not(windows))]
mod vmm;

#[cfg(windows)]
pub(super) use own::{bzimage, elf};
#[cfg(not(windows))]
pub(super) use vmm::{bzimage, elf};

/// Where the setup header lies in a bzImage and in the boot parameters, and how long it is as far as it is known here.
const AT: usize = 0x1f1;
const LEN: usize = 0x7b;

/// A kernel in RAM.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    /// The first instruction of an ELF kernel, where a bzImage begins.
    pub(super) start: u64,
    /// The first instruction of PVH.
    pub(super) pvh: Option<u64>,
    /// The end of what was loaded.
    pub(super) end: u64,
    /// Of a bzImage.
    pub(super) header: Option<SetupHeader>,
}

/// The setup header of a bzImage (`Documentation/arch/x86/boot.rst`). Fields are named by their place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SetupHeader([u8; LEN]);

impl SetupHeader {
    /// That of a kernel which has none: all zeroes.
    pub(super) const NONE: Self = Self([0; LEN]);

    /// The field at `place` of the file, 0 where there is none.
    pub(super) fn get<const N: usize>(&self, place: usize) -> u64 {
        let mut value = [0; 8];
        let bytes = place.checked_sub(AT).and_then(|at| self.0.get(at..at.checked_add(N)?));
        for (to, from) in value.iter_mut().zip(bytes.unwrap_or_default()) {
            *to = *from;
        }
        u64::from_le_bytes(value)
    }

    /// The bytes from their place on.
    pub(super) fn bytes(&self) -> (usize, &[u8]) {
        (AT, &self.0)
    }
}
