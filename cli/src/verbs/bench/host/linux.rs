//! Linux: monitors become this process's children, and the kernel's account of them is in `/proc`.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{WaitOptions, set_child_subreaper, wait};
use serde::Serialize;

/// What this host does not tell.
pub(in super::super) const LEFT_OUT: &[&str] = &[];

/// Has monitors become this process's children when their command has ended, so that it can wait for them.
pub(in super::super) fn adopt() -> io::Result<()> {
    Ok(set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Flags of a run by which its end is found: none are needed.
pub(in super::super) fn flags(_: &str) -> Vec<&str> {
    Vec::new()
}

/// Waits for every child, monitors among them: their end is not to be counted in the next run.
#[allow(clippy::unnecessary_wraps, reason = "as on other hosts")]
pub(in super::super) fn settle(_: &Path, _: &[String]) -> io::Result<()> {
    while matches!(wait(WaitOptions::empty()), Ok(Some(_)) | Err(rustix::io::Errno::INTR)) {}
    Ok(())
}

/// Processor time of every child that was waited for, in milliseconds: proc(5), fields 16 and 17 of stat.
pub(in super::super) fn cpu_ms() -> io::Result<Option<f64>> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        after_name.split_whitespace().skip(13).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    // The kernel tells user space hundredths of a second on every architecture that servin knows.
    const TICKS_PER_SECOND: f64 = 100.0;
    Ok(Some(ticks as f64 * 1e3 / TICKS_PER_SECOND))
}

/// Memory of one monitor in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(in super::super) struct Memory {
    /// Resident, of the monitor itself.
    pub(in super::super) monitor_kib: u64,
    /// Of that, what no other process shares.
    pub(in super::super) monitor_private_kib: u64,
    /// Resident, of the guest.
    pub(in super::super) guest_kib: u64,
    /// Of that, what no other process shares: what the guest has written, and what no other has read.
    pub(in super::super) guest_private_kib: u64,
    /// Everything, shared pages counted by their share.
    pub(in super::super) share_kib: u64,
}

/// Guest memory is told by its size: no other mapping of a monitor is as large.
const GUEST_AT_LEAST_KIB: u64 = 90 << 10;

impl Memory {
    /// Of the process `pid`.
    pub(in super::super) fn of(pid: i32) -> io::Result<Self> {
        Ok(parse(&fs::read_to_string(format!("/proc/{pid}/smaps"))?))
    }

    /// The table of several, each with what it takes, in MiB, and a line below it.
    pub(in super::super) fn table(all: &[Self]) -> (Vec<Vec<String>>, String) {
        let mean = |figure: fn(&Self) -> u64| super::mean_mib(all, figure);
        let lines = vec![
            vec!["memory of a container (MiB)".to_owned(), "resident".into(), "its own".into()],
            vec!["monitor".into(), mean(|m| m.monitor_kib), mean(|m| m.monitor_private_kib)],
            vec!["guest".into(), mean(|m| m.guest_kib), mean(|m| m.guest_private_kib)],
        ];
        let share = mean(|m| m.share_kib);
        let below = format!(
            "mean of {} at the same time; with shared pages by their share {} MiB each\n",
            all.len(),
            share.trim()
        );
        (lines, below)
    }
}

fn parse(maps: &str) -> Memory {
    let mut memory = Memory::default();
    let mut guest = false;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(Ok(kib))) = (words.next(), words.next().map(str::parse::<u64>)) else {
            continue;
        };
        match name {
            // The first line of every mapping.
            "Size:" => guest = kib >= GUEST_AT_LEAST_KIB,
            "Rss:" if guest => memory.guest_kib += kib,
            "Rss:" => memory.monitor_kib += kib,
            "Pss:" => memory.share_kib += kib,
            "Private_Clean:" | "Private_Dirty:" if guest => memory.guest_private_kib += kib,
            "Private_Clean:" | "Private_Dirty:" => memory.monitor_private_kib += kib,
            _ => {}
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_monitor_private_and_shared_are_told_apart() {
        let maps = "55d0-55d1 r-xp 00000000 fe:00 1 /usr/bin/servin\nSize: 3000 kB\nRss: 2000 kB\nPss: 500 kB\n\
                    Private_Clean: 0 kB\nPrivate_Dirty: 4 kB\n\
                    7f00-7f10 rw-p 00004000 fe:00 2 /d/templates/k/memory\nSize: 524288 kB\nRss: 16384 kB\nPss: 2000 kB\n\
                    Private_Clean: 8 kB\nPrivate_Dirty: 1000 kB\n";
        let expected = Memory {
            monitor_kib: 2000,
            monitor_private_kib: 4,
            guest_kib: 16384,
            guest_private_kib: 1008,
            share_kib: 2500,
        };
        assert_eq!(parse(maps), expected);
    }
}
