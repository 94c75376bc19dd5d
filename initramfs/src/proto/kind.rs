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
/// Host to guest, control: [`super::HostMessage::Prepare`].
pub const PREPARE: u16 = 0x0107;
/// Host to guest, control: [`super::HostMessage::Update`].
pub const UPDATE: u16 = 0x0108;
/// Host to guest, control: [`super::HostMessage::Observe`].
pub const OBSERVE: u16 = 0x0109;
/// Host to guest, control: [`super::HostMessage::Files`].
pub const FILES: u16 = 0x010a;
/// Host to guest, control: [`super::HostMessage::Freeze`].
pub const FREEZE: u16 = 0x010b;
/// Host to guest, control: [`super::HostMessage::Networks`].
pub const NETWORKS: u16 = 0x010c;

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
/// Guest to host, control: [`super::GuestMessage::Updated`].
pub const UPDATED: u16 = 0x0208;
/// Guest to host, control: [`super::GuestMessage::Observed`].
pub const OBSERVED: u16 = 0x0209;
/// Guest to host, control: [`super::GuestMessage::Frozen`].
pub const FROZEN: u16 = 0x020a;
/// Guest to host, control: [`super::GuestMessage::Networked`].
pub const NETWORKED: u16 = 0x020b;

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

/// Host to file server: [`super::FilesAsk::Stat`].
pub const FILES_STAT: u16 = 0x0501;
/// Host to file server: [`super::FilesAsk::Read`].
pub const FILES_READ: u16 = 0x0502;
/// Host to file server: [`super::FilesAsk::Write`].
pub const FILES_WRITE: u16 = 0x0503;
/// Host to file server: [`super::FilesAsk::Changes`].
pub const FILES_CHANGES: u16 = 0x0504;
/// Host to file server: [`super::FilesAsk::Layer`].
pub const FILES_LAYER: u16 = 0x0505;
/// Host to file server: [`super::FilesAsk::Export`].
pub const FILES_EXPORT: u16 = 0x0506;
/// Host to file server: [`super::FilesAsk::Node`].
pub const FILES_PUT_NODE: u16 = 0x0507;
/// Host to file server: [`super::FilesAsk::Data`].
pub const FILES_PUT_DATA: u16 = 0x0508;
/// Host to file server: [`super::FilesAsk::End`].
pub const FILES_END: u16 = 0x0509;

/// File server to host: [`super::FilesTell::Node`].
pub const FILES_NODE: u16 = 0x0601;
/// File server to host: [`super::FilesTell::Data`].
pub const FILES_DATA: u16 = 0x0602;
/// File server to host: [`super::FilesTell::Change`].
pub const FILES_CHANGE: u16 = 0x0603;
/// File server to host: [`super::FilesTell::Done`].
pub const FILES_DONE: u16 = 0x0604;
/// File server to host: [`super::FilesTell::Failed`].
pub const FILES_FAILED: u16 = 0x0605;

/// Most bytes of text in [`OBSERVED`].
pub const MOST_OBSERVED: usize = 1024 * 1024;

/// The greatest length of the body of a frame of `kind`, in bytes; `None` if there is no such kind.
#[must_use]
pub const fn limit(kind: u16) -> Option<usize> {
    match kind {
        CONFIGURE | NETWORKS => Some(1024 * 1024),
        // The kernel takes an argument list and environment of up to a quarter of the stack limit (2 MiB).
        EXEC => Some(4 * 1024 * 1024),
        PREPARE => Some(64 * 1024),
        SIGNAL | RESIZE | SYNC | OBSERVE | FILES | FILES_LAYER | FREEZE => Some(64),
        // Paths have at most 4096 bytes, all extended attributes of a file 64 KiB each.
        FILES_STAT | FILES_READ | FILES_WRITE | FILES_CHANGE => Some(8 * 1024),
        FILES_PUT_NODE | FILES_NODE => Some(1024 * 1024),
        FILES_PUT_DATA | FILES_DATA => Some(super::MAX_DATA),
        FILES_FAILED => Some(8 * 1024),
        FILES_CHANGES | FILES_EXPORT | FILES_END | FILES_DONE => Some(0),
        HELLO | STARTED | EXITED | SYNCED | STREAM_HELLO => Some(64),
        UPDATE => Some(16 * 1024),
        EXEC_FAILED | ERROR | UPDATED | FROZEN | NETWORKED => Some(8 * 1024),
        OBSERVED => Some(MOST_OBSERVED + 64),
        STDIN | STDOUT | STDERR => Some(super::MAX_DATA),
        SHUTDOWN | READY | STDIN_EOF | CLOSE_STDOUT | CLOSE_STDERR | STDOUT_EOF | STDERR_EOF => Some(0),
        _ => None,
    }
}
