//! The system's notifications: which folders they are had for, and where they can't be had.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use notify::{ErrorKind, EventHandler, RecommendedWatcher, RecursiveMode, Watcher};

/// Which folder a path leads to: device, inode, and when it was made, because inodes are used again.
type Identity = (u64, u64, Option<SystemTime>);

/// The folders that the system tells us about.
pub(super) struct Notices {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeMap<PathBuf, Identity>,
    /// Whether it was said already that the system tells nothing about something.
    said: Said,
}

/// What was said; each once.
#[derive(Default)]
struct Said {
    nothing: bool,
    some: bool,
    elsewhere: bool,
}

/// How it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Followed {
    /// Folders are watched now that weren't: what happened in them before is for us to find.
    pub(super) more: bool,
    /// Of some folders the system tells nothing, or not all.
    pub(super) blind: bool,
}

impl Notices {
    /// Watch nothing as yet.
    pub(super) fn new(handler: impl EventHandler) -> Self {
        let mut notices = Self::none();
        match notify::recommended_watcher(handler) {
            Ok(watcher) => notices.watcher = Some(watcher),
            Err(error) => notices.said.nothing(&error),
        }
        notices
    }

    /// No notifications at all.
    pub(super) fn none() -> Self {
        Self {
            watcher: None,
            folders: BTreeMap::new(),
            said: Said::default(),
        }
    }

    /// Watch these folders and no others; begin anew with those that were lost, at or below a path, or that are other
    /// ones now.
    pub(super) fn follow(&mut self, wanted: &BTreeSet<PathBuf>, lost: &HashSet<PathBuf>) -> Followed {
        let mut followed = Followed::default();
        self.bury();
        let Self {
            watcher: Some(watcher),
            folders,
            said,
        } = self
        else {
            followed.blind = true;
            return followed;
        };
        let now: BTreeMap<&PathBuf, Identity> = wanted
            .iter()
            .filter_map(|folder| Some((folder, identity(folder)?)))
            .collect();
        let is_lost =
            |folder: &Path| !lost.is_empty() && folder.ancestors().any(|above| lost.contains(above));
        folders.retain(|folder, identity| {
            let keeps = now.get(folder) == Some(identity) && !is_lost(folder);
            if !keeps {
                // It may have ended by itself.
                let _ = watcher.unwatch(folder);
            }
            keeps
        });
        for (folder, identity) in now {
            if !folders.contains_key(folder) {
                match watcher.watch(folder, RecursiveMode::NonRecursive) {
                    Ok(()) => {
                        folders.insert(folder.clone(), identity);
                        followed.more = true;
                    }
                    // Gone since; the next look finds where to wait for it.
                    Err(error) if matches!(error.kind, ErrorKind::PathNotFound) => {
                        followed.blind = true;
                        continue;
                    }
                    Err(error) => {
                        followed.blind = true;
                        said.some(folder, &error);
                        continue;
                    }
                }
            }
            if is_elsewhere(folder) {
                followed.blind = true;
                said.elsewhere(folder);
            }
        }
        followed
    }

    /// The library panics when its thread has ended, even when it is dropped; so ask first, and let go of a dead one.
    fn bury(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        if let Err(error) = watcher.configure(notify::Config::default()) {
            std::mem::forget(self.watcher.take());
            self.folders.clear();
            self.said.nothing(&error);
        }
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.bury();
    }
}

impl Said {
    fn nothing(&mut self, error: &notify::Error) {
        if !std::mem::replace(&mut self.nothing, true) {
            let reason = reason(error);
            tracing::warn!(
                error.message = reason,
                "the system doesn't tell of changed files ({reason}), so components and the manifest are looked at twice a second; {ADVICE}",
            );
        }
    }

    fn some(&mut self, folder: &Path, error: &notify::Error) {
        if !std::mem::replace(&mut self.some, true) {
            let (folder, reason) = (folder.display(), reason(error));
            tracing::warn!(
                file.folder = %folder,
                error.message = reason,
                "the system doesn't tell of changed files in {folder} ({reason}), so components and the manifest are looked at twice a second; {ADVICE}",
            );
        }
    }

    fn elsewhere(&mut self, folder: &Path) {
        if !std::mem::replace(&mut self.elsewhere, true) {
            let folder = folder.display();
            tracing::warn!(
                file.folder = %folder,
                "{folder} is on a file system that others can change without the system's telling, so components and the manifest are looked at twice a second",
            );
        }
    }
}

/// What can be done where notifications can't be had.
const ADVICE: &str = "raising fs.inotify.max_user_watches or fs.inotify.max_user_instances (sysctl) may help";

fn reason(error: &notify::Error) -> String {
    match &error.kind {
        ErrorKind::MaxFilesWatch => "the limit of inotify watches is reached".to_owned(),
        // Without the path, which is said already.
        ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    }
}

fn identity(folder: &Path) -> Option<Identity> {
    let metadata = std::fs::metadata(folder).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.created().ok()))
}

/// Whether files in this folder can be changed without this kernel: on file systems of the network and of virtual
/// machines' hosts. The numbers are those of statfs(2) and linux/magic.h.
fn is_elsewhere(folder: &Path) -> bool {
    const ELSEWHERE: [u32; 9] = [
        0x6969,      // NFS
        0xfe53_4d42, // SMB 2
        0xff53_4d42, // CIFS
        0x517b,      // SMB
        0x6573_5546, // FUSE, with virtiofs
        0x0102_1997, // 9P
        0x00c3_6400, // Ceph
        0x5346_414f, // AFS
        0x786f_4256, // vboxsf
    ];
    rustix::fs::statfs(folder).is_ok_and(|about| {
        // Of different width and sign on different machines; all of them fit.
        u32::try_from(about.f_type).is_ok_and(|kind| ELSEWHERE.contains(&kind))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_thread_of_the_library_means_no_notifications_and_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        let mut notices = Notices::new(|_: notify::Result<notify::Event>| panic!("this is part of a test"));
        let wanted = BTreeSet::from([folder.path().to_owned()]);
        let followed = notices.follow(&wanted, &HashSet::new());
        assert!(followed.more);
        std::fs::write(folder.path().join("file"), "").unwrap();
        // The library's thread dies of it, sooner or later.
        while notices.watcher.is_some() {
            notices.bury();
        }
        let followed = notices.follow(&wanted, &HashSet::new());
        let blind = Followed {
            more: false,
            blind: true,
        };
        assert_eq!(followed, blind);
    }

    #[test]
    fn folder_is_watched_again_only_when_it_is_another_one_or_was_lost() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("folder");
        let wanted = BTreeSet::from([folder.clone()]);
        let mut notices = Notices::new(|_: notify::Result<notify::Event>| {});
        let mut more = |lost: &[&Path]| {
            let lost = lost.iter().map(|path| (*path).to_owned()).collect();
            notices.follow(&wanted, &lost).more
        };
        assert!(!more(&[]));
        std::fs::create_dir(&folder).unwrap();
        assert!(more(&[]));
        assert!(!more(&[]));
        std::fs::write(folder.join("file"), "").unwrap();
        assert!(!more(&[]));
        assert!(more(&[root.path()]));
        assert!(!more(&[&folder.join("below")]));
        std::fs::rename(&folder, root.path().join("other")).unwrap();
        std::fs::create_dir(&folder).unwrap();
        assert!(more(&[]));
    }
}
