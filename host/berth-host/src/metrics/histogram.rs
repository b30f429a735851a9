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

impl Snapshot {
    /// The duration that this part of all observations, from 0 to 1, don't exceed; none without observations.
    ///
    /// As PromQL's `histogram_quantile` for classic histograms
    /// (<https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile>), so that an operator sees the
    /// same number in both places: interpolated as if a bucket's observations were spread evenly over it, the first one
    /// beginning at 0, and the largest bound if it lies beyond. So it is as exact as the bounds are close, and what is at the
    /// largest bound may be much longer.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let rank = q.clamp(0.0, 1.0) * self.count as f64;
        let (mut start, mut before) = (0.0, 0);
        for &(bound, cumulative) in &self.cumulative {
            // Not an empty bucket, where 0 of nothing would be asked for.
            if cumulative > before && cumulative as f64 >= rank {
                let part = (rank - before as f64) / (cumulative - before) as f64;
                return Duration::try_from_secs_f64(start + (bound - start) * part).ok();
            }
            (start, before) = (bound, cumulative);
        }
        Duration::try_from_secs_f64(start).ok()
    }

    /// The mean of all observations; none without any.
    pub fn mean(&self) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        Duration::try_from_secs_f64(self.sum / self.count as f64).ok()
    }
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

    fn of(bounds: &'static [u64], micros: &[u64]) -> Snapshot {
        let histogram = Histogram::new(bounds);
        micros
            .iter()
            .for_each(|micros| histogram.observe(Duration::from_micros(*micros)));
        histogram.snapshot()
    }

    fn millis(snapshot: &Snapshot, q: f64) -> f64 {
        (snapshot.quantile(q).unwrap().as_secs_f64() * 1e6).round() / 1e3
    }

    const BOUNDS: &[u64] = &[10_000_000, 20_000_000, 40_000_000];

    #[test]
    fn nothing_has_neither_quantile_nor_mean() {
        let nothing = of(BOUNDS, &[]);
        assert_eq!(nothing.quantile(0.5), None);
        assert_eq!(nothing.mean(), None);
    }

    #[test]
    fn quantile_is_interpolated_within_its_bucket() {
        // 4 up to 10 ms, 4 up to 20, 2 up to 40.
        let snapshot = of(
            BOUNDS,
            &[
                1_000, 1_000, 1_000, 1_000, 15_000, 15_000, 15_000, 15_000, 30_000, 30_000,
            ],
        );
        assert_eq!(millis(&snapshot, 0.1), 2.5);
        assert_eq!(millis(&snapshot, 0.5), 12.5);
        assert_eq!(millis(&snapshot, 0.9), 30.0);
        assert_eq!(snapshot.mean(), Some(Duration::from_micros(12_400)));
    }

    #[test]
    fn quantile_at_the_end_of_a_bucket_is_its_bound() {
        let snapshot = of(BOUNDS, &[1_000, 15_000, 30_000, 30_000]);
        assert_eq!(millis(&snapshot, 0.25), 10.0);
        assert_eq!(millis(&snapshot, 0.5), 20.0);
        assert_eq!(millis(&snapshot, 1.0), 40.0);
        assert_eq!(millis(&snapshot, 7.0), 40.0, "there is no more than all");
    }

    #[test]
    fn empty_buckets_are_passed_over() {
        let snapshot = of(BOUNDS, &[30_000, 30_000]);
        assert_eq!(millis(&snapshot, 0.0), 20.0);
        assert_eq!(millis(&snapshot, 0.5), 30.0);
        assert_eq!(millis(&snapshot, -1.0), 20.0);
    }

    #[test]
    fn quantile_beyond_the_largest_bound_is_that_bound() {
        let snapshot = of(BOUNDS, &[60_000_000, 60_000_000]);
        assert_eq!(millis(&snapshot, 0.01), 40.0);
        assert_eq!(millis(&snapshot, 0.99), 40.0);
        assert_eq!(snapshot.mean(), Some(Duration::from_secs(60)));
        let mixed = of(BOUNDS, &[5_000, 60_000_000]);
        assert_eq!(millis(&mixed, 0.5), 10.0);
        assert_eq!(millis(&mixed, 0.51), 40.0);
    }
}
