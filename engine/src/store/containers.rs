//! The table of containers: rows in and out, and nothing about what a container is (`crate::container` knows that).

use std::fmt;
use std::str::FromStr;

use rusqlite::{OptionalExtension, Row, named_params, types::Type};

use super::Store;
use crate::image::Digest;
use crate::{Error, Result};

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, never started.
    Created,
    /// Its monitor runs it.
    Running,
    /// Its virtual CPUs are parked.
    Paused,
    /// It ended, and its monitor is about to start it again.
    Restarting,
    /// It ended, or its monitor did.
    Exited,
    /// Being removed; a crash in the middle leaves this, and the removal is taken up again.
    Removing,
}

impl State {
    /// The word in the table: one that rests is a running one whose `resting` is set.
    fn word(self) -> &'static str {
        if self == State::Restarting { State::Running.as_str() } else { self.as_str() }
    }

    /// The word in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Restarting => "restarting",
            State::Exited => "exited",
            State::Removing => "removing",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [
            State::Created,
            State::Running,
            State::Paused,
            State::Restarting,
            State::Exited,
            State::Removing,
        ];
        all.into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("unknown container state \"{text}\""))
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Unique among all containers.
    pub name: String,
    /// The image, or none with `--rootfs`.
    pub image: Option<Digest>,
    /// JSON of `crate::container`.
    pub config: String,
    /// Where it is in its life.
    pub state: State,
    /// Process id of the monitor while there is one.
    pub pid: Option<i32>,
    /// Exit code of the last run.
    pub exit_code: Option<i32>,
    /// The last run met its memory limit.
    pub oom: bool,
    /// Why the last start failed, or empty.
    pub error: String,
    /// Nanoseconds since 1970.
    pub created_ns: i64,
    /// Nanoseconds since 1970 of the last start.
    pub started_ns: Option<i64>,
    /// Nanoseconds since 1970 of the last end.
    pub finished_ns: Option<i64>,
    /// How often its policy has started it again since the user's start.
    pub restarts: u32,
}

/// The table.
#[derive(Clone, Copy, Debug)]
pub struct Containers<'a> {
    store: &'a Store,
}

const COLUMNS: &str = "id, name, image, config, state, pid, exit_code, oom, error, created_ns, started_ns, finished_ns, \
     restarts, resting";

impl<'a> Containers<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Containers { store }
    }

    /// Adds a row. The image must be in the store and stays there as long as the row does.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::NoSuchImage`].
    pub fn insert(&self, record: &Record) -> Result<()> {
        let done = self.store.db.execute(
            "INSERT INTO containers VALUES (:id, :name, :image, :config, :state, :pid, :exit_code, :oom, :error,
             :created_ns, :started_ns, :finished_ns, :restarts, :resting)",
            named_params! {
                ":id": record.id, ":name": record.name, ":image": record.image.map(|image| image.to_string()),
                ":config": record.config, ":state": record.state.word(), ":pid": record.pid,
                ":exit_code": record.exit_code, ":oom": record.oom, ":error": record.error,
                ":created_ns": record.created_ns, ":started_ns": record.started_ns,
                ":finished_ns": record.finished_ns, ":restarts": record.restarts,
                ":resting": record.state == State::Restarting,
            },
        );
        done.map(drop).map_err(|source| self.refused(source, record, &record.name))
    }

    /// Writes how the container with this id fares. Its name stays as the table has it: somebody may
    /// have changed that since the record was read.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`] when it is gone.
    pub fn update(&self, record: &Record) -> Result<()> {
        self.update_named(record).map(drop)
    }

    /// As [`Self::update`]; gives the name that the table has.
    pub(crate) fn update_named(&self, record: &Record) -> Result<String> {
        let done = self.store.db.query_row(
            "UPDATE containers SET config = :config, state = :state, pid = :pid, exit_code = :exit_code, oom = :oom, error = :error,
             started_ns = :started_ns, finished_ns = :finished_ns, restarts = :restarts, resting = :resting
             WHERE id = :id RETURNING name",
            named_params! {
                ":id": record.id, ":config": record.config, ":state": record.state.word(), ":pid": record.pid,
                ":exit_code": record.exit_code, ":oom": record.oom, ":error": record.error,
                ":started_ns": record.started_ns, ":finished_ns": record.finished_ns,
                ":restarts": record.restarts,
                ":resting": record.state == State::Restarting,
            },
            |row| row.get(0),
        );
        let found = done.optional().map_err(|source| Error::database("record the container", source))?;
        found.ok_or_else(|| Error::NoSuchContainer { name: record.id.clone() })
    }

    /// The name that the container with this full id has now.
    pub(crate) fn name(&self, id: &str) -> Result<Option<String>> {
        let sql = "SELECT name FROM containers WHERE id = ?1";
        let found = self.store.db.query_row(sql, [id], |row| row.get(0)).optional();
        found.map_err(|source| Error::database("look up the container", source))
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`] when it is gone, [`Error::NameTaken`].
    pub fn rename(&self, record: &Record, name: &str) -> Result<()> {
        let done = self.store.db.execute("UPDATE containers SET name = ?2 WHERE id = ?1", (&record.id, name));
        match done.map_err(|source| self.refused(source, record, name))? {
            0 => Err(Error::NoSuchContainer { name: record.id.clone() }),
            _ => Ok(()),
        }
    }

    /// What an error of a change of names or images means.
    fn refused(&self, source: rusqlite::Error, record: &Record, name: &str) -> Error {
        match source.sqlite_error().map(|error| error.extended_code) {
            Some(rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE) => {
                let owner = self.one("name = ?1", name).ok().flatten();
                let by = owner.map_or_else(String::new, |owner| owner.id.chars().take(12).collect());
                Error::NameTaken { name: name.to_owned(), by }
            }
            Some(rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY) => Error::NoSuchImage {
                reference: record.image.map_or_else(String::new, |image| image.to_string()),
            },
            _ => Error::database("record the container", source),
        }
    }

    /// Moves a row from one state to another, if it is in the first; says whether it was. Two processes that try the same
    /// move cannot both succeed.
    pub fn advance(&self, id: &str, from: State, to: State) -> Result<bool> {
        let sql =
            "UPDATE containers SET state = ?4, resting = ?5 WHERE id = ?1 AND state = ?2 AND resting = ?3";
        let resting = |state| state == State::Restarting;
        let changed = self.store.db.execute(sql, (id, from.word(), resting(from), to.word(), resting(to)));
        changed.map(|rows| rows > 0).map_err(|source| Error::database("change the container's state", source))
    }

    /// The row with this full id.
    pub fn get(&self, id: &str) -> Result<Option<Record>> {
        self.one("id = ?1", id)
    }

    /// The row that a user means: full id, then name, then an unambiguous beginning of an id.
    ///
    /// # Errors
    /// [`Error::NoSuchContainer`], [`Error::AmbiguousContainer`].
    pub fn find(&self, text: &str) -> Result<Record> {
        if let Some(found) = self.one("id = ?1", text)? {
            return Ok(found);
        }
        if let Some(found) = self.one("name = ?1", text)? {
            return Ok(found);
        }
        let missing = || Error::NoSuchContainer { name: text.to_owned() };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        {
            return Err(missing());
        }
        let mut found = self.many("WHERE id >= ?1 AND id < ?1 || 'g'", [text])?;
        match (found.len(), found.pop()) {
            (1, Some(only)) => Ok(only),
            (0, _) => Err(missing()),
            (count, _) => Err(Error::AmbiguousContainer { prefix: text.to_owned(), count }),
        }
    }

    /// All rows, the newest first.
    pub fn list(&self) -> Result<Vec<Record>> {
        self.many("ORDER BY created_ns DESC, id", ())
    }

    /// The rows that say that their container lives, or is being removed. Every start asks, and pays for no other row.
    pub fn living(&self) -> Result<Vec<Record>> {
        // In the words of the table one that rests is running.
        self.many("WHERE state IN ('running', 'paused', 'removing')", ())
    }

    /// Removes a row; says whether it was there.
    pub fn remove(&self, id: &str) -> Result<bool> {
        let removed = self.store.db.execute("DELETE FROM containers WHERE id = ?1", [id]);
        removed.map(|rows| rows > 0).map_err(|source| Error::database("remove the container", source))
    }

    fn one(&self, condition: &str, value: &str) -> Result<Option<Record>> {
        let sql = format!("SELECT {COLUMNS} FROM containers WHERE {condition}");
        let found = self.store.db.query_row(&sql, [value], read).optional();
        found.map_err(|source| Error::database("look up the container", source))
    }

    fn many(&self, rest: &str, values: impl rusqlite::Params) -> Result<Vec<Record>> {
        let fail = |source| Error::database("list containers", source);
        let mut statement =
            self.store.db.prepare(&format!("SELECT {COLUMNS} FROM containers {rest}")).map_err(fail)?;
        let rows = statement.query_map(values, read).map_err(fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(fail)
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Record> {
    let bad = |column, why: Box<dyn std::error::Error + Send + Sync>| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, why)
    };
    let image: Option<String> = row.get(2)?;
    let image = image.map(|text| text.parse::<Digest>()).transpose().map_err(|error| bad(2, error.into()))?;
    Ok(Record {
        id: row.get(0)?,
        name: row.get(1)?,
        image,
        config: row.get(3)?,
        state: if row.get(13)? {
            State::Restarting
        } else {
            row.get::<_, String>(4)?.parse().map_err(|error: String| bad(4, error.into()))?
        },
        pid: row.get(5)?,
        exit_code: row.get(6)?,
        oom: row.get(7)?,
        error: row.get(8)?,
        created_ns: row.get(9)?,
        started_ns: row.get(10)?,
        finished_ns: row.get(11)?,
        restarts: row.get(12)?,
    })
}
