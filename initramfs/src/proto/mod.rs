//! The wire between the host and PID 1 of the guest.
//!
//! # Connections
//!
//! All of them are vsock streams that the **guest opens** to the host (CID 2), so that nobody polls:
//!
//! ```text
//! guest (agent)                                              host (engine)
//!   |  connect CONTROL_PORT                                        |
//!   |------- Hello{version, generation} -------------------------->|   the root is mounted
//!   |<------ Configure{hostname, files, clock, mounts, limits} ----|   may be sent at once on accept
//!   |<------ Exec{id, argv, ..., main: true} ----------------------|   may follow without waiting
//!   |------- Ready ----------------------------------------------->|
//!   |                                                              |
//!   |  connect STREAM_PORT, one connection for each Exec           |
//!   |======= StreamHello{id} =====================================>|
//!   |------- Started{id, pid}  or  ExecFailed{id, stage, errno} -->|
//!   |<====== Stdin*, StdinEof, CloseStdout, CloseStderr ===========|
//!   |======= Stdout*, Stderr*, StdoutEof, StderrEof ==============>|
//!   |<------ Signal, Resize, Exec (more programs), Files, Sync ----|
//!   |<------ Update{limits}, Observe{token, subject} ---------------|   answered by Updated, Observed
//!   |<------ Freeze{frozen} ---------------------------------------|   answered by Frozen
//!   |<------ Networks{cards} --------------------------------------|   answered by Networked
//!   |------- Exited{id, status, oom} ----------------------------->|   after the stream's last frame was written
//!   |<------ Shutdown ---------------------------------------------|
//!   |  sync, power off                                             |
//! ```
//!
//! `---` is the control connection, `===` the stream of one program. Order is kept within a connection only:
//! `Exited` can reach a reader before the last of the stream does, so the host reads the stream to both of its
//! EOF frames (or to its end) before it reports the exit. After `ExecFailed` the guest closes the stream without
//! EOF frames; it may have failed before it was opened, so the host does not wait for one.
//!
//! Between `Hello` and `Configure` the host may send `Prepare` and then `Sync`: once `Synced` has come, the machine can
//! be saved as a template that has everything in it that containers of one image have in common.
//!
//! If every connection is reset (a restored snapshot) while no program runs, the agent connects again and says
//! `Hello` with a `generation` one higher; the host then sends `Configure` again. A reset while a program runs
//! ends the guest: its output would have no reader.
//!
//! Unless the container stands still (`Freeze`): so a machine is saved whose program runs. In one that was restored from
//! that, the agent kills all programs but the main one, opens the main one's stream anew, with EOF frames for the outputs
//! that have ended, and connects as above. The host sends `Configure` without root and mounts, waits for `Ready`, and lets
//! the container go on. What the agent had read of the program's output before is the saved machine's; what was in pipe or
//! terminal is there in both.
//!
//! A peer that breaks the protocol is not talked to any more: the host stops the machine, the agent reports
//! [`GuestMessage::Error`] and powers off.
//!
//! # Flow control
//!
//! There is none in this protocol: vsock credit is enough, because each program has a connection of its own.
//! Whoever cannot write to a connection stops reading the pipe or file behind it.
//!
//! # Encoding
//!
//! A frame is an eight byte header and a body; every integer is little-endian:
//!
//! ```text
//! 0        4      6      8                8 + length
//! | length | kind | zero |  body ...      |
//!   u32      u16    u16
//! ```
//!
//! Bodies are a plain concatenation of fields: integers as they are, `bool` a byte of 0 or 1, byte strings a
//! `u32` length and the bytes, text the same in UTF-8, lists a `u32` count and the elements, options a `bool` and
//! the value. A body must be consumed exactly. Every kind has a greatest length ([`kind::limit`]), which is
//! checked before anything is allocated; no decoder panics whatever the bytes are.
//!
//! A change that an old peer would misread raises [`VERSION`]; agent and engine are built from one tree, so
//! both sides refuse any other version.

mod command_line;
mod control;
mod files;
mod frame;
pub mod kind;
mod network;
mod process;
mod setup;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

pub use command_line::BootOptions;
pub use control::{ExitStatus, GuestMessage, Hello, HostMessage, Stage, Subject};
pub use files::{ChangeKind, FilesAsk, FilesTell, Node, NodeKind};
pub use frame::{Channel, Frame, Frames, HEADER_LEN};
pub use network::{Card, MOST_NETWORKS, Network, NetworkV6, Networks};
pub use process::{Capabilities, DEFAULT_CAPABILITIES, Exec, Rlimit, WindowSize};
pub use setup::{Configure, CpuLimit, Limits, Lower, Mount, MountSource, Prepare, Root, Upper};
pub use stream::{StreamMessage, data_header};
pub use wire::Error;

/// Version of the protocol, carried in [`Hello`]. Host and guest must have the same.
pub const VERSION: u32 = 6;

/// Port on the host (CID 2) that takes the control connection.
pub const CONTROL_PORT: u32 = 1024;

/// Port on the host (CID 2) that takes one stream for each program.
pub const STREAM_PORT: u32 = 1025;

/// Most bytes of program input or output in one frame.
pub const MAX_DATA: usize = 64 * 1024;

/// Encodes a message as one frame, appended to `out`.
///
/// # Errors
/// [`Error::TooLong`] if the body would pass the limit of its kind; `out` is then as it was.
pub trait Encode {
    /// See the trait.
    fn encode(&self, out: &mut alloc::vec::Vec<u8>) -> Result<(), Error>;

    /// The frame as a vector of its own.
    ///
    /// # Errors
    /// As [`Encode::encode`].
    fn to_frame(&self) -> Result<alloc::vec::Vec<u8>, Error> {
        let mut out = alloc::vec::Vec::new();
        self.encode(&mut out)?;
        Ok(out)
    }
}
