//! The query of a request to the admin API.

use percent_encoding::percent_decode_str;

use crate::error::Error;

/// Its pairs, decoded.
///
/// # Errors
/// A value that is not UTF-8, or has a NUL character.
pub(super) fn pairs(query: Option<&str>) -> Result<Vec<(String, String)>, Error> {
    let pairs = query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty());
    let decoded = pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.replace('+', " ");
        let value = percent_decode_str(&value)
            .decode_utf8()
            .map_err(|_| Error::InvalidParameter(format!("{name} is not UTF-8")))?
            .into_owned();
        match value.contains('\0') {
            true => Err(Error::InvalidParameter(format!("{name} has a NUL character"))),
            false => Ok((name.to_owned(), value)),
        }
    });
    decoded.collect()
}

/// A number within bounds.
///
/// # Errors
/// It is none, or beyond them.
pub(super) fn number(name: &str, value: &str, least: u64, most: u64) -> Result<u64, Error> {
    let number = value
        .parse()
        .ok()
        .filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| Error::InvalidParameter(format!("{name} is a number from {least} to {most}")))
}
