//! What hosts tell differently of processes: when monitors have ended, the processor time and the memory that they took.
//! One leaf file each, with the same names; what a host does not tell is left out of the report by name.

#[cfg(any(test, not(target_os = "linux")))]
mod common;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
pub(super) use common::{LEFT_OUT, Memory, adopt, cpu_ms, flags, settle};
#[cfg(target_os = "linux")]
pub(super) use linux::{LEFT_OUT, Memory, adopt, cpu_ms, flags, settle};

/// The mean of a figure in KiB, as MiB.
fn mean_mib<T>(all: &[T], figure: impl Fn(&T) -> u64) -> String {
    let sum: u64 = all.iter().map(figure).sum();
    format!("{:>8.2}", sum as f64 / 1024.0 / all.len() as f64)
}
