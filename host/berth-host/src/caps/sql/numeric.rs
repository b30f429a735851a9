//! `numeric`: between its text and Postgres's binary form (`numeric_send` and `numeric_recv` in `numeric.c`).
//!
//! The binary form has four 16-bit numbers (how many digits, the weight of the first, the sign, how many decimals to
//! show) and then digits to the base of 10 000.

use std::fmt::Write;

/// Decimals per digit.
const DIGITS: usize = 4;
/// As many decimals may stand before the point, and after it.
const MAX_BEFORE: usize = 131_072;
const MAX_AFTER: usize = 16_383;

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const MINUS_INFINITY: u16 = 0xF000;

/// The text of a binary one; nothing if it is none.
pub(super) fn text(bytes: &[u8]) -> Option<String> {
    let mut words = bytes.chunks_exact(2).map(|pair| {
        u16::from_be_bytes([
            pair.first().copied().unwrap_or(0),
            pair.get(1).copied().unwrap_or(0),
        ])
    });
    let count = usize::from(words.next()?);
    let weight = i32::from(words.next()?.cast_signed());
    let sign = words.next()?;
    let scale = usize::from(words.next()?);
    let digits: Vec<u16> = words.collect();
    if digits.len() != count || !bytes.len().is_multiple_of(2) || digits.iter().any(|d| *d > 9_999) {
        return None;
    }
    let mut text = String::with_capacity(count * DIGITS + scale + 2);
    match sign {
        NAN => return Some("NaN".to_owned()),
        INFINITY => return Some("Infinity".to_owned()),
        MINUS_INFINITY => return Some("-Infinity".to_owned()),
        NEGATIVE => text.push('-'),
        POSITIVE => {}
        _ => return None,
    }
    let digit = |at: i32| {
        usize::try_from(at)
            .ok()
            .and_then(|at| digits.get(at))
            .copied()
            .unwrap_or(0)
    };
    if weight < 0 {
        text.push('0');
    }
    for at in 0..=weight {
        // Writing into a String can't fail.
        let _ = match at {
            0 => write!(text, "{}", digit(0)),
            _ => write!(text, "{:04}", digit(at)),
        };
    }
    if scale > 0 {
        text.push('.');
        let end = text.len() + scale;
        let mut at = weight + 1;
        while text.len() < end {
            let _ = write!(text, "{:04}", digit(at));
            at += 1;
        }
        text.truncate(end);
    }
    Some(text)
}

/// How long the text of a binary form may be, from its header alone.
pub(super) fn length(bytes: &[u8]) -> usize {
    let word = |at: usize| {
        let pair = bytes.get(at..).and_then(<[u8]>::first_chunk::<2>);
        pair.map_or(0, |pair| u16::from_be_bytes(*pair))
    };
    let before = usize::try_from(i32::from(word(2).cast_signed()) + 1).unwrap_or(0);
    // A sign, a zero and a point.
    before * DIGITS + usize::from(word(6)) + 3
}

/// The binary form of a text; nothing if it is no number that Postgres can have.
pub(super) fn binary(text: &str) -> Option<Vec<u8>> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    if text.eq_ignore_ascii_case("nan") {
        return Some(header(0, 0, NAN, 0).to_vec());
    }
    if rest.eq_ignore_ascii_case("infinity") || rest.eq_ignore_ascii_case("inf") {
        return Some(header(0, 0, if negative { MINUS_INFINITY } else { INFINITY }, 0).to_vec());
    }
    let (mantissa, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (rest.get(..at)?, rest.get(at + 1..)?.parse::<i32>().ok()?),
        None => (rest, 0),
    };
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if before.len() + after.len() == 0 || !is_number(before) || !is_number(after) {
        return None;
    }
    // Every decimal, and how many of them stand before the point.
    let decimals: Vec<u8> = before.bytes().chain(after.bytes()).map(|b| b - b'0').collect();
    let point = i64::try_from(before.len()).ok()? + i64::from(exponent);
    let scale = (i64::try_from(after.len()).ok()? - i64::from(exponent)).max(0);
    let scale = usize::try_from(scale).ok().filter(|scale| *scale <= MAX_AFTER)?;
    let first = decimals.iter().position(|d| *d != 0);
    let Some(first) = first else {
        return Some(header(0, 0, POSITIVE, u16::try_from(scale).ok()?).to_vec());
    };
    let lead = point - i64::try_from(first).ok()?;
    if lead > i64::try_from(MAX_BEFORE).ok()? {
        return None;
    }
    let last = decimals.iter().rposition(|d| *d != 0).unwrap_or(first);
    let significant = decimals.get(first..=last)?;
    // Digits to the base of 10 000 begin at multiples of four decimals from the point.
    let base = i64::try_from(DIGITS).ok()?;
    let weight = (lead - 1).div_euclid(base);
    let padding = usize::try_from((weight + 1) * base - lead).ok()?;
    let mut digits: Vec<u16> = Vec::with_capacity(significant.len() / DIGITS + 2);
    let mut padded = std::iter::repeat_n(0u8, padding)
        .chain(significant.iter().copied())
        .peekable();
    while padded.peek().is_some() {
        let digit = (0..DIGITS).fold(0u16, |sum, _| sum * 10 + u16::from(padded.next().unwrap_or(0)));
        digits.push(digit);
    }
    let head = header(
        u16::try_from(digits.len()).ok()?,
        i16::try_from(weight).ok()?.cast_unsigned(),
        if negative { NEGATIVE } else { POSITIVE },
        u16::try_from(scale).ok()?,
    );
    let mut bytes = head.to_vec();
    bytes.extend(digits.into_iter().flat_map(u16::to_be_bytes));
    Some(bytes)
}

fn header(count: u16, weight: u16, sign: u16, scale: u16) -> [u8; 8] {
    let ([a, b], [c, d]) = (count.to_be_bytes(), weight.to_be_bytes());
    let ([e, f], [g, h]) = (sign.to_be_bytes(), scale.to_be_bytes());
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn again(given: &str) -> Option<String> {
        text(&binary(given)?)
    }

    #[test]
    fn text_comes_back_as_postgres_writes_it() {
        for (given, wanted) in [
            ("0", "0"),
            ("-0.000", "0.000"),
            ("1.50", "1.50"),
            (".5", "0.5"),
            ("5.", "5"),
            ("+00012.3400", "12.3400"),
            ("-10000", "-10000"),
            ("100000000", "100000000"),
            ("0.0000001", "0.0000001"),
            ("99999.9999", "99999.9999"),
            ("1e5", "100000"),
            ("1.5e-3", "0.0015"),
            ("12345e-2", "123.45"),
            ("nan", "NaN"),
            ("-inf", "-Infinity"),
            ("Infinity", "Infinity"),
        ] {
            assert_eq!(again(given).as_deref(), Some(wanted), "{given}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for given in [
            "", "-", ".", "1,5", "1e", "0x10", "1 ", "--1", "1e999999", "1e-99999", "١", "-nan",
        ] {
            assert_eq!(binary(given), None, "{given}");
        }
        let longest = "9".repeat(MAX_BEFORE);
        assert_eq!(again(&longest), Some(longest.clone()));
        assert_eq!(binary(&format!("{longest}9")), None);
        for bytes in [
            &b""[..],
            &[0; 7],
            &[0, 1, 0, 0, 0, 0, 0, 0],
            &[0, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
        ] {
            assert_eq!(text(bytes), None);
        }
    }

    proptest! {
        #[test]
        fn every_number_comes_back(given in "-?(0|[1-9][0-9]{0,600})(\\.[0-9]{1,600})?") {
            let zero = given.bytes().all(|b| !b.is_ascii_digit() || b == b'0');
            let wanted = if zero { given.trim_start_matches('-') } else { &given };
            prop_assert_eq!(again(&given), Some(wanted.to_owned()));
            let length = length(&binary(&given).unwrap());
            prop_assert!((wanted.len()..=wanted.len() + 6).contains(&length), "{length}");
        }
    }
}
