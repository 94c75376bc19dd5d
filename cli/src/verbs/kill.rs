//! `servin kill`.

use servin_engine::container::signal;
use servin_engine::monitor::wire::{Ask, Tell};

use super::containers::{ask, each, open};
use super::wait::exit_code;
use crate::args::Global;
use crate::error::{Error, Result};

const SIGKILL: u8 = 9;

/// Sends a signal to each container and prints its name.
pub(crate) fn run(global: &Global, typed: Option<&str>, names: &[String]) -> Result<u8> {
    let signal = typed.map_or(Ok(SIGKILL), number)?;
    let store = open(global)?;
    each(names, |name| {
        let record = store.containers().find(name)?;
        match ask(&store, &record, &Ask::Kill(signal))? {
            Some(Tell::Failed(failure)) => return Err(Error::Monitor(failure)),
            // As with docker: after KILL the container is gone, not about to go.
            _ if signal == SIGKILL => exit_code(&store, &record, &Ask::Wait).map(drop)?,
            _ => {}
        }
        Ok(name.to_owned())
    })
}

/// The number of a typed signal.
pub(super) fn number(text: &str) -> Result<u8> {
    signal::number(text).map_err(|why| Error::Value {
        flag: "-s, --signal",
        value: text.to_owned(),
        why,
        code: 1,
    })
}
