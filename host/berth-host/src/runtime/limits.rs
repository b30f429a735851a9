//! What one request may use: CPU time, wall time, memory.
//!
//! Two clocks, because neither sees what the other sees. *CPU time* counts only while the guest's future is being
//! polled ([`super::turns::metered`]), so queueing, uploads and waiting in host calls are free, and so is what the kernel
//! gives to other threads meanwhile, but for a millisecond per poll at most (`runtime::cpu`; of stores that serve several
//! requests at once it is not); a guest that never returns from a
//! poll is caught by the epoch callback ([`on_epoch`]), which runs inside the guest every [`TICK`]. *Wall time* is a
//! timer outside the store ([`crate::dispatch`]), which catches a guest that is parked in a host call.
//!
//! At each tick the guest also gives its worker thread back, or two spinning guests would stop a two-core host.
//! A request that has used more than [`FREE_TICKS`] ticks is a *hog*: from then on it runs only with one of as many
//! permits as there are workers but one (one at least), so that a thread is left for everybody else; see [`super::turns`].

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use wasmtime::{ResourceLimiter, UpdateDeadline};

use super::cpu;
use super::turns::Turns;

/// How often the engine's epoch moves on, and so the precision of the CPU limit.
pub const TICK: Duration = Duration::from_millis(10);

/// How many ticks of CPU time a request may use before it has to queue for a hog permit.
pub const FREE_TICKS: u32 = 3;

/// The most elements a store's tables may have together. A large Rust or Python component has a few thousand.
pub const MAX_TABLE_ELEMENTS: usize = 100_000;

/// How much guest CPU time a request has used. Shared between the future that is timed, the epoch callback inside
/// the guest, and the log line.
#[derive(Debug)]
pub struct Meter {
    base: Instant,
    /// Nanoseconds of finished polls.
    spent: AtomicU64,
    /// Nanoseconds after `base` at which the present poll began.
    entered: AtomicU64,
    limit: u64,
    exhausted: AtomicBool,
    refused: AtomicU8,
    /// Bytes of linear memory that the store has.
    memory: AtomicUsize,
    hog: AtomicBool,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
    /// Whether only stretches of work without a wait are counted; see [`Meter::of_stretches`].
    stretches: bool,
    /// The guest has given its thread back and is to go on.
    yielding: AtomicBool,
    turns: Arc<Turns>,
    /// A tick found the guest running during the present poll.
    caught: AtomicBool,
    /// The guest's own future waits for a hog's permit.
    queued: AtomicBool,
}

/// The most of a stretch that one tick of the epoch may stand for: the tick, and what the ticker's thread is late.
const MOST_OF_A_TICK: u64 = TICK.as_nanos() as u64 * 3 / 2;

/// CPU time, in nanoseconds, below which a guest is not asked to give its thread back.
const HARDLY_BEGUN: u64 = TICK.as_nanos() as u64 / 2;

/// A growth that the limiter refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refused {
    /// Nothing was.
    Nothing = 0,
    /// Linear memory, by the store's own limit.
    Memory = 1,
    /// Table elements.
    Table = 2,
    /// Linear memory, by the budget of the process.
    Budget = 3,
    /// Linear memory, which the whole budget of the process would not be enough for.
    Total = 4,
}

impl Meter {
    /// A meter at zero.
    pub fn new(limit: Duration, turns: Arc<Turns>) -> Self {
        Self {
            base: Instant::now(),
            spent: AtomicU64::new(0),
            entered: AtomicU64::new(0),
            limit: nanos(limit),
            exhausted: AtomicBool::new(false),
            refused: AtomicU8::new(0),
            memory: AtomicUsize::new(0),
            hog: AtomicBool::new(false),
            permit: Mutex::new(None),
            turns,
            caught: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            stretches: false,
            yielding: AtomicBool::new(false),
        }
    }

    /// A meter for a store that serves several requests at once. Nobody can say whose a poll is, so what is limited is
    /// the time that the store works without once waiting for something: in that time no other request of the store
    /// gets on. Counted by ticks, so a limit may be passed by two of them.
    pub fn of_stretches(limit: Duration, turns: Arc<Turns>) -> Self {
        Self {
            stretches: true,
            ..Self::new(limit, turns)
        }
    }

    /// The store is gone: nothing is held for it any more, even if somebody still knows the meter.
    pub fn end(&self) {
        self.hold(None);
    }

    /// The store has been polled and waits. Unless the guest has only given its thread back, a stretch is over.
    pub fn rest(&self) {
        if !self.yielding.load(Ordering::Relaxed) {
            self.spent.store(0, Ordering::Relaxed);
        }
        if self.hog.load(Ordering::Relaxed) {
            self.hold(None);
        }
    }

    pub(super) fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    pub(super) fn is_queued(&self) -> bool {
        self.queued.load(Ordering::Relaxed)
    }

    /// Whether the guest was caught since this was last asked.
    pub(super) fn take_caught(&self) -> bool {
        // A load alone in the usual case: a swap takes the cache line for itself.
        self.caught.load(Ordering::Relaxed) && self.caught.swap(false, Ordering::Relaxed)
    }

    /// When the meter was made: the start of the request's run.
    pub fn base(&self) -> Instant {
        self.base
    }

    /// CPU time of all finished polls.
    pub fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent.load(Ordering::Relaxed))
    }

    /// Whether the CPU limit ended the guest.
    pub fn is_exhausted(&self) -> bool {
        self.exhausted.load(Ordering::Relaxed)
    }

    /// Which growth was refused last.
    pub fn refused(&self) -> Refused {
        match self.refused.load(Ordering::Relaxed) {
            1 => Refused::Memory,
            2 => Refused::Table,
            3 => Refused::Budget,
            4 => Refused::Total,
            _ => Refused::Nothing,
        }
    }

    /// Bytes of linear memory that the store has, over all its memories. A memory never shrinks, so that is also the most
    /// it has had; what an earlier request of the instance has grown it to is part of it.
    pub fn memory(&self) -> usize {
        self.memory.load(Ordering::Relaxed)
    }

    fn has_memory(&self, bytes: usize) {
        self.memory.store(bytes, Ordering::Relaxed);
    }

    fn refuse(&self, what: Refused) {
        self.refused.store(what as u8, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    fn at(&self, instant: Instant) -> u64 {
        nanos(instant.saturating_duration_since(self.base))
    }

    pub(super) fn enter(&self) {
        let now = Instant::now();
        cpu::note(now);
        self.entered.store(self.at(now), Ordering::Relaxed);
    }

    pub(super) fn leave(&self) {
        self.spent.fetch_add(self.slice(), Ordering::Relaxed);
        if self.hog.load(Ordering::Relaxed) {
            self.hold(None);
        }
    }

    pub(super) fn running(&self) -> u64 {
        if self.stretches {
            let now = self.now();
            let since = now.saturating_sub(self.entered.swap(now, Ordering::Relaxed));
            let slice = since.min(MOST_OF_A_TICK);
            return self
                .spent
                .fetch_add(slice, Ordering::Relaxed)
                .saturating_add(slice);
        }
        self.spent.load(Ordering::Relaxed).saturating_add(self.slice())
    }

    /// CPU time of the present poll.
    fn slice(&self) -> u64 {
        let now = Instant::now();
        let slice = self.at(now).saturating_sub(self.entered.load(Ordering::Relaxed));
        if slice < nanos(cpu::FRESH) {
            return slice;
        }
        cpu::worked().map_or(slice, |worked| slice.min(nanos(worked)))
    }

    /// Wait until the thread is free again. Not part of a stretch.
    async fn step_aside(&self) {
        self.yielding.store(true, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }

    fn go_on(&self) {
        self.yielding.store(false, Ordering::Relaxed);
        if self.stretches {
            self.enter();
        }
    }

    fn hold(&self, permit: Option<OwnedSemaphorePermit>) {
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = permit;
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The epoch callback's decision for a guest that is running now.
pub fn on_epoch(meter: &Arc<Meter>) -> UpdateDeadline {
    let used = meter.running();
    if used >= meter.limit {
        meter.exhausted.store(true, Ordering::Relaxed);
        return UpdateDeadline::Interrupt;
    }
    if used < HARDLY_BEGUN {
        // A tick that falls into a short call says nothing of it. Under load every tick falls into some.
        return UpdateDeadline::Continue(1);
    }
    meter.caught.store(true, Ordering::Relaxed);
    if used < u64::from(FREE_TICKS) * TICK.as_nanos() as u64 {
        // `YieldCustom` and not `Yield`: wasmtime's own yield goes to the front of the run queue and starves I/O.
        let meter = Arc::clone(meter);
        return UpdateDeadline::YieldCustom(
            1,
            Box::pin(async move {
                meter.step_aside().await;
                meter.go_on();
            }),
        );
    }
    meter.hog.store(true, Ordering::Relaxed);
    meter.queued.store(true, Ordering::Relaxed);
    let meter = Arc::clone(meter);
    UpdateDeadline::YieldCustom(
        1,
        Box::pin(async move {
            // Give the thread back first; the permit of the last slice is returned when the poll ends.
            meter.step_aside().await;
            let permit = meter.turns.hog().await;
            meter.hold(permit);
            meter.queued.store(false, Ordering::Relaxed);
            meter.go_on();
        }),
    )
}

/// How much linear memory all guests of the process may have together, and how much they have.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    /// `limit` is in bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
        }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that may be in use.
    pub fn limit(&self) -> usize {
        self.limit
    }

    fn take(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.limit {
            self.give(bytes);
            return false;
        }
        true
    }

    fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The limiter of one store. It sums over all memories (and all tables) of the store, and remembers a refusal, so
/// that the error says "memory" when the guest's allocator then aborts with `unreachable`.
#[derive(Debug)]
pub struct Limiter {
    meter: Arc<Meter>,
    budget: Arc<Budget>,
    memory_limit: usize,
    memory: usize,
    table: usize,
}

impl Limiter {
    /// `memory_limit` is in bytes, for all memories of the store.
    pub fn new(meter: Arc<Meter>, budget: Arc<Budget>, memory_limit: usize) -> Self {
        Self {
            meter,
            budget,
            memory_limit,
            memory: 0,
            table: 0,
        }
    }
}

impl Limiter {
    /// Count for another request from now on. What the store has, it keeps.
    pub fn renew(&mut self, meter: Arc<Meter>) {
        self.meter = meter;
        self.meter.has_memory(self.memory);
    }

    /// Bytes of memory and elements of tables that the store has.
    pub fn sizes(&self) -> (usize, usize) {
        (self.memory, self.table)
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let total = self.memory.saturating_add(more);
        if total > self.memory_limit || maximum.is_some_and(|m| desired > m) {
            self.meter.refuse(Refused::Memory);
            return Ok(false);
        }
        if !self.budget.take(more) {
            let never = total > self.budget.limit();
            self.meter
                .refuse(if never { Refused::Total } else { Refused::Budget });
            return Ok(false);
        }
        self.memory = total;
        self.meter.has_memory(total);
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.table.saturating_add(desired.saturating_sub(current));
        if total > MAX_TABLE_ELEMENTS || maximum.is_some_and(|m| desired > m) {
            self.meter.refuse(Refused::Table);
            return Ok(false);
        }
        self.table = total;
        Ok(true)
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.budget.give(self.memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meter_knows_all_memories_of_the_store_and_what_earlier_requests_made_of_them() {
        let turns = Arc::new(Turns::new(2));
        let meter = || Arc::new(Meter::new(Duration::from_secs(1), Arc::clone(&turns)));
        let first = meter();
        let mut limiter = Limiter::new(Arc::clone(&first), Arc::new(Budget::new(1_000)), 500);
        assert_eq!(first.memory(), 0);
        assert!(limiter.memory_growing(0, 100, None).unwrap());
        assert!(limiter.memory_growing(0, 50, None).unwrap());
        assert_eq!(first.memory(), 150);
        assert!(!limiter.memory_growing(100, 460, None).unwrap());
        assert_eq!(first.memory(), 150, "what was refused isn't there");

        let second = meter();
        limiter.renew(Arc::clone(&second));
        assert_eq!(second.memory(), 150);
        assert!(limiter.memory_growing(100, 300, None).unwrap());
        assert_eq!((first.memory(), second.memory()), (150, 350));
    }
}
