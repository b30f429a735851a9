//! Whether a candidate is worse: the bounds, and whether chance explains what is beyond them. The reasons are in
//! [`super`].

use super::bounds::Bounds;
use super::durations::{Durations, Part};
use super::verdict::{Against, Counts, Reason};

/// How unlikely it must be that a candidate as good as all that is known of the current version does as badly.
const STRICT: f64 = 1.0 / 500.0;
/// The same beside the current version's requests of the trial alone.
const LOOSE: f64 = 1.0 / 20.0;
/// Up to as many of the current version's requests are made up for by what it did before.
const ENOUGH: u64 = 200;
/// The current version's requests of the trial are compared if they are at least this part of the candidate's.
const COMPARABLE: u64 = 3;
/// Latency is judged with each of the candidate's requests whose number is a multiple of it: the fewer looks, the fewer
/// chances to be wrong.
pub(super) const LATENCY_EVERY: u64 = 20;

/// Whether too many of the candidate's requests failed.
pub(super) fn errors(bounds: &Bounds, candidate: Counts, current: Counts, known: Counts) -> Option<Reason> {
    // Judged before it is promoted in any case.
    let enough = bounds.min_requests.min(bounds.promote_after);
    if candidate.requests < enough || candidate.failed < bounds.min_failures {
        return None;
    }
    let worse_than = |other: Counts, chance: f64| {
        let points = (candidate.rate() - other.rate()) * 100.0;
        points > bounds.error_points && chance_of(candidate, other) < chance
    };
    let before = (known.requests >= bounds.min_requests).then(|| known.rate());
    let all = made_up(current, before.unwrap_or(0.0));
    if !worse_than(all, STRICT) {
        return None;
    }
    let comparable =
        current.requests > 0 && current.requests.saturating_mul(COMPARABLE) >= candidate.requests;
    if comparable && !worse_than(current, LOOSE) {
        return None;
    }
    Some(Reason::Errors {
        candidate,
        current,
        against: match before {
            _ if comparable => Against::Trial,
            Some(rate) => Against::Before(rate),
            None => Against::Nothing,
        },
        points: bounds.error_points,
    })
}

/// What is missing to enough requests, at this rate.
fn made_up(current: Counts, rate: f64) -> Counts {
    let missing = ENOUGH.saturating_sub(current.requests);
    Counts {
        requests: current.requests + missing,
        failed: current.failed + (missing as f64 * rate).round() as u64,
    }
}

/// Whether too many of the candidate's requests are too slow.
pub(super) fn latency(bounds: &Bounds, candidate: &Durations, current: &Durations) -> Option<Reason> {
    let enough = bounds.p99_requests.max(1);
    if candidate.len() < enough || current.len() < enough {
        return None;
    }
    let current_p99 = current.percentile(99)?;
    let floor = u64::try_from(bounds.p99_floor.as_micros()).unwrap_or(u64::MAX);
    let times = (current_p99 as f64 * bounds.p99_factor) as u64;
    let bound = times.max(current_p99.saturating_add(floor));
    let (slow, slow_current) = (candidate.over(bound), current.over(bound));
    // Its p99 is over the bound if and only if more than 1 % of it is.
    if slow.part < bounds.min_failures || slow.part.saturating_mul(100) <= slow.of {
        return None;
    }
    let counts = |part: Part| Counts {
        requests: part.of,
        failed: part.part,
    };
    if chance_of(counts(slow), counts(slow_current)) >= STRICT {
        return None;
    }
    Some(Reason::Latency {
        candidate: slow.of,
        candidate_p99: candidate.percentile(99)?,
        current: slow_current.of,
        current_p99,
        bound,
    })
}

/// Fisher's exact test, one-sided: of all the failures of the two, how likely it is that the candidate has as many as it
/// has, or more, if each request is as likely to be one of them.
///
/// The hypergeometric distribution relative to the observed table, by the ratio of neighbours, so that no factorial is
/// needed. Asked only of a candidate with the higher rate: then what is above falls off, and what is below may overflow
/// to infinity, which makes the chance 0, as it should be.
fn chance_of(candidate: Counts, other: Counts) -> f64 {
    /// Terms that no longer change the sum.
    const NEGLIGIBLE: f64 = 1e-16;
    let failed = candidate.failed.saturating_add(other.failed);
    // Of one table: what is left of each kind.
    let healthy = |x: u64| candidate.requests.saturating_sub(x);
    let theirs = |x: u64| failed.saturating_sub(x);
    let their_healthy = |x: u64| other.requests.saturating_sub(theirs(x));
    let ratio = |a: u64, b: u64, c: u64, d: u64| a as f64 * b as f64 / (c as f64 * d as f64);

    let (mut above, mut term, mut x) = (1.0, 1.0, candidate.failed);
    while healthy(x) > 0 && theirs(x) > 0 && term > above * NEGLIGIBLE {
        term *= ratio(healthy(x), theirs(x), x + 1, their_healthy(x) + 1);
        above += term;
        x += 1;
    }
    let (mut below, mut term, mut x) = (0.0, 1.0, candidate.failed);
    while x > 0 && their_healthy(x) > 0 && term > below * NEGLIGIBLE {
        term *= ratio(x, their_healthy(x), healthy(x) + 1, theirs(x) + 1);
        below += term;
        x -= 1;
    }
    above / (above + below)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn counts(failed: u64, requests: u64) -> Counts {
        Counts { requests, failed }
    }

    /// From the definition, with exact binomials.
    fn chance_by_definition(candidate: Counts, other: Counts) -> f64 {
        fn choose(n: u64, k: u64) -> u128 {
            (0..u128::from(k)).fold(1, |all, i| all * (u128::from(n) - i) / (i + 1))
        }
        let failed = candidate.failed + other.failed;
        let table = |x: u64| choose(candidate.requests, x) * choose(other.requests, failed - x);
        let possible = failed.saturating_sub(other.requests)..=failed.min(candidate.requests);
        let all: u128 = possible.clone().map(table).sum();
        let as_bad: u128 = possible.filter(|x| *x >= candidate.failed).map(table).sum();
        as_bad as f64 / all as f64
    }

    #[test]
    fn chance_is_that_of_the_definition() {
        for n in 1..=12 {
            for m in 1..=12 {
                for k in 0..=n {
                    for l in 0..=m {
                        let (candidate, other) = (counts(k, n), counts(l, m));
                        if candidate.rate() < other.rate() {
                            continue;
                        }
                        let (ours, exact) = (
                            chance_of(candidate, other),
                            chance_by_definition(candidate, other),
                        );
                        assert!(
                            (ours - exact).abs() < 1e-12,
                            "{candidate:?} {other:?}: {ours}, {exact}"
                        );
                    }
                }
            }
        }
        // Fisher's tea: all four cups right, 1 in 70.
        assert!((chance_of(counts(4, 4), counts(0, 4)) - 1.0 / 70.0).abs() < 1e-15);
        let (candidate, other) = (counts(9, 45), counts(1, 60));
        let (ours, exact) = (
            chance_of(candidate, other),
            chance_by_definition(candidate, other),
        );
        assert!((ours / exact - 1.0).abs() < 1e-12, "{ours}, {exact}");
    }

    #[test]
    fn chance_of_what_cannot_be_chance_is_nothing() {
        assert_eq!(chance_of(counts(100_000, 100_000), counts(0, 100_000)), 0.0);
        assert!(chance_of(counts(500, 500), counts(10, 1_000_000_000)) < 1e-300);
    }

    #[test]
    fn few_requests_and_few_failures_are_not_judged() {
        let bounds = Bounds::default();
        let current = counts(0, 1_000);
        let judge = |candidate| errors(&bounds, candidate, current, Counts::default()).is_some();
        assert!(!judge(counts(19, 19)));
        assert!(judge(counts(20, 20)));
        assert!(!judge(counts(2, 20)));
        assert!(judge(counts(3, 20)));
    }

    #[test]
    fn significant_is_not_enough_without_the_points() {
        let bounds = Bounds::default();
        let (candidate, current) = (counts(5_400, 100_000), counts(1_000, 100_000));
        assert!(chance_of(candidate, current) < 1e-9);
        assert_eq!(errors(&bounds, candidate, current, Counts::default()), None);
        let candidate = counts(6_100, 100_000);
        assert!(errors(&bounds, candidate, current, Counts::default()).is_some());
    }

    #[test]
    fn points_are_not_enough_without_significance() {
        let bounds = Bounds::default();
        // 20 % against 10 %.
        let (candidate, current) = (counts(4, 20), counts(18, 180));
        assert_eq!(errors(&bounds, candidate, current, Counts::default()), None);
        let (candidate, current) = (counts(80, 400), counts(360, 3_600));
        assert!(errors(&bounds, candidate, current, Counts::default()).is_some());
    }

    #[test]
    fn what_fails_now_under_both_is_not_held_against_the_candidate() {
        let bounds = Bounds::default();
        let (candidate, current, known) = (counts(8, 40), counts(8, 40), counts(0, 100_000));
        assert!(chance_of(candidate, made_up(current, 0.0)) < STRICT);
        assert_eq!(errors(&bounds, candidate, current, known), None);
    }

    #[test]
    fn without_requests_of_the_current_version_what_is_known_counts() {
        let bounds = Bounds::default();
        let against = |candidate, current, known| match errors(&bounds, candidate, current, known) {
            Some(Reason::Errors { against, .. }) => Some(against),
            _ => None,
        };
        let none = Counts::default();
        assert_eq!(against(counts(5, 25), none, none), Some(Against::Nothing));
        assert_eq!(
            against(counts(5, 25), none, counts(5, 19)),
            Some(Against::Nothing),
            "19 requests are no knowledge"
        );
        assert_eq!(
            against(counts(5, 25), none, counts(100, 10_000)),
            Some(Against::Before(0.01))
        );
        assert_eq!(against(counts(5, 25), none, counts(2_000, 10_000)), None);
        assert_eq!(
            against(counts(5, 25), counts(1, 8), none),
            Some(Against::Nothing),
            "less than a third of the candidate's"
        );
        assert_eq!(against(counts(5, 25), counts(1, 9), none), None);
        assert_eq!(against(counts(5, 25), counts(0, 25), none), Some(Against::Trial));
    }

    fn durations(count: u64, micros: impl Fn(u64) -> u64) -> Durations {
        let durations = Durations::default();
        (0..count).for_each(|i| durations.add(Duration::from_micros(micros(i))));
        durations
    }

    #[test]
    fn two_outliers_are_no_latency() {
        let bounds = Bounds::default();
        let current = durations(100_000, |_| 20_000);
        for (outliers, worse) in [(1, false), (2, false), (3, true)] {
            let candidate = durations(100, |i| if i < outliers { 1_000_000 } else { 20_000 });
            assert_eq!(
                latency(&bounds, &candidate, &current).is_some(),
                worse,
                "{outliers}"
            );
        }
        // Three of 300 are 1 %: the p99 is not among them.
        let candidate = durations(300, |i| if i < 3 { 1_000_000 } else { 20_000 });
        assert_eq!(latency(&bounds, &candidate, &current), None);
    }

    #[test]
    fn slow_requests_may_be_chance() {
        let bounds = Bounds::default();
        let current = durations(100, |_| 20_000);
        // Beside 0 of 100.
        for (slow, worse) in [(3, false), (8, false), (9, true)] {
            let candidate = durations(100, |i| if i < slow { 1_000_000 } else { 20_000 });
            assert_eq!(latency(&bounds, &candidate, &current).is_some(), worse, "{slow}");
        }
    }

    #[test]
    fn latency_needs_its_requests_on_both_sides() {
        let bounds = Bounds::default();
        let slow = |n| durations(n, |_| 100_000);
        let fast = |n| durations(n, |_| 20_000);
        assert!(latency(&bounds, &slow(100), &fast(100)).is_some());
        assert_eq!(latency(&bounds, &slow(99), &fast(100)), None);
        assert_eq!(latency(&bounds, &slow(100), &fast(99)), None);
    }

    #[test]
    fn difference_below_the_floor_is_none() {
        let bounds = Bounds::default();
        // Nine times as slow, and 8 ms.
        let (candidate, current) = (durations(400, |_| 9_000), durations(400, |_| 1_000));
        assert_eq!(latency(&bounds, &candidate, &current), None);
        let candidate = durations(400, |_| 12_000);
        assert!(latency(&bounds, &candidate, &current).is_some());
    }
}
