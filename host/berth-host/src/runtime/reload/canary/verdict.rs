//! How a trial ends, in words.

use std::fmt;

use serde::Serialize;

/// How a trial has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The candidate held: it becomes the current version.
    Promote,
    /// It is worse than the bounds allow: nobody gets it any more.
    RollBack(Reason),
    /// Somebody ended the trial.
    Cancelled,
}

impl Verdict {
    /// A stable name.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::RollBack(_) => "roll-back",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Requests of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// All that have ended.
    pub requests: u64,
    /// Of these, the ones that failed.
    pub failed: u64,
}

impl Counts {
    /// The part that failed, from 0 to 1; 0 of nothing.
    pub fn rate(self) -> f64 {
        self.failed as f64 / self.requests.max(1) as f64
    }
}

/// What a candidate's failures were measured against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Against {
    /// The current version's requests in the trial.
    Trial,
    /// It had too few: the rate that it had before, from 0 to 1.
    Before(f64),
    /// Nothing is known of it: a version that never fails.
    Nothing,
}

/// Why a candidate was rolled back. Its text is a sentence about the candidate, without the full stop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// Too many of its requests failed.
    Errors {
        /// Its requests.
        candidate: Counts,
        /// The current version's in the same time.
        current: Counts,
        /// What counted.
        against: Against,
        /// The bound, in percentage points.
        points: f64,
    },
    /// Its slowest requests are too slow.
    Latency {
        /// Its requests.
        candidate: u64,
        /// Its p99, in microseconds.
        candidate_p99: u64,
        /// The current version's requests.
        current: u64,
        /// Its p99, in microseconds.
        current_p99: u64,
        /// The bound, in microseconds.
        bound: u64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Errors {
                candidate,
                current,
                against,
                points,
            } => {
                write!(
                    f,
                    "{} of its {} requests failed",
                    candidate.failed, candidate.requests
                )?;
                write!(f, " ({}); ", percent(candidate.rate()))?;
                match against {
                    Against::Trial => write!(
                        f,
                        "of the current version's {} in the same time it was {} ({})",
                        current.requests,
                        current.failed,
                        percent(current.rate())
                    ),
                    Against::Before(rate) => write!(
                        f,
                        "the current version had {} in the same time, too few to compare, and is taken for what it was \
                         before ({})",
                        current.requests,
                        percent(rate)
                    ),
                    Against::Nothing => write!(
                        f,
                        "the current version had {} in the same time, too few to compare, and is taken for one that never \
                         fails",
                        current.requests
                    ),
                }?;
                write!(f, "; up to {points} percentage points more are allowed")
            }
            Self::Latency {
                candidate,
                candidate_p99,
                current,
                current_p99,
                bound,
            } => write!(
                f,
                "the p99 of its {candidate} requests is {} ms; of the current version's {current} it is {} ms, which allows \
                 {} ms",
                millis(candidate_p99),
                millis(current_p99),
                millis(bound)
            ),
        }
    }
}

/// To a tenth.
fn percent(rate: f64) -> String {
    format!("{} %", (rate * 1_000.0).round() / 10.0)
}

/// To a tenth.
fn millis(micros: u64) -> f64 {
    (micros as f64 / 100.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_sentences_with_the_numbers() {
        let errors = |against| {
            let reason = Reason::Errors {
                candidate: Counts {
                    requests: 25,
                    failed: 5,
                },
                current: Counts {
                    requests: 230,
                    failed: 1,
                },
                against,
                points: 5.0,
            };
            reason.to_string()
        };
        assert_eq!(
            errors(Against::Trial),
            "5 of its 25 requests failed (20 %); of the current version's 230 in the same time it was 1 (0.4 %); up to 5 \
             percentage points more are allowed"
        );
        assert_eq!(
            errors(Against::Before(0.0123)),
            "5 of its 25 requests failed (20 %); the current version had 230 in the same time, too few to compare, and is \
             taken for what it was before (1.2 %); up to 5 percentage points more are allowed"
        );
        assert_eq!(
            errors(Against::Nothing),
            "5 of its 25 requests failed (20 %); the current version had 230 in the same time, too few to compare, and is \
             taken for one that never fails; up to 5 percentage points more are allowed"
        );
        let latency = Reason::Latency {
            candidate: 100,
            candidate_p99: 412_345,
            current: 900,
            current_p99: 150_049,
            bound: 300_098,
        };
        assert_eq!(
            latency.to_string(),
            "the p99 of its 100 requests is 412.3 ms; of the current version's 900 it is 150 ms, which allows 300.1 ms"
        );
    }
}
