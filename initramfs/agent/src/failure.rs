//! What went wrong, while doing what.

use alloc::{
    format,
    string::{String, ToString as _},
};
use core::fmt;

use rustix::io::Errno;

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What was being done: "mount the overlay".
    pub(crate) doing: String,
    /// Linux error number, or 0 if the kernel was not asked.
    pub(crate) errno: i32,
}

impl Failure {
    pub(crate) fn new(doing: impl fmt::Display) -> Self {
        Self { doing: doing.to_string(), errno: 0 }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)?;
        if self.errno != 0 { write!(f, ": error {}", self.errno) } else { Ok(()) }
    }
}

impl From<servin_init::proto::Error> for Failure {
    fn from(error: servin_init::proto::Error) -> Self {
        Self::new(format!("the host broke the protocol: {error}"))
    }
}

/// Says what a system call was for.
pub(crate) trait Doing<T> {
    /// Turns the error into a [`Failure`] of doing `what`.
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure>;
}

impl<T> Doing<T> for rustix::io::Result<T> {
    fn doing(self, what: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|errno: Errno| Failure { doing: what.to_string(), errno: errno.raw_os_error() })
    }
}
