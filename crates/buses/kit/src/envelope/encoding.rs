//! What header values look like that a header cannot hold as they are.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The value of a CloudEvents attribute: percent-encoded are space, `"`, `%` and whatever is not
/// visible ASCII. The HTTP binding has it so (1.0.2, §3.1.3.2), and that of NATS (1.0.2, §3.1.3)
/// refers to it. Control characters are none of an attribute's: they are left for the transport to
/// refuse.
pub(super) fn attribute(value: Cow<'_, str>) -> Cow<'_, str> {
    encode(value, |byte| byte.is_ascii() && !matches!(byte, b' ' | b'"' | b'%'))
}

/// The value of any other header, `ph-…` or the writer's own. ASCII stays as it is, since it may be
/// encoded already. In a value with other characters these are percent-encoded, and each `%`, so that
/// it can be decoded.
pub(super) fn text(value: Cow<'_, str>) -> Cow<'_, str> {
    if value.is_ascii() {
        return value;
    }
    encode(value, |byte| byte.is_ascii() && byte != b'%')
}

fn encode(value: Cow<'_, str>, is_plain: fn(u8) -> bool) -> Cow<'_, str> {
    if value.bytes().all(is_plain) {
        return value;
    }
    let mut encoded = String::with_capacity(value.len() * 3);
    for byte in value.bytes() {
        if is_plain(byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing into a string does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    Cow::Owned(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first is the binding's own example.
    #[test]
    fn attributes_are_encoded_as_the_binding_says() {
        for (value, expected) in [
            ("Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
            ("customer-7", "customer-7"),
            ("say \"100%\"", "say%20%22100%25%22"),
            ("Müller", "M%C3%BCller"),
            ("a\r\nb", "a\r\nb"),
        ] {
            assert_eq!(attribute(value.into()), expected);
        }
    }

    #[test]
    fn ascii_of_other_headers_stays_as_it_is() {
        for (value, expected) in [
            ("customer 7", "customer 7"),
            ("a=b%20c,d=\"e\"", "a=b%20c,d=\"e\""),
            ("Müller", "M%C3%BCller"),
            ("100 % Müller", "100 %25 M%C3%BCller"),
        ] {
            assert_eq!(text(value.into()), expected);
        }
        assert!(matches!(text("k".into()), Cow::Borrowed(_)));
    }
}
