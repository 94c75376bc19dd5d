//! An edge-triggered interrupt line from a device to the guest.
//!
//! Devices hold an [`IrqLine`]; a hypervisor backend implements it (an irqfd, an injected GSI, a counter).

use std::io;

/// One interrupt line. May be triggered from any thread, never blocks.
pub trait IrqLine: Send + Sync {
    /// Raises one edge on the line.
    ///
    /// # Errors
    /// The hypervisor refused the interrupt: a host fault.
    fn trigger(&self) -> io::Result<()>;
}
