//! What a host looks like when a command does not come to its end: the only trace there is of a machine that stood still.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks: what moves is alive.
const PAUSE: Duration = Duration::from_millis(500);
/// Lines of the kernel's messages.
const MESSAGES: usize = 8;
/// What KVM counts of each machine, as far as it tells what stands still.
const COUNTS: [&str; 6] =
    ["exits", "halt_exits", "halt_wakeup", "irq_injections", "request_irq_exits", "signal_exits"];

/// How long a guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a guest is asked: whether its clock moves, and which interrupts reach it.
const QUESTION: &str =
    "for i in 1 2; do cat /proc/uptime; grep -E 'LOC|RES|virtio' /proc/interrupts; done; date";

/// The threads of every servin process, what KVM counts of each machine, the clock of the host and its last messages, and
/// what the guests still answer that `command`, a process of servin, has to do with.
#[must_use]
pub fn report(command: u32) -> String {
    let before = (threads(), machines());
    thread::sleep(PAUSE);
    let after = (threads(), machines());
    let mut out = String::from("threads: state, what they wait in, ticks of CPU time then and now\n");
    for thread in &after.0 {
        let ticks = before.0.iter().find(|other| other.id == thread.id).map(|other| other.ticks);
        let _ = writeln!(
            out,
            "  {} {} {} {} {ticks:?} {:?}",
            thread.id, thread.name, thread.state, thread.waits, thread.ticks
        );
    }
    let _ = writeln!(out, "machines: {COUNTS:?} then and now");
    for (name, counts) in &after.1 {
        let then = before.1.iter().find(|(other, _)| other == name).map(|(_, counts)| counts);
        let _ = writeln!(out, "  {name} {then:?} {counts:?}");
    }
    let clock = text(Path::new("/sys/devices/system/clocksource/clocksource0/current_clocksource"));
    let _ = writeln!(out, "clock of the host: {}; its last messages:", clock.trim());
    let messages = Command::new("dmesg").output().map_or_else(|_| Vec::new(), |output| output.stdout);
    let messages = String::from_utf8_lossy(&messages);
    let lines: Vec<&str> = messages.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(MESSAGES)) {
        let _ = writeln!(out, "  {line}");
    }
    let root = variable(command, "SERVIN_DATA_ROOT");
    for id in servin(&root, &["ps", "-q"]).split_whitespace() {
        let answer = servin(&root, &["exec", id, "sh", "-c", QUESTION]);
        let _ = writeln!(out, "the guest of {id} says: {answer}");
    }
    // Every line says what it is of: the end of a long log seldom holds it, and it is looked for.
    out.lines().map(|line| format!("stuck: {line}\n")).collect()
}

fn variable(process: u32, name: &str) -> String {
    let all = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
    let mut all = all.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    all.find_map(|pair| Some(pair.strip_prefix(name)?.strip_prefix('=')?.to_owned())).unwrap_or_default()
}

/// What servin prints, or that it does not end either.
fn servin(root: &str, words: &[&str]) -> String {
    let program = std::env::var_os("SERVIN_BIN").unwrap_or_else(|| "servin".into());
    let mut command = Command::new(program);
    command.args(words).env("SERVIN_DATA_ROOT", root).stdin(Stdio::null());
    let Ok(mut child) = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn() else {
        return "(servin cannot be run)".into();
    };
    let until = Instant::now() + PATIENCE;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    let late = matches!(child.try_wait(), Ok(None));
    let _ = child.kill();
    let mut said = String::new();
    let _ = child.stdout.take().map(|mut out| out.read_to_string(&mut said));
    let _ = child.wait();
    if late { format!("{said}(no end after {PATIENCE:?})") } else { said }
}

struct Thread {
    id: String,
    name: String,
    state: String,
    waits: String,
    ticks: [u64; 2],
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn entries(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn threads() -> Vec<Thread> {
    let ours = |path: &PathBuf| text(&path.join("comm")).starts_with("servin");
    let tasks = entries(Path::new("/proc")).into_iter().filter(ours);
    tasks.flat_map(|process| entries(&process.join("task"))).filter_map(|task| thread_of(&task)).collect()
}

fn thread_of(task: &Path) -> Option<Thread> {
    let stat = text(&task.join("stat"));
    // The name is in parentheses and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse().ok();
    Some(Thread {
        id: task.to_string_lossy().into_owned(),
        name: text(&task.join("comm")).trim().to_owned(),
        state: (*fields.first()?).to_owned(),
        waits: text(&task.join("wchan")),
        ticks: [number(11)?, number(12)?],
    })
}

/// The machines of the host with their counts; none where the kernel does not show them.
fn machines() -> Vec<(String, [u64; COUNTS.len()])> {
    let machines = entries(Path::new("/sys/kernel/debug/kvm")).into_iter().filter(|path| path.is_dir());
    let counts = |path: &Path| COUNTS.map(|name| text(&path.join(name)).trim().parse().unwrap_or(0));
    machines.map(|path| (path.to_string_lossy().into_owned(), counts(&path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_told_with_its_state_and_its_time() {
        let own = thread_of(Path::new("/proc/thread-self")).unwrap();
        assert_eq!(own.state, "R");
        let report = report(std::process::id());
        assert!(report.contains("clock of the host: "), "{report}");
        assert!(!variable(std::process::id(), "PATH").is_empty());
    }
}
