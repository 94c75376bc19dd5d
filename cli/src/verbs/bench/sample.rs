//! One run of servin, measured from before its exec to after its exit.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::Serialize;

use super::host;

/// How a run starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Start {
    /// The guest's kernel boots.
    Cold,
    /// The machine is a clone of one that has booted.
    Warm,
}

impl Start {
    /// Its name, as `--timing` tells it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Start::Cold => "cold",
            Start::Warm => "warm",
        }
    }
}

/// What is run.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) servin: PathBuf,
    pub(super) data_root: PathBuf,
    pub(super) image: String,
    pub(super) flags: Vec<OsString>,
}

/// The clocks of one run in milliseconds since before its exec. Those up to `init_started` are servin's own and begin
/// with its `main`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Sample {
    pub(super) vm_created: f64,
    pub(super) kernel_entered: f64,
    pub(super) init_started: f64,
    pub(super) first_byte: f64,
    pub(super) exit_code: f64,
}

/// A clock by its name.
pub(super) type Clock = (&'static str, fn(&Sample) -> f64);

/// The five clocks, in their order.
pub(super) const CLOCKS: [Clock; 5] = [
    ("vm created", |sample| sample.vm_created),
    ("kernel entered", |sample| sample.kernel_entered),
    ("init started", |sample| sample.init_started),
    ("first byte", |sample| sample.first_byte),
    ("exit code", |sample| sample.exit_code),
];

impl Subject {
    /// `servin run`, with these further flags and words.
    pub(super) fn run(&self, flags: &[&str], words: &[&str]) -> Command {
        let mut command = Command::new(&self.servin);
        command.arg("run").args(flags).args(&self.flags).arg(&self.image).args(words);
        command.env("SERVIN_DATA_ROOT", &self.data_root).stdin(Stdio::null());
        command
    }

    /// One run that prints `token`. The reason why it does not count is an error: it printed something else, failed, started
    /// in another way than was wanted, or its clocks are not in order.
    pub(super) fn sample(&self, start: Option<Start>, token: &str) -> io::Result<Sample> {
        let cold = (start == Some(Start::Cold)).then_some("--no-warm");
        let flags: Vec<&str> =
            ["--rm", "--timing"].into_iter().chain(cold).chain(host::flags(token)).collect();
        let mut command = self.run(&flags, &["echo", token]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn()?;
        let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("no pipes"));
        };
        let mut output = vec![0];
        let first = stdout.read(&mut output)?;
        let first_byte = began.elapsed().as_secs_f64() * 1e3;
        output.truncate(first);
        stdout.read_to_end(&mut output)?;
        let mut text = String::new();
        stderr.read_to_string(&mut text)?;
        let status = child.wait()?;
        let exit_code = began.elapsed().as_secs_f64() * 1e3;
        if !status.success() || output != format!("{token}\n").as_bytes() {
            let why = text.lines().find(|line| !line.starts_with("timing: ")).unwrap_or("no reason given");
            return Err(io::Error::other(format!("{status}, {} bytes of output: {why}", output.len())));
        }
        let (how, inside) = timing(&text)?;
        if start.is_some_and(|start| start.name() != how) {
            return Err(io::Error::other(format!("it was a {how} start")));
        }
        let [vm_created, kernel_entered, init_started] = inside;
        let sample = Sample { vm_created, kernel_entered, init_started, first_byte, exit_code };
        let times = CLOCKS.map(|(_, clock)| clock(&sample));
        if !times.is_sorted() {
            return Err(io::Error::other(format!("its clocks are not in order: {times:?}")));
        }
        Ok(sample)
    }
}

/// What `--timing` printed: how it started, and the clocks up to the agent's hello.
fn timing(text: &str) -> io::Result<(&str, [f64; 3])> {
    let row = |name: &str| {
        let mut rows = text.lines().filter_map(|line| line.strip_prefix("timing: "));
        rows.find_map(|line| line.strip_prefix(name)).map(str::trim)
    };
    let clock = |name: &str| {
        let number = row(name).and_then(|rest| rest.strip_suffix(" ms"));
        let number = number.and_then(|number| number.trim().parse::<f64>().ok());
        number.ok_or_else(|| io::Error::other(format!("it told no clock \"{name}\"")))
    };
    let start = row("start").ok_or_else(|| io::Error::other("it told no clocks"))?;
    Ok((start, [clock("vm created")?, clock("kernel entered")?, clock("init started")?]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that is given for servin.
    fn subject(script: &str) -> (tempfile::TempDir, Subject) {
        let dir = tempfile::tempdir().unwrap();
        let servin = dir.path().join("servin");
        std::fs::write(&servin, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&servin, std::fs::Permissions::from_mode(0o755)).unwrap();
        let data_root = dir.path().to_path_buf();
        (dir, Subject { servin, data_root, image: "box".into(), flags: vec!["-m".into(), "64m".into()] })
    }

    const TIMING: &str = "for row in 'start warm' 'vm created 0.010 ms' 'kernel entered 0.011 ms' 'init started 0.012 ms' \
        'first byte 0.013 ms' 'exit code 0.014 ms'; do echo \"timing: $row\" >&2; done";

    #[test]
    fn a_run_that_printed_its_token_counts() {
        let (_dir, subject) =
            subject(&format!("{TIMING}\nfor last; do :; done; echo \"$last\"; echo \"$@\" >$0.args"));
        let sample = subject.sample(Some(Start::Warm), "token").unwrap();
        assert_eq!((sample.vm_created, sample.init_started), (0.010, 0.012));
        assert!(sample.first_byte > 0.0 && sample.exit_code >= sample.first_byte);
        let args = std::fs::read_to_string(subject.servin.with_extension("args")).unwrap();
        let more: String = host::flags("token").iter().map(|flag| format!("{flag} ")).collect();
        assert_eq!(args, format!("run --rm --timing {more}-m 64m box echo token\n"));
        let why = subject.sample(Some(Start::Cold), "token").unwrap_err().to_string();
        assert_eq!(why, "it was a warm start");
    }

    #[test]
    fn a_run_that_did_too_little_is_refused_with_its_reason() {
        for (script, why) in [
            ("echo token", "it told no clocks"),
            (&*format!("{TIMING}; echo other"), "6 bytes of output"),
            (&*format!("{TIMING}; echo token; exit 3"), "exit status: 3"),
            ("echo 'servin: no such thing' >&2; exit 125", "servin: no such thing"),
        ] {
            let (_dir, subject) = subject(script);
            let error = subject.sample(None, "token").unwrap_err().to_string();
            assert!(error.contains(why), "{script}: {error}");
        }
    }
}
