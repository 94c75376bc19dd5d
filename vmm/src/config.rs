//! What a VM is made of, as plain data.

use std::path::PathBuf;

use crate::boot::{Protocol, Source};
use crate::error::Error;
use crate::hv::MAX_CPUS;
use crate::layout;

/// The configuration of a VM, without its devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Memory in MiB, [`layout::MIN_MEM_MIB`] to [`layout::MAX_MEM_MIB`].
    pub memory_mib: u64,
    /// vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// The kernel: an ELF or bzImage file.
    pub kernel: Option<PathBuf>,
    /// Parts of the initramfs: archives that the kernel unpacks one after the other.
    pub initramfs: Vec<Source>,
    /// Words behind the command line that the monitor makes.
    pub cmdline_extra: String,
    /// How the kernel is entered.
    pub protocol: Protocol,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_mib: 512,
            cpus: 1,
            kernel: None,
            initramfs: Vec::new(),
            cmdline_extra: String::new(),
            protocol: Protocol::default(),
        }
    }
}

impl Config {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] names the first value that is out of range.
    pub fn check(&self) -> Result<(), Error> {
        layout::ram(self.memory_mib)?;
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(Error::Config(format!("{} vCPUs; 1 to {MAX_CPUS} are possible", self.cpus)));
        }
        Ok(())
    }
}
