//! A program to be started in the container.

use alloc::{string::String, vec::Vec};

use super::{
    Error,
    wire::{Reader, Writer},
};

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

impl WindowSize {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { rows: r.u16()?, cols: r.u16()? })
    }

    pub(super) fn write(self, w: &mut Writer<'_>) {
        w.u16(self.rows).u16(self.cols);
    }
}

/// One resource limit, as setrlimit(2) takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// `RLIMIT_*` number of Linux, 0 to 15.
    pub resource: u8,
    /// Soft limit; `u64::MAX` is none.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is none.
    pub hard: u64,
}

/// A set of capabilities, bit N for capability number N of Linux (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Capabilities(pub u64);

/// The capabilities a container has unless told otherwise, the same as with docker: CHOWN, DAC_OVERRIDE, FOWNER,
/// FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
pub const DEFAULT_CAPABILITIES: Capabilities = Capabilities(
    1 << 0
        | 1 << 1
        | 1 << 3
        | 1 << 4
        | 1 << 5
        | 1 << 6
        | 1 << 7
        | 1 << 8
        | 1 << 10
        | 1 << 13
        | 1 << 18
        | 1 << 27
        | 1 << 29
        | 1 << 31,
);

/// A program and how to run it.
///
/// The first `Exec` of a machine has `main` set: its process is PID 1 of the container's PID namespace, and the
/// container ends with it. Later ones join its namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Chosen by the host, not in use by another running program.
    pub id: u32,
    /// Program and arguments. A program without `/` is looked for in the `PATH` of `env`.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value` strings. The agent adds what is missing of `PATH`, `HOSTNAME`, `HOME` (of the user) and, with
    /// a terminal, `TERM`.
    pub env: Vec<Vec<u8>>,
    /// Absolute working directory; empty is `/`.
    pub cwd: Vec<u8>,
    /// Make the working directory, and its parents, if missing.
    pub create_cwd: bool,
    /// Empty (root), `name`, `uid`, `name:group`, `uid:gid` or a mixture, looked up in the container's
    /// /etc/passwd and /etc/group. Without a group part supplementary groups come from /etc/group.
    pub user: String,
    /// Further supplementary groups, by name (looked up as `user` is) or number.
    pub groups: Vec<String>,
    /// `Some` runs it on a new terminal of this size; `None` on pipes.
    pub terminal: Option<WindowSize>,
    /// Whether input follows on the stream. Without, and without a terminal, standard input is /dev/null.
    pub stdin: bool,
    /// Bounding set; for root also the permitted and effective sets.
    pub capabilities: Capabilities,
    /// Set before the program starts.
    pub rlimits: Vec<Rlimit>,
    /// Set `no_new_privs` (prctl(2)).
    pub no_new_privileges: bool,
    /// How ready the kernel is to kill it for want of memory (/proc/PID/oom_score_adj), -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// For a main program: PID 1 of the container is an init of the agent's that starts the program as a child of its own,
    /// passes signals on to it, reaps orphans, and ends as it does. A program that cannot be executed is then told on the
    /// standard error, with the codes 127 and 126.
    pub init: bool,
    /// This is the container's main program.
    pub main: bool,
}

impl Default for Exec {
    fn default() -> Self {
        Self {
            id: 0,
            argv: Vec::new(),
            env: Vec::new(),
            cwd: Vec::new(),
            create_cwd: false,
            user: String::new(),
            groups: Vec::new(),
            terminal: None,
            stdin: false,
            capabilities: DEFAULT_CAPABILITIES,
            rlimits: Vec::new(),
            no_new_privileges: false,
            oom_score_adj: None,
            init: false,
            main: true,
        }
    }
}

impl Exec {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            id: r.u32()?,
            argv: r.list(4, |r| r.c_bytes("argv"))?,
            env: r.list(4, |r| r.c_bytes("env"))?,
            cwd: r.c_bytes("cwd")?,
            create_cwd: r.bool("create_cwd")?,
            user: r.text("user")?,
            groups: r.list(4, |r| r.text("groups"))?,
            terminal: r.option("terminal", WindowSize::read)?,
            stdin: r.bool("stdin")?,
            capabilities: Capabilities(r.u64()?),
            rlimits: r.list(17, |r| {
                let resource = r.u8()?;
                if resource > 15 {
                    return Err(Error::Invalid("rlimit"));
                }
                Ok(Rlimit { resource, soft: r.u64()?, hard: r.u64()? })
            })?,
            no_new_privileges: r.bool("no_new_privileges")?,
            oom_score_adj: r.option("oom_score_adj", |r| match r.i32()? {
                score @ -1000..=1000 => Ok(score),
                _ => Err(Error::Invalid("oom_score_adj")),
            })?,
            init: r.bool("init")?,
            main: r.bool("main")?,
        })
    }

    pub(super) fn write(&self, w: &mut Writer<'_>) {
        w.u32(self.id)
            .list(&self.argv, |w, arg| {
                w.bytes(arg);
            })
            .list(&self.env, |w, var| {
                w.bytes(var);
            })
            .bytes(&self.cwd)
            .bool(self.create_cwd)
            .bytes(self.user.as_bytes())
            .list(&self.groups, |w, group| {
                w.bytes(group.as_bytes());
            })
            .option(self.terminal.as_ref(), |w, size| size.write(w))
            .bool(self.stdin)
            .u64(self.capabilities.0)
            .list(&self.rlimits, |w, limit| {
                w.u8(limit.resource).u64(limit.soft).u64(limit.hard);
            })
            .bool(self.no_new_privileges)
            .option(self.oom_score_adj.as_ref(), |w, score| {
                w.i32(*score);
            })
            .bool(self.init)
            .bool(self.main);
    }
}
