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
mod ahead;
mod boot;
mod child;
mod environment;
mod failure;
mod files;
mod hosts;
mod init;
mod link;
mod network;
mod observe;
mod power;
mod program;
mod setup;
mod spawn;
mod sys;
mod user;

pub use power::die;

use alloc::borrow::ToOwned;
use core::ffi::CStr;

use servin_init::proto::BootOptions;

/// Runs the agent with the `NAME=value` strings that the kernel passed on from its command line; or, where its arguments
/// say so, a container's init or the server of its files.
pub fn run<'a>(
    mut arguments: impl Iterator<Item = &'a CStr>,
    environment: impl Iterator<Item = &'a CStr>,
) -> ! {
    let entry_cycles = sys::cycles();
    let name = arguments.next();
    if name == Some(files::NAME) {
        files::serve();
    }
    if name == Some(init::NAME) {
        let program = arguments.skip(1).map(ToOwned::to_owned).collect();
        init::run(program, environment.map(ToOwned::to_owned).collect());
    }
    match BootOptions::parse(environment.filter_map(|variable| variable.to_str().ok())) {
        Ok(options) => agent::Agent::run(&options, entry_cycles),
        Err(message) => power::fail(&failure::Failure::new(message)),
    }
}
