//! Messages of the control connection.

use alloc::{string::String, vec::Vec};

use super::{
    Configure, Encode, Error, Exec, Frame, Limits, Networks, Prepare, WindowSize, kind,
    wire::{Reader, Writer},
};

/// What the host tells the agent.
// There is one at a time, and it is not kept.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// Make the container: names, files, mounts, clock, limits. Once for each `Hello`, before any `Exec`;
    /// answered by [`GuestMessage::Ready`].
    Configure(Configure),
    /// Make what does not depend on the container, before the machine is saved as a template. At most once, before
    /// `Configure`; no answer of its own.
    Prepare(Prepare),
    /// Start a program; answered by [`GuestMessage::Started`] or [`GuestMessage::ExecFailed`].
    Exec(Exec),
    /// Send a signal to a program (not to its children). One that has exited is not an error.
    Signal {
        /// The `id` of its `Exec`.
        id: u32,
        /// Linux signal number, 1 to 64.
        signal: u8,
    },
    /// Start a file server ([`super::FilesAsk`]): a program like those of `Exec`, answered like them, but it sees the
    /// container's root with all rights, belongs to no cgroup of its, and needs no main program. Where there was none it
    /// is the main program.
    Files {
        /// Chosen by the host as for `Exec`.
        id: u32,
    },
    /// The host's terminal has a new size.
    Resize {
        /// The `id` of an `Exec` with a terminal; without one it is ignored.
        id: u32,
        /// The new size.
        size: WindowSize,
    },
    /// Write everything back to the disks and shares; answered by [`GuestMessage::Synced`].
    Sync {
        /// Comes back in the answer.
        token: u64,
    },
    /// Kill what runs, write back, power off. No answer: the machine ends.
    Shutdown,
    /// Set these limits of the container's cgroup; what is `None` stays. Answered by [`GuestMessage::Updated`].
    Update(Limits),
    /// Tell something about the container as it is now; answered by [`GuestMessage::Observed`].
    Observe {
        /// Comes back in the answer.
        token: u64,
        /// What about.
        subject: Subject,
    },
    /// Let the container stand still, or go on; answered by [`GuestMessage::Frozen`]. While it stands still no program of
    /// it runs, nothing is read of what programs wrote, all that was read is on its way, and the host starts no program.
    Freeze {
        /// It stands still.
        frozen: bool,
    },
    /// Move the container to these networks; answered by [`GuestMessage::Networked`].
    Networks(Networks),
}

/// What [`HostMessage::Observe`] asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// What it uses: files of its cgroup and of /proc, each as a line `== NAME` and its text. A file that is not there is
    /// left out.
    Usage,
    /// The line of /proc/uptime, then its processes, each as three lines: /proc/PID/stat, `Uid:` of /proc/PID/status, and
    /// the command line. Control characters in them are blanks.
    Processes,
}

/// The agent's first message on a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Hello {
    /// [`super::VERSION`] of the agent.
    pub version: u32,
    /// 0 at boot, one more for each connection that a restored machine makes anew.
    pub generation: u32,
    /// The processor's counter (x86_64: TSC; arm64: CNTVCT_EL0) at the agent's first instruction.
    pub entry_cycles: u64,
    /// The same counter when this message was written.
    pub hello_cycles: u64,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

impl ExitStatus {
    /// The code a shell shows: the program's own, or 128 and the signal.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 | signal,
        }
    }
}

/// Which step of starting a program failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The request itself: no argv, a second main program, an `id` in use, no main program to join.
    Request,
    /// Looking up user or group; the message names it.
    User,
    /// Pipes, terminal or the stream's connection.
    Stdio,
    /// Cloning, joining the container's namespaces or mounting its /proc.
    Namespace,
    /// The working directory is missing or may not be entered.
    WorkingDirectory,
    /// Resource limits.
    Limits,
    /// Groups, user, capabilities.
    Credentials,
    /// The program itself. `ENOENT` is "not found" (127), anything else "cannot be executed" (126).
    Program,
}

impl Stage {
    const ALL: [Self; 8] = [
        Self::Request,
        Self::User,
        Self::Stdio,
        Self::Namespace,
        Self::WorkingDirectory,
        Self::Limits,
        Self::Credentials,
        Self::Program,
    ];
}

/// What the agent tells the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestMessage {
    /// First on every control connection.
    Hello(Hello),
    /// [`HostMessage::Configure`] was carried out.
    Ready,
    /// The program was executed.
    Started {
        /// The `id` of its `Exec`.
        id: u32,
        /// Its process id as the container sees it: 1 for the main program.
        pid: u32,
    },
    /// The program could not be started; nothing of it is left.
    ExecFailed {
        /// The `id` of its `Exec`.
        id: u32,
        /// Where it failed.
        stage: Stage,
        /// Linux error number, or 0 if there is none.
        errno: i32,
        /// What was being done, for people: `"exec /bin/nope"`.
        message: String,
    },
    /// The program ended and everything it wrote is on its stream.
    Exited {
        /// The `id` of its `Exec`.
        id: u32,
        /// How.
        status: ExitStatus,
        /// The container met its memory limit and the kernel killed something in it.
        oom: bool,
    },
    /// Answer to [`HostMessage::Sync`].
    Synced {
        /// The request's token.
        token: u64,
    },
    /// Answer to [`HostMessage::Update`]. Limits before the one that failed are set.
    Updated {
        /// Linux error number, or 0 if there is none.
        errno: i32,
        /// What failed, for people; empty if all were set.
        message: String,
    },
    /// Answer to [`HostMessage::Observe`].
    Observed {
        /// The request's token.
        token: u64,
        /// There was more than fits ([`kind::MOST_OBSERVED`]).
        cut: bool,
        /// See [`Subject`].
        text: Vec<u8>,
    },
    /// Answer to [`HostMessage::Freeze`]. If it failed, the container goes on.
    Frozen {
        /// Linux error number, or 0 if there is none.
        errno: i32,
        /// What failed, for people; empty if it was done.
        message: String,
    },
    /// Answer to [`HostMessage::Networks`]. What was done before the step that failed stays, and is known to the agent: the
    /// networks that were can be asked for again.
    Networked {
        /// Linux error number, or 0 if there is none.
        errno: i32,
        /// What failed, for people; empty if it was done.
        message: String,
    },
    /// The agent cannot go on; the guest powers off after this.
    Error {
        /// Linux error number, or 0 if there is none.
        errno: i32,
        /// What failed, for people.
        message: String,
    },
}

impl Encode for HostMessage {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Self::Configure(configure) => {
                let mut w = Writer::new(out, kind::CONFIGURE);
                configure.write(&mut w);
                w.finish()
            }
            Self::Prepare(prepare) => {
                let mut w = Writer::new(out, kind::PREPARE);
                prepare.write(&mut w);
                w.finish()
            }
            Self::Exec(exec) => {
                let mut w = Writer::new(out, kind::EXEC);
                exec.write(&mut w);
                w.finish()
            }
            Self::Signal { id, signal } => {
                let mut w = Writer::new(out, kind::SIGNAL);
                w.u32(*id).u8(*signal);
                w.finish()
            }
            Self::Resize { id, size } => {
                let mut w = Writer::new(out, kind::RESIZE);
                w.u32(*id);
                size.write(&mut w);
                w.finish()
            }
            Self::Files { id } => {
                let mut w = Writer::new(out, kind::FILES);
                w.u32(*id);
                w.finish()
            }
            Self::Sync { token } => {
                let mut w = Writer::new(out, kind::SYNC);
                w.u64(*token);
                w.finish()
            }
            Self::Shutdown => Writer::new(out, kind::SHUTDOWN).finish(),
            Self::Update(limits) => {
                let mut w = Writer::new(out, kind::UPDATE);
                limits.write(&mut w);
                w.finish()
            }
            Self::Observe { token, subject } => {
                let mut w = Writer::new(out, kind::OBSERVE);
                w.u64(*token).u8(*subject as u8);
                w.finish()
            }
            Self::Freeze { frozen } => {
                let mut w = Writer::new(out, kind::FREEZE);
                w.bool(*frozen);
                w.finish()
            }
            Self::Networks(networks) => {
                let mut w = Writer::new(out, kind::NETWORKS);
                networks.write(&mut w);
                w.finish()
            }
        }
    }
}

impl HostMessage {
    /// Decodes a frame of [`super::Channel::HostControl`].
    ///
    /// # Errors
    /// If the body is not exactly one message of the frame's kind.
    pub fn decode(frame: Frame<'_>) -> Result<Self, Error> {
        let mut r = Reader::new(frame.body);
        let message = match frame.kind {
            kind::CONFIGURE => Self::Configure(Configure::read(&mut r)?),
            kind::EXEC => Self::Exec(Exec::read(&mut r)?),
            kind::PREPARE => Self::Prepare(Prepare::read(&mut r)?),
            kind::SIGNAL => {
                let (id, signal) = (r.u32()?, r.u8()?);
                if !(1..=64).contains(&signal) {
                    return Err(Error::Invalid("signal"));
                }
                Self::Signal { id, signal }
            }
            kind::RESIZE => Self::Resize { id: r.u32()?, size: WindowSize::read(&mut r)? },
            kind::FILES => Self::Files { id: r.u32()? },
            kind::SYNC => Self::Sync { token: r.u64()? },
            kind::SHUTDOWN => Self::Shutdown,
            kind::UPDATE => Self::Update(Limits::read(&mut r)?),
            kind::OBSERVE => Self::Observe {
                token: r.u64()?,
                subject: match r.u8()? {
                    0 => Subject::Usage,
                    1 => Subject::Processes,
                    _ => return Err(Error::Invalid("subject")),
                },
            },
            kind::FREEZE => Self::Freeze { frozen: r.bool("frozen")? },
            kind::NETWORKS => Self::Networks(Networks::read(&mut r)?),
            other => return Err(Error::UnknownKind(other)),
        };
        r.end()?;
        Ok(message)
    }
}

/// The start of `message`, short enough for its frame.
pub(super) fn cut(message: &str) -> &str {
    const LONGEST: usize = 4096;
    let mut end = message.len().min(LONGEST);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

impl Encode for GuestMessage {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Self::Hello(hello) => {
                let mut w = Writer::new(out, kind::HELLO);
                w.u32(hello.version).u32(hello.generation).u64(hello.entry_cycles).u64(hello.hello_cycles);
                w.finish()
            }
            Self::Ready => Writer::new(out, kind::READY).finish(),
            Self::Started { id, pid } => {
                let mut w = Writer::new(out, kind::STARTED);
                w.u32(*id).u32(*pid);
                w.finish()
            }
            Self::ExecFailed { id, stage, errno, message } => {
                let mut w = Writer::new(out, kind::EXEC_FAILED);
                w.u32(*id).u8(*stage as u8).i32(*errno).bytes(cut(message).as_bytes());
                w.finish()
            }
            Self::Exited { id, status, oom } => {
                let mut w = Writer::new(out, kind::EXITED);
                let (signalled, number) = match *status {
                    ExitStatus::Code(code) => (false, code),
                    ExitStatus::Signal(signal) => (true, signal),
                };
                w.u32(*id).bool(signalled).u8(number).bool(*oom);
                w.finish()
            }
            Self::Synced { token } => {
                let mut w = Writer::new(out, kind::SYNCED);
                w.u64(*token);
                w.finish()
            }
            Self::Updated { errno, message } => tell_errno(out, kind::UPDATED, *errno, message),
            Self::Frozen { errno, message } => tell_errno(out, kind::FROZEN, *errno, message),
            Self::Networked { errno, message } => tell_errno(out, kind::NETWORKED, *errno, message),
            Self::Observed { token, cut, text } => {
                let mut w = Writer::new(out, kind::OBSERVED);
                w.u64(*token).bool(*cut).bytes(text);
                w.finish()
            }
            Self::Error { errno, message } => tell_errno(out, kind::ERROR, *errno, message),
        }
    }
}

fn tell_errno(out: &mut Vec<u8>, kind: u16, errno: i32, message: &str) -> Result<(), Error> {
    let mut w = Writer::new(out, kind);
    w.i32(errno).bytes(cut(message).as_bytes());
    w.finish()
}

impl GuestMessage {
    /// Decodes a frame of [`super::Channel::GuestControl`].
    ///
    /// # Errors
    /// If the body is not exactly one message of the frame's kind.
    pub fn decode(frame: Frame<'_>) -> Result<Self, Error> {
        let mut r = Reader::new(frame.body);
        let message = match frame.kind {
            kind::HELLO => Self::Hello(Hello {
                version: r.u32()?,
                generation: r.u32()?,
                entry_cycles: r.u64()?,
                hello_cycles: r.u64()?,
            }),
            kind::READY => Self::Ready,
            kind::STARTED => Self::Started { id: r.u32()?, pid: r.u32()? },
            kind::EXEC_FAILED => Self::ExecFailed {
                id: r.u32()?,
                stage: *Stage::ALL.get(usize::from(r.u8()?)).ok_or(Error::Invalid("stage"))?,
                errno: r.i32()?,
                message: r.text("message")?,
            },
            kind::EXITED => {
                let id = r.u32()?;
                let status = match (r.bool("status")?, r.u8()?) {
                    (false, code) => ExitStatus::Code(code),
                    (true, signal @ 1..=64) => ExitStatus::Signal(signal),
                    (true, _) => return Err(Error::Invalid("status")),
                };
                Self::Exited { id, status, oom: r.bool("oom")? }
            }
            kind::SYNCED => Self::Synced { token: r.u64()? },
            kind::UPDATED => Self::Updated { errno: r.i32()?, message: r.text("message")? },
            kind::FROZEN => Self::Frozen { errno: r.i32()?, message: r.text("message")? },
            kind::NETWORKED => Self::Networked { errno: r.i32()?, message: r.text("message")? },
            kind::OBSERVED => Self::Observed { token: r.u64()?, cut: r.bool("cut")?, text: r.bytes()? },
            kind::ERROR => Self::Error { errno: r.i32()?, message: r.text("message")? },
            other => return Err(Error::UnknownKind(other)),
        };
        r.end()?;
        Ok(message)
    }
}
