//! What notifications say, kept small: which of the watched names they named, however many they were.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode, Event, EventKind, ModifyKind, RenameMode};

use super::rest::{News, Writer};

/// The names that are worth a look.
#[derive(Debug, Default)]
pub(super) struct Interest {
    names: HashSet<PathBuf>,
    /// Their last parts. The system may call a folder by another path than we do (a bind mount); a file that is called
    /// the same in some watched folder is worth a look.
    lasts: HashSet<OsString>,
    /// The watched folders and all above them.
    folders: HashSet<PathBuf>,
}

impl Interest {
    /// In these names, each in its folder.
    pub(super) fn new<'a>(names: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut interest = Self::default();
        for name in names {
            if !interest.names.insert(name.to_owned()) {
                continue;
            }
            interest.lasts.extend(name.file_name().map(ToOwned::to_owned));
            let folder = name.parent().unwrap_or(name);
            for above in folder.ancestors() {
                if !interest.folders.insert(above.to_owned()) {
                    break;
                }
            }
        }
        interest
    }
}

/// What there was since the last look. Never larger than the interest.
#[derive(Debug, Default)]
pub(super) struct Kicks {
    /// By name.
    pub(super) news: HashMap<PathBuf, News>,
    /// Look at all files.
    pub(super) all: bool,
    /// Folders that were removed or moved away: the library ends its watches of them and of all below them.
    pub(super) lost: HashSet<PathBuf>,
}

impl Kicks {
    /// Whether there is a reason to look.
    pub(super) fn any(&self) -> bool {
        self.all || !self.news.is_empty()
    }

    /// Count one notification in.
    pub(super) fn count(&mut self, event: &Event, interest: &Interest) {
        if event.need_rescan() {
            // Some were dropped, so whatever is known of writers and of folders may be old. What has changed is left to
            // the stamps: in a storm this comes again and again, and all files would be read each time.
            self.all = true;
            self.lost.insert(PathBuf::from("/"));
            for name in &interest.names {
                self.news.entry(name.clone()).or_default().writer = Some(Writer::Unknown);
            }
            return;
        }
        let Some((moved, writer)) = meaning(event.kind) else {
            return;
        };
        for path in &event.paths {
            if interest.names.contains(path) {
                let news = self.news.entry(path.clone()).or_default();
                news.moved |= moved;
                news.writer = writer.or(news.writer);
            }
            if interest.folders.contains(path) {
                self.all = true;
                if moved && writer == Some(Writer::Unknown) {
                    self.lost.insert(path.clone());
                }
            } else if !interest.names.contains(path)
                && path.file_name().is_some_and(|last| interest.lasts.contains(last))
            {
                self.all = true;
            }
        }
    }
}

/// What a kind of notification says: whether the file is another one now, and of its writer. Nothing for those that
/// reading causes: they would kick us for ever.
fn meaning(kind: EventKind) -> Option<(bool, Option<Writer>)> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some((false, Some(Writer::Done))),
        EventKind::Access(_) => None,
        EventKind::Modify(ModifyKind::Data(_)) => Some((true, Some(Writer::AtWork))),
        EventKind::Modify(ModifyKind::Metadata(_)) => Some((false, None)),
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some((true, Some(Writer::Done))),
        // `From` and `To` once more, after both.
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => Some((false, None)),
        EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(_) => {
            Some((true, Some(Writer::Unknown)))
        }
        EventKind::Any | EventKind::Other => Some((true, None)),
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, Flag, RemoveKind};

    use super::*;

    const OPENED: EventKind = EventKind::Access(AccessKind::Open(AccessMode::Any));
    const READ: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Read));
    const CLOSED: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const WRITTEN: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CREATED: EventKind = EventKind::Create(CreateKind::File);
    const REMOVED: EventKind = EventKind::Remove(RemoveKind::Folder);
    const RENAMED: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::To));
    const FILE: &str = "/a/b/file";

    fn kicks(events: &[(EventKind, &str)]) -> Kicks {
        let interest = Interest::new([FILE, "/a/other", "/c/d/e/third"].map(Path::new));
        let mut kicks = Kicks::default();
        for (kind, path) in events {
            kicks.count(&Event::new(*kind).add_path(PathBuf::from(path)), &interest);
        }
        kicks
    }

    #[test]
    fn reading_is_no_reason_to_look() {
        let kicks = kicks(&[(OPENED, FILE), (READ, FILE), (OPENED, "/a/b")]);
        assert!(!kicks.any());
    }

    #[test]
    fn other_files_are_no_reason_to_look_but_one_of_the_same_name_is() {
        assert!(
            !kicks(&[
                (WRITTEN, "/a/b/unknown"),
                (CREATED, "/a/b/new"),
                (REMOVED, "/a/b/c")
            ])
            .any()
        );
        let kicks = kicks(&[(WRITTEN, "/bound/file")]);
        assert!(kicks.all && kicks.news.is_empty());
    }

    #[test]
    fn last_word_of_the_writer_counts() {
        let writer = |events: &[EventKind]| {
            let events: Vec<_> = events.iter().map(|kind| (*kind, FILE)).collect();
            let news = kicks(&events).news;
            assert_eq!(news.len(), 1);
            let news = news.get(Path::new(FILE)).unwrap();
            (news.moved, news.writer)
        };
        assert_eq!(writer(&[CREATED, WRITTEN]), (true, Some(Writer::AtWork)));
        assert_eq!(
            writer(&[CREATED, WRITTEN, CLOSED, OPENED]),
            (true, Some(Writer::Done))
        );
        assert_eq!(writer(&[CLOSED]), (false, Some(Writer::Done)));
        assert_eq!(writer(&[CLOSED, WRITTEN]), (true, Some(Writer::AtWork)));
        assert_eq!(writer(&[WRITTEN, RENAMED]), (true, Some(Writer::Done)));
    }

    #[test]
    fn removed_folder_is_lost() {
        assert_eq!(kicks(&[(REMOVED, "/a/b")]).lost, [PathBuf::from("/a/b")].into());
        assert_eq!(kicks(&[(REMOVED, "/c/d")]).lost, [PathBuf::from("/c/d")].into());
        assert!(kicks(&[(REMOVED, FILE)]).lost.is_empty());
        assert!(kicks(&[(CREATED, "/a/b")]).all);
    }

    #[test]
    fn dropped_notifications_make_everything_doubtful() {
        let interest = Interest::new([Path::new(FILE), Path::new("/c/other")]);
        let mut kicks = Kicks::default();
        kicks.count(&Event::new(WRITTEN).add_path(FILE.into()), &interest);
        kicks.count(&Event::new(EventKind::Other).set_flag(Flag::Rescan), &interest);
        assert!(kicks.all && !kicks.lost.is_empty());
        let news = |moved| News {
            moved,
            writer: Some(Writer::Unknown),
        };
        let expected = [(FILE, news(true)), ("/c/other", news(false))];
        assert_eq!(
            kicks.news,
            expected.map(|(name, news)| (name.into(), news)).into()
        );
    }
}
