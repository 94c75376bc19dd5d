//! `servin rmi`.

use servin_engine::image::{Images, Removed};

use crate::args::Global;
use crate::error::Result;
use crate::output;

/// Removes images one after another. One that cannot be removed does not keep the others.
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
                code = 1;
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
