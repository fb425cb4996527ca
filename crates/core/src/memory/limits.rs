//! What the databases refuse, so that a test on the outbox in memory meets it, too.

use crate::{Error, ErrorKind, OutboxEvent, Payload, Result};

/// The exponents that a number has at most and at least: the digits of PostgreSQL's `numeric`.
const EXPONENTS: std::ops::RangeInclusive<i64> = -16_383..=131_071;

/// # Errors
/// `Malformed` for what PostgreSQL, the strictest of them, does not store.
pub(super) fn check(event: &OutboxEvent) -> Result<()> {
    event.check_new()?;
    match json_fault(event) {
        None => Ok(()),
        Some(why) => Err(Error::new(ErrorKind::Malformed, "store events", why)
            .with_context("column", "event_data")
            .with_context("id", event.id())),
    }
}

/// JSON that `jsonb` does not hold: the character NUL, half a surrogate pair, a number beyond all
/// bounds. What is not JSON at all is no better.
fn json_fault(event: &OutboxEvent) -> Option<&'static str> {
    let Payload::Json(text) = event.payload() else { return None };
    let Ok(text) = std::str::from_utf8(text) else { return Some("it is not UTF-8") };
    if serde_json::from_str::<&serde_json::value::RawValue>(text).is_err() {
        return Some("it is not JSON");
    }
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = match first {
            b'"' => match string_fault(after) {
                Ok(after) => after,
                Err(why) => return Some(why),
            },
            b'-' | b'0'..=b'9' => {
                let length = rest.iter().take_while(|byte| is_number_byte(**byte)).count();
                let (number, after) = rest.split_at(length);
                if is_beyond_bounds(number) {
                    return Some("it holds a number beyond all bounds");
                }
                after
            }
            _ => after,
        };
    }
    None
}

/// Walks a string of well-formed JSON; returns what follows it.
fn string_fault(mut rest: &[u8]) -> std::result::Result<&[u8], &'static str> {
    let mut high_surrogate = false;
    loop {
        match rest {
            [b'\\', b'u', a, b, c, d, after @ ..] => {
                let hex = [*a, *b, *c, *d];
                let digits = std::str::from_utf8(&hex).unwrap_or_default();
                let unit = u16::from_str_radix(digits, 16).unwrap_or_default();
                let low = (0xdc00..0xe000).contains(&unit);
                if unit == 0 {
                    return Err("it holds the character \\u0000");
                }
                if high_surrogate != low {
                    return Err("it holds half a surrogate pair");
                }
                high_surrogate = (0xd800..0xdc00).contains(&unit);
                rest = after;
            }
            _ if high_surrogate => return Err("it holds half a surrogate pair"),
            [b'\\', _, after @ ..] => rest = after,
            [b'"', after @ ..] => return Ok(after),
            [_, after @ ..] => rest = after,
            [] => return Ok(rest),
        }
    }
}

const fn is_number_byte(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')
}

fn is_beyond_bounds(number: &[u8]) -> bool {
    let text = std::str::from_utf8(number).unwrap_or_default();
    let exponent = text.split_once(['e', 'E']).map_or("0", |(_, exponent)| exponent);
    // One that does not fit the type is beyond every bound.
    !exponent.parse().is_ok_and(|exponent| EXPONENTS.contains(&exponent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn json_that_jsonb_does_not_hold_is_refused_and_no_other() {
        let fault = |text: &'static str| {
            let payload = Payload::Json(text.into());
            let event = OutboxEvent::builder(Uuid::nil(), "t").payload(payload).build().unwrap();
            check(&event).is_err()
        };
        for bad in [
            r#""\u0000""#,
            r#"{"a\u0000":1}"#,
            r#""\\\u0000""#,
            r#""\ud800""#,
            r#""\ud800x""#,
            r#""\udc00""#,
            r#""\ud800\ud800\udc00""#,
            "[1e400000]",
            "-1e-99999999999999999999",
            "{",
        ] {
            assert!(fault(bad), "{bad}");
        }
        for good in [
            r#""\\u0000""#,
            r#""\"\\u0000\"""#,
            r#""\ud83d\ude9a""#,
            r#"{"e":[1e300,-2.5E+10,null],"\u0001":"1e400000"}"#,
            "1",
        ] {
            assert!(!fault(good), "{good}");
        }
    }
}
