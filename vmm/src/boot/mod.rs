//! Loading a kernel into guest RAM and saying where a vCPU begins.

pub mod cmdline;
#[cfg(target_arch = "x86_64")]
mod mptable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use servin_devices::mem::{self, GuestRam, Mem};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::error::Error;
use crate::hv::Entry;
use crate::layout;

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
    /// The 64-bit Linux protocol: it alone carries a seed for the kernel's random numbers.
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
}

/// Loads everything; returns where the first vCPU begins.
#[cfg(target_arch = "x86_64")]
pub(crate) fn load(plan: &Plan<'_>) -> Result<Entry, Error> {
    x86_64::load(plan)
}

/// Loads everything; returns where the first vCPU begins.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn load(plan: &Plan<'_>) -> Result<Entry, Error> {
    let _ = plan;
    Err(boot("kernel", format!("servin cannot boot {} guests yet", std::env::consts::ARCH)))
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
                read_file(ram, file, at, *len).map_err(|e| boot("initramfs", e.to_string()))?;
            }
        }
        at += part.len();
    }
    Ok(Some(Initramfs { addr, len }))
}

/// Reads `len` bytes of `file` straight into RAM.
fn read_file(ram: &GuestRam, file: &File, at: u64, len: u64) -> io::Result<()> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let mut done = 0;
    while done < len {
        let rest = ram
            .get_slices(GuestAddress(at + done as u64), len - done)
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)?;
        match mem::read_at(file.as_fd(), &rest, done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => done += more,
        }
    }
    Ok(())
}

/// End of the RAM below the hole.
fn low_ram_end(ram: &GuestRam) -> u64 {
    use vm_memory::GuestMemoryRegion;
    ram.iter()
        .filter(|r| r.start_addr().0 < layout::HOLE)
        .map(|r| r.start_addr().0 + r.len())
        .max()
        .unwrap_or(0)
}
