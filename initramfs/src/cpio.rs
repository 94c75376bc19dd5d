//! A writer of the archive that the kernel unpacks as its first root file system.
//!
//! The format is "newc" (Linux: Documentation/driver-api/early-userspace/buffer-format.rst): for each entry a
//! header of 110 bytes in ASCII hexadecimal, the name with its NUL, padding to four bytes, the content, padding
//! to four bytes; last an entry named `TRAILER!!!`. Equal calls give equal bytes: times are zero, owners are root,
//! inode numbers count up.

use alloc::vec::Vec;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being written. Parents must be added before what is in them; the kernel makes none by itself.
///
/// ```
/// let mut archive = servin_init::cpio::Archive::new();
/// archive.directory("dev", 0o755).character("dev/console", 0o600, 5, 1).file("init", 0o755, b"\x7fELF");
/// assert_eq!(archive.finish().len() % 512, 0);
/// ```
#[derive(Debug, Default)]
pub struct Archive {
    out: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A directory with permissions `mode`.
    pub fn directory(&mut self, name: &str, mode: u32) -> &mut Self {
        self.entry(name, DIRECTORY | mode & 0o7777, (0, 0), &[])
    }

    /// A file with permissions `mode`. The kernel takes at most 4 GiB of content.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.entry(name, REGULAR | mode & 0o7777, (0, 0), content)
    }

    /// A symbolic link to `target`.
    pub fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.entry(name, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device.
    pub fn character(&mut self, name: &str, mode: u32, major: u32, minor: u32) -> &mut Self {
        self.entry(name, CHARACTER | mode & 0o7777, (major, minor), &[])
    }

    /// Ends the archive, padded to 512 bytes as cpio(1) does.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.pad(512);
        self.out
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) -> &mut Self {
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        let length = content.len() as u32;
        self.out.extend_from_slice(b"070701");
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let name_length = name.len() as u32 + 1;
        for field in [self.inode, mode, 0, 0, links, 0, length, 0, 0, major, minor, name_length, 0] {
            for shift in (0..32).step_by(4).rev() {
                self.out.push(b"0123456789abcdef"[(field >> shift & 15) as usize]);
            }
        }
        self.inode += 1;
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(0);
        self.pad(4);
        self.out.extend_from_slice(content);
        self.pad(4);
        self
    }

    fn pad(&mut self, to: usize) {
        let padded = self.out.len().next_multiple_of(to);
        self.out.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new();
        archive.directory("dev", 0o755).character("dev/console", 0o600, 5, 1).file("init", 0o755, b"hello");
        archive.symlink("link", "init");
        archive.finish()
    }

    extern crate std;
    use std::vec::Vec;

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn headers_are_newc() {
        let bytes = sample();
        let header = std::str::from_utf8(&bytes[..110]).unwrap();
        assert_eq!(
            header,
            "070701000000000000\
             41ed000000000000000000000002000000000000000000000000000000000000000000000000\
             0000000400000000"
        );
        assert_eq!(&bytes[110..114], b"dev\0");
    }

    /// Asks the system's cpio, which is independent of this code, what is in the archive.
    #[test]
    fn cpio_lists_the_archive() {
        use std::io::Write as _;
        use std::process::{Command, Stdio};
        let child = Command::new("cpio")
            .args(["-tv", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            std::eprintln!("skipped: cpio is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let listing = std::string::String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<&str> = listing.lines().collect();
        assert_eq!(lines.len(), 4, "{listing}");
        assert!(lines[0].starts_with("drwxr-xr-x"), "{listing}");
        assert!(lines[1].starts_with("crw-------") && lines[1].contains("5,   1"), "{listing}");
        assert!(lines[2].starts_with("-rwxr-xr-x") && lines[2].contains(" 5 "), "{listing}");
        assert!(lines[3].ends_with("link -> init"), "{listing}");
    }
}
