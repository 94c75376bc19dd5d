//! `servin stop`.

use servin_engine::monitor::wire::Ask;

use super::containers::{each, open};
use super::wait::exit_code;
use crate::args::Global;
use crate::error::{Error, Result};

/// Stops each container and prints its name.
pub(crate) fn run(global: &Global, time: Option<&str>, names: &[String]) -> Result<u8> {
    let seconds = time
        .map(|text| {
            text.parse::<u32>().map_err(|_| Error::Value {
                flag: "-t, --time",
                value: text.to_owned(),
                why: "it is a number of seconds".into(),
                code: 1,
            })
        })
        .transpose()?;
    let store = open(global)?;
    each(names, |name| {
        let record = store.containers().find(name)?;
        exit_code(&store, &record, &Ask::Stop(seconds))?;
        Ok(name.to_owned())
    })
}
