//! The gate that vCPU threads pass before they run, and where they stop: the life of a VM in one lock.
//!
//! ```text
//!            start            pause                         stop, power off, fault
//!   Built ──────────► Running ◄────► Paused    from any ──────────────────────────► Ended
//!                             resume
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::event::{ExitReason, VmEvent};
use crate::hv::{Entry, Kick, Vcpu};
use crate::timeline::{Mark, Timeline};

/// How a VM ended. The error is shared: everybody who waits gets it.
pub(crate) type End = Result<ExitReason, Arc<Error>>;

/// Something that a parked vCPU does on its own thread.
pub(crate) type Command = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

/// Told of every event, on whichever thread it happens.
pub(crate) type EventSink = Box<dyn Fn(VmEvent) + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Built,
    Running,
    Paused,
    Ended,
}

impl Phase {
    fn describe(self) -> &'static str {
        match self {
            Self::Built => "was not started",
            Self::Running => "is running",
            Self::Paused => "is paused",
            Self::Ended => "has ended",
        }
    }
}

/// One vCPU as the gate sees it.
#[derive(Default)]
struct Seat {
    /// Its thread waits at the gate.
    parked: bool,
    /// It does not run until another vCPU starts it here.
    off: bool,
    start_at: Option<Entry>,
    commands: VecDeque<Command>,
}

struct Life {
    phase: Phase,
    seats: Vec<Seat>,
    /// vCPU threads that exist.
    live: usize,
    end: Option<End>,
}

/// The gate of one VM.
pub(crate) struct Gate {
    life: Mutex<Life>,
    changed: Condvar,
    /// Set once, when the machine exists.
    kicks: OnceLock<Vec<Arc<dyn Kick>>>,
    timeline: Timeline,
    events: Option<EventSink>,
}

/// What a vCPU thread does next.
pub(crate) enum Pass {
    /// Runs the guest.
    Run,
    /// Runs the guest from here.
    Start(Entry),
    /// Ends.
    Leave,
}

impl Gate {
    pub(crate) fn new(cpus: u8, timeline: Timeline, events: Option<EventSink>) -> Self {
        let seats = (0..cpus).map(|_| Seat::default()).collect();
        Self {
            life: Mutex::new(Life { phase: Phase::Built, seats, live: 0, end: None }),
            changed: Condvar::new(),
            kicks: OnceLock::new(),
            timeline,
            events,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, life: MutexGuard<'a, Life>) -> MutexGuard<'a, Life> {
        self.changed.wait(life).unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: VmEvent) {
        if let Some(sink) = &self.events {
            sink(event);
        }
    }

    fn kick_all(&self) {
        for kick in self.kicks.get().into_iter().flatten() {
            kick.kick();
        }
    }

    pub(crate) fn set_kicks(&self, kicks: Vec<Arc<dyn Kick>>) {
        // Called once, by the builder.
        let _ = self.kicks.set(kicks);
    }

    /// These vCPUs wait until another one starts them.
    pub(crate) fn hold_all_but_first(&self) {
        self.lock().seats.iter_mut().skip(1).for_each(|seat| seat.off = true);
    }

    /// Moves from one phase to another; nothing but an error when the VM is in neither.
    fn step(&self, what: &'static str, from: Phase, to: Phase) -> Result<MutexGuard<'_, Life>, Error> {
        let mut life = self.lock();
        if life.phase != from {
            return Err(Error::Lifecycle { what, is: life.phase.describe() });
        }
        life.phase = to;
        Ok(life)
    }

    pub(crate) fn start(&self) -> Result<(), Error> {
        drop(self.step("start", Phase::Built, Phase::Running)?);
        self.tell(VmEvent::Started);
        Ok(())
    }

    /// Stops every vCPU between two instructions and waits until each is parked.
    pub(crate) fn pause(&self) -> Result<(), Error> {
        drop(self.step("pause", Phase::Running, Phase::Paused)?);
        self.kick_all();
        let mut life = self.lock();
        while life.phase == Phase::Paused && life.seats.iter().any(|seat| !seat.parked) {
            life = self.wait(life);
        }
        if life.phase != Phase::Paused {
            return Err(Error::Lifecycle { what: "pause", is: life.phase.describe() });
        }
        drop(life);
        self.tell(VmEvent::Paused);
        Ok(())
    }

    pub(crate) fn resume(&self) -> Result<(), Error> {
        drop(self.step("resume", Phase::Paused, Phase::Running)?);
        self.changed.notify_all();
        self.tell(VmEvent::Resumed);
        Ok(())
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Ends the VM. The first end stays. Called from any thread, vCPUs and device workers included.
    pub(crate) fn end(&self, end: End) {
        let mut life = self.lock();
        life.phase = Phase::Ended;
        if life.end.is_some() {
            return;
        }
        life.end = Some(end.clone());
        drop(life);
        self.timeline.mark(Mark::Exit);
        self.changed.notify_all();
        self.kick_all();
        self.tell(VmEvent::Ended(end));
    }

    /// Waits for the end; `None` after `deadline`.
    pub(crate) fn wait_end(&self, deadline: Option<Instant>) -> Option<End> {
        let mut life = self.lock();
        loop {
            if let Some(end) = life.end.clone().filter(|_| life.live == 0) {
                return Some(end);
            }
            life = match deadline {
                None => self.wait(life),
                Some(deadline) => {
                    let left: Duration = deadline.checked_duration_since(Instant::now())?;
                    self.changed.wait_timeout(life, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    pub(crate) fn thread_begins(&self) {
        self.lock().live += 1;
    }

    pub(crate) fn thread_ends(&self) {
        self.lock().live -= 1;
        self.changed.notify_all();
    }

    /// Has vCPU `index` execute `command` on its thread. The VM must be paused.
    pub(crate) fn command(&self, index: usize, command: Command) -> Result<(), Error> {
        let mut life = self.lock();
        let phase = life.phase;
        match life.seats.get_mut(index) {
            Some(seat) if phase == Phase::Paused => seat.commands.push_back(command),
            _ => return Err(Error::Lifecycle { what: "save or restore vCPUs", is: phase.describe() }),
        }
        drop(life);
        self.changed.notify_all();
        Ok(())
    }

    /// Another vCPU starts vCPU `index`. False when there is no such vCPU or it runs already.
    pub(crate) fn start_vcpu(&self, index: u8, at: Entry) -> bool {
        let mut life = self.lock();
        let started = life.seats.get_mut(usize::from(index)).filter(|seat| seat.off).map(|seat| {
            seat.off = false;
            seat.start_at = Some(at);
        });
        drop(life);
        self.changed.notify_all();
        started.is_some()
    }

    /// vCPU `index` turned itself off.
    pub(crate) fn stop_vcpu(&self, index: u8) {
        if let Some(seat) = self.lock().seats.get_mut(usize::from(index)) {
            seat.off = true;
        }
    }

    /// A vCPU thread asks what to do. Parks it while the VM is paused, and carries out commands there.
    pub(crate) fn pass(&self, index: u8, vcpu: &mut dyn Vcpu) -> Pass {
        let index = usize::from(index);
        let mut life = self.lock();
        loop {
            let phase = life.phase;
            let Some(seat) = life.seats.get_mut(index) else { return Pass::Leave };
            match phase {
                Phase::Ended => return Pass::Leave,
                Phase::Running if !seat.off => {
                    seat.parked = false;
                    return seat.start_at.take().map_or(Pass::Run, Pass::Start);
                }
                _ => {}
            }
            if let Some(command) = seat.commands.pop_front() {
                drop(life);
                command(vcpu);
                life = self.lock();
                continue;
            }
            if !seat.parked {
                seat.parked = true;
                self.changed.notify_all();
            }
            life = self.wait(life);
        }
    }
}
