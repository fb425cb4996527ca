//! Times as text: one form when writing, many when reading.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// ISO 8601 in UTC with milliseconds: equally long, so that text order is time order.
pub(crate) fn to_text(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// Reads any ISO form: `T` or a space, with or without fraction, offset and seconds. A time
/// without an offset is UTC, as SQLite's own functions take it.
pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    text.parse::<Timestamp>().ok().or_else(|| {
        let civil: DateTime = text.parse().ok()?;
        TimeZone::UTC.to_timestamp(civil).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_iso_form_is_read_and_no_zone_means_utc() {
        let expected: Timestamp = "2026-03-01T10:20:30Z".parse().unwrap();
        for text in [
            "2026-03-01T10:20:30Z",
            "2026-03-01 10:20:30",
            "2026-03-01T10:20:30",
            "2026-03-01T10:20:30.000",
            "2026-03-01 10:20:30.000000+00:00",
            "2026-03-01T12:20:30+02:00",
            "2026-03-01 12:20:30+0200",
            "2026-03-01 12:20:30+02",
            " 2026-03-01 10:20:30 ",
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        assert_eq!(to_text(expected), "2026-03-01T10:20:30.000Z");
        assert_eq!(parse("2026-03-01"), "2026-03-01T00:00:00Z".parse().ok());
        for text in ["", "yesterday", "1700000000", "2026-13-01 00:00:00"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
