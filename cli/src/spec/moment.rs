//! Moments as users write them: `--since` and `--until`.

use servin_engine::time::parse_rfc3339;

use super::limits::duration;

/// Nanoseconds since 1970 of a time (`2026-01-31T12:00:00Z`, its seconds, fraction and zone may be missing, and a day may
/// stand alone; without a zone it is UTC), of seconds since 1970 (`1700000000.5`), or of how long ago (`1h30m`).
pub(crate) fn moment(text: &str, now: i64) -> Result<i64, String> {
    let bad =
        || "it is a time as 2026-01-31T12:00:00Z, seconds since 1970, or how long ago as 1h30m".to_owned();
    if let Some(seconds) = unix(text) {
        return Ok(seconds);
    }
    if let Ok(ago) = duration(text) {
        return Ok(now.saturating_sub(i64::try_from(ago).unwrap_or(i64::MAX)));
    }
    // Filled up to the whole form.
    let (day, rest) = text.split_once(['T', ' ']).unwrap_or((text, ""));
    let zone = rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len());
    let (clock, zone) = rest.split_at(zone);
    let clock = match clock.len() {
        0 => "00:00:00".to_owned(),
        2 => format!("{clock}:00:00"),
        5 => format!("{clock}:00"),
        _ => clock.to_owned(),
    };
    let zone = if zone.is_empty() { "Z" } else { zone };
    parse_rfc3339(&format!("{day}T{clock}{zone}")).ok_or_else(bad)
}

fn unix(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !digits(seconds) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_each_form() {
        const NOW: i64 = 1_709_251_200_000_000_000;
        for (text, ns) in [
            ("1709251199.5", 1_709_251_199_500_000_000),
            ("0", 0),
            ("90s", NOW - 90_000_000_000),
            ("1h", NOW - 3_600_000_000_000),
            ("2024-02-29T23:59:59.5Z", 1_709_251_199_500_000_000),
            ("2024-02-29T23:59:59+01:00", 1_709_247_599_000_000_000),
            ("2024-02-29T23:59", 1_709_251_140_000_000_000),
            ("2024-03-01", NOW),
            ("2024-03-01 00", NOW),
        ] {
            assert_eq!(moment(text, NOW), Ok(ns), "{text}");
        }
        for bad in ["", "yesterday", "2024-13-01", "1.5.5", "-5m", "2024-03-01T1"] {
            assert!(moment(bad, NOW).is_err(), "{bad}");
        }
    }
}
