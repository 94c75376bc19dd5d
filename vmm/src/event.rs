//! What happens to a VM, as those outside hear of it.

use std::sync::Arc;

use crate::error::Error;

/// Why a VM ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered off.
    Off,
    /// The guest asked for a reset, which also ends the VM: whoever wants it again builds a new one.
    Reset,
    /// [`crate::Vm::stop`] was called, or the VM was dropped.
    Stopped,
}

/// Something that happened to a VM.
#[derive(Debug, Clone)]
pub enum VmEvent {
    /// The vCPUs may run.
    Started,
    /// Every vCPU stands still.
    Paused,
    /// They may run again.
    Resumed,
    /// The VM ended; its threads are on their way out.
    Ended(Result<ExitReason, Arc<Error>>),
}
