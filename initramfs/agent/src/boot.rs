//! The container's root file system, and the agent's way into it.
//!
//! The initramfs has empty directories for this: `lower`, `upper`, `root`, `cgroup`, `shares`, `files`, `dev`.

use alloc::{ffi::CString, format};
use core::ffi::CStr;

use rustix::{
    fd::{AsRawFd as _, OwnedFd},
    fs::{CWD, FileType, Mode, OFlags, mkdir, mknodat, symlink},
    io::{Errno, Result},
    mount::{MountFlags, mount, mount_bind, mount_move},
};
use servin_init::proto::{Lower, Root, Upper};

use crate::{
    failure::{Doing as _, Failure},
    link::above_stdio,
    power,
};

/// Mode of directories that are made for the container.
const DIRECTORY: Mode = Mode::from_raw_mode(0o755);

/// Mounts the container's root and makes it the agent's own. Returns the directory of the initramfs.
pub(crate) fn enter_root(root: &Root) -> core::result::Result<OwnedFd, Failure> {
    mount_root(root)?;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let initramfs = rustix::fs::open(c"/", directory, Mode::empty()).doing("open the initramfs")?;
    let initramfs = above_stdio(initramfs).doing("open the initramfs")?;
    rustix::process::chdir(c"/root").doing("enter the root")?;
    mount_move(c".", c"/").doing("move the root")?;
    rustix::process::chroot(c".").doing("change the root")?;
    power::remember_initramfs(initramfs.as_raw_fd());
    Ok(initramfs)
}

const EXT4_OPTIONS: &CStr = c"discard,no_prefetch_block_bitmaps,noblock_validity,noinit_itable";

fn mount_root(root: &Root) -> core::result::Result<(), Failure> {
    if matches!(root.lower, Lower::Erofs(_)) || matches!(root.upper, Upper::Ext4(_)) {
        mount(c"dev", c"/dev", c"devtmpfs", MountFlags::empty(), None).doing("mount devtmpfs")?;
    }
    let (lower, writable) = match &root.upper {
        Upper::None => (c"/root", false),
        Upper::Tmpfs | Upper::Ext4(_) => (c"/lower", true),
    };
    let lower_flags = MountFlags::RDONLY;
    match &root.lower {
        Lower::Virtiofs(tag) => mount(tag.as_str(), lower, c"virtiofs", lower_flags, None)
            .doing(format_args!("mount the share {tag:?} as root"))?,
        Lower::Erofs(device) => mount(device.as_str(), lower, c"erofs", lower_flags, None)
            .doing(format_args!("mount {device} as root"))?,
        Lower::Directory(path) => {
            mount_bind(path.as_str(), lower).doing(format_args!("bind {path} as root"))?;
            remount_read_only(lower, MountFlags::empty()).doing(format_args!("make {path} read-only"))?;
        }
    }
    if !writable {
        return Ok(());
    }
    match &root.upper {
        Upper::None => {}
        Upper::Tmpfs => mount(c"upper", c"/upper", c"tmpfs", MountFlags::empty(), c"mode=700")
            .doing("mount a tmpfs for changes")?,
        // What is only read must not be written; what is deleted goes back to the host. The rest leaves away what ext4
        // does for a disk that may be damaged or was never written: to look at the bitmaps of all groups, to remember
        // where its own blocks are, and to zero inode tables.
        Upper::Ext4(device) => mount(device.as_str(), c"/upper", c"ext4", MountFlags::NOATIME, EXT4_OPTIONS)
            .doing(format_args!("mount {device} for changes"))?,
    }
    for path in [c"/upper/upper", c"/upper/work"] {
        match mkdir(path, DIRECTORY) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).doing("make the directories for changes"),
        }
    }
    // redirect_dir: a directory of the image can be renamed, as on any other file system.
    let options = c"lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work,redirect_dir=on";
    mount(c"overlay", c"/root", c"overlay", MountFlags::empty(), options).doing("mount the overlay")
}

/// Mounts what every container has besides /proc (which needs its PID namespace) and /dev/shm (which has a size).
pub(crate) fn furnish() -> core::result::Result<(), Failure> {
    const QUIET: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
    const NO_EXEC: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);
    let old_mask = rustix::process::umask(Mode::empty());
    mount_on(c"sysfs", c"/sys", c"sysfs", QUIET.union(MountFlags::RDONLY), None)?;
    let dev = MountFlags::NOSUID.union(MountFlags::STRICTATIME);
    mount_on(c"tmpfs", c"/dev", c"tmpfs", dev, Some(c"mode=755,size=65536k"))?;
    for path in [c"/dev/pts", c"/dev/mqueue", c"/dev/shm"] {
        mkdir(path, DIRECTORY).doing(format_args!("make {path:?}"))?;
    }
    let pts = c"newinstance,ptmxmode=0666,mode=0620,gid=5";
    mount_on(c"devpts", c"/dev/pts", c"devpts", NO_EXEC, Some(pts))?;
    mount_on(c"mqueue", c"/dev/mqueue", c"mqueue", QUIET, None)?;
    for (path, minor, major) in [
        (c"/dev/null", 3, 1),
        (c"/dev/zero", 5, 1),
        (c"/dev/full", 7, 1),
        (c"/dev/random", 8, 1),
        (c"/dev/urandom", 9, 1),
        (c"/dev/tty", 0, 5),
    ] {
        let device = rustix::fs::makedev(major, minor);
        mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)
            .doing(format_args!("make {path:?}"))?;
    }
    for (target, path) in [
        (c"/proc/self/fd", c"/dev/fd"),
        (c"/proc/self/fd/0", c"/dev/stdin"),
        (c"/proc/self/fd/1", c"/dev/stdout"),
        (c"/proc/self/fd/2", c"/dev/stderr"),
        (c"pts/ptmx", c"/dev/ptmx"),
    ] {
        symlink(target, path).doing(format_args!("make {path:?}"))?;
    }
    rustix::process::umask(old_mask);
    Ok(())
}

/// Mounts, and makes the mount point if it is missing. A kernel without the file system is no failure: the
/// container then lacks it, as it would on such a kernel anywhere.
fn mount_on(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: MountFlags,
    options: Option<&CStr>,
) -> core::result::Result<(), Failure> {
    match mount_making(source, target, kind, flags, options) {
        Ok(()) | Err(Errno::NODEV) => Ok(()),
        Err(errno) => Err(errno).doing(format_args!("mount {kind:?} on {target:?}")),
    }
}

/// Mounts, and makes the mount point if it is missing.
pub(crate) fn mount_making(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: MountFlags,
    options: Option<&CStr>,
) -> Result<()> {
    match mount(source, target, kind, flags, options) {
        Err(Errno::NOENT) => {
            mkdir(target, DIRECTORY)?;
            mount(source, target, kind, flags, options)
        }
        done => done,
    }
}

/// Makes one mount read-only, with `flags` besides, without touching other mounts of its file system.
pub(crate) fn remount_read_only(target: &CStr, flags: MountFlags) -> Result<()> {
    let flags = flags | MountFlags::BIND | MountFlags::RDONLY;
    rustix::mount::mount_remount(target, flags, c"")
}

/// Makes the directory `path` and those above it, as far as they are missing.
pub(crate) fn make_directories(path: &[u8]) -> Result<()> {
    match make_directory(path) {
        Err(Errno::NOENT) => {}
        done => return done,
    }
    for (at, _) in path.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/') {
        make_directory(path.get(..at).unwrap_or_default())?;
    }
    make_directory(path)
}

fn make_directory(path: &[u8]) -> Result<()> {
    match mkdir(path, DIRECTORY) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The path as a C string. Paths from the wire have no NUL; one that had would be cut there.
pub(crate) fn c_path(path: &[u8]) -> CString {
    let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
    CString::new(path.get(..end).unwrap_or_default()).unwrap_or_default()
}

/// The directory of `path`; empty if it is in `/`.
pub(crate) fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path.get(..end).unwrap_or_default()
}

/// An empty file at `path`, and the directories above it.
pub(crate) fn make_file(path: &[u8]) -> Result<()> {
    let create = || {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY;
        rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).map(drop)
    };
    match create() {
        Err(Errno::NOENT) => {
            make_directories(parent(path))?;
            create()
        }
        done => done,
    }
}

/// A name for something that the initramfs holds on behalf of the container.
pub(crate) fn name(directory: &str, number: usize) -> CString {
    CString::new(format!("{directory}/{number}")).unwrap_or_default()
}
