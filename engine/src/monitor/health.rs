//! Health checks: the monitor runs a program in the guest now and then, and says how the container is.
//!
//! ```text
//!   starting --passed--> healthy <--passed--- unhealthy
//!      '------ so many failures in a row ---------^
//! ```
//!
//! Failures during the time to start in do not count. A paused container is not checked.

use std::time::{Duration, Instant};

use servin_init::proto::HostMessage;

use super::machine::Machine;
use super::program::Outcome;
use super::record::Record;
use super::session::{Phase, Session};
use super::wire::ExecRequest;
use crate::container::{Health, HealthCheck, HealthResult};
use crate::store::now_ns;
use crate::time::rfc3339;

/// Checks that are remembered, as with docker.
const REMEMBERED: usize = 5;
/// Bytes of a check's output that are kept, as with docker.
const MOST_OUTPUT: usize = 4096;

/// A container's checks.
#[derive(Debug)]
pub(super) struct Checks {
    check: HealthCheck,
    health: Health,
    /// When the container started.
    started: Instant,
    /// When the next one begins.
    next: Option<Instant>,
    running: Option<Running>,
}

/// A check that runs.
#[derive(Debug)]
struct Running {
    program: u32,
    began_ns: i64,
    deadline: Instant,
    timed_out: bool,
    output: Vec<u8>,
}

impl Checks {
    pub(super) fn new(check: HealthCheck) -> Self {
        let started = Instant::now();
        Checks { check, health: Health::starting(), started, next: None, running: None }
    }

    /// The program of the check that runs.
    pub(super) fn program(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.program)
    }

    /// Keeps the beginning of what that program writes.
    pub(super) fn hear(&mut self, data: &[u8]) {
        if let Some(running) = &mut self.running {
            let room = MOST_OUTPUT.saturating_sub(running.output.len());
            running.output.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
        }
    }

    /// When something is to be done.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.running {
            Some(running) => (!running.timed_out).then_some(running.deadline),
            None => self.next,
        }
    }

    fn is_starting(&self, now: Instant) -> bool {
        self.health.status == "starting"
            && now.saturating_duration_since(self.started) < Duration::from_nanos(self.check.start_period)
    }

    /// Takes a result in; says whether the container is another way than before.
    fn judge(&mut self, result: HealthResult, now: Instant) -> bool {
        let before = self.health.status.clone();
        if result.exit_code == 0 {
            self.health.failing_streak = 0;
            self.health.status = "healthy".into();
        } else if !self.is_starting(now) {
            self.health.failing_streak = self.health.failing_streak.saturating_add(1);
            if self.health.failing_streak >= self.check.retries {
                self.health.status = "unhealthy".into();
            }
        }
        self.health.log.push(result);
        let surplus = self.health.log.len().saturating_sub(REMEMBERED);
        self.health.log.drain(..surplus);
        self.health.status != before
    }
}

impl<M: Machine, R: Record> Session<M, R> {
    /// The main program runs: the first check follows after a while.
    pub(super) fn begin_checks(&mut self) {
        let Some(checks) = &mut self.checks else { return };
        let now = Instant::now();
        checks.started = now;
        checks.next = Some(now + checks.check.pause(checks.check.start_period > 0));
        self.record.checked(&checks.health, false);
    }

    /// Whether a program could run now.
    pub(super) fn can_check(&self) -> bool {
        self.phase == Phase::Running && !self.paused && self.saving.is_none()
    }

    /// Begins a check, or ends one that takes too long.
    pub(super) fn on_check_time(&mut self, now: Instant) {
        if !self.can_check() {
            return;
        }
        let Some(checks) = &mut self.checks else { return };
        if let Some(running) = &mut checks.running {
            if now >= running.deadline && !running.timed_out {
                running.timed_out = true;
                let id = running.program;
                self.tell_guest(&HostMessage::Signal { id, signal: 9 });
            }
            return;
        }
        if checks.next.is_none_or(|next| now < next) {
            return;
        }
        checks.next = None;
        let timeout = Duration::from_nanos(checks.check.timeout);
        let request = ExecRequest { argv: checks.check.argv.clone(), ..ExecRequest::default() };
        let program = self.start_program(request);
        if let Some(checks) = &mut self.checks {
            checks.running = Some(Running {
                program,
                began_ns: now_ns(),
                deadline: now + timeout,
                timed_out: false,
                output: Vec::new(),
            });
        }
    }

    /// A check is over.
    pub(super) fn on_checked(&mut self, outcome: &Outcome) {
        let now = Instant::now();
        let is_ending = self.phase != Phase::Running || self.stopped || self.killed_by.is_some();
        let Some(checks) = &mut self.checks else { return };
        let Some(running) = checks.running.take() else { return };
        if is_ending {
            // The container's end took it along, which says nothing of how the container was.
            checks.next = Some(now + checks.check.pause(false));
            return;
        }
        let timeout = Duration::from_nanos(checks.check.timeout);
        let (exit_code, output) = match outcome {
            _ if running.timed_out => (-1, format!("Health check exceeded timeout ({timeout:?})")),
            Outcome::Exited(exit) => {
                (i32::from(exit.code), String::from_utf8_lossy(&running.output).into_owned())
            }
            Outcome::Failed(failure) => (-1, failure.text.clone()),
        };
        let (start, end) = (rfc3339(running.began_ns), rfc3339(now_ns()));
        let changed = checks.judge(HealthResult { start, end, exit_code, output }, now);
        checks.next = Some(now + checks.check.pause(checks.is_starting(now)));
        self.record.checked(&checks.health, changed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(start_period: u64) -> Checks {
        Checks::new(HealthCheck {
            argv: vec!["x".into()],
            shell: false,
            interval: 1,
            timeout: 1,
            retries: 3,
            start_period,
            start_interval: 1,
        })
    }

    fn result(exit_code: i32) -> HealthResult {
        HealthResult { start: String::new(), end: String::new(), exit_code, output: String::new() }
    }

    /// How the container is after each of these results, and where that changed.
    fn judge(checks: &mut Checks, codes: &[i32]) -> Vec<(String, bool)> {
        let now = checks.started;
        codes
            .iter()
            .map(|code| {
                let changed = checks.judge(result(*code), now);
                (checks.health.status.clone(), changed)
            })
            .collect()
    }

    #[test]
    fn failures_in_a_row_make_it_unhealthy_and_one_success_healthy_again() {
        let mut checks = checks(0);
        let seen = judge(&mut checks, &[0, 1, 1, 0, 1, 1, 1, 1, 0]);
        let words: Vec<_> = seen.iter().map(|(status, changed)| (status.as_str(), *changed)).collect();
        assert_eq!(
            words,
            [
                ("healthy", true),
                ("healthy", false),
                ("healthy", false),
                ("healthy", false),
                ("healthy", false),
                ("healthy", false),
                ("unhealthy", true),
                ("unhealthy", false),
                ("healthy", true),
            ]
        );
        assert_eq!((checks.health.failing_streak, checks.health.log.len()), (0, REMEMBERED));
    }

    #[test]
    fn failures_while_it_starts_do_not_count() {
        let mut checks = checks(1_000_000_000_000);
        assert_eq!(judge(&mut checks, &[1, 1, 1, 1]).last().unwrap().0, "starting");
        assert_eq!(checks.health.failing_streak, 0);
        assert_eq!(judge(&mut checks, &[0, 1, 1, 1]).last().unwrap().0, "unhealthy");
    }

    #[test]
    fn the_beginning_of_the_output_is_kept() {
        let mut checks = checks(0);
        checks.hear(b"nobody runs");
        checks.running = Some(Running {
            program: 7,
            began_ns: 0,
            deadline: Instant::now(),
            timed_out: false,
            output: Vec::new(),
        });
        checks.hear(&[b'x'; 4000]);
        checks.hear(&[b'y'; 4000]);
        assert_eq!(checks.running.as_ref().unwrap().output.len(), MOST_OUTPUT);
        assert_eq!(checks.program(), Some(7));
    }
}
