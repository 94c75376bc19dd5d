//! The tables, as steps. `user_version` is the layout of the whole data root: how many steps it has taken.
//!
//! A change of the layout appends one step to [`STEPS`], in a file of its own below `steps/`. A step that has landed is
//! never edited: roots that took it exist. A new root takes all steps, an older one those that it lacks, in one transaction.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::BUSY;
use crate::{Error, Result};

/// How soon a new database is tried again.
const AGAIN: Duration = Duration::from_millis(2);

/// Step `n` takes a root from layout `n` to `n + 1`.
const STEPS: &[&str] = &[
    include_str!("steps/1-images-and-containers.sql"),
    include_str!("steps/2-volumes.sql"),
    include_str!("steps/3-restarts.sql"),
    include_str!("steps/4-networks.sql"),
    include_str!("steps/5-ipv6.sql"),
];

/// Checks the layout's version, makes the tables in a new database and takes an older one to this version's layout.
pub(super) fn check(db: &mut Connection, root: &Path) -> Result<()> {
    let fail = |source| Error::database("open", source);
    let (found, known) = bring_up(db, STEPS).map_err(fail)?;
    if found > known {
        return Err(Error::NewerLayout { path: root.to_path_buf(), found, known });
    }
    // With WAL a crash of the machine may lose the last commits but never harms the database; a killed process loses none.
    // The log is read whole when no other process has it open, so it is kept short.
    db.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 100").map_err(fail)
}

fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("PRAGMA user_version", (), |row| row.get(0))
}

/// Takes the steps that the database lacks. Returns the layout that it then has, and the one that `steps` lead to: a newer
/// database is left alone.
pub(super) fn bring_up(db: &mut Connection, steps: &[&str]) -> rusqlite::Result<(i64, i64)> {
    let known = i64::try_from(steps.len()).unwrap_or(i64::MAX);
    let found = version(db)?;
    if found >= known {
        return Ok((found, known));
    }
    if found == 0 {
        keep_a_log(db)?;
    }
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been faster.
    let found = version(&transaction)?;
    for step in steps.iter().skip(usize::try_from(found).unwrap_or(usize::MAX)) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", found.max(known))?;
    transaction.commit()?;
    Ok((found.max(known), known))
}

/// Makes a new database one with a log (WAL). Where another process is about to do so, SQLite says that it is busy without
/// a wait, since this one reads already.
fn keep_a_log(db: &Connection) -> rusqlite::Result<()> {
    let last = Instant::now() + BUSY;
    loop {
        match db.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(())) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < last =>
            {
                thread::sleep(AGAIN);
            }
            done => return done,
        }
    }
}
