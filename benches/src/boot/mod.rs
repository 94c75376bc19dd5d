//! `servin run servin/base echo hi`, measured from before its exec to after its exit.
//!
//! The clock is this program's own monotonic one: it reads the time before it starts servin, when the first byte of
//! output arrives, and when the process has ended. servin's `--timing` adds what happens between. The first run, which
//! also unpacks the base image, is never counted, and a run whose output is not exactly `hi\n` fails the whole.

mod budget;
mod exits;
mod memory;
mod report;

pub use budget::{Budget, Budgets};
pub use exits::{Exits, count};
pub use memory::{Memory, resident};
pub use report::{Report, Sample, table};

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// What is run: the program and the image of every measurement.
#[derive(Debug, Clone)]
pub struct Subject {
    /// servin's path.
    pub servin: PathBuf,
    /// Its data root, kept between runs.
    pub data_root: PathBuf,
    /// Flags of `run`, such as `-m 256m`.
    pub flags: Vec<String>,
    /// How the runs start.
    pub start: Start,
}

/// How a run starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// The guest's kernel boots.
    Cold,
    /// The machine is a clone of one that has booted.
    Warm,
}

impl Start {
    /// Its name, as in `--timing` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }
}

impl Subject {
    /// A command `servin run [flags] servin/base WORDS...`.
    pub fn command(&self, extra: &[&str], words: &[&str]) -> Command {
        let mut command = Command::new(&self.servin);
        command.arg("run").args((self.start == Start::Cold).then_some("--no-warm"));
        command.args(&self.flags).args(extra).arg("servin/base").args(words);
        command.env("SERVIN_DATA_ROOT", &self.data_root).stdin(Stdio::null());
        command
    }

    /// One run of `echo hi`.
    ///
    /// # Errors
    /// If servin cannot be started, prints anything else, fails, starts otherwise than was wanted, or its `--timing` cannot
    /// be read.
    pub fn sample(&self) -> io::Result<Sample> {
        let (start, sample) = self.run()?;
        if start == self.start.name() {
            return Ok(sample);
        }
        Err(io::Error::other(format!("a {start} start, where a {} one was wanted", self.start.name())))
    }

    /// One run before those that count: it unpacks the image, fills the page cache, and leaves what a warm start needs.
    ///
    /// # Errors
    /// As for [`Subject::sample`], but that it may start as it likes.
    pub fn prepare(&self) -> io::Result<()> {
        self.run().map(drop)
    }

    /// How it started, and its clocks.
    fn run(&self) -> io::Result<(String, Sample)> {
        let mut command = self.command(&["--rm", "--timing"], &["echo", "hi"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn()?;
        let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("no pipes"));
        };
        let mut output = vec![0];
        let first = stdout.read(&mut output)?;
        let first_byte = started.elapsed();
        output.truncate(first);
        stdout.read_to_end(&mut output)?;
        let mut text = String::new();
        stderr.read_to_string(&mut text)?;
        let status = child.wait()?;
        let ended = started.elapsed();
        // The monitor takes its machine apart after it has told the end: that must not be counted in the next sample.
        memory::wait_for_monitors(&self.servin)?;
        if output != b"hi\n" || !status.success() {
            let output = String::from_utf8_lossy(&output);
            return Err(io::Error::other(format!("{status}, output {output:?}, standard error {text:?}")));
        }
        let row = |name: &str| {
            let mut rows = text.lines().filter_map(|line| line.strip_prefix("timing: "));
            rows.find_map(|line| line.strip_prefix(name)).map(str::trim)
        };
        let clock = |name: &str| {
            row(name)
                .and_then(|rest| rest.strip_suffix(" ms"))
                .and_then(|number| number.trim().parse::<f64>().ok())
                .ok_or_else(|| io::Error::other(format!("no clock {name:?} in {text:?}")))
        };
        let start = row("start").unwrap_or("nameless").to_string();
        let sample = Sample {
            vm_created: clock("vm created")?,
            kernel_entered: clock("kernel entered")?,
            init_started: clock("init started")?,
            first_byte_inside: clock("first byte")?,
            first_byte: first_byte.as_secs_f64() * 1e3,
            ended: ended.as_secs_f64() * 1e3,
        };
        Ok((start, sample))
    }
}

/// What the host is, for the report: numbers mean nothing without it.
pub fn host() -> Vec<(String, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_string();
    let chosen = |text: String| {
        let picked = text.split(['[', ']']).nth(1).map(str::to_string);
        picked.unwrap_or(text)
    };
    let cmdline = read("/proc/cmdline");
    let flag = |name: &str| cmdline.split(' ').any(|word| word == name).to_string();
    let module = |name: &str| Path::new("/sys/module").join(name).exists();
    let kvm = ["kvm_amd", "kvm_intel", "kvm_pvm"].into_iter().find(|name| module(name)).unwrap_or("none");
    vec![
        ("kernel".into(), read("/proc/sys/kernel/osrelease")),
        ("hypervisor".into(), kvm.into()),
        ("transparent_hugepage".into(), chosen(read("/sys/kernel/mm/transparent_hugepage/enabled"))),
        ("rcu_expedited".into(), flag("rcupdate.rcu_expedited=1")),
        ("nokaslr".into(), flag("nokaslr")),
    ]
}
