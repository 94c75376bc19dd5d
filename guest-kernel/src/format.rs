//! Tells from the first bytes whether a file is a kernel that the monitor can load.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::Error;

/// How the kernel file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFormat {
    /// An uncompressed ELF64 `vmlinux`.
    Elf,
    /// A compressed `bzImage` with a 64-bit entry (boot protocol 2.12 or later).
    BzImage,
    /// An uncompressed arm64 `Image`, with or without an EFI stub.
    Image,
}

impl KernelFormat {
    /// Why a machine of this architecture cannot boot it; none when it can.
    fn misfit(self, arch: &str) -> Option<&'static str> {
        match (self, arch) {
            (Self::Elf | Self::BzImage, "x86_64") | (Self::Image, "aarch64") => None,
            (Self::Elf | Self::BzImage, _) => Some("it is a kernel for x86-64"),
            (Self::Image, _) => Some("it is an arm64 Image"),
        }
    }
}

/// Enough for the ELF header and for the setup header of a bzImage (Documentation/arch/x86/boot.rst).
const HEAD: u64 = 0x240;

/// Reads the first bytes of `path` and names its format.
///
/// # Errors
/// [`Error::Read`] when the file cannot be read, [`Error::Format`] when it is not a kernel for this machine.
pub(crate) fn check(path: &Path) -> Result<KernelFormat, Error> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(HEAD).read_to_end(&mut head))
        .map_err(|source| Error::Read { path: path.into(), source })?;
    let wrong = |reason| Error::Format { path: path.into(), reason };
    let format = classify(&head).map_err(wrong)?;
    format.misfit(std::env::consts::ARCH).map_or(Ok(format), |reason| Err(wrong(reason)))
}

fn classify(head: &[u8]) -> Result<KernelFormat, &'static str> {
    let u16_at = |at: usize| -> Option<u16> { head.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b)) };
    if head.is_empty() {
        return Err("it is empty");
    }
    if head.starts_with(b"\x7fELF") {
        // e_ident[EI_CLASS] and [EI_DATA], then e_type and e_machine.
        return match (head.get(4), head.get(5), u16_at(16), u16_at(18)) {
            (Some(2), Some(1), Some(2 | 3), Some(62)) => Ok(KernelFormat::Elf),
            (Some(2), Some(1), Some(2 | 3), Some(183)) => Err("it is an ELF for arm64"),
            (Some(1), ..) => Err("it is a 32-bit ELF"),
            (Some(2), Some(1), Some(1), _) => Err("it is an ELF object, not an executable"),
            _ => Err("it is an ELF for another machine, or cut short"),
        };
    }
    if u16_at(0x1fe) == Some(0xaa55) && head.get(0x202..0x206) == Some(b"HdrS") {
        // version and, from 2.12 on, xloadflags with XLF_KERNEL_64.
        return match (u16_at(0x206), u16_at(0x236)) {
            (Some(version), Some(flags)) if version >= 0x020c && flags & 1 != 0 => Ok(KernelFormat::BzImage),
            _ => Err("it is a bzImage without a 64-bit entry"),
        };
    }
    if head.get(0x38..0x3c) == Some(b"ARM\x64") {
        return Ok(KernelFormat::Image);
    }
    if head.starts_with(b"\x1f\x8b") || head.starts_with(b"\x28\xb5\x2f\xfd") || head.starts_with(b"\xfd7zXZ")
    {
        return Err("it is a compressed file");
    }
    Err("it has no header of a kernel")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(class: u8, kind: u8, machine: u8) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
        (head[16], head[18]) = (kind, machine);
        head
    }

    fn bzimage(version: u16, flags: u16) -> Vec<u8> {
        let mut head = vec![0; 0x240];
        head[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        head[0x202..0x206].copy_from_slice(b"HdrS");
        head[0x206..0x208].copy_from_slice(&version.to_le_bytes());
        head[0x236..0x238].copy_from_slice(&flags.to_le_bytes());
        head
    }

    #[test]
    fn elf64_for_x86_64_is_a_kernel() {
        assert_eq!(classify(&elf(2, 2, 62)), Ok(KernelFormat::Elf));
        assert_eq!(classify(&elf(2, 3, 62)), Ok(KernelFormat::Elf));
    }

    #[test]
    fn other_elf_files_are_named() {
        assert_eq!(classify(&elf(2, 2, 183)), Err("it is an ELF for arm64"));
        assert_eq!(classify(&elf(1, 2, 3)), Err("it is a 32-bit ELF"));
        assert_eq!(classify(&elf(2, 1, 62)), Err("it is an ELF object, not an executable"));
    }

    #[test]
    fn every_cut_of_a_kernel_header_is_refused_or_accepted_without_panic() {
        for whole in [elf(2, 2, 62), bzimage(0x020f, 1)] {
            for len in 0..whole.len() {
                let _ = classify(&whole[..len]);
            }
            assert!(classify(&whole[..10]).is_err());
        }
    }

    #[test]
    fn bzimage_needs_a_64_bit_entry() {
        assert_eq!(classify(&bzimage(0x020f, 1)), Ok(KernelFormat::BzImage));
        assert!(classify(&bzimage(0x020f, 2)).is_err());
        assert!(classify(&bzimage(0x020b, 1)).is_err());
    }

    #[test]
    fn each_machine_has_its_own_formats() {
        let mut image = vec![0; 64];
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
        assert_eq!(classify(&image), Ok(KernelFormat::Image));
        assert_eq!(KernelFormat::Image.misfit("aarch64"), None);
        assert!(KernelFormat::Image.misfit("x86_64").is_some());
        assert!(KernelFormat::Elf.misfit("aarch64").is_some());
        assert_eq!(KernelFormat::BzImage.misfit("x86_64"), None);
    }

    #[test]
    fn a_compressed_kernel_is_called_compressed() {
        assert_eq!(classify(b"\x1f\x8b\x08 gzip"), Err("it is a compressed file"));
    }
}
