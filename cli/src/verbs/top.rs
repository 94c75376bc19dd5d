//! `servin top`: the processes of a container, as ps(1) would show them.

use serde_json::{Map, Value};
use servin_engine::monitor::wire::{Ask, Tell};
use servin_engine::store::now_ns;
use servin_engine::time::rfc3339;

use super::containers::{ask, open};
use crate::args::Global;
use crate::error::{Error, Result};
use crate::{listing, output};

/// Clock ticks of a second in /proc.
const HERTZ: u64 = 100;
/// Bytes of a page.
const PAGE: u64 = 4096;

/// What can be shown: ps's name, heading.
const FIELDS: &[(&str, &str)] = &[
    ("uid", "UID"),
    ("user", "USER"),
    ("pid", "PID"),
    ("ppid", "PPID"),
    ("c", "C"),
    ("pcpu", "%CPU"),
    ("stime", "STIME"),
    ("tty", "TTY"),
    ("stat", "STAT"),
    ("time", "TIME"),
    ("etime", "ELAPSED"),
    ("vsz", "VSZ"),
    ("rss", "RSS"),
    ("ni", "NI"),
    ("pri", "PRI"),
    ("nlwp", "NLWP"),
    ("pgid", "PGID"),
    ("sid", "SID"),
    ("comm", "COMMAND"),
    ("args", "COMMAND"),
    ("cmd", "CMD"),
];
/// Other names of the same.
const ALIASES: &[(&str, &str)] = &[
    ("command", "args"),
    ("%cpu", "pcpu"),
    ("s", "stat"),
    ("state", "stat"),
    ("nice", "ni"),
    ("rssize", "rss"),
    ("vsize", "vsz"),
    ("tt", "tty"),
    ("tname", "tty"),
    ("start", "stime"),
    ("thcount", "nlwp"),
    ("pgrp", "pgid"),
    ("sess", "sid"),
    ("ucmd", "comm"),
    ("euid", "uid"),
    ("euser", "user"),
];
const FULL: &str = "uid,pid,ppid,c,stime,tty,time,cmd";
const AUX: &str = "user,pid,pcpu,vsz,rss,tty,stat,stime,time,args";

/// Prints the processes of a container.
pub(crate) fn run(global: &Global, name: &str, options: &[String]) -> Result<u8> {
    let fields = fields(options).map_err(|what| Error::Usage { what, verb: "top".into() })?;
    let store = open(global)?;
    let record = store.containers().find(name)?;
    let seen = match ask(&store, &record, &Ask::Top)? {
        Some(Tell::Seen(seen)) => seen,
        Some(Tell::Failed(mut failure)) => {
            failure.code = 1;
            return Err(Error::Monitor(failure));
        }
        _ => return Err(servin_engine::Error::NotRunning { name: name.to_owned() }.into()),
    };
    let text = String::from_utf8_lossy(&seen.text);
    let mut lines: Vec<Vec<String>> = vec![fields.iter().map(|(_, heading)| (*heading).to_owned()).collect()];
    let processes = processes(&text, now_ns());
    lines.extend(processes.iter().map(|process| {
        fields.iter().map(|(field, _)| process.get(*field).map_or_else(String::new, show)).collect()
    }));
    output::text(&listing::table(&lines));
    if seen.cut {
        output::line("there are more processes than can be shown", None);
    }
    Ok(0)
}

fn show(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The columns that ps's options ask for.
fn fields(options: &[String]) -> Result<Vec<(&'static str, &'static str)>, String> {
    let mut list = String::new();
    let mut words = options.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "-ef" | "-fe" | "-f" | "-e" | "-A" => {}
            "aux" | "-aux" | "axu" => list = AUX.into(),
            "-o" | "-eo" | "o" | "--format" => {
                list.push_str(words.next().ok_or("-o needs a list of fields")?);
                list.push(',');
            }
            _ => match word.strip_prefix("-o").or_else(|| word.strip_prefix("--format=")) {
                Some(fields) if !fields.is_empty() => {
                    list.push_str(fields);
                    list.push(',');
                }
                _ => {
                    return Err(format!(
                        "the ps option \"{word}\" is not known: aux, -ef and -o FIELD,... are"
                    ));
                }
            },
        }
    }
    let list = if list.is_empty() { FULL } else { &list };
    list.split([',', ' '])
        .filter(|word| !word.is_empty())
        .map(|word| {
            let name = ALIASES.iter().find(|(alias, _)| *alias == word).map_or(word, |(_, name)| name);
            FIELDS.iter().find(|(known, _)| *known == name).copied().ok_or_else(|| {
                let known: Vec<_> = FIELDS.iter().map(|(name, _)| *name).collect();
                format!("there is no field \"{word}\": there are {}", known.join(", "))
            })
        })
        .collect()
}

/// The processes with every field; lines that are none are left out.
fn processes(text: &str, now: i64) -> Vec<Map<String, Value>> {
    let mut lines = text.lines();
    let uptime = lines.next().and_then(|line| line.split(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0);
    let mut processes = Vec::new();
    while let (Some(stat), Some(user), Some(command)) = (lines.next(), lines.next(), lines.next()) {
        processes.extend(process(stat, user, command, uptime, now));
    }
    processes
}

/// One process from its `stat` (proc_pid_stat(5)), the line `Uid:` of its status, and its command line.
fn process(stat: &str, user: &str, command: &str, uptime: f64, now: i64) -> Option<Map<String, Value>> {
    let (pid, rest) = stat.split_once(" (")?;
    // Its name may have parentheses and blanks.
    let (name, rest) = rest.rsplit_once(") ")?;
    let words: Vec<&str> = rest.split(' ').collect();
    // The third field of the manual is the first of these.
    let text = |field: usize| words.get(field - 3).copied().unwrap_or_default();
    let number = |field: usize| text(field).parse::<u64>().unwrap_or(0);
    let ticks = number(14) + number(15);
    let age = (uptime - number(22) as f64 / HERTZ as f64).max(0.0);
    let percent = if age > 0.0 { ticks as f64 / HERTZ as f64 / age * 100.0 } else { 0.0 };
    let uid = user.split_whitespace().nth(2).unwrap_or("?");
    let began = now.saturating_sub((age * 1e9) as i64);
    // Of the day it is told when, of an earlier one which.
    let began_at = rfc3339(began);
    let is_today = began_at.get(..10) == rfc3339(now).get(..10);
    let stime = if is_today { began_at.get(11..16) } else { began_at.get(5..10) };
    let command = command.trim_end();
    let command = if command.is_empty() { format!("[{name}]") } else { command.to_owned() };
    let mut process = Map::new();
    let mut set = |field: &str, value: String| process.insert(field.to_owned(), Value::from(value));
    set("uid", uid.to_owned());
    set("user", if uid == "0" { "root".into() } else { uid.to_owned() });
    set("pid", pid.to_owned());
    set("ppid", text(4).to_owned());
    set("c", format!("{percent:.0}"));
    set("pcpu", format!("{percent:.1}"));
    set("stime", stime.unwrap_or_default().to_owned());
    set("tty", terminal(number(7)));
    set("stat", text(3).to_owned());
    set("time", clock(ticks / HERTZ, false));
    set("etime", clock(age as u64, true));
    set("vsz", (number(23) / 1024).to_string());
    set("rss", (number(24) * PAGE / 1024).to_string());
    set("ni", text(19).to_owned());
    set("pri", text(18).to_owned());
    set("nlwp", text(20).to_owned());
    set("pgid", text(5).to_owned());
    set("sid", text(6).to_owned());
    set("comm", name.to_owned());
    set("args", command.clone());
    set("cmd", command);
    Some(process)
}

/// The name of a terminal by its device number.
fn terminal(device: u64) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00));
    match major {
        0 => "?".into(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

/// `HH:MM:SS`, or with `short` `MM:SS` below an hour.
fn clock(seconds: u64, short: bool) -> String {
    let (hours, minutes, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if short && hours == 0 {
        format!("{minutes:02}:{second:02}")
    } else {
        format!("{hours:02}:{minutes:02}:{second:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "100.50 90.00\n\
        1 (a (b) c) S 0 1 1 34816 7 4194560 98 0 0 0 250 50 0 0 20 0 2 0 50 4653056 256 18446744073709551615\n\
        Uid: 0 33 0 0\n\
        sh -c x \n";

    fn options(words: &[&str]) -> Result<Vec<&'static str>, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        fields(&words).map(|fields| fields.iter().map(|(field, _)| *field).collect())
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        // 2024-03-01T12:00:00Z
        let found = processes(TEXT, 1_709_294_400_000_000_000);
        let field = |name: &str| found[0][name].as_str().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(
            (field("pid"), field("ppid"), field("comm"), field("args")),
            ("1", "0", "a (b) c", "sh -c x")
        );
        assert_eq!((field("uid"), field("tty"), field("stat"), field("nlwp")), ("33", "pts/0", "S", "2"));
        assert_eq!(
            (field("time"), field("etime"), field("pcpu"), field("stime")),
            ("00:00:03", "01:40", "3.0", "11:58")
        );
        assert_eq!((field("vsz"), field("rss")), ("4544", "1024"));
    }

    #[test]
    fn what_is_no_process_is_left_out() {
        assert!(processes("", 0).is_empty());
        assert!(processes("1 2\nnonsense\nmore\nof it\n", 0).is_empty());
        assert_eq!(processes("1 2\n1 (x) S\nUid:\n\n", 0).len(), 1, "what is missing is empty");
    }

    #[test]
    fn columns_are_chosen_as_with_ps() {
        assert_eq!(options(&[]).unwrap().len(), 8);
        assert_eq!(options(&["aux"]).unwrap()[0], "user");
        assert_eq!(options(&["-o", "pid,command"]).unwrap(), ["pid", "args"]);
        assert_eq!(options(&["-eo", "pid", "-ocomm"]).unwrap(), ["pid", "comm"]);
        assert!(options(&["-o", "pid,nope"]).unwrap_err().contains("\"nope\""));
        assert!(options(&["--forest"]).unwrap_err().contains("--forest"));
    }
}
