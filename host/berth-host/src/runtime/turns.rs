//! Whose turn it is to run guest code, so that a thread is always left for everybody else.
//!
//! A guest that an epoch tick finds running is *caught*: it gives its thread back and wants to go on. While fewer are
//! in that state than there are workers but one, there are no turns and this costs a poll one atomic load. From there
//! on the host is *crowded*:
//!
//! - Hogs, which have used more than their free time, share as many permits as there are workers but one.
//! - Everybody else shares one permit, for the length of a poll. A short call doesn't notice. Whoever is caught gives
//!   it back only after [`REST`], in which the last worker is free: without it, two hundred guests that begin to spin
//!   at once would each take their first ticks before a waiting `/health` is read from its socket.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::limits::Meter;

/// How long the last worker is kept free of guests after one of them was caught there.
const REST: Duration = Duration::from_millis(1);

/// The turns of a process.
#[derive(Debug)]
pub struct Turns {
    hogs: Arc<Semaphore>,
    others: Arc<Semaphore>,
    /// Guests that were caught and want to go on.
    caught: AtomicUsize,
    /// So many of them make a crowd; also the permits of the hogs.
    crowd: usize,
}

type Turn = Result<OwnedSemaphorePermit, AcquireError>;

impl Turns {
    /// For so many worker threads.
    pub fn new(workers: usize) -> Self {
        let crowd = workers.saturating_sub(1).max(1);
        Self {
            hogs: Arc::new(Semaphore::new(crowd)),
            others: Arc::new(Semaphore::new(1)),
            caught: AtomicUsize::new(0),
            crowd,
        }
    }

    /// Wait for a hog's turn. Nothing if there are no turns any more, which doesn't happen.
    pub(super) async fn hog(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.hogs).acquire_owned().await.ok()
    }

    fn is_crowded(&self) -> bool {
        self.caught.load(Ordering::Relaxed) >= self.crowd
    }
}

/// Run a guest's `future`: each of its polls in its turn, and its time counted on `meter`.
pub async fn metered<F: Future>(meter: &Meter, future: F) -> F::Output {
    Metered {
        meter,
        future: pin!(future),
        waiting: None,
        caught: false,
    }
    .await
}

struct Metered<'a, F> {
    meter: &'a Meter,
    future: Pin<&'a mut F>,
    /// For a turn.
    waiting: Option<Pin<Box<dyn Future<Output = Turn> + Send>>>,
    /// Counted among those that were caught.
    caught: bool,
}

impl<F: Future> Metered<'_, F> {
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Option<OwnedSemaphorePermit>> {
        let turns = self.meter.turns();
        // A hog that gave its thread back queues inside the guest's own future, which must be polled for that.
        if self.meter.is_queued() || !turns.is_crowded() {
            self.waiting = None;
            return Poll::Ready(None);
        }
        if self.waiting.is_none() {
            let others = Arc::clone(&turns.others);
            match Arc::clone(&others).try_acquire_owned() {
                Ok(permit) => return Poll::Ready(Some(permit)),
                Err(_) => self.waiting = Some(Box::pin(others.acquire_owned())),
            }
        }
        let turn = match &mut self.waiting {
            Some(waiting) => ready!(waiting.as_mut().poll(cx)),
            None => return Poll::Ready(None),
        };
        self.waiting = None;
        Poll::Ready(turn.ok())
    }

    fn count(&mut self, caught: bool) {
        if caught != self.caught {
            self.caught = caught;
            let all = &self.meter.turns().caught;
            if caught {
                all.fetch_add(1, Ordering::Relaxed);
            } else {
                all.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        struct Leave<'a>(&'a Meter);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.leave();
            }
        }
        let this = &mut *self;
        let turn = ready!(this.turn(cx));
        this.meter.enter();
        // Also when the poll panics: a permit must not be lost.
        let leave = Leave(this.meter);
        let polled = this.future.as_mut().poll(cx);
        drop(leave);
        let now = this.meter.take_caught();
        this.count(polled.is_pending() && (now || this.meter.is_queued()));
        if let (Some(turn), true) = (turn, now) {
            tokio::spawn(async move {
                tokio::time::sleep(REST).await;
                drop(turn);
            });
        }
        polled
    }
}

impl<F> Drop for Metered<'_, F> {
    fn drop(&mut self) {
        if self.caught {
            self.meter.turns().caught.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Instant;

    use super::*;
    use crate::runtime::limits::on_epoch;

    fn meter(turns: &Arc<Turns>) -> Arc<Meter> {
        Arc::new(Meter::new(Duration::from_secs(60), Arc::clone(turns)))
    }

    /// A guest that is caught by a tick in every poll, `times` times.
    async fn spinning(meter: Arc<Meter>, times: usize) {
        let guest = async {
            for _ in 0..times {
                match on_epoch(&meter) {
                    wasmtime::UpdateDeadline::YieldCustom(_, wait) => wait.await,
                    _ => panic!("it has time left"),
                }
            }
        };
        metered(&meter, guest).await;
    }

    #[tokio::test]
    async fn guests_that_end_leave_no_crowd_behind() {
        let turns = Arc::new(Turns::new(2));
        let all: Vec<_> = (0..8).map(|_| tokio::spawn(spinning(meter(&turns), 5))).collect();
        for one in all {
            one.await.unwrap();
        }
        assert_eq!(turns.caught.load(Ordering::Relaxed), 0);
        // One that is dropped while it waits leaves none either.
        let meter = meter(&turns);
        let mut parked = Box::pin(metered(&meter, async {
            if let wasmtime::UpdateDeadline::YieldCustom(_, wait) = on_epoch(&meter) {
                wait.await;
            }
            std::future::pending::<()>().await;
        }));
        assert!(futures::poll!(parked.as_mut()).is_pending());
        assert_eq!(turns.caught.load(Ordering::Relaxed), 1);
        drop(parked);
        assert_eq!(turns.caught.load(Ordering::Relaxed), 0);
        assert_eq!(turns.others.available_permits(), 1);
    }

    #[tokio::test]
    async fn in_a_crowd_guests_run_one_at_a_time() {
        let turns = Arc::new(Turns::new(2));
        turns.caught.store(1, Ordering::Relaxed);
        let (one, two) = (meter(&turns), meter(&turns));
        let mut steps = 0;
        // It is in its turn only while it is polled, so one that waits in a host call keeps nobody out.
        let mut first = Box::pin(metered(
            &one,
            poll_fn(|_| {
                steps += 1;
                if steps < 2 { Poll::Pending } else { Poll::Ready(()) }
            }),
        ));
        assert!(futures::poll!(first.as_mut()).is_pending());
        assert_eq!(turns.others.available_permits(), 1);
        let held = Arc::clone(&turns.others).try_acquire_owned().unwrap();
        let mut second = Box::pin(metered(&two, async { 7 }));
        assert!(
            futures::poll!(second.as_mut()).is_pending(),
            "somebody else's turn"
        );
        drop(held);
        assert_eq!(futures::poll!(second.as_mut()), Poll::Ready(7));
        assert_eq!(futures::poll!(first.as_mut()), Poll::Ready(()));
    }

    #[tokio::test]
    async fn whoever_was_caught_gives_its_turn_back_after_a_rest() {
        let turns = Arc::new(Turns::new(2));
        turns.caught.store(1, Ordering::Relaxed);
        let meter = meter(&turns);
        let mut guest = Box::pin(spinning(Arc::clone(&meter), 1));
        let started = Instant::now();
        assert!(futures::poll!(guest.as_mut()).is_pending());
        assert_eq!(turns.others.available_permits(), 0, "the last worker rests");
        let _turn = Arc::clone(&turns.others).acquire_owned().await.unwrap();
        assert!(started.elapsed() >= REST);
    }
}
