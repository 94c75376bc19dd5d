//! `servin logs`.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use servin_engine::container::is_living;
use servin_engine::monitor::log::{Entry, Reader};
use servin_engine::monitor::wire::Output;
use servin_engine::store::now_ns;
use servin_engine::time::rfc3339;
use servin_engine::watch::Watch;

use super::containers::{config, open};
use crate::args::{Global, Logs};
use crate::error::{Error, Result};
use crate::spec::moment::moment;

/// Prints a container's log, to the streams that its program wrote to.
pub(crate) fn run(global: &Global, typed: &Logs) -> Result<u8> {
    let tail = typed.tail.as_deref().map(lines).transpose()?.flatten();
    let at = |flag: &'static str, text: Option<&str>| {
        let bad = |why| Error::Value { flag, value: text.unwrap_or_default().to_owned(), why, code: 1 };
        text.map(|text| moment(text, now_ns())).transpose().map_err(bad)
    };
    let span = Span {
        since: at("--since", typed.since.as_deref())?.unwrap_or(i64::MIN),
        until: at("--until", typed.until.as_deref())?.unwrap_or(i64::MAX),
    };
    let store = open(global)?;
    let record = store.containers().find(&typed.name)?;
    if config(&record)?.request.log.is_none() {
        let what =
            format!("no log is kept of container {}: it was started with --log-driver none", record.name);
        return Err(Error::Usage { what, verb: "logs".into() });
    }
    let dir = store.container_dir(&record.id);
    let fail =
        |source| Error::Host { what: format!("read the log of container {}", record.name), source, code: 1 };
    let skip = match tail {
        Some(lines) => count_lines(&dir, span).map_err(fail)?.saturating_sub(lines),
        None => 0,
    };
    let mut printer = Printer { timestamps: typed.timestamps, skip, fresh: [true, true] };
    let goes_on = || typed.follow && now_ns() <= span.until && is_living(&store, &record.id);
    let printed = follow(&dir, span, &mut printer, goes_on);
    match printed {
        // The reader had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        printed => printed.map(|()| 0).map_err(fail),
    }
}

/// `--tail`: so many lines, or all; as with docker, a number below 0 is all.
fn lines(text: &str) -> Result<Option<usize>> {
    match (text, text.parse::<i64>()) {
        ("all", _) => Ok(None),
        (_, Ok(number)) => Ok(usize::try_from(number).ok()),
        _ => Err(Error::Value {
            flag: "-n, --tail",
            value: text.to_owned(),
            why: "it is a number of lines, or all".into(),
            code: 1,
        }),
    }
}

/// What is shown, in nanoseconds since 1970.
#[derive(Clone, Copy)]
struct Span {
    since: i64,
    until: i64,
}

impl Span {
    fn holds(self, entry: &Entry) -> bool {
        let time = i64::try_from(entry.time_ns).unwrap_or(i64::MAX);
        (self.since..=self.until).contains(&time)
    }
}

/// Prints the log, then what is added to it for as long as `goes_on` says.
fn follow(dir: &Path, span: Span, printer: &mut Printer, goes_on: impl Fn() -> bool) -> io::Result<()> {
    let mut watch = Watch::new(dir)?;
    let mut reader = Reader::open(dir)?;
    loop {
        // Asked before the reading: what was written before the end is then read after it.
        let more = goes_on();
        while let Some(entry) = reader.next_entry()? {
            if span.holds(&entry) {
                printer.print(&entry)?;
            }
        }
        if !more {
            return io::stdout().flush();
        }
        // The end of the container is no change of its log: look for it now and then.
        watch.wait(Duration::from_secs(1));
    }
}

/// Lines in the log so far; an unfinished one counts.
fn count_lines(dir: &Path, span: Span) -> io::Result<usize> {
    let mut counter = Lines { count: 0, open: [false, false] };
    let mut reader = Reader::open(dir)?;
    while let Some(entry) = reader.next_entry()? {
        if span.holds(&entry) {
            counter.add(&entry);
        }
    }
    Ok(counter.count + counter.open.iter().filter(|open| **open).count())
}

struct Lines {
    count: usize,
    open: [bool; 2],
}

impl Lines {
    fn add(&mut self, entry: &Entry) {
        self.count += entry.data.iter().filter(|byte| **byte == b'\n').count();
        if let Some(last) = entry.data.last() {
            self.open[index(entry.output)] = *last != b'\n';
        }
    }
}

fn index(output: Output) -> usize {
    usize::from(output == Output::Stderr)
}

struct Printer {
    timestamps: bool,
    /// Lines that are left out.
    skip: usize,
    /// Whether a new line begins, for each stream.
    fresh: [bool; 2],
}

impl Printer {
    fn print(&mut self, entry: &Entry) -> io::Result<()> {
        let mut text = Vec::with_capacity(entry.data.len());
        for line in entry.data.split_inclusive(|byte| *byte == b'\n') {
            let fresh = &mut self.fresh[index(entry.output)];
            let ends = line.ends_with(b"\n");
            if self.skip > 0 {
                self.skip -= usize::from(ends);
                continue;
            }
            if *fresh && self.timestamps {
                let time = i64::try_from(entry.time_ns).unwrap_or_default();
                text.extend_from_slice(rfc3339(time).as_bytes());
                text.push(b' ');
            }
            text.extend_from_slice(line);
            *fresh = ends;
        }
        match entry.output {
            Output::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(&text)?;
                out.flush()
            }
            Output::Stderr => io::stderr().lock().write_all(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_below_0_is_all() {
        for (text, found) in [("all", None), ("-1", None), ("0", Some(0)), ("12", Some(12))] {
            assert_eq!(lines(text).unwrap(), found, "{text}");
        }
        assert!(lines("some").is_err() && lines("").is_err());
    }
}
