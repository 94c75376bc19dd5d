//! One file for each verb: what is done.

mod containers;
mod details;
mod doctor;
mod exec;
mod history;
mod images;
mod inspect;
mod kill;
mod load;
mod logs;
mod progress;
mod prune;
mod ps;
mod rm;
mod rmi;
mod run;
mod save;
mod stop;
mod tag;
mod version;
mod vm;
mod wait;

use std::path::PathBuf;
use std::time::Instant;

use servin_engine::store::{Store, default_root};

use crate::args::{Container, Global, Image, Verb};
use crate::error::{Error, Result};

/// Does what was asked and gives the exit code.
pub(crate) fn run(global: &Global, began: Instant, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Run(typed) => run::run(global, began, *typed),
        Verb::Container(container) => match container {
            Container::Exec(typed) => exec::exec(global, typed),
            Container::Attach(typed) => exec::attach(global, &typed),
            Container::Ps(typed) => ps::run(global, &typed),
            Container::Rm { force, names } => rm::run(global, force, &names),
            Container::Logs(typed) => logs::run(global, &typed),
            Container::Wait(names) => wait::run(global, &names),
            Container::Stop { time, names } => stop::run(global, time.as_deref(), &names),
            Container::Kill { signal, names } => kill::run(global, signal.as_deref(), &names),
        },
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
        Verb::Vm(typed) => vm::run(global, &typed),
        Verb::Doctor => doctor::run(global),
        Verb::Version => version::run(),
    }
}

/// The data root that was named, or the default one; absolute, for a monitor has another working directory.
fn data_root(global: &Global) -> Result<PathBuf> {
    let root = global.data_root.clone().map_or_else(default_root, Ok)?;
    std::path::absolute(&root).map_err(|source| {
        let what = format!("find {}", root.display());
        Error::Host { what, source, code: 1 }
    })
}

/// The store of the data root.
fn store(global: &Global) -> Result<Store> {
    Ok(Store::open(&data_root(global)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_data_root_is_made_absolute() {
        let global = Global { data_root: Some("some/where".into()), log_level: log::LevelFilter::Off };
        assert_eq!(data_root(&global).unwrap(), std::env::current_dir().unwrap().join("some/where"));
    }
}
