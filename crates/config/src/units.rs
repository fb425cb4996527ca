//! Durations and sizes as people write them.

use std::time::Duration;

/// Reads whole numbers with units: `250ms`, `5s`, `1h30m`, `30d`.
///
/// # Errors
/// What is wrong, in a few words.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err("is empty".into());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let bad = || format!("{text:?} is not a duration");
        if number.is_empty() {
            return Err(bad());
        }
        if unit.is_empty() {
            return Err(format!("{text:?} has no unit"));
        }
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(format!("{text:?} has the unknown unit {unit:?}")),
        };
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(milliseconds));
        let part = part.ok_or_else(|| format!("{text:?} is too long"))?;
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(bad)?;
        rest = next.trim_start();
    }
    // Far beyond any use, and within what every database's interval can hold.
    if total > Duration::from_secs(1_000 * 366 * 86_400) {
        return Err(format!("{text:?} is too long"));
    }
    Ok(total)
}

/// Reads a whole number of bytes with a unit: `64MiB`, `10MB`, `512`.
///
/// # Errors
/// What is wrong, in a few words.
pub fn parse_bytes(text: &str) -> Result<i64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: i64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("{text:?} is not a size")),
    };
    let number: i64 = number.parse().map_err(|_| format!("{text:?} is not a size"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))
}

/// A duration for people: its two largest units.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_sums_of_numbers_with_units() {
        for (text, milliseconds) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("1h30m", 5_400_000),
            ("30d", 2_592_000_000),
            ("2 min", 120_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in ["", "5", "s", "-5s", "5 weeks", "1.5s", "99999999999999999999s", "900000000d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_know_binary_and_decimal_units() {
        assert_eq!(parse_bytes("64MiB"), Ok(64 << 20));
        assert_eq!(parse_bytes("10 MB"), Ok(10_000_000));
        assert_eq!(parse_bytes("512"), Ok(512));
        for bad in ["", "MiB", "1.5MiB", "-1B", "5 chunks", "99999999999GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
