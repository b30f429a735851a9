//! `grants = { folders = { … } }`: which folders of the machine a plugin sees, and under which names.

use std::fmt;
use std::path::{Path, PathBuf};

/// One folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderGrant {
    /// Its path for the guest: absolute.
    guest: String,
    /// Its path as in the manifest.
    written: String,
    /// Its path on the machine.
    host: PathBuf,
    /// Whether the guest may change what is in it.
    write: bool,
}

impl FolderGrant {
    /// `written` is the manifest's text, `host` the same from where the manifest is.
    ///
    /// # Errors
    /// The guest's path isn't one; the text says what would be.
    pub fn new(guest: &str, written: &str, host: PathBuf, write: bool) -> Result<Self, String> {
        let good = guest.strip_prefix('/').is_some_and(|rest| {
            rest.is_empty()
                || rest
                    .split('/')
                    .all(|s| !matches!(s, "" | "." | "..") && !s.chars().any(char::is_control))
        });
        if !good {
            return Err(format!(
                "{guest:?} is not a folder's path for the plugin; it begins with \"/\" and has no \".\", no \"..\" and no \"/\" at its end, as in \"/data\""
            ));
        }
        Ok(Self {
            guest: guest.to_owned(),
            written: written.to_owned(),
            host,
            write,
        })
    }

    /// Its path for the guest.
    pub fn guest(&self) -> &str {
        &self.guest
    }

    /// Its path on the machine.
    pub fn host(&self) -> &Path {
        &self.host
    }

    /// Whether the guest may change what is in it.
    pub fn may_write(&self) -> bool {
        self.write
    }
}

/// As in the manifest.
impl fmt::Display for FolderGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (guest, path) = (&self.guest, &self.written);
        if self.write {
            write!(f, "{guest:?} = {{ path = {path:?}, write = true }}")
        } else {
            write!(f, "{guest:?} = {path:?}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_path_is_absolute_and_plain() {
        let new = |guest: &str| FolderGrant::new(guest, "x", PathBuf::from("x"), false);
        for good in ["/", "/data", "/a/b.c/..d"] {
            assert!(new(good).is_ok(), "{good}");
        }
        for bad in [
            "", "data", "/data/", "//", "/a//b", "/../etc", "/a/..", "/./a", "/a\n",
        ] {
            assert!(new(bad).is_err(), "{bad}");
        }
    }
}
