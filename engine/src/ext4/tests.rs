use std::os::unix::fs::MetadataExt;
use std::process::Command;

use super::*;

const UUID: [u8; 16] = *b"0123456789abcdef";

fn made(size: u64) -> (tempfile::NamedTempFile, u64) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes = format(file.as_file(), size, UUID, 1_700_000_000).unwrap();
    (file, bytes)
}

/// Runs e2fsprogs' program if it is there; its output, and whether it found everything right.
fn tool(name: &str, args: &[&str], file: &std::path::Path) -> Option<(bool, String)> {
    let path = ["/sbin", "/usr/sbin"].iter().map(|dir| format!("{dir}/{name}"));
    let Some(path) = path.into_iter().find(|path| std::path::Path::new(path).exists()) else {
        println!("skipped: no {name} here (package e2fsprogs)");
        return None;
    };
    let output = Command::new(path).args(args).arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Some((output.status.success(), text.into_owned()))
}

#[test]
fn e2fsck_finds_nothing_wrong_whatever_the_size_is() {
    // Less than a group, a whole one, a small last group, one that is left away, many.
    for size in [LEAST_SIZE, 100 << 20, 128 << 20, 150 << 20, (129 << 20) + 4096, 32 << 30, MOST_SIZE] {
        let (file, bytes) = made(size);
        assert!(bytes <= size && bytes > size - (4 << 20), "{size} became {bytes}");
        let Some((right, text)) = tool("e2fsck", &["-fn"], file.path()) else { return };
        assert!(right, "{size}: {text}");
    }
}

#[test]
fn an_empty_disk_takes_little_of_the_host() {
    let (file, bytes) = made(32 << 30);
    let meta = file.as_file().metadata().unwrap();
    assert_eq!(meta.len(), bytes);
    assert!(meta.blocks() * 512 <= 128 << 10, "{} bytes", meta.blocks() * 512);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for size in [0, LEAST_SIZE - 1, MOST_SIZE + 1, u64::MAX] {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(format(&file, size, UUID, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

#[test]
fn it_says_of_itself_what_it_is() {
    let (file, _) = made(1 << 30);
    let Some((_, text)) = tool("dumpe2fs", &["-h"], file.path()) else { return };
    for (name, value) in
        [("Total journal size", "16M"), ("Block count", "262144"), ("Filesystem state", "clean")]
    {
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        assert_eq!(found.map(str::trim), Some(value), "{name} in {text}");
    }
}
