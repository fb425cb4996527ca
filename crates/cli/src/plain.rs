//! Text from outside, fit for a screen: the one place that knows what a terminal must not get.
//!
//! Whoever writes a row chooses names, keys and types, and a database or a receiver words its errors.
//! What steers a terminal (ESC and the other control characters) or turns a line around (bidirectional
//! overrides and the other format characters, Unicode's Cc, Cf, Zl and Zp) is written as an escape,
//! as `\u{1b}`.

/// `text` on one line: line breaks and tabs are escaped, too, so that it cannot begin a line of its own.
pub(crate) fn line(text: &str) -> String {
    escaped(text, |_| false, |c| c.escape_default().to_string())
}

/// `text` with its lines. For a whole of many lines, each value in which went through [`line()`], or is
/// shown below all else.
pub(crate) fn lines(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t'), |c| c.escape_default().to_string())
}

/// A line for a log on a terminal that shows colours: whoever made it has escaped what ESC was in it.
pub(crate) fn coloured_line(text: &str) -> String {
    escaped(text, |c| c == '\u{1b}', |c| c.escape_default().to_string())
}

/// A JSON text with the same value: what JSON allows within a string and a terminal must not get is
/// `\uXXXX`.
pub(crate) fn json(text: &str) -> String {
    // Control characters below a space stand between the values of a JSON text only.
    escaped(
        text,
        |c| c < ' ',
        |c| {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
        },
    )
}

fn escaped(text: &str, keeps: impl Fn(char) -> bool, escape: impl Fn(char) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) && !keeps(c) {
            out.push_str(&escape(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Cc, Cf, Zl and Zp of Unicode 16.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
                | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVIL: &str = "a\u{1b}[2J\u{9b}1m\nb\u{202e}c\u{2066}\u{2028}d\u{e0041}é";

    #[test]
    fn what_steers_a_screen_is_written_as_an_escape() {
        assert_eq!(line(EVIL), "a\\u{1b}[2J\\u{9b}1m\\nb\\u{202e}c\\u{2066}\\u{2028}d\\u{e0041}é");
        assert_eq!(lines("a\n\tb\u{202e}\r"), "a\n\tb\\u{202e}\\r");
    }

    #[test]
    fn json_keeps_its_value_and_shows_none_of_it() {
        let text = serde_json::to_string_pretty(&serde_json::json!({ "a": EVIL })).unwrap();
        let shown = json(&text);
        assert!(shown.contains("\\u202e") && shown.contains("\\udb40\\udc41"), "{shown}");
        assert!(!shown.contains(['\u{1b}', '\u{9b}', '\u{202e}', '\u{2028}']), "{shown}");
        let value: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(value["a"], EVIL);
    }
}
