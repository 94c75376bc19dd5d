//! `servin start`.

use std::time::Instant;

use servin_engine::container::is_living;
use servin_engine::monitor::{Launch, What};

use super::containers::{config, each, lost, open};
use crate::args::{self, Global};
use crate::error::{Error, Result};
use crate::session::{self, End, Session, Watch};
use crate::{spec, terminal};

/// Starts each container and prints its name, or watches one and gives its exit code.
pub(crate) fn run(global: &Global, began: Instant, typed: &args::Start) -> Result<u8> {
    if !typed.attach && !typed.interactive {
        let mut wanted = typed.names.clone();
        if !typed.filter.is_empty() {
            wanted.extend(super::ps::resting(&open(global)?, &typed.filter)?);
        }
        return each(&wanted, |name| {
            start(global, began, name, None)?;
            Ok(name.to_owned())
        });
    }
    let ([name], true) = (typed.names.as_slice(), typed.filter.is_empty()) else {
        return Err(Error::Usage {
            what: "only one container can be attached to at a time".into(),
            verb: "start".into(),
        });
    };
    let keys = spec::detach_keys(typed.detach_keys.as_deref(), 1)?;
    let watch =
        Watch { stdin: typed.interactive, sig_proxy: typed.sig_proxy, detach_keys: keys, ..Watch::default() };
    start(global, began, name, Some(watch))
}

/// Starts a container, and watches it if asked. One that runs is left alone, or only watched.
pub(super) fn start(global: &Global, began: Instant, name: &str, watch: Option<Watch>) -> Result<u8> {
    // The store is closed before the fork.
    let (id, request) = {
        let store = open(global)?;
        let record = store.containers().find(name)?;
        if is_living(&store, &record.id) && record.pid.is_some() {
            return match watch {
                None => Ok(0),
                Some(_) => super::exec::attach_to(&store, name, watch.unwrap_or_default()),
            };
        }
        (record.id.clone(), config(&record)?.request)
    };
    let attach = watch.is_some();
    let mut watch = watch.unwrap_or(Watch { detach: true, ..Watch::default() });
    watch.stdin &= request.stdin;
    watch.terminal = attach && request.terminal;
    let host = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Host { what, source, code: 1 }
    };
    let signals = session::signals(&watch).map_err(host("take signals over"))?;
    let launch = Launch {
        data_root: Some(super::data_root(global)?),
        size: terminal::size(),
        began,
        keep_stderr: global.log_level >= log::LevelFilter::Debug,
        warm: true,
        trace: None,
        what: What::Start { id: id.clone(), attach, no_stdin: !watch.stdin },
    };
    let stream = launch.fork()?;
    let mut session = Session::new(stream, watch, signals, |_| {}).map_err(host("watch the program"))?;
    let end = session.run();
    drop(session);
    match end {
        End::Exited(exit) => Ok(exit.code),
        End::Detached => Ok(0),
        End::Failed(failure) => Err(Error::Monitor(failure)),
        End::Lost => Err(lost(global, &id, 1)),
    }
}
