//! Values of the admin API for people: what a terminal shows, and never what it obeys.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytesize::ByteSize;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

/// Digits of a digest that are shown.
const SHOWN: usize = 12;
/// What a segment of a path or a value of a query can be without escapes (RFC 3986, unreserved).
const ESCAPED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Characters that a terminal obeys: the control characters, and those that turn the direction of what follows, so that
/// a line reads as what it isn't.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Without what would move a cursor.
pub(crate) fn clean(text: &str) -> String {
    text.chars().filter(|c| !is_obeyed(*c)).collect()
}

/// With escapes in the place of what would move a cursor: on one line, and nothing of it hidden.
pub(crate) fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.trim_end_matches(['\r', '\n']).chars() {
        match is_obeyed(c) && c != '\t' {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// A member for people; nothing if there is none.
pub(crate) fn text(value: &Value, member: &str) -> String {
    match value.get(member) {
        Some(value) => plain(value),
        None => String::new(),
    }
}

/// The members of a path, as in `canary.current.requests`.
pub(crate) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    let found = path.split('.').try_fold(value, |value, member| value.get(member));
    found.unwrap_or(&Value::Null)
}

/// A value for people.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => clean(text),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| format!("{} {}", words(name), plain(value)))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    }
}

/// `promoteAfter` as words.
fn words(name: &str) -> String {
    let mut out = String::new();
    for c in clean(name).chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push(' ');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// The first digits of a digest.
pub(crate) fn short(value: &Value, member: &str) -> String {
    text(value, member).chars().take(SHOWN).collect()
}

/// A time of the API, to the second.
pub(crate) fn time(value: &Value, member: &str) -> String {
    moment(value, member)
        .map(|time| humantime::format_rfc3339_seconds(time).to_string())
        .unwrap_or_default()
}

/// The same, to the millisecond.
pub(crate) fn exact_time(value: &Value, member: &str) -> String {
    moment(value, member)
        .map(|time| humantime::format_rfc3339_millis(time).to_string())
        .unwrap_or_default()
}

fn moment(value: &Value, member: &str) -> Option<SystemTime> {
    /// The last second of the year 9999, beyond which there is no text for a time.
    const LAST: u64 = 253_402_300_799;
    let milliseconds = value.get(member).and_then(Value::as_u64)?;
    let time = Duration::from_millis(milliseconds);
    (time.as_secs() <= LAST).then(|| UNIX_EPOCH.checked_add(time))?
}

/// Microseconds, about three digits of them.
pub(crate) fn duration(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.0} us"),
        us if us < 10_000.0 => format!("{:.1} ms", us / 1e3),
        us if us < 10_000_000.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    }
}

/// Bytes.
pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).to_string()
}

/// For programs.
pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// As a segment of a path, or a value of a query.
pub(crate) fn escape(text: &str) -> String {
    utf8_percent_encode(text, &ESCAPED).to_string()
}

/// Rows below their heads, as wide as they must be.
pub(crate) fn columns<const N: usize>(heads: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(heads.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_of_a_value_is_obeyed_by_a_terminal() {
        let hostile = "a\u{1b}[2Jb\r\nc\u{9b}d\u{7f}\u{202e}e\u{2066}\u{200f}\u{61c}f";
        assert_eq!(clean(hostile), "a[2Jbcdef");
        assert_eq!(
            visible(hostile),
            "a\\u{1b}[2Jb\\r\\nc\\u{9b}d\\u{7f}\\u{202e}e\\u{2066}\\u{200f}\\u{61c}f"
        );
        assert_eq!(visible("tab\tä → ok\r\n"), "tab\tä → ok");
        let value = json!({ "n\u{7}ame": ["x\u{1b}", 7, null, true, { "promoteAfter\n": "\u{85}y" }] });
        assert_eq!(plain(&value), "name x, 7, , true, promote after y");
        assert_eq!(text(&value, "absent"), "");
    }

    #[test]
    fn numbers_are_short_and_have_units() {
        for (us, expected) in [
            (0.0, "0 us"),
            (35.4, "35 us"),
            (1_234.0, "1.2 ms"),
            (61_400.0, "61 ms"),
            (2_000_000.0, "2000 ms"),
            (12_340_000.0, "12.3 s"),
        ] {
            assert_eq!(duration(us), expected);
        }
        assert_eq!(size(0), "0 B");
        assert_eq!(size(4_404_019), "4.2 MiB");
        let times = json!({ "at": 1_735_689_600_123_u64, "far": u64::MAX, "text": "x" });
        assert_eq!(time(&times, "at"), "2025-01-01T00:00:00Z");
        assert_eq!(exact_time(&times, "at"), "2025-01-01T00:00:00.123Z");
        assert_eq!(time(&times, "far"), "");
        assert_eq!(time(&times, "text"), "");
    }

    #[test]
    fn members_are_found_by_their_path() {
        let value = json!({ "a": { "b": { "c": 1 } } });
        assert_eq!(at(&value, "a.b.c"), &json!(1));
        assert_eq!(at(&value, "a.x.c"), &Value::Null);
        assert_eq!(at(&json!(null), "a"), &Value::Null);
    }

    #[test]
    fn text_is_one_segment_of_a_path() {
        assert_eq!(escape("a b/?#@ü%"), "a%20b%2F%3F%23%40%C3%BC%25");
        assert_eq!(escape("my-handler"), "my-handler");
    }
}
