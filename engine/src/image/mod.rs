//! Images: what they are called, what they are made of, how they come in and go out.
//!
//! ```text
//! archive    a tar or a directory, every file staged and hashed
//!   -> contents   indexes and manifests to images, digests and sizes checked
//!     -> load     layers decompressed, diff ids checked, applied to a tree; the root file system written; all recorded
//! pull                      the same, with a registry in the archive's place; `partial` keeps what was cut
//! names, inspect, save, push   the ways back out
//! ```

mod archive;
mod base;
#[cfg(test)]
mod check_tests;
mod compose;
mod config;
mod contents;
mod digest;
mod inspect;
mod layer;
mod load;
mod names;
mod objects;
mod partial;
mod platform;
mod pull;
mod push;
mod reference;
mod save;
pub mod tar;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use archive::Source;
pub use base::{BASE, BASE_ARCHIVE, guest_directory};
pub use compose::{Change, Composed};
pub use config::{HistoryStep, ImageConfig, Process, RootFs};
pub use digest::{Digest, Hashing};
pub use inspect::Step;
pub use layer::Compression;
pub use load::{LoadedImage, Progress};
pub use names::Removed;
pub use platform::Platform;
pub use pull::{BlobState, Pulled, Step as PullStep};
pub use push::{Pushed, Step as PushStep};
pub use reference::Reference;

use crate::erofs::{self, Tree};
use crate::store::Store;
use crate::{Error, Result};

/// Reads an archive of these files, to its layers and their trees; a body of a fuzz target.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn fuzz_archive(files: &[(String, Vec<u8>)], scratch: &std::path::Path) {
    use std::io::Write;
    let mut tar = ::tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = ::tar::Header::new_ustar();
        if let Some(place) = header.as_old_mut().name.get_mut(..name.len().min(100)) {
            let _ = place.as_mut().write(name.as_bytes());
        }
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        let _ = tar.append(&header, content.as_slice());
    }
    let Ok(bytes) = tar.into_inner() else { return };
    let platform = Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() };
    let opened = archive::Archive::open(Source::Stream(&mut bytes.as_slice()), scratch, &mut |_| {});
    let Ok(found) = opened.and_then(|mut archive| contents::find(&mut archive, &platform)) else { return };
    for image in found {
        let _ = load::check_layers(&image, &mut |_| {});
    }
}

/// The images of a store.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    store: &'a Store,
}

/// An image in the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of its config, as docker counts ids.
    pub id: Digest,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Its config.
    pub config: ImageConfig,
    /// The config as it came, byte for byte.
    pub config_json: String,
    /// Bytes of the files of all layers.
    pub size: u64,
    /// When it came into the store: nanoseconds since 1970.
    pub loaded_ns: i64,
}

impl Image {
    /// Refuses an image for another CPU or system. One that says nothing of either may be tried.
    ///
    /// # Errors
    /// [`Error::NoPlatform`].
    pub fn must_run_here(&self) -> Result<()> {
        let ImageConfig { os, architecture, variant, .. } = &self.config;
        let platform =
            Platform { os: os.clone(), architecture: architecture.clone(), variant: variant.clone() };
        if os.is_empty() || architecture.is_empty() || platform.runs_here() {
            return Ok(());
        }
        Err(Error::NoPlatform {
            place: format!("the image {}", self.id.short()),
            wanted: Platform::native().to_string(),
            present: platform.to_string(),
        })
    }
}

impl<'a> Images<'a> {
    /// The images of this store.
    pub fn new(store: &'a Store) -> Self {
        Images { store }
    }

    /// The root file system of an image: an EROFS file, to be opened read-only. It is built anew where the writer has
    /// changed since the image was loaded.
    pub fn root(&self, image: &Image) -> Result<PathBuf> {
        let path = self.root_path(&image.id);
        if path.exists() {
            return Ok(path);
        }
        let scratch = self.store.scratch()?;
        let built = scratch.path().join("root");
        self.build_root(image, &built)?;
        self.store.write("store the root file system", |transaction| {
            let sql = "SELECT EXISTS (SELECT 1 FROM images WHERE id = ?1)";
            let there: bool = transaction
                .query_row(sql, [image.id.to_string()], |row| row.get(0))
                .map_err(|source| Error::database("look up the image", source))?;
            if !there {
                return Err(Error::NoSuchImage { reference: image.id.to_string() });
            }
            std::fs::rename(&built, &path).map_err(|source| Error::io("store", &path, source))
        })?;
        Ok(path)
    }

    /// Gives back what an image's root file system takes on disk, until [`Images::root`] builds it anew. A machine that has it
    /// open keeps it.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget_root(&self, image: &Image) -> Result<()> {
        let path = self.root_path(&image.id);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path, source))
            }
            _ => Ok(()),
        }
    }

    /// Builds the root file system of an image from its layers; the same bytes each time.
    pub(crate) fn build_root(&self, image: &Image, to: &std::path::Path) -> Result<()> {
        let blobs = self.blobs(&image.id)?;
        let layers = load::Paths(
            blobs.iter().skip(2).map(|blob| (blob.digest, self.store.blob_path(&blob.digest))).collect(),
        );
        let mut tree = Tree::new();
        for (index, (digest, _)) in layers.0.iter().enumerate() {
            tree.begin_layer(index as u32);
            load::scan(erofs::Layers::open(&layers, index as u32)?, &mut tree, *digest)?;
        }
        erofs::write(&tree, &layers, &image.id, to)?;
        Ok(())
    }

    /// The blobs of an image with their sizes in bytes.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn blob_sizes(&self, id: &Digest) -> Result<Vec<(Digest, u64)>> {
        Ok(self.blobs(id)?.iter().map(|blob| (blob.digest, blob.size)).collect())
    }

    /// Bytes that an image's root file system takes on disk; none where it is not built.
    #[must_use]
    pub fn root_size(&self, id: &Digest) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(self.root_path(id)).map_or(0, |meta| meta.blocks().saturating_mul(512))
    }

    pub(crate) fn root_path(&self, id: &Digest) -> PathBuf {
        self.store.root().join("roots").join(id.hex() + &erofs::suffix())
    }

    /// The blobs of an image: manifest, config, then the layers from the lowest.
    fn blobs(&self, id: &Digest) -> Result<Vec<StoredBlob>> {
        let fail = |source| Error::database("look up the image", source);
        let sql = "SELECT blob, size, unpacked FROM image_blobs JOIN blobs ON blob = digest WHERE image = ?1 ORDER BY position";
        let mut statement = self.store.db().prepare(sql).map_err(fail)?;
        let rows = statement
            .query_map([id.to_string()], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            })
            .map_err(fail)?;
        rows.map(|row| {
            let (digest, size, unpacked) = row.map_err(fail)?;
            Ok(StoredBlob {
                digest: digest.parse()?,
                size: size.unsigned_abs(),
                unpacked: unpacked.unsigned_abs(),
            })
        })
        .collect()
    }
}

/// A row of the table `image_blobs` with its blob's size.
#[derive(Clone, Copy, Debug)]
struct StoredBlob {
    digest: Digest,
    /// Bytes of the blob.
    size: u64,
    /// Bytes of the layer's files.
    unpacked: u64,
}
