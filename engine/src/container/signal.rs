//! Signals by name or number, as Linux has them.

const NAMES: &[(&str, u8)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The name of a signal, `SIGTERM`; the number of one that has none.
#[must_use]
pub fn name(number: u8) -> String {
    match NAMES.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => format!("SIG{name}"),
        None => number.to_string(),
    }
}

/// The number of a signal written as `15`, `TERM` or `SIGTERM` in any case, or `RTMIN+3`.
pub fn number(text: &str) -> Result<u8, String> {
    let bad = || "it is the name or number of a signal, as TERM or 15".to_owned();
    if let Ok(number) = text.parse::<u8>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(34),
        (_, Some("")) => Some(64),
        (Some(rest), _) => {
            rest.strip_prefix('+').and_then(|n| n.parse::<u8>().ok()).and_then(|n| n.checked_add(34))
        }
        (_, Some(rest)) => {
            rest.strip_prefix('-').and_then(|n| n.parse::<u8>().ok()).and_then(|n| 64u8.checked_sub(n))
        }
        _ => None,
    };
    real_time.filter(|number| (34..=64).contains(number)).ok_or_else(bad)
}
