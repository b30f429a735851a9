//! Where things are: the checkout, cargo's output, the components, the tools.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The folders of one checkout; all paths are absolute.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds the checkout that this program was built from, wherever in it `cargo xtask` was called.
    pub(crate) fn find() -> Result<Self, Failure> {
        let here = std::env::current_dir().map_err(|error| {
            Failure::new(format!(
                "The current folder can't be read: {error}. Change into the checkout and try again."
            ))
        })?;
        // Cargo sets it to host/xtask when it runs us. A path from compile time would be wrong after a move.
        let root = std::env::var_os("CARGO_MANIFEST_DIR")
            .map(PathBuf::from)
            .and_then(|xtask| Some(xtask.parent()?.parent()?.to_path_buf()))
            .ok_or_else(|| {
                Failure::new("CARGO_MANIFEST_DIR isn't set, so the checkout can't be found. Run this as `cargo xtask`.")
            })?;
        let target = ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"]
            .into_iter()
            .filter_map(std::env::var_os)
            .find(|folder| !folder.is_empty())
            // Cargo takes a relative one from the folder in which it was called.
            .map_or_else(|| root.join("target"), |folder| here.join(folder));
        Ok(Self { root, target })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's output folder.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The guests' own workspace.
    pub(crate) fn guest_sources(&self) -> PathBuf {
        self.root.join("plugins")
    }

    /// Where the finished components are. It stays in the checkout even when `CARGO_TARGET_DIR` moves cargo's
    /// output, because `plugins/berth.toml` names them by a relative path.
    pub(crate) fn components(&self) -> PathBuf {
        self.root.join("target").join("plugins")
    }

    /// The `berth` binary of a profile's folder (`debug` or `release`).
    pub(crate) fn binary(&self, profile: &str, name: &str) -> PathBuf {
        self.target.join(profile).join(name)
    }

    /// Programs that we install for ourselves, outside the system.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
}

/// The path as a person would type it: relative to the current folder when it is below it.
pub(crate) fn short(path: &Path) -> PathBuf {
    std::env::current_dir()
        .ok()
        .and_then(|here| path.strip_prefix(here).ok().map(Path::to_path_buf))
        .filter(|relative| !relative.as_os_str().is_empty())
        .unwrap_or_else(|| path.to_path_buf())
}

/// The same for a program to run: one without a slash would be looked up on the `PATH`.
pub(crate) fn program(path: &Path) -> PathBuf {
    let short = short(path);
    if short.components().count() == 1 {
        Path::new(".").join(short)
    } else {
        short
    }
}
