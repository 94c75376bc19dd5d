//! Volumes: directories with a name, which outlive the containers that use them.
//!
//! ```text
//! ROOT/volumes/NAME/_data     what the container sees
//! ROOT/volumes/NAME/fill      a copy of an image's directory that is being made; then its entries move to `_data`
//! ROOT/volumes/.gone.XXXX     a removed volume whose files are still being removed
//! ```
//!
//! A row of `volumes` makes a volume; a directory without a row is the rest of one and is taken away by the next that is
//! made or removed. A row of `container_volumes` is one use of it: such a volume cannot be removed.

mod lend;
mod remove;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rusqlite::{OptionalExtension, Row};
use rustix::fs::{FlockOperation, OFlags, RenameFlags};
use serde::{Deserialize, Serialize};

use crate::container::{Request, Text, random};
use crate::events::Events;
use crate::image::Process;
use crate::snapshot::Snapshots;
use crate::store::{Store, now_ns};
use crate::{Error, Result, erofs};

/// The longest name of a volume.
const NAME_MAX: usize = 128;

/// A volume as a request wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The volume, made if there is none of this name; `None` is a new one without a name of its own.
    pub name: Option<String>,
    /// Absolute path in the container.
    pub target: Text,
    /// The host refuses writes.
    pub read_only: bool,
    /// Leave an empty volume empty, and do not copy what the image has at the target.
    pub no_copy: bool,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name: 64 hexadecimal digits if it was made without one.
    pub name: String,
    /// It was made for one container, without a name.
    pub anonymous: bool,
    /// What its maker wrote on it.
    pub labels: BTreeMap<String, String>,
    /// Nanoseconds since 1970.
    pub created_ns: i64,
}

/// One use of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The volume's name.
    pub volume: String,
    /// Where the container sees it.
    pub target: Text,
    /// The container cannot write to it.
    pub read_only: bool,
}

/// The volumes that a container gets: those that were asked for, and the image's at the places where nothing else was.
#[must_use]
pub fn wanted(request: &Request, image: &Process) -> Vec<VolumeMount> {
    let mut wanted = request.volumes.clone();
    let taken = |target: &[u8], wanted: &[VolumeMount]| {
        request.binds.iter().any(|bind| bind.target.0 == target)
            || request.tmpfs.iter().any(|tmpfs| tmpfs.target.0 == target)
            || wanted.iter().any(|volume| volume.target.0 == target)
    };
    for path in &image.volumes {
        let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        let target = format!("/{}", parts.join("/"));
        // What an image cannot mean: its root, and ways out of it.
        if parts.is_empty() || parts.contains(&"..") || taken(target.as_bytes(), &wanted) {
            continue;
        }
        wanted.push(VolumeMount { name: None, target: target.into(), read_only: false, no_copy: false });
    }
    wanted
}

/// The volumes of a data root.
#[derive(Clone, Copy, Debug)]
pub struct Volumes<'a> {
    store: &'a Store,
}

/// Whether a name can be a volume's: docker's rule.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && (2..=NAME_MAX).contains(&name.len())
}

fn database(what: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |source| Error::database(what, source)
}

impl<'a> Volumes<'a> {
    /// Those of `store`.
    #[must_use]
    pub fn new(store: &'a Store) -> Self {
        Volumes { store }
    }

    fn dir(&self) -> PathBuf {
        self.store.root().join("volumes")
    }

    /// Where a volume's files are on the host.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name).join("_data")
    }

    /// Makes a volume; one that is there already stays as it is, as docker has it. Says whether it was made.
    ///
    /// # Errors
    /// [`Error::VolumeName`].
    pub fn create(&self, name: Option<&str>, labels: &BTreeMap<String, String>) -> Result<(Volume, bool)> {
        make(&self.dir())?;
        let (volume, new) =
            self.store.write("make the volume", |transaction| self.create_in(transaction, name, labels))?;
        if new {
            self.tell("create", &volume.name);
        }
        Ok((volume, new))
    }

    fn tell(&self, action: &str, name: &str) {
        Events::new(self.store.root()).add("volume", action, name, &[("driver", "local")]);
    }

    /// Makes a volume inside a transaction: what is recorded with it is true at the same moment.
    fn create_in(
        &self,
        transaction: &rusqlite::Connection,
        name: Option<&str>,
        labels: &BTreeMap<String, String>,
    ) -> Result<(Volume, bool)> {
        let made_up;
        let (name, anonymous) = match name {
            Some(name) => (name, false),
            None => {
                made_up = random::<32>()?.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                (made_up.as_str(), true)
            }
        };
        if !is_name(name) {
            return Err(Error::VolumeName { name: name.to_owned() });
        }
        if let Some(found) = find(transaction, name)? {
            return Ok((found, false));
        }
        let path = self.dir().join(name);
        // The rest of one that was removed, or whose making was cut.
        self.put_away(&path)?;
        make(&path)?;
        make(&path.join("_data"))?;
        rustix::fs::chmod(path.join("_data"), 0o755.into())
            .map_err(|errno| Error::io("change", path.join("_data"), errno.into()))?;
        let volume =
            Volume { name: name.to_owned(), anonymous, labels: labels.clone(), created_ns: now_ns() };
        let labels = serde_json::to_string(labels)
            .map_err(|source| Error::Json { what: "the volume's labels".into(), source })?;
        transaction
            .execute(
                "INSERT INTO volumes VALUES (?1, ?2, ?3, ?4)",
                (name, volume.anonymous, labels, volume.created_ns),
            )
            .map_err(database("make the volume"))?;
        Ok((volume, true))
    }

    /// The volume of this name.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`].
    pub fn get(&self, name: &str) -> Result<Volume> {
        find(self.store.db(), name)?.ok_or_else(|| Error::NoSuchVolume { name: name.to_owned() })
    }

    /// All volumes by name.
    pub fn list(&self) -> Result<Vec<Volume>> {
        let fail = database("list volumes");
        let sql = format!("SELECT {COLUMNS} FROM volumes ORDER BY name");
        let mut statement = self.store.db().prepare(&sql).map_err(&fail)?;
        let rows = statement.query_map((), read).map_err(&fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(&fail)
    }

    /// The names of the containers that use a volume.
    pub fn users(&self, name: &str) -> Result<Vec<String>> {
        users(self.store.db(), name)
    }

    /// The volumes that a container uses.
    pub fn of(&self, container: &str) -> Result<Vec<Use>> {
        let fail = database("list the container's volumes");
        let sql =
            "SELECT volume, target, read_only FROM container_volumes WHERE container = ?1 ORDER BY target";
        let mut statement = self.store.db().prepare(sql).map_err(&fail)?;
        let read = |row: &Row<'_>| {
            Ok(Use { volume: row.get(0)?, target: Text(row.get(1)?), read_only: row.get(2)? })
        };
        let rows = statement.query_map([container], read).map_err(&fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(&fail)
    }

    /// Gives a container its volumes: makes those that are missing, fills empty ones from the image and records the use.
    /// What it has already stays. `image` is the file of its root file system, if it has one.
    pub fn attach(&self, container: &str, wanted: &[VolumeMount], image: Option<&Path>) -> Result<()> {
        make(&self.dir())?;
        let has = self.of(container)?;
        for mount in wanted.iter().filter(|mount| !has.iter().any(|used| used.target == mount.target)) {
            // In one step: a command that is killed leaves no volume that nobody knows.
            let (volume, new) = self.store.write("record the use of a volume", |transaction| {
                let (volume, new) = self.create_in(transaction, mount.name.as_deref(), &BTreeMap::new())?;
                transaction
                    .execute(
                        "INSERT INTO container_volumes VALUES (?1, ?2, ?3, ?4)",
                        (container, &mount.target.0, &volume.name, mount.read_only),
                    )
                    .map_err(database("record the use of a volume"))?;
                Ok((volume, new))
            })?;
            if new {
                self.tell("create", &volume.name);
            }
            if let Some(image) = image.filter(|_| !mount.no_copy) {
                self.fill(&volume.name, image, &mount.target.0)?;
            }
        }
        Ok(())
    }

    /// Copies what the image has in a directory into a volume that is empty. It is in use, so that nobody removes it.
    fn fill(&self, name: &str, image: &Path, target: &[u8]) -> Result<()> {
        let dir = self.dir().join(name);
        let fail = |source: io::Error| Error::FillVolume { name: name.to_owned(), source };
        let data = open_dir(&dir.join("_data")).map_err(fail)?;
        if !is_empty(&dir.join("_data")).map_err(fail)? {
            return Ok(());
        }
        // One at a time: another container with the same volume may start now.
        let lock = File::open(&dir).map_err(fail)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|errno| fail(errno.into()))?;
        let lock = OwnedFd::from(lock);
        if !is_empty(&dir.join("_data")).map_err(fail)? {
            return Ok(());
        }
        // A guest that has the volume already must not reach what is being made: it is made beside, then moved in.
        remove::remove_tree(&lock, Path::new("fill")).map_err(fail)?;
        make(&dir.join("fill"))?;
        let fill = open_dir(&dir.join("fill")).map_err(fail)?;
        let image = erofs::Image::open(image).map_err(fail)?;
        if image.copy_directory(target, &fill).map_err(fail)? {
            let stat = rustix::fs::fstat(&fill).map_err(|errno| fail(errno.into()))?;
            rustix::fs::fchmod(&fill, rustix::fs::Mode::RWXU).map_err(|errno| fail(errno.into()))?;
            for entry in fs::read_dir(dir.join("fill")).map_err(fail)? {
                let name = entry.map_err(fail)?.file_name();
                match rustix::fs::renameat_with(&fill, &name, &data, &name, RenameFlags::NOREPLACE) {
                    // The guest that has it made one of this name meanwhile: the guest's stays.
                    Err(rustix::io::Errno::EXIST) => {}
                    done => done.map_err(|errno| fail(errno.into()))?,
                }
            }
            let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
            rustix::fs::fchown(&data, Some(uid), Some(gid))
                .and_then(|()| {
                    rustix::fs::fchmod(&data, rustix::fs::Mode::from_raw_mode(stat.st_mode & 0o7777))
                })
                .map_err(|errno| fail(errno.into()))?;
        }
        remove::remove_tree(&lock, Path::new("fill")).map_err(fail)
    }

    /// Removes a volume that no container uses, with its files.
    ///
    /// # Errors
    /// [`Error::NoSuchVolume`], [`Error::VolumeInUse`] by containers or a snapshot, [`Error::VolumeMounted`].
    pub fn remove(&self, name: &str) -> Result<u64> {
        self.remove_unsaved(name, &Snapshots::new(self.store).volumes()?)
    }

    /// Removes a volume that none of these snapshots needs: names of volumes, and each with one of a snapshot.
    fn remove_unsaved(&self, name: &str, saved: &BTreeMap<String, String>) -> Result<u64> {
        let path = self.dir().join(name);
        let size = if is_name(name) { size(&path) } else { 0 };
        self.store.write("remove the volume", |transaction| {
            if find(transaction, name)?.is_none() {
                return Err(Error::NoSuchVolume { name: name.to_owned() });
            }
            let mut users = users(transaction, name)?;
            users.extend(saved.get(name).map(|snapshot| format!("the snapshot {snapshot}")));
            if !users.is_empty() {
                return Err(Error::VolumeInUse { name: name.to_owned(), users: users.join(", ") });
            }
            self.put_away(&path)?;
            transaction
                .execute("DELETE FROM volumes WHERE name = ?1", [name])
                .map_err(database("remove the volume"))
        })?;
        self.tell("destroy", name);
        self.clean().map(|()| size)
    }

    /// Removes volumes that no container uses and no snapshot needs: those without a name, and the others too with `all`. Of
    /// those only the ones that `keep` does not want. Returns their names and the freed bytes.
    pub fn prune(&self, all: bool, keep: impl Fn(&Volume) -> bool) -> Result<(Vec<String>, u64)> {
        let (mut gone, mut freed, saved) = (Vec::new(), 0, Snapshots::new(self.store).volumes()?);
        for volume in self.list()? {
            if !(volume.anonymous || all) || keep(&volume) {
                continue;
            }
            match self.remove_unsaved(&volume.name, &saved) {
                Ok(size) => {
                    freed += size;
                    gone.push(volume.name);
                }
                // Taken into use, or removed by another, since it was listed.
                Err(Error::VolumeInUse { .. } | Error::NoSuchVolume { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.clean().map(|()| (gone, freed))
    }

    /// The volumes of a container that were made for it alone: what goes with it.
    pub fn anonymous_of(&self, container: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for used in self.of(container)? {
            if self.get(&used.volume).is_ok_and(|volume| volume.anonymous) {
                names.push(used.volume);
            }
        }
        Ok(names)
    }

    /// Takes a volume's directory out of the way, so that its name is free at once. Inside a transaction.
    fn put_away(&self, path: &Path) -> Result<()> {
        let fail = |source| Error::io("remove", path, source);
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        if let Some(mounted) = remove::mounts_below(path).map_err(fail)?.into_iter().next() {
            return Err(Error::VolumeMounted { path: mounted });
        }
        let gone = u64::from_le_bytes(random::<8>()?);
        fs::rename(path, self.dir().join(format!(".gone.{gone:016x}"))).map_err(fail)
    }

    /// Removes the files of volumes that are gone, those of commands that were killed meanwhile too.
    pub(crate) fn clean(&self) -> Result<()> {
        let root = self.dir();
        let fail = |source| Error::io("remove", &root, source);
        let dir = match open_dir(&root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            dir => dir.map_err(fail)?,
        };
        // Directories without a row: a command was killed in the transaction that makes both.
        self.store.write("look for volumes without a record", |transaction| {
            for entry in fs::read_dir(&root).map_err(fail)? {
                let name = entry.map_err(fail)?.file_name();
                if let Some(name) = name.to_str().filter(|name| !name.starts_with('.'))
                    && find(transaction, name)?.is_none()
                {
                    self.put_away(&root.join(name))?;
                }
            }
            Ok(())
        })?;
        for entry in fs::read_dir(&root).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            if name.as_encoded_bytes().starts_with(b".gone.") {
                match remove::remove_tree(&dir, Path::new(&name)) {
                    // Another command removes it at the same time.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    done => done.map_err(|source| Error::io("remove", root.join(&name), source))?,
                }
            }
        }
        Ok(())
    }
}

const COLUMNS: &str = "name, anonymous, labels, created_ns";

fn read(row: &Row<'_>) -> rusqlite::Result<Volume> {
    let labels: String = row.get(2)?;
    let labels = serde_json::from_str(&labels).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, error.into())
    })?;
    Ok(Volume { name: row.get(0)?, anonymous: row.get(1)?, labels, created_ns: row.get(3)? })
}

fn find(db: &rusqlite::Connection, name: &str) -> Result<Option<Volume>> {
    let sql = format!("SELECT {COLUMNS} FROM volumes WHERE name = ?1");
    db.query_row(&sql, [name], read).optional().map_err(database("look up the volume"))
}

fn users(db: &rusqlite::Connection, name: &str) -> Result<Vec<String>> {
    let fail = database("look up the volume's users");
    let sql = "SELECT DISTINCT containers.name FROM container_volumes JOIN containers ON id = container
               WHERE volume = ?1 ORDER BY containers.name";
    let mut statement = db.prepare(sql).map_err(&fail)?;
    let rows = statement.query_map([name], |row| row.get(0)).map_err(&fail)?;
    rows.collect::<rusqlite::Result<_>>().map_err(&fail)
}

fn make(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("make", path, error)),
        _ => Ok(()),
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

fn is_empty(path: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(path)?.next().is_none())
}

/// Bytes that a tree takes on the disk, as far as it can be read. Links and mounts are not entered.
#[must_use]
pub fn size(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(top) = path.symlink_metadata() else { return 0 };
    let mut seen = std::collections::HashSet::new();
    let (mut todo, mut total) = (vec![path.to_path_buf()], 0);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() || meta.nlink() > 1 && !meta.is_dir() && !seen.insert(meta.ino()) {
                continue;
            }
            total += meta.blocks() * 512;
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    total
}
