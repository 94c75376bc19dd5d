//! What the words mean: every value checked, host paths made absolute, nothing of the host changed yet.

mod env;
mod exec;
mod keys;
mod run;
pub(crate) mod size;
#[cfg(test)]
mod tests;
mod volume;

pub(crate) use exec::{detach_keys, exec};
pub(crate) use run::{Host, Run, run};
