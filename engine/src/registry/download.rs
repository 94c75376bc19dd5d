//! Blobs in: resumed where they were cut, and checked before they are called whole.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::Error;
use super::client::Repository;
use super::http::Call;
use super::retry::Trouble;
use crate::Result;
use crate::image::{Digest, Hashing};

/// Bytes read at a time.
const CHUNK: usize = 128 * 1024;
/// So many new bytes make an attempt one that brought something.
const PROGRESS: u64 = 64 * 1024;

/// A blob as a manifest describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// A file that becomes a blob; what is in it already is the blob's beginning.
pub struct Target {
    file: File,
    path: PathBuf,
    hash: Hashing<io::Sink>,
    /// Attempts, and earlier processes, that brought bytes of it.
    pieces: u32,
}

impl Target {
    /// Reads what is there.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn new(file: File, path: PathBuf) -> Result<Self> {
        let mut target = Target { file, path, hash: Hashing::new(io::sink()), pieces: 0 };
        let mut from = &target.file;
        let hashed = from.seek(SeekFrom::Start(0)).and_then(|_| io::copy(&mut from, &mut target.hash));
        hashed.map_err(|source| crate::Error::io("read", &target.path, source))?;
        target.pieces = u32::from(!target.is_empty());
        Ok(target)
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.hash.count()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        let fail = |source| crate::Error::io("write", &self.path, source);
        self.file.write_all(bytes).map_err(fail)?;
        self.hash.write_all(bytes).map_err(fail)
    }

    fn empty(&mut self) -> Result<()> {
        let done = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        done.map_err(|source| crate::Error::io("empty", &self.path, source))?;
        self.hash = Hashing::new(io::sink());
        self.pieces = 0;
        Ok(())
    }

    /// The digest of a whole file; the hash starts anew.
    fn digest(&mut self) -> Digest {
        std::mem::replace(&mut self.hash, Hashing::new(io::sink())).finish().1
    }
}

impl Repository<'_> {
    /// Brings a blob whole into a file. `told` hears how many bytes there are, and why an attempt failed that is followed by
    /// another one.
    ///
    /// # Errors
    /// Those of [`Error`]; [`crate::Error::WrongSize`] and [`crate::Error::WrongDigest`] for a blob that is another one, which
    /// leaves the file empty.
    pub fn blob(
        &self,
        blob: &Descriptor,
        target: &mut Target,
        told: &mut dyn FnMut(u64, Option<&str>),
    ) -> Result<()> {
        let what = || format!("blob {} of {}", blob.digest, self.name());
        let mut attempts = self.attempts();
        let mut again = true;
        loop {
            let before = target.len();
            let trouble = if before == blob.size {
                let pieces = target.pieces;
                let found = target.digest();
                if found == blob.digest {
                    return Ok(());
                }
                target.empty()?;
                // One whole answer that is wrong will be wrong again. Pieces may not have belonged together.
                if pieces < 2 || !std::mem::take(&mut again) {
                    return Err(crate::Error::WrongDigest { what: what(), expected: blob.digest, found });
                }
                Trouble::passing("its pieces do not belong together")
            } else {
                match self.piece(blob, target, &what, told) {
                    Ok(()) => continue,
                    Err(trouble) => trouble,
                }
            };
            if let Trouble::Final(crate::Error::WrongSize { .. }) = &trouble {
                target.empty()?;
            }
            let len = target.len();
            if len >= before + PROGRESS {
                attempts.progress();
            }
            attempts.next(&what, trouble, &mut |why| told(len, Some(why)))?;
        }
    }

    /// One request, for all that is missing.
    fn piece(
        &self,
        blob: &Descriptor,
        target: &mut Target,
        what: &dyn Fn() -> String,
        told: &mut dyn FnMut(u64, Option<&str>),
    ) -> Result<(), Trouble> {
        let at = target.len();
        let url = self.url(&format!("blobs/{}", blob.digest))?;
        let mut headers = Vec::new();
        if at > 0 {
            headers.push(("range", format!("bytes={at}-")));
        }
        let answer = self.call(&Call::get(&url, &headers), what)?;
        if answer.status == 416 {
            target.empty()?;
            return Err(Trouble::passing("the registry does not know the rest of it"));
        }
        let answer = self.expect(answer, &[200, 206], what)?;
        let wrong_size = |found| image_size(what(), blob.size, found);
        // Bytes of the answer that are here already.
        let mut skip = at;
        if answer.status == 206 {
            let (start, total) = answer
                .header("content-range")
                .and_then(content_range)
                .ok_or_else(|| Error::Malformed { what: what(), why: "a part without its place".into() })?;
            if start > at {
                return Err(Trouble::passing("the registry gave another part than was asked for"));
            }
            if let Some(total) = total.filter(|total| *total != blob.size) {
                return Err(wrong_size(total).into());
            }
            skip = at - start;
        } else if let Some(length) = answer.header("content-length").and_then(|text| text.parse().ok())
            && length != blob.size
        {
            return Err(wrong_size(length).into());
        }
        let mut reader = answer.body.into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; CHUNK];
        let mut counted = false;
        loop {
            if self.cancel.is_ended() {
                return Err(Error::Cancelled.into());
            }
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let why = format!("cut after {} of {} bytes: {error}", target.len(), blob.size);
                    return Err(Trouble::passing(why));
                }
            };
            let skipped = skip.min(count as u64);
            skip -= skipped;
            let new = buffer.get(skipped as usize..count).unwrap_or_default();
            let len = target.len() + new.len() as u64;
            if len > blob.size {
                return Err(wrong_size(len).into());
            }
            if !new.is_empty() {
                target.pieces += u32::from(!std::mem::replace(&mut counted, true));
                target.add(new)?;
                told(len, None);
            }
        }
        if target.len() < blob.size {
            return Err(Trouble::passing(format!("cut after {} of {} bytes", target.len(), blob.size)));
        }
        Ok(())
    }
}

fn image_size(what: String, expected: u64, found: u64) -> crate::Error {
    crate::Error::WrongSize { what, expected, found }
}

/// `bytes 10-99/100`: where the part begins, and the size of the whole, which may be unknown (RFC 9110, 14.4).
fn content_range(header: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = header.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = if total.trim() == "*" { None } else { Some(total.trim().parse().ok()?) };
    Some((start.trim().parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_say_where_they_are() {
        assert_eq!(content_range("bytes 10-99/100"), Some((10, Some(100))));
        assert_eq!(content_range("bytes 0-9/*"), Some((0, None)));
        for bad in ["", "bytes", "bytes */100", "bytes 1-2", "items 1-2/3", "bytes x-2/3", "bytes 1-2/x"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_target_goes_on_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"abc").unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut target = Target::new(file, path.clone()).unwrap();
        assert_eq!(target.len(), 3);
        target.add(b"def").unwrap();
        assert_eq!(target.digest(), Digest::of(b"abcdef"));
        assert_eq!(std::fs::read(&path).unwrap(), b"abcdef");
        target.empty().unwrap();
        target.add(b"x").unwrap();
        assert_eq!((target.digest(), std::fs::read(&path).unwrap()), (Digest::of(b"x"), b"x".to_vec()));
    }
}
