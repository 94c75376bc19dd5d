//! The agent: PID 1 of every servin guest.
//!
//! ```text
//!   kernel ── command line ──> run ──> link (connect, not waited for)
//!                               │
//!                               ├────> boot (root file system, /dev, /sys)
//!                               │
//!                               └────> agent (one poll loop) <── Configure ──> setup
//!                                        │    ▲                 Exec ───────> spawn ──> child (until execve)
//!                                        │    │                                 │
//!                                        └────┴──── program (stdio, exit) <─────┘
//! ```
//!
//! There is one thread and one place that waits, [`agent`]. Nothing polls and nothing sleeps. A failure that leaves
//! no way on goes through [`die`]: it is told to the console and to the host, and the machine powers off.
//!
//! # Where the container lives
//!
//! The agent moves the container's root file system over the initramfs and changes its own root into it, as
//! switch_root(8) does, and the container's programs share the agent's mount, UTS and IPC namespaces: the whole
//! virtual machine is one container, and a second copy of them would cost each start without separating
//! anything. PID and cgroup namespaces are the container's own, so that its main program is PID 1 and sees its
//! cgroup as the root. What remains of the initramfs is reached through a descriptor that no program gets.
//!
//! The protocol is [`servin_init::proto`].
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod agent;
mod boot;
mod child;
mod environment;
mod failure;
mod link;
mod power;
mod program;
mod setup;
mod spawn;
mod sys;
mod user;

pub use power::die;

use servin_init::proto::BootOptions;

/// Runs the agent with the `NAME=value` strings that the kernel passed on from its command line.
pub fn run<'a>(environment: impl Iterator<Item = &'a str>) -> ! {
    let entry_cycles = sys::cycles();
    match BootOptions::parse(environment) {
        Ok(options) => agent::Agent::run(&options, entry_cycles),
        Err(message) => power::fail(&failure::Failure::new(message)),
    }
}
