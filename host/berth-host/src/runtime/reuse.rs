//! Instances that serve more than one request, and the shelf of those that serve one after another
//! (`reuse = "serial"`).
//!
//! An instance goes back to its version's shelf only after a request that ended well, and only while it is as it was
//! made: not used up, not grown, holding nothing. A trap or a timeout drops it. An idle one keeps its place among the
//! host's instances; it is given up when another plugin needs the place, or after [`IDLE`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::instance::Instance;

/// How long an instance may wait for its next request.
pub const IDLE: Duration = Duration::from_secs(10);

/// Whether instances are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// A fresh instance for every request.
    None,
    /// One request after another.
    Serial {
        /// Requests that one instance serves at most.
        count: u32,
        /// Choose the count of each instance at random, from 1 to `count` or [`DEVELOPMENT_COUNT`]: state that a
        /// plugin keeps by mistake then shows while it is being developed.
        random: bool,
    },
    /// Several requests at once, for 0.3 handlers; see [`super::concurrent`].
    Concurrent {
        /// Requests that one instance serves at most.
        count: u32,
        /// Of these, at once.
        at_once: u32,
        /// As for `Serial`.
        random: bool,
    },
}

/// The most uses of an instance while developing.
pub const DEVELOPMENT_COUNT: u32 = 8;

impl Reuse {
    /// The same with counts at random.
    pub fn for_development(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Serial { count, .. } => Self::Serial { count, random: true },
            Self::Concurrent { count, at_once, .. } => Self::Concurrent {
                count,
                at_once,
                random: true,
            },
        }
    }

    /// How many requests a new instance may serve.
    pub fn uses(self) -> u32 {
        match self {
            Self::None => 1,
            Self::Serial { count, random } | Self::Concurrent { count, random, .. } => match random {
                false => count,
                true => fastrand::u32(1..=count.clamp(1, DEVELOPMENT_COUNT)),
            },
        }
    }
}

/// Growth that is no reason to give an instance up: heaps fill up during the first requests.
const FREE_MEMORY: usize = 4 * 1024 * 1024;
const FREE_ELEMENTS: usize = 1_000;

/// Whether an instance's memory (bytes) or tables (elements) have grown so much that it should not be used again: to
/// twice of what they were after its start, and by more than a little.
pub(super) fn has_grown(born_with: (usize, usize), now: (usize, usize)) -> bool {
    let too_much = |born: usize, now: usize, free: usize| now > born.saturating_add(born.max(free));
    too_much(born_with.0, now.0, FREE_MEMORY) || too_much(born_with.1, now.1, FREE_ELEMENTS)
}

/// The idle instances of one version, the latest used on top: it is the warmest, and the others can grow old.
#[derive(Debug, Default)]
pub struct Shelf {
    idle: Mutex<Vec<(Box<Instance>, Instant)>>,
    closed: AtomicBool,
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, Vec<(Box<Instance>, Instant)>> {
        // What a panic can leave behind is a shelf with one instance less.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take one.
    pub fn take(&self) -> Option<Box<Instance>> {
        self.lock().pop().map(|(instance, _)| instance)
    }

    /// Put one back.
    pub fn put(&self, instance: Instance) {
        let mut idle = self.lock();
        // Under the lock, so that nothing is put on a shelf after it was closed.
        if !self.closed.load(Ordering::Relaxed) {
            idle.push((Box::new(instance), Instant::now()));
        }
    }

    /// How many are idle.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Give up the one that has waited longest. False if there is none.
    pub fn give_up_one(&self) -> bool {
        let oldest = {
            let mut idle = self.lock();
            (!idle.is_empty()).then(|| idle.remove(0))
        };
        // Dropped here, outside the lock: it resets memory.
        oldest.is_some()
    }

    /// Give up all that have waited longer than this.
    pub fn give_up_older(&self, age: Duration) {
        let old: Vec<_> = {
            let mut idle = self.lock();
            let fresh = idle
                .iter()
                .position(|(_, since)| since.elapsed() < age)
                .unwrap_or(idle.len());
            idle.drain(..fresh).collect()
        };
        drop(old);
    }

    /// Give up all, and take none back.
    pub fn close(&self) {
        let all = {
            let mut idle = self.lock();
            self.closed.store(true, Ordering::Relaxed);
            std::mem::take(&mut *idle)
        };
        drop(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_judged_by_what_the_instance_began_with() {
        const MIB: usize = 1024 * 1024;
        assert!(!has_grown((MIB, 100), (5 * MIB, 1_100)));
        assert!(has_grown((MIB, 100), (5 * MIB + 1, 100)));
        assert!(has_grown((MIB, 100), (MIB, 1_101)));
        assert!(!has_grown((20 * MIB, 0), (40 * MIB, 0)));
        assert!(has_grown((20 * MIB, 0), (41 * MIB, 0)));
    }

    #[test]
    fn development_counts_are_small_and_vary() {
        let reuse = Reuse::Serial {
            count: 1000,
            random: false,
        }
        .for_development();
        let counts: std::collections::BTreeSet<u32> = (0..1000).map(|_| reuse.uses()).collect();
        assert_eq!(counts, (1..=DEVELOPMENT_COUNT).collect());
        assert_eq!(
            Reuse::Serial {
                count: 1000,
                random: false
            }
            .uses(),
            1000
        );
        assert_eq!(Reuse::None.uses(), 1);
    }
}
