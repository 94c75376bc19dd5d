//! `servin rmi`.

use servin_engine::Error;
use servin_engine::image::{Images, Removed};

use crate::args::Global;
use crate::error::Result;
use crate::output;

/// Removes images one after another. One that cannot be removed does not keep the others; as with docker, `-f` forgives that
/// one is not there.
pub(crate) fn run(global: &Global, images: &[String], force: bool) -> Result<u8> {
    let store = super::store(global)?;
    let mut code = 0;
    for image in images {
        match Images::new(&store).remove(image, force) {
            Ok(removed) => {
                output::text(&lines(&removed));
            }
            Err(error) => {
                output::line(&output::chain(&error), None);
                let is_missing = matches!(error, Error::NoSuchImage { .. });
                code = if force && is_missing { code } else { 1 };
            }
        }
    }
    Ok(code)
}

/// What was removed, one a line, in docker's words.
pub(super) fn lines(removed: &[Removed]) -> String {
    let line = |removed: &Removed| match removed {
        Removed::Untagged(name) => format!("Untagged: {name}\n"),
        Removed::Deleted(id) => format!("Deleted: {id}\n"),
    };
    removed.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_is_not_there_is_forgiven_with_force() {
        let dir = tempfile::tempdir().unwrap();
        let global = Global { data_root: Some(dir.path().join("root")), log_level: log::LevelFilter::Off };
        assert_eq!(run(&global, &["nope:1".into()], true).unwrap(), 0);
        assert_eq!(run(&global, &["nope:1".into()], false).unwrap(), 1);
    }
}
