//! What a container's programs wrote, kept exactly, with the stream and time of each piece.
//!
//! ```text
//! 0        8        12       13       16
//! | time   | length | stream | zero   | bytes ... |
//!   u64 LE   u32 LE   u8
//! ```
//!
//! Time is nanoseconds since 1970, stream 1 or 2. When the file has [`MOST`] bytes it becomes `log.1` and a new one is
//! begun, so that at most twice as much is kept.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::wire::Output;
use crate::{Error, Result};

/// Bytes of a log file before the next one is begun.
const MOST: u64 = 32 << 20;
const HEADER: usize = 16;

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
    path: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    /// Begins or goes on with the log in a container's directory.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("log");
        let fail = |source| Error::io("open", &path, source);
        let file = File::options().append(true).create(true).open(&path).map_err(fail)?;
        let length = file.metadata().map_err(fail)?.len();
        Ok(Log { path, file, length })
    }

    /// Adds a piece, with one write.
    pub(crate) fn add(&mut self, output: Output, data: &[u8]) -> io::Result<()> {
        if self.length >= MOST {
            fs::rename(&self.path, self.path.with_file_name("log.1"))?;
            self.file = File::options().append(true).create(true).open(&self.path)?;
            self.length = 0;
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
}

/// Reads the pieces of a file, in order. An unfinished piece at its end waits for its rest.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    buf: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads from the beginning.
    pub fn new(source: R) -> Self {
        Reader { source, buf: Vec::new() }
    }

    /// The next piece; `None` when no whole one is there yet.
    ///
    /// # Errors
    /// If reading fails or the file is not a log.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if let Some((entry, used)) = parse(&self.buf)? {
                self.buf.drain(..used);
                return Ok(Some(entry));
            }
            let mut part = [0; 16 * 1024];
            match self.source.read(&mut part)? {
                0 => return Ok(None),
                count => self.buf.extend_from_slice(part.get(..count).unwrap_or_default()),
            }
        }
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

    #[test]
    fn pieces_come_back_exactly_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path()).unwrap();
        log.add(Output::Stdout, b"a\xff\n").unwrap();
        log.add(Output::Stderr, b"").unwrap();
        drop(log);
        Log::open(dir.path()).unwrap().add(Output::Stderr, &[7; 100_000]).unwrap();
        let mut reader = Reader::new(File::open(dir.path().join("log")).unwrap());
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
        Log::open(dir.path()).unwrap().add(Output::Stdout, b"whole").unwrap();
        let bytes = fs::read(dir.path().join("log")).unwrap();
        let mut reader = Reader::new(&bytes[..bytes.len() - 1]);
        assert_eq!(reader.next_entry().unwrap(), None);
    }
}
