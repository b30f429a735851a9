//! How much of a plugin's callers.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// The unit of a [`Share`]: hundredths of a percent.
const WHOLE: u16 = 10_000;

/// How much of the callers tries a candidate: over 0 %, up to 100 %, in steps of 0.01 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u16);

/// What isn't a share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` is no share of the callers: give a percentage over 0% and up to 100%, with two decimals at most, such as \
     10% or 2.5%"
)]
pub struct ShareError {
    given: String,
}

impl Share {
    /// Whether the caller with this hash belongs to it. Of 2^64 hashes each share gets its part to within one in 10^15.
    pub(super) fn has(self, hash: u64) -> bool {
        hash % u64::from(WHOLE) < u64::from(self.0)
    }
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Self, ShareError> {
        // Long enough for every share, and to recognise what was given instead.
        let wrong = || ShareError {
            given: text.chars().take(40).collect(),
        };
        let share = hundredths(text).ok_or_else(wrong)?;
        if (1..=WHOLE).contains(&share) {
            Ok(Self(share))
        } else {
            Err(wrong())
        }
    }
}

/// Digits and a percent sign, with one or two decimals or none. Not read as a float: `inf%` and `1e1%` are no shares, and
/// 0.07 has no exact float.
fn hundredths(text: &str) -> Option<u16> {
    let number = text.strip_suffix('%')?;
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str, most: usize| {
        let fits = (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        fits.then(|| text.parse::<u16>().ok()).flatten()
    };
    let whole = digits(whole, 3)?;
    let step = if decimals.len() == 1 { 10 } else { 1 };
    let decimals = digits(decimals, 2)?;
    whole.checked_mul(100)?.checked_add(decimals * step)
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The shortest decimal that is read back as the same.
        write!(f, "{}%", f64::from(self.0) / 100.0)
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_is_read_as_it_is_written() {
        for hundredths in 1..=WHOLE {
            let share = Share(hundredths);
            assert_eq!(share.to_string().parse(), Ok(share), "{share}");
        }
        let written = |text: &str| text.parse::<Share>().unwrap().to_string();
        assert_eq!(written("10%"), "10%");
        assert_eq!(written("2.5%"), "2.5%");
        assert_eq!(written("2.50%"), "2.5%");
        assert_eq!(written("0.07%"), "0.07%");
        assert_eq!(written("100.00%"), "100%");
    }

    #[test]
    fn what_is_no_share_is_refused_with_an_example() {
        for text in [
            "", "%", "10", "0%", "0.00%", "100.01%", "101%", "999.99%", "-1%", "+1%", "1.%", ".5%", "1.234%",
            "1e1%", "inf%", "1,5%", " 1%", "1 %", "1%%", "1000%", "٣%",
        ] {
            assert_eq!(
                text.parse::<Share>().unwrap_err().to_string(),
                format!(
                    "`{text}` is no share of the callers: give a percentage over 0% and up to 100%, with two decimals at \
                     most, such as 10% or 2.5%"
                )
            );
        }
        let long = "9".repeat(10_000).parse::<Share>().unwrap_err();
        assert!(long.to_string().len() < 200);
    }
}
