//! What can go wrong between a directory and a bootable guest.

use std::path::PathBuf;

/// The kernels of this machine.
const WANTED: &str = if cfg!(target_arch = "aarch64") {
    "an uncompressed Image for arm64"
} else {
    "an x86-64 ELF vmlinux or a bzImage"
};

/// Why no guest can be booted from what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No place holds both files.
    #[error("no guest kernel found; looked in:{}\nbuild it with `make guest`, or name a directory in SERVIN_GUEST_DIR", list(.searched))]
    NotFound {
        /// The places, in the order they were searched, each with the file missing there.
        searched: Vec<(PathBuf, &'static str)>,
    },
    /// A path that was named by the user is not there or cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The file is no kernel that can be booted here.
    #[error("{} is not a kernel for this machine: {reason}; it must be {WANTED}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: &'static str,
    },
    /// `kernel.json` is not what `build.sh` writes.
    #[error("cannot understand {}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: serde_json::Error,
    },
    /// The kernel's bytes are not the ones that were built.
    #[error("{} was changed or damaged: its SHA-256 is {found}, kernel.json says {expected}; build it again with `make guest`", path.display())]
    Checksum {
        /// The kernel.
        path: PathBuf,
        /// The sum in `kernel.json`, hexadecimal.
        expected: String,
        /// The sum of the file, hexadecimal.
        found: String,
    },
}

fn list(searched: &[(PathBuf, &'static str)]) -> String {
    searched.iter().map(|(dir, missing)| format!("\n  {} (no {missing})", dir.display())).collect()
}
