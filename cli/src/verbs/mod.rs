//! One file for each verb: what is done.

mod doctor;
mod run;
mod version;

use std::time::Instant;

use crate::args::{Global, Verb};
use crate::error::Result;

/// Does what was asked and gives the exit code.
pub(crate) fn run(global: &Global, began: Instant, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Run(typed) => run::run(global, began, *typed),
        Verb::Doctor => doctor::run(global),
        Verb::Version => version::run(),
    }
}
