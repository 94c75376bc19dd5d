//! Loading a kernel into guest RAM and saying where a vCPU begins.

#[cfg(target_arch = "aarch64")]
mod aarch64;
pub mod cmdline;
pub mod fdt;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use servin_devices::mem::{self, GuestRam, Mem};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::error::Error;
use crate::hv::IrqChip;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::load;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::load;

/// Something to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file, read when the VM is built.
    File(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<Vec<u8>> for Source {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

/// How the kernel is entered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// The one of the architecture that carries a seed for the kernel's random numbers: on x86 the 64-bit Linux
    /// protocol, on arm64 the only one (`Documentation/arch/arm64/booting.rst`).
    #[default]
    Auto,
    /// The PVH protocol (x86, ELF kernels with the note).
    Pvh,
    /// The 64-bit Linux protocol (x86, ELF kernels and bzImages).
    Linux64,
}

/// What to load.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) mem: &'a Mem,
    pub(crate) cpus: u8,
    pub(crate) kernel: &'a PathBuf,
    /// Parts of one initramfs, in order.
    pub(crate) initramfs: &'a [Source],
    pub(crate) cmdline: &'a str,
    pub(crate) protocol: Protocol,
    #[cfg_attr(target_arch = "x86_64", expect(dead_code, reason = "a PC's kernel probes"))]
    pub(crate) hardware: Hardware,
}

/// What a kernel that does not probe must be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    /// The interrupt controller.
    pub irqchip: IrqChip,
    /// Number of virtio transports.
    pub virtio: usize,
    /// There is a serial port.
    pub serial: bool,
}

fn boot(what: &'static str, why: impl Into<String>) -> Error {
    Error::Boot { what, why: why.into() }
}

fn open(what: &'static str, path: &PathBuf) -> Result<File, Error> {
    File::open(path).map_err(|e| boot(what, format!("{}: {e}", path.display())))
}

/// An initramfs in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initramfs {
    addr: u64,
    len: u64,
}

/// A part of the initramfs, measured.
enum Part<'a> {
    File(File, u64),
    Bytes(&'a [u8]),
}

impl Part<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::File(_, len) => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

/// Loads the parts of the initramfs one after the other, each on four bytes as the kernel wants archives; `place` picks the
/// address for a length. `None` when there is none.
fn load_initramfs(
    ram: &GuestRam,
    sources: &[Source],
    place: impl FnOnce(u64) -> Option<u64>,
) -> Result<Option<Initramfs>, Error> {
    let mut parts = Vec::new();
    let mut len = 0_u64;
    for source in sources {
        let part = match source {
            Source::Bytes(bytes) => Part::Bytes(bytes),
            Source::File(path) => {
                let file = open("initramfs", path)?;
                let size =
                    file.metadata().map_err(|e| boot("initramfs", format!("{}: {e}", path.display())))?.len();
                Part::File(file, size)
            }
        };
        len = len.next_multiple_of(4) + part.len();
        parts.push(part);
    }
    if len == 0 {
        return Ok(None);
    }
    let addr = place(len).ok_or_else(|| {
        boot("initramfs", format!("{} KiB do not fit beside the kernel; give the VM more memory", len / 1024))
    })?;
    let mut at = addr;
    for part in &parts {
        at = at.next_multiple_of(4);
        match part {
            Part::Bytes(bytes) => {
                ram.write_slice(bytes, GuestAddress(at)).map_err(|e| boot("initramfs", e.to_string()))?
            }
            Part::File(file, len) => {
                read_file(ram, file, 0, at, *len).map_err(|e| boot("initramfs", e.to_string()))?;
            }
        }
        at += part.len();
    }
    Ok(Some(Initramfs { addr, len }))
}

/// Reads `len` bytes of `file` from `from` on straight into RAM.
fn read_file(ram: &GuestRam, file: &File, from: u64, at: u64, len: u64) -> io::Result<()> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let mut done = 0;
    while done < len {
        let rest = ram
            .get_slices(GuestAddress(at.saturating_add(done as u64)), len - done)
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)?;
        match mem::read_at(mem::file_ref(file), &rest, from.saturating_add(done as u64))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => done += more,
        }
    }
    Ok(())
}

/// Random bytes for the guest's generator.
fn random_seed() -> Result<[u8; 32], Error> {
    let mut seed = [0; 32];
    servin_devices::os::random(&mut seed).map_err(Error::host("taking random bytes for the guest"))?;
    Ok(seed)
}
