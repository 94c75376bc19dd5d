//! The steps of a new process from its birth to its program.
//!
//! They run in the agent's memory while the agent stands still (see [`sys::spawn`]), so they allocate nothing that
//! they would have to give back, and leave their result in the [`Plan`].

use alloc::{ffi::CString, vec::Vec};
use core::ffi::CStr;

use rustix::{
    fd::BorrowedFd,
    fs::{Gid, Mode, OFlags},
    io::Errno,
    mount::{MountFlags, mount, mount_bind},
    process::Uid,
    thread::ThreadNameSpaceType,
};
use servin_init::proto::{Capabilities, DEFAULT_CAPABILITIES, Exec, Stage};

use crate::{
    boot::{mount_making, remount_read_only},
    files,
    sys::{self, Strings},
    user::Identity,
};

/// The last capability of this kernel, CAP_CHECKPOINT_RESTORE.
const LAST_CAPABILITY: u32 = 40;

/// A step that failed: where, doing what, why.
pub(crate) type Fault = (Stage, &'static str, Errno);

/// Where a program runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    /// It is the container's main program, which makes its namespaces.
    Main,
    /// In the namespaces of the main program, of which this is a pidfd.
    Beside(BorrowedFd<'a>),
    /// With the agent, as a program of the initramfs that this is the directory of and that it finds under
    /// [`files::INITRAMFS`].
    Machine(BorrowedFd<'a>),
}

/// What the child is to do, prepared by the agent, and how far it came.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) exec: &'a Exec,
    pub(crate) identity: &'a Identity,
    /// Supplementary groups of `identity`.
    pub(crate) groups: Vec<Gid>,
    /// Descriptors above 2 that become 0, 1 and 2.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    pub(crate) place: Place<'a>,
    /// The child was parked: [`settle_in`] is done.
    pub(crate) is_settled: bool,
    pub(crate) cwd: CString,
    /// Written into the file of this name in /proc/self.
    pub(crate) oom_score_adj: Option<CString>,
    pub(crate) candidates: Vec<CString>,
    pub(crate) argv: Strings,
    pub(crate) env: Strings,
    /// Result: the process id in the container.
    pub(crate) pid: u32,
    /// Result: `None` if the program was executed.
    pub(crate) fault: Option<Fault>,
}

/// The child's whole life before its program.
pub(crate) fn run(plan: &mut Plan<'_>) {
    if let Err(fault) = prepare(plan) {
        plan.fault = Some(fault);
        return;
    }
    let errno = sys::execute(&plan.candidates, &plan.argv, &plan.env);
    plan.fault = Some((Stage::Program, "execute", errno));
}

fn prepare(plan: &mut Plan<'_>) -> Result<(), Fault> {
    let at = |stage, doing| move |errno| (stage, doing, errno);
    let exec = plan.exec;
    match plan.place {
        Place::Beside(process) => {
            rustix::thread::move_into_thread_name_spaces(process, ThreadNameSpaceType::CONTROL_GROUP)
                .map_err(at(Stage::Namespace, "join the container's cgroup namespace"))?;
            plan.pid = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
        }
        Place::Machine(_) => plan.pid = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs(),
        Place::Main => {
            if !plan.is_settled {
                settle_in(exec.capabilities)?;
            }
            plan.pid = 1;
        }
    }
    if !plan.is_settled {
        rustix::process::setsid().map_err(at(Stage::Stdio, "make a session"))?;
    }
    let [stdin, stdout, stderr] = plan.stdio;
    if exec.terminal.is_some() {
        rustix::process::ioctl_tiocsctty(stdin).map_err(at(Stage::Stdio, "take the terminal"))?;
    }
    rustix::stdio::dup2_stdin(stdin).map_err(at(Stage::Stdio, "set standard input"))?;
    rustix::stdio::dup2_stdout(stdout).map_err(at(Stage::Stdio, "set standard output"))?;
    rustix::stdio::dup2_stderr(stderr).map_err(at(Stage::Stdio, "set standard error"))?;
    if let Place::Machine(initramfs) = plan.place {
        // The working directory first: it may have the number that is taken now.
        rustix::process::fchdir(initramfs).map_err(at(Stage::Program, "enter the initramfs"))?;
        sys::dup(initramfs, files::INITRAMFS).map_err(at(Stage::Program, "pass the initramfs on"))?;
    }
    if !plan.cwd.is_empty() {
        rustix::process::chdir(&plan.cwd)
            .map_err(at(Stage::WorkingDirectory, "enter the working directory"))?;
    }
    for limit in &exec.rlimits {
        sys::set_rlimit(limit).map_err(at(Stage::Limits, "set a resource limit"))?;
    }
    if let Some(score) = &plan.oom_score_adj {
        write_oom_score(score).map_err(at(Stage::Limits, "set oom_score_adj"))?;
    }
    credentials(plan).map_err(at(Stage::Credentials, "change user, groups and capabilities"))
}

/// The main program's first part, which depends on nothing but its capabilities: its namespaces and what shows them.
fn settle_in(capabilities: Capabilities) -> Result<(), Fault> {
    sys::unshare_cgroup().map_err(|errno| (Stage::Namespace, "make a cgroup namespace", errno))?;
    mount_namespace_views(capabilities)
}

/// The same for a child that is parked: with the usual capabilities, a session, and the bounding set.
pub(crate) fn settle_in_early() -> bool {
    settle_in(DEFAULT_CAPABILITIES).is_ok()
        && rustix::process::setsid().is_ok()
        && bound(DEFAULT_CAPABILITIES).is_ok()
}

fn bound(capabilities: Capabilities) -> Result<(), Errno> {
    (0..=LAST_CAPABILITY).filter(|n| capabilities.0 >> n & 1 == 0).try_for_each(sys::drop_from_bounding_set)
}

fn write_oom_score(score: &CStr) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty())?;
    rustix::io::write(&file, score.to_bytes()).map(drop)
}

/// Without CAP_* in the bounding set, execve gives root no more than the set, and other users nothing: no other
/// set needs to be touched.
fn credentials(plan: &Plan<'_>) -> Result<(), Errno> {
    if !plan.is_settled {
        bound(plan.exec.capabilities)?;
    }
    if !plan.groups.is_empty() {
        rustix::thread::set_thread_groups(&plan.groups)?;
    }
    if plan.identity.gid != 0 {
        let gid = Gid::from_raw(plan.identity.gid);
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    }
    if plan.identity.uid != 0 {
        let uid = Uid::from_raw(plan.identity.uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    if plan.exec.no_new_privileges {
        rustix::thread::set_no_new_privs(true)?;
    }
    Ok(())
}

/// Mounts what shows the namespaces of whoever mounts it: /proc, and the cgroup file system with the container's
/// cgroup as its root.
///
/// Writable places in /proc that speak to the kernel are then made read-only, and files that show its inside are
/// hidden, as in any container. What they guard here is the guest's own kernel, so it is fidelity rather than
/// isolation, and a fully privileged container goes without.
fn mount_namespace_views(capabilities: Capabilities) -> Result<(), Fault> {
    const QUIET: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
    let at = |doing| move |errno| (Stage::Namespace, doing, errno);
    mount_making(c"proc", c"/proc", c"proc", QUIET, None).map_err(at("mount /proc"))?;
    let all = (1 << (LAST_CAPABILITY + 1)) - 1;
    let privileged = capabilities.0 & all == all;
    let flags = if privileged { QUIET } else { QUIET.union(MountFlags::RDONLY) };
    // A kernel without sysfs or cgroups has no such directory.
    match mount(c"cgroup", c"/sys/fs/cgroup", c"cgroup2", flags, None) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
        Err(errno) => return Err(at("mount /sys/fs/cgroup")(errno)),
    }
    if privileged {
        // It was mounted read-only before anything was known of the container.
        return existing(rustix::mount::mount_remount(c"/sys", QUIET, c""))
            .map(drop)
            .map_err(at("make /sys writable"));
    }
    for path in [c"/proc/sys", c"/proc/sysrq-trigger", c"/proc/irq", c"/proc/bus", c"/proc/fs"] {
        existing(mount_bind(path, path))
            .and_then(|exists| if exists { remount_read_only(path, QUIET) } else { Ok(()) })
            .map_err(at("make a part of /proc read-only"))?;
    }
    for path in [c"/proc/kcore", c"/proc/keys", c"/proc/timer_list"] {
        existing(mount_bind::<&CStr, &CStr>(c"/dev/null", path)).map_err(at("hide a file of /proc"))?;
    }
    Ok(())
}

/// Not every kernel has every file.
fn existing(done: Result<(), Errno>) -> Result<bool, Errno> {
    match done {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}
