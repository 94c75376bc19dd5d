//! What a container may use and do: limits of its cgroup and its processes, privileges, kernel settings.

use serde::{Deserialize, Serialize};
use servin_init::proto::{self, Capabilities, CpuLimit, Exec, Rlimit};

use super::{Cpus, capability};

/// Period of a processor quota in microseconds, docker's, where nobody says another.
pub const PERIOD_US: u32 = 100_000;

/// Limits besides memory and processors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes that the kernel takes from the container last.
    pub memory_reservation: Option<u64>,
    /// Bytes of memory and swap together, or -1. The guest has no swap, so that it is kept whatever it is.
    pub memory_swap: Option<i64>,
    /// The weight of the machine among others of this host; 1024 is usual.
    pub cpu_shares: Option<u64>,
    /// Microseconds of each period, where processor time was said so; the request has it as processors.
    pub cpu_quota: Option<u64>,
    /// Microseconds; [`PERIOD_US`] without.
    pub cpu_period: Option<u32>,
    /// Limits of each process.
    pub ulimits: Vec<Ulimit>,
    /// Bytes of /dev/shm.
    pub shm_size: Option<u64>,
    /// How ready the kernel is to kill the container's processes for want of memory.
    pub oom_score_adj: Option<i32>,
    /// Kernel settings by name, with dots.
    pub sysctls: Vec<(String, String)>,
}

/// One limit of setrlimit(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// As docker names it, `nofile`.
    pub name: String,
    /// Soft limit; `u64::MAX` is none.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is none.
    pub hard: u64,
}

/// Names by number (`RLIMIT_*`).
const ULIMITS: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

impl Ulimit {
    /// Reads `NAME=SOFT[:HARD]`; -1 or `unlimited` is no limit.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, values) = text.split_once('=').ok_or("it looks like nofile=1024:2048")?;
        if !ULIMITS.contains(&name) {
            return Err(format!("\"{name}\" is none of {}", ULIMITS.join(", ")));
        }
        let number = |text: &str| match text {
            "-1" | "unlimited" => Ok(u64::MAX),
            _ => text.parse::<u64>().map_err(|_| format!("\"{text}\" is no number")),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (number(soft)?, number(hard)?);
        if soft > hard {
            return Err("the soft limit is above the hard one".into());
        }
        Ok(Ulimit { name: name.to_owned(), soft, hard })
    }
}

impl Limits {
    /// The limits of the cgroup, together with memory and processors.
    pub(crate) fn cgroup(&self, memory: u64, cpus: Cpus) -> proto::Limits {
        let mut files = Vec::new();
        if let Some(bytes) = self.memory_reservation {
            files.push(("memory.low".to_owned(), bytes.to_string()));
        }
        if let Some(shares) = self.cpu_shares {
            files.push(("cpu.weight".to_owned(), weight(shares).to_string()));
        }
        let period_us = self.cpu_period.unwrap_or(PERIOD_US);
        proto::Limits {
            memory_max: Some(memory),
            pids_max: self.pids,
            cpu: cpus.quota_us(period_us).map(|quota_us| CpuLimit { quota_us, period_us }),
            files,
        }
    }

    /// Kernel settings by their path.
    pub(crate) fn sysctls(&self) -> Vec<(String, String)> {
        // Dots separate; a slash in a name stands for a dot in the file's (sysctl(8)).
        let swap = |name: &str| {
            name.chars()
                .map(|c| {
                    if c == '.' {
                        '/'
                    } else if c == '/' {
                        '.'
                    } else {
                        c
                    }
                })
                .collect()
        };
        self.sysctls.iter().map(|(name, value)| (swap(name), value.clone())).collect()
    }

    /// How much nicer than others the monitor is, so that machines of few shares get less of the host.
    #[must_use]
    pub fn niceness(&self) -> i32 {
        // A step of nice is a factor of 1.25.
        let shares = self.cpu_shares.filter(|shares| *shares > 0).unwrap_or(1024);
        let steps = (1024.0 / shares as f64).ln() / 1.25_f64.ln();
        steps.round().clamp(-20.0, 19.0) as i32
    }
}

/// cpu.weight of cgroup v2 for docker's shares, as its runtimes convert them.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// What the container's programs may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Privileges {
    /// Capabilities to have, as [`capability::canonical`] writes them.
    pub cap_add: Vec<String>,
    /// Capabilities not to have.
    pub cap_drop: Vec<String>,
    /// Everything: all capabilities, /proc and /sys as the kernel shows them, writable.
    pub privileged: bool,
    /// No program gains privileges by being executed.
    pub no_new_privileges: bool,
    /// Further groups of the user, by name or number.
    pub groups: Vec<String>,
}

impl Privileges {
    /// The capabilities.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        if self.privileged { capability::EVERY } else { capability::set(&self.cap_add, &self.cap_drop) }
    }
}

/// Gives a program what its container may use and do.
pub(crate) fn bound(exec: Exec, limits: &Limits, privileges: &Privileges) -> Exec {
    let number = |name: &str| ULIMITS.iter().position(|known| *known == name);
    let rlimits = limits.ulimits.iter().filter_map(|limit| {
        let resource = u8::try_from(number(&limit.name)?).ok()?;
        Some(Rlimit { resource, soft: limit.soft, hard: limit.hard })
    });
    Exec {
        groups: privileges.groups.clone(),
        capabilities: privileges.capabilities(),
        rlimits: rlimits.collect(),
        no_new_privileges: privileges.no_new_privileges,
        oom_score_adj: limits.oom_score_adj,
        ..exec
    }
}

/// What `update` changes of a container. `None` is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Update {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processor time; with it go the two below, if only to be forgotten.
    pub cpus: Option<Cpus>,
    /// See [`Limits::cpu_quota`].
    pub cpu_quota: Option<u64>,
    /// See [`Limits::cpu_period`].
    pub cpu_period: Option<u32>,
    /// Processes and threads; `u64::MAX` for no limit.
    pub pids: Option<u64>,
    /// See [`Limits::memory_reservation`].
    pub memory_reservation: Option<u64>,
    /// See [`Limits::memory_swap`].
    pub memory_swap: Option<i64>,
    /// See [`Limits::cpu_shares`].
    pub cpu_shares: Option<u64>,
    /// What happens when the program ends.
    pub restart: Option<super::Restart>,
}

impl Update {
    /// Writes it into a request.
    pub fn apply(&self, request: &mut super::Request) {
        let limits = &mut request.limits;
        if let Some(memory) = self.memory {
            request.memory = memory;
        }
        if let Some(cpus) = self.cpus {
            request.cpus = cpus;
            (limits.cpu_quota, limits.cpu_period) = (self.cpu_quota, self.cpu_period);
        }
        if let Some(pids) = self.pids {
            limits.pids = Some(pids).filter(|pids| *pids != u64::MAX);
        }
        limits.memory_reservation = self.memory_reservation.or(limits.memory_reservation);
        limits.memory_swap = self.memory_swap.or(limits.memory_swap);
        limits.cpu_shares = self.cpu_shares.or(limits.cpu_shares);
        request.restart = self.restart.unwrap_or(request.restart);
    }

    /// Whether it changes a limit, so that the guest is to be told.
    pub(crate) fn has_limits(&self) -> bool {
        *self != Update { restart: self.restart, ..Update::default() }
    }

    /// What the guest is told.
    pub(crate) fn cgroup(&self) -> proto::Limits {
        let limits = Limits {
            pids: self.pids,
            memory_reservation: self.memory_reservation,
            cpu_shares: self.cpu_shares,
            ..Limits::default()
        };
        let period_us = self.cpu_period.unwrap_or(PERIOD_US);
        proto::Limits {
            memory_max: self.memory,
            cpu: self.cpus.map(|cpus| CpuLimit {
                quota_us: cpus.quota_us(period_us).unwrap_or_else(|| cpus.count().saturating_mul(period_us)),
                period_us,
            }),
            ..limits.cgroup(0, Cpus::ONE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{Request, RootSource};

    #[test]
    fn ulimits_are_read_as_docker_writes_them() {
        let of = |text: &str| Ulimit::parse(text).map(|limit| (limit.soft, limit.hard));
        assert_eq!(of("nofile=10:20"), Ok((10, 20)));
        assert_eq!(of("nproc=7"), Ok((7, 7)));
        assert_eq!(of("memlock=-1:unlimited"), Ok((u64::MAX, u64::MAX)));
        for bad in ["nofile", "nofile=", "files=1", "nofile=2:1", "nofile=a", "nofile=1:2:3"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_program_is_bound_by_what_its_container_may() {
        let limits = Limits {
            ulimits: vec![Ulimit::parse("nofile=10:20").unwrap()],
            oom_score_adj: Some(5),
            ..Limits::default()
        };
        let privileges =
            Privileges { privileged: true, groups: vec!["audio".into()], ..Privileges::default() };
        let exec = bound(Exec::default(), &limits, &privileges);
        assert_eq!(exec.rlimits, [Rlimit { resource: 7, soft: 10, hard: 20 }]);
        assert_eq!((exec.oom_score_adj, exec.capabilities), (Some(5), capability::EVERY));
        assert_eq!(exec.groups, ["audio"]);
    }

    #[test]
    fn shares_become_a_weight_and_a_niceness() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
        let nice = |shares| Limits { cpu_shares: shares, ..Limits::default() }.niceness();
        assert_eq!([None, Some(1024), Some(512), Some(2), Some(4096)].map(nice), [0, 0, 3, 19, -6]);
    }

    #[test]
    fn settings_are_paths_for_the_guest() {
        let sysctls = vec![("net.ipv4.conf.eth0/1.forwarding".to_owned(), "1".to_owned())];
        let limits = Limits { sysctls, ..Limits::default() };
        assert_eq!(limits.sysctls()[0].0, "net/ipv4/conf/eth0.1/forwarding");
    }

    #[test]
    fn an_update_changes_what_it_names_and_nothing_else() {
        let mut request = Request::new(RootSource::Directory("/r".into()));
        request.limits.pids = Some(5);
        request.limits.cpu_shares = Some(7);
        let before = request.memory;
        Update { pids: Some(u64::MAX), cpus: Some(Cpus { nano: 500_000_000 }), ..Update::default() }
            .apply(&mut request);
        assert_eq!((request.limits.pids, request.cpus.nano), (None, 500_000_000));
        assert_eq!((request.memory, request.limits.cpu_shares), (before, Some(7)));
    }

    #[test]
    fn the_guest_is_told_of_a_quota_even_of_whole_processors() {
        let told = Update { cpus: Some(Cpus { nano: 2_000_000_000 }), ..Update::default() }.cgroup();
        assert_eq!(told.cpu, Some(CpuLimit { quota_us: 200_000, period_us: 100_000 }));
        assert_eq!((told.memory_max, told.pids_max, told.files.len()), (None, None, 0));
    }

    #[test]
    fn a_quota_has_the_period_that_was_said_with_it() {
        let (quota, period) = (10_000, 30_000);
        let cpus = Cpus::of_quota(quota, period);
        let update = Update {
            cpus: Some(cpus),
            cpu_quota: Some(quota),
            cpu_period: Some(period),
            ..Update::default()
        };
        let limit = Some(CpuLimit { quota_us: 10_000, period_us: 30_000 });
        assert_eq!(update.cgroup().cpu, limit);
        let mut request = Request::new(RootSource::Directory("/r".into()));
        update.apply(&mut request);
        assert_eq!(request.limits.cgroup(0, request.cpus).cpu, limit);
        // Whole processors need none, but where there was one.
        let whole = Update { cpus: Some(Cpus::of_quota(60_000, period)), ..update };
        assert_eq!(whole.cgroup().cpu, Some(CpuLimit { quota_us: 60_000, period_us: 30_000 }));
        assert_eq!(request.limits.cgroup(0, Cpus::of_quota(60_000, period)).cpu, None);
        // Said in processors again.
        Update { cpus: Some(cpus), ..Update::default() }.apply(&mut request);
        assert_eq!((request.limits.cpu_quota, request.limits.cpu_period), (None, None));
    }
}
