//! Which of the watched files may have changed, and when they have come to rest.
//!
//! **Stamps decide, notifications hurry.** What counts as a change is that a look at the path finds another stamp
//! (inode, size, times), or that a notification names a file as written, made, removed or renamed. Every file is looked
//! at every two seconds in any case. Notifications may be late, dropped, of another file, or not to be had at all: then
//! a change is told later, but it is told. They come for folders, not for files, because editors rename over a file,
//! builds delete and make it anew, and Kubernetes swaps a symlink two steps before it; see `trail.rs`.
//!
//! **At rest.** A file is told when it was the same for [`SETTLE`], or at once when whoever made it has closed it or has
//! renamed it into place. While a writer has it open it is not told before a second of silence, and at the latest after
//! half a minute; see `rest.rs`.
//!
//! **False alarms are allowed, missed changes are not.** A touch, a chmod or the same bytes again are told; whoever hears
//! of it reads the file with [`read_whole`] and compares hashes. A file's stamp is taken before its path is told, so that
//! a change between the two is told again. Bytes that are written in the same tick of the kernel's clock leave the same
//! stamp; [`read_whole`] doesn't begin before the tick is over.
//!
//! **Threads.** One of ours, because a look at a file can take long (a network), and the notification library's own. They
//! share one small desk; however many notifications come, there is at most one look per 5 ms. Both end when the
//! [`Watch`] is dropped.
//!
//! Absent: reading or hashing (the caller's), what to do about a missing file (the caller's), watches of whole trees, and
//! quick notice of a folder that is moved away together with one of the folders it is in (the next sweep finds it).

mod kicks;
mod look;
mod notices;
mod read;
mod rest;
mod stamp;
#[cfg(test)]
mod tests;
mod trail;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use self::kicks::{Interest, Kicks};
use self::rest::Pace;
use self::stamp::Stamp;

pub use self::read::{ReadFault, read_whole};

/// A file that nobody is known to be writing has come to rest when it was the same for this long. More than a tick of the
/// kernel's clock, and more than what lies between a build's deleting a file and making it again.
pub const SETTLE: Duration = Duration::from_millis(20);

/// How far the times in a stamp may be behind: one tick of the kernel's clock, at most 10 ms (HZ=100), and a little.
const GRAIN: Duration = Duration::from_millis(12);

/// Watches files.
#[derive(Debug)]
pub struct Watch {
    desk: Arc<Desk>,
    /// With what each was when it was first watched.
    files: BTreeMap<PathBuf, Stamp>,
}

/// What the caller, our thread and the library's thread share.
#[derive(Debug, Default)]
struct Desk {
    papers: Mutex<Papers>,
    /// Rung for our thread.
    bell: Condvar,
    /// Rung for the caller.
    told: Notify,
    /// How often our thread has looked.
    #[cfg(test)]
    looks: tokio::sync::watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Papers {
    /// The watch was dropped.
    over: bool,
    /// The files are these now, with what each was when it was first watched.
    set: Option<BTreeMap<PathBuf, Stamp>>,
    /// Which notifications matter, and what they said.
    interest: Interest,
    kicks: Kicks,
    /// To be told, the oldest first, each once.
    ready: VecDeque<PathBuf>,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Papers> {
        // Each change of the papers is whole by itself.
        self.papers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Watches these files from now on: what is changed after this returns will be told, so begin before reading them
    /// for the first time. They need not be there, nor their folders. Relative paths are taken from the folder that the
    /// process is in now.
    ///
    /// Never fails. Where the system's notifications can't be had (the limit of inotify, a network), it says so once in
    /// the log and looks at the files twice a second.
    pub fn start(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self::at(Pace::USUAL, files)
    }

    fn at(pace: Pace, files: impl IntoIterator<Item = PathBuf>) -> Self {
        let desk = Arc::new(Desk::default());
        let mut watch = Self {
            desk: desk.clone(),
            files: BTreeMap::new(),
        };
        watch.set(files);
        let thread = std::thread::Builder::new().name("berth-watch".to_owned());
        if let Err(error) = thread.spawn(move || look::run(&desk, pace)) {
            tracing::error!(
                error.message = %error,
                "no thread can be made to watch files ({error}), so changed components and manifests are not noticed; raise the limit of threads and start berth again"
            );
        }
        watch
    }

    /// From now on watches these. Files that were watched already keep what is known of them, and what is to be told of
    /// them; what the others are now counts as known. Of files that aren't among these nothing more is told.
    ///
    /// Looks at each new file once, on the calling thread (a microsecond each where files are on a disk).
    pub fn set(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        self.files = files
            .into_iter()
            .map(|file| {
                let known = self.files.get(&file).copied();
                let known = known.unwrap_or_else(|| Stamp::of(&absolute(&file)));
                (file, known)
            })
            .collect();
        let mut papers = self.desk.lock();
        papers.ready.retain(|file| self.files.contains_key(file));
        papers.set = Some(self.files.clone());
        self.desk.bell.notify_one();
    }

    /// Waits until one of the files may be another one than it was when it was last told (or first watched), and has come
    /// to rest; then gives its path, as it was given. Which includes that it is gone. Nothing is lost when this is dropped
    /// before it is ready.
    pub async fn changed(&mut self) -> PathBuf {
        loop {
            if let Some(file) = self.desk.lock().ready.pop_front() {
                return file;
            }
            // Keeps a call that came between the look and this.
            self.desk.told.notified().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The threads end by themselves: a look can take long, and this may be an async thread.
        self.desk.lock().over = true;
        self.desk.bell.notify_one();
    }
}

/// The same file, wherever the process goes.
fn absolute(file: &Path) -> PathBuf {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
}
