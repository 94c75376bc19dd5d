//! A directory or file of the host as a device of a machine. The one place that needs the passthrough of directories, which
//! is there on Linux alone yet: elsewhere a share is refused, and `servin-devices` has no module for it.

use std::path::PathBuf;

use servin_devices::virtio::fs::Fs;

use super::create::volumes;
use super::{Request, RootSource};
use crate::image::Image;
use crate::monitor::Share;
use crate::{Error, Result};

#[cfg(target_os = "linux")]
pub(super) use servin_devices::virtio::fs::host::Options;

/// The device of a share.
#[cfg(target_os = "linux")]
pub(super) fn open(share: &Share, mut options: Options) -> Result<Fs> {
    use servin_devices::virtio::fs::host::HostFs;
    use servin_devices::virtio::fs::readonly::ReadOnly;
    use servin_devices::virtio::fs::vfs::{Cache, FileSystem};

    use super::Consistency;
    use crate::chain;

    (options.cache, options.writeback) = match share.consistency {
        Consistency::Consistent => (Cache::Never, false),
        Consistency::Cached => (Cache::Auto, false),
        Consistency::Delegated => (Cache::Always, true),
    };
    let fail = |error: &dyn std::error::Error| Error::Share { path: share.path.clone(), why: chain(error) };
    let open = if share.is_file { HostFs::file } else { HostFs::directory };
    let files = open(&share.path, options).map_err(|error| fail(&error))?;
    let files: Box<dyn FileSystem> =
        if share.read_only { Box::new(ReadOnly(files)) } else { Box::new(files) };
    Fs::new(&share.tag, files).map_err(|error| fail(&error))
}

/// What a share may take of this process's descriptors: nothing.
#[cfg(not(target_os = "linux"))]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Options {
    pub(super) max_nodes_open: usize,
    pub(super) max_handles: usize,
    pub(super) max_locks: usize,
}

/// No device: [`check`] has said so before.
#[cfg(not(target_os = "linux"))]
pub(super) fn open(share: &Share, _: Options) -> Result<Fs> {
    Err(refusal(share.path.clone()))
}

fn refusal(path: PathBuf) -> Error {
    let os = std::env::consts::OS;
    Error::Share { path, why: format!("directories, files and volumes cannot be shared on {os} yet") }
}

/// Refuses a container that needs a share where there are none, before anything is made for it.
pub(crate) fn check(request: &Request, image: Option<&Image>) -> Result<()> {
    if cfg!(target_os = "linux") {
        return Ok(());
    }
    let root = match &request.root {
        RootSource::Directory(dir) => Some(dir.as_path().to_path_buf()),
        RootSource::Image(_) => None,
    };
    let bind = || Some(request.binds.first()?.host.as_path().to_path_buf());
    let volume = || Some(volumes(request, image).first()?.target.as_path().to_path_buf());
    root.or_else(bind).or_else(volume).map_or(Ok(()), |path| Err(refusal(path)))
}
