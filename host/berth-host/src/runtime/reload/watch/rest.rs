//! When a file that was changed has come to rest. Without a clock and without files, so that it can be tested.

use std::time::{Duration, Instant};

use super::stamp::Stamp;

/// How patient the watcher is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// A changed file rests when it has been the same for this long.
    pub(super) settle: Duration,
    /// One that somebody has open for writing: this long. Whoever holds a file open and says no more is not waited for.
    pub(super) open: Duration,
    /// After this long it is told, at rest or not, so that somebody hears of a file that never rests.
    pub(super) most: Duration,
    /// All files are looked at this often, whatever the notifications say.
    pub(super) sweep: Duration,
    /// The same where there are no notifications.
    pub(super) poll: Duration,
    /// Between two looks, however many notifications come.
    pub(super) gap: Duration,
    /// Ask the system for notifications at all.
    pub(super) notices: bool,
}

impl Pace {
    pub(super) const USUAL: Self = Self {
        settle: super::SETTLE,
        open: Duration::from_secs(1),
        most: Duration::from_secs(30),
        sweep: Duration::from_secs(2),
        poll: Duration::from_millis(500),
        gap: Duration::from_millis(5),
        notices: true,
    };
}

/// What notifications say about a writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Writer {
    /// Nothing.
    #[default]
    Unknown,
    /// The file was written to, and not closed since.
    AtWork,
    /// The file was closed after writing, or renamed into place: whoever made it says that it is whole.
    Done,
}

/// What notifications said of one name since they were last read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Written to, made, removed or renamed. Counts as a change whatever the stamps say.
    pub(super) moved: bool,
    /// The latest word about its writer.
    pub(super) writer: Option<Writer>,
}

impl News {
    /// Two names of one file: somebody at work on either is at work.
    pub(super) fn and(self, other: Self) -> Self {
        let at_work = Some(Writer::AtWork);
        Self {
            moved: self.moved || other.moved,
            writer: match (self.writer, other.writer) {
                (one, two) if one == at_work || two == at_work => at_work,
                (one, two) => one.or(two),
            },
        }
    }
}

/// What is to be done about a file after a look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is what it was.
    Known,
    /// It has changed; look again at this time.
    Restless(Instant),
    /// It has changed and has come to rest.
    Rests,
}

/// What is known of one file.
#[derive(Debug)]
pub(super) struct Rest {
    /// What it was when it was last told.
    known: Stamp,
    /// What it was at the last look, and since when.
    seen: Stamp,
    since: Instant,
    /// Notifications say that it was changed since it was last told.
    moved: bool,
    /// When the change that isn't told yet was first seen.
    began: Option<Instant>,
    writer: Writer,
}

impl Rest {
    pub(super) fn new(known: Stamp, now: Instant) -> Self {
        Self {
            known,
            seen: known,
            since: now,
            moved: false,
            began: None,
            writer: Writer::Unknown,
        }
    }

    /// What it was at the last look.
    pub(super) fn seen(&self) -> Stamp {
        self.seen
    }

    /// Whether there is a change that isn't told yet.
    pub(super) fn is_restless(&self) -> bool {
        self.began.is_some()
    }

    /// Judge by one more look. The news must be older than the stamp.
    pub(super) fn look(&mut self, stamp: Stamp, news: News, now: Instant, pace: &Pace) -> Verdict {
        if news.moved || stamp != self.seen {
            self.since = now;
        }
        self.moved |= news.moved;
        self.seen = stamp;
        self.writer = news.writer.unwrap_or(self.writer);
        let same = self.seen == self.known;
        // As it was, or again as it was; or still not there, whatever was made or removed on the way to it.
        if same && (!self.moved || matches!(stamp, Stamp::Absent(_))) {
            self.moved = false;
            self.began = None;
            if self.writer == Writer::Done {
                self.writer = Writer::Unknown;
            }
            return Verdict::Known;
        }
        let began = *self.began.get_or_insert(now);
        let patience = match self.writer {
            Writer::Done if matches!(stamp, Stamp::There { .. }) => Duration::ZERO,
            Writer::Done | Writer::Unknown => pace.settle,
            Writer::AtWork => pace.open,
        };
        let rests = (self.since + patience).min(began + pace.most);
        if now < rests {
            return Verdict::Restless(rests);
        }
        self.known = stamp;
        self.moved = false;
        self.began = None;
        if self.writer == Writer::Done {
            self.writer = Writer::Unknown;
        }
        Verdict::Rests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace::USUAL;
    const GONE: Stamp = Stamp::Absent(Some(2));
    const QUIET: News = News {
        moved: false,
        writer: None,
    };
    const WRITTEN: News = News {
        moved: true,
        writer: Some(Writer::AtWork),
    };
    const PLACED: News = News {
        moved: true,
        writer: Some(Writer::Done),
    };
    const CLOSED: News = News {
        moved: false,
        writer: Some(Writer::Done),
    };

    fn stamp(size: u64) -> Stamp {
        Stamp::There {
            dev: 1,
            ino: 1,
            size,
            written: (0, 0),
            changed: (0, 0),
        }
    }

    /// Looks at these times (ms), and what each must say: nothing, the time of the next look (ms), or that it rests.
    #[derive(Debug, PartialEq)]
    enum Says {
        Known,
        Next(u128),
        Rests,
    }

    fn says(looks: &[(u64, Stamp, News)]) -> Vec<Says> {
        let start = Instant::now();
        let mut rest = Rest::new(stamp(1), start);
        looks
            .iter()
            .map(|(at, stamp, news)| {
                let verdict = rest.look(*stamp, *news, start + Duration::from_millis(*at), &PACE);
                match verdict {
                    Verdict::Known => Says::Known,
                    Verdict::Restless(next) => Says::Next((next - start).as_millis()),
                    Verdict::Rests => Says::Rests,
                }
            })
            .collect()
    }

    #[test]
    fn change_without_notifications_is_told_when_it_was_the_same_for_a_while() {
        let looks = [
            (0, stamp(1), QUIET),
            (100, stamp(2), QUIET),
            (110, stamp(3), QUIET),
            (129, stamp(3), QUIET),
            (130, stamp(3), QUIET),
            (131, stamp(3), QUIET),
            (140, stamp(4), QUIET),
        ];
        use Says::*;
        let expected = [Known, Next(120), Next(130), Next(130), Rests, Known, Next(160)];
        assert_eq!(says(&looks), expected);
    }

    #[test]
    fn closed_and_renamed_files_are_told_at_once() {
        use Says::*;
        assert_eq!(
            says(&[(5, stamp(2), PLACED), (6, stamp(2), QUIET)]),
            [Rests, Known]
        );
        assert_eq!(
            says(&[(5, stamp(2), WRITTEN), (6, stamp(2), CLOSED)]),
            [Next(1005), Rests]
        );
    }

    #[test]
    fn open_file_is_waited_for_until_it_is_silent() {
        use Says::*;
        let looks = [
            (0, stamp(2), WRITTEN),
            (200, stamp(3), WRITTEN),
            (400, stamp(4), WRITTEN),
            (1399, stamp(4), QUIET),
            (1400, stamp(4), QUIET),
            // Still open: the next change is waited for as well.
            (1500, stamp(5), QUIET),
        ];
        let expected = [Next(1000), Next(1200), Next(1400), Next(1400), Rests, Next(2500)];
        assert_eq!(says(&looks), expected);
    }

    #[test]
    fn file_that_never_rests_is_told_in_the_end() {
        let looks: Vec<_> = (0..=3001).map(|n| (n * 10, stamp(n + 2), WRITTEN)).collect();
        let told: Vec<_> = says(&looks)
            .iter()
            .enumerate()
            .filter(|(_, says)| **says == Says::Rests)
            .map(|(n, _)| n * 10)
            .collect();
        assert_eq!(told, [30_000]);
    }

    #[test]
    fn change_that_left_the_same_stamp_is_told() {
        use Says::*;
        assert_eq!(
            says(&[(0, stamp(1), PLACED), (1, stamp(1), QUIET)]),
            [Rests, Known]
        );
        let looks = [
            (0, stamp(1), WRITTEN),
            (1, stamp(1), CLOSED),
            (2, stamp(1), CLOSED),
        ];
        assert_eq!(says(&looks), [Next(1000), Rests, Known]);
    }

    #[test]
    fn absence_is_never_told_at_once() {
        use Says::*;
        let looks = [
            (0, GONE, PLACED),
            (19, GONE, QUIET),
            (20, GONE, QUIET),
            (21, GONE, QUIET),
        ];
        assert_eq!(says(&looks), [Next(20), Next(20), Rests, Known]);
    }

    #[test]
    fn file_that_is_again_what_it_was_is_not_told() {
        use Says::*;
        assert_eq!(
            says(&[
                (0, stamp(2), QUIET),
                (10, stamp(1), QUIET),
                (100, stamp(1), QUIET)
            ]),
            [Next(20), Known, Known]
        );
    }

    #[test]
    fn file_that_is_still_missing_is_not_told() {
        use Says::*;
        let looks = [
            (0, GONE, QUIET),
            (20, GONE, QUIET),
            (30, GONE, PLACED),
            (60, GONE, QUIET),
        ];
        assert_eq!(says(&looks), [Next(20), Rests, Known, Known]);
    }

    #[test]
    fn word_of_a_past_writer_is_not_kept() {
        use Says::*;
        // Closed without a change; the change that comes later must settle.
        assert_eq!(
            says(&[(0, stamp(1), CLOSED), (50, stamp(2), QUIET)]),
            [Known, Next(70)]
        );
        assert_eq!(
            says(&[(0, stamp(2), PLACED), (50, stamp(3), QUIET)]),
            [Rests, Next(70)]
        );
    }

    #[test]
    fn somebody_at_work_on_one_name_is_at_work_on_all() {
        assert_eq!(PLACED.and(WRITTEN), WRITTEN);
        assert_eq!(WRITTEN.and(CLOSED), WRITTEN);
        assert_eq!(QUIET.and(CLOSED), CLOSED);
    }
}
