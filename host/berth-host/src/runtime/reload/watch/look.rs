//! The thread that looks at the files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use notify::EventHandler;

use super::kicks::{Interest, Kicks};
use super::notices::{Followed, Notices};
use super::rest::{News, Pace, Rest, Verdict};
use super::stamp::Stamp;
use super::trail::Trail;
use super::{Desk, absolute};

/// Look until the watch is dropped.
pub(super) fn run(desk: &Arc<Desk>, pace: Pace) {
    let notices = match pace.notices {
        true => Notices::new(handler(desk.clone())),
        false => Notices::none(),
    };
    let now = Instant::now();
    let mut looker = Looker {
        desk,
        pace,
        notices,
        files: BTreeMap::new(),
        folders: BTreeSet::new(),
        followed: Followed::default(),
        swept: None,
    };
    let (mut due, mut rested) = (now, now);
    while let Some(work) = wait(desk, due, rested) {
        due = looker.look(work);
        rested = Instant::now() + pace.gap;
        #[cfg(test)]
        desk.looks.send_modify(|looks| *looks += 1);
    }
}

/// What the notification library's thread does: as little as possible.
fn handler(desk: Arc<Desk>) -> impl EventHandler {
    move |event: notify::Result<notify::Event>| {
        let mut papers = desk.lock();
        let papers = &mut *papers;
        let rung = papers.kicks.any();
        match event {
            Ok(event) => papers.kicks.count(&event, &papers.interest),
            Err(_) => papers.kicks.all = true,
        }
        if !rung && papers.kicks.any() {
            desk.bell.notify_one();
        }
    }
}

/// What there is to do.
struct Work {
    /// All files from now on, with what is known of those that are new.
    set: Option<BTreeMap<PathBuf, Stamp>>,
    kicks: Kicks,
}

/// Wait until a look is due, or there is a reason for one; but not for a kick before this was `rested`. Nothing when the
/// watch was dropped.
fn wait(desk: &Desk, due: Instant, rested: Instant) -> Option<Work> {
    let mut papers = desk.lock();
    loop {
        if papers.over {
            return None;
        }
        let until = match papers.kicks.any() {
            true => due.min(rested),
            false => due,
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || papers.set.is_some() {
            return Some(Work {
                set: papers.set.take(),
                kicks: std::mem::take(&mut papers.kicks),
            });
        }
        papers = desk
            .bell
            .wait_timeout(papers, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
}

/// One watched file.
struct File {
    path: PathBuf,
    trail: Trail,
    rest: Rest,
}

impl File {
    fn new(path: &Path, known: Stamp) -> Self {
        Self {
            path: absolute(path),
            trail: Trail::default(),
            rest: Rest::new(known, Instant::now()),
        }
    }

    /// What notifications say of it, if they name it at all.
    fn news(&self, kicks: &Kicks) -> Option<News> {
        let names = self.trail.names();
        names
            .filter_map(|name| kicks.news.get(name).copied())
            .reduce(News::and)
    }

    /// Look at it; and say whether the way to it is another one now.
    fn look(&mut self, news: News, pace: &Pace) -> (Verdict, bool) {
        let stamp = Stamp::of(&self.path);
        let mut turned = false;
        if self.trail.is_fickle() || news.moved || stamp != self.rest.seen() {
            let trail = Trail::of(&self.path);
            turned = trail != self.trail;
            self.trail = trail;
        }
        (self.rest.look(stamp, news, Instant::now(), pace), turned)
    }
}

/// What the thread has.
struct Looker<'a> {
    desk: &'a Desk,
    pace: Pace,
    notices: Notices,
    files: BTreeMap<PathBuf, File>,
    /// All that are on the files' trails.
    folders: BTreeSet<PathBuf>,
    /// How watching them went the last time.
    followed: Followed,
    /// When all files were looked at whatever the notifications said.
    swept: Option<Instant>,
}

impl Looker<'_> {
    /// Look at what there is a reason to look at, tell what has come to rest, and say when the next look is due.
    fn look(&mut self, work: Work) -> Instant {
        let began = Instant::now();
        let mut turned = self.set(work.set);
        let sweeps = began >= self.sweep_due(began);
        // Folders that are watched only now may have been changed before.
        let all = sweeps || turned || work.kicks.all || self.followed.more;
        let mut at_rest = Vec::new();
        let mut next: Option<Instant> = None;
        for (name, file) in &mut self.files {
            let news = file.news(&work.kicks);
            if !all && news.is_none() && !file.rest.is_restless() {
                continue;
            }
            let (verdict, turn) = file.look(news.unwrap_or_default(), &self.pace);
            turned |= turn;
            match verdict {
                Verdict::Known => {}
                Verdict::Restless(at) => next = Some(next.map_or(at, |next| next.min(at))),
                Verdict::Rests => at_rest.push(name),
            }
        }
        tell(self.desk, at_rest);

        if sweeps {
            self.swept = Some(began);
        }
        if turned {
            self.turn();
        }
        self.followed.more = false;
        if turned || sweeps || !work.kicks.lost.is_empty() {
            self.followed = self.notices.follow(&self.folders, &work.kicks.lost);
        }
        match self.followed.more {
            true => began,
            false => next.into_iter().fold(self.sweep_due(began), Instant::min),
        }
    }

    /// Take over which files are watched. Whether it was asked for.
    fn set(&mut self, set: Option<BTreeMap<PathBuf, Stamp>>) -> bool {
        let Some(set) = set else {
            return false;
        };
        self.files.retain(|name, _| set.contains_key(name));
        for (name, known) in set {
            self.files
                .entry(name)
                .or_insert_with_key(|name| File::new(name, known));
        }
        true
    }

    fn sweep_due(&self, now: Instant) -> Instant {
        let period = match self.followed.blind {
            true => self.pace.poll.min(self.pace.sweep),
            false => self.pace.sweep,
        };
        self.swept.map_or(now, |swept| swept + period)
    }

    /// Which notifications matter now. Before their folders are watched, so that none is thrown away.
    fn turn(&mut self) {
        let trails = || self.files.values().map(|file| &file.trail);
        self.folders = trails().flat_map(Trail::folders).map(Path::to_owned).collect();
        self.desk.lock().interest = Interest::new(trails().flat_map(Trail::names));
    }
}

fn tell(desk: &Desk, at_rest: Vec<&PathBuf>) {
    if at_rest.is_empty() {
        return;
    }
    let mut papers = desk.lock();
    let papers = &mut *papers;
    for name in at_rest {
        let watched = papers.set.as_ref().is_none_or(|set| set.contains_key(name));
        if watched && !papers.ready.contains(name) {
            papers.ready.push_back(name.clone());
        }
    }
    desk.told.notify_one();
}
