//! How the container's root differs from its image: what `diff` lists and `commit` keeps.
//!
//! The changes lie in overlayfs's upper directory: new and changed files with the directories above them, a character device
//! 0:0 for what is gone, and directories that replace the image's (`trusted.overlay.opaque`) or that were renamed
//! (`trusted.overlay.redirect`). (Linux, Documentation/filesystems/overlayfs.rst.) What is below the latter two is
//! looked at in the container's root itself.

use alloc::{vec, vec::Vec};

use rustix::{
    fd::{AsFd as _, OwnedFd},
    fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Stat, openat, statat},
};
use servin_init::proto::{ChangeKind, FilesTell};

use super::{Result, Server, empty_file, enter, initramfs, join, machine, merged, read};
use crate::failure::Doing as _;
use crate::setup;

/// Files that the agent makes as mount points where an image has none, and directories likewise.
const OUR_FILES: [&[u8]; 4] = [b"etc/hosts", b"etc/hostname", b"etc/resolv.conf", b"dev/console"];
const OUR_DIRECTORIES: [&[u8]; 3] = [b"dev", b"proc", b"sys"];
/// The names of whiteouts in a layer (OCI image specification, layer.md).
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

struct Sides {
    upper: OwnedFd,
    lower: OwnedFd,
    merged: OwnedFd,
}

impl Sides {
    fn open() -> Result<Self> {
        Ok(Self { upper: machine("upper/upper")?, lower: machine("lower")?, merged: merged()? })
    }

    /// What the image has at this path.
    fn lower(&self, path: &[u8]) -> Option<Stat> {
        statat(&self.lower, path, AtFlags::SYMLINK_NOFOLLOW).ok()
    }

    fn lower_names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        enter(&self.lower)?;
        let names = read::names(path);
        enter(&self.upper)?;
        names
    }

    /// It is there only because something of ours is mounted on it.
    fn is_ours(&self, path: &[u8], stat: &Stat) -> bool {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let known = match kind {
            FileType::RegularFile => stat.st_size == 0 && OUR_FILES.contains(&path),
            FileType::Directory => OUR_DIRECTORIES.contains(&path),
            _ => false,
        };
        known && self.lower(path).is_none()
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether a directory of the upper side hides the image's, or stands for another one of the image.
fn replaces(path: &[u8]) -> bool {
    read::overlay_attribute(path, b"opaque").is_some_and(|value| value == b"y")
        || read::overlay_attribute(path, b"redirect").is_some()
}

impl Server {
    pub(super) fn changes(&mut self) -> Result<()> {
        let sides = Sides::open()?;
        enter(&sides.upper)?;
        let mut found: Vec<(Vec<u8>, ChangeKind)> = Vec::new();
        upper(&sides, b"", &mut found)?;
        for (path, kind) in found {
            let path = [b"/", path.as_slice()].concat();
            self.tell(&FilesTell::Change { kind, path })?;
        }
        Ok(())
    }

    pub(super) fn layer(&mut self, pause: bool) -> Result<()> {
        if !pause {
            return self.tell_layer();
        }
        let _turn =
            setup::turn(initramfs(), FlockOperation::LockExclusive).doing("wait for programs that start")?;
        let done = freeze(true).and_then(|()| self.tell_layer());
        // They go on whatever came of it.
        freeze(false).and(done)
    }

    fn tell_layer(&mut self) -> Result<()> {
        let sides = Sides::open()?;
        enter(&sides.upper)?;
        // Directories that replace others are told whole, from the root itself, after the rest.
        let (mut whiteouts, mut whole) = (Vec::new(), Vec::new());
        self.walk(b"", false, &mut |path, stat| {
            if is_whiteout(stat) {
                whiteouts.push(path.to_vec());
                return false;
            }
            if sides.is_ours(path, stat) {
                return false;
            }
            if FileType::from_raw_mode(stat.st_mode).is_dir() && replaces(path) {
                whole.push(path.to_vec());
                return false;
            }
            true
        })?;
        for path in whiteouts {
            let (directory, name) = split(&path);
            let name = join(directory, &[WHITEOUT, name].concat());
            self.tell(&FilesTell::Node(empty_file(name)))?;
        }
        enter(&sides.merged)?;
        for path in whole {
            // An opaque mark hides what lower layers have, wherever in the layer it stands.
            if sides.lower(&path).is_some() {
                self.tell(&FilesTell::Node(empty_file(join(&path, OPAQUE))))?;
            }
            self.walk(&path, true, &mut |_, _| true)?;
        }
        Ok(())
    }
}

/// Lets the container's programs stand still, or go on.
fn freeze(still: bool) -> Result<()> {
    let path = c"cgroup/container";
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = openat(initramfs(), path, flags, Mode::empty()).doing("open the container's cgroup")?;
    setup::freeze(cgroup.as_fd(), still)
}

/// Whether a directory that is on both sides is another than it was, but for its time.
fn differs(a: &Stat, b: &Stat) -> bool {
    (a.st_mode, a.st_uid, a.st_gid) != (b.st_mode, b.st_uid, b.st_gid)
}

fn kind(lower: Option<&Stat>) -> ChangeKind {
    if lower.is_some() { ChangeKind::Changed } else { ChangeKind::Added }
}

/// Collects the changes below a directory of the upper side.
fn upper(sides: &Sides, path: &[u8], found: &mut Vec<(Vec<u8>, ChangeKind)>) -> Result<()> {
    // A stack of our own, because the depth is the guest's choice. A directory is judged when everything in it was.
    enum Step {
        Look(Vec<u8>),
        /// `own`: it is another than it was; `touched`: it has another time, which counts unless something of ours is in it.
        Judge {
            path: Vec<u8>,
            own: bool,
            touched: bool,
        },
    }
    let mut steps = vec![Step::Look(path.to_vec())];
    let mut passed_over: Vec<Vec<u8>> = Vec::new();
    while let Some(step) = steps.pop() {
        match step {
            Step::Look(directory) => {
                for name in &read::names(&directory)? {
                    let path = join(&directory, name);
                    let Ok(stat) = statat(CWD, path.as_slice(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
                    let lower = sides.lower(&path);
                    if is_whiteout(&stat) {
                        if lower.is_some() {
                            found.push((path, ChangeKind::Deleted));
                        }
                    } else if sides.is_ours(&path, &stat) {
                        passed_over.push(directory.clone());
                    } else if !FileType::from_raw_mode(stat.st_mode).is_dir() {
                        found.push((path, kind(lower.as_ref())));
                    } else if replaces(&path) {
                        whole(sides, &path, found)?;
                    } else {
                        match lower.as_ref().filter(|lower| FileType::from_raw_mode(lower.st_mode).is_dir()) {
                            Some(lower) => {
                                let time = (stat.st_mtime, stat.st_mtime_nsec);
                                let touched = time != (lower.st_mtime, lower.st_mtime_nsec);
                                let own = differs(&stat, lower);
                                steps.push(Step::Judge { path: path.clone(), own, touched });
                                steps.push(Step::Look(path));
                            }
                            None => {
                                found.push((path.clone(), kind(lower.as_ref())));
                                steps.push(Step::Look(path));
                            }
                        }
                    }
                }
            }
            Step::Judge { path, own, touched } => {
                let below = [path.as_slice(), b"/"].concat();
                let inside = found.iter().any(|(other, _)| other.starts_with(&below));
                if own || inside || touched && !passed_over.contains(&path) {
                    found.push((path, ChangeKind::Changed));
                }
            }
        }
    }
    Ok(())
}

/// Collects the differences of a directory that hides the image's: of all of it.
fn whole(sides: &Sides, path: &[u8], found: &mut Vec<(Vec<u8>, ChangeKind)>) -> Result<()> {
    let mut waiting = vec![path.to_vec()];
    while let Some(path) = waiting.pop() {
        let Ok(stat) = statat(&sides.merged, path.as_slice(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
        let lower = sides.lower(&path);
        found.push((path.clone(), kind(lower.as_ref())));
        if !is_directory {
            continue;
        }
        enter(&sides.merged)?;
        let names = read::names(&path);
        enter(&sides.upper)?;
        let names = names?;
        if lower.is_some_and(|lower| FileType::from_raw_mode(lower.st_mode).is_dir()) {
            for name in sides.lower_names(&path)? {
                let below = join(&path, &name);
                if statat(&sides.merged, below.as_slice(), AtFlags::SYMLINK_NOFOLLOW).is_err() {
                    found.push((below, ChangeKind::Deleted));
                }
            }
        }
        waiting.extend(names.iter().map(|name| join(&path, name)));
    }
    Ok(())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (b"", path),
    }
}
