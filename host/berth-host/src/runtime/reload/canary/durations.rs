//! How long a side's requests took, by size.
//!
//! Buckets as in Gil Tene's HdrHistogram: every power of two is cut into as many equal steps, so a bucket's width is a
//! fixed part of its value at most (`1/16`), and which bucket it is takes a shift and no search. The metrics' histogram
//! isn't used: its bounds are up to 2.5 times apart, and a p99 from it can't tell twice from equal.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Steps of each power of two; below, every microsecond has its own.
const STEPS: u64 = 16;
/// 2^28 µs are 4.5 minutes; the wall time of a request ends long before.
const BUCKETS: usize = STEPS as usize * 25;

/// Durations by size: 3.2 KiB, whatever it counts.
#[derive(Debug)]
pub(super) struct Durations([AtomicU64; BUCKETS]);

impl Default for Durations {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }
}

/// How many of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) part: u64,
    pub(super) of: u64,
}

impl Durations {
    /// Count one.
    pub(super) fn add(&self, took: Duration) {
        if let Some(bucket) = self.0.get(bucket(micros(took))) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counts(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed))
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.counts().sum()
    }

    /// The nearest rank: the smallest of them that `percent` of all don't exceed, in microseconds, as the middle of its
    /// bucket, which is within 1/32 of it. None without any.
    pub(super) fn percentile(&self, percent: u64) -> Option<u64> {
        let rank = self.len().saturating_mul(percent).div_ceil(100).max(1);
        let mut so_far = 0;
        let at = self.counts().position(|count| {
            so_far += count;
            so_far >= rank
        })?;
        Some(middle(at))
    }

    /// How many took longer than this, in microseconds. What shares its bucket with it isn't counted.
    pub(super) fn over(&self, micros: u64) -> Part {
        let bound = bucket(micros);
        let mut over = Part { part: 0, of: 0 };
        for (at, count) in self.counts().enumerate() {
            over.of += count;
            if at > bound {
                over.part += count;
            }
        }
        over
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn bucket(micros: u64) -> usize {
    // How often it is halved until it is below two times the steps.
    let halvings = u64::from((micros | STEPS).ilog2() - STEPS.ilog2());
    let at = STEPS * halvings + (micros >> halvings);
    usize::try_from(at).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

fn middle(bucket: usize) -> u64 {
    let at = bucket as u64;
    let halvings = (at / STEPS).saturating_sub(1);
    let lowest = (at - STEPS * halvings) << halvings;
    let width = 1 << halvings;
    lowest + (width - 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middle_of_a_bucket_is_within_a_32nd_of_all_in_it() {
        let mut last = 0;
        let mut micros: u64 = 0;
        while micros < 1 << 28 {
            let at = bucket(micros);
            assert!(at == last || at == last + 1, "{micros} µs: {last} to {at}");
            last = at;
            assert!(
                middle(at).abs_diff(micros) <= micros / 32,
                "{micros} µs: {}",
                middle(at)
            );
            micros += 1 + micros / 1000;
        }
        assert_eq!(last, BUCKETS - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentile_is_the_nearest_rank() {
        let durations = Durations::default();
        assert_eq!(durations.percentile(99), None);
        durations.add(Duration::from_micros(7));
        assert_eq!(
            durations.percentile(50),
            Some(7),
            "one request is every percentile"
        );
        assert_eq!(durations.percentile(99), Some(7));
        for micros in 0..=5 {
            durations.add(Duration::from_micros(micros));
        }
        assert_eq!(
            durations.percentile(50),
            Some(3),
            "the fourth of 0, 1, 2, 3, 4, 5, 7"
        );
        assert_eq!(durations.percentile(99), Some(7), "below 100 it is the slowest");
    }

    #[test]
    fn one_of_a_hundred_is_beyond_the_p99() {
        let durations = Durations::default();
        (0..99).for_each(|_| durations.add(Duration::from_micros(10)));
        durations.add(Duration::MAX);
        assert_eq!(durations.percentile(99), Some(10));
        assert_eq!(durations.over(10), Part { part: 1, of: 100 });
        assert_eq!(durations.over(9), Part { part: 100, of: 100 });
    }

    #[test]
    fn what_shares_a_bucket_with_the_bound_is_not_over_it() {
        let durations = Durations::default();
        // From 1024 on a bucket is 64 wide.
        for micros in [1023, 1024, 1087, 1088] {
            durations.add(Duration::from_micros(micros));
        }
        assert_eq!(durations.over(1024), Part { part: 1, of: 4 });
        assert_eq!(durations.over(1087), Part { part: 1, of: 4 });
        assert_eq!(durations.over(1023), Part { part: 3, of: 4 });
    }
}
