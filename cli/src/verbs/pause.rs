//! `servin pause` and `servin unpause`.

use servin_engine::monitor::wire::Ask;

use super::containers::{done, each, open};
use crate::args::Global;
use crate::error::Result;

/// Parks the virtual CPUs of each container or lets them go on, and prints its name.
pub(crate) fn run(global: &Global, names: &[String], paused: bool) -> Result<u8> {
    let store = open(global)?;
    each(names, |name| {
        let record = store.containers().find(name)?;
        done(&store, &record, if paused { &Ask::Pause } else { &Ask::Unpause })?;
        Ok(name.to_owned())
    })
}
