//! What the host is told about the running container: what it uses, and its processes. The text is the kernel's; the host
//! makes sense of it.

use alloc::{format, vec::Vec};

use rustix::{
    fd::{BorrowedFd, OwnedFd},
    fs::{CWD, Mode, OFlags, RawDir, openat},
};
use servin_init::proto::kind::MOST_OBSERVED;

/// Most bytes of one file.
const MOST_FILE: usize = 16 * 1024;
/// Most bytes of one command line.
const MOST_COMMAND: usize = 4096;

/// Files of the container's cgroup that tell what it uses.
const CGROUP: [&str; 5] = ["memory.current", "memory.max", "memory.stat", "pids.current", "cpu.stat"];
/// The machine's, which has nothing but the container: its disks, and the interfaces that its main program sees.
const PROC: [&str; 2] = ["/proc/diskstats", "/proc/1/net/dev"];

/// What the container uses.
pub(crate) fn usage(cgroup: Option<BorrowedFd<'_>>) -> Vec<u8> {
    let mut text = Vec::new();
    let mut add = |directory, name: &str| {
        if let Some(content) = read(directory, name, MOST_FILE) {
            text.extend_from_slice(format!("== {name}\n").as_bytes());
            text.extend_from_slice(&content);
            text.push(b'\n');
        }
    };
    if let Some(cgroup) = cgroup {
        CGROUP.iter().for_each(|name| add(cgroup, name));
    }
    PROC.iter().for_each(|name| add(CWD, name));
    text
}

/// The container's processes, from its own /proc; and whether some were left out.
pub(crate) fn processes() -> rustix::io::Result<(Vec<u8>, bool)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open(c"/proc", flags, Mode::empty())?;
    let (mut text, mut buf) = (Vec::new(), Vec::with_capacity(4096));
    text.extend_from_slice(&read(CWD, "/proc/uptime", MOST_FILE).unwrap_or_default());
    let mut entries = RawDir::new(&proc, buf.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // One that has ended meanwhile is none.
        let Ok(process) = openat(&proc, name, flags, Mode::empty()) else { continue };
        let before = text.len();
        if describe(&process, &mut text).is_none() {
            text.truncate(before);
        } else if text.len() > MOST_OBSERVED {
            text.truncate(before);
            return Ok((text, true));
        }
    }
    Ok((text, false))
}

/// Adds the three lines of a process.
fn describe(process: &OwnedFd, text: &mut Vec<u8>) -> Option<()> {
    use rustix::fd::AsFd as _;
    let directory = process.as_fd();
    let stat = read(directory, "stat", MOST_FILE)?;
    let status = read(directory, "status", MOST_FILE)?;
    let command = read(directory, "cmdline", MOST_COMMAND)?;
    let user = status.split(|byte| *byte == b'\n').find(|line| line.starts_with(b"Uid:"))?;
    for line in [stat.trim_ascii_end(), user, command.as_slice()] {
        // A process chooses its own name, line ends too.
        text.extend(line.iter().map(|byte| if byte.is_ascii_control() { b' ' } else { *byte }));
        text.push(b'\n');
    }
    Some(())
}

/// The beginning of a file.
pub(crate) fn read(directory: BorrowedFd<'_>, name: &str, most: usize) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = openat(directory, name, flags, Mode::empty()).ok()?;
    let mut content = Vec::new();
    while content.len() < most {
        content.reserve(most.min(4096));
        if rustix::io::read(&file, rustix::buffer::spare_capacity(&mut content)).ok()? == 0 {
            break;
        }
    }
    content.truncate(most);
    Some(content)
}
