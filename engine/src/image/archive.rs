//! What `load` reads from: a tar, from a file or a pipe, or an OCI layout directory. Every file is copied into the store's
//! scratch directory once, and hashed on the way; what is recorded later is only renamed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::load::LAYER_MAX;
use super::tar::{Kind, Tar};
use super::{Digest, Hashing, Progress, layer};
use crate::{Error, Result};

/// Most entries of an archive.
const ENTRIES_MAX: usize = 100_000;
/// Longest name inside an archive in bytes.
const NAME_MAX: usize = 4096;
/// Largest manifest, index or config in bytes.
pub(super) const JSON_MAX: u64 = 8 << 20;
/// Bytes copied at a time.
const CHUNK: usize = 256 * 1024;

/// Where an image comes from.
pub enum Source<'a> {
    /// A tar, plain or compressed, or an OCI layout directory.
    Path(&'a Path),
    /// A tar, plain or compressed.
    Stream(&'a mut dyn Read),
}

/// A file in the scratch directory whose digest and size are known.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub(super) path: PathBuf,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// An opened source.
pub(super) struct Archive<'a> {
    /// Its name in messages.
    pub(super) place: String,
    scratch: &'a Path,
    /// The OCI layout, where the source is a directory.
    directory: Option<PathBuf>,
    files: HashMap<String, Blob>,
    links: HashMap<String, String>,
    blobs: HashMap<Digest, Blob>,
    count: usize,
}

impl<'a> Archive<'a> {
    /// Opens a source. A tar is read to its end here.
    pub(super) fn open(
        source: Source<'_>,
        scratch: &'a Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Archive<'a>> {
        let mut archive = Archive {
            place: "standard input".into(),
            scratch,
            directory: None,
            files: HashMap::new(),
            links: HashMap::new(),
            blobs: HashMap::new(),
            count: 0,
        };
        match source {
            Source::Stream(stream) => archive.read_tar(stream, Path::new("standard input"), progress)?,
            Source::Path(path) => {
                archive.place = path.display().to_string();
                let fail = |source| Error::io("open", path, source);
                if fs::metadata(path).map_err(fail)?.is_dir() {
                    archive.directory = Some(path.to_path_buf());
                } else {
                    let mut file = File::open(path).map_err(fail)?;
                    archive.read_tar(&mut file, path, progress)?;
                }
            }
        }
        Ok(archive)
    }

    fn read_tar(
        &mut self,
        source: &mut dyn Read,
        name: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let fail = |source| Error::io("read", name, source);
        let (stream, _) = layer::decompress(source).map_err(fail)?;
        let mut tar = Tar::new(stream);
        let mut total = 0;
        while let Some(entry) = tar.next_entry().map_err(fail)? {
            if self.files.len() + self.links.len() >= ENTRIES_MAX {
                return Err(Error::Limit {
                    what: self.place.clone(),
                    limit: format!("{ENTRIES_MAX} entries"),
                });
            }
            if matches!(entry.kind, Kind::Directory) {
                continue;
            }
            let path = self.inner_path(&entry.path, "")?;
            match entry.kind {
                Kind::File => {
                    // Only holes can make it so large; what is stored takes its time.
                    if entry.size > LAYER_MAX {
                        let limit = format!("{} GiB", LAYER_MAX >> 30);
                        return Err(Error::Limit { what: format!("{path} in {}", self.place), limit });
                    }
                    let blob = self.stage(&mut tar, name, &mut |bytes| {
                        total += bytes;
                        progress(Progress::Reading { bytes: total });
                    })?;
                    if let Some(hex) = path.strip_prefix("blobs/sha256/") {
                        let expected = Digest::from_hex(hex)
                            .ok_or_else(|| self.bad(format!("{path} is not named by a digest")))?;
                        verify(&blob, &expected, None, &path)?;
                    }
                    self.blobs.insert(blob.digest, blob.clone());
                    self.links.remove(&path);
                    self.files.insert(path, blob);
                }
                // Old `docker save` links a layer that two images share.
                Kind::Symlink | Kind::HardLink => {
                    let base = if entry.kind == Kind::Symlink { &path } else { "" };
                    let target = self.inner_path(&entry.link, base)?;
                    self.files.remove(&path);
                    self.links.insert(path, target);
                }
                _ => return Err(self.bad(format!("{path} is a device or a pipe"))),
            }
        }
        if total == 0 {
            return Err(self.bad("it is empty".into()));
        }
        Ok(())
    }

    /// A path of the archive without `.` and `..`; a link's is relative to the directory of `base`.
    fn inner_path(&self, path: &[u8], base: &str) -> Result<String> {
        let text = std::str::from_utf8(path).ok().filter(|text| text.len() <= NAME_MAX);
        let text = text.ok_or_else(|| self.bad("a name is not UTF-8, or too long".into()))?;
        let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
        parts.pop();
        if text.starts_with('/') {
            parts.clear();
        }
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop().ok_or_else(|| self.bad(format!("the name {text:?} leaves it")))?;
                }
                _ => parts.push(part),
            }
        }
        Ok(parts.join("/"))
    }

    /// Copies a stream into the scratch directory.
    fn stage(&mut self, from: &mut dyn Read, name: &Path, progress: &mut dyn FnMut(u64)) -> Result<Blob> {
        self.count += 1;
        let path = self.scratch.join(format!("{}", self.count));
        let file = File::create_new(&path).map_err(|source| Error::io("make", &path, source))?;
        let mut out = Hashing::new(file);
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::io("read", name, error)),
            };
            let bytes = buffer.get(..n).unwrap_or_default();
            out.write_all(bytes).map_err(|source| Error::io("write", &path, source))?;
            progress(n as u64);
        }
        let (_, digest, size) = out.finish();
        Ok(Blob { path, digest, size })
    }

    /// Puts bytes that the archive does not have, such as a generated manifest, among its blobs.
    pub(super) fn add(&mut self, mut bytes: &[u8]) -> Result<Blob> {
        let blob = self.stage(&mut bytes, Path::new("memory"), &mut |_| {})?;
        self.blobs.insert(blob.digest, blob.clone());
        Ok(blob)
    }

    /// A file by its name.
    pub(super) fn file(&mut self, name: &str) -> Result<Option<Blob>> {
        if let Some(directory) = &self.directory {
            return self.copy_in(&directory.join(name), name);
        }
        let mut name = self.inner_path(name.as_bytes(), "")?;
        // A chain of links is as long as the images that share a layer at most; a circle has no end.
        for _ in 0..64 {
            match self.links.get(&name) {
                Some(target) => name = target.clone(),
                None => return Ok(self.files.get(&name).cloned()),
            }
        }
        Err(self.bad(format!("{name} is a link that leads nowhere")))
    }

    /// A blob by its digest; of a tar it may have any name.
    pub(super) fn blob(&mut self, digest: &Digest, what: &str) -> Result<Blob> {
        if let Some(blob) = self.blobs.get(digest) {
            return Ok(blob.clone());
        }
        let found = match &self.directory {
            Some(directory) => self.copy_in(&directory.join("blobs/sha256").join(digest.hex()), what)?,
            None => None,
        };
        let Some(blob) = found else {
            return Err(Error::Missing { what: format!("{what} {digest}"), place: self.place.clone() });
        };
        verify(&blob, digest, None, what)?;
        self.blobs.insert(*digest, blob.clone());
        Ok(blob)
    }

    /// Copies a file of the layout directory.
    fn copy_in(&mut self, path: &Path, what: &str) -> Result<Option<Blob>> {
        // O_NONBLOCK, so that a pipe in the place of a blob does not hang the load.
        let opened =
            File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", path, error)),
        };
        if !file.metadata().map_err(|source| Error::io("open", path, source))?.is_file() {
            return Err(self.bad(format!("{what} is not a file")));
        }
        self.stage(&mut file, path, &mut |_| {}).map(Some)
    }

    /// An error about this archive.
    pub(super) fn bad(&self, why: String) -> Error {
        Error::Archive { place: self.place.clone(), why }
    }
}

/// Compares a blob with what was promised.
pub(super) fn verify(blob: &Blob, digest: &Digest, size: Option<u64>, what: &str) -> Result<()> {
    if let Some(expected) = size.filter(|size| *size != blob.size) {
        return Err(Error::WrongSize { what: what.into(), expected, found: blob.size });
    }
    if blob.digest != *digest {
        return Err(Error::WrongDigest { what: what.into(), expected: *digest, found: blob.digest });
    }
    Ok(())
}
