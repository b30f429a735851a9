//! What a file is at one look, without reading it.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What tells one state of a file from another: which inode it is, how large, when written, when changed in any way.
/// Two equal stamps are not proof of equal bytes: see [`super::GRAIN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stamp {
    /// It is there, whatever it is.
    There {
        dev: u64,
        ino: u64,
        /// Bytes.
        size: u64,
        /// When its bytes were written: seconds and nanoseconds.
        written: (i64, i64),
        /// When its bytes, mode, owner or names were changed. A program can set back the other, not this.
        changed: (i64, i64),
    },
    /// It can't be seen: the system's number of the reason.
    Absent(Option<i32>),
}

impl Stamp {
    /// Of what this path leads to, through symlinks.
    pub(super) fn of(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(metadata) => Self::from(&metadata),
            Err(error) => Self::from(&error),
        }
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self::There {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            written: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl From<&io::Error> for Stamp {
    fn from(error: &io::Error) -> Self {
        Self::Absent(error.raw_os_error())
    }
}
