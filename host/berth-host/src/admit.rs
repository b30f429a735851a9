//! Who may run now, who waits, who is sent away.
//!
//! Order: a plugin's own cap, with a bounded queue in front (full: 429); then one of the host's instances, which is
//! given back only when the store is dropped (none within the plugin's wall time: 503). So one busy plugin can't
//! take the others' places, and the allocator never runs out of slots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::Error;
use crate::runtime::instance::Instance;

/// How many requests may wait for a plugin, as a multiple of how many may run.
pub const QUEUE_FACTOR: u32 = 4;

/// What a request has when it may run.
#[derive(Debug)]
pub enum Admission {
    /// An instance that has served before.
    Idle {
        /// It.
        instance: Box<Instance>,
        /// The place in the plugin's share.
        place: Place,
    },
    /// The right to make one.
    Fresh {
        /// The place in the plugin's share.
        place: Place,
        /// The place among the host's instances.
        instance: OwnedSemaphorePermit,
    },
}

impl Admission {
    /// How long the request waited for it.
    pub fn queued(&self) -> Duration {
        match self {
            Self::Idle { place, .. } | Self::Fresh { place, .. } => place.queued,
        }
    }
}

/// A place in a plugin's share. Dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
    queued: Duration,
}

impl Place {
    /// How long the request has waited so far.
    pub fn queued(&self) -> Duration {
        self.queued
    }

    /// Count more waiting.
    pub fn waited(&mut self, time: Duration) {
        self.queued += time;
    }
}

/// A plugin's share.
#[derive(Debug)]
pub struct Slots {
    running: Arc<Semaphore>,
    waiting: AtomicU32,
    concurrency: u32,
    queue: u32,
}

impl Slots {
    /// `concurrency` requests may run.
    pub fn new(concurrency: u32) -> Self {
        Self {
            running: Arc::new(Semaphore::new(concurrency as usize)),
            waiting: AtomicU32::new(0),
            concurrency,
            queue: concurrency.saturating_mul(QUEUE_FACTOR),
        }
    }

    /// How many requests have a place.
    pub fn running(&self) -> usize {
        (self.concurrency as usize).saturating_sub(self.running.available_permits())
    }

    /// How many requests are waiting.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Wait for a place, at most `patience`.
    ///
    /// # Errors
    /// [`Error::PluginBusy`] at once when the queue is full; [`Error::HostBusy`] when `patience` is over.
    pub async fn enter(&self, patience: Duration) -> Result<Place, Error> {
        if let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() {
            return Ok(Place {
                _permit: permit,
                queued: Duration::ZERO,
            });
        }
        let started = Instant::now();
        let _queued = Waiting::join(&self.waiting, self.queue).ok_or(Error::PluginBusy)?;
        match timeout(patience, Arc::clone(&self.running).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Place {
                _permit: permit,
                queued: started.elapsed(),
            }),
            // The semaphore is never closed, so what is left is that the time is over.
            _ => Err(Error::HostBusy),
        }
    }
}

/// The host's instances, over all plugins.
#[derive(Debug)]
pub struct Instances {
    permits: Arc<Semaphore>,
    waiting: AtomicU32,
    total: u32,
}

impl Instances {
    /// `total` may live at once.
    pub fn new(total: u32) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(total as usize)),
            waiting: AtomicU32::new(0),
            total,
        }
    }

    /// How many could be made now.
    pub fn free(&self) -> usize {
        self.permits.available_permits()
    }

    /// How many live.
    pub fn live(&self) -> usize {
        (self.total as usize).saturating_sub(self.free())
    }

    /// How many requests wait for one.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for one.
    pub fn wanted(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Wait for the right to make one, at most `patience`. `give_up_idle` drops an idle instance of any plugin and
    /// says whether there was one.
    ///
    /// # Errors
    /// [`Error::HostBusy`] when `patience` is over.
    pub async fn take(
        &self,
        patience: Duration,
        give_up_idle: impl Fn() -> bool,
    ) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        // Counted before the shelves are looked at: an instance that is put back later sees that it is wanted.
        let _waiting = Waiting::join(&self.waiting, u32::MAX);
        give_up_idle();
        match timeout(patience, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::HostBusy),
        }
    }

    /// Wait until none is left.
    pub async fn all_gone(&self) {
        // Never closed, so the result says nothing.
        let _ = self.permits.acquire_many(self.total).await;
    }
}

/// Counts somebody who waits.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn join(count: &'a AtomicU32, limit: u32) -> Option<Self> {
        let before = count.fetch_add(1, Ordering::SeqCst);
        let waiting = Self(count);
        (before < limit).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_place_is_given_back_when_it_is_dropped() {
        let slots = Slots::new(1);
        let first = slots.enter(PATIENCE).await.unwrap();
        assert!(matches!(slots.enter(PATIENCE).await, Err(Error::HostBusy)));
        drop(first);
        assert!(slots.enter(PATIENCE).await.is_ok());
        assert_eq!(slots.waiting(), 0);
    }

    #[tokio::test]
    async fn exactly_the_excess_over_cap_and_queue_is_sent_away() {
        let slots = Arc::new(Slots::new(2));
        let held = [
            slots.enter(PATIENCE).await.unwrap(),
            slots.enter(PATIENCE).await.unwrap(),
        ];
        let waiting: Vec<_> = (0..12)
            .map(|_| {
                let slots = Arc::clone(&slots);
                tokio::spawn(async move { slots.enter(Duration::from_secs(10)).await.map(drop) })
            })
            .collect();
        while waiting.iter().filter(|w| w.is_finished()).count() < 4 {
            tokio::task::yield_now().await;
        }
        drop(held);
        let mut busy = 0;
        for task in waiting {
            match task.await.unwrap() {
                Ok(()) => {}
                Err(Error::PluginBusy) => busy += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        assert_eq!(busy, 4, "2 run, 8 wait, 4 of 14 are sent away");
    }

    #[tokio::test]
    async fn an_idle_instance_is_given_up_for_who_waits() {
        let instances = Instances::new(1);
        let idle = Mutex::new(Some(instances.take(PATIENCE, || false).await.unwrap()));
        assert!(matches!(
            instances.take(PATIENCE, || false).await,
            Err(Error::HostBusy)
        ));
        assert!(!instances.wanted());
        let give_up = || idle.lock().unwrap().take().is_some();
        assert!(instances.take(PATIENCE, give_up).await.is_ok());
        instances.all_gone().await;
        assert_eq!(instances.free(), 1);
    }
}
