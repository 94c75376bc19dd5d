//! The session's side of commands that change or look into a running container: pause, update, stats, top.

use servin_init::proto::{HostMessage, Subject};

use super::client::failed;
use super::machine::Machine;
use super::record::Record;
use super::session::{Phase, Session};
use super::wire::{Seen, Tell};
use crate::container::{Update, machine_memory};

impl<M: Machine, R: Record> Session<M, R> {
    /// Parks the virtual CPUs, or lets them go on.
    pub(super) fn pause(&mut self, id: u64, paused: bool) {
        let tell = match (self.phase == Phase::Running, self.paused == paused) {
            (false, _) => failed("the container is not running".into()),
            (true, true) if paused => failed("the container is paused already".into()),
            (true, true) => failed("the container is not paused".into()),
            // The guest could not answer.
            (true, false) if self.is_moving() => {
                failed("the container's networks are being changed: try again when that is done".into())
            }
            (true, false) => match self.set_paused(paused) {
                Ok(()) => Tell::Done,
                Err(why) => failed(why),
            },
        };
        self.leave(id, &tell);
    }

    fn set_paused(&mut self, paused: bool) -> Result<(), String> {
        if paused { self.machine.pause() } else { self.machine.resume() }?;
        self.paused = paused;
        self.record.paused(paused);
        Ok(())
    }

    /// Lets a paused machine go on, for something was sent to it that it must see.
    pub(super) fn wake(&mut self) {
        if self.paused
            && let Err(why) = self.set_paused(false)
        {
            log::error!("cannot let the machine go on: {why}");
        }
    }

    /// Asks the guest about the container, for a client.
    pub(super) fn observe(&mut self, id: u64, subject: Subject) {
        if self.phase != Phase::Running {
            self.leave(id, &failed("the container is not running".into()));
        } else if self.paused {
            self.leave(id, &failed("the container is paused: unpause it first".into()));
        } else {
            self.tell_guest(&HostMessage::Observe { token: id, subject });
        }
    }

    /// The guest's answer.
    pub(super) fn on_observed(&mut self, token: u64, cut: bool, text: Vec<u8>) {
        // The client may be gone.
        if let Some(client) = self.clients.get_mut(&token).filter(|client| !client.leaving) {
            client.tell(&Tell::Seen(Seen { cut, text }));
        }
    }

    /// Changes the container's limits and what happens at its end, for a client.
    pub(super) fn update(&mut self, id: u64, update: Update) {
        let room = self.start.memory;
        if update.restart.is_some() && !update.has_limits() {
            self.apply(&update);
            return self.leave(id, &Tell::Done);
        }
        if self.phase != Phase::Running {
            return self.leave(id, &failed("the container is not running".into()));
        }
        if let Some(memory) = update.memory.filter(|memory| machine_memory(*memory) > room) {
            let text = format!(
                "{} MiB do not fit into the machine, which was started with {} MiB: start the container with more",
                memory >> 20,
                room >> 20
            );
            return self.leave(id, &failed(text));
        }
        if let Some(cpus) = update.cpus.filter(|cpus| cpus.count() > self.start.cpus) {
            let text = format!(
                "the machine was started with {} CPUs, and {} are needed: start the container with more",
                self.start.cpus,
                cpus.count()
            );
            return self.leave(id, &failed(text));
        }
        if self.paused {
            return self.leave(id, &failed("the container is paused: unpause it first".into()));
        }
        self.tell_guest(&HostMessage::Update(update.cgroup()));
        self.updates.push_back((id, update));
    }

    /// The guest has set the limits, or has not.
    pub(super) fn on_updated(&mut self, errno: i32, message: &str) {
        let Some((id, update)) = self.updates.pop_front() else { return };
        if message.is_empty() {
            self.apply(&update);
            self.leave(id, &Tell::Done);
        } else {
            let why = super::guest::reason(message, errno);
            self.leave(id, &failed(format!("the guest could not change its limits: {why}")));
        }
    }

    fn apply(&mut self, update: &Update) {
        self.start.restart = update.restart.unwrap_or(self.start.restart);
        self.record.updated(update);
    }

    pub(super) fn leave(&mut self, id: u64, tell: &Tell) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.leave_with(tell);
        }
    }
}
