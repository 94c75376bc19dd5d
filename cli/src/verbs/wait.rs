//! `servin wait`.

use servin_engine::container::reconcile;
use servin_engine::monitor::wire::{Ask, Tell};
use servin_engine::store::{Record, Store};

use super::containers::{ask, each, open};
use crate::args::Global;
use crate::error::{Error, Result};

/// Waits for each container and prints its exit code.
pub(crate) fn run(global: &Global, names: &[String]) -> Result<u8> {
    let store = open(global)?;
    each(names, |name| {
        let record = store.containers().find(name)?;
        Ok(exit_code(&store, &record, &Ask::Wait)?.to_string())
    })
}

/// Asks something that is answered by the container's end, and gives its exit code.
pub(crate) fn exit_code(store: &Store, record: &Record, question: &Ask) -> Result<i32> {
    match ask(store, record, question) {
        Ok(Some(Tell::Exited(exit))) => return Ok(exit.code.into()),
        Ok(Some(Tell::Failed(failure))) => return Ok(failure.code.into()),
        Ok(_) | Err(Error::Engine { error: servin_engine::Error::NotRunning { .. }, .. }) => {}
        Err(error) => return Err(error),
    }
    // There is no monitor, or it was killed: the record tells.
    reconcile(store)?;
    let found = store.containers().get(&record.id)?;
    Ok(found.and_then(|record| record.exit_code).unwrap_or(0))
}
