//! A GICv3 (IHI 0069) for hosts whose hypervisor has none: distributor, redistributors and CPU interfaces.
//!
//! One security state, affinity routing always on, 5 bits of priority, no LPIs, no 1-of-N. Pure logic: the backend hands
//! it edges ([`Gic::trigger`]), levels ([`Gic::set_level`]), accesses to its memory ([`Gic::read`], [`Gic::write`]) and to
//! its system registers ([`Gic::read_register`], [`Gic::write_register`]), and asks which vCPU has an interrupt to take
//! ([`Gic::signal`]).
//!
//! ```text
//! inactive ── edge, level, ISPENDR ──> pending ── IAR ──> active ── EOIR (or DIR) ──> inactive
//!                                                           └── edge, level still up ──> active and pending
//! ```

mod icc;
mod mmio;
#[cfg(test)]
mod tests;

pub use self::mmio::{DISTRIBUTOR_SIZE, Frame, REDISTRIBUTOR_SIZE};

use serde::{Deserialize, Serialize};
use servin_devices::state::{State, StateError};

/// The first shared peripheral interrupt; those before it are each vCPU's own.
pub const FIRST_SPI: u32 = 32;
/// "No interrupt": what an acknowledge register answers then.
pub const SPURIOUS: u32 = 1023;
/// The most shared interrupts that this one has.
pub const MOST_SPIS: u32 = 256;
/// Interrupts 0 to 15 are sent by software.
const SGIS: usize = 16;
/// The implemented bits of a priority.
const PRIORITY: u8 = 0xf8;
/// A running priority that nothing is below: no interrupt is active.
const IDLE: u8 = 0xff;

/// An interrupt source as the distributor or a redistributor keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Source {
    enabled: bool,
    /// An edge came, or software made it pending.
    latched: bool,
    /// Its line is up.
    level: bool,
    active: bool,
    /// Edge-triggered: a line that is up means nothing by itself.
    edge: bool,
    /// Group 1, an IRQ; else group 0, a FIQ.
    group1: bool,
    priority: u8,
}

impl Source {
    const RESET: Self = Self {
        enabled: false,
        latched: false,
        level: false,
        active: false,
        edge: false,
        group1: false,
        priority: 0,
    };

    fn pending(&self) -> bool {
        self.latched || (self.level && !self.edge)
    }
}

/// What a vCPU has of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Cpu {
    /// Interrupts 0 to 31.
    private: Vec<Source>,
    /// GICR_WAKER.ProcessorSleep.
    asleep: bool,
    icc: icc::Interface,
}

/// The interrupt controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gic {
    /// GICD_CTLR: EnableGrp0, EnableGrp1.
    groups: [bool; 2],
    cpus: Vec<Cpu>,
    /// Interrupts from [`FIRST_SPI`] on.
    shared: Vec<Source>,
    /// GICD_IROUTER of each of them.
    routes: Vec<u64>,
}

impl State for Gic {
    const NAME: &'static str = "the GICv3";
    const VERSION: u16 = 1;
}

/// What a vCPU is to be interrupted by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signal {
    /// A group 1 interrupt waits.
    pub irq: bool,
    /// A group 0 interrupt waits.
    pub fiq: bool,
}

impl Signal {
    /// Whether there is any.
    #[must_use]
    pub fn any(self) -> bool {
        self.irq || self.fiq
    }
}

/// The interrupt that a vCPU takes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    priority: u8,
    intid: u32,
    group1: bool,
}

impl Gic {
    /// After reset, for `cpus` vCPUs and at least `spis` shared interrupts (at most [`MOST_SPIS`]).
    #[must_use]
    pub fn new(cpus: u8, spis: u32) -> Self {
        let shared = spis.clamp(1, MOST_SPIS).next_multiple_of(32) as usize;
        let private: Vec<_> =
            (0..FIRST_SPI as usize).map(|intid| Source { edge: intid < SGIS, ..Source::RESET }).collect();
        let cpu = Cpu { private, asleep: true, icc: icc::Interface::default() };
        Self {
            groups: [false; 2],
            cpus: vec![cpu; cpus.into()],
            shared: vec![Source::RESET; shared],
            routes: vec![0; shared],
        }
    }

    /// An edge on shared interrupt `spi`, counted from 0. One that is not there is dropped.
    pub fn trigger(&mut self, spi: u32) {
        if let Some(source) = self.shared.get_mut(spi as usize) {
            source.latched = true;
        }
    }

    /// The line of private interrupt `intid` (16 to 31) of a vCPU goes up or down.
    pub fn set_level(&mut self, cpu: u8, intid: u32, level: bool) {
        let private = self.cpus.get_mut(usize::from(cpu)).map(|cpu| &mut cpu.private);
        if let Some(source) = private.and_then(|private| private.get_mut(intid as usize)) {
            source.latched |= source.edge && level && !source.level;
            source.level = level;
        }
    }

    /// Whether the vCPU has an interrupt to take: one that is pending, enabled, and above what it runs.
    #[must_use]
    pub fn signal(&self, cpu: u8) -> Signal {
        match self.deliverable(cpu.into()) {
            Some(next) => Signal { irq: next.group1, fiq: !next.group1 },
            None => Signal::default(),
        }
    }

    /// The pending interrupt of the highest priority, whatever the CPU interface lets through.
    fn highest(&self, cpu: usize) -> Option<Candidate> {
        let own = self.cpus.get(cpu)?;
        let private = (0..).zip(&own.private);
        let routed = self.shared.iter().zip(&self.routes).zip(FIRST_SPI..);
        let shared = routed.filter(|((_, route), _)| **route == cpu as u64);
        let shared = shared.map(|((source, _), intid)| (intid, source));
        private
            .chain(shared)
            .filter(|(_, source)| source.enabled && !source.active && source.pending())
            .filter(|(_, source)| self.groups.get(usize::from(source.group1)) == Some(&true))
            .map(|(intid, source)| Candidate { priority: source.priority, intid, group1: source.group1 })
            .min_by_key(|candidate| (candidate.priority, candidate.intid))
    }

    /// The same, if the CPU interface lets it through now.
    fn deliverable(&self, cpu: usize) -> Option<Candidate> {
        let icc = &self.cpus.get(cpu)?.icc;
        self.highest(cpu).filter(|next| icc.lets_through(next.priority, next.group1))
    }

    fn source(&mut self, cpu: usize, intid: u32) -> Option<&mut Source> {
        match intid.checked_sub(FIRST_SPI) {
            Some(spi) => self.shared.get_mut(spi as usize),
            None => self.cpus.get_mut(cpu)?.private.get_mut(intid as usize),
        }
    }

    /// Takes back a saved controller.
    ///
    /// # Errors
    /// It has another shape than this one.
    pub fn restore(&mut self, state: &Self) -> Result<(), StateError> {
        let shape = |gic: &Self| (gic.cpus.len(), gic.shared.len(), gic.routes.len());
        let whole =
            state.cpus.iter().all(|cpu| cpu.private.len() == FIRST_SPI as usize && cpu.icc.is_valid());
        if shape(self) != shape(state) || !whole {
            let why = "it has other interrupts or CPUs than this machine".to_owned();
            return Err(StateError::Mismatch { what: Self::NAME, why });
        }
        self.clone_from(state);
        for source in self.cpus.iter_mut().flat_map(|cpu| &mut cpu.private).chain(&mut self.shared) {
            source.priority &= PRIORITY;
        }
        Ok(())
    }
}
