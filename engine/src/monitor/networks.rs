//! The session's side of networks that come and go while the container runs.
//!
//! ```text
//! connect:     tables ──> card ──> Networks ──> Networked
//! disconnect:                      Networks ──> Networked ──> card ──> tables
//! ```
//! One change after another, each told to the client that asked for it when all of it is done; what fails is put back the other
//! way round. Between two programs of a container that is started again there is no guest to be asked: its next one is told.

use std::time::{Duration, Instant};

use servin_init::proto::HostMessage;

use super::client::failed;
use super::guest::reason;
use super::machine::Machine;
use super::record::Record;
use super::session::{Phase, Session};
use super::wire::Tell;
use crate::network::{Change, NetworkPlan};

/// How long the guest may take to move.
const PATIENCE: Duration = Duration::from_secs(30);

/// A change that waits for the guest.
#[derive(Debug)]
pub(super) struct Moving {
    client: u64,
    change: Change,
    before: NetworkPlan,
    after: NetworkPlan,
    /// When the guest is not waited for any more.
    pub(super) until: Instant,
}

impl<M: Machine, R: Record> Session<M, R> {
    /// Changes the container's networks, for a client: now, or when it runs and the changes before this one are done.
    pub(super) fn change_networks(&mut self, id: u64, change: Change) {
        let refused = if self.phase >= Phase::Closing {
            "the container is not running"
        } else if self.paused {
            "the container is paused: unpause it first"
        } else if !self.start.network {
            "its machine was started without a network of servin's (--network none, socket: or tap:), and gets no card while it runs: stop the container, connect it, and start it"
        } else {
            self.changes.push_back((id, change));
            return self.next_change();
        };
        self.leave(id, &failed(refused.into()));
    }

    /// Whether a change is on its way.
    pub(super) fn is_moving(&self) -> bool {
        self.moving.is_some() || !self.changes.is_empty()
    }

    /// Begins the next change, if it can be.
    pub(super) fn next_change(&mut self) {
        while self.moving.is_none() && matches!(self.phase, Phase::Running | Phase::Resting) {
            let Some((client, change)) = self.changes.pop_front() else { return };
            if let Err(why) = self.begin(client, change) {
                self.leave(client, &failed(why));
            }
        }
    }

    fn begin(&mut self, client: u64, change: Change) -> Result<(), String> {
        let before = self.record.networks()?;
        let after = match &change {
            Change::Connect { .. } => self.record.reconnect(&change)?,
            Change::Disconnect { .. } => self.record.foresee(&change)?,
        };
        let moving = Moving { client, change, before, after, until: Instant::now() + PATIENCE };
        if matches!(moving.change, Change::Connect { .. })
            && let Err(why) = self.rewire(&moving.after)
        {
            self.put_back(&moving);
            return Err(why);
        }
        if self.phase == Phase::Resting {
            self.arrive(moving);
            return Ok(());
        }
        self.move_guest(&moving.after, &moving.before);
        self.moving = Some(moving);
        Ok(())
    }

    /// The guest has moved, or has not.
    pub(super) fn on_networked(&mut self, errno: i32, message: &str) {
        // The guest answers in order; what is not the last answer is about something that is over.
        self.moves = self.moves.saturating_sub(1);
        if self.moves > 0 {
            return;
        }
        match self.moving.take() {
            Some(moving) if message.is_empty() => self.arrive(moving),
            Some(moving) => {
                let why = reason(message, errno);
                self.did_not_move(moving, format!("the guest could not change its networks: {why}"));
            }
            // It was to go back to where it was.
            None if message.is_empty() => {}
            None => log::error!("the guest keeps no networks: {}", reason(message, errno)),
        }
        self.next_change();
    }

    /// The guest did not move in time.
    pub(super) fn on_networks_time(&mut self, now: Instant) {
        if let Some(moving) = self.moving.take_if(|moving| now >= moving.until) {
            let text = format!("the guest did not change its networks within {} s", PATIENCE.as_secs());
            self.did_not_move(moving, text);
            self.next_change();
        }
    }

    fn did_not_move(&mut self, moving: Moving, why: String) {
        if matches!(moving.change, Change::Disconnect { force: true, .. }) {
            log::warn!("{why}");
            return self.arrive(moving);
        }
        self.turn_back(&moving, why);
    }

    /// The rest of a change, and its client is told.
    fn arrive(&mut self, moving: Moving) {
        let done = match &moving.change {
            Change::Connect { .. } => Ok(()),
            Change::Disconnect { .. } => {
                self.rewire(&moving.after).and_then(|()| self.record.reconnect(&moving.change).map(drop))
            }
        };
        match done {
            Ok(()) => {
                moving.after.tell_all(&mut self.start.configure);
                self.leave(moving.client, &Tell::Done);
            }
            Err(why) => self.turn_back(&moving, why),
        }
    }

    /// Puts the guest, the card and the tables back to what was, and tells the client why.
    fn turn_back(&mut self, moving: &Moving, why: String) {
        log::error!("{why}");
        self.put_back(moving);
        if self.phase == Phase::Running {
            self.move_guest(&moving.before, &moving.after);
        }
        self.leave(moving.client, &failed(why));
    }

    fn put_back(&mut self, moving: &Moving) {
        if let Err(why) = self.rewire(&moving.before) {
            log::error!("cannot put the card back on its networks: {why}");
        }
        if let Change::Connect { network, .. } = &moving.change {
            let back = Change::Disconnect { network: network.clone(), force: true };
            if let Err(why) = self.record.reconnect(&back) {
                log::error!("cannot take the container off {network}: {why}");
            }
        }
    }

    fn move_guest(&mut self, to: &NetworkPlan, from: &NetworkPlan) {
        self.moves += 1;
        self.tell_guest(&HostMessage::Networks(to.moved(from)));
    }

    fn rewire(&mut self, networks: &NetworkPlan) -> Result<(), String> {
        let ports = self.machine.rewire(networks)?;
        self.record.published(ports);
        Ok(())
    }

    /// The machine is gone, and with it what was asked of its guest. What is in the tables the next one is told; who asked is
    /// told of the end.
    pub(super) fn forget_changes(&mut self) {
        self.moves = 0;
        self.changes.clear();
        if let Some(moving) = self.moving.take()
            && matches!(moving.change, Change::Connect { .. })
        {
            moving.after.tell_all(&mut self.start.configure);
        }
    }
}
