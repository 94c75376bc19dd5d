//! `servin stop`.

use servin_engine::monitor::wire::Ask;

use super::containers::{each, open};
use super::wait::exit_code;
use crate::args::Global;
use crate::error::{Error, Result};

/// Stops each container and prints its name.
pub(crate) fn run(global: &Global, time: Option<&str>, signal: Option<&str>, names: &[String]) -> Result<u8> {
    let seconds = seconds(time)?;
    let question = match signal {
        Some(text) => Ask::StopWith(seconds, super::kill::number(text)?),
        None => Ask::Stop(seconds),
    };
    let store = open(global)?;
    each(names, |name| {
        let record = store.containers().find(name)?;
        exit_code(&store, &record, &question)?;
        Ok(name.to_owned())
    })
}

/// The seconds of `-t`.
pub(super) fn seconds(time: Option<&str>) -> Result<Option<u32>> {
    let read = |text: &str| {
        // -1 waits for ever.
        text.parse().or(if text == "-1" { Ok(u32::MAX) } else { Err(()) }).map_err(|_| Error::Value {
            flag: "-t, --time",
            value: text.to_owned(),
            why: "it is a number of seconds, or -1 for no end".into(),
            code: 1,
        })
    };
    time.map(read).transpose()
}
