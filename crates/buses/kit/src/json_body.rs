//! Writes an event's parts as members of a JSON object, without parsing the body into a tree.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use posthaste_core::{Error, ErrorKind, Payload, Result};
use serde_json::value::RawValue;

/// Appends `"name":"value",`.
pub fn push_member(json: &mut Vec<u8>, name: &'static str, value: &str) {
    push_name(json, name);
    push_string(json, value);
    json.push(b',');
}

/// Appends `"name":`. Names are literals that need no escape.
pub fn push_name(json: &mut Vec<u8>, name: &'static str) {
    json.push(b'"');
    json.extend_from_slice(name.as_bytes());
    json.extend_from_slice(b"\":");
}

/// Appends `value` as a JSON string.
pub fn push_string(json: &mut Vec<u8>, value: &str) {
    match serde_json::to_string(value) {
        Ok(text) => json.extend_from_slice(text.as_bytes()),
        // A string always has a JSON form; an empty one keeps the object whole if that changes.
        Err(_) => json.extend_from_slice(b"\"\""),
    }
}

/// Appends the body as the object's last member: `"data":` and the JSON text as it is, or
/// `"data_base64":` and the bytes.
///
/// Line breaks between JSON tokens become spaces, so that the object stays on one line; every
/// other byte is kept.
///
/// # Errors
/// [`ErrorKind::Malformed`] where a JSON payload is not JSON (a store returns what it was given).
pub fn push_data(json: &mut Vec<u8>, payload: &Payload) -> Result<()> {
    match payload {
        Payload::Json(text) => {
            let checked: &RawValue = serde_json::from_slice(text).map_err(|error| {
                Error::new(ErrorKind::Malformed, "encode event", "event_data is not JSON")
                    .with_source(error)
            })?;
            push_name(json, "data");
            let start = json.len();
            json.extend_from_slice(checked.get().as_bytes());
            // Valid JSON has raw line breaks between tokens only, never inside a string.
            for byte in &mut json[start..] {
                if matches!(byte, b'\n' | b'\r') {
                    *byte = b' ';
                }
            }
        }
        Payload::Bytes { data, .. } => {
            push_name(json, "data_base64");
            json.push(b'"');
            json.extend_from_slice(STANDARD.encode(data).as_bytes());
            json.push(b'"');
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(payload: &Payload) -> Result<String> {
        let mut json = Vec::new();
        push_data(&mut json, payload)?;
        Ok(String::from_utf8(json).unwrap())
    }

    #[test]
    fn json_stays_byte_for_byte_but_for_line_breaks() {
        let payload = Payload::json_text("{\"a\": 1.0,\r\n \"b\":\"x\\ny\"}").unwrap();
        assert_eq!(data(&payload).unwrap(), "\"data\":{\"a\": 1.0,   \"b\":\"x\\ny\"}");
    }

    #[test]
    fn bytes_that_are_not_utf8_become_base64() {
        let payload = Payload::bytes(vec![0xff, 0x00, 0xfe], "application/avro").unwrap();
        assert_eq!(data(&payload).unwrap(), "\"data_base64\":\"/wD+\"");
    }

    #[test]
    fn a_stored_row_that_is_not_json_is_malformed() {
        for text in ["", "{", "{}\n{}", "plain"] {
            let error = data(&Payload::Json(text.into())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "{text:?}");
        }
    }
}
