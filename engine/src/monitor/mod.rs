//! The monitor: the process that owns one container's virtual machine.
//!
//! There is no daemon. `servin run` forks early (on macOS it executes itself once more), and the child is the monitor: it makes the machine, keeps the
//! container's record, and serves commands over an inherited socket pair and over a control socket. It ends with the
//! container; killed, it takes the machine with it, and the next command sees from its free lock what happened.
//!
//! ```text
//!   command --- wire ---> session <--- servin_init::proto (vsock) ---> agent in the guest
//!   command --- wire ------^  |
//!                             '---> log, record
//! ```

mod client;
#[cfg(target_os = "linux")]
mod confine;
mod control;
mod end;
mod found;
mod guest;
#[cfg(any(target_os = "macos", test))]
mod handed;
mod health;
mod keeper;
mod launch;
mod link;
pub mod log;
pub(crate) mod machine;
mod networks;
mod program;
mod record;
mod rest;
mod restore;
mod saving;
pub(crate) mod session;
mod shares;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod wire;

pub(crate) use client::merge_env;
pub(crate) use found::MachinePlan;
#[cfg(any(target_os = "macos", test))]
pub use handed::{HANDED, serve_handed};
pub use keeper::change;
pub use launch::{Launch, What};
pub use link::{Arrived, Link};
pub use restore::Restore;
pub(crate) use shares::Share;
