//! `servin exec` and `servin attach`.

use servin_engine::container::{await_end, connect};
use servin_engine::monitor::wire::{Ask, ExecRequest, Hello, VERSION};
use servin_engine::store::Store;

use super::containers::{config, open};
use super::run::Here;
use crate::args::{self, Global};
use crate::error::{Error, Result};
use crate::session::{self, End, Session, Watch};
use crate::{spec, terminal};

/// Runs one more program in a container and gives its exit code.
pub(crate) fn exec(global: &Global, typed: args::Exec) -> Result<u8> {
    let checked = spec::exec(typed, &Here)?;
    let store = open(global)?;
    let watch = Watch {
        stdin: checked.stdin && !checked.detach,
        terminal: checked.tty,
        sig_proxy: true,
        detach_keys: checked.detach_keys,
        detach: checked.detach,
    };
    let request = ExecRequest {
        argv: checked.argv,
        env: checked.env,
        cwd: checked.cwd,
        user: checked.user,
        terminal: checked.tty.then(|| terminal::size().unwrap_or(terminal::UNKNOWN)),
        stdin: watch.stdin,
        privileged: checked.privileged,
    };
    watch_container(&store, &checked.container, watch, &Ask::Exec(Box::new(request)))
}

/// Watches a container's main program and gives its exit code.
pub(crate) fn attach(global: &Global, typed: &args::Attach) -> Result<u8> {
    let keys = spec::detach_keys(typed.detach_keys.as_deref(), 1)?;
    let store = open(global)?;
    let name = typed.name.clone();
    let record = store.containers().find(&name).map_err(|error| Error::Engine { error, code: 1 })?;
    let request = config(&record)?.request;
    let watch = Watch {
        stdin: request.stdin && !typed.no_stdin,
        terminal: request.terminal,
        sig_proxy: typed.sig_proxy,
        detach_keys: keys,
        detach: false,
    };
    let stdin = watch.stdin;
    watch_container(&store, &name, watch, &Ask::Attach { stdin })
}

/// Watches a container that runs already.
pub(super) fn attach_to(store: &Store, name: &str, watch: Watch) -> Result<u8> {
    let record = store.containers().find(name)?;
    let request = config(&record)?.request;
    let watch = Watch { stdin: watch.stdin && request.stdin, terminal: request.terminal, ..watch };
    let stdin = watch.stdin;
    watch_container(store, name, watch, &Ask::Attach { stdin })
}

fn watch_container(store: &Store, name: &str, watch: Watch, first: &Ask) -> Result<u8> {
    let code = if matches!(first, Ask::Exec(_)) { 125 } else { 1 };
    let engine = |error| Error::Engine { error, code };
    let host = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Host { what, source, code }
    };
    let record = store.containers().find(name).map_err(engine)?;
    let signals = session::signals(&watch).map_err(host("take signals over"))?;
    let stream = connect(store, &record).map_err(engine)?;
    let mut session = Session::new(stream, watch, signals, |_| {}).map_err(host("watch the program"))?;
    session.ask(&Ask::Hello(Hello { version: VERSION }));
    session.ask(first);
    let end = session.run();
    drop(session);
    match end {
        End::Exited(exit) => Ok(exit.code),
        End::Detached => Ok(0),
        End::Failed(failure) => Err(Error::Monitor(failure)),
        End::Lost => {
            await_end(store, &record.id)?;
            Err(Error::Lost { code })
        }
    }
}
