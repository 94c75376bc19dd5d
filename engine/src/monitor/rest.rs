//! A container that is started again by its policy: its machine ends, and after a pause the same monitor makes another.
//!
//! The pause doubles with each time, from 100 milliseconds to a minute, and is short again after a run that lasted.
//! Whoever watches is told of the end and leaves; whoever stops it ends the pause.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::health::Checks;
use super::machine::Machine;
use super::program::{Outcome, Program};
use super::record::Record;
use super::session::{MAIN, Phase, Session};
use super::wire::{Exit, Failure};
use crate::container::random;

/// The first pause.
const SHORTEST: Duration = Duration::from_millis(100);
/// No pause is longer.
const LONGEST: Duration = Duration::from_secs(60);
/// After a run that was as long the next pause is the first.
const LASTED: Duration = Duration::from_secs(10);

/// What a session knows of its policy's doing.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Somebody has ended the container.
    pub(super) never: bool,
    /// The program ran before it ended.
    pub(super) ran: bool,
    /// How often it was started again.
    count: u32,
    pause: Option<Duration>,
    /// When the program was last started.
    pub(super) since: Option<Instant>,
}

impl Rest {
    /// The pause before the next start.
    fn next_pause(&mut self, now: Instant) -> Duration {
        let lasted = self.since.is_some_and(|since| now.saturating_duration_since(since) >= LASTED);
        let pause = match self.pause {
            Some(last) if !lasted => (last * 2).min(LONGEST),
            _ => SHORTEST,
        };
        self.pause = Some(pause);
        pause
    }
}

impl<M: Machine, R: Record> Session<M, R> {
    /// Whether the program is started again, now that it is over. One that never ran is not: it would not the next time.
    pub(super) fn rests(&self) -> bool {
        let code = match self.outcome() {
            Outcome::Exited(exit) => exit.code,
            Outcome::Failed(failure) => failure.code,
        };
        self.rest.ran
            && !self.rest.never
            && !self.start.files_only
            && self.start.restart.again(code, self.rest.count)
    }

    /// Ends the machine and waits for the time of the next.
    pub(super) fn rest(&mut self) {
        let now = Instant::now();
        let pause = self.rest.next_pause(now);
        log::info!("the program is started again in {pause:?}");
        self.machine.kill();
        self.control = None;
        self.unnamed.clear();
        self.programs.clear();
        self.updates.clear();
        self.forget_snapshot();
        self.forget_changes();
        (self.paused, self.checks) = (false, None);
        (self.end_at, self.stop_at, self.killed_by) = (None, None, None);
        self.rest.count = self.rest.count.saturating_add(1);
        self.phase = Phase::Resting;
        self.boot_until = now + pause;
        let outcome = self.outcome();
        match &outcome {
            Outcome::Exited(exit) => self.record.resting(exit, ""),
            Outcome::Failed(failure) => {
                self.record.resting(&Exit { code: failure.code, oom: false }, &failure.text);
            }
        }
        self.tell_end(&outcome);
    }

    /// It is time: a new machine.
    pub(super) fn again(&mut self) {
        self.phase = Phase::Booting;
        self.boot_until = Instant::now() + self.start.deadline;
        let main = Program::new(self.start.main.terminal.is_some(), self.start.main.stdin);
        self.programs = BTreeMap::from([(MAIN, main)]);
        self.checks = self.start.health.clone().map(Checks::new);
        let started = random::<64>().map_err(|error| crate::chain(&error)).and_then(|entropy| {
            self.start.configure.entropy = entropy.to_vec();
            self.machine.start_again()
        });
        if let Err(text) = started {
            self.last = Some(Outcome::Failed(Failure { code: 125, text, hint: None }));
            self.give_up();
        }
    }

    /// It is not started again after all.
    pub(super) fn give_up(&mut self) {
        self.rest.never = true;
        self.phase = Phase::Closing;
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_a_long_run_makes_them_short_again() {
        let (mut rest, now) = (Rest::default(), Instant::now());
        rest.since = Some(now);
        let pauses: Vec<u128> = (0..12).map(|_| rest.next_pause(now).as_millis()).collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[11], 60_000);
        assert_eq!(rest.next_pause(now + LASTED), SHORTEST);
    }
}
