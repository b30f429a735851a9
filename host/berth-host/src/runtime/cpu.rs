//! How long this thread was on a CPU.
//!
//! A guest is billed for CPU time, and what is at hand for every poll is the time of day. The two are the same until the
//! kernel gives the core to somebody else, which on a busy machine takes milliseconds. Asking for the thread's CPU time is
//! a system call, too much for every poll; so it is asked for once in a while ([`note`]), and again when it matters
//! ([`worked`]).

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How old a note may be, and so how much too long the answer of [`worked`] may be.
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

/// Something begins on this thread for which [`worked`] may be asked. It is `now`.
pub(super) fn note(now: Instant) {
    let last = LAST.get();
    if last.is_none_or(|last| now.saturating_duration_since(last.at) > FRESH) {
        LAST.set(Some(Note {
            at: now,
            on_cpu: on_cpu(),
        }));
    }
}

/// CPU time of this thread since what was last noted began, and at most [`FRESH`] more. Nothing if nothing was.
pub(super) fn worked() -> Option<Duration> {
    LAST.get().map(|last| on_cpu().saturating_sub(last.on_cpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_no_work() {
        let begin = Instant::now();
        note(begin);
        let nap = Duration::from_millis(20);
        std::thread::sleep(nap);
        let slept = worked().unwrap();
        assert!(slept <= begin.elapsed() - nap, "{slept:?}");
        // Noted anew, as the note is older.
        let begin = Instant::now();
        note(begin);
        let goal = on_cpu() + nap;
        while on_cpu() < goal {
            std::hint::spin_loop();
        }
        let spun = worked().unwrap();
        assert!(nap <= spun + FRESH && spun <= begin.elapsed(), "{spun:?}");
    }

    #[test]
    fn note_that_is_fresh_is_kept() {
        std::thread::spawn(|| {
            assert_eq!(worked(), None, "nothing is noted");
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
