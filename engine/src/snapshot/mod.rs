//! Snapshots: running containers that were saved, memory, devices and disk, and that new containers continue.
//!
//! ```text
//! snapshots/NAME/     state, memory (servin-vmm's snapshot), disk (what the container's disk held at that moment),
//!                     about.json, sums (the checksum of each)
//!                     with a parent only what changed since, and disk.changes
//! tmp/XXXX/           one that is being made or removed (`Scratch`)
//! ```
//! A snapshot may be anywhere else as well: it is a directory that can be copied. Its image, its volumes and what is shared
//! of the host are not in it and must be where it is restored.

pub(crate) mod disk;
mod draft;
mod lineage;
mod sums;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use servin_init::proto;

use crate::container::Config;
use crate::image::Digest;
use crate::store::{Record, Store, now_ns};
use crate::volume::{VolumeMount, Volumes};
use crate::{Error, Result, host};

pub(crate) use draft::Draft;
pub(crate) use lineage::Chain;
pub use lineage::Parent;

/// What it is.
const ABOUT: &str = "about.json";

/// Where a snapshot is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// In the data root, under this name.
    Name(String),
    /// This directory, which is not there yet; absolute.
    Directory(PathBuf),
}

/// What a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Version of servin that made it.
    pub servin: String,
    /// Version of the protocol that its agent speaks.
    pub protocol: u32,
    /// Id of the container that was saved.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Digest of its image, if it has one.
    pub image: Option<String>,
    /// What was asked for, and what is run.
    pub config: Config,
    /// Its volumes by name, in the order of the machine's shares.
    pub volumes: Vec<VolumeMount>,
    /// The hypervisor that ran it.
    pub hypervisor: String,
    /// What its processor says it is and can do.
    pub processor: Vec<u32>,
    /// When it was made: nanoseconds since 1970.
    pub created_ns: i64,
    /// Its number, by which those that build on it know it.
    #[serde(default)]
    pub number: Option<String>,
    /// What it builds on, if it has only what changed.
    #[serde(default)]
    pub parent: Option<Parent>,
}

/// Where and how a machine is to be saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    /// The parent and those below it; empty if the snapshot is to be whole.
    pub(crate) below: Chain,
    /// The next snapshot may build on this one.
    pub(crate) follow: bool,
}

impl About {
    /// Of a container of this store.
    pub(crate) fn new(store: &Store, record: &Record) -> Result<Self> {
        let config = serde_json::from_str(&record.config)
            .map_err(|source| Error::Json { what: "the container's record".into(), source })?;
        let volumes = Volumes::new(store).of(&record.id)?.into_iter();
        Ok(About {
            servin: env!("CARGO_PKG_VERSION").into(),
            protocol: proto::VERSION,
            id: record.id.clone(),
            name: record.name.clone(),
            image: record.image.map(|image| image.to_string()),
            config,
            volumes: volumes
                .map(|used| VolumeMount {
                    name: Some(used.volume),
                    target: used.target,
                    read_only: used.read_only,
                    no_copy: true,
                })
                .collect(),
            hypervisor: hypervisor(),
            processor: host::cpu_identity(),
            created_ns: now_ns(),
            number: None,
            parent: None,
        })
    }

    /// Digest of its image, if it has one.
    pub(crate) fn image(&self) -> Result<Option<Digest>> {
        self.image.as_deref().map(str::parse).transpose()
    }
}

/// The hypervisor of this host, in a word.
fn hypervisor() -> String {
    host::hypervisor_kind().map_or("unknown", host::Kind::name).into()
}

/// A snapshot in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name, or its directory outside the data root.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// What it is.
    pub about: About,
    /// Bytes on disk.
    pub size: u64,
}

/// The snapshots of a data root.
#[derive(Debug, Clone, Copy)]
pub struct Snapshots<'a> {
    store: &'a Store,
}

/// Whether a name can be a snapshot's: a container's rule.
#[must_use]
pub fn is_name(name: &str) -> bool {
    crate::volume::is_name(name)
}

impl<'a> Snapshots<'a> {
    /// Those of this store.
    #[must_use]
    pub fn new(store: &'a Store) -> Self {
        Snapshots { store }
    }

    fn dir(self) -> PathBuf {
        self.store.root().join("snapshots")
    }

    /// Every snapshot by name.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn list(self) -> Result<Vec<Found>> {
        let dir = self.dir();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(Error::io("read", &dir, source)),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        // One that somebody removes now is not there any more.
        let mut found: Vec<Found> =
            names.filter(|name| is_name(name)).filter_map(|name| self.find(&name).ok()).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The snapshot of this name, or in this directory if there is a `/` in it. Its checksums are not looked at.
    ///
    /// # Errors
    /// [`Error::NoSuchSnapshot`].
    pub fn find(self, name: &str) -> Result<Found> {
        let missing = || Error::NoSuchSnapshot { name: name.to_owned() };
        let path = match name.contains('/') {
            true => PathBuf::from(name),
            false if is_name(name) => self.dir().join(name),
            false => return Err(missing()),
        };
        let path = path.canonicalize().map_err(|_| missing())?;
        let json = fs::read(path.join(ABOUT)).map_err(|_| missing())?;
        let about = serde_json::from_slice(&json).map_err(|source| Error::Snapshot {
            name: name.to_owned(),
            why: format!("its {ABOUT} is damaged: {source}"),
        })?;
        let size = disk_size(&path);
        Ok(Found { name: name.to_owned(), path, about, size })
    }

    /// The volumes that snapshots need, each with the name of one of them.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn volumes(self) -> Result<BTreeMap<String, String>> {
        let mut needed = BTreeMap::new();
        for found in self.list()? {
            for volume in found.about.volumes.into_iter().filter_map(|volume| volume.name) {
                needed.entry(volume).or_insert_with(|| found.name.clone());
            }
        }
        Ok(needed)
    }

    /// What a snapshot in this directory is called: its name, or the directory if it is outside the data root.
    pub(crate) fn name_of(self, path: &Path) -> String {
        let own = self.dir().canonicalize().ok();
        let inside = path.parent().filter(|parent| own.as_deref() == Some(*parent));
        let name = inside.and_then(|_| path.file_name()?.to_str());
        name.map_or_else(|| path.display().to_string(), str::to_owned)
    }

    /// Looks at every byte of a snapshot, and at whether what it builds on is there.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(self, found: &Found) -> std::result::Result<(), String> {
        sums::check(&found.path)?;
        lineage::chain(self, &found.path, &found.about).map(drop)
    }

    /// The names with those that build on others before those.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn children_first(self, names: &[String]) -> Result<Vec<String>> {
        let all = self.list()?;
        let depth = |name: &String| {
            let mut depth = 0;
            let mut found = all.iter().find(|found| found.name == *name);
            while let Some(parent) = found.and_then(|found| found.about.parent.as_ref()) {
                depth += 1;
                found = all.iter().find(|found| found.about.number.as_ref() == Some(&parent.number));
                if depth > all.len() {
                    break;
                }
            }
            std::cmp::Reverse(depth)
        };
        let mut names = names.to_vec();
        names.sort_by_cached_key(depth);
        Ok(names)
    }

    /// Removes the snapshot of this name. Containers that continue it keep what they need of it.
    ///
    /// # Errors
    /// [`Error::NoSuchSnapshot`]; [`Error::SnapshotInUse`] while another one builds on it.
    pub fn remove(self, name: &str) -> Result<()> {
        let path = self.dir().join(name);
        if !is_name(name) || !path.is_dir() {
            return Err(Error::NoSuchSnapshot { name: name.to_owned() });
        }
        let used = |by: String| Error::SnapshotInUse { name: name.to_owned(), by };
        // Who begins one that builds on it holds it first.
        let lock = File::open(&path).map_err(|source| Error::io("open", &path, source))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(used("a snapshot that is being made".into()));
        }
        let number = about(&path).ok().and_then(|about| about.number);
        let builds_on = |found: &Found| {
            number.is_some() && found.about.parent.as_ref().map(|parent| &parent.number) == number.as_ref()
        };
        if let Some(child) = self.list()?.into_iter().find(builds_on) {
            return Err(used(format!("the snapshot {}", child.name)));
        }
        // At once or not at all.
        let scratch = self.store.scratch()?;
        fs::rename(&path, scratch.path().join(name)).map_err(|source| Error::io("remove", &path, source))
    }

    /// Begins a snapshot, which builds on the first of those with these numbers that is there. In a directory of its own,
    /// to be carried away, it is whole.
    pub(crate) fn draft(self, target: &Target, known: &[String]) -> Result<Draft> {
        let path = match target {
            Target::Name(name) if is_name(name) => {
                let dir = self.dir();
                match fs::create_dir(&dir) {
                    Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(Error::io("make", &dir, source));
                    }
                    _ => dir.join(name),
                }
            }
            Target::Name(name) => return Err(Error::SnapshotName { name: name.clone() }),
            Target::Directory(path) => path.clone(),
        };
        let known = matches!(target, Target::Name(_)).then_some(known);
        Draft::begin(self.store, path, known)
    }
}

/// Opens a snapshot to be restored, with every byte of it and of what it builds on checked.
///
/// # Errors
/// It is damaged, or was made by another servin, on another processor or hypervisor; or it builds on one that is not there,
/// or not as it was.
pub(crate) fn open(store: &Store, path: &Path) -> Result<(About, Chain)> {
    let fail = |why: String| Error::Snapshot { name: Snapshots::new(store).name_of(path), why };
    sums::check(path).map_err(fail)?;
    let about = about(path).map_err(|why| fail(format!("its {ABOUT} is not understood: {why}")))?;
    if about.protocol != proto::VERSION {
        return Err(fail(format!(
            "its agent speaks protocol {}, and this servin {}: use servin {}, which made it",
            about.protocol,
            proto::VERSION,
            about.servin
        )));
    }
    let own = hypervisor();
    if about.hypervisor != own {
        return Err(fail(format!(
            "it was made on the hypervisor {}, and this host has {own}",
            about.hypervisor
        )));
    }
    if about.processor != host::cpu_identity() {
        return Err(fail(
            "it was made on another processor: programs in it rely on what that one can do".into(),
        ));
    }
    let chain = lineage::chain(Snapshots::new(store), path, &about).map_err(fail)?;
    for below in chain.iter().rev().skip(1) {
        sums::check(below).map_err(|why| fail(format!("it builds on {}: {why}", below.display())))?;
    }
    Ok((about, chain))
}

/// Reads what a snapshot is.
fn about(path: &Path) -> std::result::Result<About, String> {
    let json = fs::read(path.join(ABOUT)).map_err(|error| error.to_string())?;
    serde_json::from_slice(&json).map_err(|error| error.to_string())
}

/// Bytes that the files of a directory take on disk: holes take none.
fn disk_size(dir: &Path) -> u64 {
    let sizes = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok()?.metadata().ok());
    sizes.map(|meta| meta.blocks().saturating_mul(512)).sum()
}
