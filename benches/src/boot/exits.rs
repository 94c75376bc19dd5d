//! How often a run left the guest, and why: counted by the host kernel's tracepoints.
//!
//! `kvm:kvm_exit` counts every exit by the hardware's reason, `kvm:kvm_userspace_exit` those that reached the monitor. A
//! histogram in the kernel costs instructions, so this is a run apart from the timed ones.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Subject;

/// Exits by reason, most frequent first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exits {
    /// Every exit, by the reason that the CPU gives.
    pub kernel: Vec<(String, u64)>,
    /// Those that the monitor had to answer.
    pub user: Vec<(String, u64)>,
}

impl Exits {
    /// All exits.
    pub fn kernel_total(&self) -> u64 {
        self.kernel.iter().map(|(_, count)| count).sum()
    }

    /// All exits to the monitor.
    pub fn user_total(&self) -> u64 {
        self.user.iter().map(|(_, count)| count).sum()
    }
}

/// Counts the exits of one more run of `subject`.
///
/// # Errors
/// If the kernel has no such tracepoints or this is not root, or the run fails.
pub fn count(subject: &Subject) -> io::Result<Exits> {
    let events = tracing()?.join("events/kvm");
    let kernel = Histogram::start(&events.join("kvm_exit"), "exit_reason")?;
    let user = Histogram::start(&events.join("kvm_userspace_exit"), "reason")?;
    subject.sample()?;
    Ok(Exits { kernel: kernel.read(svm)?, user: user.read(run_page)? })
}

fn tracing() -> io::Result<PathBuf> {
    ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.join("events/kvm").exists())
        .ok_or_else(|| io::Error::other("the kernel's tracing is not mounted, or has no KVM in it"))
}

/// A trigger that counts; gone when this is.
struct Histogram {
    event: PathBuf,
    trigger: String,
}

impl Histogram {
    fn start(event: &Path, key: &str) -> io::Result<Self> {
        let trigger = format!("hist:keys={key}");
        fs::write(event.join("trigger"), &trigger)?;
        Ok(Self { event: event.into(), trigger })
    }

    fn read(&self, name: fn(u64) -> String) -> io::Result<Vec<(String, u64)>> {
        Ok(parse(&fs::read_to_string(self.event.join("hist"))?, name))
    }
}

impl Drop for Histogram {
    fn drop(&mut self) {
        let _ = fs::write(self.event.join("trigger"), format!("!{}", self.trigger));
    }
}

/// Lines such as `{ exit_reason:       1024 } hitcount:        345`.
fn parse(text: &str, name: fn(u64) -> String) -> Vec<(String, u64)> {
    let mut found: Vec<(String, u64)> = text
        .lines()
        .filter_map(|line| {
            let (key, count) = line.strip_prefix('{')?.split_once('}')?;
            let reason = key.split_once(':')?.1.trim().parse().ok()?;
            let count = count.trim().strip_prefix("hitcount:")?.trim().parse().ok()?;
            Some((name(reason), count))
        })
        .collect();
    found.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    found
}

/// AMD's names of exit reasons (APM volume 2, appendix C).
fn svm(reason: u64) -> String {
    match reason {
        0x00..=0x0f => format!("read of CR{reason}"),
        0x10..=0x1f => format!("write of CR{}", reason - 0x10),
        0x20..=0x3f => "debug register".into(),
        0x40..=0x5f => format!("exception {}", reason - 0x40),
        0x60 => "host interrupt".into(),
        0x64 => "interrupt window".into(),
        0x72 => "cpuid".into(),
        0x77 => "pause".into(),
        0x78 => "hlt".into(),
        0x7b => "port".into(),
        0x7c => "msr".into(),
        0x7f => "shutdown".into(),
        0x81 => "vmmcall".into(),
        0x89 => "wbinvd".into(),
        0x8d => "xsetbv".into(),
        0x400 => "nested page fault".into(),
        _ => format!("{reason:#x}"),
    }
}

/// KVM's names of exits to user space (Linux, `include/uapi/linux/kvm.h`).
fn run_page(reason: u64) -> String {
    match reason {
        2 => "port".into(),
        5 => "hlt".into(),
        6 => "mmio".into(),
        8 => "shutdown".into(),
        10 => "signal".into(),
        17 => "internal error".into(),
        _ => format!("reason {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_read_by_reason_and_sorted() {
        let text = "# event histogram\n#\n# trigger info: hist:keys=exit_reason:vals=hitcount\n\n\
                    { exit_reason:        114 } hitcount:         12\n\
                    { exit_reason:       1024 } hitcount:        345\n\nTotals:\n    Hits: 357\n";
        let expected = vec![("nested page fault".to_string(), 345), ("cpuid".to_string(), 12)];
        assert_eq!(parse(text, svm), expected);
    }
}
