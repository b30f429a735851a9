//! Failures of a version in a row: said once, and, for the `auth` policy, not repeated without a pause.
//!
//! A handler that always traps costs each of its requests one 5xx and one instance, and is served as before: the next
//! request may be the one that works. A policy that is asked for every request of other plugins is different: it gets
//! a pause, in which nobody is anybody.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// So many failures in a row are a loop.
pub const LOOP: u32 = 20;
/// How long a policy in a loop is left alone after each failure.
pub const PAUSE: Duration = Duration::from_secs(1);

/// The failures in a row of one version.
#[derive(Debug)]
pub struct Streak {
    base: Instant,
    failures: AtomicU32,
    /// Milliseconds after `base` of the last failure.
    last: AtomicU64,
}

impl Default for Streak {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            failures: AtomicU32::new(0),
            last: AtomicU64::new(0),
        }
    }
}

impl Streak {
    /// A run failed. True if this is the failure that makes it a loop.
    pub fn failed(&self) -> bool {
        let now = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1) == LOOP
    }

    /// A run went well. True if that ends a loop.
    pub fn went_well(&self) -> bool {
        // A load alone in the usual case: the line is shared by all workers.
        self.failures.load(Ordering::Relaxed) != 0 && self.failures.swap(0, Ordering::Relaxed) >= LOOP
    }

    /// Whether it is in a loop and has failed a moment ago.
    pub fn pauses(&self) -> bool {
        if self.failures.load(Ordering::Relaxed) < LOOP {
            return false;
        }
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.base.elapsed().saturating_sub(last) < PAUSE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loop_is_said_once_and_ends_with_the_first_success() {
        let streak = Streak::default();
        let said: Vec<bool> = (0..LOOP + 5).map(|_| streak.failed()).collect();
        assert_eq!(said.iter().filter(|s| **s).count(), 1);
        assert!(said[LOOP as usize - 1]);
        assert!(streak.pauses());
        assert!(streak.went_well());
        assert!(!streak.went_well());
        assert!(!streak.pauses());
    }

    #[test]
    fn few_failures_are_no_loop() {
        let streak = Streak::default();
        assert!((1..LOOP).all(|_| !streak.failed()));
        assert!(!streak.pauses());
        assert!(!streak.went_well());
    }
}
