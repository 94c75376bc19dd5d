//! `servin bench boot`: how fast containers start on this host, and what they cost.
//!
//! Every run is a process of its own, as a user would start it, and has to print a token that no other run prints. One that
//! did anything else, or started in another way than its series asks for, is refused and makes the command fail.

mod host;
mod peer;
mod plot;
mod report;
mod sample;
mod stats;

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use servin_engine::guest::Guest;
use servin_engine::host::{Kind, hypervisor_kind};
use servin_engine::store::Store;

use self::host::Memory;
use self::peer::{Boots, Monitor};
use self::report::{Report, Series};
use self::sample::{Start, Subject};
use crate::args::{Bench, Global};
use crate::error::{Error, Result};
use crate::output;

/// Most containers and runs at a time.
const MOST: u32 = 1000;

/// What was asked for, checked.
#[derive(Debug, Clone, PartialEq)]
struct Plan {
    runs: u32,
    starts: Vec<Start>,
    concurrency: Vec<u32>,
    machines: u32,
    budget_ms: Option<f64>,
    percentile: u32,
    against: Vec<Monitor>,
}

impl Plan {
    fn new(typed: &Bench) -> Result<Self> {
        let number = |flag: &'static str, text: Option<&str>, default: u32, least: u32| {
            let Some(text) = text else { return Ok(default) };
            text.trim().parse().ok().filter(|n| (least..=MOST).contains(n)).ok_or_else(|| Error::Value {
                flag,
                value: text.to_owned(),
                why: format!("a number from {least} to {MOST}"),
                code: 1,
            })
        };
        let starts = match typed.start.as_deref() {
            None | Some("both") => vec![Start::Cold, Start::Warm],
            Some("cold") => vec![Start::Cold],
            Some("warm") => vec![Start::Warm],
            Some("none") => Vec::new(),
            Some(other) => return Err(bad("--start", other, "warm, cold, both or none")),
        };
        let percentile = match typed.percentile.as_deref() {
            None => 95,
            Some(text) => match text.trim_start_matches('p') {
                "50" => 50,
                "95" => 95,
                "99" => 99,
                _ => return Err(bad("--percentile", text, "50, 95 or 99")),
            },
        };
        let against = match typed.against.as_deref() {
            None => Vec::new(),
            Some(_) if !cfg!(all(target_arch = "x86_64", target_os = "linux")) => {
                let what =
                    format!("bench boot --against on {}, {}", std::env::consts::OS, std::env::consts::ARCH);
                return Err(Error::NotBuilt { what, code: 1 });
            }
            Some(names) => peer::monitors(names, std::env::var_os("PATH").as_deref())
                .map_err(|why| bad("--against", names, &why))?,
        };
        let levels = typed.concurrency.as_deref().unwrap_or("1");
        Ok(Plan {
            runs: number("--runs", typed.runs.as_deref(), 20, 1)?,
            starts,
            concurrency: levels
                .split(',')
                .map(|level| number("--concurrency", Some(level), 1, 1))
                .collect::<Result<_>>()?,
            machines: number("--machines", typed.machines.as_deref(), 4, 0)?,
            budget_ms: typed.budget.as_deref().map(milliseconds).transpose()?,
            percentile,
            against,
        })
    }
}

fn bad(flag: &'static str, value: &str, why: &str) -> Error {
    Error::Value { flag, value: value.to_owned(), why: why.to_owned(), code: 1 }
}

/// `25ms`, `1.5s`, `800us`.
fn milliseconds(text: &str) -> Result<f64> {
    let units = [("ms", 1.0), ("us", 1e-3), ("s", 1e3)];
    units
        .iter()
        .find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.trim().parse::<f64>().ok()? * factor))
        .filter(|ms| ms.is_finite() && *ms > 0.0)
        .ok_or_else(|| bad("--budget", text, "a time such as 25ms or 1.5s"))
}

/// Measures, prints, and fails when a run was refused or the budget is exceeded.
pub(crate) fn run(global: &Global, typed: &Bench) -> Result<u8> {
    let plan = Plan::new(typed)?;
    let fail = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Host { what, source, code: 1 }
    };
    let subject = Subject {
        servin: std::env::current_exe().map_err(fail("find this program"))?,
        data_root: super::data_root(global)?,
        image: typed.image.clone().unwrap_or_else(|| "servin/base".to_owned()),
        flags: typed.flags.clone(),
    };
    host::adopt().map_err(fail("adopt monitors"))?;
    let mut series = Vec::new();
    for &start in &plan.starts {
        warm_up(&subject, start).map_err(fail("make a first run, which is not counted"))?;
        for &level in &plan.concurrency {
            series.push(measure(&subject, start, level, plan.runs).map_err(fail("measure"))?);
        }
    }
    let memory = containers(&subject, plan.machines)?;
    let boots = against(&plan).map_err(fail("boot on other monitors"))?;
    let mut report = Report::new(&subject, hypervisor_kind().map_or("none", Kind::name), series, memory);
    report.against = boots;
    if let Some(path) = &typed.svg {
        std::fs::write(path, plot::draw(&report)).map_err(fail(&format!("write {}", path.display())))?;
    }
    output::text(&if typed.json { report.json()? } else { report.table() });
    let mut code = 0;
    for series in &report.series {
        for why in &series.refused {
            output::line(&format!("a {} run does not count: {why}", series.start.name()), None);
            code = 1;
        }
    }
    for boots in &report.against {
        for why in &boots.refused {
            output::line(&format!("a boot on {} does not count: {why}", boots.monitor.name()), None);
            code = 1;
        }
    }
    if let Some(budget) = plan.budget_ms {
        for line in report.over(budget, plan.percentile) {
            output::line(&line, None);
            code = 1;
        }
    }
    Ok(code)
}

/// Boots the same guest on our monitor and the others that were asked for.
fn against(plan: &Plan) -> io::Result<Vec<Boots>> {
    if plan.against.is_empty() {
        return Ok(Vec::new());
    }
    let kernel = Guest::find(None).map_err(io::Error::other)?.kernel;
    let guest = peer::Guest::new(&kernel, &std::env::temp_dir())?;
    peer::measure(plan.against.clone(), &guest, plan.runs, token)
}

/// Boots a kernel with its serial port on the standard output, until the guest ends.
pub(crate) fn monitor(kernel: &OsStr, initramfs: &OsStr, words: &str) -> Result<u8> {
    peer::boot(Path::new(kernel), Path::new(initramfs), words).map(|()| 0).map_err(|error| Error::Host {
        what: "run the machine".into(),
        source: error,
        code: 1,
    })
}

/// Runs that are not counted: what is unpacked, made and learned by the first ones is not in the figures.
fn warm_up(subject: &Subject, start: Start) -> io::Result<()> {
    let times = if start == Start::Warm { 3 } else { 1 };
    for _ in 0..times {
        let token = token();
        subject.sample(None, &token)?;
        host::settle(&subject.data_root, &[token])?;
    }
    Ok(())
}

/// A text that no other run prints.
fn token() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("bench-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn measure(subject: &Subject, start: Start, level: u32, runs: u32) -> io::Result<Series> {
    let began = Instant::now();
    let cpu_before = host::cpu_ms()?;
    let (mut samples, mut refused) = (Vec::new(), Vec::new());
    let mut left = runs;
    while left > 0 {
        let now = left.min(level);
        left -= now;
        let tokens: Vec<_> = (0..now).map(|_| token()).collect();
        let results: Vec<io::Result<_>> = if let [token] = &tokens[..] {
            vec![subject.sample(Some(start), token)]
        } else {
            std::thread::scope(|scope| {
                let threads: Vec<_> =
                    tokens.iter().map(|token| scope.spawn(|| subject.sample(Some(start), token))).collect();
                let joined = threads.into_iter().map(|thread| thread.join());
                joined.map(|done| done.unwrap_or_else(|_| Err(io::Error::other("a panic")))).collect()
            })
        };
        // All of this batch's commands are waited for; only monitors are left.
        host::settle(&subject.data_root, &tokens)?;
        for result in results {
            match result {
                Ok(sample) => samples.push(sample),
                Err(error) => refused.push(error.to_string()),
            }
        }
    }
    let wall_s = began.elapsed().as_secs_f64();
    let taken = host::cpu_ms()?.zip(cpu_before).map(|(after, before)| after - before);
    let cpu_ms = taken.map(|ms| ms / f64::from(runs));
    Ok(Series::new(start, level, samples, refused, wall_s, cpu_ms))
}

/// Starts containers that stand still, reads their monitors' memory and removes them.
fn containers(subject: &Subject, count: u32) -> Result<Vec<Memory>> {
    let fail = |what: &str, why: String| Error::Host {
        what: what.to_owned(),
        source: io::Error::other(why),
        code: 1,
    };
    let mut ids = Vec::new();
    let mut failed = None;
    for _ in 0..count {
        let done = subject.run(&["-d", "--rm"], &["sleep", "1000000"]).stderr(Stdio::piped()).output();
        match done {
            Ok(done) if done.status.success() => {
                ids.push(String::from_utf8_lossy(&done.stdout).trim().to_owned());
            }
            Ok(done) => failed = Some(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
            Err(error) => failed = Some(error.to_string()),
        }
        if failed.is_some() {
            break;
        }
    }
    let found = Store::open(&subject.data_root).map_err(Error::from).and_then(|store| {
        let memory = |id: &String| {
            let ended = || fail("read a monitor's memory", format!("that of container {id} has ended"));
            let pid = store.containers().find(id)?.pid.ok_or_else(ended)?;
            Memory::of(pid).map_err(|error| fail("read a monitor's memory", error.to_string()))
        };
        ids.iter().map(memory).collect::<Result<Vec<_>>>()
    });
    if !ids.is_empty() {
        let mut remove = std::process::Command::new(&subject.servin);
        remove.env("SERVIN_DATA_ROOT", &subject.data_root).args(["rm", "-f"]).args(&ids);
        let _ = remove.stdout(Stdio::null()).stderr(Stdio::null()).status();
        host::settle(&subject.data_root, &ids)
            .map_err(|error| fail("remove containers that stand still", error.to_string()))?;
    }
    match failed {
        Some(why) => Err(fail("start a container that stands still", why)),
        None => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_checked_before_anything_runs() {
        let plan = |change: fn(&mut Bench)| {
            let mut typed = Bench::default();
            change(&mut typed);
            Plan::new(&typed)
        };
        let all = plan(|typed| {
            typed.concurrency = Some("1, 4,16".into());
            typed.budget = Some("1.5s".into());
            typed.start = Some("warm".into());
            typed.percentile = Some("p99".into());
        });
        let all = all.unwrap();
        assert_eq!((all.concurrency, all.budget_ms, all.percentile), (vec![1, 4, 16], Some(1500.0), 99));
        assert_eq!((all.starts, all.runs, all.machines), (vec![Start::Warm], 20, 4));
        assert!(plan(|typed| typed.runs = Some("0".into())).is_err());
        assert!(plan(|typed| typed.concurrency = Some("1,,2".into())).is_err());
        assert!(plan(|typed| typed.budget = Some("25".into())).is_err());
        assert!(plan(|typed| typed.budget = Some("-1ms".into())).is_err());
        assert!(plan(|typed| typed.start = Some("tepid".into())).is_err());
        assert!(plan(|typed| typed.percentile = Some("42".into())).is_err());
        assert_eq!(milliseconds("800us").unwrap(), 0.8);
    }

    #[test]
    fn tokens_differ() {
        assert_ne!(token(), token());
    }
}
