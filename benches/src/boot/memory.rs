//! What a container costs in resident memory, apart from the guest's own.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::Subject;

/// How long a monitor may take to be gone.
const GONE_AFTER_SECONDS: i64 = 30;

/// How many containers stand still while memory is read.
const STANDING: usize = 4;

/// A monitor gives back what its start took a second after its program runs. That is what is asked for, so it is waited for.
const AT_REST_AFTER: Duration = Duration::from_secs(2);

/// Resident memory of one process, in KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// `monitor` or `command line`.
    pub process: String,
    /// Everything but guest memory.
    pub own_kib: u64,
    /// Of it, pages that belong to no file.
    pub anonymous_kib: u64,
    /// Of it, pages of files: the program itself and its libraries, which processes share.
    pub file_kib: u64,
    /// Guest memory.
    pub guest_kib: u64,
    /// Of all of it, guest memory included, what no other process shares: what one more of these costs.
    pub private_kib: u64,
}

/// Starts some containers that stand still and reads what their processes hold. There are several, so that what containers
/// share is seen to be shared.
///
/// # Errors
/// If they cannot be started, or a virtual machine is missing.
pub fn resident(subject: &Subject) -> io::Result<Vec<Memory>> {
    let mut standing = Vec::new();
    let started = (0..STANDING).try_for_each(|_| stand(subject).map(|one| standing.push(one)));
    let measured = started.and_then(|()| {
        thread::sleep(AT_REST_AFTER);
        processes(&subject.servin)
    });
    for (mut child, stdout) in standing {
        drop((child.stdin.take(), stdout));
        child.wait()?;
    }
    wait_for_monitors(&subject.servin)?;
    let found = measured?;
    let machines = found.iter().filter(|memory| memory.process == "monitor").count();
    if machines == STANDING {
        Ok(found)
    } else {
        Err(io::Error::other(format!(
            "{machines} processes of servin have a virtual machine open, not {STANDING}"
        )))
    }
}

/// A container that has said that it runs, and waits for its standard input to end.
fn stand(subject: &Subject) -> io::Result<(Child, ChildStdout)> {
    let mut command = subject.command(&["--rm", "-i"], &["sh", "-c", "echo ready; cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let read = match child.stdout.take() {
        Some(mut stdout) => stdout.read_exact(&mut [0; 6]).map(|()| stdout),
        None => Err(io::Error::other("no pipe")),
    };
    match read {
        Ok(stdout) => Ok((child, stdout)),
        Err(error) => {
            drop(child.stdin.take());
            child.wait()?;
            Err(error)
        }
    }
}

/// Waits until no process runs this program.
pub(super) fn wait_for_monitors(program: &Path) -> io::Result<()> {
    let program = program.canonicalize()?;
    for entry in fs::read_dir("/proc")?.flatten() {
        if !fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program) {
            continue;
        }
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(Ok(process)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { continue };
        let limit = Timespec { tv_sec: GONE_AFTER_SECONDS, tv_nsec: 0 };
        if poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))? == 0 {
            return Err(io::Error::other(format!(
                "a monitor is still there {GONE_AFTER_SECONDS} s after its end"
            )));
        }
    }
    Ok(())
}

/// The processes that run this program.
fn processes(program: &Path) -> io::Result<Vec<Memory>> {
    let program = program.canonicalize()?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let process = entry.path();
        if !fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program) {
            continue;
        }
        let Ok(maps) = fs::read_to_string(process.join("smaps")) else { continue };
        let monitor = fs::read_dir(process.join("fd"))
            .map(|fds| fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| is_machine(&to))))
            .unwrap_or(false);
        let mut memory = parse(&maps);
        memory.process = if monitor { "monitor" } else { "command line" }.into();
        found.push(memory);
    }
    found.sort_by(|a, b| b.process.cmp(&a.process));
    Ok(found)
}

fn is_machine(link: &Path) -> bool {
    link.to_str().is_some_and(|link| link.contains("kvm-vm"))
}

/// Guest memory is told from the rest by its size: no other mapping of a monitor is as large (a heap of malloc's is
/// 64 MiB), and the guest of a measurement has at least twice as much. A restored guest's is a private mapping of a file.
const GUEST_AT_LEAST_KIB: u64 = 100 << 10;

fn parse(maps: &str) -> Memory {
    let mut memory = Memory {
        process: String::new(),
        own_kib: 0,
        anonymous_kib: 0,
        file_kib: 0,
        guest_kib: 0,
        private_kib: 0,
    };
    let (mut file, mut size) = (false, 0);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if !first.ends_with(':') {
            file = line.split_whitespace().nth(5).is_some_and(|path| path.starts_with('/'));
            continue;
        }
        let Ok(kib) = second.parse::<u64>() else { continue };
        match first {
            "Size:" => size = kib,
            "Rss:" if size >= GUEST_AT_LEAST_KIB => memory.guest_kib += kib,
            "Rss:" => {
                memory.own_kib += kib;
                *(if file { &mut memory.file_kib } else { &mut memory.anonymous_kib }) += kib;
            }
            "Private_Clean:" | "Private_Dirty:" => memory.private_kib += kib,
            _ => {}
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_apart_from_the_monitor_s_own() {
        let maps = "55d0-55d1 r-xp 00000000 fe:00 1 /usr/bin/servin\nSize: 3000 kB\nRss: 2000 kB\nPrivate_Clean: 10 kB\n\
                    7f00-7f10 rw-s 00000000 00:01 2 \nSize: 524288 kB\nRss: 65536 kB\nPrivate_Dirty: 700 kB\n\
                    7f20-7f30 rw-p 00000000 00:00 0 [heap]\nSize: 200 kB\nRss: 100 kB\n\
                    7f40-7f50 rw-p 00000000 00:00 0 \nSize: 65536 kB\nRss: 8 kB\n";
        let memory = parse(maps);
        assert_eq!(
            (memory.own_kib, memory.anonymous_kib, memory.file_kib, memory.guest_kib, memory.private_kib),
            (2108, 108, 2000, 65536, 710)
        );
    }
}
