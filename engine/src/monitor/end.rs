//! How a session ends: the main program's outcome, the record, and what clients are told.

use std::time::Instant;

use servin_init::proto::HostMessage;

use super::health::Checks;
use super::machine::Machine;
use super::program::{Outcome, Program};
use super::record::Record;
use super::session::{MAIN, Phase, SHUTDOWN, Session};
use super::wire::{Exit, Failure, Tell};

impl<M: Machine, R: Record> Session<M, R> {
    /// Ends everything for a reason of our own.
    pub(super) fn fail(&mut self, code: u8, text: String, hint: Option<&str>) {
        log::error!("{text}");
        self.close(Outcome::Failed(Failure { code, text, hint: hint.map(str::to_owned) }));
        self.finish();
    }

    /// The main program is over: ends the machine.
    pub(super) fn close(&mut self, outcome: Outcome) {
        if self.phase >= Phase::Closing {
            return;
        }
        let ran = self.phase == Phase::Running && matches!(outcome, Outcome::Exited(_));
        self.rest.ran = self.phase == Phase::Running;
        self.phase = Phase::Closing;
        self.stop_at = None;
        self.clocks.exited = Some(self.microseconds(Instant::now()));
        self.last = Some(outcome);
        if ran {
            self.machine.learn();
        }
        if ran && self.start.needs_shutdown && self.control.is_some() {
            self.end_at = Some(Instant::now() + SHUTDOWN);
            self.tell_guest(&HostMessage::Shutdown);
        } else {
            self.finish();
        }
    }

    /// The record is written, clients are told, and the machine is ended if it is not off. The machine goes last, because
    /// taking its memory apart is long work that nobody waits for; first only if it could still write to the host, or has ports
    /// that whoever hears of the end may want.
    pub(super) fn finish(&mut self) {
        if self.phase != Phase::Closing {
            return;
        }
        self.others_die();
        if self.rests() {
            return self.rest();
        }
        self.phase = Phase::Ended;
        self.end_at = None;
        let at_once = self.start.needs_shutdown || self.machine.publishes();
        if at_once {
            self.machine.retire();
        }
        (self.control, self.listener, self.log) = (None, None, None);
        self.unnamed.clear();
        self.read_clocks();
        self.machine.write_trace(&self.clocks);
        let outcome = self.outcome();
        match &outcome {
            Outcome::Exited(exit) => self.record.ended(exit, ""),
            Outcome::Failed(failure) => {
                self.record.ended(&Exit { code: failure.code, oom: false }, &failure.text);
            }
        }
        if self.stopped {
            self.record.event("stop", &[]);
        }
        self.tell_end(&outcome);
        if !at_once {
            self.machine.retire();
        }
    }

    /// Programs beside the main one are over with the machine.
    fn others_die(&mut self) {
        let check = self.checks.as_ref().and_then(Checks::program);
        for (id, program) in &mut self.programs {
            if *id != MAIN && Some(*id) != check && std::mem::take(&mut program.told) {
                self.record.event("exec_die", &[("execID", &id.to_string()), ("exitCode", "137")]);
            }
        }
    }

    /// How the program ended.
    pub(super) fn outcome(&self) -> Outcome {
        self.last.clone().unwrap_or(Outcome::Exited(Exit { code: 125, oom: false }))
    }

    fn read_clocks(&mut self) {
        let boot = self.machine.clocks();
        self.clocks.warm = self.machine.is_warm();
        self.clocks.vm_created = boot.vm_created.map(|at| self.microseconds(at));
        self.clocks.kernel_entered = boot.kernel_entered.map(|at| self.microseconds(at));
        self.clocks.init_started = boot.init_started.map(|at| self.microseconds(at));
    }

    /// Tells all clients how it ended.
    pub(super) fn tell_end(&mut self, outcome: &Outcome) {
        let tell = match outcome {
            Outcome::Exited(exit) => Tell::Exited(exit.clone()),
            Outcome::Failed(failure) => Tell::Failed(failure.clone()),
        };
        // Programs beside the main one die with it.
        let killed = Tell::Exited(Exit { code: 137, oom: false });
        for client in self.clients.values_mut() {
            if client.leaving {
                continue;
            }
            if client.watching.is_none_or(|id| id == MAIN) {
                client.tell(&Tell::Clocks(self.clocks));
                client.tell(&tell);
            } else {
                client.tell(&killed);
            }
            client.leaving = true;
        }
    }

    /// Brings programs and clients that are over to their end.
    pub(super) fn settle(&mut self) {
        if self.phase < Phase::Closing && self.programs.get(&MAIN).is_some_and(Program::is_over) {
            let outcome = self.programs.get(&MAIN).and_then(|main| main.outcome.clone());
            if let Some(outcome) = outcome {
                self.close(outcome);
            }
        }
        let over: Vec<u32> = self
            .programs
            .iter()
            .filter(|(id, program)| **id != MAIN && program.is_over())
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            let Some(program) = self.programs.remove(&id) else { continue };
            let Some(outcome) = program.outcome else { continue };
            if self.checks.as_ref().and_then(Checks::program) == Some(id) {
                self.on_checked(&outcome);
                continue;
            }
            if program.told {
                let code = match &outcome {
                    Outcome::Exited(exit) => exit.code,
                    Outcome::Failed(failure) => failure.code,
                };
                let (code, id) = (code.to_string(), id.to_string());
                self.record.event("exec_die", &[("execID", &id), ("exitCode", &code)]);
            }
            let tell = match outcome {
                Outcome::Exited(exit) => Tell::Exited(exit),
                Outcome::Failed(failure) => Tell::Failed(failure),
            };
            for client in self.clients.values_mut().filter(|client| client.watching == Some(id)) {
                client.tell(&tell);
                client.leaving = true;
            }
        }
        for client in self.clients.values_mut() {
            client.link.flush();
        }
        let gone: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.link.is_broken() || (client.leaving && client.link.pending() == 0))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.drop_client(id);
        }
    }
}
