//! The guest's side of a fake vCPU: what a program in the guest would do, called by a test.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use servin_devices::mem::Mem;

use super::{Board, Link, Request, lock};
use crate::hv::{Entry, Exit, Fault};

/// How long an action waits for its vCPU to run before the vCPU counts as dead.
const PATIENCE: Duration = Duration::from_secs(60);

/// The guest's side of one vCPU. An action returns when the vCPU has carried it out. On a vCPU that is gone (the VM
/// ended) reads answer all ones and writes do nothing, as on a machine that is off.
#[derive(Debug)]
pub struct FakeCpu {
    board: Arc<Board>,
    link: Arc<Link>,
}

macro_rules! access {
    ($($type:ty, $len:literal: $read:ident, $write:ident, $input:ident, $output:ident;)*) => {
        $(
            #[doc = concat!("Reads ", stringify!($type), " at a guest physical address.")]
            #[must_use]
            pub fn $read(&self, addr: u64) -> $type {
                self.act(Request::Read { addr, len: $len }) as $type
            }

            #[doc = concat!("Writes ", stringify!($type), " at a guest physical address.")]
            pub fn $write(&self, addr: u64, value: $type) {
                self.act(Request::Write { addr, len: $len, value: value.into() });
            }

            #[doc = concat!("Reads ", stringify!($type), " from a port.")]
            #[must_use]
            pub fn $input(&self, port: u16) -> $type {
                self.act(Request::In { port, len: $len }) as $type
            }

            #[doc = concat!("Writes ", stringify!($type), " to a port.")]
            pub fn $output(&self, port: u16, value: $type) {
                self.act(Request::Out { port, len: $len, value: value.into() });
            }
        )*
    };
}

impl FakeCpu {
    pub(super) fn new(board: Arc<Board>, link: Arc<Link>) -> Self {
        Self { board, link }
    }

    access! {
        u8, 1: read8, write8, in8, out8;
        u16, 2: read16, write16, in16, out16;
        u32, 4: read32, write32, in32, out32;
    }

    /// Reads u64 at a guest physical address.
    #[must_use]
    pub fn read64(&self, addr: u64) -> u64 {
        self.act(Request::Read { addr, len: 8 })
    }

    /// Writes u64 at a guest physical address.
    pub fn write64(&self, addr: u64, value: u64) {
        self.act(Request::Write { addr, len: 8, value });
    }

    /// Powers off through the hypervisor.
    pub fn power_off(&self) {
        self.act(Request::Leave(Exit::Off));
    }

    /// Resets through the hypervisor.
    pub fn reset(&self) {
        self.act(Request::Leave(Exit::Reset));
    }

    /// Starts another vCPU (as PSCI `CPU_ON` does).
    pub fn start_cpu(&self, cpu: u8, entry: u64, context: u64) {
        self.act(Request::Leave(Exit::CpuOn { cpu, entry, context }));
    }

    /// Turns this vCPU off (as PSCI `CPU_OFF` does).
    pub fn stop_cpu(&self) {
        self.act(Request::Leave(Exit::CpuOff));
    }

    /// Does something that no vCPU can go on from.
    pub fn fault(&self, fault: Fault) {
        self.act(Request::Leave(Exit::Fault(fault)));
    }

    /// How often an interrupt line was triggered so far.
    #[must_use]
    pub fn irq_count(&self, gsi: u32) -> u64 {
        lock(&self.board.irqs).get(gsi as usize).copied().unwrap_or(0)
    }

    /// Waits until a line was triggered more than `seen` times; returns how often, or `None` after `limit`.
    #[must_use]
    pub fn wait_irq(&self, gsi: u32, seen: u64, limit: Duration) -> Option<u64> {
        let deadline = Instant::now() + limit;
        let mut irqs = lock(&self.board.irqs);
        loop {
            let count = irqs.get(gsi as usize).copied()?;
            if count > seen {
                return Some(count);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            irqs = self.board.triggered.wait_timeout(irqs, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Guest RAM.
    #[must_use]
    pub fn mem(&self) -> Mem {
        Arc::clone(&self.board.mem)
    }

    /// Where the vCPU was told to begin.
    #[must_use]
    pub fn entry(&self) -> Option<Entry> {
        lock(&self.link.wire).entry
    }

    /// A register, 0 to 15; they mean nothing, but are saved and restored.
    #[must_use]
    pub fn register(&self, index: usize) -> Option<u64> {
        lock(&self.link.wire).registers.get(index).copied()
    }

    /// Sets a register, 0 to 15.
    pub fn set_register(&self, index: usize, value: u64) {
        if let Some(register) = lock(&self.link.wire).registers.get_mut(index) {
            *register = value;
        }
    }

    /// Has the vCPU carry out `request`.
    fn act(&self, request: Request) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        let mut wire = lock(&self.link.wire);
        wire.request = Some(request);
        wire.reply = None;
        self.link.changed.notify_all();
        loop {
            if let Some(reply) = wire.reply.take() {
                return reply;
            }
            let left = deadline.checked_duration_since(Instant::now());
            let (false, Some(left)) = (wire.gone, left) else {
                wire.request = None;
                return u64::MAX;
            };
            wire = self.link.changed.wait_timeout(wire, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
