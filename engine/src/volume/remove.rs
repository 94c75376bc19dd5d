//! Removes a directory tree that strangers filled: links are never followed, what is mounted inside is never entered, and
//! no depth and no permission stops it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, RenameFlags};
use rustix::io::Errno;

use crate::os::{self, enter};

/// Removes `name` in the directory `parent`, with all that is in it.
///
/// Directories are never walked into deeper than two: what lies in one is moved up and waits for its turn. So a tree of any
/// depth takes three descriptors, and no path grows too long.
///
/// # Errors
/// `CrossesDevices` if something is mounted inside; the error of a file operation. What is left can be removed again.
pub(super) fn remove_tree(parent: &OwnedFd, name: &Path) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        done => return Ok(done?),
    }
    let top = enter(parent, name)?;
    let mut moved = 0_u64;
    loop {
        let names = entries(&top)?;
        if names.is_empty() {
            break;
        }
        for name in names {
            if remove_simple(&top, &name)? {
                continue;
            }
            let inner = enter(&top, Path::new(&name))?;
            for name in entries(&inner)? {
                if remove_simple(&inner, &name)? {
                    continue;
                }
                let mut is_ours = false;
                loop {
                    // Until a name is free.
                    moved += 1;
                    let free = format!(".{moved}");
                    match rustix::fs::renameat_with(&inner, &name, &top, free, RenameFlags::NOREPLACE) {
                        Err(Errno::EXIST) => {}
                        // What is moved must be writable itself, for its `..` changes.
                        Err(Errno::ACCESS | Errno::PERM) if !is_ours => {
                            drop(enter(&inner, Path::new(&name))?);
                            is_ours = true;
                        }
                        done => break done?,
                    }
                }
            }
            drop(inner);
            rustix::fs::unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
        }
    }
    drop(top);
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Removes a file, a link or an empty directory; false for a directory that is not empty.
fn remove_simple(dir: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<bool> {
    let gone = |done: rustix::io::Result<()>| match done {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(errno) => Err(errno),
    };
    let removed = match gone(rustix::fs::unlinkat(dir, name, AtFlags::empty())) {
        Err(Errno::ISDIR | Errno::PERM) => gone(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)),
        done => done,
    };
    match removed {
        Ok(done) => Ok(done),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        // A mount point.
        Err(Errno::BUSY) => Err(Errno::XDEV.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// Where something is mounted below `dir`, which has no links in its path: nobody shall lose half of a tree to find out.
pub(super) fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(os::mounts()?.into_iter().filter(|point| point.starts_with(dir)).collect())
}

fn entries(dir: &OwnedFd) -> io::Result<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(std::ffi::OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    use rustix::fs::{Mode, OFlags};

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn links_lead_nowhere_and_permissions_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::write(tree.join("a/b/c/file"), "x").unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        symlink(&outside, tree.join("a/b/link")).unwrap();
        symlink("/nowhere", tree.join("a/.1")).unwrap();
        fs::create_dir_all(tree.join(".1/.2")).unwrap();
        for locked in ["a/b/c", "a/b", "a"] {
            fs::set_permissions(tree.join(locked), Permissions::from_mode(0o0)).unwrap();
        }
        remove_tree(&open(dir.path()), Path::new("tree")).unwrap();
        assert!(!tree.exists() && outside.join("kept").exists());
        symlink(&outside, dir.path().join("tree")).unwrap();
        remove_tree(&open(dir.path()), Path::new("tree")).unwrap();
        assert!(outside.join("kept").exists());
        remove_tree(&open(dir.path()), Path::new("tree")).unwrap();
    }

    #[test]
    fn no_depth_is_too_deep() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tree")).unwrap();
        let mut at = open(&dir.path().join("tree"));
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "deeper-and-deeper", Mode::RWXU).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            at = rustix::fs::openat(&at, "deeper-and-deeper", flags, Mode::empty()).unwrap();
        }
        remove_tree(&open(dir.path()), Path::new("tree")).unwrap();
        assert!(!dir.path().join("tree").exists());
    }

    #[test]
    fn what_is_mounted_inside_is_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("tree/a/inside");
        let outside = dir.path().join("outside");
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let mounted = Command::new("mount").arg("--bind").arg(&outside).arg(&inside).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            println!("skipped: mounting is refused here");
            return;
        }
        let refused = remove_tree(&open(dir.path()), Path::new("tree"));
        // Wherever it was moved to.
        let target = mounts_below(dir.path()).unwrap().remove(0);
        assert!(Command::new("umount").arg("-l").arg(target).status().unwrap().success());
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::CrossesDevices);
        assert!(outside.join("kept").exists());
        remove_tree(&open(dir.path()), Path::new("tree")).unwrap();
    }
}
