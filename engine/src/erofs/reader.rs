//! A second opinion for tests: a minimal EROFS reader that shares no code with the writer.

use std::collections::BTreeMap;

/// What a path is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Found {
    pub(crate) nid: u64,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) nlink: u32,
    pub(crate) rdev: u32,
    pub(crate) data: Vec<u8>,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    pub(crate) block: u32,
    pub(crate) compact: bool,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Reads the whole image: every path below the root, `/` itself included.
pub(crate) fn read(image: &[u8]) -> BTreeMap<String, Found> {
    let sb = &image[1024..1152];
    assert_eq!(u32_at(sb, 0), 0xe0f5e1e2, "magic");
    assert_eq!(sb[12], 12, "block bits");
    assert_eq!(u32_at(sb, 36) as usize * 4096, image.len(), "blocks");
    assert_eq!(u32_at(sb, 80), 0, "an incompatible feature");
    let root = u64::from(u16_at(sb, 14));
    let mut out = BTreeMap::new();
    let mut inodes = std::collections::BTreeSet::new();
    walk(image, root, root, String::new(), &mut out, &mut inodes);
    assert_eq!(u64_at(sb, 16), inodes.len() as u64, "the number of inodes");
    out
}

fn walk(
    image: &[u8],
    nid: u64,
    parent: u64,
    path: String,
    out: &mut BTreeMap<String, Found>,
    inodes: &mut std::collections::BTreeSet<u64>,
) {
    let found = inode(image, nid);
    inodes.insert(nid);
    if found.mode & 0o170000 == 0o040000 {
        let entries = directory(&found.data);
        for (name, child, _) in entries.iter().filter(|(name, ..)| matches!(name.as_slice(), b"." | b"..")) {
            assert_eq!(*child, if name.len() == 1 { nid } else { parent }, "{path}: . or ..");
        }
        let mut subdirectories = 0;
        for (name, child, kind) in entries {
            if matches!(name.as_slice(), b"." | b"..") {
                continue;
            }
            let mode = inode(image, child).mode >> 12;
            let expected = match mode {
                0o10 => 1,
                0o04 => 2,
                0o02 => 3,
                0o06 => 4,
                0o01 => 5,
                0o12 => 7,
                other => panic!("mode {other:o}"),
            };
            assert_eq!(kind, expected, "{path}: the kind of an entry");
            subdirectories += u32::from(kind == 2);
            walk(image, child, nid, format!("{path}/{}", String::from_utf8_lossy(&name)), out, inodes);
        }
        assert_eq!(found.nlink, 2 + subdirectories, "{path}: links of a directory");
    }
    let path = if path.is_empty() { "/".into() } else { path };
    assert!(out.insert(path, found).is_none(), "a name twice");
}

fn inode(image: &[u8], nid: u64) -> Found {
    let sb = &image[1024..1152];
    let at = nid as usize * 32;
    let raw = &image[at..];
    let format = u16_at(raw, 0);
    let compact = format & 1 == 0;
    let mode = u16_at(raw, 4);
    let address = u32_at(raw, 16);
    let (size, uid, gid, nlink, mtime, head) = if compact {
        let epoch = (u64_at(sb, 24) as i64, u32_at(sb, 32));
        let (uid, gid) = (u16_at(raw, 24).into(), u16_at(raw, 26).into());
        (u64::from(u32_at(raw, 8)), uid, gid, u16_at(raw, 6).into(), epoch, 32)
    } else {
        assert_eq!(at / 4096, (at + 63) / 4096, "an inode crosses blocks");
        let mtime = (u64_at(raw, 32) as i64, u32_at(raw, 40));
        (u64_at(raw, 8), u32_at(raw, 24), u32_at(raw, 28), u32_at(raw, 44), mtime, 64)
    };
    let count = usize::from(u16_at(raw, 2));
    let xattr_size = if count == 0 { 0 } else { 12 + (count - 1) * 4 };
    let special = matches!(mode >> 12, 0o02 | 0o06 | 0o01);
    let mut data = Vec::new();
    if !special {
        let start = address as usize * 4096;
        match format >> 1 {
            0 if size > 0 => data.extend_from_slice(&image[start..][..size as usize]),
            0 => {}
            2 => {
                let (whole, tail) = (size as usize / 4096 * 4096, size as usize % 4096);
                assert!(tail > 0, "an empty inline end");
                data.extend_from_slice(&image[start..][..whole]);
                let inline = at + head + xattr_size;
                assert_eq!(inline / 4096, (inline + tail - 1) / 4096, "inline data crosses blocks");
                data.extend_from_slice(&image[inline..][..tail]);
            }
            other => panic!("layout {other}"),
        }
    }
    Found {
        nid,
        mode,
        uid,
        gid,
        mtime,
        nlink,
        rdev: if special { address } else { 0 },
        data,
        xattrs: xattrs(&raw[head..][..xattr_size]),
        block: if special { 0 } else { address },
        compact,
    }
}

fn xattrs(area: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut at = 12;
    while at < area.len() {
        let (name_len, index, value_len) = (area[at] as usize, area[at + 1], u16_at(area, at + 2) as usize);
        let prefix =
            ["", "user.", "system.posix_acl_access", "system.posix_acl_default", "trusted.", "", "security."];
        let name = String::from_utf8(area[at + 4..][..name_len].to_vec()).unwrap();
        let value = area[at + 4 + name_len..][..value_len].to_vec();
        out.insert(format!("{}{name}", prefix[usize::from(index)]), value);
        at += (4 + name_len + value_len).next_multiple_of(4);
    }
    out
}

/// Names, inode numbers and kinds; checks that the names are sorted through all blocks.
fn directory(data: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
    let mut out: Vec<(Vec<u8>, u64, u8)> = Vec::new();
    for block in data.chunks(4096) {
        let count = usize::from(u16_at(block, 8)) / 12;
        for number in 0..count {
            let entry = &block[number * 12..];
            let start = usize::from(u16_at(entry, 8));
            let end = if number + 1 < count { usize::from(u16_at(entry, 20)) } else { block.len() };
            let name: Vec<u8> = block[start..end].iter().copied().take_while(|byte| *byte != 0).collect();
            assert!(!name.is_empty() && name.len() <= 255, "the length of a name");
            if let Some((last, ..)) = out.last() {
                assert!(*last < name, "names are not sorted");
            }
            out.push((name, u64_at(entry, 0), entry[10]));
        }
    }
    out
}
