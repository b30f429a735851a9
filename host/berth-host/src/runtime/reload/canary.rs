//! A share of a plugin's callers tries another version: who, for how long, and what decides.
//!
//! A [`Trial`] says of each caller which version is theirs, is told how each request ended, and gives one [`Verdict`]:
//! the candidate becomes the current version, or nobody gets it any more. It knows nothing of plugins and of HTTP. What
//! counts as failed is for its caller to say: an answer that is the version's fault (5xx, a trap), never a client that left.
//!
//! # Who
//! A caller stays on one side for as long as the trial runs, so that nobody's session goes back and forth between two
//! versions. The side is a hash of the caller, keyed anew for each trial ([`RandomState`]: SipHash with random keys): which
//! names a caller may have is partly for strangers to choose, and who knows no key can't choose a side with them; and it
//! isn't the same callers who try every version.
//!
//! # What decides
//! | bound | default | why |
//! |---|---|---|
//! | `minRequests` | 20 | the fewest candidate requests that are judged: below, a rate is one request's luck |
//! | `minFailures` | 3 | the fewest failures, or slow requests: one may be anything, two a coincidence |
//! | `errorPoints` | 5 | percentage points that the rate of failures may be over the current version's |
//! | `p99Requests` | 100 | the fewest requests of each side from which a p99 is read: below, it is the slowest request |
//! | `p99Factor` | 2 | how many times the current version's p99 the candidate's may be |
//! | `p99FloorMs` | 10 | a difference below is never held against it: a busy machine makes as much |
//! | `promoteAfter` | 500 | candidate requests that promote it, when nothing was held against it |
//!
//! **Errors** are judged at each failure of the candidate, and last when it is promoted. A difference in rates beyond the
//! bound may still be chance, so it must be unlikely as well: by Fisher's exact test, one-sided (R. A. Fisher, *The Logic
//! of Inductive Inference*, 1935), which is right for small numbers and asks for no known rate. It is asked twice. Strictly
//! (1 in 500; the test is repeated with each failure, and each repetition is another chance to be wrong: Armitage, McPherson
//! and Rowe, *Repeated Significance Tests on Accumulating Data*, 1969) against all that is known of the current version:
//! its requests in the trial, and, as long as those are fewer than 200, what is missing at the rate that it had before.
//! Loosely (1 in 20) against its requests in the trial alone, because what fails at this moment may be the database, under
//! both versions.
//!
//! While the current version has less than a third of the candidate's requests (share 100 %, little traffic), the second
//! question has no answer and is not asked. If nothing is known from before either, the candidate is measured against a
//! version that never fails; the verdict says which it was.
//!
//! By simulation, 10 000 trials each with the default bounds, every request independent (the tests repeat a part of it, and
//! can print the table). First: a candidate that fails at random, 20 % of its requests against 0 % of the current version's,
//! is rolled back within 50 of its requests; within 100 all of them were. Then: one that is no worse is rolled back, wrongly,
//! before it is promoted.
//!
//! | share | 20 % against 0 % | both 0 % | both 1 % | both 5 % | both 20 % | both 20 %, before 0 % or unknown |
//! |---|---|---|---|---|---|---|
//! | 1 % | 99.8 % | 0.0 % | 0.4 % | 0.9 % | 2.0 % | 2.0 % |
//! | 10 % | 99.9 % | 0.0 % | 0.2 % | 1.2 % | 1.9 % | 2.4 % |
//! | 20 % | 99.4 % | 0.0 % | 0.1 % | 0.8 % | 1.7 % | 7.5 % |
//! | 50 % | 98.0 % | 0.0 % | 0.0 % | 0.5 % | 1.2 % | 15.9 % |
//! | 100 % | 99.6 % | 0.0 % | 0.0 % | 0.1 % | 0.2 % | 100.0 % |
//!
//! One that fails each fifth request is rolled back at its 20th, or, with half of the callers, at its 25th or soon after.
//! The last column is a failure of both versions that begins with the trial: with a large share such a trial is likely to be
//! given up, which is the safe end of it.
//!
//! **Latency** is judged with every 20th candidate request, and last when it is promoted. The p99 is the nearest rank: of n
//! requests the ⌈0.99 n⌉th by duration, so of 100 the second slowest. The bound is the current version's p99 times the
//! factor, or plus the floor if that is more. A candidate is worse if more than 1 % of its requests are slower than the
//! bound (then its p99 is), at least `minFailures` of them, and if that is no chance beside how many of the current version's
//! are, by the same test (1 in 500). So neither one outlier decides nor two. Durations are known to within 1/32, and what
//! is that close to the bound is in the candidate's favour. Without `p99Requests` of both sides (share 100 %) latency isn't
//! judged: how fast the current version was before says little, because the load was another.
//!
//! # Deliberately absent
//! A limit in time: a trial without traffic stays open until somebody ends it. Independence of callers: one caller
//! who sends the same broken request again and again counts as often as they send it. Weights of statuses or routes.
//!
//! On the way of a request there are a few atomic additions, no lock and no allocation. Fisher's test is some hundred
//! multiplications, at failures of the candidate only; a look at the p99 reads some thousand counters, at each 20th of
//! its requests.

mod bounds;
mod durations;
mod judge;
mod share;
mod verdict;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;

pub use bounds::Bounds;
pub use share::{Share, ShareError};
pub use verdict::{Against, Counts, Reason, Verdict};

use durations::Durations;
use judge::LATENCY_EVERY;

/// Which of the two versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that everybody else gets.
    Current,
    /// The one that is tried.
    Candidate,
}

/// A request's part in a trial.
#[derive(Clone, Debug)]
pub struct Part {
    /// The trial.
    pub trial: Arc<Trial>,
    /// The version that answers it.
    pub side: Side,
}

/// One trial of a candidate, from its start to its verdict.
#[derive(Debug)]
pub struct Trial {
    share: Share,
    bounds: Bounds,
    /// What the current version did before.
    known: Counts,
    salt: RandomState,
    current: Tally,
    candidate: Tally,
    /// Set once, by whoever is first.
    verdict: OnceLock<Verdict>,
    told: Notify,
}

impl Trial {
    /// A trial without a request so far. `known` is what the current version has done before, as far as somebody counted;
    /// nothing, or too little to be judged ([`Bounds::min_requests`]), stands for a version that never fails.
    pub fn new(share: Share, bounds: Bounds, known: Counts) -> Self {
        Self {
            share,
            bounds,
            known,
            salt: RandomState::new(),
            current: Tally::default(),
            candidate: Tally::default(),
            verdict: OnceLock::new(),
            told: Notify::new(),
        }
    }

    /// Whether this caller gets the candidate. The same answer for as long as the trial runs; after it, the verdict's:
    /// everybody after [`Verdict::Promote`], else nobody, from that moment on.
    pub fn takes(&self, caller: &str) -> bool {
        match self.verdict.get() {
            None => self.share.has(self.salt.hash_one(caller)),
            Some(Verdict::Promote) => true,
            Some(Verdict::RollBack(_) | Verdict::Cancelled) => false,
        }
    }

    /// A request has ended on this side. What ends after the verdict isn't counted: the report shows what it was made of.
    pub fn count(&self, side: Side, failed: bool, took: Duration) {
        if self.verdict.get().is_some() {
            return;
        }
        match side {
            Side::Current => {
                self.current.add(failed, took);
            }
            Side::Candidate => {
                let nth = self.candidate.add(failed, took);
                if let Some(verdict) = self.judge(nth, failed) {
                    self.decide(verdict);
                }
            }
        }
    }

    /// End the trial without a winner, unless it has ended.
    pub fn cancel(&self) {
        self.decide(Verdict::Cancelled);
    }

    /// The verdict, if there is one.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdict.get().copied()
    }

    /// The verdict, once there is one. Any number of tasks may wait, and stop waiting.
    pub async fn decided(&self) -> Verdict {
        loop {
            // Before the look: whoever decides after it wakes this one.
            let told = self.told.notified();
            if let Some(verdict) = self.verdict() {
                return verdict;
            }
            told.await;
        }
    }

    /// How it stands.
    pub fn report(&self) -> Report {
        let verdict = self.verdict();
        Report {
            share: self.share,
            candidate: self.candidate.report(),
            current: self.current.report(),
            known: self.known,
            bounds: self.bounds,
            verdict: verdict.map(|verdict| verdict.label()),
            reason: match verdict {
                Some(Verdict::RollBack(reason)) => Some(reason.to_string()),
                _ => None,
            },
        }
    }

    /// What the candidate's `nth` request says of it. Each number comes up once, whichever threads count.
    fn judge(&self, nth: u64, failed: bool) -> Option<Verdict> {
        let bounds = &self.bounds;
        let last = nth >= bounds.promote_after;
        let errors = || judge::errors(bounds, self.candidate.counts(), self.current.counts(), self.known);
        let latency = || judge::latency(bounds, &self.candidate.durations, &self.current.durations);
        let mut reason = None;
        // Failures that came too early to be judged are when there are enough requests.
        if failed || last || nth == bounds.min_requests {
            reason = errors();
        }
        if reason.is_none() && (last || nth.is_multiple_of(LATENCY_EVERY)) {
            reason = latency();
        }
        match reason {
            Some(reason) => Some(Verdict::RollBack(reason)),
            None => last.then_some(Verdict::Promote),
        }
    }

    fn decide(&self, verdict: Verdict) {
        if self.verdict.set(verdict).is_ok() {
            self.told.notify_waiters();
        }
    }
}

/// What is counted of one side.
#[derive(Debug, Default)]
struct Tally {
    requests: AtomicU64,
    failed: AtomicU64,
    durations: Durations,
}

impl Tally {
    /// Count one request, and say which it was.
    fn add(&self, failed: bool, took: Duration) -> u64 {
        self.durations.add(took);
        let before = self.requests.fetch_add(1, Ordering::Relaxed);
        if failed {
            // Pairs with the load in `counts`: whoever sees the failure sees its request.
            self.failed.fetch_add(1, Ordering::Release);
        }
        before.saturating_add(1)
    }

    fn counts(&self) -> Counts {
        let failed = self.failed.load(Ordering::Acquire);
        Counts {
            requests: self.requests.load(Ordering::Relaxed),
            failed,
        }
    }

    fn report(&self) -> SideReport {
        let counts = self.counts();
        SideReport {
            requests: counts.requests,
            failed: counts.failed,
            p50_us: self.durations.percentile(50),
            p99_us: self.durations.percentile(99),
        }
    }
}

/// How a trial stands, for the admin API.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How much of the callers tries the candidate.
    pub share: Share,
    /// The version that is tried.
    pub candidate: SideReport,
    /// The other one.
    pub current: SideReport,
    /// What the current version did before.
    pub known: Counts,
    /// What decides.
    pub bounds: Bounds,
    /// `promote`, `roll-back` or `cancelled`; none while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<&'static str>,
    /// Why it was rolled back: a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One side of a [`Report`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SideReport {
    /// Requests that have ended.
    pub requests: u64,
    /// Of these, the ones that failed.
    pub failed: u64,
    /// Half of them took no longer, in microseconds, to within 3.2 %; none without a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// 99 % of them took no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
}

#[cfg(test)]
mod tests;
