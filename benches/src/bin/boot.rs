//! Measures the boot of a container; `scripts/bench.sh` runs it in the nested host.
//!
//! ```text
//! boot --servin PATH [--runs N] [--json FILE] [--budget FILE] [--instructions] [-- RUN-FLAGS...]
//! ```

use std::io::{Error, Result};
use std::path::PathBuf;
use std::process::ExitCode;

use servin_benches::boot::{self, Budget, Report, Subject};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("boot: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let (mut servin, mut runs, mut json, mut budget, mut instructions) = (None, 5_usize, None, None, false);
    let mut flags = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| Error::other(format!("{arg} needs a value")));
        match arg.as_str() {
            "--servin" => servin = Some(PathBuf::from(value()?)),
            "--runs" => runs = value()?.parse().map_err(Error::other)?,
            "--json" => json = Some(PathBuf::from(value()?)),
            "--budget" => budget = Some(Budget::read(&PathBuf::from(value()?))?),
            "--instructions" => instructions = true,
            "--" => {
                flags.extend(args);
                break;
            }
            _ => return Err(Error::other(format!("unknown argument {arg}"))),
        }
    }
    let servin = servin.ok_or_else(|| Error::other("--servin is missing"))?;
    let data_root = std::env::temp_dir().join(format!("servin-boot-{}", std::process::id()));
    let subject = Subject { servin, data_root: data_root.clone(), flags };
    let report = measure(&subject, runs, instructions);
    let _ = std::fs::remove_dir_all(&data_root);
    let report = report?;
    print!("{}", boot::table(&report));
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    let exceeded = budget.map(|budget| budget.exceeded(&report)).unwrap_or_default();
    for line in &exceeded {
        println!("OVER BUDGET: {line}");
    }
    Ok(exceeded.is_empty())
}

fn measure(subject: &Subject, runs: usize, instructions: bool) -> Result<Report> {
    subject.sample()?; // unpacks the image and fills the page cache
    let samples = (0..runs).map(|_| subject.sample()).collect::<Result<Vec<_>>>()?;
    let mut report = Report::new(boot::host(), instructions, samples)
        .ok_or_else(|| Error::other("--runs 0 measures nothing"))?;
    match boot::count(subject) {
        Ok(exits) => report.exits = Some(exits),
        Err(error) => eprintln!("boot: exits are not counted: {error}"),
    }
    report.memory = boot::resident(subject)?;
    Ok(report)
}
