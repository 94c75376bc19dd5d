//! `load`: everything is checked and built in the scratch directory first, and only then recorded, in one transaction.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::archive::{Archive, Blob, Source};
use super::contents::{self, Found};
use super::tar::Tar;
use super::{Digest, Hashing, Images, Platform, Reference, layer};
use crate::erofs::{self, Layers, Tree};
use crate::store::now_ns;
use crate::{Error, Result};

/// Longest uncompressed layer in bytes.
pub(super) const LAYER_MAX: u64 = 256 << 30;

/// How far a load is; bytes are those of this step so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// The archive is read.
    Reading {
        /// Bytes out of the archive.
        bytes: u64,
    },
    /// A layer is decompressed and checked.
    Checking {
        /// Its digest.
        layer: &'a Digest,
        /// Which one, from 1.
        number: usize,
        /// Of how many.
        of: usize,
    },
    /// The root file system is written.
    Building {
        /// The image's id.
        image: &'a Digest,
    },
}

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedImage {
    /// Its id.
    pub id: Digest,
    /// The names it has now.
    pub names: Vec<Reference>,
}

impl Images<'_> {
    /// Loads all images of a `docker save` tar or an OCI layout. Of an index the manifest that fits the platform is taken.
    ///
    /// # Errors
    /// Nothing is recorded on any error: not of this image, and not of the others in the archive.
    pub fn load(
        &self,
        source: Source<'_>,
        platform: &Platform,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<LoadedImage>> {
        let scratch = self.store.scratch()?;
        let mut archive = Archive::open(source, scratch.path(), progress)?;
        let found = contents::find(&mut archive, platform)?;
        let loaded = self.install(found, scratch.path(), progress)?;
        for image in &loaded {
            let name = image.names.first().map(super::Reference::familiar);
            self.tell("load", &image.id.to_string(), &name.unwrap_or_default());
        }
        Ok(loaded)
    }

    /// Builds the root file systems of images whose objects are in `scratch`, and records all.
    pub(super) fn install(
        &self,
        found: Vec<Found>,
        scratch: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<LoadedImage>> {
        let mut built = Vec::new();
        for image in found {
            let (tree, sizes) = check_layers(&image, progress)?;
            let root = scratch.join(image.config.digest.hex() + ".erofs");
            if !self.root_path(&image.config.digest).exists() {
                progress(Progress::Building { image: &image.config.digest });
                let layers =
                    Paths(image.layers.iter().map(|(blob, _)| (blob.digest, blob.path.clone())).collect());
                erofs::write(&tree, &layers, &image.config.digest, &root)?;
            }
            for blob in image.blobs() {
                let sync = File::open(&blob.path).and_then(|file| file.sync_all());
                sync.map_err(|source| Error::io("sync", &blob.path, source))?;
            }
            built.push((image, sizes, root));
        }
        self.record(&built)?;
        self.store.sweep()?;
        Ok(built
            .into_iter()
            .map(|(image, ..)| LoadedImage { id: image.config.digest, names: image.names })
            .collect())
    }

    fn record(&self, built: &[(Found, Vec<u64>, PathBuf)]) -> Result<()> {
        let now = now_ns();
        let fail = |source| Error::database("record the image", source);
        self.store.write("record the image", |transaction| {
            for (image, sizes, root) in built {
                let id = image.config.digest.to_string();
                let config = String::from_utf8(image.config_json.clone()).map_err(|_| Error::Archive {
                    place: "the config".into(),
                    why: "it is not UTF-8".into(),
                })?;
                let size: u64 = sizes.iter().sum();
                let known = transaction
                    .execute(
                        "INSERT OR IGNORE INTO images VALUES (?1, ?2, ?3, ?4, ?5)",
                        (&id, image.manifest.digest.to_string(), config, size as i64, now),
                    )
                    .map_err(fail)?
                    == 0;
                // A known image keeps the manifest and the layers it came with.
                for (position, blob) in image.blobs().enumerate().filter(|_| !known) {
                    let digest = blob.digest.to_string();
                    let place = self.store.blob_path(&blob.digest);
                    // Two images of one archive may share the staged file; the first has moved it.
                    if blob.path.exists() {
                        fs::rename(&blob.path, &place)
                            .map_err(|source| Error::io("store", &place, source))?;
                    }
                    transaction
                        .execute("INSERT OR IGNORE INTO blobs VALUES (?1, ?2)", (&digest, blob.size as i64))
                        .map_err(fail)?;
                    let unpacked =
                        position.checked_sub(2).and_then(|layer| sizes.get(layer)).copied().unwrap_or(0);
                    transaction
                        .execute(
                            "INSERT INTO image_blobs VALUES (?1, ?2, ?3, ?4)",
                            (&id, position as i64, &digest, unpacked as i64),
                        )
                        .map_err(fail)?;
                }
                // Where there is none, one was in place already; should its image be gone since, `root` builds it anew.
                let place = self.root_path(&image.config.digest);
                if root.exists() {
                    fs::rename(root, &place).map_err(|source| Error::io("store", &place, source))?;
                }
                for name in &image.names {
                    super::names::set(transaction, name, &image.config.digest, now)?;
                }
                if let Some((name, digest)) = &image.pulled {
                    super::names::set_digest(transaction, name, digest, &image.config.digest)?;
                }
            }
            for dir in ["blobs/sha256", "roots"] {
                let dir = self.store.root().join(dir);
                let sync = File::open(&dir).and_then(|dir| dir.sync_all());
                sync.map_err(|source| Error::io("sync", &dir, source))?;
            }
            Ok(())
        })
    }
}

impl Found {
    /// Everything to store, in the order of the table `image_blobs`.
    fn blobs(&self) -> impl Iterator<Item = &Blob> {
        [&self.manifest, &self.config].into_iter().chain(self.layers.iter().map(|(blob, _)| blob))
    }
}

/// Layers in files.
pub(super) struct Paths(pub(super) Vec<(Digest, PathBuf)>);

impl Layers for Paths {
    fn open(&self, index: u32) -> Result<Box<dyn Read>> {
        let Some((layer, path)) = self.0.get(index as usize) else {
            return Err(Error::Missing { what: format!("layer {index}"), place: "the image".into() });
        };
        match layer::open(path) {
            Ok((stream, _)) => Ok(stream),
            Err(source) => Err(Error::Layer { layer: *layer, source }),
        }
    }

    fn digest(&self, index: u32) -> Digest {
        self.0.get(index as usize).map_or_else(|| Digest::of(b""), |(digest, _)| *digest)
    }
}

/// Decompresses every layer, checks its diff id, and builds the tree. Also returns the bytes of the files of each.
pub(super) fn check_layers(
    image: &Found,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(Tree, Vec<u64>)> {
    let of = image.layers.len();
    let mut tree = Tree::new();
    let mut sizes = Vec::new();
    for (index, (blob, diff_id)) in image.layers.iter().enumerate() {
        progress(Progress::Checking { layer: &blob.digest, number: index + 1, of });
        tree.begin_layer(index as u32);
        let fail = |source| Error::Layer { layer: blob.digest, source };
        let (stream, _) = layer::open(&blob.path).map_err(fail)?;
        let (size, found) = scan(stream, &mut tree, blob.digest)?;
        if found != *diff_id {
            let what = format!("the content of layer {}", blob.digest);
            return Err(Error::WrongDigest { what, expected: *diff_id, found });
        }
        sizes.push(size);
    }
    Ok((tree, sizes))
}

/// Applies the tar of one layer to the tree; returns the bytes of its files and the digest of the whole stream.
pub(super) fn scan(stream: impl Read, tree: &mut Tree, layer: Digest) -> Result<(u64, Digest)> {
    let fail = |source| Error::Layer { layer, source };
    let mut size = 0u64;
    let mut tar = Tar::new(Hashing::new(stream.take(LAYER_MAX)));
    while let Some(entry) = tar.next_entry().map_err(fail)? {
        let apply = tree.apply(&entry);
        apply.map_err(|why| Error::Entry {
            layer,
            entry: String::from_utf8_lossy(&entry.path).into_owned(),
            why,
        })?;
        size = size.saturating_add(entry.size);
    }
    let mut stream = tar.into_inner();
    io::copy(&mut stream, &mut io::sink()).map_err(fail)?;
    let (_, digest, count) = stream.finish();
    if count >= LAYER_MAX {
        return Err(Error::Limit {
            what: format!("layer {layer}, uncompressed,"),
            limit: format!("{} GiB", LAYER_MAX >> 30),
        });
    }
    Ok((size, digest))
}
