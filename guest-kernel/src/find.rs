//! Where the guest is looked for.

use std::env;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::format::{self, KernelFormat};
use crate::manifest::{MANIFEST, Manifest};

/// The kernel's file name in a guest directory.
pub const KERNEL: &str = if cfg!(target_arch = "aarch64") { "Image" } else { "vmlinux" };
/// The initramfs's file name in a guest directory: an uncompressed cpio.
pub const INITRAMFS: &str = "initramfs.cpio";

/// A kernel and an initramfs that exist, the kernel's header checked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Guest {
    /// The kernel.
    pub kernel: PathBuf,
    /// The kernel's layout.
    pub format: KernelFormat,
    /// The initramfs.
    pub initramfs: PathBuf,
}

impl Guest {
    /// Finds the guest to boot.
    ///
    /// `explicit` is what the user named: a kernel file (its initramfs is then looked for in the usual places), or a
    /// directory that holds both files. Otherwise `$SERVIN_GUEST_DIR` is the place if it is set; else, from the
    /// executable's directory, `../lib/servin`, `../guest`, and `target/guest` of every directory above it.
    ///
    /// # Errors
    /// [`Error::NotFound`] with the places searched, [`Error::Read`] and [`Error::Format`] for a bad kernel file.
    pub fn find(explicit: Option<&Path>) -> Result<Self, Error> {
        let named = env::var_os("SERVIN_GUEST_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let exe = env::current_exe().and_then(|exe| exe.canonicalize()).ok();
        Self::search(explicit, named, exe.as_deref())
    }

    /// The first of the usual places that holds `file`: for what a guest directory may have beside kernel and initramfs.
    #[must_use]
    pub fn locate(file: &'static str) -> Option<PathBuf> {
        let named = env::var_os("SERVIN_GUEST_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let exe = env::current_exe().and_then(|exe| exe.canonicalize()).ok();
        let places = named.map_or_else(|| exe.as_deref().map(places).unwrap_or_default(), |dir| vec![dir]);
        first(places, &[file]).ok()
    }

    fn search(explicit: Option<&Path>, named: Option<PathBuf>, exe: Option<&Path>) -> Result<Self, Error> {
        let places = named.map_or_else(|| exe.map(places).unwrap_or_default(), |dir| vec![dir]);
        let Some(explicit) = explicit else {
            let dir = first(places, &[KERNEL, INITRAMFS])?;
            return Self::new(dir.join(KERNEL), dir.join(INITRAMFS));
        };
        let meta = explicit.metadata().map_err(|source| Error::Read { path: explicit.into(), source })?;
        if meta.is_dir() {
            let dir = first(vec![explicit.into()], &[KERNEL, INITRAMFS])?;
            return Self::new(dir.join(KERNEL), dir.join(INITRAMFS));
        }
        Self::new(explicit.into(), first(places, &[INITRAMFS])?.join(INITRAMFS))
    }

    fn new(kernel: PathBuf, initramfs: PathBuf) -> Result<Self, Error> {
        let format = format::check(&kernel)?;
        Ok(Self { kernel, format, initramfs })
    }

    /// What `build.sh` wrote about the kernel, from `kernel.json` beside it.
    ///
    /// # Errors
    /// [`Error::Read`] when there is none, [`Error::Manifest`] when it is not understood.
    pub fn manifest(&self) -> Result<Manifest, Error> {
        Manifest::read(&self.kernel.with_file_name(MANIFEST))
    }

    /// Reads the whole kernel and compares its SHA-256 with `kernel.json`: some milliseconds, not for every start.
    ///
    /// # Errors
    /// Those of [`Guest::manifest`], and [`Error::Checksum`].
    pub fn verify(&self) -> Result<Manifest, Error> {
        let manifest = self.manifest()?;
        manifest.verify(&self.kernel)?;
        Ok(manifest)
    }
}

/// The places that belong to an executable, installed ones first.
fn places(exe: &Path) -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(prefix) = exe.parent().and_then(Path::parent) {
        places.push(prefix.join("lib/servin"));
        places.push(prefix.join("guest"));
    }
    places.extend(exe.ancestors().skip(1).map(|dir| dir.join("target/guest")).filter(|dir| dir.is_dir()));
    places
}

/// The first place with all of `files`.
fn first(places: Vec<PathBuf>, files: &[&'static str]) -> Result<PathBuf, Error> {
    let mut searched = Vec::new();
    for dir in places {
        match files.iter().find(|file| !dir.join(file).is_file()) {
            None => return Ok(dir),
            Some(missing) => searched.push((dir, *missing)),
        }
    }
    Err(Error::NotFound { searched })
}

#[cfg(test)]
#[path = "find_tests.rs"]
mod tests;
