use super::super::Entry;
use super::super::tests::{header, pax, sum, with_data};
use super::*;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// What GNU tar calls its formats of sparse files.
const FORMATS: [&[&str]; 5] = [
    &["--format=gnu"],
    &["--format=oldgnu"],
    &["--format=posix", "--sparse-version=0.0"],
    &["--format=posix", "--sparse-version=0.1"],
    &["--format=posix", "--sparse-version=1.0"],
];

/// Places and sizes.
type Pieces<'a> = &'a [(u64, u64)];

fn gnu_tar(dir: &Path, format: &[&str], names: &[&str]) -> Vec<u8> {
    let mut tar = Command::new("tar");
    // By content, so that the pieces do not depend on the file system's blocks.
    tar.arg("-C").arg(dir).args(["--sparse", "--hole-detection=raw", "-cf", "-"]).args(format).args(names);
    let done = tar.stderr(Stdio::inherit()).output().unwrap();
    assert!(done.status.success());
    done.stdout
}

fn entries(bytes: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
    let mut tar = Tar::new(bytes);
    let mut out = Vec::new();
    while let Some(entry) = tar.next_entry()? {
        let mut data = Vec::new();
        tar.by_ref().take(2 << 20).read_to_end(&mut data)?;
        out.push((entry, data));
    }
    Ok(out)
}

/// A file whose pieces of data have these places and lengths.
fn content(size: usize, pieces: &[(usize, usize)]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (at, length) in pieces {
        for (number, byte) in bytes[*at..at + length].iter_mut().enumerate() {
            *byte = (number % 251) as u8 + 1;
        }
    }
    bytes
}

#[test]
fn what_gnu_tar_stores_sparsely_comes_out_whole_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let many: Vec<_> = (0..60).map(|number| (number * 8192 + 512, 700)).collect();
    let long = "l".repeat(150);
    let files = [
        ("middle", content(1 << 20, &[(0, 1000), (700_000, 348_576)])),
        ("start", content(100_001, &[(99_000, 1001)])),
        ("end", content(100_001, &[(0, 3)])),
        ("empty", content(1 << 20, &[])),
        ("many", content(600_000, &many)),
        (long.as_str(), content(50_000, &[(20_000, 10)])),
        ("dense", content(5000, &[(0, 5000)])),
    ];
    for (name, bytes) in &files {
        // With holes of the file system's own, for GNU tar looks no further at a file that takes its whole size.
        let file = std::fs::File::create(dir.path().join(name)).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (number, block) in bytes.chunks(4096).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, number as u64 * 4096).unwrap();
            }
        }
    }
    for format in FORMATS {
        let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
        let tar = gnu_tar(dir.path(), format, &names);
        assert!(tar.len() < 600_000, "{format:?}: nothing was left out");
        let found = entries(&tar).unwrap();
        assert_eq!(found.len(), files.len());
        for ((entry, data), (name, bytes)) in found.iter().zip(&files) {
            assert_eq!(entry.path, name.as_bytes(), "{format:?}");
            assert_eq!((entry.size, entry.map.is_some()), (bytes.len() as u64, *name != "dense"), "{name}");
            assert!(data == bytes, "{format:?}: {name} is another");
            let Some(map) = &entry.map else { continue };
            let mut from = entry.data_offset as usize;
            for piece in map.pieces() {
                let (at, size) = (piece.at as usize, piece.size as usize);
                assert_eq!(tar[from..from + size], bytes[at..at + size], "the offset is wrong");
                from += size;
            }
        }
        // What is not read of one entry is passed over, whatever its map says.
        let mut reader = Tar::new(tar.as_slice());
        let mut paths = 0;
        while let Some(entry) = reader.next_entry().unwrap() {
            let mut some = vec![0; (entry.size / 3) as usize];
            reader.read_exact(&mut some).unwrap();
            paths += 1;
        }
        assert_eq!(paths, files.len());
        // Cut anywhere but at an entry's end it is an error or ends early, and never panics.
        for length in (0..tar.len()).step_by(4001) {
            let mut cut = Tar::new(&tar[..length]);
            while let Ok(Some(_)) = cut.next_entry() {}
        }
    }
}

/// An old header of type `S`, with up to four pieces; then blocks of extensions.
fn old(size: u64, stored: u64, pieces: &[(u64, u64)]) -> Vec<u8> {
    let mut block = header(b"f", b'S', stored);
    block[257..265].copy_from_slice(b"ustar  \0");
    block[483] = 0x80;
    block[487..495].copy_from_slice(&size.to_be_bytes());
    let (first, rest) = pieces.split_at(pieces.len().min(4));
    table(&mut block[386..], first);
    block[482] = (!rest.is_empty()).into();
    sum(&mut block);
    let mut out = block.to_vec();
    let mut chunks = rest.chunks(21).peekable();
    while let Some(chunk) = chunks.next() {
        let mut block = [0; BLOCK];
        table(&mut block, chunk);
        block[504] = chunks.peek().is_some().into();
        out.extend(block);
    }
    out
}

fn table(to: &mut [u8], pieces: &[(u64, u64)]) {
    for (slot, (at, size)) in to.chunks_mut(24).zip(pieces) {
        for (field, value) in slot.chunks_mut(12).zip([at, size]) {
            field[0] = 0x80;
            field[4..].copy_from_slice(&value.to_be_bytes());
        }
    }
}

/// The same in the three pax formats.
fn posix(format: usize, size: u64, stored: u64, pieces: &[(u64, u64)]) -> Vec<u8> {
    let size = size.to_string().into_bytes();
    let texts: Vec<_> = pieces.iter().map(|(at, size)| (at.to_string(), size.to_string())).collect();
    let count = pieces.len().to_string();
    let mut records: Vec<(&str, &[u8])> =
        vec![("GNU.sparse.size", &size), ("GNU.sparse.numblocks", count.as_bytes())];
    let list = texts.iter().map(|(at, size)| format!("{at},{size}")).collect::<Vec<_>>().join(",");
    let lines: String = texts.iter().map(|(at, size)| format!("{at}\n{size}\n")).collect();
    let mut before = Vec::new();
    match format {
        0 => {
            for (at, size) in &texts {
                records.push(("GNU.sparse.offset", at.as_bytes()));
                records.push(("GNU.sparse.numbytes", size.as_bytes()));
            }
        }
        1 => records.push(("GNU.sparse.map", list.as_bytes())),
        _ => {
            records =
                vec![("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", &size)];
            before = format!("{count}\n{lines}").into_bytes();
            before.resize(before.len().next_multiple_of(BLOCK), 0);
        }
    }
    let mut out = pax(&records);
    out.extend(header(b"f", b'0', stored + before.len() as u64));
    out.extend(before);
    out
}

/// One archive in each format: the file, and one that follows.
fn every(size: u64, stored: u64, pieces: &[(u64, u64)]) -> Vec<Vec<u8>> {
    let heads = [
        old(size, stored, pieces),
        posix(0, size, stored, pieces),
        posix(1, size, stored, pieces),
        posix(2, size, stored, pieces),
    ];
    let after = |mut tar: Vec<u8>| {
        tar.extend(vec![7; stored.min(1 << 20) as usize]);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
        tar.extend(with_data(header(b"next", b'0', 1), b"n"));
        tar
    };
    heads.into_iter().map(after).collect()
}

#[test]
fn a_map_is_read_in_every_format_with_pieces_of_all_sizes() {
    let many: Vec<_> = (0..100).map(|number| (number * 1000, 9)).collect();
    let cases: [(u64, u64, Pieces<'_>); 4] = [
        (20, 5, &[(3, 2), (5, 0), (5, 3), (20, 0)]),
        (100_000, 900, &many),
        (1 << 40, 0, &[(1 << 40, 0)]),
        (8, 8, &[(0, 8)]),
    ];
    for (size, stored, pieces) in cases {
        for (format, tar) in every(size, stored, pieces).iter().enumerate() {
            let found = entries(tar).unwrap();
            let (entry, data) = &found[0];
            assert_eq!((found.len(), entry.size), (2, size), "format {format}");
            let seven = data.iter().filter(|byte| **byte == 7).count() as u64;
            assert_eq!(seven, stored, "format {format}");
            for (at, size) in pieces {
                let (at, size) = (*at as usize, *size as usize);
                assert!(size == 0 || data[at..at + size].iter().all(|byte| *byte == 7), "format {format}");
            }
            assert_eq!(found[1].1, b"n");
        }
    }
}

#[test]
fn a_map_that_lies_is_refused_in_every_format() {
    let huge = u64::MAX >> 1;
    let cases: [(&str, u64, u64, Pieces<'_>); 8] = [
        ("overlap", 100, 20, &[(0, 10), (9, 10)]),
        ("not in order", 100, 20, &[(50, 10), (0, 10)]),
        ("behind the file", 100, 20, &[(0, 10), (95, 10)]),
        ("behind the file", 100, 0, &[(101, 0)]),
        ("behind the file", huge, 512, &[(huge, huge)]),
        ("another number", 100, 20, &[(0, 10)]),
        ("another number", 100, 5, &[(0, 10)]),
        ("another number", huge, 512, &[(0, huge)]),
    ];
    for (why, size, stored, pieces) in cases {
        for (format, tar) in every(size, stored, pieces).iter().enumerate() {
            let error = entries(tar).unwrap_err().to_string();
            let whole =
                error.contains("malformed tar: the map of a sparse file is wrong: ") && error.contains(why);
            assert!(whole, "format {format}, {why}: {error}");
        }
    }
}

#[test]
fn malformed_maps_are_refused_one_by_one() {
    let file = |stored: u64| with_data(header(b"f", b'0', stored), &vec![b'1'; stored as usize]);
    let records = |records: &[(&str, &[u8])], stored| [pax(records), file(stored)].concat();
    let one = |body: &[u8]| {
        let head =
            pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"99")]);
        [head, with_data(header(b"f", b'0', body.len() as u64), body)].concat()
    };
    let mut star = header(b"f", b'S', 0);
    sum(&mut star);
    let mut link = posix(1, 8, 0, &[]);
    link = [link[..BLOCK * 2].to_vec(), header(b"f", b'2', 0).to_vec()].concat();
    let mut both = posix(1, 8, 8, &[(0, 8)])[..BLOCK * 2].to_vec();
    both.extend(old(8, 8, &[(0, 8)]));
    let mut endless = old(8, 0, &[(0, 0); 5]);
    endless[BLOCK + 504] = 1;
    let directory =
        [posix(1, 8, 0, &[(8, 0)])[..BLOCK * 2].to_vec(), header(b"d/", b'0', 0).to_vec()].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("size of the file is missing", records(&[("GNU.sparse.map", b"0,1")], 1)),
        ("it is missing", records(&[("GNU.sparse.size", b"1")], 1)),
        (
            "too few or too many",
            records(
                &[("GNU.sparse.size", b"9"), ("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", b"0,1")],
                1,
            ),
        ),
        (
            "too few or too many",
            records(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,1"), ("GNU.sparse.offset", b"3")], 1),
        ),
        ("pax record", records(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,1,2")], 1)),
        ("pax record", records(&[("GNU.sparse.size", b"-9")], 1)),
        ("pax record", records(&[("GNU.sparse.numbytes", b"9")], 1)),
        ("pax record", records(&[("GNU.sparse.future", b"9")], 1)),
        ("format 2.0 is not supported", records(&[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"9")], 1)),
        (
            "format 0.2 is not supported",
            records(
                &[
                    ("GNU.sparse.major", b"0"),
                    ("GNU.sparse.minor", b"2"),
                    ("GNU.sparse.size", b"9"),
                    ("GNU.sparse.map", b"0,1"),
                ],
                1,
            ),
        ),
        ("longer than the data", one(b"1\n0\n")),
        ("longer than the data", one(&[b'0'; 1024])),
        ("too large", one(&[b'9'; 1024])),
        ("decimal numbers", one(&[b'\n'; 512])),
        ("decimal numbers", one(&with_data([b' '; BLOCK], b"")[..])),
        (
            "too few or too many",
            one(&with_data(header(b"", b'0', 0), b"")
                .iter()
                .enumerate()
                .map(|(at, _)| *b"9999999\n".get(at).unwrap_or(&0))
                .collect::<Vec<_>>()),
        ),
        ("not GNU tar's", star.to_vec()),
        ("only a file", link),
        ("only a file", directory),
        ("there are two", both),
        ("is cut off", endless),
    ];
    for (number, (why, tar)) in cases.iter().enumerate() {
        let error = entries(tar).unwrap_err().to_string();
        assert!(error.contains(why), "case {number}, {why}: {error}");
    }
}

#[test]
fn a_map_has_a_bounded_number_of_pieces() {
    let pieces: Vec<_> = (0..PIECES_MAX as u64 + 1).map(|number| (number, 0)).collect();
    for pieces in [&pieces[1..], &pieces] {
        let found = entries(&old(1 << 30, 0, pieces));
        assert_eq!(found.is_ok(), pieces.len() == PIECES_MAX, "old, {}", pieces.len());
        let found = entries(&posix(2, 1 << 30, 0, pieces));
        assert_eq!(found.is_ok(), pieces.len() == PIECES_MAX, "1.0, {}", pieces.len());
    }
}
