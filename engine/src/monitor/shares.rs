//! What of the host a machine shares: its root, binds and volumes.

use std::path::PathBuf;

use crate::container::{BindShare, Consistency, ROOT_TAG, Request, RootSource};
use crate::store::Store;
use crate::volume::Volumes;
use crate::{Error, Result};

/// Shares of a machine at most: it has 19 places for devices, and some are taken by disks, sockets and the like.
pub(super) const MOST_SHARES: usize = 12;

/// A directory of the host, or one file in it, as a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) tag: String,
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
    /// `path` is a file: the share shows it alone, under its own name.
    pub(crate) is_file: bool,
    pub(crate) consistency: Consistency,
}

/// The shares that the request needs: the root, and one for each bind.
pub(super) fn shares(request: &Request) -> Result<(Vec<Share>, Vec<BindShare>)> {
    let (mut shares, mut binds) = (Vec::new(), Vec::new());
    if let RootSource::Directory(dir) = &request.root {
        let path = dir.as_path().to_path_buf();
        let meta = std::fs::metadata(&path).map_err(|source| Error::io("open", &path, source))?;
        if !meta.is_dir() {
            return Err(Error::Share { path, why: "the root file system must be a directory".into() });
        }
        let (tag, consistency) = (ROOT_TAG.into(), Consistency::Cached);
        shares.push(Share { tag, path, read_only: true, is_file: false, consistency });
    }
    for (index, bind) in request.binds.iter().enumerate() {
        let path = bind.host.as_path().to_path_buf();
        let is_file = match std::fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => false,
            Ok(meta) if meta.is_file() => true,
            Ok(_) => {
                return Err(Error::Share { path, why: "it is neither a directory nor a file".into() });
            }
            // As docker does it.
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && !bind.read_only && !bind.must_exist =>
            {
                std::fs::create_dir_all(&path).map_err(|source| Error::io("make", &path, source))?;
                false
            }
            Err(source) => return Err(Error::io("open", &path, source)),
        };
        let path = path.canonicalize().map_err(|source| Error::io("open", &path, source))?;
        let tag = format!("v{index}");
        binds.push(BindShare {
            tag: tag.clone(),
            path: match path.file_name() {
                Some(name) if is_file => std::os::unix::ffi::OsStrExt::as_bytes(name).to_vec(),
                _ => Vec::new(),
            },
            target: bind.target.clone(),
            read_only: bind.read_only,
        });
        shares.push(Share { tag, path, read_only: bind.read_only, is_file, consistency: bind.consistency });
    }
    Ok((shares, binds))
}

/// A share for each volume of the container.
pub(super) fn volume_shares(store: &Store, id: &str, any: bool) -> Result<Vec<(Share, BindShare)>> {
    if !any {
        return Ok(Vec::new());
    }
    let volumes = Volumes::new(store);
    let uses = volumes.of(id)?.into_iter().enumerate();
    Ok(uses
        .map(|(index, used)| {
            let (tag, read_only) = (format!("n{index}"), used.read_only);
            let path = volumes.path(&used.volume);
            let consistency = Consistency::Cached;
            let share = Share { tag: tag.clone(), path, read_only, is_file: false, consistency };
            (share, BindShare { tag, path: Vec::new(), target: used.target, read_only })
        })
        .collect())
}
