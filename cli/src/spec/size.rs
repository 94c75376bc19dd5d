//! Sizes and fractions as docker's users write them.

/// Bytes: a number, perhaps with a fraction, and a unit of b, k, m, g or t (powers of 1024), as `512m` or `1.5GiB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let bad = || "a size is a number and b, k, m, g or t, as 512m".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let unit =
        unit.strip_suffix("ib").filter(|rest| !rest.is_empty()).or(unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(bad()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && fraction.is_empty()) {
        return Err(bad());
    }
    let too_big = || "that is more than can be counted".to_owned();
    let whole: u64 = whole.parse().map_err(|_| too_big())?;
    let whole = whole.checked_mul(1 << shift).ok_or_else(too_big)?;
    let part = if fraction.is_empty() {
        0.0
    } else {
        format!("0.{fraction}").parse::<f64>().map_err(|_| bad())? * (1u64 << shift) as f64
    };
    whole.checked_add(part as u64).ok_or_else(too_big)
}

/// Billionths of a positive decimal number, as `1.5`.
pub(crate) fn nano(text: &str) -> Result<u64, String> {
    let bad = || "it is a number, as 2 or 0.5".to_owned();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Err(bad());
    }
    if fraction.len() > 9 {
        return Err("it has more than nine decimals".to_owned());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
    let fraction: u64 = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
    whole.checked_mul(1_000_000_000).and_then(|nano| nano.checked_add(fraction)).ok_or_else(bad)
}
