//! The versions of every plugin that are kept on disk.
//!
//! A file that is replaced is gone, and a component that was deployed never had a file. So that the version that
//! serves and the ones before it outlive a restart, and `rollback` has something to go back to, the data folder keeps
//! them:
//!
//! | name in `plugins/<plugin>/` | what |
//! |---|---|
//! | `state.json` | [`State`]: which versions there are, which one serves, what an operator decided |
//! | `<digest>.wasm` | a component; its name is the SHA-256 of its bytes |
//! | `<digest>.wasm.minisig` | its signature, under the name at which `minisign -V` looks for it |
//! | `state.json.damaged` | a state that could not be read, moved aside by the next one |
//! | `.fresh-…` | a file that is being written; after a crash, swept by the next start |
//!
//! Every file is written under another name and renamed, so a berth that dies leaves the old file or the new one. What
//! a machine that loses its power leaves depends on what was forced onto the disk, and that costs milliseconds each
//! time, so it is done where it buys something:
//!
//! - A state with an operator's decision in it (a deploy, a rollback, disabled) is on the disk before it gets its name:
//!   it is whole, or the one before. When the decision is a new one, so are the chosen component, which may be nowhere
//!   else, and the folder: the operator was told that it is done. Three times `fsync(2)`, and as long as the disk takes.
//! - Nothing else. To keep 2 MiB from a file and record it took 3 ms on a virtual disk (ext4), and a deploy of the same,
//!   with its three, 20 ms. What can be lost is the last half minute of history: the state names no version that decides
//!   anything, because the file does. A torn state or component is noticed: a state that ends early is
//!   [`KeptError::State`], [`Kept::read`] compares the digest, and [`Kept::put`] mends it.
//!
//! Deliberately absent: sharing of equal components between plugins, compression, machine code (the compile cache has
//! it), and any deletion of a plugin's folder. A plugin that left the manifest may come back; its folder can be deleted
//! by hand while berth doesn't run. Secrets are not in here, but who may write here chooses what is served: the folders
//! are for their owner alone, and one that others may write to is refused.

mod state;
#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

pub use state::{AtStart, Because, By, Chosen, FindError, KeptVersion, State};

use crate::config::is_plugin_name;
use crate::runtime::load::{MAX_COMPONENT, hex};
use crate::runtime::signature::MAX_SIGNATURE;

/// The file of the state.
const STATE: &str = "state.json";
/// Where a state that can't be read is moved to.
const DAMAGED: &str = "state.json.damaged";
/// How the names of files begin that are being written.
const FRESH: &str = ".fresh-";
/// The largest state that is read or written, in bytes: some 250 for each version.
const MAX_STATE: u64 = 256 * 1024;

/// The kept versions of all plugins. Its calls wait for the disk.
///
/// Whoever changes a plugin keeps others from changing the same one meanwhile: what is put must still be wanted when it
/// is recorded.
#[derive(Debug)]
pub struct Kept {
    folder: PathBuf,
    /// Held while a state is replaced and the files that it no longer names are dropped.
    recording: Mutex<()>,
    /// Numbers the files that are being written.
    fresh: AtomicU64,
}

/// Why something can't be kept, or what was kept can't be had.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// Something with a file or folder.
    #[error("{}: {what}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's words.
        error: io::Error,
    },
    /// Others may change what is in a folder.
    #[error(
        "{}: others may write to this folder (mode {mode:03o}), and so choose what is served; look at what is in it, then run `chmod 700` on it",
        path.display()
    )]
    Writable {
        /// The folder.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Somebody else owns a folder.
    #[error(
        "{}: this folder belongs to user {owner}, and this host runs as user {us}: its owner chooses what is served; run `chown -R` on it, if you know what is in it",
        path.display()
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
        /// Ours.
        us: u32,
    },
    /// A state that can't be used.
    #[error(
        "{}: {what}; the plugin's earlier versions and an operator's choice are not known, and its file is served",
        path.display()
    )]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A component that is not the one that its name says.
    #[error(
        "{}: this kept version is damaged: its bytes have the digest {found:.12}; deploy the component again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The SHA-256 of what is there.
        found: String,
    },
    /// A component that isn't there.
    #[error("version {digest:.12} of the plugin {plugin:?} is not kept; deploy its component again")]
    Missing {
        /// The plugin.
        plugin: String,
        /// The version's digest.
        digest: String,
    },
    /// Something that is larger than it may be.
    #[error("{}: has more than {most} bytes, which is the most that is kept", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes.
        most: u64,
    },
    /// No name of a plugin: it would be a folder somewhere else.
    #[error("{0:?} is no name of a plugin: 1 to 64 lower-case letters, digits and \"-\"")]
    Name(String),
    /// No digest: it would be a file somewhere else.
    #[error("{0:?} is no digest: 64 hexadecimal digits, in lower case")]
    Digest(String),
}

impl Kept {
    /// Open the folder `plugins` of a data folder, which must be locked; make it if there is none. Drops what a crash has
    /// left.
    ///
    /// # Errors
    /// The folder can't be made or read, or others may write to it. What is wrong with a single plugin's folder is said
    /// when it is used.
    pub fn open(folder: &Path) -> Result<Self, KeptError> {
        let kept = Self {
            folder: folder.to_owned(),
            recording: Mutex::new(()),
            fresh: AtomicU64::new(0),
        };
        make_folder(folder)?;
        let plugins = std::fs::read_dir(folder).map_err(io_error(folder, "can't be read"))?;
        for plugin in plugins.filter_map(Result::ok) {
            let name = plugin.file_name();
            if let Some(name) = name.to_str().filter(|name| is_plugin_name(name)) {
                kept.sweep(name);
            }
        }
        Ok(kept)
    }

    /// What is known of a plugin; nothing if it has never been recorded.
    ///
    /// # Errors
    /// The state can't be read or makes no sense. Whoever can go on without says so, and goes on with an empty one.
    pub fn state(&self, plugin: &str) -> Result<State, KeptError> {
        match self.folder_of(plugin)? {
            Some(folder) => read_state(&folder.join(STATE)),
            None => Ok(State::default()),
        }
    }

    /// Keep a version: the bytes of this digest, and their signature. It is in danger of being swept until a state that
    /// names it is recorded.
    ///
    /// Does nothing if the same bytes are kept already. A signature that is kept stays if none is given: it is about the
    /// bytes, and those are the same.
    ///
    /// # Errors
    /// It can't be written, or is too large.
    pub fn put(
        &self,
        plugin: &str,
        digest: &str,
        bytes: &[u8],
        signature: Option<&str>,
    ) -> Result<(), KeptError> {
        let [component, signed] = files_of(&self.made_folder_of(plugin)?, digest)?;
        // The signature first: a component that is there has it.
        let both = [
            (signature.map(str::as_bytes), signed, MAX_SIGNATURE),
            (Some(bytes), component, MAX_COMPONENT),
        ];
        for (bytes, path, most) in both {
            let Some(bytes) = bytes else { continue };
            if bytes.len() as u64 > most {
                return Err(KeptError::TooLarge { path, most });
            }
            if !holds(&path, bytes) {
                self.replace(&path, bytes, false)?;
            }
        }
        Ok(())
    }

    /// Write a plugin's state, whole or not at all, then drop the files of the versions that the state before named and
    /// this one doesn't.
    ///
    /// # Errors
    /// It can't be written, then the state before stands; or the chosen version isn't kept.
    pub fn record(&self, plugin: &str, state: &State) -> Result<(), KeptError> {
        if let Some(digest) = state.named().find(|digest| !state::is_digest(digest)) {
            return Err(KeptError::Digest(digest.to_owned()));
        }
        let folder = self.made_folder_of(plugin)?;
        let path = folder.join(STATE);
        let bytes = state
            .encode()
            .map_err(|error| io_error(&path, "can't be encoded")(error.into()))?;
        if bytes.len() as u64 > MAX_STATE {
            let most = MAX_STATE;
            return Err(KeptError::TooLarge { path, most });
        }
        // What a panic leaves behind is on the disk, and whole.
        let _recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let before = read_state(&path);
        if before.is_err() {
            // For whoever wants to know what happened. Without it, the new state takes its place.
            let _ = std::fs::rename(&path, folder.join(DAMAGED));
        }
        let before = before.unwrap_or_default();
        let is_news = before.chosen != state.chosen || before.disabled != state.disabled;
        if let (true, Some(chosen)) = (is_news, &state.chosen) {
            sync_version(plugin, &folder, &chosen.digest)?;
        }
        self.replace(&path, &bytes, before.is_decided() || state.is_decided())?;
        if is_news {
            sync(&folder)?;
        }
        before
            .named()
            .filter(|digest| !state.names(digest))
            .for_each(|digest| drop_version(&folder, digest));
        Ok(())
    }

    /// The bytes of a kept version, which are the ones of its digest, and its signature if it has one.
    ///
    /// # Errors
    /// It isn't there, can't be read, or is damaged.
    pub fn read(&self, plugin: &str, digest: &str) -> Result<(Vec<u8>, Option<String>), KeptError> {
        let missing = || KeptError::Missing {
            plugin: plugin.to_owned(),
            digest: digest.to_owned(),
        };
        let folder = self.folder_of(plugin)?.ok_or_else(missing)?;
        let [component, signed] = files_of(&folder, digest)?;
        let bytes = read_at_most(&component, MAX_COMPONENT)?.ok_or_else(missing)?;
        let found = hex(&Sha256::digest(&bytes));
        if found != digest {
            return Err(KeptError::Damaged {
                path: component,
                found,
            });
        }
        // What is no text is no signature either, and whoever verifies it says so.
        let signature = read_at_most(&signed, MAX_SIGNATURE)?;
        Ok((
            bytes,
            signature.map(|text| String::from_utf8_lossy(&text).into_owned()),
        ))
    }

    /// Drop what a crash has left in a plugin's folder: half-written files, and versions that the state doesn't name. A
    /// folder that can't be swept is said to be so when it is used.
    fn sweep(&self, plugin: &str) {
        let Ok(Some(folder)) = self.folder_of(plugin) else {
            return;
        };
        let state = read_state(&folder.join(STATE)).ok();
        let Ok(files) = std::fs::read_dir(&folder) else {
            return;
        };
        for file in files.filter_map(Result::ok) {
            let name = file.file_name().to_string_lossy().into_owned();
            // With a damaged state nobody knows which versions are wanted; they stay until there is another.
            let is_left = match (digest_of(&name), &state) {
                (Some(digest), Some(state)) => !state.names(digest),
                _ => name.starts_with(FRESH),
            };
            if is_left {
                remove(&file.path());
            }
        }
    }

    /// A plugin's folder, if there is one.
    fn folder_of(&self, plugin: &str) -> Result<Option<PathBuf>, KeptError> {
        if !is_plugin_name(plugin) {
            return Err(KeptError::Name(plugin.to_owned()));
        }
        let folder = self.folder.join(plugin);
        match std::fs::symlink_metadata(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // A link would lead to a place that nobody has looked at.
            Ok(about) if about.is_symlink() => Err(not_a_folder(&folder)),
            _ => is_ours(&folder).map(|()| Some(folder)),
        }
    }

    fn made_folder_of(&self, plugin: &str) -> Result<PathBuf, KeptError> {
        match self.folder_of(plugin)? {
            Some(folder) => Ok(folder),
            None => {
                let folder = self.folder.join(plugin);
                make_folder(&folder)?;
                Ok(folder)
            }
        }
    }

    /// Write a file: whole or not at all. `synced`: not even after a loss of power is it half there.
    fn replace(&self, path: &Path, bytes: &[u8], synced: bool) -> Result<(), KeptError> {
        let name = format!("{FRESH}{}", self.fresh.fetch_add(1, Ordering::Relaxed));
        let fresh = path.with_file_name(name);
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)?;
            file.write_all(bytes)?;
            if synced {
                file.sync_all()?;
            }
            std::fs::rename(&fresh, path)
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&fresh);
            io_error(path, "can't be written")(error)
        })
    }
}

/// The files of a version: the component, its signature.
fn files_of(folder: &Path, digest: &str) -> Result<[PathBuf; 2], KeptError> {
    match state::is_digest(digest) {
        true => Ok(["wasm", "wasm.minisig"].map(|kind| folder.join(format!("{digest}.{kind}")))),
        false => Err(KeptError::Digest(digest.to_owned())),
    }
}

/// The version that a file of this name belongs to.
fn digest_of(name: &str) -> Option<&str> {
    let (digest, kind) = name.split_once('.')?;
    (state::is_digest(digest) && ["wasm", "wasm.minisig"].contains(&kind)).then_some(digest)
}

fn read_state(path: &Path) -> Result<State, KeptError> {
    let damaged = |what: String| KeptError::State {
        path: path.to_owned(),
        what,
    };
    match read_at_most(path, MAX_STATE) {
        Ok(Some(bytes)) => State::decode(&bytes).map_err(damaged),
        Ok(None) => Ok(State::default()),
        Err(KeptError::TooLarge { most, .. }) => Err(damaged(format!("has more than {most} bytes"))),
        Err(error) => Err(error),
    }
}

/// A file's bytes, if there is one.
fn read_at_most(path: &Path, most: u64) -> Result<Option<Vec<u8>>, KeptError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io_error(path, "can't be opened"))?,
    };
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error(path, "can't be read"))?;
    match bytes.len() as u64 > most {
        true => Err(KeptError::TooLarge {
            path: path.to_owned(),
            most,
        }),
        false => Ok(Some(bytes)),
    }
}

/// Whether a file has these bytes. A piece at a time: nothing that large is in memory twice.
fn holds(path: &Path, bytes: &[u8]) -> bool {
    let same = || -> io::Result<bool> {
        let file = File::open(path)?;
        if file.metadata()?.len() != bytes.len() as u64 {
            return Ok(false);
        }
        let mut file = BufReader::with_capacity(128 * 1024, file);
        let mut rest = bytes;
        loop {
            let piece = file.fill_buf()?;
            match rest.strip_prefix(piece) {
                Some(_) if piece.is_empty() => return Ok(rest.is_empty()),
                Some(left) => rest = left,
                None => return Ok(false),
            }
            let length = piece.len();
            file.consume(length);
        }
    };
    same().unwrap_or(false)
}

/// Force a version onto the disk.
fn sync_version(plugin: &str, folder: &Path, digest: &str) -> Result<(), KeptError> {
    let [component, signed] = files_of(folder, digest)?;
    if !component.exists() {
        return Err(KeptError::Missing {
            plugin: plugin.to_owned(),
            digest: digest.to_owned(),
        });
    }
    sync(&component)?;
    match signed.exists() {
        true => sync(&signed),
        false => Ok(()),
    }
}

/// Force a file's bytes, or a folder's names, onto the disk.
fn sync(path: &Path) -> Result<(), KeptError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(io_error(path, "can't be brought onto the disk"))
}

fn drop_version(folder: &Path, digest: &str) {
    // In the other order of `put`: a signature without its component does no harm.
    for path in files_of(folder, digest).into_iter().flatten() {
        remove(&path);
    }
}

/// What can't be removed costs space, and the next start tries it again.
fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(target: "berth::plugin", path = %path.display(), "a file that isn't needed any more can't be removed: {error}");
        }
        _ => {}
    }
}

/// Make a folder for its owner alone, unless it is there.
fn make_folder(path: &Path) -> Result<(), KeptError> {
    if !path.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io_error(path, "can't be made"))?;
        // Else what is written in it could be lost with it.
        sync(path.parent().unwrap_or(Path::new(".")))?;
    }
    is_ours(path)
}

fn is_ours(path: &Path) -> Result<(), KeptError> {
    let about = std::fs::metadata(path).map_err(io_error(path, "can't be looked at"))?;
    let mode = about.permissions().mode() & 0o777;
    let us = rustix::process::geteuid().as_raw();
    match (about.is_dir(), mode & 0o022) {
        (true, 0) if about.uid() != us => Err(KeptError::NotOurs {
            path: path.to_owned(),
            owner: about.uid(),
            us,
        }),
        (true, 0) => Ok(()),
        (true, _) => Err(KeptError::Writable {
            path: path.to_owned(),
            mode,
        }),
        (false, _) => Err(not_a_folder(path)),
    }
}

fn not_a_folder(path: &Path) -> KeptError {
    io_error(path, "kept versions can't be there")(io::ErrorKind::NotADirectory.into())
}

fn io_error(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> KeptError {
    let path = path.to_owned();
    move |error| KeptError::Io { path, what, error }
}
