//! A histogram of durations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts durations by the smallest bound that they don't exceed. An observation is two relaxed additions.
#[derive(Debug)]
pub struct Histogram {
    /// In nanoseconds, ascending.
    bounds: &'static [u64],
    /// One per bound, and one for what exceeds them all. Not cumulative.
    buckets: Box<[AtomicU64]>,
    sum_nanos: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Bounds in seconds, each with the number of observations up to it.
    pub cumulative: Vec<(f64, u64)>,
    /// All observations.
    pub count: u64,
    /// Their sum in seconds.
    pub sum: f64,
}

impl Histogram {
    /// An empty one. `bounds` are nanoseconds, ascending.
    pub fn new(bounds: &'static [u64]) -> Self {
        Self {
            bounds,
            buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum_nanos: AtomicU64::new(0),
        }
    }

    /// Count one duration.
    pub fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let at = self.bounds.partition_point(|bound| *bound < nanos);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        if nanos > 0 {
            self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
        }
    }

    /// What it holds now. The count is the sum of the buckets, so the two always agree.
    pub fn snapshot(&self) -> Snapshot {
        let sum = self.sum_nanos.load(Ordering::Relaxed) as f64 / 1e9;
        let mut count = 0;
        let mut counts = self.buckets.iter().map(|bucket| {
            count += bucket.load(Ordering::Relaxed);
            count
        });
        let cumulative = self
            .bounds
            .iter()
            .map(|bound| *bound as f64 / 1e9)
            .zip(counts.by_ref())
            .collect();
        let last = counts.last();
        Snapshot {
            cumulative,
            count: last.unwrap_or(0),
            sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_bounds_inclusive() {
        let histogram = Histogram::new(&[1_000_000, 2_000_000, 5_000_000]);
        for micros in [0, 1_000, 1_001, 2_000, 4_000, 60_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.cumulative, [(0.001, 2), (0.002, 4), (0.005, 5)]);
        assert_eq!(snapshot.count, 6);
        assert!((snapshot.sum - 60.008_001).abs() < 1e-9, "{}", snapshot.sum);
    }

    #[test]
    fn a_duration_beyond_all_measure_is_counted_at_the_end() {
        let histogram = Histogram::new(&[1]);
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.snapshot().cumulative, [(1e-9, 0)]);
        assert_eq!(histogram.snapshot().count, 1);
    }
}
