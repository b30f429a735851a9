//! The compile cache: machine code on disk, by content and engine, in `<data>/cache`.
//!
//! What lies in this folder is executed with all rights of the host, outside every sandbox: `Component::deserialize`
//! can't be made safe against a made-up file. So the one unsafe call is fed only what this code wrote:
//!
//! - **Nobody else may write.** A folder that isn't ours, that others may write, or that is reached by a symbolic link
//!   is refused at [`Cache::open`]. It is opened once, and every name is resolved from that open folder: what is put in
//!   the place of its path later doesn't matter. Every entry is looked at again, after it was opened.
//! - **A hash is checked first.** An entry says how long it is, what it is for and the SHA-256 of everything. It is read
//!   whole into memory, checked there, and the same bytes are handed on, so that nothing can change in between. The hash
//!   is against damage (a full disk, a lost write, a bad sector), not against people: whoever can write here as us can
//!   compute it too, and could as well change the host's own binary or read its keys.
//! - **Another engine has other names.** The name is a hash of the component's SHA-256, of all that wasmtime says code
//!   depends on (its version, the CPU's features, every setting of the compiler) and of the versions of all crates that
//!   this host was built with: a compiler's bug may be fixed in one of those below wasmtime, and its code must go. After
//!   an upgrade nothing is found, and nothing has to be understood. The same hash is inside the entry, so a renamed one
//!   is seen.
//!
//! Anything wrong is the caller's news and not its problem: the component is compiled and the entry replaced.
//!
//! Entries are written under another name and renamed, so that readers see all of one or nothing. There is no `fsync`:
//! what a power failure leaves half-written doesn't fit its hash and costs one compilation, whereas waiting for the disk
//! would cost at every swap. There is no index, either: the file system has names, sizes and times. A hit sets the
//! entry's time, and when all of them are larger than [`MAX_TOTAL`] those unused for longest go.

use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::load::hex;
use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, flock, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// All entries together, in bytes, unless [`Cache::bounded`] says otherwise. A component in Rust has about 1 MiB of
/// machine code, one in Python more than 100.
pub const MAX_TOTAL: u64 = 2 * 1024 * 1024 * 1024;
/// The largest entry that is written or read, in bytes. Machine code is three to four times as large as its component, and
/// those have at most 128 MiB.
pub const MAX_ENTRY: u64 = 1024 * 1024 * 1024;

/// The versions of all crates, of which the compiler is made.
const CRATES: &str = include_str!("../../../../Cargo.lock");
/// What an entry begins with; another layout gets another number.
const MAGIC: &[u8; 16] = b"berth-compiled 1";
/// Magic, length of the artifact (64 bits, little-endian), key; then the SHA-256 of these and of the artifact.
const HEAD: usize = MAGIC.len() + 8 + 32;
/// Bytes before the artifact.
const HEADER: usize = HEAD + 32;
/// How names of entries end: as wasmtime calls such files.
const ENTRY: &str = ".cwasm";
/// How names of entries that are being written end.
const PART: &str = ".part";
/// Permissions that nobody but us may have: of group and others, to write.
const OTHERS_WRITE: u32 = 0o022;

/// The open cache. Shared by `Arc`.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    folder: OwnedFd,
    limit: u64,
    /// Whether it was told that nothing can be written.
    told: AtomicBool,
}

/// What the cache had for a component. For the log: who asks knows which plugin it was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Its machine code.
    Hit,
    /// Nothing.
    Missed,
    /// Something that can't be trusted or used, and why. It was not executed; the component was compiled.
    Damaged(String),
}

/// Why the folder can't be used. The host can serve without it, and compiles at every start.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The system refuses something.
    #[error("{}: the compile cache {what}: {error}; let berth make and write this folder", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's words.
        error: io::Error,
    },
    /// A file, or a symbolic link, to wherever.
    #[error(
        "{}: the compile cache must be a folder, and this is {is}; remove it, and berth makes the folder",
        folder.display()
    )]
    NotFolder {
        /// The folder.
        folder: PathBuf,
        /// What it is instead.
        is: &'static str,
    },
    /// Another user's.
    #[error(
        "{}: the compile cache belongs to user {owner}, and berth runs as user {us}: whoever can write there decides what berth executes; remove the folder, or run `chown -R {us}` on it if you know what is in it",
        folder.display()
    )]
    NotOurs {
        /// The folder.
        folder: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our effective user.
        us: u32,
    },
    /// Others may write it.
    #[error(
        "{}: others may write to the compile cache (mode {mode:03o}), and so decide what berth executes; remove the folder, and berth makes it anew",
        folder.display()
    )]
    Writable {
        /// The folder.
        folder: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

impl Cache {
    /// Open the folder, or make it for us alone; and remove what was being written when a process died.
    ///
    /// # Errors
    /// See [`CacheError`].
    pub fn open(folder: &Path) -> Result<Self, CacheError> {
        let fail = |what| {
            move |error: Errno| CacheError::Io {
                folder: folder.to_owned(),
                what,
                error: error.into(),
            }
        };
        match rustix::fs::mkdir(folder, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(fail("can't be made")(error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = rustix::fs::open(folder, flags, Mode::empty()).map_err(|error| {
            // A symbolic link is no folder either, when it is not followed.
            match std::fs::symlink_metadata(folder) {
                Ok(about) if about.is_symlink() => CacheError::NotFolder {
                    folder: folder.to_owned(),
                    is: "a symbolic link",
                },
                Ok(about) if !about.is_dir() => CacheError::NotFolder {
                    folder: folder.to_owned(),
                    is: "a file",
                },
                _ => fail("can't be opened")(error),
            }
        })?;
        let about = rustix::fs::fstat(&open).map_err(fail("can't be looked at"))?;
        let (us, mode) = (geteuid().as_raw(), about.st_mode & 0o7777);
        if about.st_uid != us {
            return Err(CacheError::NotOurs {
                folder: folder.to_owned(),
                owner: about.st_uid,
                us,
            });
        }
        if mode & OTHERS_WRITE != 0 {
            return Err(CacheError::Writable {
                folder: folder.to_owned(),
                mode,
            });
        }
        let cache = Self {
            path: folder.to_owned(),
            folder: open,
            limit: MAX_TOTAL,
            told: AtomicBool::new(false),
        };
        cache.sweep().map_err(fail("can't be listed"))?;
        Ok(cache)
    }

    /// The same with another limit for all entries together, in bytes.
    #[must_use]
    pub fn bounded(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    /// The component of these bytes: from the cache, or compiled, and then kept. Takes as long as compiling; not for an
    /// async thread.
    ///
    /// `digest` is the SHA-256 of `bytes`, in 64 lower-case hexadecimal digits. It decides what code is run, so it must
    /// have been made from these very bytes. `compile` makes a component of bytes, as [`Component::from_binary`] does.
    ///
    /// The result is wasmtime's, as if there were no cache: a component that doesn't fit this engine's pools, which may
    /// be smaller than those of the engine that compiled it, is refused in the same words.
    pub fn component(
        &self,
        engine: &Engine,
        digest: &str,
        bytes: &[u8],
        compile: impl FnOnce(&Engine, &[u8]) -> wasmtime::Result<Component>,
    ) -> (wasmtime::Result<Component>, Found) {
        debug_assert_eq!(
            digest,
            hex(&Sha256::digest(bytes)),
            "not the digest of these bytes"
        );
        let key = Key::of(engine, digest);
        let found = match self.load(engine, &key) {
            Ok(Some(component)) => return (Ok(component), Found::Hit),
            Ok(None) => Found::Missed,
            Err(why) => Found::Damaged(format!("{}: {why}", self.path.join(key.name()).display())),
        };
        match compile(engine, bytes) {
            Ok(component) => {
                self.keep(&key, &component);
                (Ok(component), found)
            }
            // Then the entry need not have been damaged for wasmtime to refuse it.
            Err(error) => (Err(error), Found::Missed),
        }
    }
}

/// What an entry is for: content and engine.
#[derive(Debug, PartialEq, Eq)]
struct Key([u8; 32]);

impl Key {
    fn of(engine: &Engine, digest: &str) -> Self {
        let mut fingerprint = Fingerprint(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut fingerprint);
        let mut key = Sha256::new();
        key.update(MAGIC);
        key.update(fingerprint.0.finalize());
        key.update(*CRATES_HASH);
        key.update(digest);
        Self(key.finalize().into())
    }

    fn name(&self) -> String {
        hex(&self.0) + ENTRY
    }
}

static CRATES_HASH: LazyLock<[u8; 32]> = LazyLock::new(|| Sha256::digest(CRATES).into());

/// Collects what wasmtime hashes. The 64 bits of a usual hasher are too few to decide what is executed.
struct Fingerprint(Sha256);

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Nobody asks for it.
    fn finish(&self) -> u64 {
        0
    }
}

/// Reading.
impl Cache {
    /// Nothing if there is no entry.
    fn load(&self, engine: &Engine, key: &Key) -> Result<Option<Component>, String> {
        let Some((file, entry)) = self.read(&key.name())? else {
            return Ok(None);
        };
        let artifact = artifact(&entry, key)?;
        #[expect(unsafe_code, reason = "wasmtime can't check machine code")]
        // SAFETY: these bytes came from `Component::serialize`. They are in memory that is ours alone, fit the hash that
        // was written with them, and are of this content and an engine whose code fits this one (`artifact` has checked
        // both). Only this code writes entries, into a folder and files that nobody else may write (`open` and `read`
        // have checked that on what they opened).
        let component = unsafe { Component::deserialize(engine, artifact) }
            .map_err(|error| format!("wasmtime refuses it: {error:#}"))?;
        // Of a folder that can't be written the times stay, and nothing is ever removed.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(component))
    }

    /// A whole file that only we can have written.
    fn read(&self, name: &str) -> Result<Option<(File, Vec<u8>)>, String> {
        // Opening a pipe would wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = match openat(&self.folder, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err("it is a symbolic link".to_owned()),
            Err(error) => return Err(format!("it can't be opened: {error}")),
        };
        let about = file
            .metadata()
            .map_err(|error| format!("it can't be looked at: {error}"))?;
        let (us, mode, length) = (geteuid().as_raw(), about.mode() & 0o7777, about.len());
        if !about.is_file() {
            return Err("it is not a regular file".to_owned());
        }
        if about.uid() != us {
            return Err(format!(
                "it belongs to user {}, and berth runs as user {us}",
                about.uid()
            ));
        }
        if mode & OTHERS_WRITE != 0 {
            return Err(format!("others may write it (mode {mode:03o})"));
        }
        if length > MAX_ENTRY {
            return Err(format!("it has {length} bytes; at most {MAX_ENTRY} are read"));
        }
        // One more than there should be: then the end is found without growing.
        let room = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(1);
        let mut entry = Vec::new();
        entry
            .try_reserve_exact(room)
            .map_err(|_| format!("there is no memory for its {length} bytes"))?;
        Read::take(&mut file, length.saturating_add(1))
            .read_to_end(&mut entry)
            .map_err(|error| format!("it can't be read: {error}"))?;
        Ok(Some((file, entry)))
    }
}

/// The machine code of an entry, if everything about it is right.
fn artifact<'a>(entry: &'a [u8], key: &Key) -> Result<&'a [u8], String> {
    let cut = || {
        format!(
            "it is cut off: it has {} bytes, and the header alone {HEADER}",
            entry.len()
        )
    };
    let (head, rest) = entry.split_at_checked(HEAD).ok_or_else(cut)?;
    let (hash, artifact) = rest.split_at_checked(HEADER - HEAD).ok_or_else(cut)?;
    let (magic, length_and_key) = head.split_at(MAGIC.len());
    let (length, its_key) = length_and_key.split_at(8);
    if magic != MAGIC {
        return Err("it doesn't begin as an entry of this version of berth".to_owned());
    }
    if its_key != key.0 {
        return Err("it is an entry of another component or engine under this one's name".to_owned());
    }
    if length != length_of(artifact) {
        return Err(format!(
            "it has another length than it says, {} bytes",
            entry.len()
        ));
    }
    if hash != hash_of(head, artifact).as_slice() {
        return Err("its content doesn't fit its hash".to_owned());
    }
    Ok(artifact)
}

fn length_of(artifact: &[u8]) -> [u8; 8] {
    (artifact.len() as u64).to_le_bytes()
}

fn hash_of(head: &[u8], artifact: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(head);
    hash.update(artifact);
    hash.finalize().into()
}

/// Writing.
impl Cache {
    /// As good as it goes. That it doesn't is told once, until it goes again: the host works without.
    fn keep(&self, key: &Key, component: &Component) {
        let kept = component
            .serialize()
            .map_err(|error| io::Error::other(format!("{error:#}")))
            .and_then(|artifact| self.write(key, &artifact))
            .and_then(|()| Ok(self.prune(&key.name())?));
        match kept {
            Ok(()) => self.told.store(false, Ordering::Relaxed),
            Err(error) if !self.told.swap(true, Ordering::Relaxed) => tracing::warn!(
                target: "berth::cache",
                folder = %self.path.display(),
                %error,
                "compiled components can't be kept in {}: {error}; they will be compiled again at the next start",
                self.path.display(),
            ),
            Err(_) => {}
        }
    }

    /// Whole or not at all.
    fn write(&self, key: &Key, artifact: &[u8]) -> io::Result<()> {
        let size = (HEADER as u64).saturating_add(artifact.len() as u64);
        if size > MAX_ENTRY.min(self.limit) {
            return Err(io::Error::other(format!(
                "one has {size} bytes, and at most {} are kept",
                MAX_ENTRY.min(self.limit)
            )));
        }
        let mut head = Vec::with_capacity(HEADER);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&length_of(artifact));
        head.extend_from_slice(&key.0);
        let hash = hash_of(&head, artifact);

        let part = format!("{}.{:016x}{PART}", hex(&key.0), fastrand::u64(..));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.folder, &part, flags, Mode::RUSR | Mode::WUSR)?);
        let mut write = || {
            // Held until the file is closed: this writer lives. Whoever sweeps before this call takes the file away, and
            // the entry isn't kept; no harm. A file system without locks is not swept at all.
            let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
            file.write_all(&head)?;
            file.write_all(&hash)?;
            file.write_all(artifact)?;
            renameat(&self.folder, &part, &self.folder, key.name())?;
            Ok(())
        };
        write().inspect_err(|_| {
            let _ = unlinkat(&self.folder, &part, AtFlags::empty());
        })
    }

    /// Remove what has not been used for longest, until all is within the limit; but never the newest.
    fn prune(&self, newest: &str) -> Result<(), Errno> {
        let mut entries = Vec::new();
        let mut total = 0_u64;
        for name in self.names(ENTRY)? {
            let Ok(about) = statat(&self.folder, &name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if FileType::from_raw_mode(about.st_mode) == FileType::Directory {
                continue;
            }
            let size = u64::try_from(about.st_size).unwrap_or(0);
            total = total.saturating_add(size);
            if name != newest {
                entries.push((about.st_mtime, about.st_mtime_nsec, size, name));
            }
        }
        entries.sort();
        for (_, _, size, name) in entries {
            if total <= self.limit {
                break;
            }
            // Somebody else may have removed it, which is as good.
            let _ = unlinkat(&self.folder, &name, AtFlags::empty());
            total = total.saturating_sub(size);
        }
        Ok(())
    }

    /// Remove the unfinished files of writers that died: those that nobody holds. A process's number would say less, in a
    /// container or after a restart of the machine it is soon somebody else's.
    fn sweep(&self) -> Result<(), Errno> {
        for name in self.names(PART)? {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let abandoned = match openat(&self.folder, &name, flags, Mode::empty()) {
                Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok(),
                Err(_) => false,
            };
            if abandoned {
                let _ = unlinkat(&self.folder, &name, AtFlags::empty());
            }
        }
        Ok(())
    }

    /// The files here whose names we could have made. What else somebody put here stays.
    fn names(&self, ending: &str) -> Result<Vec<String>, Errno> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if name.ends_with(ending) && name.bytes().take(64).all(|byte| byte.is_ascii_hexdigit()) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests;
