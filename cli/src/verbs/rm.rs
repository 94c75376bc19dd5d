//! `servin rm`.

use servin_engine::Error as Failure;
use servin_engine::container::{is_living, remove};
use servin_engine::monitor::wire::Ask;

use super::containers::{ask, each_forgiving, open};
use super::wait::{exit_code, patiently};
use crate::args::Global;
use crate::error::{Error, Result};

/// Removes each container and prints its name. As with docker, `-f` forgives that one is not there.
pub(crate) fn run(global: &Global, force: bool, volumes: bool, names: &[String]) -> Result<u8> {
    let store = open(global)?;
    let is_missing =
        |error: &Error| matches!(error, Error::Engine { error: Failure::NoSuchContainer { .. }, .. });
    each_forgiving(
        names,
        |error| force && is_missing(error),
        |name| {
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
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_is_not_there_is_forgiven_with_force() {
        let dir = tempfile::tempdir().unwrap();
        let global = Global { data_root: Some(dir.path().join("root")), log_level: log::LevelFilter::Off };
        assert_eq!(run(&global, true, false, &["nope".into()]).unwrap(), 0);
        assert_eq!(run(&global, false, false, &["nope".into()]).unwrap(), 1);
    }
}
