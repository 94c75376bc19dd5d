//! `servin image prune`.

use servin_engine::image::{Images, Removed};

use crate::args::Global;
use crate::error::Result;
use crate::{human, output};

/// Removes images without a name, or all that no container is made from.
pub(crate) fn run(global: &Global, all: bool, force: bool) -> Result<u8> {
    let what = if all { "all images that no container is made from" } else { "all images without a name" };
    if !super::system::confirm(what, force, "image")? {
        return Ok(0);
    }
    let store = super::store(global)?;
    let (removed, freed): (Vec<Removed>, u64) = Images::new(&store).prune(all)?;
    output::text(&format!("{}Total reclaimed space: {}\n", super::rmi::lines(&removed), human::size(freed)));
    Ok(0)
}
