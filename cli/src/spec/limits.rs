//! What the flags mean that say what a container may use and do.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

use servin_engine::container::{Cpus, LEAST_MEMORY, MOST_CPUS, PERIOD_US, Request, Ulimit, capability};
use servin_engine::monitor::log::LogOptions;

use super::run::value;
use super::{Host, size};
use crate::args;
use crate::error::{Error, Result};

/// Settings that are the guest's own, or would end it.
const NO_SYSCTLS: &[&str] = &["kernel.hostname", "kernel.domainname"];

/// Said where a command says processor time in one number and in two.
pub(crate) const TWICE: &str =
    "--cpus says in one number what --cpu-quota and --cpu-period say in two: leave one of them out";

/// Puts the flags into the request.
pub(super) fn fill(request: &mut Request, typed: &args::Limits, cwd: &Path, host: &dyn Host) -> Result<()> {
    for (flag, word) in &typed.one {
        let fail = value(flag, word);
        let text = word.to_str().ok_or_else(|| fail("it is not valid UTF-8".into()))?;
        one(request, flag, text).map_err(fail)?;
    }
    for (flag, word) in &typed.many {
        let fail = value(flag, word);
        if *flag == "--label-file" {
            let content = host.read(&cwd.join(word)).map_err(|source| Error::Host {
                what: format!("read --label-file {}", word.display()),
                source,
                code: 125,
            })?;
            // Those of the command line win: they come later.
            let labels = labels(&content).map_err(fail)?;
            request.labels.splice(..0, labels);
            continue;
        }
        let text = word.to_str().ok_or_else(|| fail("it is not valid UTF-8".into()))?;
        many(request, flag, text).map_err(fail)?;
    }
    request.init = typed.init;
    request.privileges.privileged = typed.privileged;
    request.health.disabled = typed.no_healthcheck;
    let health = &request.health;
    let conflict = |what: &str| Error::Usage { what: what.into(), verb: "run".into() };
    if health.disabled && typed.one.iter().any(|(flag, _)| flag.starts_with("--health-")) {
        return Err(conflict("--no-healthcheck and other flags of health checks exclude each other"));
    }
    if request.log.is_none() && (request.log.max_size.is_some() || request.log.max_file.is_some()) {
        return Err(conflict("--log-opt says how a log is kept, and --log-driver none that there is none"));
    }
    if request.limits.memory_reservation.is_some_and(|least| least > request.memory) {
        return Err(conflict("--memory-reservation is above the memory limit (-m)"));
    }
    if request.limits.memory_swap.is_some_and(|all| all >= 0 && all.unsigned_abs() < request.memory) {
        return Err(conflict(
            "--memory-swap is memory and swap together, and less than the memory limit (-m)",
        ));
    }
    Ok(())
}

fn one(request: &mut Request, flag: &str, text: &str) -> Result<(), String> {
    let limits = &mut request.limits;
    let health = &mut request.health;
    match flag {
        "--pids-limit" => limits.pids = pids(text)?,
        "--shm-size" => limits.shm_size = Some(size::bytes(text)?),
        "--memory-swap" => limits.memory_swap = Some(swap(text)?),
        "--memory-reservation" => limits.memory_reservation = Some(reservation(text)?),
        "--cpu-shares" => limits.cpu_shares = Some(shares(text)?),
        "--oom-score-adj" => {
            let score = text.parse().ok().filter(|score| (-1000..=1000).contains(score));
            limits.oom_score_adj = Some(score.ok_or("it is a number from -1000 to 1000")?);
        }
        // A quota has a period: [`time`].
        "--cpu-quota" => limits.cpu_quota = quota(text)?,
        "--cpu-period" => limits.cpu_period = Some(period(text)?),
        "--domainname" => {
            let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if text.len() > 64 || !text.chars().all(fits) {
                return Err("it has letters, digits, - and dots, at most 64 of them".into());
            }
            request.domainname = Some(text.to_owned()).filter(|name| !name.is_empty());
        }
        "--log-driver" => match text {
            "json-file" | "local" | "none" => request.log.driver = text.to_owned(),
            _ => return Err("it is json-file, local or none".into()),
        },
        "--health-cmd" => health.command = Some(text.to_owned()).filter(|line| !line.is_empty()),
        "--health-interval" => health.interval = Some(check_time(text)?),
        "--health-timeout" => health.timeout = Some(check_time(text)?),
        "--health-retries" => {
            health.retries = Some(text.parse().map_err(|_| "it is a number, not below 0".to_owned())?);
        }
        "--health-start-period" => health.start_period = Some(check_time(text)?),
        _ => health.start_interval = Some(check_time(text)?),
    }
    Ok(())
}

/// A value of `--cpu-quota`; as with docker, 0 and less are no limit.
pub(crate) fn quota(text: &str) -> Result<Option<u64>, String> {
    let number: i64 = text.parse().map_err(|_| "it is a number of microseconds".to_owned())?;
    Ok(u64::try_from(number).ok().filter(|quota| *quota > 0))
}

/// A value of `--cpu-period`.
pub(crate) fn period(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1000..=1_000_000).contains(number));
    number.ok_or_else(|| "it is a number of microseconds from 1000 to 1000000".to_owned())
}

/// The processors that a quota makes.
pub(crate) fn time(quota: u64, period: Option<u32>) -> Result<Cpus, String> {
    let period = period.unwrap_or(PERIOD_US);
    let (least, most) = (u64::from(period / 100).max(1000), u64::from(MOST_CPUS) * u64::from(period));
    if !(least..=most).contains(&quota) {
        return Err(format!("it is a number of microseconds from {least} to {most}"));
    }
    Ok(Cpus::of_quota(quota, period))
}

fn many(request: &mut Request, flag: &str, text: &str) -> Result<(), String> {
    let privileges = &mut request.privileges;
    match flag {
        "--ulimit" => {
            let limit = Ulimit::parse(text)?;
            let limits = &mut request.limits.ulimits;
            limits.retain(|other| other.name != limit.name);
            limits.push(limit);
        }
        "--cap-add" => privileges.cap_add.push(capability::canonical(text)?),
        "--cap-drop" => privileges.cap_drop.push(capability::canonical(text)?),
        "--security-opt" => {
            match text.split_once([':', '=']).unwrap_or((text, "true")) {
                ("no-new-privileges", "true") => privileges.no_new_privileges = true,
                ("no-new-privileges", "false") => privileges.no_new_privileges = false,
                // It is so anyway.
                ("seccomp" | "apparmor", "unconfined") | ("label", "disable") => {}
                _ => {
                    return Err("there are no-new-privileges, seccomp=unconfined and apparmor=unconfined: a container's \
                     kernel is its own, and no profile is needed between it and the host"
                    .into());
                }
            }
        }
        "--sysctl" => {
            let (name, value) = text.split_once('=').ok_or("it looks like NAME=VALUE")?;
            let name = name.trim();
            let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            if !name.chars().all(fits) || name.split('.').any(|word| word.is_empty() || word.contains("..")) {
                return Err("a name looks like net.core.somaxconn".into());
            }
            if NO_SYSCTLS.contains(&name) {
                return Err("use --hostname or --domainname".into());
            }
            request.limits.sysctls.push((name.to_owned(), value.trim().to_owned()));
        }
        "--group-add" => {
            if text.is_empty() || text.contains([':', ',', '\n']) {
                return Err("it is a group by name or number".into());
            }
            privileges.groups.push(text.to_owned());
        }
        "--add-host" => request.hosts.push(added_host(text)?),
        _ => log_option(&mut request.log, text)?,
    }
    Ok(())
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`.
fn added_host(text: &str) -> Result<(String, String), String> {
    let (name, address) = text.split_once(['=', ':']).ok_or("it looks like NAME:ADDRESS")?;
    let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return Err("the name is empty, or none".into());
    }
    if address == "host-gateway" {
        return Ok((name.to_owned(), host_address()?.to_string()));
    }
    let address: IpAddr = address.parse().map_err(|_| format!("\"{address}\" is no IP address"))?;
    Ok((name.to_owned(), address.to_string()))
}

/// The address that this host has on its way out, by which containers reach what listens on all its addresses. No packet
/// is sent.
fn host_address() -> Result<IpAddr, String> {
    // An address for documentation: any that is not here will do.
    let ask = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    };
    match ask() {
        Ok(address) if !address.ip().is_loopback() => Ok(address.ip()),
        _ => Err("host-gateway: this host has no address that leads out; write the address".into()),
    }
}

fn log_option(log: &mut LogOptions, text: &str) -> Result<(), String> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("max-size", "-1") => log.max_size = Some(u64::MAX),
        ("max-size", size) => {
            let bytes = size::bytes(size).map_err(|why| format!("max-size: {why}"))?;
            log.max_size = Some(bytes).filter(|bytes| *bytes > 0);
            log.max_size.ok_or("max-size is above 0, or -1 for no limit")?;
        }
        ("max-file", number) => {
            let number = number.parse().ok().filter(|number| (1..=1000).contains(number));
            log.max_file = Some(number.ok_or("max-file is a number from 1 to 1000")?);
        }
        (name, _) => return Err(format!("\"{name}\" is not known: max-size and max-file are")),
    }
    Ok(())
}

/// One label a line, `NAME=VALUE` or `NAME`; `#` begins a comment.
fn labels(content: &[u8]) -> Result<Vec<(String, String)>, String> {
    let text = std::str::from_utf8(content).map_err(|_| "it is not valid UTF-8".to_owned())?;
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(format!("\"{line}\" is no label"));
            }
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect()
}

/// A number of processes; 0 and -1 are no limit.
pub(crate) fn pids(text: &str) -> Result<Option<u64>, String> {
    match text.parse::<i64>() {
        Ok(-1 | 0) => Ok(None),
        Ok(number @ 1..) => Ok(Some(number.unsigned_abs())),
        _ => Err("it is a number, or -1 for no limit".into()),
    }
}

/// Memory and swap together, or -1.
pub(crate) fn swap(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    i64::try_from(size::bytes(text)?).map_err(|_| "that is more than can be counted".into())
}

/// Memory that is taken last.
pub(crate) fn reservation(text: &str) -> Result<u64, String> {
    match size::bytes(text)? {
        bytes if bytes < LEAST_MEMORY => Err("the least is 6m".into()),
        bytes => Ok(bytes),
    }
}

/// Docker's shares.
pub(crate) fn shares(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (2..=262_144).contains(number));
    number.ok_or_else(|| "it is a number from 2 to 262144".into())
}

/// A time of a check: 0, which is the default, or at least a millisecond.
fn check_time(text: &str) -> Result<u64, String> {
    match duration(text)? {
        nanos if nanos > 0 && nanos < 1_000_000 => Err("the least is 1ms".into()),
        nanos => Ok(nanos),
    }
}

/// Nanoseconds of a duration as Go writes it: `1h30m`, `1.5s`, `300ms`.
pub(crate) fn duration(text: &str) -> Result<u64, String> {
    let bad = || format!("\"{text}\" is no duration: it looks like 1m30s or 500ms");
    if text == "0" {
        return Ok(0);
    }
    let (mut rest, mut total) = (text, 0_u64);
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (value, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let scale = match unit {
            "h" => 3_600_000_000_000_u64,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" | "µs" | "μs" => 1000,
            "ns" => 1,
            _ => return Err(bad()),
        };
        let billionths = u128::from(size::nano(value).map_err(|_| bad())?);
        let nanos = billionths * u128::from(scale) / 1_000_000_000;
        total = u64::try_from(nanos).ok().and_then(|nanos| total.checked_add(nanos)).ok_or_else(bad)?;
        rest = after;
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, nanos) in [
            ("0", 0),
            ("30s", 30_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("300ms", 300_000_000),
            ("2us3ns", 2003),
        ] {
            assert_eq!(duration(text), Ok(nanos), "{text}");
        }
        for bad in ["", "5", "s", "1x", "-1s", "1s2", "99999999999h", "1..5s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_of_the_hosts_file_have_a_name_and_an_address() {
        let pair = |name: &str, address: &str| Ok((name.to_owned(), address.to_owned()));
        assert_eq!(added_host("db:10.0.0.1"), pair("db", "10.0.0.1"));
        assert_eq!(added_host("v6:::1"), pair("v6", "::1"));
        assert_eq!(added_host("v6=[fe80::1]"), pair("v6", "fe80::1"));
        match added_host("host.docker.internal:host-gateway") {
            Ok((name, address)) => {
                assert_eq!(name, "host.docker.internal");
                assert!(!address.parse::<IpAddr>().unwrap().is_loopback(), "{address}");
            }
            Err(why) => assert!(why.contains("no address that leads out"), "{why}"),
        }
        for bad in ["db", "db:", ":1.2.3.4", "a b:1.2.3.4", "db:300.1.1.1"] {
            assert!(added_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_are_read_from_lines() {
        let found = labels(b"# comment\na=1\n\n  b\nc=x=y\n").unwrap();
        let pairs: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("a", "1"), ("b", ""), ("c", "x=y")]);
        assert!(labels(b"=x").is_err() && labels(b"a b=1").is_err() && labels(b"\xff").is_err());
    }
}
