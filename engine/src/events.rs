//! What happened, for `servin events`: one line of JSON each, in docker's form, appended with one write.
//!
//! ```text
//! events/log      the newest; when it is full it becomes
//! events/log.1
//! ```
//!
//! An event is written when what it tells of is in the database, so that none tells of something that is not so; a process
//! that is killed in between tells nothing.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::container::Config;
use crate::store::{Record, Store, now_ns};

/// Bytes of the file before the next one is begun.
const MOST: u64 = 1 << 20;

/// One event, with docker's field names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What it happened to: `container`, `image`, ...
    #[serde(rename = "Type")]
    pub kind: String,
    /// What happened: `start`, `die`, ...
    #[serde(rename = "Action")]
    pub action: String,
    /// Whom it happened to.
    #[serde(rename = "Actor")]
    pub actor: Actor,
    /// Nanoseconds since 1970.
    #[serde(rename = "timeNano")]
    pub time_ns: i64,
}

/// Whom an event happened to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// More about it and about the event.
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

/// The events of a data root.
#[derive(Debug)]
pub struct Events {
    dir: PathBuf,
    file: Option<File>,
}

impl Events {
    /// The events of this data root. Nothing is opened before the first is added.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Events { dir: root.join("events"), file: None }
    }

    /// Adds one. That it cannot be written is no failure of what happened.
    pub fn add(&mut self, kind: &str, action: &str, id: &str, attributes: &[(&str, &str)]) {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let event = Event {
            kind: kind.to_owned(),
            action: action.to_owned(),
            actor: Actor { id: id.to_owned(), attributes: attributes.collect() },
            time_ns: now_ns(),
        };
        if let Err(error) = self.write(&event) {
            log::warn!("cannot write an event into {}: {error}", self.dir.display());
        }
    }

    /// Adds one of a container that is not known better than by its row.
    pub fn container(&mut self, action: &str, record: &Record, attributes: &[(&str, &str)]) {
        let config = serde_json::from_str::<Config>(&record.config);
        let image = config.map(|config| config.request.root.name());
        let image = image.unwrap_or_default();
        let own = [("image", image.as_str()), ("name", record.name.as_str())];
        self.add("container", action, &record.id, &[&own, attributes].concat());
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open()?,
        };
        // One write, so that lines of several processes do not mix.
        file.write_all(&line)?;
        self.file = Some(file);
        Ok(())
    }

    fn open(&self) -> io::Result<File> {
        let path = self.dir.join("log");
        let mut options = File::options();
        options.append(true).create(true).mode(0o600);
        let file = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match DirBuilder::new().mode(0o700).create(&self.dir) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => options.open(&path)?,
                }
            }
            opened => opened?,
        };
        if file.metadata()?.len() < MOST {
            return Ok(file);
        }
        // Two that do this at once move it twice, and the older events are lost; that is all.
        fs::rename(&path, self.dir.join("log.1"))?;
        options.open(&path)
    }
}

/// Reads events, the oldest first, while more are added.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    current: Option<(BufReader<File>, u64)>,
    line: Vec<u8>,
}

impl Reader {
    /// Reads what is kept.
    ///
    /// # Errors
    /// If a file cannot be opened.
    pub fn open(store: &Store) -> io::Result<Self> {
        let dir = store.root().join("events");
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mut reader = Reader { dir, current: None, line: Vec::new() };
        reader.current = reader.file("log.1")?;
        Ok(reader)
    }

    /// The directory that changes when an event is added.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The next event; `None` when there is none yet. Lines that are none are left out.
    ///
    /// # Errors
    /// If reading fails.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        loop {
            let read = match &mut self.current {
                Some((file, _)) => file.read_until(b'\n', &mut self.line)?,
                None => 0,
            };
            if self.line.ends_with(b"\n") {
                let event = serde_json::from_slice(&self.line);
                self.line.clear();
                match event {
                    Ok(event) => return Ok(Some(event)),
                    Err(error) => log::warn!("a line of {} is no event: {error}", self.dir.display()),
                }
            } else if read == 0 && !self.go_on()? {
                return Ok(None);
            }
        }
    }

    fn go_on(&mut self) -> io::Result<bool> {
        let Some(next) = self.file("log")? else { return Ok(false) };
        if self.current.as_ref().is_some_and(|(_, inode)| *inode == next.1) {
            return Ok(false);
        }
        self.line.clear();
        self.current = Some(next);
        Ok(true)
    }

    fn file(&self, name: &str) -> io::Result<Option<(BufReader<File>, u64)>> {
        match File::open(self.dir.join(name)) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                Ok(Some((BufReader::new(file), inode)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// All events of a data root as kind, action and id.
#[cfg(test)]
pub(crate) fn told(root: &Path) -> Vec<String> {
    let log = fs::read_to_string(root.join("events/log")).unwrap();
    let event = |line| serde_json::from_str::<Event>(line).unwrap();
    log.lines().map(event).map(|one| format!("{} {} {}", one.kind, one.action, one.actor.id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(reader: &mut Reader) -> Vec<String> {
        std::iter::from_fn(|| reader.next_event().unwrap()).map(|event| event.action).collect()
    }

    #[test]
    fn events_are_read_in_order_while_more_come() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut reader = Reader::open(&store).unwrap();
        assert_eq!(reader.next_event().unwrap(), None);
        let (mut a, mut b) = (Events::new(store.root()), Events::new(store.root()));
        a.add("container", "create", "1", &[("name", "x")]);
        b.add("image", "tag", "2", &[]);
        a.add("container", "start", "1", &[]);
        let first = reader.next_event().unwrap().unwrap();
        assert_eq!(
            (first.kind.as_str(), first.action.as_str(), first.actor.id.as_str()),
            ("container", "create", "1")
        );
        assert_eq!(first.actor.attributes["name"], "x");
        assert_eq!(actions(&mut reader), ["tag", "start"]);
        b.add("image", "untag", "2", &[]);
        assert_eq!(actions(&mut reader), ["untag"]);
    }

    #[test]
    fn a_full_file_is_followed_by_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Events::new(store.root()).add("container", "first", "1", &[]);
        let mut reader = Reader::open(&store).unwrap();
        assert_eq!(actions(&mut reader), ["first"]);
        let long = "x".repeat(usize::try_from(MOST).unwrap());
        Events::new(store.root()).add("container", "long", &long, &[]);
        Events::new(store.root()).add("container", "last", "1", &[]);
        assert_eq!(actions(&mut reader), ["long", "last"]);
        assert_eq!(actions(&mut Reader::open(&store).unwrap()), ["first", "long", "last"]);
    }

    #[test]
    fn a_line_that_is_no_event_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut reader = Reader::open(&store).unwrap();
        fs::write(reader.dir().join("log"), "nonsense\n{\"Type\":1}\n").unwrap();
        Events::new(store.root()).add("container", "last", "1", &[]);
        assert_eq!(actions(&mut reader), ["last"]);
    }
}
