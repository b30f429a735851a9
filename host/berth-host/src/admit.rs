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

/// How many requests may wait for a plugin, as a multiple of how many may run.
pub const QUEUE_FACTOR: u32 = 4;

/// A plugin's share.
#[derive(Debug)]
pub struct Slots {
    running: Arc<Semaphore>,
    waiting: AtomicU32,
    queue: u32,
}

/// The right to hold one instance. Dropping it gives it back.
#[derive(Debug)]
pub struct Admission {
    _plugin: OwnedSemaphorePermit,
    _instance: OwnedSemaphorePermit,
    /// How long the request waited for it.
    pub queued: Duration,
}

impl Slots {
    /// `concurrency` requests may run.
    pub fn new(concurrency: u32) -> Self {
        Self {
            running: Arc::new(Semaphore::new(concurrency as usize)),
            waiting: AtomicU32::new(0),
            queue: concurrency.saturating_mul(QUEUE_FACTOR),
        }
    }

    /// How many requests are waiting.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Wait for a place, at most `patience`.
    ///
    /// # Errors
    /// [`Error::PluginBusy`] at once when the queue is full; [`Error::HostBusy`] when `patience` is over.
    pub async fn admit(&self, instances: &Arc<Semaphore>, patience: Duration) -> Result<Admission, Error> {
        let at_once = Arc::clone(&self.running)
            .try_acquire_owned()
            .and_then(|plugin| Ok((plugin, Arc::clone(instances).try_acquire_owned()?)));
        if let Ok((plugin, instance)) = at_once {
            return Ok(Admission {
                _plugin: plugin,
                _instance: instance,
                queued: Duration::ZERO,
            });
        }
        let started = Instant::now();
        let _place = self.queue()?;
        let both = async {
            let plugin = Arc::clone(&self.running).acquire_owned().await;
            let instance = Arc::clone(instances).acquire_owned().await;
            (plugin, instance)
        };
        match timeout(patience, both).await {
            Ok((Ok(plugin), Ok(instance))) => Ok(Admission {
                _plugin: plugin,
                _instance: instance,
                queued: started.elapsed(),
            }),
            // The semaphores are never closed, so what is left is that the time is over.
            _ => Err(Error::HostBusy),
        }
    }

    fn queue(&self) -> Result<Place<'_>, Error> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = Place(&self.waiting);
        if before >= self.queue {
            Err(Error::PluginBusy)
        } else {
            Ok(place)
        }
    }
}

/// A place in the queue.
struct Place<'a>(&'a AtomicU32);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_place_is_given_back_when_the_admission_is_dropped() {
        let (slots, instances) = (Slots::new(1), Arc::new(Semaphore::new(1)));
        let first = slots.admit(&instances, PATIENCE).await.unwrap();
        assert!(matches!(
            slots.admit(&instances, PATIENCE).await,
            Err(Error::HostBusy)
        ));
        drop(first);
        assert!(slots.admit(&instances, PATIENCE).await.is_ok());
        assert_eq!(slots.waiting(), 0);
        assert_eq!(instances.available_permits(), 1);
    }

    #[tokio::test]
    async fn exactly_the_excess_over_cap_and_queue_is_sent_away() {
        let (slots, instances) = (Arc::new(Slots::new(2)), Arc::new(Semaphore::new(100)));
        let held = [
            slots.admit(&instances, PATIENCE).await.unwrap(),
            slots.admit(&instances, PATIENCE).await.unwrap(),
        ];
        let waiting: Vec<_> = (0..12)
            .map(|_| {
                let (slots, instances) = (Arc::clone(&slots), Arc::clone(&instances));
                tokio::spawn(async move { slots.admit(&instances, Duration::from_secs(10)).await.map(drop) })
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
}
