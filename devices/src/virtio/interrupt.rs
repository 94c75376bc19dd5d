//! The interrupt of one virtio-mmio device: `InterruptStatus` and the line behind it (virtio 1.2, 4.2.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::irq::IrqLine;

/// `InterruptStatus` bit 0: the device used a buffer.
pub const USED_BUFFER: u32 = 1;
/// `InterruptStatus` bit 1: the configuration or the device status changed.
pub const CONFIG_CHANGE: u32 = 2;

/// Shared by the transport, which answers the registers, and the runner, which raises.
pub struct Interrupt {
    line: Arc<dyn IrqLine>,
    status: AtomicU32,
    needs_reset: AtomicBool,
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Interrupt {
    /// An interrupt that raises `line`.
    #[must_use]
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self { line, status: AtomicU32::new(0), needs_reset: AtomicBool::new(false) }
    }

    /// Sets bits of `InterruptStatus` and raises the line.
    ///
    /// # Errors
    /// The hypervisor refused: a host fault.
    pub fn raise(&self, bits: u32) -> std::io::Result<()> {
        self.status.fetch_or(bits, Ordering::SeqCst);
        self.line.trigger()
    }

    /// Marks the device as broken by its driver (DEVICE_NEEDS_RESET) and tells the driver.
    ///
    /// # Errors
    /// The hypervisor refused: a host fault.
    pub fn need_reset(&self) -> std::io::Result<()> {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE)
    }

    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    pub(super) fn restore(&self, status: u32, needs_reset: bool) {
        self.status.store(status, Ordering::SeqCst);
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
    }
}
