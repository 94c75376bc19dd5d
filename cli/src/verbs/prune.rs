//! `servin image prune`.

use std::io::{self, BufRead, IsTerminal};

use servin_engine::image::{Images, Removed};

use crate::args::Global;
use crate::error::{Error, Result};
use crate::{human, output};

/// Removes images without a name, or all that no container is made from.
pub(crate) fn run(global: &Global, all: bool, force: bool) -> Result<u8> {
    if !force {
        let what = if all { "images that no container is made from" } else { "images without a name" };
        if !io::stdin().is_terminal() {
            let what = format!("this removes all {what}: say --force where nobody can be asked");
            return Err(Error::Usage { what, verb: "image".into() });
        }
        eprint!("This removes all {what}. Continue? [y/N] ");
        let mut answer = String::new();
        let read = io::stdin().lock().read_line(&mut answer);
        read.map_err(|source| Error::Host { what: "read the answer".into(), source, code: 1 })?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(0);
        }
    }
    let store = super::store(global)?;
    let (removed, freed): (Vec<Removed>, u64) = Images::new(&store).prune(all)?;
    output::text(&format!("{}Total reclaimed space: {}\n", super::rmi::lines(&removed), human::size(freed)));
    Ok(0)
}
