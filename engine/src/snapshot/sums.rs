//! The checksums of a snapshot's files, as a text file among them.
//!
//! ```text
//! servin-snapshot 1
//! NAME LENGTH CRC-32        a line for each file, by name
//! end CRC-32                of everything above
//! ```
//! Of a file the pieces of 64 KiB that are not all zero count, each with its place: so a copy that has other holes has the
//! same sum. It is against damage, not against forgers: who can write a snapshot can write its sums.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

use crate::{Error, Result};

/// The file of the sums.
pub(super) const NAME: &str = "sums";
/// Version of all of a snapshot's directory; the files have versions of their own besides.
const FORMAT: &str = "servin-snapshot 1";
const PIECE: u64 = 64 << 10;
/// A file of sums is shorter.
const LONGEST: u64 = 64 << 10;

/// Writes the sums of every file in the directory.
pub(super) fn write(dir: &Path) -> Result<()> {
    let mut text = format!("{FORMAT}\n");
    for (name, (length, crc)) in all(dir).map_err(|source| Error::io("read", dir, source))? {
        let _ = writeln!(text, "{name} {length} {crc:08x}");
    }
    let _ = writeln!(text, "end {:08x}", crc32fast::hash(text.as_bytes()));
    let path = dir.join(NAME);
    fs::write(&path, text).map_err(|source| Error::io("write", &path, source))
}

/// The sum of the sums: that of every byte of the snapshot, if [`check`] finds it whole.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn own(dir: &Path) -> Result<String, String> {
    let path = dir.join(NAME);
    let text =
        fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let last = text.lines().next_back().and_then(|line| line.strip_prefix("end "));
    last.map(str::to_owned).ok_or_else(|| format!("{} is damaged", path.display()))
}

/// Whether the directory holds the files that were written, and no others.
///
/// # Errors
/// What is wrong, for people.
pub(super) fn check(dir: &Path) -> Result<(), String> {
    let path = dir.join(NAME);
    let read = |error: io::Error| format!("cannot read {}: {error}", path.display());
    if fs::metadata(&path).map_err(read)?.len() > LONGEST {
        return Err(format!("{} is too long", path.display()));
    }
    let text = fs::read_to_string(&path).map_err(read)?;
    let damaged = || format!("{} is damaged", path.display());
    match text.lines().next() {
        Some(FORMAT) => {}
        Some(other) if other.starts_with("servin-snapshot ") => {
            return Err(format!("its format is \"{other}\", and this servin knows \"{FORMAT}\""));
        }
        _ => return Err(damaged()),
    }
    let end = text.rfind("end ").ok_or_else(damaged)?;
    let (body, last) = text.split_at(end);
    if last != format!("end {:08x}\n", crc32fast::hash(body.as_bytes())) {
        return Err(damaged());
    }
    let mut promised = BTreeMap::new();
    for line in body.lines().skip(1) {
        let mut words = line.split(' ');
        let (Some(name), Some(length), Some(crc), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(damaged());
        };
        let length: u64 = length.parse().map_err(|_| damaged())?;
        let crc = u32::from_str_radix(crc, 16).map_err(|_| damaged())?;
        promised.insert(name.to_owned(), (length, crc));
    }
    let found = all(dir).map_err(|error| format!("cannot read {}: {error}", dir.display()))?;
    for (name, (length, crc)) in &promised {
        match found.get(name) {
            None => return Err(format!("its file {name} is missing")),
            Some((other, _)) if other != length => {
                return Err(format!("its file {name} has {other} bytes instead of {length}"));
            }
            Some((_, other)) if other != crc => {
                return Err(format!("its file {name} is damaged: it has another checksum"));
            }
            Some(_) => {}
        }
    }
    match found.keys().find(|name| !promised.contains_key(*name)) {
        Some(name) => Err(format!("it has a file {name} that does not belong to it")),
        None => Ok(()),
    }
}

/// Length and sum of each file but that of the sums.
fn all(dir: &Path) -> io::Result<BTreeMap<String, (u64, u32)>> {
    let mut sums = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != NAME {
            sums.insert(name, sum(&File::open(entry.path())?)?);
        }
    }
    Ok(sums)
}

fn sum(file: &File) -> io::Result<(u64, u32)> {
    let length = file.metadata()?.len();
    let mut crc = crc32fast::Hasher::new();
    let zeroes = vec![0; usize::try_from(PIECE).unwrap_or_default()];
    let mut buffer = zeroes.clone();
    let mut at = 0;
    while at < length {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Behind the last data.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = at.max(data - data % PIECE);
        let most = usize::try_from((length - at).min(PIECE)).unwrap_or_default();
        let piece = buffer.get_mut(..most).unwrap_or_default();
        file.read_exact_at(piece, at)?;
        if zeroes.get(..most) != Some(&*piece) {
            crc.update(&at.to_le_bytes());
            crc.update(piece);
        }
        at += PIECE;
    }
    Ok((length, crc.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("about.json"), "{}").unwrap();
        let memory = File::create(dir.path().join("memory")).unwrap();
        memory.set_len(10 << 20).unwrap();
        memory.write_all_at(b"here", (5 << 20) + 70_000).unwrap();
        write(dir.path()).unwrap();
        dir
    }

    #[test]
    fn every_altered_byte_and_every_cut_is_noticed() {
        let dir = made();
        check(dir.path()).unwrap();
        for (name, at) in [("about.json", 1), ("memory", (5 << 20) + 70_001), ("memory", 3), (NAME, 20)] {
            let path = dir.path().join(name);
            let file = File::options().read(true).write(true).open(&path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            let why = check(dir.path()).unwrap_err();
            assert!(why.contains(name) && why.contains("damaged"), "{why}");
            file.write_all_at(&byte, at).unwrap();
            check(dir.path()).unwrap();
            let length = file.metadata().unwrap().len();
            file.set_len(length - 1).unwrap();
            assert!(check(dir.path()).is_err(), "{name} cut");
            file.set_len(length).unwrap();
            file.write_all_at(&[if name == "memory" { 0 } else { b'\n' }], length - 1).unwrap();
            if name == "about.json" {
                fs::write(&path, "{}").unwrap();
            }
            check(dir.path()).unwrap();
        }
    }

    #[test]
    fn files_that_are_missing_or_strange_and_other_formats_are_refused() {
        let dir = made();
        fs::write(dir.path().join("more"), "").unwrap();
        assert!(check(dir.path()).unwrap_err().contains("more"));
        fs::remove_file(dir.path().join("more")).unwrap();
        fs::remove_file(dir.path().join("about.json")).unwrap();
        assert!(check(dir.path()).unwrap_err().contains("about.json is missing"));
        fs::write(dir.path().join(NAME), "servin-snapshot 2\nend 00000000\n").unwrap();
        assert!(check(dir.path()).unwrap_err().contains("servin-snapshot 2"));
    }

    #[test]
    fn a_copy_without_holes_has_the_same_sums() {
        let dir = made();
        let path = dir.path().join("memory");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        check(dir.path()).unwrap();
    }
}
