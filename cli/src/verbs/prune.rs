//! `servin image prune`.

use super::system::{Conditions, confirm, images};
use crate::args::Global;
use crate::error::Result;
use crate::{human, output};

/// Removes images without a name, or all that no container is made from, of those that the filters take.
pub(crate) fn run(global: &Global, all: bool, force: bool, filter: &[String]) -> Result<u8> {
    let conditions = Conditions::new(filter)?;
    let what = if all { "all images that no container is made from" } else { "all images without a name" };
    if !confirm(what, force, "image prune")? {
        return Ok(0);
    }
    let store = super::store(global)?;
    let (removed, freed) = images(&store, all, &conditions)?;
    output::text(&format!("{}Total reclaimed space: {}\n", super::rmi::lines(&removed), human::size(freed)));
    Ok(0)
}
