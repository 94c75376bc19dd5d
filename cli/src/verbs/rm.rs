//! `servin rm`.

use servin_engine::container::{is_living, remove};
use servin_engine::monitor::wire::Ask;

use super::containers::{ask, each, open};
use super::wait::{exit_code, patiently};
use crate::args::Global;
use crate::error::Result;

/// Removes each container and prints its name.
pub(crate) fn run(global: &Global, force: bool, volumes: bool, names: &[String]) -> Result<u8> {
    let store = open(global)?;
    each(names, |name| {
        let record = store.containers().find(name)?;
        if force && is_living(&store, &record.id) {
            patiently(&store, &record, || Ok(ask(&store, &record, &Ask::Kill(9)).ok()))?;
            exit_code(&store, &record, &Ask::Wait)?;
        }
        // Its own end may have removed it (--rm).
        if let Some(record) = store.containers().get(&record.id)? {
            remove(&store, &record, volumes)?;
        }
        Ok(name.to_owned())
    })
}
