//! What a monitor does itself where the hypervisor leaves it undone, for arm64 guests: syndromes of exceptions, calls of
//! PSCI, an interrupt controller. Pure logic; Hypervisor.framework's backend uses it.
//!
//! References are to the Arm Architecture Reference Manual (DDI 0487), the GICv3 architecture (IHI 0069) and PSCI (DEN 0022).

pub mod esr;
#[cfg(any(test, feature = "testing"))]
#[allow(clippy::indexing_slicing)]
pub mod fuzzing;
pub mod gic;
pub mod psci;
