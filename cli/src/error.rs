//! The one error type of the command: what failed, why (its sources), and what to do.

use std::io;

#[cfg(unix)]
use servin_engine::monitor::wire::Failure;

/// Why the command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line breaks a rule.
    #[error("{what}")]
    Usage {
        /// Which rule, naming the argument.
        what: String,
        /// The verb, whose help is pointed to; empty for the whole command.
        verb: String,
    },
    /// A flag's value means nothing.
    #[error("invalid value \"{value}\" for {flag}: {why}")]
    Value {
        /// As it is documented: `-m, --memory`.
        flag: &'static str,
        /// What was typed.
        value: String,
        /// What would have been right.
        why: String,
        /// Exit code.
        code: u8,
    },
    /// Known, and not built.
    #[error("{what} is not built yet in this version of servin")]
    NotBuilt {
        /// The verb, or verb and flag.
        what: String,
        /// Exit code.
        code: u8,
    },
    /// The host refused something.
    #[error("cannot {what}")]
    Host {
        /// A verb and its object.
        what: String,
        /// The reason.
        #[source]
        source: io::Error,
        /// Exit code.
        code: u8,
    },
    /// It needs containers or images, and the engine is not on this host.
    #[cfg(any(test, windows))]
    #[error(
        "servin {verb} does not run on {os} yet: it needs the engine, which is built for Linux and macOS"
    )]
    NoEngine {
        /// The verb.
        verb: String,
        /// This host.
        os: &'static str,
        /// Exit code.
        code: u8,
    },
    /// The engine could not do it.
    #[cfg(unix)]
    #[error("{}", servin_engine::chain(.error))]
    Engine {
        /// What failed, with its reasons.
        error: servin_engine::Error,
        /// Exit code.
        code: u8,
    },
    /// The monitor could not do it, and said why.
    #[cfg(unix)]
    #[error("{}", .0.text)]
    Monitor(Failure),
    /// The monitor is gone.
    #[error("the container's monitor was killed, and the container with it")]
    Lost {
        /// Exit code.
        code: u8,
    },
}

/// The command's result.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(unix)]
impl From<servin_engine::Error> for Error {
    /// A failure of any verb but those that run a program.
    fn from(error: servin_engine::Error) -> Self {
        Error::Engine { error, code: 1 }
    }
}

impl Error {
    /// The exit code: 125 where a container was to be run, else 1.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Error::Usage { verb, .. } => code_of(verb),
            #[cfg(unix)]
            Error::Monitor(failure) => failure.code,
            #[cfg(unix)]
            Error::Engine { code, .. } => *code,
            #[cfg(any(test, windows))]
            Error::NoEngine { code, .. } => *code,
            Error::Value { code, .. }
            | Error::NotBuilt { code, .. }
            | Error::Host { code, .. }
            | Error::Lost { code } => *code,
        }
    }

    /// The same failure on the way of a verb that gives programs' codes back.
    pub(crate) fn with_code(self, code: u8) -> Self {
        match self {
            #[cfg(unix)]
            Error::Engine { error, .. } => Error::Engine { error, code },
            Error::Host { what, source, .. } => Error::Host { what, source, code },
            Error::Value { flag, value, why, .. } => Error::Value { flag, value, why, code },
            Error::NotBuilt { what, .. } => Error::NotBuilt { what, code },
            other => other,
        }
    }

    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Error::Usage { verb, .. } if verb.is_empty() => Some("see \"servin --help\"".into()),
            Error::Usage { verb, .. } => Some(format!("see \"servin {verb} --help\"")),
            #[cfg(unix)]
            Error::Monitor(failure) => failure.hint.clone(),
            #[cfg(any(test, windows))]
            Error::NoEngine { .. } => Some("servin doctor says what there is on this host".into()),
            _ => None,
        }
    }
}

/// The exit code of a failure of servin itself in `verb`.
pub(crate) fn code_of(verb: &str) -> u8 {
    match verb {
        "run" | "exec" | "create" => 125,
        _ => 1,
    }
}
