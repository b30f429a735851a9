//! The way from a file's path to the file: every name on it that can be made to lead elsewhere.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// The most symlinks on one way, as for the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What has to be watched to notice that a path leads to something else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trail {
    /// Every symlink on the way, and the name at its end: of the file, or of the first thing that isn't there. The
    /// folders in these are real ones, without symlinks; a name's folder is the one to be watched.
    ///
    /// Ordinary folders on the way are left out, but for what the watch of a folder itself says: else the root and the
    /// home folder would be watched for every file. That one of them is moved away is found by the next sweep.
    names: Vec<PathBuf>,
    links: usize,
    ends: bool,
}

impl Trail {
    /// Follow an absolute path.
    pub(super) fn of(path: &Path) -> Self {
        let mut trail = Self::default();
        let mut here = PathBuf::from("/");
        let mut ahead: VecDeque<OsString> = steps(path);
        while let Some(step) = ahead.pop_front() {
            if step == ".." {
                here.pop();
                continue;
            }
            let name = here.join(&step);
            match std::fs::read_link(&name) {
                Ok(target) => {
                    trail.names.push(name);
                    trail.links += 1;
                    if trail.links > MAX_LINKS {
                        return trail;
                    }
                    if target.is_absolute() {
                        here = PathBuf::from("/");
                    }
                    for step in steps(&target).into_iter().rev() {
                        ahead.push_front(step);
                    }
                }
                // EINVAL: it is there, and no symlink.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                    if ahead.is_empty() {
                        trail.names.push(name);
                        trail.ends = true;
                        return trail;
                    }
                    here = name;
                }
                Err(error) => {
                    // Where a file is in the place of a folder, it is the file that has to go.
                    let file = error.kind() == std::io::ErrorKind::NotADirectory;
                    trail.names.push(if file { here } else { name });
                    return trail;
                }
            }
        }
        // It leads to a folder by `.` or `..`; the folder's name is as good as any.
        trail.names.push(here);
        trail
    }

    /// The names; see the field.
    pub(super) fn names(&self) -> impl Iterator<Item = &Path> {
        self.names.iter().map(PathBuf::as_path)
    }

    /// The folders to be watched.
    pub(super) fn folders(&self) -> impl Iterator<Item = &Path> {
        self.names.iter().map(|name| name.parent().unwrap_or(name))
    }

    /// Whether the way can be another one although it leads to the same file: it has symlinks, or it ends early.
    pub(super) fn is_fickle(&self) -> bool {
        self.links > 0 || !self.ends
    }
}

fn steps(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// The names of a trail, and whether it is fickle, in a folder whose own path has no symlinks.
    fn names(root: &Path, path: &str) -> (Vec<String>, bool) {
        let trail = Trail::of(&root.join(path));
        let names = trail
            .names()
            .map(|name| name.strip_prefix(root).unwrap().display().to_string())
            .collect();
        (names, trail.is_fickle())
    }

    #[test]
    fn every_symlink_is_on_the_trail_and_ordinary_folders_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = &folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir(root.join("v1")).unwrap();
        std::fs::write(root.join("a/b/file"), "").unwrap();
        std::fs::write(root.join("v1/file"), "").unwrap();
        symlink("v1", root.join("..data")).unwrap();
        symlink("..data/file", root.join("file")).unwrap();
        symlink(root.join("file"), root.join("a/absolute")).unwrap();
        symlink("../../a/b/file", root.join("a/b/up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();

        let of = |path| names(root, path);
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(of("a/b/file"), (list(&["a/b/file"]), false));
        assert_eq!(of("a/../a/./b/file"), (list(&["a/b/file"]), false));
        assert_eq!(of("file"), (list(&["file", "..data", "v1/file"]), true));
        assert_eq!(
            of("a/absolute"),
            (list(&["a/absolute", "file", "..data", "v1/file"]), true)
        );
        assert_eq!(of("a/b/up"), (list(&["a/b/up", "a/b/file"]), true));
        // Where the way ends early, the first name that is missing is the one to wait for.
        assert_eq!(of("a/none/deep/file"), (list(&["a/none"]), true));
        assert_eq!(of("a/b/file/below"), (list(&["a/b/file"]), true));
        assert_eq!(of("loop").0.len(), MAX_LINKS + 1);
    }
}
