//! What is shown. Standard output carries a program's bytes, listings and texts that were asked for; everything else
//! goes to standard error, one line for a failure and one for what to do.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::args::Global;
use crate::error::Error;

/// Prints a text that was asked for (help, version, a listing).
pub(crate) fn text(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            line(&format!("cannot write to standard output: {error}"), None);
            ExitCode::FAILURE
        }
    }
}

/// Prints a failure and gives its exit code.
pub(crate) fn failure(error: &Error) -> ExitCode {
    line(&chain(error), error.hint().as_deref());
    ExitCode::from(error.code())
}

#[cfg(unix)]
pub(crate) use servin_engine::chain;

/// An error with its reasons, in one line.
#[cfg(windows)]
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let reasons = std::iter::successors(error.source(), |reason| reason.source());
    reasons.fold(error.to_string(), |text, reason| format!("{text}: {reason}")).replace('\n', " ")
}

/// Prints what is good to know to standard error, as it is.
pub(crate) fn note(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// One diagnostic line, with a line of what to do. A standard error that is closed is no reason to fail.
pub(crate) fn line(what: &str, hint: Option<&str>) {
    let mut text = format!("servin: {what}\n");
    if let Some(hint) = hint {
        text.push_str("hint: ");
        text.push_str(hint);
        text.push('\n');
    }
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Starts the log on standard error: nothing below the asked level is written, and by default nothing but errors is.
pub(crate) fn start_log(global: &Global) {
    start_log_at(global.log_level);
}

/// The same, of a process that was told nothing else.
pub(crate) fn start_log_at(level: log::LevelFilter) {
    let _ = env_logger::Builder::new().filter_level(level).format_timestamp_micros().try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_with_its_reasons() {
        let source = io::Error::other("first\nsecond");
        let error = Error::Host { what: "do it".into(), source, code: 1 };
        assert_eq!(chain(&error), "cannot do it: first second");
    }
}
