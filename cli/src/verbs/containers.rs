//! What verbs about existing containers share: finding them, and talking with their monitors.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use servin_engine::container::{Config, await_end, connect, reconcile};
use servin_engine::monitor::wire::{Ask, Decoder, Hello, Message, Tell, VERSION};
use servin_engine::store::{Record, Store};

use crate::args::Global;
use crate::error::{Error, Result};
use crate::output;

/// Opens the store, with every row true.
pub(crate) fn open(global: &Global) -> Result<Store> {
    let store = super::store(global)?;
    reconcile(&store)?;
    Ok(store)
}

/// What a command says whose monitor ended without a word: once that is gone, and what it left is in order.
pub(crate) fn lost(global: &Global, id: &str, code: u8) -> Error {
    if let Ok(store) = super::store(global) {
        let _ = await_end(&store, id);
    }
    Error::Lost { code }
}

/// The container's own configuration.
pub(crate) fn config(record: &Record) -> Result<Config> {
    serde_json::from_str(&record.config).map_err(|source| Error::Host {
        what: format!("read the record of container {}", record.name),
        source: source.into(),
        code: 1,
    })
}

/// Does something with each name and prints what it gives; goes on after failures, which make the exit code 1.
pub(crate) fn each(names: &[String], work: impl FnMut(&str) -> Result<String>) -> Result<u8> {
    each_forgiving(names, |_| false, work)
}

/// As [`each`]; failures that are forgiven are said, and no more.
pub(crate) fn each_forgiving(
    names: &[String],
    forgiven: impl Fn(&Error) -> bool,
    mut work: impl FnMut(&str) -> Result<String>,
) -> Result<u8> {
    let mut code = 0;
    for name in names {
        match work(name) {
            Ok(line) => {
                output::text(&format!("{line}\n"));
            }
            Err(error) => {
                output::failure(&error);
                code = if forgiven(&error) { code } else { 1 };
            }
        }
    }
    Ok(code)
}

/// Asks a container's monitor something and waits for its answer; `None` if the monitor ended before it gave one.
///
/// # Errors
/// [`servin_engine::Error::NotRunning`] if there is no monitor.
pub(crate) fn ask(store: &Store, record: &Record, ask: &Ask) -> Result<Option<Tell>> {
    let mut stream = connect(store, record)?;
    answer(&mut stream, ask).or_else(|error| match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ok(None),
        _ => {
            Err(Error::Host { what: format!("talk with container {}", record.name), source: error, code: 1 })
        }
    })
}

fn answer(stream: &mut UnixStream, ask: &Ask) -> io::Result<Option<Tell>> {
    let mut frames = Vec::new();
    Ask::Hello(Hello { version: VERSION }).encode(&mut frames);
    ask.encode(&mut frames);
    stream.write_all(&frames)?;
    let mut decoder = Decoder::default();
    let mut buf = [0; 4096];
    loop {
        match decoder.next_message().map_err(io::Error::other)? {
            Some(Tell::Clocks(_)) => {}
            Some(tell) => return Ok(Some(tell)),
            None => match stream.read(&mut buf)? {
                0 => return Ok(None),
                count => decoder.push(&buf[..count]),
            },
        }
    }
}

/// Asks for something that is done or is not.
///
/// # Errors
/// Why it is not.
pub(crate) fn done(store: &Store, record: &Record, question: &Ask) -> Result<()> {
    match ask(store, record, question)? {
        Some(Tell::Done) => Ok(()),
        Some(Tell::Failed(mut failure)) => {
            failure.code = 1;
            Err(Error::Monitor(failure))
        }
        _ => Err(servin_engine::Error::NotRunning { name: record.name.clone() }.into()),
    }
}
