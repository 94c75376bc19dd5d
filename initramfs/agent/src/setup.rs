//! Carrying out [`Configure`].

use alloc::{ffi::CString, format, string::String, vec::Vec};
use core::ffi::CStr;

use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::{AsFd as _, BorrowedFd, OwnedFd},
    fs::{FlockOperation, Mode, OFlags, flock, mkdirat, openat},
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    process::{chdir, fchdir},
    time::{ClockId, Timespec, clock_settime},
};
use servin_init::proto::{Configure, Limits, Mount, MountSource, Networks, Prepare};

use crate::{
    boot::{c_path, make_directories, make_file, mount_making, name, remount_read_only},
    failure::{Doing as _, Failure},
    hosts, observe, sys,
};

type Result<T> = core::result::Result<T, Failure>;

/// What the agent keeps of the container after it was set up.
#[derive(Debug, Default)]
pub(crate) struct Container {
    pub(crate) hostname: String,
    /// /dev/shm is mounted, with this size.
    shm_size: Option<u64>,
    /// Files that lie over the image's, by their place in [`FILES`].
    files: [bool; FILES.len()],
    /// Content of /etc/hosts, but for what the container's programs wrote.
    hosts: Vec<u8>,
    /// The container's cgroup, as a directory; `None` if the kernel has no cgroup v2.
    pub(crate) cgroup: Option<OwnedFd>,
    /// Something that outlives the machine can be written: it must be synced before the end is told.
    pub(crate) has_shares: bool,
}

/// Files of the initramfs, what they are bound to, and whether that is made where an image has none.
const FILES: [(&CStr, &CStr, bool); 5] = [
    (c"files/hostname", c"/etc/hostname", true),
    (c"files/hosts", c"/etc/hosts", true),
    (c"files/resolv.conf", c"/etc/resolv.conf", true),
    (c"files/machine-id", c"/etc/machine-id", false),
    // D-Bus had one before, and some images have no other.
    (c"files/machine-id", c"/var/lib/dbus/machine-id", false),
];

/// Size of /dev/shm if nobody says another.
const SHM_SIZE: u64 = 64 << 20;

/// Makes what does not depend on the container: a machine that is saved now has it, and [`configure`] finds it there.
pub(crate) fn prepare(prepare: &Prepare, initramfs: BorrowedFd<'_>) -> Result<Container> {
    let mut container = Container::default();
    loopback();
    shm(&mut container, SHM_SIZE)?;
    let empty = Some(&[][..]);
    files(
        &mut container,
        [empty, empty.filter(|_| prepare.hosts), empty.filter(|_| prepare.resolv_conf), None, None],
        initramfs,
    )?;
    // Without cgroups in the kernel there is none to prepare.
    container.cgroup = prepare_cgroup(initramfs).ok();
    Ok(container)
}

/// Sets the clock, the random pool, names, files, mounts and limits. The root is entered already; `initramfs` is
/// what lies below it. `before` is what [`prepare`], or an earlier call in a machine that was restored since, has made.
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
    if !configure.domainname.is_empty() {
        rustix::system::setdomainname(configure.domainname.as_bytes()).doing("set the domain name")?;
    }
    let mut container = match before {
        Some(before) => before,
        None => {
            loopback();
            Container::default()
        }
    };
    container.hostname.clone_from(&configure.hostname);
    shm(&mut container, configure.shm_size.unwrap_or(SHM_SIZE))?;
    let mut hostname = configure.hostname.clone().into_bytes();
    hostname.push(b'\n');
    let hostname = Some(&hostname[..]).filter(|_| !configure.hostname.is_empty());
    let machine_id = configure.machine_id.as_deref();
    let hosts = hosts_file(&mut container, configure.hosts.as_deref(), initramfs)?;
    files(
        &mut container,
        [hostname, hosts.as_deref(), configure.resolv_conf.as_deref(), machine_id, machine_id],
        initramfs,
    )?;
    mounts(&configure.mounts, initramfs)?;
    if configure.read_only {
        remount_read_only(c"/", MountFlags::empty()).doing("make the root read-only")?;
    }
    if !configure.sysctls.is_empty() {
        sysctls(&configure.sysctls, initramfs)?;
    }
    container.has_shares |=
        configure.mounts.iter().any(|m| !m.read_only && matches!(m.source, MountSource::Virtiofs { .. }));
    container.cgroup = cgroup(&configure.limits, initramfs, container.cgroup.take())?;
    Ok(container)
}

/// Mounts /dev/shm, or gives it another size.
fn shm(container: &mut Container, size: u64) -> Result<()> {
    if container.shm_size == Some(size) {
        return Ok(());
    }
    let options = CString::new(format!("mode=1777,size={size}")).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match container.shm_size.replace(size) {
        None => mount_making(c"shm", c"/dev/shm", c"tmpfs", flags, Some(&options)),
        Some(_) => rustix::mount::mount_remount(c"/dev/shm", flags, &options),
    }
    .doing("mount /dev/shm")
}

/// A kernel without IPv4 has no loopback interface to bring up, and that is all right.
fn loopback() {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let _ = socket.and_then(|socket| sys::loopback_up(socket.as_fd()));
}

/// Puts the host's files over the image's. They lie in the initramfs, so a read-only root does not matter; where
/// the image has no such file and none can be made, the container does without.
fn files(
    container: &mut Container,
    contents: [Option<&[u8]>; FILES.len()],
    initramfs: BorrowedFd<'_>,
) -> Result<()> {
    for (((_, target, _), content), is_bound) in FILES.into_iter().zip(contents).zip(&mut container.files) {
        if content.is_none() && core::mem::take(is_bound) {
            unmount(target, UnmountFlags::DETACH).doing(format_args!("show the image's {target:?}"))?;
        }
    }
    lay(container, contents, initramfs)
}

/// Puts those files over the image's for which there is content.
fn lay(
    container: &mut Container,
    contents: [Option<&[u8]>; FILES.len()],
    initramfs: BorrowedFd<'_>,
) -> Result<()> {
    let mut entered = false;
    for (((file, target, makes), content), is_bound) in
        FILES.into_iter().zip(contents).zip(&mut container.files)
    {
        let Some(content) = content else { continue };
        write_file(initramfs, file, OFlags::CREATE | OFlags::TRUNC, content)
            .doing(format_args!("write {file:?}"))?;
        if *is_bound {
            continue;
        }
        if !entered {
            fchdir(initramfs).doing("enter the initramfs")?;
            entered = true;
        }
        match bind_making(file, target, |path| if makes { make_file(path) } else { Err(Errno::NOENT) }) {
            Ok(()) => *is_bound = true,
            Err(Errno::ROFS | Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(errno).doing(format_args!("bind {target:?}")),
        }
    }
    if entered { chdir(c"/").doing("enter the root") } else { Ok(()) }
}

/// Changes the files that tell of the networks.
pub(crate) fn tell(container: &mut Container, networks: &Networks, initramfs: BorrowedFd<'_>) -> Result<()> {
    let hosts = hosts_file(container, networks.hosts.as_deref(), initramfs)?;
    lay(container, [None, hosts.as_deref(), networks.resolv_conf.as_deref(), None, None], initramfs)
}

/// Content of /etc/hosts where servin's lines are to be these, with those that the container's programs wrote.
fn hosts_file(
    container: &mut Container,
    wanted: Option<&[u8]>,
    initramfs: BorrowedFd<'_>,
) -> Result<Option<Vec<u8>>> {
    const LONGEST: usize = 4 << 20;
    let Some(wanted) = wanted else { return Ok(None) };
    let content = if container.hosts.is_empty() {
        wanted.to_vec()
    } else {
        let current = observe::read(initramfs, "files/hosts", LONGEST)
            .filter(|current| current.len() < LONGEST)
            .ok_or_else(|| {
                Failure::new("cannot change /etc/hosts: it cannot be read, or has 4 MiB or more")
            })?;
        hosts::changed(&current, &container.hosts, wanted)
    };
    container.hosts = wanted.to_vec();
    Ok(Some(content))
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
            set_limits(directory.as_fd(), limits)?;
            Ok(Some(directory))
        }
        Err(failure) if limited => Err(failure),
        Err(_) => Ok(None),
    }
}

/// Sets the limits that are given.
pub(crate) fn set_limits(cgroup: BorrowedFd<'_>, limits: &Limits) -> Result<()> {
    let set = |file: &CStr, value: &str| {
        write_file(cgroup, file, OFlags::empty(), value.as_bytes())
            .doing(format_args!("set {} to {value}", file.to_string_lossy()))
    };
    if let Some(bytes) = limits.memory_max {
        set(c"memory.max", &format!("{bytes}"))?;
    }
    if let Some(count) = limits.pids_max {
        match count {
            u64::MAX => set(c"pids.max", "max")?,
            _ => set(c"pids.max", &format!("{count}"))?,
        }
    }
    if let Some(cpu) = limits.cpu {
        match cpu.quota_us {
            u32::MAX => set(c"cpu.max", "max")?,
            _ => set(c"cpu.max", &format!("{} {}", cpu.quota_us, cpu.period_us))?,
        }
    }
    limits.files.iter().try_for_each(|(file, value)| set(&c_path(file.as_bytes()), value))
}

/// Lets everything in the cgroup stand still or go on, and waits until it does (Documentation/admin-guide/cgroup-v2.rst,
/// cgroup.freeze). Without the wait for the second, a first look after the next would find what is not true any more.
pub(crate) fn freeze(cgroup: BorrowedFd<'_>, frozen: bool) -> Result<()> {
    let (value, wanted) = if frozen { (b"1", b"frozen 1") } else { (b"0", b"frozen 0") };
    write_file(cgroup, c"cgroup.freeze", OFlags::empty(), value).doing("write cgroup.freeze")?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let events = openat(cgroup, c"cgroup.events", flags, Mode::empty()).doing("open cgroup.events")?;
    loop {
        let mut text = [0; 64];
        rustix::io::pread(&events, &mut text, 0).doing("read cgroup.events")?;
        if text.windows(8).any(|word| word == wanted) {
            return Ok(());
        }
        if !wait(events.as_fd(), PollFlags::PRI) {
            // What waits for a disk or a share in the kernel does not stand still.
            return Err(Errno::TIMEDOUT).doing("stop the programs");
        }
    }
}

/// Takes the turn of those who start programs in the container's cgroup, and of the file server while they stand still for
/// it: never both. It ends with the descriptor; there is none without a cgroup.
pub(crate) fn turn(initramfs: BorrowedFd<'_>, how: FlockOperation) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(cgroup) = openat(initramfs, c"cgroup/container", flags, Mode::empty()) else { return Ok(None) };
    flock(&cgroup, how)?;
    Ok(Some(cgroup))
}

/// Waits for this to be so of a descriptor, and not for ever.
pub(crate) fn wait(fd: BorrowedFd<'_>, flags: PollFlags) -> bool {
    const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&PATIENCE)), Ok(1..) | Err(Errno::INTR))
}

/// Sets the kernel's settings through a /proc of our own, which nobody else sees.
fn sysctls(list: &[(String, String)], initramfs: BorrowedFd<'_>) -> Result<()> {
    fchdir(initramfs).doing("enter the initramfs")?;
    match mkdirat(initramfs, c"proc", Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).doing("make a place for /proc"),
    }
    mount(c"proc", c"proc", c"proc", MountFlags::empty(), None).doing("mount /proc for settings")?;
    let set = list.iter().try_for_each(|(path, value)| {
        let file = c_path(&[b"proc/sys/", path.as_bytes()].concat());
        write_file(initramfs, &file, OFlags::empty(), value.as_bytes())
            .doing(format_args!("set the sysctl {path} to {value}"))
    });
    let unmounted = unmount(c"proc", UnmountFlags::DETACH).doing("unmount /proc");
    chdir(c"/").doing("enter the root")?;
    set.and(unmounted)
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
