//! One file for each verb: what is done.

mod doctor;
mod history;
mod images;
mod inspect;
mod load;
mod progress;
mod prune;
mod rmi;
mod run;
mod save;
mod tag;
mod version;

use std::time::Instant;

use servin_engine::store::{Store, default_root};

use crate::args::{Global, Image, Verb};
use crate::error::Result;

/// Does what was asked and gives the exit code.
pub(crate) fn run(global: &Global, began: Instant, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Run(typed) => run::run(global, began, *typed),
        Verb::Image(image) => match image {
            Image::Load { input, quiet, platform } => {
                load::run(global, input.as_deref(), quiet, platform.as_deref())
            }
            Image::List(typed) => images::run(global, &typed),
            Image::Remove { images, force } => rmi::run(global, &images, force),
            Image::Tag { source, target } => tag::run(global, &source, &target),
            Image::Save { images, output } => save::run(global, &images, output.as_deref()),
            Image::History { image, quiet, no_trunc, human, format } => {
                history::run(global, &image, quiet, no_trunc, human, format.as_deref())
            }
            Image::Prune { all, force } => prune::run(global, all, force),
        },
        Verb::Inspect(typed) => inspect::run(global, &typed),
        Verb::Doctor => doctor::run(global),
        Verb::Version => version::run(),
    }
}

/// The store of the data root that was named, or of the default one.
fn store(global: &Global) -> Result<Store> {
    let root = global.data_root.clone().map_or_else(default_root, Ok)?;
    Ok(Store::open(&root)?)
}
