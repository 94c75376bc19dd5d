//! `servin restart`.

use std::time::Instant;

use servin_engine::container::is_living;
use servin_engine::monitor::wire::Ask;

use super::containers::{each, open};
use super::wait::exit_code;
use crate::args::Global;
use crate::error::Result;

/// Stops each container that runs, starts it, and prints its name.
pub(crate) fn run(global: &Global, began: Instant, time: Option<&str>, names: &[String]) -> Result<u8> {
    let seconds = super::stop::seconds(time)?;
    each(names, |name| {
        {
            let store = open(global)?;
            let record = store.containers().find(name)?;
            if is_living(&store, &record.id) {
                exit_code(&store, &record, &Ask::Stop(seconds))?;
            }
        }
        super::start::start(global, began, name, None)?;
        Ok(name.to_owned())
    })
}
