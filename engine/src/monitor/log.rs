//! What a container's programs wrote, kept exactly, with the stream and time of each piece.
//!
//! ```text
//! 0        8        12       13       16
//! | time   | length | stream | zero   | bytes ... |
//!   u64 LE   u32 LE   u8
//! ```
//!
//! Time is nanoseconds since 1970, stream 1 or 2. When the file `log` is full it becomes `log.1`, and what was that
//! `log.2`, up to the number of files that are kept.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::wire::Output;
use crate::{Error, Result};

/// Bytes of a log file before the next one is begun, unless told otherwise.
const MOST: u64 = 32 << 20;
/// Files that are kept, unless told otherwise.
const FILES: u32 = 2;
const HEADER: usize = 16;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogOptions {
    /// How it was called; every driver but `none` keeps the same files.
    pub driver: String,
    /// Bytes of a file before the next one is begun; `None` is the default, 32 MiB.
    pub max_size: Option<u64>,
    /// Files that are kept, at least 1; `None` is the default, 2.
    pub max_file: Option<u32>,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions { driver: "json-file".into(), max_size: None, max_file: None }
    }
}

impl LogOptions {
    /// Nothing is kept.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.driver == "none"
    }
}

/// One piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Where it was written to.
    pub output: Output,
    /// What.
    pub data: Vec<u8>,
}

/// The log being written.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    file: File,
    length: u64,
    most: u64,
    files: u32,
}

impl Log {
    /// Begins or goes on with the log in a container's directory; `None` if none is kept.
    pub(crate) fn open(dir: &Path, options: &LogOptions) -> Result<Option<Self>> {
        if options.is_none() {
            return Ok(None);
        }
        let path = path(dir, 0);
        let fail = |source| Error::io("open", &path, source);
        let file = File::options().append(true).create(true).open(&path).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        Ok(Some(Log {
            dir: dir.to_path_buf(),
            file,
            length,
            most: options.max_size.unwrap_or(MOST),
            files: options.max_file.unwrap_or(FILES),
        }))
    }

    /// Adds a piece, with one write.
    pub(crate) fn add(&mut self, output: Output, data: &[u8]) -> io::Result<()> {
        if self.length >= self.most {
            self.begin()?;
        }
        let length = u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let time = u64::try_from(crate::store::now_ns()).unwrap_or_default();
        let mut entry = Vec::with_capacity(HEADER + data.len());
        entry.extend_from_slice(&time.to_le_bytes());
        entry.extend_from_slice(&length.to_le_bytes());
        entry.extend_from_slice(&[if output == Output::Stdout { 1 } else { 2 }, 0, 0, 0]);
        entry.extend_from_slice(data);
        self.file.write_all(&entry)?;
        self.length += entry.len() as u64;
        Ok(())
    }

    /// Begins a new file.
    fn begin(&mut self) -> io::Result<()> {
        let current = path(&self.dir, 0);
        for number in (1..self.files).rev() {
            match fs::rename(path(&self.dir, number - 1), path(&self.dir, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.files <= 1 {
            fs::remove_file(&current)?;
        }
        self.file = File::options().append(true).create(true).open(&current)?;
        self.length = 0;
        Ok(())
    }
}

/// A log's file by its number; 0 is the one that is written.
fn path(dir: &Path, number: u32) -> PathBuf {
    if number == 0 { dir.join("log") } else { dir.join(format!("log.{number}")) }
}

/// Reads the pieces of a log through all its files, while others are begun.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    /// The file that is read, and its inode.
    current: Option<(File, u64)>,
    buf: Vec<u8>,
}

impl Reader {
    /// Reads from the oldest piece that is kept.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let mut reader = Reader { dir: dir.to_path_buf(), current: None, buf: Vec::new() };
        let oldest = reader.numbers()?.into_iter().max();
        reader.current = oldest.map(|number| reader.file(number)).transpose()?.flatten();
        Ok(reader)
    }

    /// The next piece; `None` when no whole one is there yet.
    ///
    /// # Errors
    /// If reading fails or a file is not a log.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if let Some((entry, used)) = parse(&self.buf)? {
                self.buf.drain(..used);
                return Ok(Some(entry));
            }
            let mut part = [0; 16 * 1024];
            let read = match &mut self.current {
                Some((file, _)) => file.read(&mut part)?,
                None => 0,
            };
            self.buf.extend_from_slice(part.get(..read).unwrap_or_default());
            if read == 0 && !self.go_on()? {
                return Ok(None);
            }
        }
    }

    /// Goes to the file after the one that was read to its end, if one was begun.
    fn go_on(&mut self) -> io::Result<bool> {
        let Some((_, inode)) = &self.current else {
            self.current = self.file(0)?;
            return Ok(self.current.is_some());
        };
        // Where it stands now: it moves up with each new file, and is gone at last.
        let numbers = self.numbers()?;
        let is_it =
            |number: &u32| fs::metadata(path(&self.dir, *number)).is_ok_and(|meta| meta.ino() == *inode);
        let next = match numbers.iter().copied().find(is_it) {
            Some(0) => return Ok(false),
            Some(number) => number - 1,
            None => match numbers.into_iter().max() {
                Some(oldest) => oldest,
                None => return Ok(false),
            },
        };
        let Some(file) = self.file(next)? else { return Ok(false) };
        // A piece is never cut between two files.
        self.buf.clear();
        self.current = Some(file);
        Ok(true)
    }

    fn file(&self, number: u32) -> io::Result<Option<(File, u64)>> {
        match File::open(path(&self.dir, number)) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                Ok(Some((file, inode)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The numbers of the files that are there.
    fn numbers(&self) -> io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            // The container was removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(numbers),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            match name.to_str() {
                Some("log") => numbers.push(0),
                Some(name) => numbers.extend(name.strip_prefix("log.").and_then(|n| n.parse::<u32>().ok())),
                None => {}
            }
        }
        Ok(numbers)
    }
}

fn parse(buf: &[u8]) -> io::Result<Option<(Entry, usize)>> {
    let Some((header, rest)) = buf.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [t0, t1, t2, t3, t4, t5, t6, t7, l0, l1, l2, l3, stream, ..] = *header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let output = match stream {
        1 => Output::Stdout,
        2 => Output::Stderr,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "the log is damaged")),
    };
    let Some(data) = rest.get(..length) else {
        return Ok(None);
    };
    let time_ns = u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
    Ok(Some((Entry { time_ns, output, data: data.to_vec() }, HEADER + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, max_size: Option<u64>, max_file: Option<u32>) -> Log {
        Log::open(dir, &LogOptions { max_size, max_file, ..LogOptions::default() }).unwrap().unwrap()
    }

    fn texts(reader: &mut Reader) -> Vec<String> {
        std::iter::from_fn(|| reader.next_entry().unwrap())
            .map(|entry| String::from_utf8_lossy(&entry.data).into_owned())
            .collect()
    }

    #[test]
    fn pieces_come_back_exactly_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), None, None);
        log.add(Output::Stdout, b"a\xff\n").unwrap();
        log.add(Output::Stderr, b"").unwrap();
        drop(log);
        open(dir.path(), None, None).add(Output::Stderr, &[7; 100_000]).unwrap();
        let mut reader = Reader::open(dir.path()).unwrap();
        let first = reader.next_entry().unwrap().unwrap();
        assert_eq!((first.output, first.data.as_slice()), (Output::Stdout, &b"a\xff\n"[..]));
        assert!(first.time_ns > 1_600_000_000_000_000_000);
        assert_eq!(reader.next_entry().unwrap().unwrap().data, b"");
        assert_eq!(reader.next_entry().unwrap().unwrap().data, [7; 100_000]);
        assert_eq!(reader.next_entry().unwrap(), None);
    }

    #[test]
    fn an_unfinished_piece_waits_for_its_rest() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), None, None).add(Output::Stdout, b"whole").unwrap();
        let bytes = fs::read(dir.path().join("log")).unwrap();
        fs::write(dir.path().join("log"), &bytes[..bytes.len() - 1]).unwrap();
        let mut reader = Reader::open(dir.path()).unwrap();
        assert_eq!(reader.next_entry().unwrap(), None);
        let mut file = File::options().append(true).open(dir.path().join("log")).unwrap();
        file.write_all(&bytes[bytes.len() - 1..]).unwrap();
        assert_eq!(texts(&mut reader), ["whole"]);
    }

    #[test]
    fn as_many_files_are_kept_as_were_asked_for() {
        for (files, kept) in
            [(1, &["8", "9"][..]), (2, &["6", "7", "8", "9"]), (3, &["4", "5", "6", "7", "8", "9"])]
        {
            let dir = tempfile::tempdir().unwrap();
            let mut log = open(dir.path(), Some(30), Some(files));
            for number in 0..10 {
                log.add(Output::Stdout, number.to_string().as_bytes()).unwrap();
            }
            assert_eq!(texts(&mut Reader::open(dir.path()).unwrap()), kept);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), files as usize);
        }
    }

    #[test]
    fn a_reader_follows_through_files_that_are_begun_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), Some(30), Some(5));
        let mut reader = Reader::open(dir.path()).unwrap();
        assert_eq!(reader.next_entry().unwrap(), None);
        log.add(Output::Stdout, b"0").unwrap();
        assert_eq!(texts(&mut reader), ["0"]);
        for number in 1..8 {
            log.add(Output::Stdout, number.to_string().as_bytes()).unwrap();
        }
        assert_eq!(texts(&mut reader), ["1", "2", "3", "4", "5", "6", "7"]);
        assert_eq!(texts(&mut reader), [""; 0]);
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions { driver: "none".into(), ..LogOptions::default() };
        assert!(Log::open(dir.path(), &options).unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
