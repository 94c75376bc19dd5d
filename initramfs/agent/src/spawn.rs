//! From an [`Exec`] to a running [`Program`].

use alloc::{
    ffi::CString,
    format,
    string::{String, ToString as _},
    vec::Vec,
};

use rustix::{
    fd::{AsFd as _, BorrowedFd, OwnedFd},
    fs::{Gid, Mode, OFlags, Uid, fchown},
    io::Errno,
    mount::{UnmountFlags, mount_bind, unmount},
    pipe::{PipeFlags, pipe_with},
    pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use servin_init::proto::{Channel, DEFAULT_CAPABILITIES, Exec, Stage, StreamMessage, WindowSize};

use crate::{
    boot::{c_path, make_directories, make_file},
    child::{self, Place, Plan},
    environment, files, init,
    link::{Link, Transport, above_stdio},
    program::{Output, Program},
    setup::Container,
    sys::{self, Parked, Strings},
    user::{self, Identity},
};

/// A program that could not be started: as `ExecFailed` tells it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) stage: Stage,
    pub(crate) errno: i32,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn request(message: &str) -> Self {
        Self { stage: Stage::Request, errno: 0, message: message.into() }
    }
}

fn refuse(stage: Stage, doing: &'static str) -> impl Fn(Errno) -> Refusal {
    move |errno| Refusal { stage, errno: errno.raw_os_error(), message: doing.to_string() }
}

/// The parked process, if `exec` can be carried out in it: one that was given other capabilities than are asked for goes,
/// and with it what it has mounted.
pub(crate) fn fit(parked: Option<Parked>, exec: &Exec) -> rustix::io::Result<Option<Parked>> {
    let Some(parked) = parked else { return Ok(None) };
    if exec.capabilities == DEFAULT_CAPABILITIES {
        return Ok(Some(parked));
    }
    parked.dismiss();
    for path in [c"/sys/fs/cgroup", c"/proc"] {
        match unmount(path, UnmountFlags::DETACH) {
            // A kernel without cgroups.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

/// Starts the program at its place; the main program in `parked` if there is one. Also returns the program's process id
/// as it sees it.
pub(crate) fn start(
    exec: &Exec,
    container: &Container,
    transport: &Transport,
    place: Place<'_>,
    parked: Option<Parked>,
) -> Result<(Program, u32), Refusal> {
    let Some(name) = exec.argv.first() else { return Err(Refusal::request("no program is named")) };
    // First, so that the host can take the connection while the rest happens here.
    let mut link = Link::connect(transport, Channel::HostStream)
        .map_err(refuse(Stage::Stdio, "connect the program's stream"))?;
    link.queue(&StreamMessage::Hello { id: exec.id }).map_err(|error| Refusal {
        stage: Stage::Stdio,
        errno: 0,
        message: error.to_string(),
    })?;
    let identity = identity(&exec.user, &exec.groups)?;
    let stdio = match exec.terminal {
        Some(size) => terminal(size, &identity, matches!(place, Place::Main)),
        None => pipes(exec.stdin, &identity),
    };
    let stdio = stdio.map_err(refuse(Stage::Stdio, "make the program's input and output"))?;
    if exec.create_cwd && !exec.cwd.is_empty() {
        // What cannot be made cannot be entered either, and that is the better message.
        let _ = make_directories(&exec.cwd);
    }
    let (stdin, stdout, stderr) = &stdio.child;
    let mut argv: Vec<CString> = exec.argv.iter().map(|arg| c_path(arg)).collect();
    let mut candidates = environment::candidates(name, &exec.env);
    if let Place::Machine(_) = place {
        candidates = Vec::from([files::PATH.into()]);
    }
    if exec.init && matches!(place, Place::Main) {
        argv.splice(..0, [init::NAME.into(), init::SEPARATOR.into()]);
        candidates = Vec::from([init::PATH.into()]);
    }
    let mut plan = Plan {
        exec,
        identity: &identity,
        groups: identity.groups.iter().copied().map(Gid::from_raw).collect(),
        stdio: [
            stdin.as_fd(),
            stdout.as_ref().unwrap_or(stdin).as_fd(),
            stderr.as_ref().unwrap_or(stdin).as_fd(),
        ],
        place,
        is_settled: parked.is_some(),
        cwd: c_path(&exec.cwd),
        oom_score_adj: exec.oom_score_adj.map(|score| c_path(score.to_string().as_bytes())),
        candidates,
        argv: Strings::new(argv),
        env: Strings::new(environment::complete(exec, &container.hostname, &identity.home)),
        pid: 0,
        fault: None,
    };
    let cgroup = container.cgroup.as_ref().map(|cgroup| cgroup.as_fd());
    let cgroup = cgroup.filter(|_| !matches!(place, Place::Machine(_)));
    let (pid, pidfd) = match parked {
        Some(parked) => parked.go(&mut plan, child::run),
        None => sys::spawn(matches!(place, Place::Main), cgroup, &mut plan, child::run)
            .map_err(refuse(Stage::Namespace, "make a process"))?,
    };
    let (container_pid, fault) = (plan.pid, plan.fault);
    if let Some((stage, doing, errno)) = fault {
        // It has ended already: this only takes it out of the process table.
        let options = rustix::process::WaitIdOptions::EXITED;
        let _ = rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), options);
        let object = match stage {
            Stage::Program => format!(" {}", String::from_utf8_lossy(name)),
            Stage::WorkingDirectory => format!(" {}", String::from_utf8_lossy(&exec.cwd)),
            _ => String::new(),
        };
        return Err(Refusal { stage, errno: errno.raw_os_error(), message: format!("{doing}{object}") });
    }
    Ok((Program::new(exec.id, exec.main, pid, pidfd, link, stdio.stdin, stdio.output), container_pid))
}

/// Reads the container's user files and looks `user` and further groups up.
pub(crate) fn identity(user: &str, more: &[String]) -> Result<Identity, Refusal> {
    let read = |path| match read_file(path) {
        Ok(content) => Ok(content),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Vec::new()),
        Err(errno) => Err(Refusal {
            stage: Stage::User,
            errno: errno.raw_os_error(),
            message: format!("read {path:?} of the container"),
        }),
    };
    let group = read(c"/etc/group")?;
    let fail = |message| Refusal { stage: Stage::User, errno: 0, message };
    let mut identity = user::look_up(user, &read(c"/etc/passwd")?, &group).map_err(fail)?;
    for wanted in more {
        let found = user::group(wanted, &group).map_err(fail)?;
        if !identity.groups.contains(&found) {
            identity.groups.push(found);
        }
    }
    Ok(identity)
}

/// The content of a file, up to 4 MiB.
fn read_file(path: &core::ffi::CStr) -> rustix::io::Result<Vec<u8>> {
    const LONGEST: usize = 4 << 20;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let mut content = Vec::new();
    while content.len() < LONGEST {
        content.reserve(4096);
        let read = rustix::io::read(&file, rustix::buffer::spare_capacity(&mut content))?;
        if read == 0 {
            break;
        }
    }
    Ok(content)
}

/// A program's descriptors: its own, and the agent's ends of them.
#[derive(Debug)]
struct Stdio {
    /// Standard input, output and error; where the latter are `None` they are the same as the input.
    child: (OwnedFd, Option<OwnedFd>, Option<OwnedFd>),
    /// The agent's end of standard input, unless it is the terminal.
    stdin: Option<OwnedFd>,
    output: Output,
}

fn terminal(size: WindowSize, identity: &Identity, is_main: bool) -> rustix::io::Result<Stdio> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = above_stdio(rustix::fs::open(c"/dev/ptmx", flags, Mode::empty())?)?;
    unlockpt(&master)?;
    resize(master.as_fd(), size)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = above_stdio(ioctl_tiocgptpeer(&master, flags)?)?;
    own(&slave, identity)?;
    if is_main {
        // The container's console, where it can be made; few programs look for it.
        let console = ptsname(&master, Vec::new())
            .and_then(|name| make_file(b"/dev/console").and_then(|()| mount_bind(&name, c"/dev/console")));
        let _ = console;
    }
    Ok(Stdio { child: (slave, None, None), stdin: None, output: Output::Terminal(Some(master)) })
}

/// Tells a terminal, by its master, what size it has.
pub(crate) fn resize(master: BorrowedFd<'_>, size: WindowSize) -> rustix::io::Result<()> {
    tcsetwinsize(master, Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 })
}

fn pipes(with_stdin: bool, identity: &Identity) -> rustix::io::Result<Stdio> {
    let (child_stdin, stdin) = if with_stdin {
        let (read, write) = pipe(identity)?;
        // The other end is a description of its own and stays as programs expect it.
        rustix::fs::fcntl_setfl(&write, OFlags::NONBLOCK)?;
        (read, Some(write))
    } else {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        (above_stdio(rustix::fs::open(c"/dev/null", flags, Mode::empty())?)?, None)
    };
    let (stdout, child_stdout) = pipe(identity)?;
    let (stderr, child_stderr) = pipe(identity)?;
    Ok(Stdio {
        child: (child_stdin, Some(child_stdout), Some(child_stderr)),
        stdin,
        output: Output::Pipes(Some(stdout), Some(stderr)),
    })
}

fn pipe(identity: &Identity) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    own(&write, identity)?;
    Ok((above_stdio(read)?, above_stdio(write)?))
}

/// Gives a pipe or terminal to the user, who may open it again by /dev/stdout and the like.
fn own(fd: &OwnedFd, identity: &Identity) -> rustix::io::Result<()> {
    if identity.uid == 0 {
        return Ok(());
    }
    fchown(fd, Some(Uid::from_raw(identity.uid)), None)
}
