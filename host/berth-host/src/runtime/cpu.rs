//! How long this thread was not on a CPU, although it could have worked.
//!
//! A guest is billed for CPU time, and what is at hand for every poll is the time of day. The two are the same until the
//! kernel gives the core to somebody else, which on a busy machine takes milliseconds. Asking for the thread's CPU time is
//! a system call, too much for every poll; so it is asked for once in a while ([`note`]), and again when it matters
//! ([`away`]).

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How old a note may be, and so how much too long the answer of [`away`] may be.
pub(super) const FRESH: Duration = Duration::from_millis(1);

#[derive(Clone, Copy)]
struct Note {
    at: Instant,
    on_cpu: Duration,
}

thread_local! {
    static LAST: Cell<Option<Note>> = const { Cell::new(None) };
}

/// CPU time of this thread; see clock_gettime(2) of `CLOCK_THREAD_CPUTIME_ID`.
fn on_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Something begins on this thread for which [`away`] may be asked. It is `now`.
pub(super) fn note(now: Instant) {
    let last = LAST.get();
    if last.is_none_or(|last| now.saturating_duration_since(last.at) > FRESH) {
        LAST.set(Some(Note {
            at: now,
            on_cpu: on_cpu(),
        }));
    }
}

/// How long this thread was not on a CPU since what was last noted began, and up to [`FRESH`] before. It is `now`.
pub(super) fn away(now: Instant) -> Duration {
    let Some(last) = LAST.get() else {
        return Duration::ZERO;
    };
    let worked = on_cpu().saturating_sub(last.on_cpu);
    now.saturating_duration_since(last.at).saturating_sub(worked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_away_and_work_is_not() {
        let begin = Instant::now();
        note(begin);
        let nap = Duration::from_millis(20);
        std::thread::sleep(nap);
        let slept = away(Instant::now());
        assert!(slept >= nap - FRESH, "{slept:?}");
        // Noted anew, as the note is older.
        note(Instant::now());
        let goal = on_cpu() + nap;
        let working = Instant::now();
        while on_cpu() < goal {
            std::hint::spin_loop();
        }
        // Others may have had the core meanwhile.
        let worked = working.elapsed().saturating_sub(away(Instant::now()));
        assert!(worked >= nap - FRESH && worked < nap * 2, "{worked:?}");
    }

    #[test]
    fn note_that_is_fresh_is_kept() {
        std::thread::spawn(|| {
            assert_eq!(away(Instant::now()), Duration::ZERO, "nothing is noted");
            let now = Instant::now();
            note(now);
            note(now + FRESH);
            assert_eq!(LAST.get().unwrap().at, now);
            note(now + FRESH * 2);
            assert_eq!(LAST.get().unwrap().at, now + FRESH * 2);
        })
        .join()
        .unwrap();
    }
}
