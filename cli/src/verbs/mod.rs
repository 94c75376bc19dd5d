//! One file for each verb: what is done.

mod bench;
mod build;
mod commit;
mod containers;
mod copy;
mod create;
mod details;
mod df;
mod diff;
mod doctor;
mod events;
mod exec;
mod export;
mod files;
mod history;
mod images;
mod import;
mod inspect;
mod kill;
mod load;
mod login;
mod logs;
mod network;
mod pause;
mod port;
mod progress;
mod prune;
mod ps;
mod pull;
mod push;
mod rename;
mod restart;
mod rm;
mod rmi;
mod run;
mod save;
mod snapshot;
mod start;
mod stats;
mod stop;
mod system;
mod tag;
mod top;
mod transfer;
mod update;
mod version;
mod vm;
mod volume;
mod wait;

use std::path::PathBuf;
use std::time::Instant;

use servin_engine::store::{Store, default_root};

use crate::args::{Container, Files, Global, Image, Registry, Running, Starting, System, Verb};
use crate::error::{Error, Result};

/// Does what was asked and gives the exit code.
pub(crate) fn run(global: &Global, began: Instant, verb: Verb) -> Result<u8> {
    match verb {
        Verb::Run(typed) => run::run(global, began, *typed),
        Verb::Container(container) => match container {
            Container::Exec(typed) => exec::exec(global, typed),
            Container::Attach(typed) => exec::attach(global, &typed),
            Container::Ps(typed) => ps::run(global, &typed),
            Container::Rm { force, volumes, names } => rm::run(global, force, volumes, &names),
            Container::Logs(typed) => logs::run(global, &typed),
            Container::Port { name, port } => port::run(global, &name, port.as_deref()),
            Container::Wait(names) => wait::run(global, &names),
            Container::Stop { time, signal, names } => {
                stop::run(global, time.as_deref(), signal.as_deref(), &names)
            }
            Container::Kill { signal, names } => kill::run(global, signal.as_deref(), &names),
        },
        Verb::Running(running) => match running {
            Running::Pause(names) => pause::run(global, &names, true),
            Running::Unpause(names) => pause::run(global, &names, false),
            Running::Top { name, options } => top::run(global, &name, &options),
            Running::Stats(typed) => stats::run(global, &typed),
            Running::Events(typed) => events::run(global, &typed),
            Running::Update { flags, names } => update::run(global, &flags, &names),
        },
        Verb::System(system) => match system {
            System::Df { verbose, format } => df::run(global, verbose, format.as_deref()),
            System::Prune { all, volumes, force, filter } => {
                system::prune(global, all, volumes, force, &filter)
            }
            System::Info { format } => system::info(global, format.as_deref()),
            System::Check { repair } => system::check(global, repair),
            System::Containers { force, filter } => system::prune_containers(global, force, &filter),
        },
        Verb::Starting(typed) => match typed {
            Starting::Create(typed) => create::run(global, *typed),
            Starting::Start(typed) => start::run(global, began, &typed),
            Starting::Restart { time, names } => restart::run(global, began, time.as_deref(), &names),
            Starting::Rename { from, to } => rename::run(global, &from, &to),
        },
        Verb::Files(typed) => match typed {
            Files::Copy { archive, follow, from, to } => {
                copy::run(global, began, archive, follow, &from, &to)
            }
            Files::Diff(name) => diff::run(global, began, &name),
            Files::Commit(typed) => commit::run(global, began, &typed),
            Files::Export { output, name } => export::run(global, began, output.as_deref(), &name),
            Files::Import { about, platform, source, reference } => {
                import::run(global, &about, platform.as_deref(), &source, reference.as_deref())
            }
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
            Image::Prune { all, force, filter } => prune::run(global, all, force, &filter),
        },
        Verb::Build(typed) => build::run(global, &typed),
        Verb::Registry(registry) => match registry {
            Registry::Pull { image, quiet, platform } => {
                pull::run(global, &image, quiet, platform.as_deref())
            }
            Registry::Push { image, quiet, all_tags } => push::run(global, &image, quiet, all_tags),
            Registry::Login { server, user, password, password_stdin } => {
                login::login(server.as_deref(), user.as_deref(), password.as_deref(), password_stdin)
            }
            Registry::Logout { server } => login::logout(server.as_deref()),
        },
        Verb::Snapshot(typed) => snapshot::run(global, began, typed),
        Verb::Inspect(typed) => inspect::run(global, &typed),
        Verb::Vm(typed) => vm::run(global, typed),
        Verb::Volume(typed) => volume::run(global, &typed),
        Verb::SharedNetwork(typed) => network::run(global, &typed),
        Verb::Bench(typed) => bench::run(global, &typed),
        Verb::BareMonitor([kernel, initramfs], words) => bench::monitor(&kernel, &initramfs, &words),
        Verb::Doctor => doctor::run(global),
        Verb::Version { format } => version::run(format.as_deref()),
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
