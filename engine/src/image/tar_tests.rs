use super::*;
use std::process::{Command, Stdio};

/// A header with everything octal, the checksum right.
pub(super) fn header(name: &[u8], kind: u8, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0001750");
    block[116..123].copy_from_slice(b"0001751");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000012");
    block[156] = kind;
    block[257..263].copy_from_slice(b"ustar\0");
    block[263..265].copy_from_slice(b"00");
    sum(&mut block);
    block
}

pub(super) fn sum(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub(super) fn with_data(header: [u8; BLOCK], data: &[u8]) -> Vec<u8> {
    let mut out = header.to_vec();
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

pub(super) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        body.extend_from_slice(format!("{length} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    with_data(header(b"pax", b'x', body.len() as u64), &body)
}

fn entries(bytes: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
    let mut tar = Tar::new(bytes);
    let mut out = Vec::new();
    while let Some(entry) = tar.next_entry()? {
        let mut data = Vec::new();
        tar.read_to_end(&mut data)?;
        assert_eq!(&bytes[entry.data_offset as usize..][..data.len()], data, "the offset is wrong");
        out.push((entry, data));
    }
    Ok(out)
}

#[test]
fn what_gnu_tar_writes_in_every_format_comes_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let middle = format!("{}/{}", "p".repeat(90), "n".repeat(90));
    for name in [&long, &middle] {
        std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.path().join(name), name.as_bytes()).unwrap();
    }
    std::os::unix::fs::symlink(&long, dir.path().join("link")).unwrap();
    for format in ["gnu", "posix", "oldgnu"] {
        let mut tar = gnu_tar(dir.path(), format, &["link", &middle, &long]);
        let found = entries(&tar).unwrap();
        let paths: Vec<_> = found.iter().map(|(entry, _)| entry.path.clone()).collect();
        assert_eq!(
            paths,
            [b"link".to_vec(), middle.clone().into_bytes(), long.clone().into_bytes()],
            "{format}"
        );
        assert_eq!(found[0].0.link, long.as_bytes());
        assert_eq!(found[1].1, middle.as_bytes());
        assert_eq!(found[2].1, long.as_bytes());
        // Cut anywhere but at an entry's end it is an error or ends early, and never panics.
        for length in (0..tar.len()).step_by(97) {
            let _ = entries(&tar[..length]);
        }
        tar[5] ^= 1;
        assert!(entries(&tar).is_err(), "a wrong checksum was accepted");
    }
    let found = entries(&gnu_tar(dir.path(), "ustar", &[&middle])).unwrap();
    assert_eq!(found[0].0.path, middle.as_bytes(), "the ustar prefix was lost");
}

fn gnu_tar(dir: &std::path::Path, format: &str, names: &[&str]) -> Vec<u8> {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(dir).arg(format!("--format={format}")).args(["-cf", "-"]).args(names);
    let done = tar.stderr(Stdio::inherit()).output().unwrap();
    assert!(done.status.success());
    done.stdout
}

#[test]
fn pax_records_override_the_header() {
    let mut tar = pax(&[
        ("path", b"a/b"),
        ("size", b"3"),
        ("uid", b"4000000000"),
        ("gid", b"7"),
        ("mtime", b"-1.25"),
        ("comment", b"x"),
        ("SCHILY.xattr.security.capability", b"\x01=\n\0"),
        ("SCHILY.xattr.user.empty", b""),
    ]);
    tar.extend(with_data(header(b"short", b'0', 0), b"abc"));
    tar.extend(with_data(header(b"next", b'0', 1), b"n"));
    let found = entries(&tar).unwrap();
    let (entry, data) = &found[0];
    assert_eq!((entry.path.as_slice(), data.as_slice()), (&b"a/b"[..], &b"abc"[..]));
    assert_eq!((entry.uid, entry.gid, entry.mtime), (4_000_000_000, 7, (-2, 750_000_000)));
    let xattrs =
        [(b"security.capability".to_vec(), b"\x01=\n\0".to_vec()), (b"user.empty".to_vec(), Vec::new())];
    assert_eq!(entry.xattrs, xattrs);
    let (next, _) = &found[1];
    assert_eq!(
        (next.path.as_slice(), next.uid, next.mtime),
        (&b"next"[..], 0o1750, (10, 0)),
        "records leaked"
    );
}

#[test]
fn base_256_numbers_are_read() {
    let mut block = header(b"big", b'3', 0);
    block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xee, 0x6b, 0x28, 0]);
    block[136..148].copy_from_slice(&[0xff; 12]);
    block[329..336].copy_from_slice(b"0000010");
    block[337..344].copy_from_slice(b"0000377");
    sum(&mut block);
    let (entry, _) = entries(&block).unwrap().pop().unwrap();
    assert_eq!((entry.uid, entry.mtime.0, entry.device), (4_000_000_000, -1, (8, 255)));
}

#[test]
fn the_end_may_be_two_blocks_one_or_none() {
    let one = with_data(header(b"f", b'0', 1), b"x");
    for zeros in [0, 1, 2, 20] {
        let mut tar = one.clone();
        tar.resize(tar.len() + zeros * BLOCK, 0);
        assert_eq!(entries(&tar).unwrap().len(), 1);
    }
    let mut tar = one.clone();
    tar.resize(tar.len() + BLOCK, 0);
    tar.extend(&one);
    assert!(entries(&tar).is_err());
}

#[test]
fn links_and_directories_have_no_data_whatever_their_size_says() {
    for kind in *b"123456" {
        let mut tar = header(b"x", kind, 0o777).to_vec();
        tar.extend(with_data(header(b"next", b'0', 1), b"n"));
        let found = entries(&tar).unwrap();
        assert_eq!(found.iter().map(|(entry, _)| entry.size).collect::<Vec<_>>(), [0, 1]);
    }
}

#[test]
fn hostile_headers_are_errors() {
    let huge = header(b"x", b'x', 1 << 30);
    let mut negative = header(b"x", b'0', 0);
    negative[124..136].fill(0xff);
    sum(&mut negative);
    let mut overflow = header(b"x", b'0', 0);
    overflow[124..136]
        .copy_from_slice(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    sum(&mut overflow);
    let mut cases = vec![huge.to_vec(), negative.to_vec(), overflow.to_vec()];
    for body in [
        "0 a=b\n",
        "5 a=b\n",
        "99 a=b\n",
        "x a=b\n",
        "7 a=bc",
        "5 ab\n",
        "20 uid=99999999999\n",
        "18446744073709551615 a=\n",
    ] {
        cases.push(with_data(header(b"p", b'x', body.len() as u64), body.as_bytes()));
    }
    for kind in [b'M', b'?', b'Z'] {
        cases.push(header(b"x", kind, 0).to_vec());
    }
    cases.push(vec![1; 100]);
    cases.push(header(b"f", b'0', 1000).to_vec());
    for (number, case) in cases.iter().enumerate() {
        let mut case = case.clone();
        if number < cases.len() - 2 {
            case.extend(with_data(header(b"f", b'0', 1), b"x"));
        }
        assert!(entries(&case).is_err(), "case {number} was accepted");
    }
}

#[test]
fn the_extended_headers_of_one_entry_are_bounded_together() {
    let half = header(b"x", b'g', 1 << 19);
    let mut tar = Vec::new();
    for headers in 1..=3 {
        tar.extend(with_data(half, &vec![0; 1 << 19]));
        let mut whole = tar.clone();
        whole.extend(with_data(header(b"f", b'0', 1), b"x"));
        assert_eq!(entries(&whole).is_ok(), headers < 3, "{headers} halves");
    }
}

#[test]
fn a_volume_label_and_a_global_header_are_passed_over() {
    let mut tar = header(b"label", b'V', 0).to_vec();
    tar.extend(with_data(header(b"g", b'g', 12), b"12 uid=1234\n"));
    tar.extend(header(b"dir/", 0, 0));
    let found = entries(&tar).unwrap();
    assert_eq!((found.len(), found[0].0.kind, found[0].0.uid), (1, Kind::Directory, 0o1750));
}
