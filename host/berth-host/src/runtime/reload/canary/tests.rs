use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Poll;

use fastrand::Rng;
use futures::FutureExt;

use super::*;

const QUICK: Duration = Duration::from_millis(5);

fn trial(share: &str) -> Trial {
    Trial::new(share.parse().unwrap(), Bounds::default(), Counts::default())
}

fn callers() -> impl Iterator<Item = String> {
    (0..10_000).map(|i| format!("user-{i}"))
}

#[test]
fn caller_stays_on_one_side() {
    let trial = trial("30%");
    let first: Vec<bool> = callers().map(|caller| trial.takes(&caller)).collect();
    trial.count(Side::Current, true, QUICK);
    trial.count(Side::Candidate, true, QUICK);
    let again: Vec<bool> = callers().map(|caller| trial.takes(&caller)).collect();
    assert_eq!(first, again);
}

#[test]
fn another_trial_asks_other_callers() {
    let (one, other) = (trial("50%"), trial("50%"));
    let moved = callers()
        .filter(|caller| one.takes(caller) != other.takes(caller))
        .count();
    assert!((4_500..5_500).contains(&moved), "{moved}");
}

/// Six standard deviations of a binomial either way: fails by chance once in 10^8 runs.
#[test]
fn share_of_the_callers_is_the_share() {
    for (text, share) in [("50%", 0.5), ("10%", 0.1), ("2.5%", 0.025), ("0.5%", 0.005)] {
        let trial = trial(text);
        let n = 100_000.0_f64;
        let taken = (0..100_000).filter(|i| trial.takes(&format!("10.0.{i}"))).count() as f64;
        let tolerance = 6.0 * (n * share * (1.0 - share)).sqrt();
        assert!((taken - n * share).abs() < tolerance, "{text}: {taken} of {n}");
    }
    let everybody = trial("100%");
    assert!(callers().all(|caller| everybody.takes(&caller)));
}

#[test]
fn after_a_rollback_nobody_gets_the_candidate_and_after_a_promotion_everybody() {
    let bad = trial("50%");
    for _ in 0..20 {
        bad.count(Side::Candidate, true, QUICK);
    }
    assert!(matches!(bad.verdict(), Some(Verdict::RollBack(_))));
    assert!(!callers().any(|caller| bad.takes(&caller)));

    let good = trial("50%");
    for _ in 0..500 {
        good.count(Side::Candidate, false, QUICK);
    }
    assert_eq!(good.verdict(), Some(Verdict::Promote));
    assert!(callers().all(|caller| good.takes(&caller)));

    let stopped = trial("50%");
    stopped.cancel();
    assert_eq!(stopped.verdict(), Some(Verdict::Cancelled));
    assert!(!callers().any(|caller| stopped.takes(&caller)));
}

#[test]
fn candidate_is_promoted_by_the_last_of_its_requests_and_not_before() {
    let trial = trial("10%");
    for _ in 0..499 {
        trial.count(Side::Candidate, false, QUICK);
        (0..9).for_each(|_| trial.count(Side::Current, false, QUICK));
    }
    assert_eq!(trial.verdict(), None);
    trial.count(Side::Candidate, false, QUICK);
    assert_eq!(trial.verdict(), Some(Verdict::Promote));
    // What comes later changes nothing.
    (0..100).for_each(|_| trial.count(Side::Candidate, true, QUICK));
    trial.cancel();
    assert_eq!(trial.verdict(), Some(Verdict::Promote));
    assert_eq!(trial.report().candidate.requests, 500);
}

#[test]
fn last_request_can_still_roll_back() {
    let bounds = Bounds {
        promote_after: 20,
        ..Bounds::default()
    };
    let trial = Trial::new("10%".parse().unwrap(), bounds, Counts::default());
    (0..200).for_each(|_| trial.count(Side::Current, false, QUICK));
    (0..19).for_each(|i| trial.count(Side::Candidate, i % 4 == 0, QUICK));
    assert_eq!(trial.verdict(), None);
    trial.count(Side::Candidate, false, QUICK);
    assert!(matches!(trial.verdict(), Some(Verdict::RollBack(_))));
}

#[test]
fn few_requests_that_promote_are_judged_all_the_same() {
    let bounds = Bounds {
        promote_after: 5,
        ..Bounds::default()
    };
    let trial = Trial::new("10%".parse().unwrap(), bounds, Counts::default());
    (0..5).for_each(|_| trial.count(Side::Candidate, true, QUICK));
    assert!(matches!(trial.verdict(), Some(Verdict::RollBack(_))));
}

#[test]
fn each_fifth_request_that_fails_is_enough_within_fifty() {
    for (share, others) in [("10%", 9), ("20%", 4), ("50%", 1), ("100%", 0)] {
        let trial = trial(share);
        let at = (1..=50_u32).find(|i| {
            (0..others).for_each(|_| trial.count(Side::Current, false, QUICK));
            trial.count(Side::Candidate, i % 5 == 0, QUICK);
            trial.verdict().is_some()
        });
        assert!(matches!(
            trial.verdict(),
            Some(Verdict::RollBack(Reason::Errors { .. }))
        ));
        assert_eq!(at, Some(if others == 1 { 25 } else { 20 }), "{share}");
    }
}

/// A trial whose requests fail independently, as often as given; at which of the candidate's it was rolled back.
struct Odds {
    share: f64,
    candidate: f64,
    current: f64,
    /// The current version's rate before, over 10 000 requests.
    before: Option<f64>,
}

impl Odds {
    fn rolled_back_at(&self, rng: &mut Rng) -> Option<u64> {
        let text = format!("{}%", self.share * 100.0);
        let known = self.before.map_or(Counts::default(), |rate| Counts {
            requests: 10_000,
            failed: (10_000.0 * rate) as u64,
        });
        let trial = Trial::new(text.parse().unwrap(), Bounds::default(), known);
        while trial.verdict().is_none() {
            let candidate = rng.f64() < self.share;
            let (side, rate) = match candidate {
                true => (Side::Candidate, self.candidate),
                false => (Side::Current, self.current),
            };
            trial.count(side, rng.f64() < rate, QUICK);
        }
        match trial.verdict() {
            Some(Verdict::RollBack(_)) => Some(trial.report().candidate.requests),
            _ => None,
        }
    }

    /// The part of so many trials that were rolled back by this request of the candidate.
    fn part(&self, trials: u32, by: u64) -> f64 {
        let mut rng = Rng::with_seed(0xbe47);
        let hits = (0..trials)
            .filter(|_| self.rolled_back_at(&mut rng).is_some_and(|at| at <= by))
            .count();
        hits as f64 / f64::from(trials)
    }
}

#[test]
fn candidate_that_fails_a_fifth_at_random_is_rolled_back_within_fifty() {
    for (share, at_least) in [(0.1, 0.997), (0.5, 0.96), (1.0, 0.992)] {
        let odds = Odds {
            share,
            candidate: 0.2,
            current: 0.0,
            before: Some(0.0),
        };
        let part = odds.part(10_000, 50);
        assert!(part >= at_least, "{share}: {part}");
    }
}

#[test]
fn candidate_that_is_no_worse_is_seldom_rolled_back() {
    for (rate, at_most) in [(0.0, 0.0), (0.01, 0.01), (0.2, 0.03)] {
        for share in [0.1, 0.5, 1.0] {
            let odds = Odds {
                share,
                candidate: rate,
                current: rate,
                before: Some(rate),
            };
            let part = odds.part(1_000, u64::MAX);
            assert!(part <= at_most, "{rate} at {share}: {part}");
        }
    }
}

/// Prints the table of the module's documentation.
#[test]
#[ignore = "takes minutes; to be run when a bound or the test changes"]
fn table() {
    for share in [0.01, 0.1, 0.2, 0.5, 1.0] {
        let percent = |candidate, current, before, by| {
            let odds = Odds {
                share,
                candidate,
                current,
                before: Some(before),
            };
            odds.part(10_000, by) * 100.0
        };
        println!(
            "//! | {} % | {:.1} % | {:.1} % | {:.1} % | {:.1} % | {:.1} % | {:.1} % |",
            share * 100.0,
            percent(0.2, 0.0, 0.0, 50),
            percent(0.0, 0.0, 0.0, 500),
            percent(0.01, 0.01, 0.01, 500),
            percent(0.05, 0.05, 0.05, 500),
            percent(0.2, 0.2, 0.2, 500),
            percent(0.2, 0.2, 0.0, 500),
        );
    }
}

/// Both sides in turn; candidate requests until the verdict.
fn run(trial: &Trial, mut candidate: impl FnMut() -> Duration, mut current: impl FnMut() -> Duration) -> u64 {
    let mut requests = 0;
    while trial.verdict().is_none() {
        (0..9).for_each(|_| trial.count(Side::Current, false, current()));
        trial.count(Side::Candidate, false, candidate());
        requests += 1;
    }
    requests
}

/// A duration with a tail: the median given, one in a hundred above the fivefold.
fn with_tail(rng: &mut Rng, median_ms: f64) -> Duration {
    // The sum of twelve uniform variables less six is a normal one, nearly.
    let normal: f64 = (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0;
    Duration::from_secs_f64(median_ms / 1e3 * (0.7 * normal).exp())
}

#[test]
fn slower_candidate_is_rolled_back_by_its_p99() {
    let trial = trial("10%");
    let mut rng = Rng::with_seed(1);
    let mut other = rng.fork();
    let requests = run(
        &trial,
        || with_tail(&mut rng, 50.0),
        || with_tail(&mut other, 20.0),
    );
    assert!(matches!(
        trial.verdict(),
        Some(Verdict::RollBack(Reason::Latency { .. }))
    ));
    assert!(requests <= 200, "{requests}");

    // Without a tail all of it is over the bound as soon as there is one.
    let trial = self::trial("10%");
    let requests = run(&trial, || Duration::from_millis(50), || Duration::from_millis(20));
    assert!(matches!(
        trial.verdict(),
        Some(Verdict::RollBack(Reason::Latency { .. }))
    ));
    assert_eq!(requests, 100);
}

#[test]
fn equally_fast_candidate_is_promoted() {
    let mut rng = Rng::with_seed(2);
    let rolled_back = (0..500)
        .filter(|_| {
            let trial = trial("10%");
            let mut other = rng.fork();
            run(
                &trial,
                || with_tail(&mut rng, 20.0),
                || with_tail(&mut other, 20.0),
            );
            trial.verdict() != Some(Verdict::Promote)
        })
        .count();
    assert!(rolled_back <= 5, "{rolled_back} of 500");
}

#[test]
fn slow_but_below_the_floor_is_promoted() {
    let trial = trial("10%");
    let requests = run(&trial, || Duration::from_millis(9), || Duration::from_millis(1));
    assert_eq!(trial.verdict(), Some(Verdict::Promote));
    assert_eq!(requests, 500);
}

#[test]
fn without_a_current_side_latency_is_not_judged() {
    let trial = trial("100%");
    (0..500).for_each(|_| trial.count(Side::Candidate, false, Duration::from_secs(20)));
    assert_eq!(trial.verdict(), Some(Verdict::Promote));
}

#[test]
fn eight_threads_make_one_verdict() {
    for round in 0..50_u64 {
        let trial = Arc::new(trial("50%"));
        let decisions: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8_u64)
                .map(|thread| {
                    let trial = Arc::clone(&trial);
                    scope.spawn(move || {
                        let mut rng = Rng::with_seed(round * 8 + thread);
                        let mut seen = Vec::new();
                        // Near the line between the two verdicts, so that either comes.
                        for i in 0..400 {
                            trial.count(Side::Current, rng.u8(..100) < 5, QUICK);
                            trial.count(Side::Candidate, rng.u8(..100) < 14, QUICK);
                            if i == 399 && thread == 0 {
                                trial.cancel();
                            }
                            seen.extend(trial.verdict());
                        }
                        seen.dedup();
                        seen
                    })
                })
                .collect();
            let mut seen: Vec<Verdict> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
            seen.dedup();
            seen.len()
        });
        assert_eq!(decisions, 1, "round {round}");
    }
}

/// Every request is counted once, and whoever makes the last one promotes.
#[test]
fn no_request_is_lost_between_threads() {
    let trial = Arc::new(trial("100%"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..62).for_each(|_| trial.count(Side::Candidate, false, QUICK)));
        }
    });
    assert_eq!(trial.report().candidate.requests, 496);
    (0..3).for_each(|_| trial.count(Side::Candidate, false, QUICK));
    assert_eq!(trial.verdict(), None);
    trial.count(Side::Candidate, false, QUICK);
    assert_eq!(trial.verdict(), Some(Verdict::Promote));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verdict_wakes_all_who_wait_and_all_who_come_later() {
    let trial = Arc::new(trial("10%"));
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let trial = Arc::clone(&trial);
            tokio::spawn(async move { trial.decided().await })
        })
        .collect();
    // One that waited and left again.
    assert!(trial.decided().now_or_never().is_none());
    let mut here = Box::pin(trial.decided());
    assert_eq!(futures::poll!(&mut here), Poll::Pending);
    trial.cancel();
    for task in waiting {
        assert_eq!(task.await.unwrap(), Verdict::Cancelled);
    }
    assert_eq!(here.await, Verdict::Cancelled);
    assert_eq!(trial.decided().await, Verdict::Cancelled);
}

/// A verdict that comes while somebody begins to wait is not missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wait_misses_its_verdict() {
    for _ in 0..2_000 {
        let trial = Arc::new(trial("10%"));
        let begin = Arc::new(AtomicBool::new(false));
        let waiting = tokio::spawn({
            let (trial, begin) = (Arc::clone(&trial), Arc::clone(&begin));
            async move {
                begin.store(true, Ordering::Release);
                trial.decided().await
            }
        });
        while !begin.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        trial.cancel();
        assert_eq!(waiting.await.unwrap(), Verdict::Cancelled);
    }
}

#[test]
fn report_is_json_with_every_number() {
    let trial = Trial::new(
        "2.5%".parse().unwrap(),
        Bounds::default(),
        Counts {
            requests: 1_000,
            failed: 10,
        },
    );
    trial.count(Side::Current, false, Duration::from_micros(20));
    let running = serde_json::to_value(trial.report()).unwrap();
    let expected = serde_json::json!({
        "share": "2.5%",
        "candidate": { "requests": 0, "failed": 0 },
        "current": { "requests": 1, "failed": 0, "p50Us": 20, "p99Us": 20 },
        "known": { "requests": 1000, "failed": 10 },
        "bounds": {
            "minRequests": 20, "minFailures": 3, "errorPoints": 5.0, "p99Requests": 100, "p99Factor": 2.0,
            "p99FloorMs": 10.0, "promoteAfter": 500,
        },
    });
    assert_eq!(running, expected);
    (0..20).for_each(|_| trial.count(Side::Candidate, true, QUICK));
    let over = serde_json::to_value(trial.report()).unwrap();
    assert_eq!(over["verdict"], "roll-back");
    assert_eq!(
        over["reason"],
        "20 of its 20 requests failed (100 %); the current version had 1 in the same time, too few to compare, and is taken \
         for what it was before (1 %); up to 5 percentage points more are allowed"
    );
}

/// The table in the module's documentation and the defaults.
#[test]
fn documented_defaults_are_the_defaults() {
    let bounds = serde_json::to_value(Bounds::default()).unwrap();
    let rows: Vec<(String, f64)> = include_str!("../canary.rs")
        .lines()
        .skip_while(|line| *line != "//! | bound | default | why |")
        .skip(2)
        .take_while(|line| line.starts_with("//! |"))
        .map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let name = cells.next().unwrap().trim_matches('`').to_owned();
            (name, cells.next().unwrap().parse().unwrap())
        })
        .collect();
    assert_eq!(rows.len(), bounds.as_object().unwrap().len());
    for (name, default) in rows {
        assert_eq!(bounds[&name].as_f64(), Some(default), "{name}");
    }
}
