//! A start as one trace, in the JSON that Perfetto and Chrome's `about:tracing` open (the Trace Event Format).
//!
//! ```text
//! process 1, host     start     the phases between the clocks
//!                     vCPU n    each access of the guest that reached the monitor, by address
//! process 2, guest    initcalls what the kernel did before PID 1, from its log
//!                     log       every other line of it
//! ```
//! Times are microseconds since the command was executed. The guest's clock begins when its kernel sets it up, shortly after
//! it was entered: its events stand that much too early.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};
use servin_vmm::{Access, Accesses};

use crate::monitor::wire::Clocks;
use crate::{Error, Result};

/// Words of the kernel command line by which its log tells of every initcall.
pub(crate) const WORDS: &str = "console=hvc0 loglevel=8 initcall_debug log_buf_len=4M";
/// Most bytes of the guest's log that are kept.
const MOST_LOG: usize = 8 << 20;

/// A trace that is being taken.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    file: Arc<File>,
    pub(crate) accesses: Accesses,
    log: Log,
}

/// What the guest's kernel says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST_LOG.saturating_sub(log.len());
        log.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Trace {
    /// A trace that is to be written into this file; what was in it goes.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|source| Error::io("make the trace", path, source))?;
        Ok(Trace { file: Arc::new(file), accesses: Accesses::default(), log: Log::default() })
    }

    /// Where the guest's kernel is to write.
    pub(crate) fn log(&self) -> Log {
        self.log.clone()
    }

    /// Writes it.
    pub(crate) fn write(&self, began: Instant, clocks: &Clocks, kernel: &Path) -> io::Result<()> {
        let log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (accesses, lost) = self.accesses.take();
        let map = std::fs::read_to_string(kernel.with_file_name("System.map")).unwrap_or_default();
        let mut events = names();
        events.extend(phases(clocks));
        events.extend(accesses.iter().map(|access| shown(access, began)));
        events.extend(guest(&String::from_utf8_lossy(&log), clocks.kernel_entered.unwrap_or_default(), &map));
        let trace = json!({
            "displayTimeUnit": "ms",
            "otherData": { "servin": env!("CARGO_PKG_VERSION"), "accesses not kept": lost },
            "traceEvents": events,
        });
        let mut out = BufWriter::new(&*self.file);
        serde_json::to_writer(&mut out, &trace)?;
        out.write_all(b"\n")?;
        out.flush()
    }
}

const HOST: u32 = 1;
const GUEST: u32 = 2;
/// The thread of a process that the trace begins with; vCPUs follow it.
const FIRST: u32 = 1;
const INITCALLS: u32 = 1;
const LINES: u32 = 2;

fn names() -> Vec<Value> {
    let name = |kind: &str, process: u32, thread: u32, name: &str| json!({ "ph": "M", "name": kind, "pid": process, "tid": thread, "args": { "name": name } });
    vec![
        name("process_name", HOST, FIRST, "host"),
        name("thread_name", HOST, FIRST, "start"),
        name("process_name", GUEST, INITCALLS, "guest"),
        name("thread_name", GUEST, INITCALLS, "initcalls"),
        name("thread_name", GUEST, LINES, "log"),
    ]
}

fn span(process: u32, thread: u32, name: &str, start: f64, length: f64) -> Value {
    json!({ "ph": "X", "name": name, "pid": process, "tid": thread, "ts": start, "dur": length })
}

/// The time from each clock to the next that was reached.
fn phases(clocks: &Clocks) -> Vec<Value> {
    let reached = [
        ("make the machine", clocks.vm_created),
        ("enter the kernel", clocks.kernel_entered),
        ("boot to the agent's hello", clocks.init_started),
        ("run to the first byte", clocks.first_byte),
        ("run to the exit code", clocks.exited),
    ];
    let mut last = 0;
    let mut events = Vec::new();
    for (name, at) in reached {
        let Some(at) = at else { continue };
        events.push(span(HOST, FIRST, name, last as f64, at.saturating_sub(last) as f64));
        last = last.max(at);
    }
    events
}

fn shown(access: &Access, began: Instant) -> Value {
    let place = if access.is_port { "port" } else { "memory" };
    let verb = if access.is_write { "write" } else { "read" };
    let start = access.at.saturating_duration_since(began).as_nanos() as f64 / 1000.0;
    let length = access.took.as_nanos() as f64 / 1000.0;
    let name = format!("{verb} {place} {:#x}", access.address);
    let mut event = span(HOST, FIRST + 1 + access.cpu, &name, start, length);
    if let Some(object) = event.as_object_mut() {
        object.insert("args".into(), json!({ "bytes": access.length, "vCPU": access.cpu }));
    }
    event
}

/// Initcalls as spans, and the other lines of the log as instants.
fn guest(log: &str, entered: u64, map: &str) -> Vec<Value> {
    let mut symbols = None;
    let mut events = Vec::new();
    for line in log.lines() {
        let Some((seconds, text)) = line.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']'))
        else {
            continue;
        };
        let Ok(seconds) = seconds.trim().parse::<f64>() else { continue };
        let (now, text) = (entered as f64 + seconds * 1e6, text.trim());
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            ["calling", ..] => {}
            ["initcall", function, "returned", result, "after", length, "usecs"] => {
                let length: f64 = length.parse().unwrap_or_default();
                let symbols = symbols.get_or_insert_with(|| table(map));
                let name = named(function, symbols);
                let mut event = span(GUEST, INITCALLS, &name, now - length, length);
                if let Some(object) = event.as_object_mut() {
                    object.insert("args".into(), json!({ "returned": result }));
                }
                events.push(event);
            }
            _ => events
                .push(json!({ "ph": "i", "s": "t", "name": text, "pid": GUEST, "tid": LINES, "ts": now })),
        }
    }
    events
}

/// Functions of System.map by their address.
fn table(map: &str) -> HashMap<u64, &str> {
    let entry = |line: &'_ str| -> Option<(u64, usize)> {
        let (address, rest) = line.split_once(' ')?;
        let name = rest.split_once(' ')?.1;
        Some((u64::from_str_radix(address, 16).ok()?, line.len() - name.len()))
    };
    map.lines()
        .filter_map(|line| {
            let (address, at) = entry(line)?;
            Some((address, line.get(at..)?))
        })
        .collect()
}

/// A function's name without offset and size; a kernel without a table of symbols writes its address.
fn named(function: &str, symbols: &HashMap<u64, &str>) -> String {
    let bare = function.split('+').next().unwrap_or(function);
    let address = u64::from_str_radix(bare.trim_start_matches("0x"), 16).ok();
    address.and_then(|address| symbols.get(&address)).copied().unwrap_or(bare).to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn initcalls_become_spans_with_their_names_and_lines_instants() {
        let log = "[    0.001000] Linux version 6\n[    0.002000] calling  0xffffffff81000010 @ 1\n\
                   [    0.002500] initcall 0xffffffff81000010 returned 0 after 400 usecs\nrubbish\n\
                   [    0.003000] initcall late_one+0x0/0x10 returned -19 after 1 usecs\n";
        let map = "ffffffff81000000 T _text\nffffffff81000010 t early_one\n";
        let events = guest(log, 1000, map);
        let shown: Vec<_> = events
            .iter()
            .map(|event| {
                (
                    event["ph"].as_str().unwrap(),
                    event["name"].as_str().unwrap(),
                    event["ts"].as_f64().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [("i", "Linux version 6", 2000.0), ("X", "early_one", 3100.0), ("X", "late_one", 3999.0)]
        );
        assert_eq!(events[2]["args"]["returned"], "-19");
    }

    #[test]
    fn phases_follow_each_other_and_a_clock_that_was_not_reached_is_left_out() {
        let clocks =
            Clocks { vm_created: Some(10), kernel_entered: Some(15), exited: Some(99), ..Clocks::default() };
        let spans: Vec<_> =
            phases(&clocks).iter().map(|event| (event["ts"].as_f64(), event["dur"].as_f64())).collect();
        assert_eq!(spans, [(Some(0.0), Some(10.0)), (Some(10.0), Some(5.0)), (Some(15.0), Some(84.0))]);
    }

    #[test]
    fn an_access_is_shown_by_its_address_on_its_vcpu() {
        let began = Instant::now();
        let access = Access {
            at: began + Duration::from_micros(7),
            took: Duration::from_nanos(1500),
            cpu: 1,
            is_port: false,
            is_write: true,
            address: 0xd000_0050,
            length: 4,
        };
        let event = shown(&access, began);
        assert_eq!(
            (event["name"].as_str(), event["tid"].as_u64()),
            (Some("write memory 0xd0000050"), Some(3))
        );
        assert_eq!((event["ts"].as_f64(), event["dur"].as_f64()), (Some(7.0), Some(1.5)));
    }
}
