//! The session's side of snapshots: saving a running container, and taking up one that was saved.
//!
//! ```text
//! save:     Freeze ──> Frozen ──> vCPUs parked, machine and disk written, vCPUs go on ──> Freeze off ──> sums, name
//! restore:  Hello of a generation above 0 ──> Configure ──> Ready ──> Freeze off ──> Frozen ──> the program goes on
//! ```
//! While the container stands still no client is listened to: what it asks waits in its connection. So nothing reaches the
//! guest that it could not do. A container that cannot be saved goes on as if nobody had asked.

use std::time::{Duration, Instant};

use servin_init::proto::{Configure, HostMessage, Limits};

use super::client::failed;
use super::guest::reason;
use super::machine::Machine;
use super::program::Outcome;
use super::record::Record;
use super::session::{MAIN, Phase, Session};
use super::wire::{Exit, SnapshotRequest, Tell};

/// How long the guest may take to stand still: longer than its own patience with programs and with us.
const PATIENCE: Duration = Duration::from_secs(30);

/// A snapshot that waits for the guest.
#[derive(Debug)]
pub(super) struct Saving {
    client: u64,
    stop: bool,
    /// When the guest is not waited for any more.
    pub(super) until: Instant,
}

impl<M: Machine, R: Record> Session<M, R> {
    /// Begins a snapshot, for a client.
    pub(super) fn snapshot(&mut self, id: u64, request: &SnapshotRequest) {
        let refused = if self.phase != Phase::Running {
            Some("the container is not running".into())
        } else if self.paused {
            Some("the container is paused: unpause it first".into())
        } else if self.saving.is_some() {
            Some("another snapshot of the container is being made: try again when that is done".into())
        } else if self.is_moving() {
            Some("the container's networks are being changed: try again when that is done".into())
        } else if self.start.network && !self.record.networks().is_ok_and(|now| now.networking.has_card()) {
            Some("the container was disconnected from all its networks, and has their card still: connect it to one first".into())
        } else {
            self.record.begin_snapshot(&request.target, &self.machine.known()).err()
        };
        if let Some(why) = refused {
            return self.leave(id, &failed(why));
        }
        self.saving = Some(Saving { client: id, stop: request.stop, until: Instant::now() + PATIENCE });
        self.freeze(true);
    }

    /// The guest stands still or goes on, or cannot.
    pub(super) fn on_frozen(&mut self, errno: i32, message: &str) {
        // The guest answers in order; what is not the last answer is about something that is over.
        self.freezes = self.freezes.saturating_sub(1);
        if self.freezes > 0 {
            return;
        }
        if self.taking_up {
            return match message {
                "" => {
                    self.taking_up = false;
                    self.main_runs();
                }
                _ => {
                    let why = reason(message, errno);
                    self.fail(125, format!("the restored container cannot go on: {why}"), None);
                }
            };
        }
        // Without one it is the answer to letting the guest go on.
        let Some(saving) = self.saving.take() else { return };
        let saved = match message {
            "" => self.save(),
            _ => Err(format!("the guest cannot stand still: {}", reason(message, errno))),
        };
        let ends = saved.is_ok() && saving.stop;
        if message.is_empty() && !ends {
            self.freeze(false);
        }
        match saved.and_then(|()| self.record.keep_snapshot()) {
            Ok(()) => {
                self.record.event("snapshot", &[]);
                if ends {
                    self.end_saved();
                } else {
                    self.leave(saving.client, &Tell::Done);
                }
            }
            Err(why) => {
                self.record.drop_snapshot();
                if ends {
                    self.freeze(false);
                }
                self.leave(saving.client, &failed(why));
            }
        }
    }

    fn freeze(&mut self, frozen: bool) {
        self.freezes += 1;
        self.tell_guest(&HostMessage::Freeze { frozen });
    }

    /// The machine is gone, and with it what was asked of it.
    pub(super) fn forget_snapshot(&mut self) {
        (self.taking_up, self.freezes) = (false, 0);
        if self.saving.take().is_some() {
            self.record.drop_snapshot();
        }
    }

    /// The guest did not stand still in time.
    pub(super) fn on_saving_time(&mut self, now: Instant) {
        if let Some(saving) = self.saving.take_if(|saving| now >= saving.until) {
            self.record.drop_snapshot();
            self.freeze(false);
            let text = format!("the guest did not stand still within {} s", PATIENCE.as_secs());
            self.leave(saving.client, &failed(text));
        }
    }

    /// Writes machine and disk, with the virtual CPUs parked.
    fn save(&mut self) -> Result<(), String> {
        self.machine.pause()?;
        let saved = match self.record.snapshot() {
            Some(place) => self.machine.save(&place),
            None => Err("nobody has begun the snapshot".into()),
        };
        self.machine.resume()?;
        saved
    }

    /// Ends a container that stands still: what it had written is here, and it writes no more.
    fn end_saved(&mut self) {
        self.rest.never = true;
        self.stopped = true;
        // It is the guest that has the last of the output.
        self.start.needs_shutdown = true;
        self.close(Outcome::Exited(Exit { code: 137, oom: false }));
    }

    /// Continues a container that was saved, instead of making one. Mounts and limits are in it.
    pub(super) fn take_up(&mut self) {
        self.phase = Phase::Preparing;
        self.start.restored = false;
        self.taking_up = true;
        let configure = Configure {
            mounts: Vec::new(),
            limits: Limits::default(),
            sysctls: Vec::new(),
            read_only: false,
            realtime_ns: u64::try_from(crate::store::now_ns()).ok(),
            ..self.start.configure.clone()
        };
        self.tell_guest(&HostMessage::Configure(configure));
    }

    /// The guest has done what `Configure` said.
    pub(super) fn on_ready(&mut self) {
        if self.taking_up {
            if let Some(main) = self.programs.get_mut(&MAIN) {
                main.started = true;
            }
            self.freeze(false);
        }
    }
}
