//! The user's terminal: its size, raw mode, and that it is given back however this process ends.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use servin_engine::monitor::wire::Size;
use servin_engine::process::{self, Fork};

/// The size of a terminal that nobody sees.
pub(crate) const UNKNOWN: Size = Size { rows: 24, cols: 80 };

/// The size of the terminal that shows the output, else of the one that gives the input.
pub(crate) fn size() -> Option<Size> {
    let found = size_of(&io::stdout()).or_else(|| size_of(&io::stdin()))?;
    Some(Size { rows: found.ws_row, cols: found.ws_col })
}

fn size_of(stream: &(impl IsTerminal + AsFd)) -> Option<rustix::termios::Winsize> {
    stream.is_terminal().then(|| tcgetwinsize(stream).ok()).flatten()
}

/// The standard input in raw mode. Dropped, it is as it was; a guard process sees to that if this one is killed.
pub(crate) struct Raw {
    saved: Termios,
    guard: Option<io::PipeWriter>,
}

impl Raw {
    /// Enters raw mode. Call it while the process has one thread.
    pub(crate) fn enter() -> io::Result<Self> {
        let saved = tcgetattr(io::stdin())?;
        let guard = guard(&saved)?;
        let raw = Raw { saved, guard: Some(guard) };
        raw.again()?;
        Ok(raw)
    }

    /// Enters raw mode once more, after a stop.
    pub(crate) fn again(&self) -> io::Result<()> {
        let mut termios = self.saved.clone();
        termios.make_raw();
        Ok(tcsetattr(io::stdin(), OptionalActions::Now, &termios)?)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.saved);
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.write_all(b"!");
        }
    }
}

/// Forks a process that waits for this one's end, and restores the terminal unless this one says that it has.
fn guard(saved: &Termios) -> io::Result<io::PipeWriter> {
    let (reader, writer) = io::pipe()?;
    let terminal = io::stdin().as_fd().try_clone_to_owned()?;
    match process::fork(vec![OwnedFd::from(reader), terminal])? {
        Fork::Parent(_) => Ok(writer),
        Fork::Child(kept) => {
            let _ = process::leave_terminal(None);
            let mut kept = kept.into_iter();
            if let (Some(reader), Some(terminal)) = (kept.next(), kept.next()) {
                let ended = io::PipeReader::from(reader).read(&mut [0]).map_or(0, |count| count);
                if ended == 0 {
                    let _ = tcsetattr(&terminal, OptionalActions::Now, saved);
                }
            }
            std::process::exit(0);
        }
    }
}
