//! The store: one directory, the data root, with a SQLite database and the files it speaks of.
//!
//! ```text
//! ROOT/                     0700
//!   store.db                images, tags, blobs, containers (WAL); `user_version` is the layout of the whole root
//!   blobs/sha256/HEX        manifests, configs and layers, exactly as they came
//!   roots/HEX.vN.erofs      root file systems, by image id and writer version
//!   partial/HEX             blobs that pulls bring, locked by who brings them (`crate::image`)
//!   containers/ID/          what a container owns (`crate::container`)
//!   networks/NAME/          a network that containers share (`crate::network`)
//!   tmp/XXXX/               unfinished work, locked by its process (`Scratch`)
//! ```
//!
//! Rules that keep it true under concurrent processes and `kill -9`:
//! * A file is written in `tmp/`, synced, and renamed into its place *inside* the transaction that records it.
//! * A file no row speaks of is garbage, and only [`Store::sweep`] removes it, inside a transaction as well: so a file is
//!   never removed while another process is about to record it.
//! * A row is never there without its file.
//!
//! Opening is on the path of every `run`: one `open`, one pragma, one `readdir` of `tmp/`.

mod check;
mod containers;
mod reserve;
mod root;
mod schema;
mod scratch;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, config::DbConfig};

pub use check::{Finding, Remedy, check, disk_usage};
pub use containers::{Containers, Record, State};
pub use root::default_root;
pub use scratch::Scratch;

use crate::image::Digest;
use crate::{Error, Result};

/// How long a statement waits for another process's transaction. They are short, but on a slow host with many starts at once
/// the process in one has to wait for its turn on a CPU, and those that wait for it get theirs in no order.
const BUSY: Duration = Duration::from_secs(300);

/// An open data root. It is `Send`, not `Sync`: each thread that needs it opens its own.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    db: Connection,
}

impl Store {
    /// Opens the data root, making it where there is none, and removes what dead processes left in `tmp/`.
    ///
    /// # Errors
    /// A root of another user or of a newer version is refused; file and database errors are passed on.
    pub fn open(root: &Path) -> Result<Self> {
        let root = root::prepare(root)?;
        reserve::settle(&root);
        let path = root.join("store.db");
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let fail = |source| Error::database("open", source);
        let mut db = Connection::open_with_flags(&path, flags).map_err(fail)?;
        db.busy_timeout(BUSY).map_err(fail)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true).map_err(fail)?;
        // The log stays when the last process closes: a `run` then waits for no fsync, and makes and removes no files.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(fail)?;
        schema::check(&mut db, &root)?;
        scratch::clean(&root)?;
        Ok(Store { root, db })
    }

    /// Opens the default data root ([`default_root`]).
    pub fn open_default() -> Result<Self> {
        Store::open(&default_root()?)
    }

    /// The data root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The database, for statements of one row. Several that belong together go through [`Store::write`].
    pub fn db(&self) -> &Connection {
        &self.db
    }

    /// Runs one write transaction. The database is locked for other writers from the start, so what is read inside stays
    /// true until the commit; keep it short and do slow work before it.
    pub fn write<T>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let transaction = Transaction::new_unchecked(&self.db, TransactionBehavior::Immediate)
            .map_err(|source| Error::database(what, source))?;
        let value = work(&transaction)?;
        transaction.commit().map_err(|source| Error::database(what, source))?;
        Ok(value)
    }

    /// The table of containers.
    pub fn containers(&self) -> Containers<'_> {
        Containers::new(self)
    }

    /// The directory of a container's own files, whether it is there or not.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    /// Where a blob lies, whether it is there or not.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// A private directory for unfinished work, gone when it is dropped or when this process dies.
    pub fn scratch(&self) -> Result<Scratch> {
        Scratch::new(&self.root)
    }

    /// Removes blobs and root file systems that no row speaks of, and returns the freed bytes.
    pub fn sweep(&self) -> Result<u64> {
        self.write("sweep", |transaction| {
            let known = |sql: &'static str| -> Result<std::collections::HashSet<String>> {
                let fail = |source| Error::database("sweep", source);
                let mut statement = transaction.prepare(sql).map_err(fail)?;
                let rows = statement.query_map((), |row| row.get::<_, String>(0)).map_err(fail)?;
                rows.collect::<rusqlite::Result<_>>().map_err(fail)
            };
            transaction
                .execute("DELETE FROM blobs WHERE digest NOT IN (SELECT blob FROM image_blobs)", ())
                .map_err(|source| Error::database("sweep", source))?;
            let blobs = known("SELECT substr(digest, 8) FROM blobs")?;
            let images = known("SELECT substr(id, 8) FROM images")?;
            let current = crate::erofs::suffix();
            Ok(root::sweep(&self.root.join("blobs/sha256"), |name| blobs.contains(name))?
                + root::sweep(&self.root.join("roots"), |name| {
                    name.strip_suffix(&current).is_some_and(|hex| images.contains(hex))
                })?)
        })
    }
}

/// Nanoseconds since 1970, as every `*_ns` column has them.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
