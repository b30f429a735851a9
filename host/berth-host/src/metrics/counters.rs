//! The counters themselves. Every method is safe on the request path: relaxed atomics, no lock, no allocation.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::histogram::Histogram;
use crate::error::{Error, Trap};

/// Classes of final statuses, from 200 on.
pub(super) const STATUS_CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const S: u64 = 1_000 * MS;

/// Bounds for what a caller waits, in nanoseconds.
const WALL: &[u64] = &[
    100 * US,
    250 * US,
    500 * US,
    MS,
    2_500 * US,
    5 * MS,
    10 * MS,
    25 * MS,
    50 * MS,
    100 * MS,
    250 * MS,
    500 * MS,
    S,
    2_500 * MS,
    5 * S,
    10 * S,
    30 * S,
];

/// Bounds for guest CPU time, in nanoseconds: a small handler takes some tens of microseconds.
const CPU: &[u64] = &[
    10 * US,
    25 * US,
    50 * US,
    100 * US,
    250 * US,
    500 * US,
    MS,
    2_500 * US,
    5 * MS,
    10 * MS,
    25 * MS,
    50 * MS,
    100 * MS,
    250 * MS,
    500 * MS,
    S,
    5 * S,
];

#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters by class of status.
#[derive(Debug, Default)]
struct ByClass([Counter; STATUS_CLASSES.len()]);

impl ByClass {
    fn add(&self, status: u16) {
        if let Some(counter) = usize::from(status / 100)
            .checked_sub(2)
            .and_then(|at| self.0.get(at))
        {
            counter.add(1);
        }
    }

    fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        STATUS_CLASSES
            .into_iter()
            .zip(&self.0)
            .map(|(class, counter)| (class, counter.get()))
    }
}

/// The linear memory of instances.
#[derive(Debug, Default)]
struct Memory {
    runs: Counter,
    bytes: Counter,
    most: AtomicU64,
}

impl Memory {
    fn add(&self, bytes: usize) {
        let bytes = bytes as u64;
        self.runs.add(1);
        self.bytes.add(bytes);
        // A load alone in the usual case: a maximum takes the cache line for itself.
        if bytes > self.most.load(Ordering::Relaxed) {
            self.most.fetch_max(bytes, Ordering::Relaxed);
        }
    }
}

/// What is counted of one version of a plugin.
#[derive(Debug)]
pub struct VersionMetrics {
    requests: ByClass,
    unfinished: Counter,
    traps: [Counter; Trap::ALL.len()],
    /// From a request's head to the last byte of its answer, of those that were answered.
    pub(crate) duration: Histogram,
    /// Guest CPU time of the runs.
    pub(crate) cpu: Histogram,
    /// How long requests waited for an instance.
    pub(crate) queue: Histogram,
    memory: Memory,
    received: Counter,
    sent: Counter,
}

impl Default for VersionMetrics {
    fn default() -> Self {
        Self {
            requests: ByClass::default(),
            unfinished: Counter::default(),
            traps: Default::default(),
            duration: Histogram::new(WALL),
            cpu: Histogram::new(CPU),
            queue: Histogram::new(WALL),
            memory: Memory::default(),
            received: Counter::default(),
            sent: Counter::default(),
        }
    }
}

impl VersionMetrics {
    /// A request was answered to the last byte.
    pub fn answered(&self, status: u16, took: Duration) {
        self.requests.add(status);
        self.duration.observe(took);
    }

    /// The answer to a request did not get to its end.
    pub fn unfinished(&self) {
        self.unfinished.add(1);
    }

    /// A guest ended without a usable result.
    pub fn trap(&self, trap: Trap) {
        let at = Trap::ALL.iter().position(|t| *t == trap);
        if let Some(counter) = at.and_then(|at| self.traps.get(at)) {
            counter.add(1);
        }
    }

    /// A guest's run is over, and took this much CPU time, work after the response included. Its instance has so many
    /// bytes of linear memory at its end.
    pub fn ran(&self, cpu: Duration, memory: usize) {
        self.cpu.observe(cpu);
        self.memory.add(memory);
    }

    /// A request waited this long for an instance, whether it got one or not.
    pub fn queued(&self, time: Duration) {
        self.queue.observe(time);
    }

    /// Bytes of a request's body went to the guest.
    pub fn received(&self, bytes: usize) {
        self.received.add(bytes as u64);
    }

    /// Bytes of a response's body went out.
    pub fn sent(&self, bytes: u64) {
        self.sent.add(bytes);
    }

    /// Requests that were answered to the last byte, by class of status.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.requests.each()
    }

    /// All of them.
    pub fn requests_answered(&self) -> u64 {
        self.requests().map(|(_, n)| n).sum()
    }

    /// Of these, the ones whose status says that the server failed: 5xx.
    pub fn requests_failed(&self) -> u64 {
        self.requests()
            .filter_map(|(class, n)| (class == "5xx").then_some(n))
            .sum()
    }

    /// Requests whose answer did not get to its end; not among the answered ones.
    pub fn requests_unfinished(&self) -> u64 {
        self.unfinished.get()
    }

    /// Bytes of linear memory of a run's instance at its end, on average; none without a run.
    pub fn memory_mean(&self) -> Option<u64> {
        self.memory.bytes.get().checked_div(self.memory.runs.get())
    }

    /// The most that the instance of a run had.
    pub fn memory_most(&self) -> u64 {
        self.memory.most.load(Ordering::Relaxed)
    }

    /// Bytes over all runs, and the number of runs.
    pub(super) fn memory(&self) -> (u64, u64) {
        (self.memory.bytes.get(), self.memory.runs.get())
    }

    /// Runs that ended without a usable result, by kind.
    pub fn traps(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Trap::ALL
            .into_iter()
            .zip(&self.traps)
            .map(|(trap, counter)| (trap.label(), counter.get()))
    }

    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }
}

/// Why a request got no place to run in. The label is the `code` of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The plugin's queue is full: 429.
    PluginBusy,
    /// No instance, or no memory, within the plugin's wall time: 503.
    HostBusy,
    /// The plugin isn't loaded: 503.
    Unavailable,
    /// Somebody tries to sign in too often: 429.
    TooManyAttempts,
}

impl Refusal {
    /// Every kind.
    pub const ALL: [Self; 4] = [
        Self::PluginBusy,
        Self::HostBusy,
        Self::Unavailable,
        Self::TooManyAttempts,
    ];

    /// The refusal that an error is, if it is one.
    pub fn of(error: &Error) -> Option<Self> {
        match error {
            Error::PluginBusy => Some(Self::PluginBusy),
            Error::HostBusy => Some(Self::HostBusy),
            Error::PluginUnavailable { .. } => Some(Self::Unavailable),
            Error::TooManyAttempts { .. } => Some(Self::TooManyAttempts),
            _ => None,
        }
    }

    /// The label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::PluginBusy => "plugin-busy",
            Self::HostBusy => "host-busy",
            Self::Unavailable => "plugin-unavailable",
            Self::TooManyAttempts => "too-many-requests",
        }
    }
}

/// What is counted of a plugin whatever its version.
#[derive(Debug, Default)]
pub struct PluginMetrics {
    /// Requests while no version is there to count them.
    pub unloaded: VersionMetrics,
    refused: [Counter; Refusal::ALL.len()],
    suppressed: Counter,
}

impl PluginMetrics {
    /// A request was sent away.
    pub fn refused(&self, refusal: Refusal) {
        let at = Refusal::ALL.iter().position(|r| *r == refusal);
        if let Some(counter) = at.and_then(|at| self.refused.get(at)) {
            counter.add(1);
        }
    }

    /// A line that the guest wrote was dropped, because its request had written too many.
    pub fn line_suppressed(&self) {
        self.suppressed.add(1);
    }

    pub(super) fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refusal::ALL
            .into_iter()
            .zip(&self.refused)
            .map(|(refusal, counter)| (refusal.label(), counter.get()))
    }

    pub(super) fn lines_suppressed(&self) -> u64 {
        self.suppressed.get()
    }
}

/// How a call of `sql` can end: `ok`, or the error's name in WIT.
const SQL_RESULTS: [&str; 10] = [
    "ok",
    "database",
    "invalid",
    "denied",
    "timeout",
    "too-many-rows",
    "too-many-bytes",
    "pool-timeout",
    "unavailable",
    "transaction-over",
];

/// What is counted of a plugin's `sql`.
#[derive(Debug)]
pub struct SqlMetrics {
    calls: [Counter; SQL_RESULTS.len()],
    pub(super) duration: Histogram,
    cancelled: Counter,
    opened: Counter,
    closed: Counter,
}

impl Default for SqlMetrics {
    fn default() -> Self {
        Self {
            calls: Default::default(),
            duration: Histogram::new(WALL),
            cancelled: Counter::default(),
            opened: Counter::default(),
            closed: Counter::default(),
        }
    }
}

impl SqlMetrics {
    /// A call has ended, `result` being `ok` or the error's name in WIT.
    pub fn called(&self, result: &str, took: Duration) {
        let at = SQL_RESULTS.iter().position(|known| *known == result);
        if let Some(counter) = at.and_then(|at| self.calls.get(at)) {
            counter.add(1);
        }
        self.duration.observe(took);
    }

    /// A connection was ended on the server, because its statement was late, too large, or nobody waited for it.
    pub fn cancelled(&self) {
        self.cancelled.add(1);
    }

    /// A connection was made.
    pub fn opened(&self) {
        self.opened.add(1);
    }

    /// A connection is no more.
    pub fn closed(&self) {
        self.closed.add(1);
    }

    pub(super) fn calls(&self) -> impl Iterator<Item = (&'static str, u64)> {
        SQL_RESULTS
            .into_iter()
            .zip(&self.calls)
            .map(|(result, counter)| (result, counter.get()))
    }

    pub(super) fn cancelled_total(&self) -> u64 {
        self.cancelled.get()
    }

    pub(super) fn open(&self) -> u64 {
        // Read first, so that no more can be closed than opened.
        let closed = self.closed.get();
        self.opened.get().saturating_sub(closed)
    }
}

/// What became of a plugin's swaps.
#[derive(Debug, Default)]
pub struct SwapMetrics {
    made: Counter,
    refused: Counter,
    taken_back: Counter,
}

impl SwapMetrics {
    /// Another version serves everybody.
    pub fn made(&self) {
        self.made.add(1);
    }

    /// A version could not be served.
    pub fn refused(&self) {
        self.refused.add(1);
    }

    /// A candidate was worse than it may be.
    pub fn taken_back(&self) {
        self.taken_back.add(1);
    }

    pub(super) fn each(&self) -> [(&'static str, u64); 3] {
        [
            ("made", self.made.get()),
            ("refused", self.refused.get()),
            ("taken-back", self.taken_back.get()),
        ]
    }
}

/// Which of the host's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// For callers.
    Http,
    /// For operators.
    Admin,
}

/// What is counted of a socket that listens.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    accepted: Counter,
    failed: Counter,
    closed: Counter,
}

impl ListenerMetrics {
    /// A connection could not be accepted, for want of file descriptors or memory.
    pub fn accept_failed(&self) {
        self.failed.add(1);
    }

    pub(super) fn counts(&self) -> (u64, u64, u64) {
        // Read first, so that no more can be closed than accepted.
        let closed = self.closed.get();
        let accepted = self.accepted.get();
        (accepted, accepted.saturating_sub(closed), self.failed.get())
    }
}

/// An open connection. Counted as closed when dropped.
#[derive(Debug)]
pub struct Open {
    metrics: Arc<HostMetrics>,
    listener: Listener,
}

impl Open {
    /// A connection was accepted.
    pub fn new(metrics: &Arc<HostMetrics>, listener: Listener) -> Self {
        metrics.listener(listener).accepted.add(1);
        Self {
            metrics: Arc::clone(metrics),
            listener,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.listener(self.listener).closed.add(1);
    }
}

type Count = Box<dyn Fn() -> u64 + Send + Sync>;

/// What is counted of the host itself.
#[derive(Default)]
pub struct HostMetrics {
    requests: ByClass,
    unfinished: Counter,
    http: ListenerMetrics,
    admin: ListenerMetrics,
    log_lines_dropped: OnceLock<Count>,
}

impl fmt::Debug for HostMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostMetrics").finish_non_exhaustive()
    }
}

impl HostMetrics {
    /// A request was answered to the last byte.
    pub fn answered(&self, status: u16) {
        self.requests.add(status);
    }

    /// A request whose answer did not get to its end.
    pub fn unfinished(&self) {
        self.unfinished.add(1);
    }

    /// One of the sockets.
    pub fn listener(&self, listener: Listener) -> &ListenerMetrics {
        match listener {
            Listener::Http => &self.http,
            Listener::Admin => &self.admin,
        }
    }

    /// Where to read how many log lines were dropped. The first one counts.
    pub fn log_lines_dropped_by(&self, count: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.log_lines_dropped.set(Box::new(count));
    }

    pub(super) fn requests(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.requests.each()
    }

    pub(super) fn requests_unfinished(&self) -> u64 {
        self.unfinished.get()
    }

    pub(super) fn log_lines_dropped(&self) -> u64 {
        self.log_lines_dropped.get().map_or(0, |count| count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart_by_how_they_ended() {
        let metrics = VersionMetrics::default();
        for status in [200, 204, 302, 404, 500, 503] {
            metrics.answered(status, Duration::from_millis(1));
        }
        metrics.unfinished();
        assert_eq!(metrics.requests_answered(), 6);
        assert_eq!(metrics.requests_failed(), 2);
        assert_eq!(metrics.requests_unfinished(), 1);
        assert_eq!(metrics.duration.snapshot().count, 6);
    }

    #[test]
    fn memory_is_a_mean_and_a_maximum_over_the_runs() {
        let metrics = VersionMetrics::default();
        assert_eq!((metrics.memory_mean(), metrics.memory_most()), (None, 0));
        for bytes in [65_536, 1_048_576, 131_072] {
            metrics.ran(Duration::from_micros(10), bytes);
        }
        assert_eq!(metrics.memory(), (1_245_184, 3));
        assert_eq!(metrics.memory_mean(), Some(415_061));
        assert_eq!(metrics.memory_most(), 1_048_576);
        assert_eq!(metrics.cpu.snapshot().count, 3);
    }
}
