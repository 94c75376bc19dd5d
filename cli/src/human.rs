//! Sizes and times for people, in docker's words.

use servin_engine::time::rfc3339;

/// A number of bytes in decimal units, four digits at most: `0B`, `12.3kB`, `4.27MB`.
pub(crate) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 999.5 || unit == "TB" {
            let digits = match value {
                _ if unit == "B" => 0,
                _ if value < 9.995 => 2,
                _ if value < 99.95 => 1,
                _ => 0,
            };
            let text = format!("{value:.digits$}");
            let text =
                if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
            return format!("{text}{unit}");
        }
        value /= 1000.0;
    }
    format!("{bytes}B")
}

/// A number of bytes of memory in binary units, four digits at most: `0B`, `12.3KiB`, `512MiB`.
pub(crate) fn memory(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let digits = match value {
        _ if unit == "B" => 0,
        _ if value < 9.995 => 3,
        _ if value < 99.95 => 2,
        _ => 1,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// How long ago, `5 minutes ago`; both in nanoseconds since 1970.
pub(crate) fn ago(then: i64, now: i64) -> String {
    format!("{} ago", span(now.saturating_sub(then) / 1_000_000_000))
}

/// A time, in nanoseconds since 1970, as docker's listings have it: `2026-01-02 15:04:05 +0000 UTC`.
pub(crate) fn time(ns: i64) -> String {
    rfc3339(ns).get(..19).unwrap_or_default().replace('T', " ") + " +0000 UTC"
}

/// A span of seconds in its largest unit.
pub(crate) fn span(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        ..=0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..=59 => format!("{seconds} seconds"),
        60..=119 => "About a minute".into(),
        120..=3599 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_few_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.23kB"),
            (12_340, "12.3kB"),
            (123_456, "123kB"),
            (999_999, "1MB"),
            (4_270_000, "4.27MB"),
            (125_000_000, "125MB"),
            (1_500_000_000, "1.5GB"),
            (u64::MAX, "18446744TB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn memory_is_told_in_binary_units() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1024, "1KiB"),
            (1_500_000, "1.431MiB"),
            (512 << 20, "512MiB"),
            (3 << 30, "3GiB"),
        ] {
            assert_eq!(memory(bytes), text);
        }
    }

    #[test]
    fn spans_are_told_in_one_unit() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (86_400 * 3, "3 days"),
            (86_400 * 21, "3 weeks"),
            (86_400 * 90, "3 months"),
            (86_400 * 365 * 3, "3 years"),
        ] {
            assert_eq!(span(seconds), text);
        }
        assert_eq!(ago(0, 5_000_000_000), "5 seconds ago");
        assert_eq!(ago(10, 0), "Less than a second ago", "a clock that went back");
    }
}
