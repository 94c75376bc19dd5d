//! Times a command from its exec to the first byte of its output and to its end; `scripts/podman.sh` runs it in the nested
//! host beside servin.
//!
//! ```text
//! first_byte RUNS -- COMMAND...
//! ```

use std::io::{Error, Read, Result};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("first_byte: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = || Error::other("usage: first_byte RUNS -- COMMAND...");
    let runs: usize =
        args.next().and_then(|text| text.parse().ok()).filter(|runs| *runs > 0).ok_or_else(usage)?;
    let command: Vec<String> = args.skip_while(|word| word == "--").collect();
    let (program, words) = command.split_first().ok_or_else(usage)?;
    // The first run warms caches, and makes what later ones find.
    once(program, words)?;
    let mut times = (0..runs).map(|_| once(program, words)).collect::<Result<Vec<_>>>()?;
    let mut median = |of: fn(&(Duration, Duration)) -> Duration| {
        times.sort_by_key(of);
        of(&times[times.len() / 2]).as_secs_f64() * 1e3
    };
    println!("{:.1} {:.1}", median(|time| time.0), median(|time| time.1));
    Ok(())
}

/// Until the first byte, and until the end.
fn once(program: &str, words: &[String]) -> Result<(Duration, Duration)> {
    let began = Instant::now();
    let mut child = Command::new(program).args(words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().ok_or_else(|| Error::other("no pipe"))?;
    let mut byte = [0];
    output.read_exact(&mut byte).map_err(|_| Error::other(format!("{program} wrote nothing")))?;
    let first = began.elapsed();
    output.read_to_end(&mut Vec::new())?;
    let status = child.wait()?;
    if !status.success() {
        return Err(Error::other(format!("{program}: {status}")));
    }
    Ok((first, began.elapsed()))
}
