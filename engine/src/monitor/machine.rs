//! The virtual machine as the session needs it. `crate::container::machine` has the real one; tests have a guest that is
//! a thread.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use servin_init::proto::{Hello, Root};

use super::wire::Clocks;
use crate::network::{NetworkPlan, Published};
use crate::snapshot::Place;

/// Why a machine is not running any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The guest powered off.
    Off,
    /// The machine cannot go on.
    Failed(String),
}

/// When the machine reached the steps of its start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BootClocks {
    pub(crate) vm_created: Option<Instant>,
    pub(crate) kernel_entered: Option<Instant>,
    pub(crate) init_started: Option<Instant>,
}

/// A machine that has been started.
pub(crate) trait Machine {
    /// Descriptors that become readable when there is news.
    fn sources(&self) -> Vec<BorrowedFd<'_>>;

    /// A connection that the guest opened since the last call, with the port it asked for.
    fn accept(&mut self) -> Option<(u32, UnixStream)>;

    /// The guest's agent said hello.
    fn said_hello(&mut self, hello: &Hello, now: Instant);

    /// Why it ended, once it has.
    fn ended(&mut self) -> Option<Ended>;

    /// Ends it at once, if it has not ended, and waits for its threads.
    fn kill(&mut self);

    /// It has published ports, which others shall be able to take as soon as its end is told.
    fn publishes(&self) -> bool {
        false
    }

    /// Ends it as [`Machine::kill`] does, and gives back what it keeps for a next one: the published ports.
    fn retire(&mut self) {
        self.kill();
    }

    /// When the steps of its start were reached.
    fn clocks(&self) -> BootClocks;

    /// It is a clone of a template: its agent connects anew and says a generation above 0.
    fn is_warm(&self) -> bool;

    /// The root file system, if its agent does not know it from the kernel command line.
    fn root(&self) -> Option<Root> {
        None
    }

    /// It is to be saved as a template once its agent is idle.
    fn wants_template(&self) -> bool;

    /// Saves it as a template, between two instructions of the guest. A template that cannot be made is no failure of
    /// the machine, which goes on.
    fn save_template(&mut self) -> Result<(), String>;

    /// Parks the virtual CPUs between two instructions.
    fn pause(&mut self) -> Result<(), String>;

    /// Lets them go on.
    fn resume(&mut self) -> Result<(), String>;

    /// Numbers of the snapshots since which it knows what was written, the latest first.
    fn known(&self) -> Vec<String>;

    /// Writes the machine, with what is on the container's disk, into a directory: all of it, or what changed since the
    /// snapshot that this one is to build on. It is paused.
    ///
    /// # Errors
    /// Why it cannot be saved.
    fn save(&self, place: &Place) -> Result<(), String>;

    /// Moves its card to these networks, and gives the ports that are published then: at once, or with its next start where it
    /// was killed. After a failure some have moved; the way back is another move.
    ///
    /// # Errors
    /// Why a network cannot be there.
    fn rewire(&mut self, networks: &NetworkPlan) -> Result<Vec<Published>, String>;

    /// The main program has come so far that what was written by now is what others like it write first.
    fn learn(&mut self);

    /// Writes what was noted of its start, where somebody wanted to know. It still has its devices.
    fn write_trace(&self, _: &Clocks) {}

    /// Starts another machine like this one, which was killed.
    ///
    /// # Errors
    /// Why there can be none.
    fn start_again(&mut self) -> Result<(), String>;

    /// A clone that came to nothing before its agent's hello is replaced by a machine that boots, and its template thrown
    /// away. `false` if it is no clone or there can be no other.
    fn start_cold(&mut self) -> bool;
}
