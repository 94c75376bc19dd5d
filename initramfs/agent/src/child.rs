//! The steps of a new process from its birth to its program.
//!
//! They run in the agent's memory while the agent stands still (see [`sys::spawn`]), so they allocate nothing that
//! they would have to give back, and leave their result in the [`Plan`].

use alloc::{ffi::CString, vec::Vec};
use core::ffi::CStr;

use rustix::{
    fd::BorrowedFd,
    fs::Gid,
    io::Errno,
    mount::{MountFlags, mount, mount_bind},
    process::Uid,
    thread::ThreadNameSpaceType,
};
use servin_init::proto::{Capabilities, Exec, Stage};

use crate::{
    boot::{mount_making, remount_read_only},
    sys::{self, Strings},
    user::Identity,
};

/// The last capability of this kernel, CAP_CHECKPOINT_RESTORE.
const LAST_CAPABILITY: u32 = 40;

/// A step that failed: where, doing what, why.
pub(crate) type Fault = (Stage, &'static str, Errno);

/// What the child is to do, prepared by the agent, and how far it came.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) exec: &'a Exec,
    pub(crate) identity: &'a Identity,
    /// Supplementary groups of `identity`.
    pub(crate) groups: Vec<Gid>,
    /// Descriptors above 2 that become 0, 1 and 2.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// A process of the container whose cgroup namespace is joined; `None` for the main program, which makes it.
    pub(crate) join: Option<BorrowedFd<'a>>,
    pub(crate) cwd: CString,
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
    // As execvp(3): the first file that can be executed; a file that may not be is remembered.
    let mut worst = Errno::NOENT;
    for candidate in &plan.candidates {
        match sys::execve(candidate, &plan.argv, &plan.env) {
            Errno::NOENT | Errno::NOTDIR if plan.candidates.len() > 1 => {}
            Errno::ACCESS if plan.candidates.len() > 1 => worst = Errno::ACCESS,
            errno => {
                worst = errno;
                break;
            }
        }
    }
    plan.fault = Some((Stage::Program, "execute", worst));
}

fn prepare(plan: &mut Plan<'_>) -> Result<(), Fault> {
    let at = |stage, doing| move |errno| (stage, doing, errno);
    let exec = plan.exec;
    match plan.join {
        Some(process) => {
            rustix::thread::move_into_thread_name_spaces(process, ThreadNameSpaceType::CONTROL_GROUP)
                .map_err(at(Stage::Namespace, "join the container's cgroup namespace"))?;
            plan.pid = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
        }
        None => {
            sys::unshare_cgroup().map_err(at(Stage::Namespace, "make a cgroup namespace"))?;
            mount_namespace_views(exec.capabilities)?;
            plan.pid = 1;
        }
    }
    rustix::process::setsid().map_err(at(Stage::Stdio, "make a session"))?;
    let [stdin, stdout, stderr] = plan.stdio;
    if exec.terminal.is_some() {
        rustix::process::ioctl_tiocsctty(stdin).map_err(at(Stage::Stdio, "take the terminal"))?;
    }
    rustix::stdio::dup2_stdin(stdin).map_err(at(Stage::Stdio, "set standard input"))?;
    rustix::stdio::dup2_stdout(stdout).map_err(at(Stage::Stdio, "set standard output"))?;
    rustix::stdio::dup2_stderr(stderr).map_err(at(Stage::Stdio, "set standard error"))?;
    if !plan.cwd.is_empty() {
        rustix::process::chdir(&plan.cwd)
            .map_err(at(Stage::WorkingDirectory, "enter the working directory"))?;
    }
    for limit in &exec.rlimits {
        sys::set_rlimit(limit).map_err(at(Stage::Limits, "set a resource limit"))?;
    }
    credentials(plan).map_err(at(Stage::Credentials, "change user, groups and capabilities"))
}

/// Without CAP_* in the bounding set, execve gives root no more than the set, and other users nothing: no other
/// set needs to be touched.
fn credentials(plan: &Plan<'_>) -> Result<(), Errno> {
    for capability in (0..=LAST_CAPABILITY).filter(|n| plan.exec.capabilities.0 >> n & 1 == 0) {
        sys::drop_from_bounding_set(capability)?;
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
        return Ok(());
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
