//! `servin run`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use servin_engine::container::{Request, RootSource};
use servin_engine::monitor::wire::{Clocks, Failure};
use servin_engine::monitor::{Launch, What};
use servin_engine::volume::Volumes;

use crate::args::{self, Global};
use crate::error::{Error, Result};
use crate::session::{self, End, Session, Watch};
use crate::{output, spec, terminal};

/// Runs a program in a new container and gives its exit code.
pub(crate) fn run(global: &Global, began: Instant, typed: args::Run) -> Result<u8> {
    let mut spec: spec::Run = spec::run(typed, &Here)?;
    borrow_volumes(global, &mut spec)?;
    launch(global, began, &spec, What::Run)
}

/// Makes the template that this run would clone, where there is none; nothing runs.
pub(super) fn template(global: &Global, typed: args::Run) -> Result<u8> {
    launch(global, Instant::now(), &spec::run(typed, &Here)?, What::Template)
}

/// Starts a new container's monitor, with the image pulled first where that is needed, and gives the exit code.
fn launch(global: &Global, began: Instant, spec: &spec::Run, what: fn(Box<Request>) -> What) -> Result<u8> {
    let mut cidfile = spec.cidfile.as_deref().map(new_file).transpose()?;
    if let (spec::Pull::Always, RootSource::Image(image)) = (spec.pull, &spec.request.root)
        && !super::pull::comes_with_us(image)
    {
        super::pull::for_container(global, image, &spec.platform, spec.quiet)?;
    }
    // Whether the image is there is seen by the monitor: that of one which is costs nothing here.
    match attempt(global, began, spec, what, &mut cidfile)? {
        Err(failure) => {
            let (spec::Pull::Missing, RootSource::Image(image)) = (spec.pull, &spec.request.root) else {
                return Err(Error::Monitor(failure));
            };
            if !super::pull::is_missing(global, image).map_err(|error| error.with_code(125))? {
                return Err(Error::Monitor(failure));
            }
            servin_engine::process::release_signals();
            output::note(&format!("Unable to find image '{image}' locally\n"));
            super::pull::for_container(global, image, &spec.platform, spec.quiet)?;
            attempt(global, Instant::now(), spec, what, &mut cidfile)?.map_err(Error::Monitor)
        }
        Ok(code) => Ok(code),
    }
}

/// One attempt; inside is the exit code, or why the monitor could not do it.
fn attempt(
    global: &Global,
    began: Instant,
    spec: &spec::Run,
    what: fn(Box<Request>) -> What,
    cidfile: &mut Option<File>,
) -> Result<Result<u8, Failure>> {
    let watch = Watch {
        stdin: spec.request.stdin && !spec.request.detach,
        terminal: spec.request.terminal,
        sig_proxy: spec.sig_proxy,
        detach_keys: spec.detach_keys.clone(),
        detach: spec.request.detach,
    };
    let host = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Host { what, source, code: 125 }
    };
    let signals = session::signals(&watch).map_err(host("take signals over"))?;
    let launch = Launch {
        data_root: Some(super::data_root(global).map_err(|error| error.with_code(125))?),
        size: terminal::size(),
        began,
        keep_stderr: global.log_level >= log::LevelFilter::Debug,
        warm: spec.warm,
        trace: spec
            .trace
            .as_deref()
            .map(std::path::absolute)
            .transpose()
            .map_err(host("find the trace's place"))?,
        what: what(Box::new(spec.request.clone())),
    };
    let detach = watch.detach;
    let stream = launch.fork().map_err(|error| Error::Engine { error, code: 125 })?;
    let mut id = String::new();
    let mut session = Session::new(stream, watch, signals, |created| {
        id = created.to_owned();
        if let Some(file) = cidfile
            && let Err(error) = file.write_all(created.as_bytes())
        {
            output::line(&format!("cannot write the id to the cidfile: {error}"), None);
        }
    })
    .map_err(host("watch the program"))?;
    let end = session.run();
    let clocks = session.clocks;
    drop(session);
    if spec.timing
        && let Some(clocks) = clocks
    {
        show(&clocks);
    }
    match end {
        End::Exited(exit) => Ok(Ok(exit.code)),
        End::Detached => {
            if detach {
                output::text(&format!("{id}\n"));
            }
            Ok(Ok(0))
        }
        End::Failed(failure) => Ok(Err(failure)),
        End::Lost => Err(super::containers::lost(global, &id, 125)),
    }
}

/// Adds what other containers mount, as `--volumes-from` wants it.
pub(super) fn borrow_volumes(global: &Global, spec: &mut spec::Run) -> Result<()> {
    if spec.volumes_from.is_empty() {
        return Ok(());
    }
    let store = super::containers::open(global).map_err(|error| error.with_code(125))?;
    for (container, read_only) in &spec.volumes_from {
        let lent = Volumes::new(&store).lend(container, *read_only, &mut spec.request);
        lent.map_err(|error| Error::Engine { error, code: 125 })?;
    }
    Ok(())
}

/// The cidfile must be new.
pub(super) fn new_file(path: &Path) -> Result<File> {
    File::options().write(true).create_new(true).open(path).map_err(|source| Error::Host {
        what: format!("make the cidfile {}", path.display()),
        source,
        code: 125,
    })
}

/// Prints the five clocks, in milliseconds since the command was executed.
fn show(clocks: &Clocks) {
    let rows = [
        ("vm created", clocks.vm_created),
        ("kernel entered", clocks.kernel_entered),
        ("init started", clocks.init_started),
        ("first byte", clocks.first_byte),
        ("exit code", clocks.exited),
    ];
    let mut text = format!("timing: {:<15}{:>14}\n", "start", if clocks.warm { "warm" } else { "cold" });
    for (name, at) in rows {
        let time = at.map_or("-".to_owned(), |at| format!("{}.{:03} ms", at / 1000, at % 1000));
        text.push_str(&format!("timing: {name:<15}{time:>14}\n"));
    }
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// This host.
pub(super) struct Here;

impl spec::Host for Here {
    fn cwd(&self) -> io::Result<PathBuf> {
        std::env::current_dir()
    }
    fn variable(&self, name: &OsStr) -> Option<OsString> {
        std::env::var_os(name)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }
    fn input_is_terminal(&self) -> bool {
        io::stdin().is_terminal()
    }
}
