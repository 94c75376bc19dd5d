//! Which containers live, and what to do about those that died without saying so.
//!
//! A monitor holds a lock on `run/ID/lock` for its life; the kernel frees it however the monitor ends. So the truth
//! about a container is its lock, never a process id. Every command that reads the table first brings rows of dead
//! monitors to their end ([`reconcile`]).
//!
//! ```text
//! run/.lock      held while run directories are made, judged or removed
//! run/ID/lock    held by the monitor
//! run/ID/control.sock
//! run/ID/files    a machine serves the container's files and does not run it
//! ```

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::record::Config;
use crate::events::Events;
use crate::os;
use crate::store::{Record, State, Store, now_ns};
use crate::volume::Volumes;
use crate::{Error, Result};

/// Exit code of a container whose monitor was killed: as if it had been killed itself.
const KILLED: i32 = 137;

/// How long a monitor that was killed may take to be gone: its connections end first, its machine after them.
const DYING: Duration = Duration::from_secs(10);

/// What says that a run directory's machine does not run the container.
const FILES: &str = "files";
/// Where a monitor serves commands.
const SOCKET: &str = "control.sock";

/// A living container's directory; dropped without [`RunDir::remove`] it is left for [`reconcile`].
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Makes the directory and takes its lock.
    pub(crate) fn create(root: &Path, id: &str) -> Result<Self> {
        let run = run_root(root)?;
        let _judging = lock_all(&run)?;
        let path = run.join(id);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Busy { id: super::short(id) });
            }
            made => made.map_err(|source| Error::io("make", &path, source))?,
        }
        let lock = open_lock(&path.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| Error::io("lock", &path, error.into()))?;
        Ok(RunDir { path, _lock: lock })
    }

    /// Says that the container does not run, whatever comes of this process.
    pub(crate) fn serves_files(&self) -> Result<()> {
        let path = self.path.join(FILES);
        File::create(&path).map(drop).map_err(|source| Error::io("make", &path, source))
    }

    /// The socket on which later commands are served.
    pub(crate) fn listen(&self) -> Result<UnixListener> {
        let path = self.path.join(SOCKET);
        let fail = |source| Error::io("listen on", &path, source);
        let bind = |path: &Path| UnixListener::bind(path);
        let listener = os::with_short_path(&self.path, SOCKET, bind).map_err(fail)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).map_err(fail)?;
        Ok(listener)
    }

    /// Removes the directory; the lock is free afterwards.
    pub(crate) fn remove(self) -> Result<()> {
        let run = self.path.parent().unwrap_or(&self.path);
        let _judging = lock_all(run)?;
        remove_tree(&self.path)
    }
}

/// Connects to a container's monitor.
///
/// # Errors
/// [`Error::NotRunning`] if there is none.
pub fn connect(store: &Store, record: &Record) -> Result<UnixStream> {
    let path = store.root().join("run").join(&record.id);
    let connect = |path: &Path| UnixStream::connect(path);
    os::with_short_path(&path, SOCKET, connect).map_err(|_| Error::NotRunning { name: record.name.clone() })
}

/// Brings containers whose monitor is gone to their end: a row that says it lives becomes `exited` with a reason, or goes
/// with everything else if it was to be removed.
pub fn reconcile(store: &Store) -> Result<()> {
    let run = store.root().join("run");
    if !run.is_dir() {
        return Ok(());
    }
    let _judging = lock_all(&run)?;
    let (mut living, mut dead) = (std::collections::HashSet::new(), false);
    for entry in fs::read_dir(&run).map_err(|source| Error::io("read", &run, source))? {
        let entry = entry.map_err(|source| Error::io("read", &run, source))?;
        let Some(id) = entry.file_name().to_str().filter(|name| !name.starts_with('.')).map(str::to_owned)
        else {
            continue;
        };
        match File::open(entry.path().join("lock")) {
            Ok(lock) if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() => {
                living.insert(id);
                continue;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::io("open", entry.path(), source)),
        }
        match store.containers().get(&id)? {
            Some(record) if !entry.path().join(FILES).exists() => bury(store, record, true)?,
            Some(_) => {}
            // Killed before its row was there: its directory was.
            None => remove_tree(&store.container_dir(&id))?,
        }
        remove_tree(&entry.path())?;
        dead = true;
    }
    // Rows without a directory: the machine went down between the two, or a removal was cut.
    for record in store.containers().living()? {
        if !living.contains(&record.id) {
            bury(store, record, false)?;
        }
    }
    // One that was killed while it made a volume left a directory that no row speaks of.
    if dead { Volumes::new(store).clean() } else { Ok(()) }
}

/// Ends the row of a container that has no monitor.
fn bury(store: &Store, mut record: Record, started: bool) -> Result<()> {
    let remove = serde_json::from_str::<Config>(&record.config).is_ok_and(|config| config.request.remove);
    match record.state {
        State::Removing => return remove_container(store, &record, remove),
        State::Exited => {}
        State::Created if !started => return Ok(()),
        State::Created | State::Running | State::Paused | State::Restarting => {
            if remove {
                return remove_container(store, &record, true);
            }
            record.error = match record.state {
                State::Created => "its monitor was killed during the start".into(),
                _ => "its monitor was killed".into(),
            };
            record.state = State::Exited;
            record.exit_code = Some(KILLED);
            record.pid = None;
            record.finished_ns = Some(now_ns());
            store.containers().update(&record)?;
            Events::new(store.root()).container("die", &record, &[("exitCode", "137")]);
        }
    }
    if remove { remove_container(store, &record, true) } else { Ok(()) }
}

/// Removes a container that does not live, its files first; with `volumes` also those that were made for it alone.
pub(crate) fn remove_container(store: &Store, record: &Record, volumes: bool) -> Result<()> {
    store.containers().advance(&record.id, record.state, State::Removing)?;
    let table = Volumes::new(store);
    let own = if volumes { table.anonymous_of(&record.id)? } else { Vec::new() };
    remove_tree(&store.container_dir(&record.id))?;
    store.containers().remove(&record.id)?;
    for name in own {
        match table.remove(&name) {
            // Another container was given it by name, or a snapshot needs it.
            Err(Error::VolumeInUse { .. } | Error::NoSuchVolume { .. }) => {}
            done => drop(done?),
        }
    }
    Ok(())
}

/// Whether a container has a monitor, from its lock.
#[must_use]
pub fn is_living(store: &Store, id: &str) -> bool {
    let run = store.root().join("run");
    // Judged alone, so that no other judge's look is taken for the monitor's lock.
    let Ok(_judging) = lock_all(&run) else { return false };
    File::open(run.join(id).join("lock"))
        .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err())
}

/// Waits until a monitor that ended a connection without a word is gone, at most 10 s, and brings its container to its
/// end. Says whether it is gone.
///
/// # Errors
/// The record cannot be brought to its end.
pub fn await_end(store: &Store, id: &str) -> Result<bool> {
    let until = Instant::now() + DYING;
    while is_living(store, id) {
        if Instant::now() >= until {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    reconcile(store)?;
    Ok(true)
}

/// Removes a container that has ended, with its log; with `volumes` also the volumes that were made for it alone.
///
/// # Errors
/// [`Error::Running`] while it has a monitor.
pub fn remove(store: &Store, record: &Record, volumes: bool) -> Result<()> {
    if is_living(store, &record.id) {
        return Err(Error::Running { name: record.name.clone() });
    }
    remove_container(store, record, volumes)?;
    Events::new(store.root()).container("destroy", record, &[]);
    Ok(())
}

/// The directory of living containers.
fn run_root(root: &Path) -> Result<PathBuf> {
    let run = root.join("run");
    match DirBuilder::new().mode(0o700).create(&run) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("make", &run, source)),
        _ => Ok(run),
    }
}

fn lock_all(run: &Path) -> Result<File> {
    let lock = open_lock(&run.join(".lock"))?;
    loop {
        match flock(&lock, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::io("lock", run, error.into())),
        }
    }
}

fn open_lock(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(false);
    options.open(path).map_err(|source| Error::io("open", path, source))
}

/// Removes a tree; links are removed, not followed.
fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, source)),
        _ => Ok(()),
    }
}
