//! `pull`: a registry in the place of an archive. What the store has, or another process brings, is not fetched again.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use oci_spec::image::{Descriptor, DescriptorBuilder, MediaType, Sha256Digest};
use rusqlite::OptionalExtension;

use super::archive::{Blob, JSON_MAX, verify};
use super::contents::{Walk, is_index, is_manifest};
use super::objects::Objects;
use super::partial::Partials;
use super::{Digest, Image, Images, Platform, Progress, Reference, names};
use crate::registry::{self, Access, Cancel, Client, Manifest, Repository, Target};
use crate::store::now_ns;
use crate::{Error, Result};

/// Layers that are brought at a time.
const AT_ONCE: usize = 4;

/// How far a pull is. Blobs tell from several threads.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Step<'a> {
    /// The name leads to this digest.
    Resolved(&'a Digest),
    /// Another process pulls the same image, and this one waits for it.
    Waiting,
    /// A layer.
    Blob {
        /// Its digest.
        digest: &'a Digest,
        /// Its bytes.
        size: u64,
        /// What happens to it.
        state: BlobState<'a>,
    },
    /// The image is built from its layers.
    Building(Progress<'a>),
}

/// What happens to a blob on its way in or out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlobState<'a> {
    /// It is there already.
    Known,
    /// Another process brings it.
    Waiting,
    /// So many of its bytes are there.
    Bytes(u64),
    /// An attempt failed, and there will be another one.
    Again(&'a str),
    /// It is whole, and is the right one.
    Done,
}

/// What a pull has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The image's id.
    pub id: Digest,
    /// The digest that the name led to: of a manifest, or of an index.
    pub digest: Digest,
    /// The image was not in the store.
    pub is_new: bool,
}

impl Images<'_> {
    /// Brings an image from its registry. Of an index the manifest that fits the platform is taken.
    ///
    /// # Errors
    /// Nothing is recorded on any error. Whole and cut blobs stay behind for the next attempt, within a bound.
    pub fn pull(
        &self,
        name: &Reference,
        platform: &Platform,
        client: &Client,
        cancel: &Cancel,
        watch: &(dyn Fn(Step<'_>) + Sync),
    ) -> Result<Pulled> {
        let pulled = self.bring(name, platform, client, cancel, watch)?;
        self.tell("pull", &pulled.id.to_string(), &name.familiar());
        Ok(pulled)
    }

    fn bring(
        &self,
        name: &Reference,
        platform: &Platform,
        client: &Client,
        cancel: &Cancel,
        watch: &(dyn Fn(Step<'_>) + Sync),
    ) -> Result<Pulled> {
        let repositories = client.repositories(name, Access::Pull, cancel);
        let wanted = match name.digest() {
            Some(digest) => digest.to_string(),
            None => name.tag().unwrap_or("latest").to_owned(),
        };
        let (first, top) = from_any(&repositories, |repository| repository.manifest(&wanted))?;
        watch(Step::Resolved(&top.digest));
        if let Some(image) = self.pulled_before(name, &top.digest, platform)? {
            self.name_it(name, &top.digest, &image.id)?;
            return Ok(Pulled { id: image.id, digest: top.digest, is_new: false });
        }
        let scratch = self.store.scratch()?;
        let partials = Partials::open(self.store.root())?;
        partials.prune()?;
        let mut remote = Remote {
            place: name.familiar(),
            repositories: repositories.get(first..).unwrap_or_default(),
            blobs: self.store.root().join("blobs/sha256"),
            partials: partials.clone(),
            scratch: scratch.path(),
            cancel,
            watch,
            staged: HashMap::new(),
        };
        let described = remote.add(&top)?;
        let mut walk = Walk { objects: &mut remote, platform, seen: 0 };
        let chosen = walk.pick(&described, name.digest().is_some())?;
        // Whoever pulls the same image at the same time waits here, and then finds it in the store.
        let locked = digest_of(&chosen)?;
        let lock = partials.image(&locked, cancel, &|| watch(Step::Waiting))?;
        let (_, _, config) = walk.head(&chosen)?;
        let is_known = names::by_id(self.store.db(), &config.digest)?.is_some();
        if is_known && self.name_it(name, &top.digest, &config.digest).is_ok() {
            lock.remove();
            return Ok(Pulled { id: config.digest, digest: top.digest, is_new: false });
        }
        let mut found = walk.manifest(&chosen, vec![name_without_digest(name)])?;
        found.pulled = Some((name.name(), top.digest));
        let blobs: Vec<Digest> =
            found.layers.iter().map(|(blob, _)| blob.digest).chain([config.digest]).collect();
        self.install(vec![found], scratch.path(), &mut |progress| watch(Step::Building(progress)))?;
        for digest in blobs {
            // Another pull may be waiting for it, and finds it in the store.
            if let Ok(partial) = partials.blob(&digest, cancel, &|| {}) {
                partial.remove();
            }
        }
        lock.remove();
        Ok(Pulled { id: config.digest, digest: top.digest, is_new: true })
    }

    /// The image that the digest meant when it was pulled before, if it fits the platform.
    fn pulled_before(&self, name: &Reference, digest: &Digest, platform: &Platform) -> Result<Option<Image>> {
        let sql = "SELECT image FROM repo_digests WHERE name = ?1 AND digest = ?2";
        let id =
            self.store.db().query_row(sql, (name.name(), digest.to_string()), |row| row.get::<_, String>(0));
        let id = id.optional().map_err(|source| Error::database("look up the digest", source))?;
        let Some(id) = id else { return Ok(None) };
        let image = names::by_id(self.store.db(), &id.parse()?)?;
        Ok(image.filter(|image| {
            let config = &image.config;
            name.digest().is_some()
                || platform.fit(&config.os, &config.architecture, &config.variant).is_some()
        }))
    }

    /// Gives an image that is in the store the name and the digest it was pulled by.
    fn name_it(&self, name: &Reference, digest: &Digest, image: &Digest) -> Result<()> {
        self.store.write("name the image", |transaction| {
            let missing = || Error::NoSuchImage { reference: image.to_string() };
            names::by_id(transaction, image)?.ok_or_else(missing)?;
            names::set_digest(transaction, &name.name(), digest, image)?;
            names::set(transaction, &name_without_digest(name), image, now_ns())
        })
    }
}

/// A digest says it all: a tag beside it is not set, as with docker.
fn name_without_digest(name: &Reference) -> Reference {
    if name.digest().is_some() { name.untagged() } else { name.clone() }
}

/// Tries the mirrors, then the registry; also tells which one it was.
fn from_any<'r, 'a, T>(
    repositories: &'r [Repository<'a>],
    mut work: impl FnMut(&'r Repository<'a>) -> Result<T>,
) -> Result<(usize, T)> {
    let mut last = None;
    for (index, repository) in repositories.iter().enumerate() {
        match work(repository) {
            Ok(value) => return Ok((index, value)),
            Err(
                error @ (Error::Registry(registry::Error::Cancelled)
                | Error::DiskFull { .. }
                | Error::Io { .. }),
            ) => {
                return Err(error);
            }
            Err(error) => {
                if index + 1 < repositories.len() {
                    log::warn!("{} does not do: {}", repository.name(), crate::chain(&error));
                }
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| Error::Missing { what: "a registry".into(), place: "the settings".into() }))
}

fn digest_of(descriptor: &Descriptor) -> Result<Digest> {
    descriptor.digest().to_string().parse()
}

/// An image in a registry.
struct Remote<'a> {
    place: String,
    repositories: &'a [Repository<'a>],
    /// The store's blobs.
    blobs: PathBuf,
    partials: Partials,
    scratch: &'a Path,
    cancel: &'a Cancel,
    watch: &'a (dyn Fn(Step<'_>) + Sync),
    staged: HashMap<Digest, Blob>,
}

impl Remote<'_> {
    /// Takes a manifest or index that has come, and describes it.
    fn add(&mut self, manifest: &Manifest) -> Result<Descriptor> {
        let path = self.scratch.join(manifest.digest.hex());
        fs::write(&path, &manifest.bytes).map_err(|source| Error::io("write", &path, source))?;
        let size = manifest.bytes.len() as u64;
        self.staged.insert(manifest.digest, Blob { path, digest: manifest.digest, size });
        // Some servers know files only; the manifest itself says what it is.
        let own = serde_json::from_slice::<serde_json::Value>(&manifest.bytes).ok();
        let own = own.as_ref().and_then(|json| json.get("mediaType")).and_then(serde_json::Value::as_str);
        let is_plain = matches!(
            manifest.media_type.as_str(),
            "" | "application/json" | "application/octet-stream" | "text/plain"
        );
        let media_type = if is_plain { own.unwrap_or_default() } else { manifest.media_type.as_str() };
        let digest = manifest.digest.hex().parse::<Sha256Digest>();
        let digest = digest.map_err(|error| self.bad(format!("its digest: {error}")))?;
        DescriptorBuilder::default()
            .media_type(MediaType::from(media_type))
            .digest(digest)
            .size(size)
            .build()
            .map_err(|error| self.bad(error.to_string()))
    }

    /// The store's blob under a name of our own, so that it stays whatever is removed meanwhile.
    fn link_stored(&self, digest: &Digest) -> Result<Option<Blob>> {
        let path = self.scratch.join(digest.hex());
        let stored = self.blobs.join(digest.hex());
        match fs::hard_link(&stored, &path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("link", &stored, error)),
        }
        let size = fs::metadata(&path).map_err(|source| Error::io("open", &path, source))?.len();
        Ok(Some(Blob { path, digest: *digest, size }))
    }

    /// Brings a blob, and tells about it if `shown`.
    fn bring(&self, blob: &registry::Descriptor, shown: bool) -> Result<Blob> {
        let tell = |state: BlobState<'_>| {
            if shown {
                (self.watch)(Step::Blob { digest: &blob.digest, size: blob.size, state });
            }
        };
        if let Some(found) = self.link_stored(&blob.digest)? {
            tell(BlobState::Known);
            return Ok(found);
        }
        let partial = self.partials.blob(&blob.digest, self.cancel, &|| tell(BlobState::Waiting))?;
        // Who had the lock before may have recorded it.
        if let Some(found) = self.link_stored(&blob.digest)? {
            partial.remove();
            tell(BlobState::Known);
            return Ok(found);
        }
        let file = partial.file.try_clone().map_err(|source| Error::io("open", &partial.path, source))?;
        let mut target = Target::new(file, partial.path.clone())?;
        tell(BlobState::Bytes(target.len()));
        let brought = from_any(self.repositories, |repository| {
            repository.blob(blob, &mut target, &mut |bytes, why| match why {
                Some(why) => tell(BlobState::Again(why)),
                None => tell(BlobState::Bytes(bytes)),
            })
        });
        if let Err(error) = brought {
            // What is wrong is not kept.
            if target.is_empty() {
                partial.remove();
            }
            return Err(error);
        }
        let path = self.scratch.join(blob.digest.hex());
        fs::hard_link(&partial.path, &path).map_err(|source| Error::io("link", &path, source))?;
        tell(BlobState::Done);
        Ok(Blob { path, digest: blob.digest, size: blob.size })
    }
}

impl Objects for Remote<'_> {
    fn place(&self) -> &str {
        &self.place
    }

    fn object(&mut self, descriptor: &Descriptor, what: &str) -> Result<Blob> {
        let digest = digest_of(descriptor)?;
        let what = format!("{what} {digest}");
        if let Some(blob) = self.staged.get(&digest) {
            verify(blob, &digest, Some(descriptor.size()), &what)?;
            return Ok(blob.clone());
        }
        if descriptor.size() > JSON_MAX {
            return Err(Error::Limit {
                what: format!("{what} with {} bytes", descriptor.size()),
                limit: format!("{} MiB", JSON_MAX >> 20),
            });
        }
        let blob = if let Some(stored) = self.link_stored(&digest)? {
            stored
        } else if is_index(descriptor) || is_manifest(descriptor) {
            let wanted = digest.to_string();
            let (_, manifest) = from_any(self.repositories, |repository| repository.manifest(&wanted))?;
            let path = self.scratch.join(digest.hex());
            fs::write(&path, &manifest.bytes).map_err(|source| Error::io("write", &path, source))?;
            Blob { path, digest: manifest.digest, size: manifest.bytes.len() as u64 }
        } else {
            self.bring(&registry::Descriptor { digest, size: descriptor.size() }, false)?
        };
        verify(&blob, &digest, Some(descriptor.size()), &what)?;
        self.staged.insert(digest, blob.clone());
        Ok(blob)
    }

    fn layers(&mut self, layers: &[Descriptor]) -> Result<Vec<Blob>> {
        let mut wanted: Vec<registry::Descriptor> = Vec::new();
        for layer in layers {
            let one = registry::Descriptor { digest: digest_of(layer)?, size: layer.size() };
            if !wanted.iter().any(|known| known.digest == one.digest) {
                wanted.push(one);
            }
        }
        for one in &wanted {
            (self.watch)(Step::Blob { digest: &one.digest, size: one.size, state: BlobState::Bytes(0) });
        }
        let brought = together(&wanted, self.cancel, |one| self.bring(one, true))?;
        for (blob, wanted) in brought.into_iter().zip(&wanted) {
            verify(&blob, &wanted.digest, Some(wanted.size), &format!("the layer {}", wanted.digest))?;
            self.staged.insert(blob.digest, blob);
        }
        layers.iter().map(|layer| self.object_of(layer)).collect()
    }
}

impl Remote<'_> {
    /// A layer that was brought; a second descriptor of it may lie about its size.
    fn object_of(&self, layer: &Descriptor) -> Result<Blob> {
        let digest = digest_of(layer)?;
        let what = format!("the layer {digest}");
        let missing = || Error::Missing { what: what.clone(), place: self.place.clone() };
        let blob = self.staged.get(&digest).ok_or_else(missing)?;
        verify(blob, &digest, Some(layer.size()), &what)?;
        Ok(blob.clone())
    }
}

/// Does the same with several things at a time; the first error ends the others. All threads have ended afterwards.
pub(super) fn together<T: Sync, R: Send>(
    items: &[T],
    cancel: &Cancel,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<R>>> = Mutex::new(items.iter().map(|_| None).collect());
    let failed: Mutex<Option<Error>> = Mutex::default();
    std::thread::scope(|scope| {
        let run = || {
            while let Some(item) = {
                let index = next.fetch_add(1, Ordering::Relaxed);
                items.get(index).map(|item| (index, item))
            } {
                match work(item.1) {
                    Ok(value) => {
                        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                        if let Some(place) = results.get_mut(item.0) {
                            *place = Some(value);
                        }
                    }
                    Err(error) => {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        cancel.end();
                        return;
                    }
                }
            }
        };
        let threads: Vec<_> = (0..items.len().min(AT_ONCE)).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            // Joined one by one: leaving the scope does not wait for the end of the threads themselves, and who forks later
            // needs a process of one.
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => {
            let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
            Ok(results.into_iter().flatten().collect())
        }
    }
}
