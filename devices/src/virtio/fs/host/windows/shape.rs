//! What a file is by its attributes and its reparse point, and what a reparse point holds ([MS-FSCC] 2.1.2): without any call,
//! so that tests run everywhere.

use super::super::super::vfs::Errno;
use super::super::system::{Result, kind};

/// Attributes of a file (`FILE_ATTRIBUTE_*`).
pub(super) mod attribute {
    pub(in super::super) const READ_ONLY: u32 = 0x1;
    pub(in super::super) const DIRECTORY: u32 = 0x10;
    pub(in super::super) const SPARSE: u32 = 0x200;
    pub(in super::super) const REPARSE_POINT: u32 = 0x400;
}

/// Tags of reparse points (`IO_REPARSE_TAG_*`).
mod tag {
    pub(super) const SYMLINK: u32 = 0xa000_000c;
    pub(super) const LX_SYMLINK: u32 = 0xa000_001d;
    pub(super) const AF_UNIX: u32 = 0x8000_0023;
    pub(super) const LX_FIFO: u32 = 0x8000_0024;
    pub(super) const LX_CHR: u32 = 0x8000_0025;
    pub(super) const LX_BLK: u32 = 0x8000_0026;
}

const BLOCK_DEVICE: u32 = 0o060_000;

/// The longest target of a link (`PATH_MAX` of Linux).
const TARGET_MAX: usize = 4095;

/// What a file is to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// The type, as the upper bits of a mode.
    pub(super) kind: u32,
    /// Its contents are elsewhere, or made by a program: a junction, a mounted volume, a file in a cloud. It is seen, and
    /// neither entered nor opened.
    pub(super) sealed: bool,
    pub(super) read_only: bool,
}

impl Shape {
    /// By attributes, and by the tag if they tell of a reparse point.
    pub(super) fn of(attributes: u32, tag: u32) -> Self {
        let plain = if attributes & attribute::DIRECTORY != 0 { kind::DIRECTORY } else { kind::FILE };
        let (kind, sealed) = match tag {
            _ if attributes & attribute::REPARSE_POINT == 0 => (plain, false),
            tag::SYMLINK | tag::LX_SYMLINK => (kind::LINK, false),
            tag::AF_UNIX => (kind::SOCKET, false),
            tag::LX_FIFO => (kind::FIFO, false),
            tag::LX_CHR => (kind::CHARACTER_DEVICE, false),
            tag::LX_BLK => (BLOCK_DEVICE, false),
            _ => (plain, true),
        };
        Self { kind, sealed, read_only: kind == kind::FILE && attributes & attribute::READ_ONLY != 0 }
    }

    pub(super) fn is_directory(self) -> bool {
        self.kind == kind::DIRECTORY
    }

    /// Type and permissions: Windows keeps no others than whether a file may be written.
    pub(super) fn mode(self) -> u32 {
        match self.kind {
            kind::LINK => kind::LINK | 0o777,
            kind => kind | if self.read_only { 0o555 } else { 0o755 },
        }
    }

    /// The type as `d_type` has it.
    pub(super) fn entry_kind(self) -> u32 {
        self.kind >> 12
    }

    /// Whether it is a directory that names can be looked up in.
    pub(super) fn enter(self) -> Result<()> {
        match self.kind {
            kind::DIRECTORY if self.sealed => Err(Errno::ACCESS),
            kind::DIRECTORY => Ok(()),
            _ => Err(Errno::NOTDIR),
        }
    }
}

/// The reparse point of a symbolic link whose target is the guest's, byte for byte (as WSL makes it). Programs of Windows do
/// not follow it.
pub(super) fn link(target: &[u8]) -> Result<Vec<u8>> {
    if target.is_empty() || target.contains(&0) {
        return Err(Errno::INVAL);
    }
    if target.len() > TARGET_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let len = u16::try_from(4 + target.len()).map_err(|_| Errno::NAMETOOLONG)?;
    let mut data = tag::LX_SYMLINK.to_le_bytes().to_vec();
    data.extend(len.to_le_bytes());
    data.extend([0; 2]);
    // The version of what follows.
    data.extend(2_u32.to_le_bytes());
    data.extend(target);
    Ok(data)
}

/// The target in the reparse point of a symbolic link. One of Windows has its separators turned, and else its own words: what
/// begins with a drive leads nowhere in a guest.
pub(super) fn target(data: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| Some(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let tag = data.get(..4).and_then(|tag| tag.try_into().ok()).map(u32::from_le_bytes);
    let len = word(4).ok_or(Errno::IO)?;
    let body = data.get(8..8 + usize::from(len)).ok_or(Errno::IO)?;
    match tag {
        Some(tag::LX_SYMLINK) => Ok(body.get(4..).ok_or(Errno::IO)?.to_vec()),
        Some(tag::SYMLINK) => {
            // Offsets and lengths of the substitute name and of the one to print, flags, then the names.
            let name = |offset: usize| {
                let (start, len) = (usize::from(word(offset)?), usize::from(word(offset + 2)?));
                data.get(20 + start..20 + start + len)
            };
            let printed = name(12).filter(|name| !name.is_empty());
            let name = printed.or_else(|| name(8)).ok_or(Errno::IO)?;
            let units = name.chunks_exact(2).filter_map(|unit| unit.try_into().ok());
            let units: Vec<u16> = units.map(u16::from_le_bytes).collect();
            let mut target = String::new();
            for name in units.split_inclusive(|&unit| unit == u16::from(b'\\')) {
                let (name, separator) = match name {
                    [name @ .., unit] if *unit == u16::from(b'\\') => (name, "/"),
                    name => (name, ""),
                };
                // As the guest knows that name, if it does.
                let known = super::names::decode(name).and_then(|name| String::from_utf8(name).ok());
                target.push_str(&known.unwrap_or_else(|| String::from_utf16_lossy(name)));
                target.push_str(separator);
            }
            Ok(target.into_bytes())
        }
        _ => Err(Errno::INVAL),
    }
}

/// 100 ns of 1601 to 1970.
const TO_UNIX: i64 = 116_444_736_000_000_000;

/// A time of Windows, in 100 ns since 1601, as Linux has it.
pub(super) fn time(ticks: i64) -> (i64, u32) {
    let unix = ticks.saturating_sub(TO_UNIX);
    (unix.div_euclid(10_000_000), u32::try_from(unix.rem_euclid(10_000_000)).unwrap_or(0) * 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: u32 = attribute::DIRECTORY;
    const REPARSE: u32 = attribute::REPARSE_POINT;
    const MOUNT_POINT: u32 = 0xa000_0003;

    #[test]
    fn links_are_links_and_junctions_are_directories_that_nobody_enters() {
        for (attributes, tag, mode, enter) in [
            (0, 0, 0o100_755, Err(Errno::NOTDIR)),
            (attribute::READ_ONLY, 0, 0o100_555, Err(Errno::NOTDIR)),
            (DIRECTORY | attribute::READ_ONLY, 0, 0o040_755, Ok(())),
            (REPARSE, tag::SYMLINK, 0o120_777, Err(Errno::NOTDIR)),
            (REPARSE | DIRECTORY, tag::SYMLINK, 0o120_777, Err(Errno::NOTDIR)),
            (REPARSE, tag::LX_SYMLINK, 0o120_777, Err(Errno::NOTDIR)),
            (REPARSE | DIRECTORY, MOUNT_POINT, 0o040_755, Err(Errno::ACCESS)),
            (REPARSE | DIRECTORY, 0x9000_001a, 0o040_755, Err(Errno::ACCESS)),
            (REPARSE, 0x9000_001a, 0o100_755, Err(Errno::NOTDIR)),
            (REPARSE, tag::AF_UNIX, 0o140_755, Err(Errno::NOTDIR)),
            (REPARSE, tag::LX_FIFO, 0o010_755, Err(Errno::NOTDIR)),
        ] {
            let shape = Shape::of(attributes, tag);
            assert_eq!((shape.mode(), shape.enter()), (mode, enter), "{attributes:#x} {tag:#x}");
        }
        assert!(Shape::of(REPARSE, 0x9000_001a).sealed && Shape::of(REPARSE | DIRECTORY, MOUNT_POINT).sealed);
        // A tag without its attribute says nothing.
        assert!(!Shape::of(0, MOUNT_POINT).sealed);
        assert_eq!(Shape::of(DIRECTORY, 0).entry_kind(), 4);
    }

    #[test]
    fn the_target_of_a_guests_link_comes_back_byte_for_byte() {
        for wanted in [&b"../../etc/passwd"[..], b"x", b"\xff\\:"] {
            assert_eq!(target(&link(wanted).unwrap()).unwrap(), wanted);
        }
        assert_eq!(link(b""), Err(Errno::INVAL));
        assert_eq!(link(b"a\0b"), Err(Errno::INVAL));
        assert_eq!(link(&[b'x'; 4096]), Err(Errno::NAMETOOLONG));
    }

    fn symlink(substitute: &str, printed: &str) -> Vec<u8> {
        let bytes = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
        let (substitute, printed) = (bytes(substitute), bytes(printed));
        let mut data = tag::SYMLINK.to_le_bytes().to_vec();
        for word in [
            12 + substitute.len() + printed.len(),
            0,
            0,
            substitute.len(),
            substitute.len(),
            printed.len(),
            1,
            0,
        ] {
            data.extend((word as u16).to_le_bytes());
        }
        data.extend(substitute);
        data.extend(printed);
        data
    }

    #[test]
    fn a_link_of_windows_is_read_with_turned_separators_and_a_broken_one_is_an_error() {
        assert_eq!(target(&symlink("..\\a", "..\\a")).unwrap(), b"../a");
        assert_eq!(target(&symlink("\\??\\C:\\x", "C:\\x")).unwrap(), b"C:/x");
        assert_eq!(target(&symlink("sub\\file", "")).unwrap(), b"sub/file");
        assert_eq!(target(&symlink("a\u{f03a}b", "a\u{f03a}b")).unwrap(), b"a:b");
        let whole = symlink("..\\a", "..\\a");
        for len in 0..whole.len() {
            assert!(target(&whole[..len]).is_err(), "{len}");
        }
        let mut far = whole.clone();
        far[14..16].copy_from_slice(&0xffff_u16.to_le_bytes());
        assert!(target(&far).is_ok(), "the other name is taken");
        far[10..12].copy_from_slice(&0xffff_u16.to_le_bytes());
        assert_eq!(target(&far), Err(Errno::IO));
        let mut other = whole;
        other[..4].copy_from_slice(&MOUNT_POINT.to_le_bytes());
        assert_eq!(target(&other), Err(Errno::INVAL));
    }

    #[test]
    fn times_count_from_1970_before_it_too() {
        assert_eq!(time(TO_UNIX), (0, 0));
        assert_eq!(time(TO_UNIX + 10_000_000 + 3), (1, 300));
        assert_eq!(time(TO_UNIX - 1), (-1, 999_999_900));
        assert_eq!(time(0), (-11_644_473_600, 0));
        assert_eq!(time(i64::MIN).1 % 100, 0);
    }
}
