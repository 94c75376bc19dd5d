//! A streaming tar reader for input nobody vouches for: POSIX ustar and pax (IEEE 1003.1, "pax Interchange Format"), GNU
//! long names, sparse files and base-256 numbers, star prefixes, and plain V7.
//!
//! It is our own because the offset of every file's data in the stream must be known (`crate::erofs` comes back for it in
//! a second pass), because extended headers must be bounded *before* they are read, and because `SCHILY.xattr` records are
//! part of what an image is. Errors are `io::Error`s, so that a damaged stream and a failing one look alike to callers.

use std::io::{self, Read};
use std::sync::Arc;

mod sparse;

use sparse::Next;
pub use sparse::{Map, Piece};

const BLOCK: usize = 512;
/// Most bytes of extended headers and long names before one entry.
const EXTENSION_MAX: u64 = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file with data.
    File,
    /// Another name, `Entry::link`, of an earlier entry.
    HardLink,
    /// A symbolic link to `Entry::link`.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry, all extended headers merged.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The path as written, without interpretation.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of data, holes included; 0 for all but files.
    pub size: u64,
    /// Of a sparse file: what of it is stored.
    pub map: Option<Arc<Map>>,
    /// Seconds since 1970, and nanoseconds below 10^9.
    pub mtime: (i64, u32),
    /// Target of a link.
    pub link: Vec<u8>,
    /// Extended attributes with their full names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Where the data begins in the stream.
    pub data_offset: u64,
}

/// Reads entries one after another; reading from it yields the data of the current entry.
pub struct Tar<R> {
    source: R,
    /// Bytes taken from the source.
    offset: u64,
    /// Bytes stored of the current entry's data and not yet read.
    data: u64,
    /// Of a sparse file: what to read next.
    sparse: Option<sparse::Cursor>,
    /// Bytes after the data up to the next header.
    padding: u64,
    done: bool,
}

/// Extended headers that wait for their entry.
#[derive(Default)]
struct Pending {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: sparse::Records,
}

impl<R: Read> Tar<R> {
    /// Starts at the first header.
    pub fn new(source: R) -> Self {
        Tar { source, offset: 0, data: 0, sparse: None, padding: 0, done: false }
    }

    /// The stream, at the place up to which it was read.
    pub fn into_inner(self) -> R {
        self.source
    }

    /// The next entry, or `None` at the end of the archive. What was not read of the last entry is skipped.
    ///
    /// # Errors
    /// `InvalidData` for what is no tar, `Unsupported` for parts of multi-volume archives and sparse files of unknown
    /// formats, `UnexpectedEof` for a cut one, and whatever the source says.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut pending = Pending::default();
        let mut room = EXTENSION_MAX;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(field(&header, 124, 12)).and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| self.bad("a size is malformed"))?;
            let kind = match header.get(156) {
                Some(b'x' | b'X') => {
                    let records = self.extension(size, &mut room)?;
                    self.pax(&records, &mut pending)?;
                    continue;
                }
                Some(b'L') => {
                    pending.path = Some(until_nul(&self.extension(size, &mut room)?).to_vec());
                    continue;
                }
                Some(b'K') => {
                    pending.link = Some(until_nul(&self.extension(size, &mut room)?).to_vec());
                    continue;
                }
                // Global headers hold comments in practice, and docker ignores them; a volume label has no content.
                Some(b'g' | b'V') => {
                    self.extension(size, &mut room)?;
                    continue;
                }
                Some(b'0' | b'7' | b'S' | 0) => Kind::File,
                Some(b'1') => Kind::HardLink,
                Some(b'2') => Kind::Symlink,
                Some(b'3') => Kind::CharDevice,
                Some(b'4') => Kind::BlockDevice,
                Some(b'5') => Kind::Directory,
                Some(b'6') => Kind::Fifo,
                Some(b'M') => return Err(unsupported("a multi-volume archive is not supported")),
                _ => return Err(self.bad("an entry has an unknown type")),
            };
            return self.entry(&header, kind, size, pending).map(Some);
        }
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        kind: Kind,
        size: u64,
        mut pending: Pending,
    ) -> io::Result<Entry> {
        // Only files have data; the size of a hard link is that of its target.
        let stored = if kind == Kind::File { pending.size.unwrap_or(size) } else { 0 };
        let name = pending.sparse.name.take();
        let sparse = self.begin(header, kind, stored, pending.sparse)?;
        let (size, map) = sparse.map_or((stored, None), |(size, map)| (size, Some(map)));
        let id = |at, length| number(field(header, at, length)).and_then(|id| u32::try_from(id).ok());
        let or = |given: Option<u32>, at, length, why| {
            given.or_else(|| id(at, length)).ok_or_else(|| self.bad(why))
        };
        let path = name.or(pending.path).unwrap_or_else(|| short_path(header));
        // V7 had no type for directories.
        let kind = if kind == Kind::File && path.ends_with(b"/") { Kind::Directory } else { kind };
        if kind != Kind::File && map.is_some() {
            return Err(self.bad_map("only a file has one"));
        }
        let mode = number(field(header, 100, 8)).ok_or_else(|| self.bad("a mode is malformed"))?;
        let uid = or(pending.uid, 108, 8, "a user id is malformed")?;
        let gid = or(pending.gid, 116, 8, "a group id is malformed")?;
        let mtime = match pending.mtime {
            Some(mtime) => mtime,
            None => (number(field(header, 136, 12)).ok_or_else(|| self.bad("a time is malformed"))?, 0),
        };
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                let part = |at| id(at, 8).ok_or_else(|| self.bad("a device number is malformed"));
                (part(329)?, part(337)?)
            }
            _ => (0, 0),
        };
        self.sparse = map.clone().map(|map| sparse::Cursor::new(map, size));
        Ok(Entry {
            path,
            kind,
            mode: (mode & 0o7777) as u16,
            uid,
            gid,
            size: if kind == Kind::File { size } else { 0 },
            map,
            mtime,
            link: pending.link.unwrap_or_else(|| until_nul(field(header, 157, 100)).to_vec()),
            xattrs: pending.xattrs,
            device,
            data_offset: self.offset,
        })
    }

    /// The next header block, its checksum verified; `None` at the end mark or at the end of the stream.
    fn header(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        if self.done {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        if !self.block(&mut block)? {
            self.done = true;
            return Ok(None);
        }
        if block.iter().all(|byte| *byte == 0) {
            self.done = true;
            // The mark is two such blocks; some writers leave the second out.
            if self.block(&mut block)? && block.iter().any(|byte| *byte != 0) {
                return Err(self.bad("one empty block stands between entries"));
            }
            return Ok(None);
        }
        let stated = number(field(&block, 148, 8));
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        if stated != Some(unsigned) && stated != Some(signed) {
            return Err(self.bad("a header's checksum is wrong"));
        }
        Ok(Some(block))
    }

    /// Fills a block; `false` at a clean end of the stream.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> io::Result<bool> {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.source.read(rest) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(self.cut()),
                Ok(n) => {
                    filled += n;
                    self.offset += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// The content of an extended header; `room` is what those of one entry may have.
    fn extension(&mut self, size: u64, room: &mut u64) -> io::Result<Vec<u8>> {
        *room = room
            .checked_sub(size)
            .ok_or_else(|| self.bad("the extended headers of an entry are larger than 1 MiB"))?;
        self.data = size;
        self.padding = padding(size);
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        self.read_to_end(&mut content)?;
        Ok(content)
    }

    /// Records of the form `LENGTH KEY=VALUE\n`, where the length counts the whole record.
    fn pax(&self, mut records: &[u8], pending: &mut Pending) -> io::Result<()> {
        let bad = || self.bad("a pax record is malformed");
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length = decimal(records.get(..space).unwrap_or_default()).ok_or_else(bad)?;
            let length = usize::try_from(length).map_err(|_| bad())?;
            let record = records
                .get(space + 1..length)
                .and_then(|record| record.strip_suffix(b"\n"))
                .ok_or_else(bad)?;
            records = records.get(length..).unwrap_or_default();
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = record.split_at(equals);
            let value = value.get(1..).unwrap_or_default();
            let id = || decimal(value).and_then(|id| u32::try_from(id).ok()).ok_or_else(bad);
            match key {
                // An empty value takes the record back.
                b"path" => pending.path = (!value.is_empty()).then(|| value.to_vec()),
                b"linkpath" => pending.link = (!value.is_empty()).then(|| value.to_vec()),
                _ if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") => {}
                b"size" => pending.size = Some(decimal(value).ok_or_else(bad)?),
                b"uid" => pending.uid = Some(id()?),
                b"gid" => pending.gid = Some(id()?),
                b"mtime" => pending.mtime = Some(time(value).ok_or_else(bad)?),
                _ => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        pending.sparse.take(key, value).ok_or_else(bad)?;
                    } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        pending.xattrs.retain(|(known, _)| known != name);
                        pending.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let mut rest = self.data.saturating_add(self.padding);
        (self.data, self.padding, self.sparse) = (0, 0, None);
        let mut sink = [0; 16 * 1024];
        while rest > 0 {
            let want = usize::try_from(rest).unwrap_or(sink.len()).min(sink.len());
            match self.source.read(sink.get_mut(..want).unwrap_or_default()) {
                Ok(0) => return Err(self.cut()),
                Ok(n) => {
                    rest -= n as u64;
                    self.offset += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn bad(&self, why: &str) -> io::Error {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("malformed tar: {why} (before byte {})", self.offset),
        )
    }

    fn cut(&self) -> io::Error {
        io::Error::new(io::ErrorKind::UnexpectedEof, format!("the tar is cut off at byte {}", self.offset))
    }
}

impl<R: Read> Read for Tar<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let next = self.sparse.as_mut().map_or(Next::Data(self.data), sparse::Cursor::next);
        let (Next::Data(left) | Next::Zeros(left)) = next;
        let want = usize::try_from(left).unwrap_or(buf.len()).min(buf.len());
        let buf = buf.get_mut(..want).unwrap_or_default();
        if buf.is_empty() {
            return Ok(0);
        }
        let n = match next {
            Next::Zeros(_) => {
                buf.fill(0);
                want
            }
            Next::Data(_) => match self.source.read(buf)? {
                0 => return Err(self.cut()),
                n => n,
            },
        };
        if let Next::Data(_) = next {
            self.data -= n as u64;
            self.offset += n as u64;
        }
        if let Some(sparse) = &mut self.sparse {
            sparse.advance(n);
        }
        Ok(n)
    }
}

fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what.to_owned())
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn field(header: &[u8; BLOCK], at: usize, length: usize) -> &[u8] {
    header.get(at..at + length).unwrap_or_default()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Name and, where the format has one, prefix.
fn short_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(field(header, 0, 100));
    let prefix = match field(header, 257, 6) {
        // star keeps times behind a shorter prefix.
        b"ustar\0" if field(header, 508, 4) == b"tar\0" => field(header, 345, 131),
        b"ustar\0" => field(header, 345, 155),
        _ => b"",
    };
    match until_nul(prefix) {
        b"" => name.to_vec(),
        prefix => [prefix, b"/", name].concat(),
    }
}

/// Octal digits with blanks around, or base-256 with the highest bit set. An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement; the highest bit is the mark, the one below it the sign.
        let start = if first & 0x40 != 0 { -1i128 } else { 0 };
        let mut value = start << 6 | i128::from(first & 0x3f);
        for byte in field.get(1..)? {
            value = value.checked_mul(256)? | i128::from(*byte);
        }
        return i64::try_from(value).ok();
    }
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim_matches(' ');
    if text.is_empty() { Some(0) } else { i64::from_str_radix(text, 8).ok().filter(|value| *value >= 0) }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`; digits below the nanosecond are cut off.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0u32;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for at in 0..9 {
            nanos = nanos * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'));
        }
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
