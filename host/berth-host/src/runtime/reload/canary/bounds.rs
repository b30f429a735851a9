//! What a trial is judged by.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// What a candidate must hold to; the reasons for the defaults are in the table of [`super`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bounds {
    /// The fewest candidate requests that are judged.
    pub min_requests: u64,
    /// The fewest failures, or slow requests, that are held against it.
    pub min_failures: u64,
    /// Percentage points that its rate of failures may be over the current version's.
    pub error_points: f64,
    /// The fewest requests of each side from which a p99 is read.
    pub p99_requests: u64,
    /// How many times the current version's p99 its own may be.
    pub p99_factor: f64,
    /// By how much its p99 may be over the current version's in any case. In milliseconds as JSON.
    #[serde(rename = "p99FloorMs", serialize_with = "milliseconds")]
    pub p99_floor: Duration,
    /// Candidate requests that promote it. If that is fewer than `min_requests` or `p99_requests`, it is promoted without
    /// having been judged by them.
    pub promote_after: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            min_requests: 20,
            min_failures: 3,
            error_points: 5.0,
            p99_requests: 100,
            p99_factor: 2.0,
            p99_floor: Duration::from_millis(10),
            promote_after: 500,
        }
    }
}

fn milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64() * 1e3)
}
