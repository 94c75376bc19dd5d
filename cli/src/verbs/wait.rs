//! `servin wait`.

use std::io;
use std::time::{Duration, Instant};

use servin_engine::container::{is_living, reconcile};
use servin_engine::monitor::wire::{Ask, Tell};
use servin_engine::store::{Record, Store};

use super::containers::{ask, each, open};
use crate::args::Global;
use crate::error::{Error, Result};

/// How long a monitor may live and not answer.
const SILENT: Duration = Duration::from_secs(10);

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
    let told = patiently(store, record, || match ask(store, record, question) {
        Ok(Some(Tell::Exited(exit))) => Ok(Some(exit.code.into())),
        Ok(Some(Tell::Failed(failure))) => Ok(Some(failure.code.into())),
        Ok(_) | Err(Error::Engine { error: servin_engine::Error::NotRunning { .. }, .. }) => Ok(None),
        Err(error) => Err(error),
    })?;
    if let Some(code) = told {
        return Ok(code);
    }
    // There is no monitor: the record tells.
    reconcile(store)?;
    let found = store.containers().get(&record.id)?;
    Ok(found.and_then(|record| record.exit_code).unwrap_or(0))
}

/// Asks a container's monitor until it answers: one that starts does not listen yet, one that is being killed does no more.
/// `None` when there is no monitor.
///
/// # Errors
/// The question's, or that the monitor lives and was silent for 10 s.
pub(super) fn patiently<T>(
    store: &Store,
    record: &Record,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let until = Instant::now() + SILENT;
    loop {
        let answer = question()?;
        if answer.is_some() || !is_living(store, &record.id) {
            return Ok(answer);
        }
        if Instant::now() >= until {
            let source = io::ErrorKind::TimedOut.into();
            return Err(Error::Host {
                what: format!("talk with container {}", record.name),
                source,
                code: 1,
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
