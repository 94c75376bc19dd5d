//! `servin stats`: what containers use, from their guests' own kernels.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use servin_engine::container::{connect, short};
use servin_engine::monitor::wire::{Ask, Decoder, Hello, Message, Tell, VERSION};
use servin_engine::store::{Record, State, Store};

use super::containers::{config, open};
use crate::args::{Global, Stats};
use crate::error::{Error, Result};
use crate::human;
use crate::listing::Format;

const COLUMNS: &[(&str, &str)] = &[
    ("CONTAINER ID", "ID"),
    ("NAME", "Name"),
    ("CPU %", "CPUPerc"),
    ("MEM USAGE / LIMIT", "MemUsage"),
    ("MEM %", "MemPerc"),
    ("NET I/O", "NetIO"),
    ("BLOCK I/O", "BlockIO"),
    ("PIDS", "PIDs"),
];
/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// The longest that a guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// What cannot be told.
const UNKNOWN: &str = "--";

/// Prints what containers use, until it is interrupted or once.
pub(crate) fn run(global: &Global, typed: &Stats) -> Result<u8> {
    let format = Format::new(typed.format.as_deref(), false, "stats")?;
    let store = open(global)?;
    let mut watched: BTreeMap<String, Watched> = BTreeMap::new();
    // A name that is none is a failure before anything is shown.
    let named: Vec<String> =
        typed.names.iter().map(|name| Ok(store.containers().find(name)?.id)).collect::<Result<_>>()?;
    let is_screen = format == Format::Table && !typed.no_stream && io::stdout().is_terminal();
    let mut first = true;
    loop {
        let began = Instant::now();
        let mut rows = Vec::new();
        for record in store.containers().list()? {
            let lives = matches!(record.state, State::Running | State::Paused);
            let wanted = if named.is_empty() { lives || typed.all } else { named.contains(&record.id) };
            if wanted {
                let known = watched.entry(record.id.clone()).or_default();
                known.look(&store, &record);
                rows.push(row(&record, known, typed.no_trunc)?);
            }
        }
        // Use of processors is told from two looks.
        if !first {
            let mut text = format.show(&rows, COLUMNS, "ID")?;
            if is_screen {
                text = format!("\x1b[2J\x1b[H{text}");
            }
            let mut out = io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                // The reader had enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
                Err(source) => {
                    return Err(Error::Host { what: "write to standard output".into(), source, code: 1 });
                }
                Ok(()) => {}
            }
            if typed.no_stream {
                return Ok(0);
            }
        }
        first = false;
        std::thread::sleep(PERIOD.saturating_sub(began.elapsed()));
        servin_engine::container::reconcile(&store)?;
    }
}

/// A container that is looked at again and again.
#[derive(Default)]
struct Watched {
    connection: Option<(UnixStream, Decoder)>,
    before: Option<(Instant, Usage)>,
    now: Option<(Instant, Usage)>,
    /// Billionths of a processor that it may use.
    most: u64,
}

impl Watched {
    /// Asks the guest. One that does not run, or is paused, has nothing to tell.
    fn look(&mut self, store: &Store, record: &Record) {
        self.before = self.now.take();
        self.most = config(record).map_or(u64::MAX, |config| config.request.cpus.nano);
        if self.connection.is_none() {
            self.connection = open_connection(store, record).ok();
        }
        let Some((stream, decoder)) = &mut self.connection else { return };
        let asked = Instant::now();
        match observe(stream, decoder) {
            // The guest looked somewhere between the question and the answer.
            Ok(Some(text)) => self.now = Some((asked + asked.elapsed() / 2, Usage::parse(&text))),
            _ => self.connection = None,
        }
    }

    /// Processors in use, in percent of one: never more than the container may use, for the guest counts by its own clock, and
    /// when it looked is known only roughly.
    fn cpu(&self) -> Option<f64> {
        let ((then, before), (now, after)) = (self.before.as_ref()?, self.now.as_ref()?);
        let used = after.cpu_us.checked_sub(before.cpu_us)? as f64;
        let percent = used / now.duration_since(*then).as_micros().max(1) as f64 * 100.0;
        Some(percent.min(self.most as f64 / 10_000_000.0))
    }
}

fn open_connection(store: &Store, record: &Record) -> Result<(UnixStream, Decoder)> {
    let host = |source| Error::Host { what: format!("talk with container {}", record.name), source, code: 1 };
    let mut stream = connect(store, record)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(host)?;
    let mut hello = Vec::new();
    Ask::Hello(Hello { version: VERSION }).encode(&mut hello);
    stream.write_all(&hello).map_err(host)?;
    Ok((stream, Decoder::default()))
}

fn observe(stream: &mut UnixStream, decoder: &mut Decoder) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read;
    let mut frame = Vec::new();
    Ask::Stats.encode(&mut frame);
    stream.write_all(&frame)?;
    let mut buf = [0; 16 * 1024];
    loop {
        match decoder.next_message().map_err(io::Error::other)? {
            Some(Tell::Seen(seen)) => return Ok(Some(seen.text)),
            Some(_) => return Ok(None),
            None => match stream.read(&mut buf)? {
                0 => return Ok(None),
                count => decoder.push(&buf[..count]),
            },
        }
    }
}

/// What a guest told.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Usage {
    cpu_us: u64,
    /// Bytes, without what the kernel keeps of files for no reason but room.
    memory: u64,
    pids: u64,
    received: u64,
    sent: u64,
    read: u64,
    written: u64,
}

impl Usage {
    fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut current = "";
        for line in text.lines() {
            match line.strip_prefix("== ") {
                Some(name) => current = name,
                None => files.entry(current).or_default().push(line),
            }
        }
        let lines = |name: &str| files.get(name).map(Vec::as_slice).unwrap_or_default();
        let number =
            |name: &str| lines(name).first().and_then(|line| line.trim().parse().ok()).unwrap_or(0_u64);
        let of = |name: &str, key: &str| {
            let value = lines(name).iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            value.and_then(|value| value.trim().parse().ok()).unwrap_or(0_u64)
        };
        let mut usage = Usage {
            cpu_us: of("cpu.stat", "usage_usec"),
            memory: number("memory.current").saturating_sub(of("memory.stat", "inactive_file")),
            pids: number("pids.current"),
            ..Usage::default()
        };
        for line in lines("/proc/1/net/dev") {
            let Some((name, counts)) = line.split_once(':') else { continue };
            let counts: Vec<u64> = counts.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            if name.trim() != "lo" {
                usage.received += counts.first().copied().unwrap_or(0);
                usage.sent += counts.get(8).copied().unwrap_or(0);
            }
        }
        // Whole disks only; a sector here has 512 bytes whatever the disk's has (iostats.rst).
        for line in lines("/proc/diskstats") {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            if words
                .get(2)
                .is_some_and(|name| name.starts_with("vd") && !name.ends_with(|c: char| c.is_ascii_digit()))
            {
                usage.read += number(5) * 512;
                usage.written += number(9) * 512;
            }
        }
        usage
    }
}

fn row(record: &Record, watched: &Watched, whole: bool) -> Result<Value> {
    let limit = config(record)?.request.memory;
    let unknown = || UNKNOWN.to_owned();
    let pair = |one: u64, other: u64| format!("{} / {}", human::size(one), human::size(other));
    let usage = watched.now.as_ref().map(|(_, usage)| usage);
    let text = |show: &dyn Fn(&Usage) -> String| usage.map_or_else(unknown, show);
    let both = format!("{UNKNOWN} / {UNKNOWN}");
    Ok(json!({
        "ID": if whole { record.id.clone() } else { short(&record.id) },
        "Container": if whole { record.id.clone() } else { short(&record.id) },
        "Name": record.name,
        "CPUPerc": watched.cpu().map_or_else(unknown, |percent| format!("{percent:.2}%")),
        "MemUsage": usage.map_or(both.clone(), |usage| format!("{} / {}", human::memory(usage.memory), human::memory(limit))),
        "MemPerc": text(&|usage| format!("{:.2}%", usage.memory as f64 / limit.max(1) as f64 * 100.0)),
        "NetIO": usage.map_or(both.clone(), |usage| pair(usage.received, usage.sent)),
        "BlockIO": usage.map_or(both, |usage| pair(usage.read, usage.written)),
        "PIDs": text(&|usage| usage.pids.to_string()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_files_are_read_as_numbers() {
        let text = "== memory.current\n10485760\n\n== memory.stat\nanon 1\ninactive_file 485760\n\n== pids.current\n3\n\n\
            == cpu.stat\nusage_usec 1500\nuser_usec 1\n\n\
            == /proc/diskstats\n 254 0 vda 10 0 100 1 5 0 20 0 0 0 0\n 254 1 vda1 9 9 9 9 9 9 9\n\n\
            == /proc/1/net/dev\nInter-| Receive\n face |bytes\n lo: 5 0 0 0 0 0 0 0 5 0\neth0: 700 1 0 0 0 0 0 0 300 2\n";
        let usage = Usage::parse(text.as_bytes());
        assert_eq!(
            usage,
            Usage {
                cpu_us: 1500,
                memory: 10_000_000,
                pids: 3,
                received: 700,
                sent: 300,
                read: 51_200,
                written: 10_240
            }
        );
        assert_eq!(Usage::parse(b"nonsense \xff"), Usage::default());
    }

    #[test]
    fn processors_in_use_are_told_from_two_looks() {
        let then = Instant::now();
        let usage = |cpu_us| Usage { cpu_us, ..Usage::default() };
        let mut watched =
            Watched { now: Some((then, usage(100))), most: 1_000_000_000, ..Watched::default() };
        assert_eq!(watched.cpu(), None);
        watched.before = watched.now.replace((then + Duration::from_secs(2), usage(1_000_100)));
        assert_eq!(watched.cpu(), Some(50.0));
        // The guest worked for longer than the answers were apart.
        watched.before = watched.now.replace((then + Duration::from_secs(3), usage(3_610_100)));
        assert_eq!(watched.cpu(), Some(100.0));
        watched.most = 2_500_000_000;
        assert_eq!(watched.cpu(), Some(250.0));
    }
}
