//! Frame kinds and how long the body of each may be.

/// Host to guest, control: [`super::HostMessage::Configure`].
pub const CONFIGURE: u16 = 0x0101;
/// Host to guest, control: [`super::HostMessage::Exec`].
pub const EXEC: u16 = 0x0102;
/// Host to guest, control: [`super::HostMessage::Signal`].
pub const SIGNAL: u16 = 0x0103;
/// Host to guest, control: [`super::HostMessage::Resize`].
pub const RESIZE: u16 = 0x0104;
/// Host to guest, control: [`super::HostMessage::Sync`].
pub const SYNC: u16 = 0x0105;
/// Host to guest, control: [`super::HostMessage::Shutdown`].
pub const SHUTDOWN: u16 = 0x0106;

/// Guest to host, control: [`super::GuestMessage::Hello`].
pub const HELLO: u16 = 0x0201;
/// Guest to host, control: [`super::GuestMessage::Ready`].
pub const READY: u16 = 0x0202;
/// Guest to host, control: [`super::GuestMessage::Started`].
pub const STARTED: u16 = 0x0203;
/// Guest to host, control: [`super::GuestMessage::ExecFailed`].
pub const EXEC_FAILED: u16 = 0x0204;
/// Guest to host, control: [`super::GuestMessage::Exited`].
pub const EXITED: u16 = 0x0205;
/// Guest to host, control: [`super::GuestMessage::Synced`].
pub const SYNCED: u16 = 0x0206;
/// Guest to host, control: [`super::GuestMessage::Error`].
pub const ERROR: u16 = 0x0207;

/// Host to guest, stream: [`super::StreamMessage::Stdin`].
pub const STDIN: u16 = 0x0301;
/// Host to guest, stream: [`super::StreamMessage::StdinEof`].
pub const STDIN_EOF: u16 = 0x0302;
/// Host to guest, stream: [`super::StreamMessage::CloseStdout`].
pub const CLOSE_STDOUT: u16 = 0x0303;
/// Host to guest, stream: [`super::StreamMessage::CloseStderr`].
pub const CLOSE_STDERR: u16 = 0x0304;

/// Guest to host, stream: [`super::StreamMessage::Hello`].
pub const STREAM_HELLO: u16 = 0x0401;
/// Guest to host, stream: [`super::StreamMessage::Stdout`].
pub const STDOUT: u16 = 0x0402;
/// Guest to host, stream: [`super::StreamMessage::Stderr`].
pub const STDERR: u16 = 0x0403;
/// Guest to host, stream: [`super::StreamMessage::StdoutEof`].
pub const STDOUT_EOF: u16 = 0x0404;
/// Guest to host, stream: [`super::StreamMessage::StderrEof`].
pub const STDERR_EOF: u16 = 0x0405;

/// The greatest length of the body of a frame of `kind`, in bytes; `None` if there is no such kind.
#[must_use]
pub const fn limit(kind: u16) -> Option<usize> {
    match kind {
        CONFIGURE => Some(1024 * 1024),
        // The kernel takes an argument list and environment of up to a quarter of the stack limit (2 MiB).
        EXEC => Some(4 * 1024 * 1024),
        SIGNAL | RESIZE | SYNC => Some(64),
        HELLO | STARTED | EXITED | SYNCED | STREAM_HELLO => Some(64),
        EXEC_FAILED | ERROR => Some(8 * 1024),
        STDIN | STDOUT | STDERR => Some(super::MAX_DATA),
        SHUTDOWN | READY | STDIN_EOF | CLOSE_STDOUT | CLOSE_STDERR | STDOUT_EOF | STDERR_EOF => Some(0),
        _ => None,
    }
}
