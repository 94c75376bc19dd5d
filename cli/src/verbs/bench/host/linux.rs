//! What running containers cost in memory, from the kernel's account of their monitors.

use std::fs;
use std::io;

use serde::Serialize;

/// Memory of one monitor in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Memory {
    /// Resident, of the monitor itself.
    pub(super) monitor_kib: u64,
    /// Of that, what no other process shares.
    pub(super) monitor_private_kib: u64,
    /// Resident, of the guest.
    pub(super) guest_kib: u64,
    /// Of that, what no other process shares: what the guest has written, and what no other has read.
    pub(super) guest_private_kib: u64,
    /// Everything, shared pages counted by their share.
    pub(super) share_kib: u64,
}

/// Guest memory is told by its size: no other mapping of a monitor is as large.
const GUEST_AT_LEAST_KIB: u64 = 90 << 10;

impl Memory {
    /// Of the process `pid`.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        Ok(parse(&fs::read_to_string(format!("/proc/{pid}/smaps"))?))
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
