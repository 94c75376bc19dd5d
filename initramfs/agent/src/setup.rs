//! Carrying out [`Configure`].

use alloc::{ffi::CString, format, string::String, vec::Vec};
use core::ffi::CStr;

use rustix::{
    fd::{AsFd as _, BorrowedFd, OwnedFd},
    fs::{Mode, OFlags, mkdirat, openat},
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    process::{chdir, fchdir},
    time::{ClockId, Timespec, clock_settime},
};
use servin_init::proto::{Configure, Limits, Mount, MountSource};

use crate::{
    boot::{c_path, make_directories, make_file, mount_making, name, remount_read_only},
    failure::{Doing as _, Failure},
    sys,
};

type Result<T> = core::result::Result<T, Failure>;

/// What the agent keeps of the container after it was set up.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) hostname: String,
    /// The container's cgroup, as a directory; `None` if the kernel has no cgroup v2.
    pub(crate) cgroup: Option<OwnedFd>,
    /// Something that outlives the machine can be written: it must be synced before the end is told.
    pub(crate) has_shares: bool,
}

/// Sets the clock, the random pool, names, files, mounts and limits. The root is entered already; `initramfs` is
/// what lies below it. `before` is what an earlier call made, if a restored machine is configured again.
pub(crate) fn configure(
    configure: &Configure,
    initramfs: BorrowedFd<'_>,
    before: Option<Container>,
) -> Result<Container> {
    if let Some(ns) = configure.realtime_ns {
        let time = Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
        clock_settime(ClockId::Realtime, time).doing("set the clock")?;
    }
    if !configure.entropy.is_empty() {
        let random = rustix::fs::open(c"/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .doing("open /dev/urandom")?;
        sys::add_entropy(random.as_fd(), &configure.entropy).doing("add entropy")?;
    }
    if !configure.hostname.is_empty() {
        rustix::system::sethostname(configure.hostname.as_bytes()).doing("set the host name")?;
    }
    loopback();
    let shm_size = configure.shm_size.unwrap_or(64 << 20);
    let options = CString::new(format!("mode=1777,size={shm_size}")).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_making(c"shm", c"/dev/shm", c"tmpfs", flags, Some(&options)).doing("mount /dev/shm")?;
    files(configure, initramfs)?;
    mounts(&configure.mounts, initramfs)?;
    if configure.read_only {
        remount_read_only(c"/", MountFlags::empty()).doing("make the root read-only")?;
    }
    let has_shares =
        configure.mounts.iter().any(|m| !m.read_only && matches!(m.source, MountSource::Virtiofs { .. }));
    let cgroup = cgroup(&configure.limits, initramfs, before.and_then(|container| container.cgroup))?;
    Ok(Container { hostname: configure.hostname.clone(), cgroup, has_shares })
}

/// A kernel without IPv4 has no loopback interface to bring up, and that is all right.
fn loopback() {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let _ = socket.and_then(|socket| sys::loopback_up(socket.as_fd()));
}

/// Puts the host's files over the image's. They lie in the initramfs, so a read-only root does not matter; where
/// the image has no such file and none can be made, the container does without.
fn files(configure: &Configure, initramfs: BorrowedFd<'_>) -> Result<()> {
    let mut hostname = configure.hostname.clone().into_bytes();
    hostname.push(b'\n');
    let given = [
        (c"files/hostname", c"/etc/hostname", Some(&hostname).filter(|_| !configure.hostname.is_empty())),
        (c"files/hosts", c"/etc/hosts", configure.hosts.as_ref()),
        (c"files/resolv.conf", c"/etc/resolv.conf", configure.resolv_conf.as_ref()),
    ];
    if given.iter().all(|(_, _, content)| content.is_none()) {
        return Ok(());
    }
    fchdir(initramfs).doing("enter the initramfs")?;
    for (file, target, content) in given {
        let Some(content) = content else { continue };
        write_file(initramfs, file, OFlags::CREATE | OFlags::TRUNC, content)
            .doing(format_args!("write {file:?}"))?;
        match bind_making(file, target, make_file) {
            Ok(()) | Err(Errno::ROFS | Errno::NOENT) => {}
            Err(errno) => return Err(errno).doing(format_args!("bind {target:?}")),
        }
    }
    chdir(c"/").doing("enter the root")
}

fn write_file(
    directory: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
    mut content: &[u8],
) -> rustix::io::Result<()> {
    let flags = flags | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(directory, path, flags, Mode::from_raw_mode(0o644))?;
    while !content.is_empty() {
        let count = rustix::io::write(&file, content)?;
        content = content.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// Binds, and makes the target by `make` if it is missing.
fn bind_making(
    source: &CStr,
    target: &CStr,
    make: impl Fn(&[u8]) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    match mount_bind(source, target) {
        Err(Errno::NOENT) => {
            make(target.to_bytes())?;
            mount_bind(source, target)
        }
        done => done,
    }
}

/// Makes the mounts of the list. A share of which only a part is shown is mounted out of sight, below `shares` of
/// the initramfs, and the part is bound to its target.
fn mounts(list: &[Mount], initramfs: BorrowedFd<'_>) -> Result<()> {
    let mut hidden: Vec<(&str, CString)> = Vec::new();
    for wanted in list {
        let target = c_path(&wanted.target);
        let flags = flags(wanted);
        let shown = target.to_string_lossy();
        match &wanted.source {
            MountSource::Tmpfs { size, mode } => {
                let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
                let options = CString::new(format!("mode={mode:o}{size}")).unwrap_or_default();
                mount_deep(c"tmpfs", &target, c"tmpfs", flags, Some(&options))
                    .doing(format_args!("mount a tmpfs on {shown}"))?;
            }
            MountSource::Virtiofs { tag, path } if path.is_empty() => {
                let source = c_path(tag.as_bytes());
                mount_deep(&source, &target, c"virtiofs", flags, None)
                    .doing(format_args!("mount the share {tag:?} on {shown}"))?;
            }
            MountSource::Virtiofs { tag, path } => {
                fchdir(initramfs).doing("enter the initramfs")?;
                let share = match hidden.iter().find(|(known, _)| known == tag) {
                    Some((_, share)) => share.clone(),
                    None => {
                        let share = name("shares", hidden.len());
                        mkdirat(initramfs, &share, Mode::from_raw_mode(0o700))
                            .and_then(|()| {
                                mount(tag.as_str(), &share, c"virtiofs", MountFlags::empty(), None)
                            })
                            .doing(format_args!("mount the share {tag:?}"))?;
                        hidden.push((tag, share.clone()));
                        share
                    }
                };
                let source = c_path(&[share.as_bytes(), b"/", path].concat());
                bind_part(&source, &target, flags)
                    .doing(format_args!("bind a part of {tag:?} to {shown}"))?;
                chdir(c"/").doing("enter the root")?;
            }
        }
    }
    Ok(())
}

fn flags(wanted: &Mount) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, wanted.read_only);
    flags.set(MountFlags::NOEXEC, wanted.no_exec);
    flags.set(MountFlags::NOSUID, wanted.no_suid);
    flags.set(MountFlags::NODEV, wanted.no_dev);
    flags
}

/// Mounts, and makes the mount point with everything above it.
fn mount_deep(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: MountFlags,
    options: Option<&CStr>,
) -> rustix::io::Result<()> {
    match mount(source, target, kind, flags, options) {
        Err(Errno::NOENT) => {
            make_directories(target.to_bytes())?;
            mount(source, target, kind, flags, options)
        }
        done => done,
    }
}

fn bind_part(source: &CStr, target: &CStr, flags: MountFlags) -> rustix::io::Result<()> {
    let is_directory = {
        let stat = rustix::fs::stat(source)?;
        rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir()
    };
    bind_making(source, target, if is_directory { make_directories } else { make_file })?;
    if flags.is_empty() {
        return Ok(());
    }
    let remounted = rustix::mount::mount_remount(target, flags | MountFlags::BIND, c"");
    if remounted.is_err() {
        // Never leave a mount with more rights than asked for.
        let _ = unmount(target, UnmountFlags::DETACH);
    }
    remounted
}

/// Makes the container's cgroup and sets its limits. Without cgroup v2 in the kernel that is a failure only if
/// there is a limit to set.
fn cgroup(limits: &Limits, initramfs: BorrowedFd<'_>, before: Option<OwnedFd>) -> Result<Option<OwnedFd>> {
    let limited = *limits != Limits::default();
    match before.map_or_else(|| prepare_cgroup(initramfs), Ok) {
        Ok(directory) => {
            let set = |file: &CStr, value: String| {
                write_file(directory.as_fd(), file, OFlags::empty(), value.as_bytes())
                    .doing(format_args!("set {file:?} to {value}"))
            };
            if let Some(bytes) = limits.memory_max {
                set(c"memory.max", format!("{bytes}"))?;
            }
            if let Some(count) = limits.pids_max {
                set(c"pids.max", format!("{count}"))?;
            }
            if let Some(cpu) = limits.cpu {
                set(c"cpu.max", format!("{} {}", cpu.quota_us, cpu.period_us))?;
            }
            Ok(Some(directory))
        }
        Err(failure) if limited => Err(failure),
        Err(_) => Ok(None),
    }
}

fn prepare_cgroup(initramfs: BorrowedFd<'_>) -> Result<OwnedFd> {
    fchdir(initramfs).doing("enter the initramfs")?;
    let mounted = mount(c"cgroup", c"cgroup", c"cgroup2", MountFlags::empty(), None);
    chdir(c"/").doing("enter the root")?;
    mounted.doing("mount cgroup2")?;
    let enable =
        |controllers| write_file(initramfs, c"cgroup/cgroup.subtree_control", OFlags::empty(), controllers);
    if enable(b"+memory +pids +cpu") == Err(Errno::INVAL) {
        // The kernel lacks one of them. The limit that needs it fails with its own name.
        for controller in [&b"+memory"[..], b"+pids", b"+cpu"] {
            let _ = enable(controller);
        }
    }
    match mkdirat(initramfs, c"cgroup/container", Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).doing("make a cgroup"),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(initramfs, c"cgroup/container", flags, Mode::empty()).doing("open the cgroup")
}

/// Whether the kernel has killed something in the cgroup for want of memory.
pub(crate) fn met_memory_limit(cgroup: BorrowedFd<'_>) -> bool {
    let mut text = [0_u8; 512];
    let read = openat(cgroup, c"memory.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|events| rustix::io::read(&events, &mut text));
    let Ok(length) = read else { return false };
    let text = text.get(..length).unwrap_or_default();
    text.split(|byte| *byte == b'\n').any(|line| line.strip_prefix(b"oom_kill ").is_some_and(|n| n != b"0"))
}
