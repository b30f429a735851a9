//! A JSON writer, just large enough for the bench's result.

use std::fmt::{Display, Formatter, Result, Write as _};

/// A JSON value. Objects keep the order in which they were made.
pub(super) enum Json {
    Null,
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// The value of a string member, found without reading the rest; only for values without escapes, as tokens are.
pub(super) fn string_member<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(&format!("\"{name}\":\""))?;
    rest.split_once('"').map(|(value, _)| value)
}

/// The value of a member that is a whole number, found the same way.
pub(super) fn number_member(text: &str, name: &str) -> Option<f64> {
    let (_, rest) = text.split_once(&format!("\"{name}\":"))?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

impl Json {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn object<const N: usize>(members: [(&str, Self); N]) -> Self {
        Self::Object(
            members
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        )
    }
}

impl Display for Json {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Null => f.write_str("null"),
            // JSON has neither infinity nor NaN.
            Self::Number(number) if !number.is_finite() => f.write_str("null"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => string(f, text),
            Self::List(values) => {
                f.write_char('[')?;
                for (index, value) in values.iter().enumerate() {
                    separate(f, index)?;
                    write!(f, "{value}")?;
                }
                f.write_char(']')
            }
            Self::Object(members) => {
                f.write_char('{')?;
                for (index, (key, value)) in members.iter().enumerate() {
                    separate(f, index)?;
                    string(f, key)?;
                    write!(f, ":{value}")?;
                }
                f.write_char('}')
            }
        }
    }
}

fn separate(f: &mut Formatter<'_>, index: usize) -> Result {
    if index > 0 { f.write_char(',') } else { Ok(()) }
}

fn string(f: &mut Formatter<'_>, text: &str) -> Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_in_order() {
        let value = Json::object([
            ("b", Json::Number(1.5)),
            ("a", Json::List(vec![Json::Number(2.0), Json::text("x")])),
            ("c", Json::Object(Vec::new())),
        ]);
        assert_eq!(value.to_string(), r#"{"b":1.5,"a":[2,"x"],"c":{}}"#);
    }

    #[test]
    fn whole_numbers_are_found_by_their_name() {
        let text = r#"{"steps":{"aUs":12,"bUs":3},"c":"d"}"#;
        assert_eq!(number_member(text, "aUs"), Some(12.0));
        assert_eq!(number_member(text, "bUs"), Some(3.0));
        assert_eq!(number_member(text, "c"), None);
        assert_eq!(number_member(text, "d"), None);
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(
            Json::text("a\"b\\c\nd\te\u{1}é").to_string(),
            r#""a\"b\\c\nd\u0009e\u0001é""#
        );
    }

    #[test]
    fn numbers_that_json_lacks_are_null() {
        assert_eq!(Json::Number(f64::NAN).to_string(), "null");
        assert_eq!(Json::Number(f64::INFINITY).to_string(), "null");
    }
}
