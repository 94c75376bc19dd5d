//! Measures the boot of a container; `scripts/bench.sh` runs it in the nested host.
//!
//! ```text
//! boot --servin PATH [--runs N] [--json FILE] [--budget FILE] [--instructions] [-- RUN-FLAGS...]
//! ```

use std::io::{Error, Result};
use std::path::PathBuf;
use std::process::ExitCode;

use servin_benches::boot::{self, Budgets, Report, Start, Subject};

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
    let (mut servin, mut runs, mut json, mut budgets, mut instructions) = (None, 5_usize, None, None, false);
    let mut flags = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| Error::other(format!("{arg} needs a value")));
        match arg.as_str() {
            "--servin" => servin = Some(PathBuf::from(value()?)),
            "--runs" => runs = value()?.parse().map_err(Error::other)?,
            "--json" => json = Some(PathBuf::from(value()?)),
            "--budget" => budgets = Some(Budgets::read(&PathBuf::from(value()?))?),
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
    let subject =
        |start| Subject { servin: servin.clone(), data_root: data_root.clone(), flags: flags.clone(), start };
    let reports = [Start::Cold, Start::Warm].map(|start| measure(&subject(start), runs, instructions));
    let _ = std::fs::remove_dir_all(&data_root);
    let [cold, warm] = reports;
    let reports = Reports { cold: cold?, warm: warm? };
    for (name, value) in &reports.cold.host {
        println!("{name}: {value}");
    }
    for report in [&reports.cold, &reports.warm] {
        print!("{}", boot::table(report));
    }
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&reports)? + "\n")?;
    }
    let Some(budgets) = budgets else { return Ok(true) };
    let mut good = true;
    for (report, budget) in [(&reports.cold, &budgets.cold), (&reports.warm, &budgets.warm)] {
        for line in budget.exceeded(report) {
            println!("OVER BUDGET: {} start: {line}", report.start.name());
            good = false;
        }
    }
    Ok(good)
}

/// What the JSON file holds.
#[derive(serde::Serialize)]
struct Reports {
    cold: Report,
    warm: Report,
}

fn measure(subject: &Subject, runs: usize, instructions: bool) -> Result<Report> {
    subject.prepare()?;
    let samples = (0..runs).map(|_| subject.sample()).collect::<Result<Vec<_>>>()?;
    let mut report = Report::new(boot::host(), subject.start, instructions, samples)
        .ok_or_else(|| Error::other("--runs 0 measures nothing"))?;
    match boot::count(subject) {
        Ok(exits) => report.exits = Some(exits),
        Err(error) => eprintln!("boot: exits are not counted: {error}"),
    }
    report.memory = boot::resident(subject)?;
    Ok(report)
}
