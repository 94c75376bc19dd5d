//! What the words mean: every value checked, host paths made absolute, nothing of the host changed yet.

pub(crate) mod change;
mod env;
mod exec;
mod keys;
pub(crate) mod limits;
pub(crate) mod moment;
mod mount;
mod network;
mod port;
pub(crate) mod restart;
mod run;
pub(crate) mod size;
#[cfg(test)]
mod tests;
mod volume;

pub(crate) use exec::{detach_keys, exec};
pub(crate) use network::{NO_HOST_NETWORK, published};
pub(crate) use run::{
    Host, Pull, Run, checked_cpus as cpus, checked_hostname, checked_memory as memory, checked_name, run,
};
