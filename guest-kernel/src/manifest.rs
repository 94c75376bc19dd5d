//! `kernel.json`: what `build.sh` says about the kernel beside it.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;

/// The file's name, beside the kernel.
pub const MANIFEST: &str = "kernel.json";

/// What a kernel was built from, and what came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The kernel's release, as `uname -r` says it in the guest.
    pub version: String,
    /// SHA-256 of `vmlinux`, hexadecimal.
    pub sha256: String,
    /// Size of `vmlinux` in bytes.
    pub size: u64,
    /// The cache key: recipe, source, patches, configuration and compiler.
    pub key: String,
    /// SHA-256 of the configuration fragment, hexadecimal.
    pub config_sha256: String,
    /// The source package and its version, or the hash of the tarball.
    pub source: String,
    /// The compiler and linker.
    pub compiler: String,
}

impl Manifest {
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
        serde_json::from_slice(&text).map_err(|source| Error::Manifest { path: path.into(), source })
    }

    /// Compares the bytes of `kernel` with this manifest.
    pub(crate) fn verify(&self, kernel: &Path) -> Result<(), Error> {
        let found = sha256(kernel).map_err(|source| Error::Read { path: kernel.into(), source })?;
        if found.eq_ignore_ascii_case(&self.sha256) {
            return Ok(());
        }
        Err(Error::Checksum { path: kernel.into(), expected: self.sha256.clone(), found })
    }
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        sum.update(&buffer[..n]);
    }
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
