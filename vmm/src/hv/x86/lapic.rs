//! A local APIC in xAPIC mode (SDM vol. 3, 10), for hypervisors that bring none: Hypervisor.framework on x86_64.
//!
//! Pure logic: it is told of signals, register accesses and the time in nanoseconds, and answers with what its vCPU has to
//! take and what others are sent ([`Effect`]). The timer counts nanoseconds before its divider, once or periodically; there
//! is no TSC-deadline mode and no x2APIC mode, and CPUID must not offer them. The virtual wires (LINT0, LINT1) carry nothing.

mod signal;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use servin_devices::state::{State, StateError};

pub use self::signal::{Effect, Ipi, Signal, To};

/// Where it is after reset. A guest that moves it is refused by the backend.
pub const BASE: u64 = 0xfee0_0000;
/// Bytes of its registers.
pub const SIZE: u64 = 0x1000;
/// What the timer counts in a second before its divider.
pub const TIMER_HZ: u64 = 1_000_000_000;

/// Version 0x14, six entries in the local vector table.
const VERSION: u32 = 0x14 | 5 << 16;
/// SVR: enabled by software.
const ENABLED: u32 = 1 << 8;
/// Vector table entry: masked.
const MASKED: u32 = 1 << 16;
/// Timer entry: periodic.
const PERIODIC: u32 = 1 << 17;
/// ESR: a vector below 16 was sent, or received.
const SEND_ILLEGAL: u32 = 1 << 5;
const RECEIVE_ILLEGAL: u32 = 1 << 6;
/// ICR: asserted, level-triggered.
const ASSERT: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
/// Entries of the local vector table: their registers in the order of the array, and what of each is kept.
const LVT: [(u64, u32); 6] = [
    (0x320, 0x3_00ff),
    (0x330, 0x1_07ff),
    (0x340, 0x1_07ff),
    (0x350, 0x1_a7ff),
    (0x360, 0x1_a7ff),
    (0x370, 0x1_00ff),
];
const TIMER: usize = 0;
const ERROR: usize = 5;

/// The chip of one vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lapic {
    id: u8,
    tpr: u8,
    logical: u8,
    /// The destination format, of which the highest four bits count.
    format: u8,
    spurious: u32,
    service: [u32; 8],
    level: [u32; 8],
    request: [u32; 8],
    errors: u32,
    latched_errors: u32,
    command: u64,
    table: [u32; 6],
    initial: u32,
    divide: u32,
    /// When the count began, in nanoseconds.
    started: u64,
    counting: bool,
    nmi: bool,
    init: bool,
    /// Waits for SIPI.
    waiting: bool,
    startup: Option<u8>,
}

impl State for Lapic {
    const NAME: &'static str = "the local APIC";
    const VERSION: u16 = 1;
}

impl Lapic {
    /// After reset: disabled by software, everything masked. All but the first wait for SIPI.
    #[must_use]
    pub fn new(id: u8) -> Self {
        Self {
            id,
            tpr: 0,
            logical: 0,
            format: 0xf,
            spurious: 0xff,
            service: [0; 8],
            level: [0; 8],
            request: [0; 8],
            errors: 0,
            latched_errors: 0,
            command: 0,
            table: [MASKED; 6],
            initial: 0,
            divide: 0,
            started: 0,
            counting: false,
            nmi: false,
            init: false,
            waiting: id != 0,
            startup: None,
        }
    }

    // ---- signals --------------------------------------------------------------------------------------------------

    /// Whether it is one of the receivers.
    #[must_use]
    pub fn hears(&self, to: To, from: Option<u8>) -> bool {
        match to {
            To::Own => from == Some(self.id),
            To::All => true,
            To::Others => from != Some(self.id),
            To::Physical(id) => id == 0xff || id == self.id,
            To::Logical(0xff) => true,
            To::Logical(ids) if self.format == 0xf => ids & self.logical != 0,
            // Clusters of four.
            To::Logical(ids) => ids >> 4 == self.logical >> 4 && ids & self.logical & 0xf != 0,
        }
    }

    /// Takes a signal; true: its vCPU has something to look at.
    pub fn post(&mut self, signal: Signal) -> bool {
        match signal {
            Signal::Fixed { vector, .. } if vector < 16 => {
                self.error(RECEIVE_ILLEGAL);
                return false;
            }
            Signal::Fixed { .. } if self.spurious & ENABLED == 0 => return false,
            Signal::Fixed { vector, level } => {
                set(&mut self.request, vector, true);
                set(&mut self.level, vector, level);
            }
            Signal::Nmi => self.nmi = true,
            Signal::Init => (self.init, self.startup) = (true, None),
            Signal::Startup { vector } if self.init || self.waiting => self.startup = Some(vector),
            Signal::Startup { .. } => return false,
        }
        true
    }

    fn error(&mut self, bit: u32) {
        self.errors |= bit;
        let entry = self.table.get(ERROR).copied().unwrap_or(MASKED);
        if entry & MASKED == 0 && entry as u8 >= 16 {
            set(&mut self.request, entry as u8, true);
            set(&mut self.level, entry as u8, false);
        }
    }

    /// Takes an INIT: the chip is as after reset and waits for SIPI.
    pub fn take_init(&mut self) -> bool {
        if !self.init {
            return false;
        }
        *self = Self { startup: self.startup, waiting: true, ..Self::new(self.id) };
        true
    }

    /// Whether it waits for SIPI.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.waiting
    }

    /// Takes a SIPI.
    pub fn take_startup(&mut self) -> Option<u8> {
        let vector = self.startup.take();
        self.waiting &= vector.is_none();
        vector
    }

    /// Whether an NMI waits.
    #[must_use]
    pub fn has_nmi(&self) -> bool {
        self.nmi
    }

    /// The NMI is delivered.
    pub fn take_nmi(&mut self) {
        self.nmi = false;
    }

    /// The vector that its vCPU has to take, if it takes interrupts.
    #[must_use]
    pub fn pending(&self) -> Option<u8> {
        highest(&self.request)
            .filter(|vector| self.spurious & ENABLED != 0 && vector >> 4 > self.priority() >> 4)
    }

    /// The vCPU takes the interrupt.
    pub fn accept(&mut self, vector: u8) {
        set(&mut self.request, vector, false);
        set(&mut self.service, vector, true);
    }

    /// PPR: what an interrupt must be above.
    #[must_use]
    pub fn priority(&self) -> u8 {
        let service = highest(&self.service).unwrap_or(0);
        if self.tpr >> 4 >= service >> 4 { self.tpr } else { service & 0xf0 }
    }

    /// CR8.
    #[must_use]
    pub fn task_priority(&self) -> u8 {
        self.tpr >> 4
    }

    /// Sets CR8.
    pub fn set_task_priority(&mut self, class: u8) {
        self.tpr = class << 4;
    }

    // ---- the timer ------------------------------------------------------------------------------------------------

    fn timer(&self) -> u32 {
        self.table.get(TIMER).copied().unwrap_or(MASKED)
    }

    /// Nanoseconds from the beginning of a count to its end, 0 when it does not count.
    fn period(&self) -> u64 {
        let shift = ((self.divide & 3 | self.divide >> 1 & 4) + 1) & 7;
        u64::from(self.initial) << shift
    }

    fn count(&self, now: u64) -> u32 {
        let period = self.period();
        if !self.counting || period == 0 {
            return 0;
        }
        let elapsed = now.saturating_sub(self.started);
        let elapsed = if self.timer() & PERIODIC != 0 { elapsed % period } else { elapsed.min(period) };
        // The divider, from what it makes of the count.
        let divider = (period / u64::from(self.initial.max(1))).max(1);
        u32::try_from((period - elapsed).div_ceil(divider)).unwrap_or(u32::MAX)
    }

    /// When the timer interrupts next, in nanoseconds.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let period = self.period();
        let due = self.counting && period != 0 && self.timer() & MASKED == 0;
        due.then(|| self.started.saturating_add(period))
    }

    /// Lets time pass: an interrupt of the timer that is due is requested. Periods that were missed count as one.
    pub fn tick(&mut self, now: u64) {
        let period = self.period();
        if !self.counting || period == 0 || now < self.started.saturating_add(period) {
            return;
        }
        let entry = self.timer();
        if entry & PERIODIC != 0 {
            self.started += (now - self.started) / period * period;
        } else {
            self.counting = false;
        }
        if entry & MASKED == 0 {
            self.post(Signal::Fixed { vector: entry as u8, level: false });
        }
    }

    // ---- registers ------------------------------------------------------------------------------------------------

    /// A read of its registers, which have 32 bits on 16 bytes each.
    pub fn read(&self, offset: u64, data: &mut [u8], now: u64) {
        let value = if offset & 0xf < 4 { self.register(offset & !0xf, now) } else { 0 };
        let shifted = value >> (8 * (offset & 3));
        for (byte, from) in data.iter_mut().zip(shifted.to_le_bytes().into_iter().chain([0; 4])) {
            *byte = from;
        }
    }

    fn register(&self, offset: u64, now: u64) -> u32 {
        let word = |words: &[u32; 8]| words.get((offset >> 4 & 7) as usize).copied().unwrap_or(0);
        match offset {
            0x20 => u32::from(self.id) << 24,
            0x30 => VERSION,
            0x80 => self.tpr.into(),
            0xa0 => self.priority().into(),
            0xd0 => u32::from(self.logical) << 24,
            0xe0 => u32::from(self.format) << 28 | 0x0fff_ffff,
            0xf0 => self.spurious,
            0x100..=0x170 => word(&self.service),
            0x180..=0x1f0 => word(&self.level),
            0x200..=0x270 => word(&self.request),
            0x280 => self.latched_errors,
            0x300 => self.command as u32,
            0x310 => (self.command >> 32) as u32,
            0x380 => self.initial,
            0x390 => self.count(now),
            0x3e0 => self.divide,
            _ => LVT.iter().zip(self.table).find(|((at, _), _)| *at == offset).map_or(0, |(_, entry)| entry),
        }
    }

    /// A write; only aligned ones of 32 bits (or the lower half of one of 64) count.
    pub fn write(&mut self, offset: u64, data: &[u8], now: u64) -> Effect {
        let Some(value) = data.first_chunk().copied().map(u32::from_le_bytes) else { return Effect::None };
        match offset {
            0x80 => self.tpr = value as u8,
            0xb0 => return self.end(),
            0xd0 => self.logical = (value >> 24) as u8,
            0xe0 => self.format = (value >> 28) as u8,
            0xf0 => {
                self.spurious = value & 0x1ff;
                if value & ENABLED == 0 {
                    self.table.iter_mut().for_each(|entry| *entry |= MASKED);
                }
            }
            0x280 => self.latched_errors = std::mem::take(&mut self.errors),
            0x300 => {
                self.command = self.command & !0xffff_ffff | u64::from(value & 0xc_cfff);
                return self.command();
            }
            0x310 => self.command = self.command & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            0x380 => (self.initial, self.started, self.counting) = (value, now, value != 0),
            0x3e0 => self.divide = value & 0xb,
            _ => {
                let forced = if self.spurious & ENABLED == 0 { MASKED } else { 0 };
                let place = LVT.iter().zip(&mut self.table).find(|((at, _), _)| *at == offset);
                if let Some(((_, writable), entry)) = place {
                    *entry = value & writable | forced;
                }
            }
        }
        Effect::None
    }

    fn end(&mut self) -> Effect {
        let Some(vector) = highest(&self.service) else { return Effect::None };
        set(&mut self.service, vector, false);
        if get(&self.level, vector) { Effect::End(vector) } else { Effect::None }
    }

    /// What the command register says now.
    fn command(&mut self) -> Effect {
        let (command, vector) = (self.command, self.command as u8);
        let signal = match command >> 8 & 7 {
            0 | 1 if vector < 16 => {
                self.error(SEND_ILLEGAL);
                return Effect::None;
            }
            // Between processors every interrupt is an edge.
            0 | 1 => Signal::Fixed { vector, level: false },
            4 => Signal::Nmi,
            // The end of an INIT of old chips.
            5 if command & (LEVEL | ASSERT) == LEVEL => return Effect::None,
            5 => Signal::Init,
            6 => Signal::Startup { vector },
            // SMI has no receiver here, the others are reserved.
            _ => return Effect::None,
        };
        let destination = (command >> 56) as u8;
        let to = match command >> 18 & 3 {
            1 => To::Own,
            2 => To::All,
            3 => To::Others,
            _ if command & 1 << 11 != 0 => To::Logical(destination),
            _ => To::Physical(destination),
        };
        Effect::Send(Ipi { signal, lowest: command >> 8 & 7 == 1, to })
    }

    // ---- state ----------------------------------------------------------------------------------------------------

    /// Saves it: the beginning of the count as its age.
    #[must_use]
    pub fn save(&self, now: u64) -> Self {
        Self { started: now.saturating_sub(self.started), ..self.clone() }
    }

    /// Takes back what [`Self::save`] gave.
    ///
    /// # Errors
    /// It is of another vCPU, or has bits that no chip has.
    pub fn restore(&mut self, state: &Self, now: u64) -> Result<(), StateError> {
        let low = |words: &[u32; 8]| words.first().copied().unwrap_or(0) & 0xffff != 0;
        let table = LVT.iter().zip(state.table).any(|((_, writable), entry)| entry & !writable != 0);
        let registers = [&state.service, &state.level, &state.request].into_iter().any(low);
        if state.id != self.id
            || table
            || registers
            || state.format > 0xf
            || state.spurious > 0x1ff
            || state.divide & !0xb != 0
        {
            let why = "it is of another CPU, or has bits set that the chip does not have".to_owned();
            return Err(StateError::Mismatch { what: Self::NAME, why });
        }
        *self = Self { started: now.saturating_sub(state.started), ..state.clone() };
        Ok(())
    }
}

fn set(words: &mut [u32; 8], vector: u8, to: bool) {
    if let Some(word) = words.get_mut(usize::from(vector >> 5)) {
        let bit = 1 << (vector & 31);
        *word = if to { *word | bit } else { *word & !bit };
    }
}

fn get(words: &[u32; 8], vector: u8) -> bool {
    words.get(usize::from(vector >> 5)).is_some_and(|word| word >> (vector & 31) & 1 != 0)
}

/// The highest vector that is set.
fn highest(words: &[u32; 8]) -> Option<u8> {
    let at = words.iter().rposition(|word| *word != 0)?;
    let word = words.get(at)?;
    u8::try_from(at as u32 * 32 + 31 - word.leading_zeros()).ok()
}
