//! How often and how long: attempts that may go over are repeated, with a wait that doubles, or the one a registry asks for.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Error;

/// How patient a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Attempts that bring nothing, one after another, until it gives up.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles from there.
    pub first_wait: Duration,
    /// The longest such wait.
    pub longest_wait: Duration,
    /// The longest wait that a registry may ask for (`Retry-After`).
    pub longest_asked: Duration,
    /// How long a connection may take to be made.
    pub connect: Duration,
    /// How long a connection may be silent.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            attempts: 6,
            first_wait: Duration::from_millis(300),
            longest_wait: Duration::from_secs(10),
            longest_asked: Duration::from_secs(120),
            connect: Duration::from_secs(15),
            silence: Duration::from_secs(20),
        }
    }
}

/// Ends all parts of a work that share it; waits among them end at once.
#[derive(Debug, Default)]
pub struct Cancel {
    ended: Mutex<bool>,
    told: Condvar,
}

impl Cancel {
    /// Ends them.
    pub fn end(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }

    /// Whether they are to end.
    pub fn is_ended(&self) -> bool {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the work is to end.
    pub(crate) fn wait(&self, time: Duration) -> Result<(), Error> {
        let until = Instant::now() + time;
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if *ended {
                return Err(Error::Cancelled);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            ended = self.told.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It would fail again.
    Final(crate::Error),
    /// It may go over.
    Passing {
        /// What happened.
        why: String,
        /// The wait that the registry asks for.
        after: Option<Duration>,
    },
}

impl Trouble {
    pub(super) fn passing(why: impl Into<String>) -> Self {
        Trouble::Passing { why: why.into(), after: None }
    }
}

impl<E: Into<crate::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Trouble::Final(error.into())
    }
}

/// Attempts without a result so far.
#[derive(Debug)]
pub(super) struct Attempts<'a> {
    patience: &'a Patience,
    cancel: &'a Cancel,
    failed: u32,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(patience: &'a Patience, cancel: &'a Cancel) -> Self {
        Attempts { patience, cancel, failed: 0 }
    }

    /// The last attempt brought something: count anew.
    pub(super) fn progress(&mut self) {
        self.failed = 0;
    }

    /// After a failed attempt: waits for the next one. `told` is called with the reason before the wait.
    ///
    /// # Errors
    /// The trouble itself where it is final, or [`Error::GaveUp`].
    pub(super) fn next(
        &mut self,
        what: &dyn Fn() -> String,
        trouble: Trouble,
        told: &mut dyn FnMut(&str),
    ) -> crate::Result<()> {
        let (why, after) = match trouble {
            Trouble::Final(error) => return Err(error),
            Trouble::Passing { why, after } => (why, after),
        };
        self.failed += 1;
        let gave_up = |attempts, why| Error::GaveUp { what: what(), attempts, why };
        if self.failed >= self.patience.attempts {
            return Err(gave_up(self.failed, why).into());
        }
        let wait = match after {
            Some(asked) if asked > self.patience.longest_asked => {
                let why = format!("{why}, and it asks to wait {} seconds", asked.as_secs());
                return Err(gave_up(self.failed, why).into());
            }
            Some(asked) => asked,
            None => {
                let doubled = self.patience.first_wait.saturating_mul(1 << (self.failed - 1).min(16));
                doubled.min(self.patience.longest_wait)
            }
        };
        told(&why);
        log::debug!("{}: {why}: again in {wait:?}", what());
        Ok(self.cancel.wait(wait)?)
    }
}
