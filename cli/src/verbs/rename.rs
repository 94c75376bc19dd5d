//! `servin rename`.

use servin_engine::network::Networks;

use super::containers::open;
use crate::args::Global;
use crate::error::{Error, Result};
use crate::spec;

/// Gives a container another name.
pub(crate) fn run(global: &Global, from: &str, to: &str) -> Result<u8> {
    let name = spec::checked_name(to).map_err(|error| match error {
        Error::Value { value, why, .. } => Error::Value { flag: "NAME", value, why, code: 1 },
        other => other,
    })?;
    let store = open(global)?;
    let record = store.containers().find(from)?;
    Networks::new(&store).rename(&record, &name)?;
    Ok(0)
}
