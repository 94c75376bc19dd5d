//! The frames between a command and a container's monitor, over a socket pair or the control socket.
//!
//! ```text
//! 0        4      5            5 + length
//! | length | kind |  body ...  |
//!   u32 LE   u8
//! ```
//!
//! Program input and output are raw bodies; everything else is JSON. Input is sent against credit: at most
//! [`INPUT_WINDOW`] bytes may be on their way, [`Tell::InputTaken`] returns what the guest has taken, so that a program
//! which does not read never blocks a signal behind its input. Output needs no credit: order is wanted, and a client
//! that does not read stops only the program it watches.

mod frames;

use serde::{Deserialize, Serialize};

use crate::container::{Text, Update};
use crate::network::Change;
use crate::snapshot::Target;

pub use frames::{Decoder, Malformed, Message};
pub(super) use frames::{STDERR, STDOUT, frame};

/// Most bytes of input that may be sent before the guest has taken them.
pub const INPUT_WINDOW: usize = 256 * 1024;
/// Most bytes of one data frame.
pub const MOST_DATA: usize = 64 * 1024;

/// What the two sides of a control connection must agree on.
pub const VERSION: u32 = 1;

/// One of the two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// First on a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the client.
    pub version: u32,
}

/// One more program in a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<Text>,
    /// Added to the container's variables: `NAME=value`, or `NAME` to remove one.
    pub env: Vec<Text>,
    /// Instead of the container's working directory.
    pub cwd: Option<Text>,
    /// Instead of the container's user.
    pub user: Option<String>,
    /// On a terminal of this size.
    pub terminal: Option<Size>,
    /// Input follows.
    pub stdin: bool,
    /// With every capability.
    #[serde(default)]
    pub privileged: bool,
}

/// A snapshot that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// Where.
    pub target: Target,
    /// End the container once it is made.
    pub stop: bool,
}

/// What a client asks of the monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// First on a control connection.
    Hello(Hello),
    /// Show the main program's output from now on; with input if asked.
    Attach {
        /// Whether input follows.
        stdin: bool,
    },
    /// Run one more program.
    Exec(Box<ExecRequest>),
    /// Start a file server ([`servin_init::proto::FilesAsk`]) and watch it as a program.
    Files,
    /// Tell when the container has ended.
    Wait,
    /// Send this signal to the main program.
    Kill(u8),
    /// Send the stop signal, and kill when the seconds are over; told by [`Tell::Exited`].
    Stop(Option<u32>),
    /// As `Stop`, with this signal instead of the container's own.
    StopWith(Option<u32>, u8),
    /// Input of the program.
    Stdin(Vec<u8>),
    /// No more input.
    StdinEof,
    /// Nobody reads this output any more: the program's next write fails.
    CloseOutput(Output),
    /// Send this signal to the program that is watched.
    Signal(u8),
    /// The terminal's size.
    Resize(Size),
    /// Leave, and let the program go on.
    Detach,
    /// Park the virtual CPUs; told by [`Tell::Done`].
    Pause,
    /// Let them go on.
    Unpause,
    /// Tell what the container uses, as often as it is asked; told by [`Tell::Seen`].
    Stats,
    /// Tell of its processes.
    Top,
    /// Change limits; told by [`Tell::Done`].
    Update(Box<Update>),
    /// Connect it to a network, or disconnect it; told by [`Tell::Done`].
    Networks(Box<Change>),
    /// Save the container; told by [`Tell::Done`], or by its end if it is to be stopped.
    Snapshot(Box<SnapshotRequest>),
}

/// What the guest told of the container (`servin_init::proto::Subject`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// There was more.
    pub cut: bool,
    /// The text.
    pub text: Vec<u8>,
}

/// How a program ended, as the command shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code: the program's, or 128 and the signal.
    pub code: u8,
    /// The memory limit was met.
    pub oom: bool,
}

/// Why nothing runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Exit code for the command: 125 to 127, or 128 and the signal that ended the start.
    pub code: u8,
    /// What failed and why, in one line.
    pub text: String,
    /// What to do.
    pub hint: Option<String>,
}

/// When each step of a start was reached, in microseconds since the command was executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// The virtual machine was made.
    pub vm_created: Option<u64>,
    /// The first instruction of the guest kernel.
    pub kernel_entered: Option<u64>,
    /// The first instruction of PID 1.
    pub init_started: Option<u64>,
    /// The program's first byte arrived.
    pub first_byte: Option<u64>,
    /// The exit code arrived.
    pub exited: Option<u64>,
    /// The machine is a clone of a template; then "kernel entered" is its first instruction, and "init started" the
    /// agent's hello.
    #[serde(default)]
    pub warm: bool,
}

/// What the monitor tells a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tell {
    /// For people, while they wait.
    Notice(String),
    /// The container has this id and a record.
    Created(String),
    /// The program runs.
    Started,
    /// The program's output.
    Stdout(Vec<u8>),
    /// The program's errors.
    Stderr(Vec<u8>),
    /// So many bytes of input were taken by the guest.
    InputTaken(u32),
    /// The program ended, all its output was sent, and the record says so.
    Exited(Exit),
    /// Nothing runs; the end of this connection.
    Failed(Failure),
    /// The clocks of the start; before [`Tell::Exited`].
    Clocks(Clocks),
    /// What was asked is done.
    Done,
    /// What the guest told.
    Seen(Seen),
}
