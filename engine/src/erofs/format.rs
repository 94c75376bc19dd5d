//! The parts of the EROFS on-disk format that this writer uses: uncompressed, blocks of 4096 bytes, little-endian (Linux,
//! `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h` name the fields).

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 4096;
/// `log2` of [`BLOCK`].
const BLOCK_BITS: u8 = 12;
/// Where the superblock lies (`EROFS_SUPER_OFFSET`).
pub(crate) const SUPER_OFFSET: u64 = 1024;
/// Bytes of a superblock without extra slots.
pub(crate) const SUPER_SIZE: u64 = 128;
/// Inodes stand in slots of 32 bytes, and the slot's number is the inode's (`nid`).
pub(crate) const SLOT: u64 = 32;
/// Bytes of a directory entry without its name.
pub(crate) const DIRENT: usize = 12;

const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM | EROFS_FEATURE_COMPAT_MTIME`.
const COMPAT: u32 = 0x1 | 0x2;

/// Layout of an inode's data (`EROFS_INODE_FLAT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// In whole blocks.
    Plain = 0,
    /// The last part, less than a block, right behind the inode.
    Inline = 2,
}

/// An inode, before it is known whether its compact form is enough.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inode {
    /// File type and permissions as in `st_mode`.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) nlink: u32,
    pub(crate) size: u64,
    pub(crate) layout: Layout,
    /// Bytes of the xattr area behind the inode: 0, or a multiple of 4 from 12 on.
    pub(crate) xattr_size: usize,
    /// First block of the data, or the device number.
    pub(crate) address: u32,
    /// A number for 32-bit `st_ino`.
    pub(crate) ino: u32,
}

impl Inode {
    /// Whether the compact form holds all values; its time is that of the superblock.
    pub(crate) fn is_compact(&self, epoch: (i64, u32)) -> bool {
        self.mtime == epoch
            && self.uid <= u16::MAX.into()
            && self.gid <= u16::MAX.into()
            && self.nlink <= u16::MAX.into()
            && self.size <= u32::MAX.into()
    }

    /// Bytes of the encoded form without xattrs.
    pub(crate) fn encoded_size(&self, epoch: (i64, u32)) -> u64 {
        if self.is_compact(epoch) { 32 } else { 64 }
    }

    /// `struct erofs_inode_compact` or `struct erofs_inode_extended`.
    pub(crate) fn encode(&self, epoch: (i64, u32), out: &mut Vec<u8>) {
        let compact = self.is_compact(epoch);
        let format = u16::from(!compact) | (self.layout as u16) << 1;
        let xattr_count = if self.xattr_size == 0 { 0 } else { (self.xattr_size - 12) / 4 + 1 };
        put16(out, format);
        put16(out, xattr_count as u16);
        put16(out, self.mode);
        if compact {
            put16(out, self.nlink as u16);
            put32(out, self.size as u32);
            put32(out, 0);
            put32(out, self.address);
            put32(out, self.ino);
            put16(out, self.uid as u16);
            put16(out, self.gid as u16);
            put32(out, 0);
        } else {
            put16(out, 0);
            put64(out, self.size);
            put32(out, self.address);
            put32(out, self.ino);
            put32(out, self.uid);
            put32(out, self.gid);
            put64(out, self.mtime.0 as u64);
            put32(out, self.mtime.1);
            put32(out, self.nlink);
            out.extend_from_slice(&[0; 16]);
        }
    }
}

/// The superblock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Super {
    pub(crate) root: u16,
    pub(crate) inodes: u64,
    /// The time of compact inodes.
    pub(crate) epoch: (i64, u32),
    pub(crate) blocks: u32,
    pub(crate) uuid: [u8; 16],
}

impl Super {
    /// Writes `struct erofs_super_block` into the first block of the file, and the checksum over it.
    pub(crate) fn seal(&self, block: &mut [u8; BLOCK as usize]) {
        let mut out = Vec::with_capacity(SUPER_SIZE as usize);
        put32(&mut out, MAGIC);
        put32(&mut out, 0);
        put32(&mut out, COMPAT);
        out.push(BLOCK_BITS);
        out.push(0);
        put16(&mut out, self.root);
        put64(&mut out, self.inodes);
        put64(&mut out, self.epoch.0 as u64);
        put32(&mut out, self.epoch.1);
        put32(&mut out, self.blocks);
        put32(&mut out, 0);
        put32(&mut out, 0);
        out.extend_from_slice(&self.uuid);
        out.resize(SUPER_SIZE as usize, 0);
        let (_, tail) = block.split_at_mut(SUPER_OFFSET as usize);
        if let Some(place) = tail.get_mut(..out.len()) {
            place.copy_from_slice(&out);
        }
        let sum = crc32c(tail).to_le_bytes();
        if let Some(place) = tail.get_mut(4..8) {
            place.copy_from_slice(&sum);
        }
    }
}

/// The number of a namespace (`EROFS_XATTR_INDEX_*`) and the rest of a name. `None` for what a root file system cannot
/// or must not have: unknown namespaces, and the attributes by which overlayfs keeps its own books.
pub(crate) fn xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    const PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") || name.contains(&0) {
        return None;
    }
    let (index, rest) =
        PREFIXES.iter().find_map(|(index, prefix)| Some((*index, name.strip_prefix(*prefix)?)))?;
    (!rest.is_empty() && rest.len() <= 255).then_some((index, rest))
}

/// Bytes of the xattr area: a header of 12 bytes, and every entry padded to 4.
pub(crate) fn xattrs_size(xattrs: &super::tree::Xattrs) -> usize {
    let Some(xattrs) = xattrs else { return 0 };
    let entry = |(name, value): &(Box<[u8]>, Box<[u8]>)| {
        xattr_name(name).map_or(0, |(_, rest)| (4 + rest.len() + value.len()).next_multiple_of(4))
    };
    12 + xattrs.iter().map(entry).sum::<usize>()
}

/// `struct erofs_xattr_ibody_header` and its `struct erofs_xattr_entry`s.
pub(crate) fn encode_xattrs(xattrs: &super::tree::Xattrs, out: &mut Vec<u8>) {
    let Some(xattrs) = xattrs else { return };
    let start = out.len();
    out.extend_from_slice(&[0; 12]);
    for (name, value) in xattrs {
        let Some((index, rest)) = xattr_name(name) else { continue };
        out.push(rest.len() as u8);
        out.push(index);
        put16(out, value.len() as u16);
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(start + (out.len() - start).next_multiple_of(4), 0);
    }
}

/// A device number as the kernel encodes it for file systems (`new_encode_dev`).
pub(crate) fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// CRC-32C (Castagnoli) as the superblock wants it: started with all ones, not inverted at the end.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

pub(crate) fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_its_check_value() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn only_known_xattr_namespaces_get_in_and_never_overlayfs_own() {
        assert_eq!(xattr_name(b"security.capability"), Some((6, &b"capability"[..])));
        assert_eq!(xattr_name(b"user.a.b"), Some((1, &b"a.b"[..])));
        assert_eq!(xattr_name(b"system.posix_acl_access"), Some((2, &b""[..])));
        let long = [b"user.".as_slice(), &[b'x'; 256]].concat();
        for bad in [
            &b"trusted.overlay.redirect"[..],
            b"user.overlay.opaque",
            b"com.apple.x",
            b"user.",
            b"user.a\0",
            &long,
        ] {
            assert_eq!(xattr_name(bad), None);
        }
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(device(8, 1), 0x801);
        assert_eq!(device(259, 0x12345), 0x1231_0345);
    }

    #[test]
    fn an_inode_is_compact_only_where_everything_fits() {
        let inode = Inode {
            mode: 0o100_644,
            uid: 0,
            gid: 65535,
            mtime: (5, 6),
            nlink: 1,
            size: 10,
            layout: Layout::Inline,
            xattr_size: 0,
            address: 0,
            ino: 1,
        };
        assert!(inode.is_compact((5, 6)));
        for other in [
            Inode { uid: 65536, ..inode },
            Inode { gid: 65536, ..inode },
            Inode { mtime: (5, 7), ..inode },
            Inode { nlink: 65536, ..inode },
            Inode { size: 1 << 32, ..inode },
        ] {
            assert!(!other.is_compact((5, 6)));
            let mut out = Vec::new();
            other.encode((5, 6), &mut out);
            assert_eq!((out.len(), out[0]), (64, 5));
        }
    }
}
