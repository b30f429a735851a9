//! Whose turn it is to run guest code, so that a thread is always left for everybody else.
//!
//! A guest that an epoch tick finds running, and not just begun, is *caught*: it gives its thread back and wants to go
//! on. While fewer are in that state than there are workers but one, there are no turns and this costs a poll one atomic
//! load. From there on the host is *crowded*:
//!
//! - Hogs, which have used more than their free time, share as many permits as there are workers but one.
//! - Everybody else shares one turn, for the length of a poll. A short call doesn't notice. Whoever is caught gives it
//!   back only after a millisecond, in which the last worker is free: without it, two hundred guests that begin to spin
//!   at once would each take their first ticks before a waiting `/health` is read from its socket.
//! - Of those who wait, one that was never caught goes first, and of these the latest: in a crowd most of the others are
//!   about to be caught, and a short call would wait for all of them. But every fourth turn is for whoever has waited
//!   longest. Without it, those who always come anew would keep one that was caught waiting, it would go on being a
//!   crowd, and the first of the others would wait as long as that lasts.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::limits::Meter;

/// How long the last worker is kept free of guests after one of them was caught there.
const REST: Duration = Duration::from_millis(1);

/// One turn of so many is for whoever has waited longest.
const OLDEST: u32 = 4;

/// The turns of a process.
#[derive(Debug)]
pub struct Turns {
    hogs: Arc<Semaphore>,
    line: Mutex<Line>,
    /// Guests that were caught and want to go on.
    caught: AtomicUsize,
    /// So many of them make a crowd; also the permits of the hogs.
    crowd: usize,
}

/// Who has the turn of all that are no hogs, and who waits for it.
#[derive(Debug, Default)]
struct Line {
    taken: bool,
    /// Never caught so far. The latest is the last, here and among the others.
    new: VecDeque<Place>,
    others: VecDeque<Place>,
    /// Counts those who come.
    came: u64,
    /// Counts the turns.
    called: u32,
}

#[derive(Debug)]
struct Place {
    number: u64,
    call: oneshot::Sender<Turn>,
}

impl Line {
    /// Whoever is next of those who have not left.
    fn next(&mut self) -> Option<Place> {
        for line in [&mut self.new, &mut self.others] {
            while line.pop_front_if(|place| place.call.is_closed()).is_some() {}
        }
        while self.new.pop_back_if(|place| place.call.is_closed()).is_some() {}
        self.called = self.called.wrapping_add(1);
        if self.called.is_multiple_of(OLDEST) {
            let first = |line: &VecDeque<Place>| line.front().map_or(u64::MAX, |place| place.number);
            let oldest = if first(&self.new) < first(&self.others) {
                &mut self.new
            } else {
                &mut self.others
            };
            return oldest.pop_front();
        }
        self.new.pop_back().or_else(|| self.others.pop_front())
    }
}

/// The turn; passed on when it is dropped. Nothing in it once it was.
#[derive(Debug)]
struct Turn(Option<Arc<Turns>>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass_on();
        }
    }
}

impl Turns {
    /// For so many worker threads.
    pub fn new(workers: usize) -> Self {
        let crowd = workers.saturating_sub(1).max(1);
        Self {
            hogs: Arc::new(Semaphore::new(crowd)),
            line: Mutex::default(),
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

    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing in here panics half-way.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn, or a place in the line.
    fn take(self: &Arc<Self>, is_new: bool) -> Result<Turn, oneshot::Receiver<Turn>> {
        let mut line = self.line();
        if !line.taken {
            line.taken = true;
            return Ok(Turn(Some(Arc::clone(self))));
        }
        let waiting = if is_new { &mut line.new } else { &mut line.others };
        if waiting.len() == waiting.capacity() {
            // Whoever has left is usually found when it is called; in a crowd that doesn't end, the first are not.
            waiting.retain(|place| !place.call.is_closed());
        }
        let (call, called) = oneshot::channel();
        line.came += 1;
        let number = line.came;
        let waiting = if is_new { &mut line.new } else { &mut line.others };
        waiting.push_back(Place { number, call });
        Err(called)
    }

    fn pass_on(self: Arc<Self>) {
        let mut line = self.line();
        while let Some(place) = line.next() {
            match place.call.send(Turn(Some(Arc::clone(&self)))) {
                Ok(()) => return,
                // Left. This turn isn't one, or dropping it would come back here, with the line held.
                Err(mut turn) => turn.0 = None,
            }
        }
        line.taken = false;
    }
}

/// Run a guest's `future`: each of its polls in its turn, and its time counted on `meter`.
pub async fn metered<F: Future>(meter: &Meter, future: F) -> F::Output {
    Metered {
        meter,
        future: pin!(future),
        waiting: None,
        caught: false,
        was_caught: false,
    }
    .await
}

struct Metered<'a, F> {
    meter: &'a Meter,
    future: Pin<&'a mut F>,
    /// For a turn.
    waiting: Option<oneshot::Receiver<Turn>>,
    /// Counted among those that were caught and want to go on.
    caught: bool,
    /// At any time.
    was_caught: bool,
}

impl<F: Future> Metered<'_, F> {
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Option<Turn>> {
        let turns = self.meter.turns();
        // A hog that gave its thread back queues inside the guest's own future, which must be polled for that.
        if self.meter.is_queued() || !turns.is_crowded() {
            self.waiting = None;
            return Poll::Ready(None);
        }
        let mut waiting = match self.waiting.take() {
            Some(waiting) => waiting,
            None => match turns.take(!self.was_caught) {
                Ok(turn) => return Poll::Ready(Some(turn)),
                Err(waiting) => waiting,
            },
        };
        match Pin::new(&mut waiting).poll(cx) {
            Poll::Ready(turn) => Poll::Ready(turn.ok()),
            Poll::Pending => {
                self.waiting = Some(waiting);
                Poll::Pending
            }
        }
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
        this.was_caught |= now;
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
    use crate::runtime::limits::{TICK, on_epoch};

    fn meter(turns: &Arc<Turns>) -> Arc<Meter> {
        Arc::new(Meter::new(Duration::from_secs(60), Arc::clone(turns)))
    }

    /// Be long enough on the CPU for a tick to count.
    fn work(meter: &Meter) {
        let begun = meter.running();
        while meter.running() < begun + TICK.as_nanos() as u64 / 2 {
            std::hint::spin_loop();
        }
    }

    /// A guest that is caught by a tick in every poll, `times` times.
    async fn spinning(meter: Arc<Meter>, times: usize) {
        let guest = async {
            for _ in 0..times {
                work(&meter);
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
            work(&meter);
            if let wasmtime::UpdateDeadline::YieldCustom(_, wait) = on_epoch(&meter) {
                wait.await;
            }
            std::future::pending::<()>().await;
        }));
        assert!(futures::poll!(parked.as_mut()).is_pending());
        assert_eq!(turns.caught.load(Ordering::Relaxed), 1);
        drop(parked);
        assert_eq!(turns.caught.load(Ordering::Relaxed), 0);
        assert!(!turns.line().taken);
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
        assert!(!turns.line().taken);
        let held = turns.take(true).unwrap();
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
        let next = turns.take(true).expect_err("the last worker rests");
        let _turn = next.await.unwrap();
        assert!(started.elapsed() >= REST);
    }

    /// Everybody who waits for a turn, by name.
    #[derive(Default)]
    struct Waiting(Vec<(&'static str, oneshot::Receiver<Turn>)>);

    impl Waiting {
        fn join(&mut self, turns: &Arc<Turns>, name: &'static str, is_new: bool) {
            self.0.push((name, turns.take(is_new).unwrap_err()));
        }

        fn leave(&mut self, name: &str) {
            self.0.retain(|(it, _)| *it != name);
        }

        /// Whose turn it is, and it.
        fn called(&mut self) -> (&'static str, Turn) {
            for at in 0..self.0.len() {
                if let Ok(turn) = self.0[at].1.try_recv() {
                    return (self.0.remove(at).0, turn);
                }
            }
            panic!("nobody is called");
        }
    }

    #[tokio::test]
    async fn the_latest_that_was_never_caught_goes_first_and_the_oldest_at_every_fourth_turn() {
        let turns = Arc::new(Turns::new(2));
        let mut held = turns.take(true).unwrap();
        let mut waiting = Waiting::default();
        for (name, is_new) in [
            ("old", false),
            ("first", true),
            ("second", true),
            ("left", true),
            ("third", true),
            ("last", true),
            ("caught", false),
        ] {
            waiting.join(&turns, name, is_new);
        }
        waiting.leave("left");
        let mut order = Vec::new();
        while !waiting.0.is_empty() {
            drop(held);
            let (name, turn) = waiting.called();
            order.push(name);
            held = turn;
        }
        drop(held);
        assert_eq!(order, ["last", "third", "second", "old", "first", "caught"]);
        assert!(!turns.line().taken);
    }

    /// Both a guest that was caught and one that was not, while others come without an end.
    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let turns = Arc::new(Turns::new(2));
        let mut held = turns.take(true).unwrap();
        let mut waiting = Waiting::default();
        waiting.join(&turns, "caught", false);
        waiting.join(&turns, "new", true);
        let mut order = Vec::new();
        for _ in 0..2 * OLDEST {
            waiting.join(&turns, "another", true);
            drop(held);
            let (name, turn) = waiting.called();
            order.push(name);
            held = turn;
        }
        let at = |name: &str| order.iter().position(|it| *it == name);
        assert_eq!(at("caught"), Some(OLDEST as usize - 1), "{order:?}");
        assert_eq!(at("new"), Some(2 * OLDEST as usize - 1), "{order:?}");
    }
}
