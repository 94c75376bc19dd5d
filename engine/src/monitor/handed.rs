//! A launch that is handed to a program executed anew, where a forked one would not do (macOS).
//!
//! ```text
//! 0        4      4 + length
//! | length | JSON |            on the standard input of the new program, a socket that then carries the wire's frames
//!   u32 LE
//! ```

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::launch::{Launch, What};
use super::wire::Size;
use crate::process;
use crate::{Error, Result};

/// The word by which a program is told that it is a monitor, before the level of its log.
pub const HANDED: &str = "--handed-monitor";
/// Bytes of a launch at most.
const MOST: u32 = 64 << 20;

/// [`Launch`] for another process.
#[derive(Debug, Serialize, Deserialize)]
struct Handed {
    data_root: Option<PathBuf>,
    what: What,
    size: Option<Size>,
    /// When the command was executed, on the clock of all processes.
    began: Duration,
    keep_stderr: bool,
    warm: bool,
    trace: Option<PathBuf>,
}

/// Time that goes by the same for all processes.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

impl From<Launch> for Handed {
    fn from(launch: Launch) -> Self {
        let Launch { data_root, what, size, began, keep_stderr, warm, trace } = launch;
        let began = now().saturating_sub(began.elapsed());
        Handed { data_root, what, size, began, keep_stderr, warm, trace }
    }
}

impl From<Handed> for Launch {
    fn from(handed: Handed) -> Self {
        let Handed { data_root, what, size, began, keep_stderr, warm, trace } = handed;
        let (here, age) = (Instant::now(), now().saturating_sub(began));
        Launch {
            data_root,
            what,
            size,
            began: here.checked_sub(age).unwrap_or(here),
            keep_stderr,
            warm,
            trace,
        }
    }
}

impl Launch {
    /// Executes the command, which begins with [`serve_handed`], and gives the connection to it.
    pub(super) fn hand_over(self, mut command: Command) -> Result<UnixStream> {
        let json = serde_json::to_vec(&Handed::from(self))
            .map_err(|source| Error::Json { what: "the launch".into(), source })?;
        let (mut mine, theirs) = UnixStream::pair().map_err(Error::Fork)?;
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        command.spawn().map_err(Error::Fork)?;
        // Its own end of the socket: whoever holds it, the monitor's end must be seen here.
        drop(command);
        let length = u32::try_from(json.len()).map_err(|error| Error::Fork(io::Error::other(error)))?;
        mine.write_all(&length.to_le_bytes()).and_then(|()| mine.write_all(&json)).map_err(Error::Fork)?;
        Ok(mine)
    }
}

/// The monitor's whole life, in a process that was executed for it and has opened nothing yet. Gives its exit code.
pub fn serve_handed() -> u8 {
    match take() {
        Ok((launch, socket)) => launch.serve(socket),
        Err(error) => {
            ::log::error!("nothing was handed to the monitor: {error}");
            125
        }
    }
}

/// What was handed over, and the connection to the command.
fn take() -> io::Result<(Launch, UnixStream)> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    process::stand_alone(&socket);
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let mut socket = UnixStream::from(socket);
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MOST {
        return Err(io::Error::other(format!("a launch of {length} bytes")));
    }
    let mut json = Vec::new();
    Read::by_ref(&mut socket).take(length.into()).read_to_end(&mut json)?;
    let handed: Handed = serde_json::from_slice(&json)?;
    Ok((handed.into(), socket))
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Decoder, Tell};
    use super::*;

    fn launch(root: &std::path::Path) -> Launch {
        Launch {
            data_root: Some(root.into()),
            what: What::Start { id: "0123456789ab".repeat(6), attach: true, no_stdin: true },
            size: Some(Size { rows: 7, cols: 9 }),
            began: Instant::now(),
            keep_stderr: true,
            warm: true,
            trace: None,
        }
    }

    #[test]
    fn what_is_handed_over_arrives_with_its_age() {
        let before = launch("/root of data".as_ref());
        let (what, began) = (format!("{:?}", before.what), before.began);
        let json = serde_json::to_vec(&Handed::from(before)).unwrap();
        let after = Launch::from(serde_json::from_slice::<Handed>(&json).unwrap());
        assert_eq!(format!("{:?}", after.what), what);
        assert_eq!(
            (after.size, after.keep_stderr, after.warm),
            (Some(Size { rows: 7, cols: 9 }), true, true)
        );
        let (early, late) = (began - Duration::from_secs(1), Instant::now());
        assert!(after.began > early && after.began <= late);
    }

    /// The test runs itself once more, as the monitor.
    #[test]
    fn a_program_that_was_executed_anew_serves_what_was_handed_to_it() {
        const INSIDE: &str = "SERVIN_TEST_HANDED";
        if std::env::var_os(INSIDE).is_some() {
            std::process::exit(serve_handed().into());
        }
        let root = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "monitor::handed::tests::a_program_that_was_executed_anew_serves_what_was_handed_to_it";
        command.args(["--exact", name, "--test-threads", "1", "--nocapture"]).env(INSIDE, "1");
        command.stdout(Stdio::null());
        let mut socket = launch(root.path()).hand_over(command).unwrap();
        let (mut decoder, mut bytes) = (Decoder::default(), Vec::new());
        socket.read_to_end(&mut bytes).unwrap();
        decoder.push(&bytes);
        let Ok(Some(Tell::Failed(failure))) = decoder.next_message::<Tell>() else { panic!("{bytes:?}") };
        assert_eq!((failure.code, failure.text.as_str()), (125, "no such container: 0123456789ab"));
        assert!(root.path().join("tmp").is_dir());
    }
}
