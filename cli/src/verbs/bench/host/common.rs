//! Any other host: a run's end is the end of its row in the store, and a monitor's memory is told as one figure.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use servin_engine::store::Store;
use servin_engine::{Error, host};

/// What this host does not tell.
pub(in super::super) const LEFT_OUT: &[&str] = &[
    "processor time: a monitor is not this process's child",
    "memory of monitor and guest apart, and what is shared of it: the system tells one figure of a process",
    "a monitor's last moments, after its container is removed: they may be counted in the run that follows",
];

/// How often a run's end is looked for, and how long.
const TURN: Duration = Duration::from_millis(5);
const MOST: Duration = Duration::from_secs(60);

/// Nothing: only a process's parent hears of its end.
#[allow(clippy::unnecessary_wraps, reason = "as on Linux")]
pub(in super::super) fn adopt() -> io::Result<()> {
    Ok(())
}

/// Flags of a run by which its end is found.
pub(in super::super) fn flags(token: &str) -> Vec<&str> {
    vec!["--name", token]
}

/// Waits until the containers of these runs are gone: their end is not to be counted in the next run.
pub(in super::super) fn settle(data_root: &Path, tokens: &[String]) -> io::Result<()> {
    settle_within(data_root, tokens, MOST)
}

fn settle_within(data_root: &Path, tokens: &[String], most: Duration) -> io::Result<()> {
    let store = Store::open(data_root).map_err(io::Error::other)?;
    let until = Instant::now() + most;
    for token in tokens {
        loop {
            match store.containers().find(token) {
                Err(Error::NoSuchContainer { .. }) => break,
                Err(error) => return Err(io::Error::other(error)),
                Ok(_) if Instant::now() >= until => {
                    let why = format!("the container {token} did not end: see what it does, and remove it");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                Ok(_) => std::thread::sleep(TURN),
            }
        }
    }
    Ok(())
}

/// Nothing: see [`LEFT_OUT`].
#[allow(clippy::unnecessary_wraps, reason = "as on Linux")]
pub(in super::super) fn cpu_ms() -> io::Result<Option<f64>> {
    Ok(None)
}

/// Memory of one monitor in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(in super::super) struct Memory {
    /// Resident, of the monitor with its guest.
    pub(in super::super) resident_kib: u64,
}

impl Memory {
    /// Of the process `pid`.
    pub(in super::super) fn of(pid: i32) -> io::Result<Self> {
        let bytes = host::resident(pid).ok_or_else(|| io::Error::other("it has ended"))?;
        Ok(Self { resident_kib: bytes / 1024 })
    }

    /// The table of several, each with what it takes, in MiB, and a line below it.
    pub(in super::super) fn table(all: &[Self]) -> (Vec<Vec<String>>, String) {
        let lines = vec![
            vec!["memory of a container (MiB)".to_owned(), "resident".into()],
            vec!["monitor and guest".into(), super::mean_mib(all, |m| m.resident_kib)],
        ];
        (lines, format!("mean of {} at the same time\n", all.len()))
    }
}

#[cfg(test)]
mod tests {
    use servin_engine::store::{Record, State};

    use super::*;

    #[test]
    fn a_run_is_over_when_its_container_is_gone_and_one_that_stays_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let record = Record {
            id: "0a".repeat(32),
            name: "bench-1-0".into(),
            image: None,
            config: "{}".into(),
            state: State::Running,
            pid: None,
            exit_code: None,
            oom: false,
            error: String::new(),
            created_ns: 1,
            started_ns: None,
            finished_ns: None,
            restarts: 0,
        };
        store.containers().insert(&record).unwrap();
        let tokens = ["bench-1-1".to_owned(), record.name.clone()];
        let stays = settle_within(dir.path(), &tokens, Duration::ZERO).unwrap_err();
        assert_eq!(stays.kind(), io::ErrorKind::TimedOut);
        assert!(stays.to_string().contains("bench-1-0"), "{stays}");
        std::thread::scope(|scope| {
            let settled = scope.spawn(|| settle(dir.path(), &tokens));
            assert!(store.containers().remove(&record.id).unwrap());
            settled.join().unwrap().unwrap();
        });
        assert_eq!(flags("bench-1-0"), ["--name", "bench-1-0"]);
        adopt().unwrap();
    }

    #[test]
    fn a_process_has_memory_until_it_ends_and_no_processor_time_is_made_up() {
        let own = Memory::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.resident_kib > 0);
        assert!(Memory::of(i32::MAX).is_err());
        assert_eq!(cpu_ms().unwrap(), None);
        assert!(LEFT_OUT[0].starts_with("processor time"));
        let (lines, below) = Memory::table(&[Memory { resident_kib: 1024 }, Memory { resident_kib: 3072 }]);
        assert_eq!((lines[1][1].trim(), below.as_str()), ("2.00", "mean of 2 at the same time\n"));
    }
}
