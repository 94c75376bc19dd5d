//! A directory or file of the host as a device of a machine.

use servin_devices::virtio::fs::Fs;
use servin_devices::virtio::fs::host::{HostFs, Options};
use servin_devices::virtio::fs::readonly::ReadOnly;
use servin_devices::virtio::fs::vfs::{Cache, FileSystem};

use super::Consistency;
use crate::monitor::Share;
use crate::{Error, Result, chain};

/// The device of a share.
pub(super) fn open(share: &Share, mut options: Options) -> Result<Fs> {
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
