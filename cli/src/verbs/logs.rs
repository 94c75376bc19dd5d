//! `servin logs`.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use servin_engine::container::is_living;
use servin_engine::monitor::log::{Entry, Reader};
use servin_engine::monitor::wire::Output;
use servin_engine::time::rfc3339;

use super::containers::open;
use crate::args::{Global, Logs};
use crate::error::{Error, Result};

/// Prints a container's log, to the streams that its program wrote to.
pub(crate) fn run(global: &Global, typed: &Logs) -> Result<u8> {
    let tail = match typed.tail.as_deref() {
        None | Some("all") => None,
        Some(text) => Some(text.parse::<usize>().map_err(|_| Error::Value {
            flag: "-n, --tail",
            value: text.to_owned(),
            why: "it is a number of lines, or all".into(),
            code: 1,
        })?),
    };
    let store = open(global)?;
    let record = store.containers().find(&typed.name)?;
    let dir = store.container_dir(&record.id);
    let fail =
        |source| Error::Host { what: format!("read the log of container {}", record.name), source, code: 1 };
    let skip = match tail {
        Some(lines) => count_lines(&dir).map_err(fail)?.saturating_sub(lines),
        None => 0,
    };
    let mut printer = Printer { timestamps: typed.timestamps, skip, fresh: [true, true] };
    let printed = follow(&dir, &mut printer, || typed.follow && is_living(&store, &record.id));
    match printed {
        // The reader had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        printed => printed.map(|()| 0).map_err(fail),
    }
}

/// Prints both files of a log, then what is added to it for as long as `goes_on` says.
fn follow(dir: &Path, printer: &mut Printer, goes_on: impl Fn() -> bool) -> io::Result<()> {
    if let Some(old) = open_log(&dir.join("log.1"))? {
        let mut reader = Reader::new(old);
        while let Some(entry) = reader.next_entry()? {
            printer.print(&entry)?;
        }
    }
    let path = dir.join("log");
    let Some(mut file) = open_log(&path)? else { return Ok(()) };
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::DELETE_SELF;
    inotify::add_watch(&watch, dir, flags)?;
    let mut reader = Reader::new(file.try_clone()?);
    loop {
        // Asked before the reading: what was written before the end is then read after it.
        let more = goes_on();
        while let Some(entry) = reader.next_entry()? {
            printer.print(&entry)?;
        }
        // A new file was begun; the old one is finished.
        if let Some(next) = open_log(&path)?
            && next.metadata()?.ino() != file.metadata()?.ino()
        {
            file = next;
            reader = Reader::new(file.try_clone()?);
            continue;
        }
        if !more {
            return io::stdout().flush();
        }
        let mut fds = [PollFd::new(&watch, PollFlags::IN)];
        // The end of the container is no change of its log: look for it now and then.
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut fds, Some(&second));
        let mut events = [0; 4096];
        while rustix::io::read(&watch, &mut events).is_ok_and(|count| count > 0) {}
    }
}

fn open_log(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lines in the log so far; an unfinished one counts.
fn count_lines(dir: &Path) -> io::Result<usize> {
    let mut counter = Lines { count: 0, open: [false, false] };
    for name in ["log.1", "log"] {
        let Some(file) = open_log(&dir.join(name))? else { continue };
        let mut reader = Reader::new(file);
        while let Some(entry) = reader.next_entry()? {
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
