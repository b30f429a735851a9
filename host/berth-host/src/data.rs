//! The data folder: what berth keeps on this machine besides the database. Its key material, versions of plugins, and the
//! private Postgres.
//!
//! One process at a time: the folder is locked as long as it is open (`flock(2)`, so that a process that dies lets go).
//!
//! | name | what |
//! |---|---|
//! | `lock` | the lock; holds the process id, for people |
//! | `master.key` | 32 random bytes that every derived key of this node comes from |
//! | `tokens.json` | the key ring of access tokens |
//! | `admin.token` | what the operator's commands show to the admin API |
//! | `plugins/` | kept versions of plugins; see [`crate::runtime::reload::kept`] |
//! | `cache/` | their machine code; see [`crate::runtime::cache`] |
//! | `postgres/`, `postgres.password`, `socket/` | the private cluster, its password, the folder of its socket |

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hkdf::Hkdf;
use rustix::fs::{FlockOperation, flock};
use sha2::Sha256;

use crate::secret::Secret;
use crate::tokens::ring;

/// Bytes of the master key and of what is derived from it.
const KEY: usize = 32;
/// The file of the master key.
const MASTER: &str = "master.key";
/// The files of secrets.
const SECRETS: [&str; 4] = [MASTER, ring::FILE, "admin.token", "postgres.password"];
/// The largest file of secrets that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// The open data folder.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    master: Secret,
    _lock: File,
}

/// Why the data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Something with a file or the folder itself.
    #[error("{}: {what}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's words.
        error: io::Error,
    },
    /// The folder itself.
    #[error("{}: {what}: {error}; set data.dir or BERTH_DATA_DIR to a folder that berth may make and write", path.display())]
    Folder {
        /// The folder, or what in it.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's words.
        error: io::Error,
    },
    /// Another process has it open.
    #[error("{}: another berth (process {pid}) uses this data folder; stop it, or set data.dir to another folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// As the other process wrote it.
        pid: String,
    },
    /// A file of secrets that others may read.
    #[error("{}: others may read this file (mode {mode:03o}); run `chmod 600` on it, and think about who may have read it", path.display())]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file of secrets that is not what it should be.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, without a byte of it.
        what: String,
    },
    /// No randomness.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

impl DataFolder {
    /// Open it, and make it and the master key if there is none.
    ///
    /// # Errors
    /// See [`DataError`].
    pub fn open(path: &Path) -> Result<Self, DataError> {
        if !path.exists() {
            // Others may pass through, to the private Postgres under its own user, but see nothing; whatever the umask.
            let passable = std::fs::Permissions::from_mode(0o711);
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(path)
                .and_then(|()| std::fs::set_permissions(path, passable))
                .map_err(folder_error(path, "the data folder can't be made"))?;
        }
        is_folder(path)?;
        // Absolute, because Postgres changes its folder.
        let path = path
            .canonicalize()
            .map_err(folder_error(path, "the data folder can't be found"))?;
        let lock = lock(&path)?;
        let file = path.join(MASTER);
        is_not_orphaned(&path)?;
        let master = read_or_create(&file, || random().map(|key| Secret::new(key.to_vec())))?;
        is_master(&file, &master)?;
        Ok(Self {
            path,
            master,
            _lock: lock,
        })
    }

    /// Where it is, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A key for one purpose, by HKDF-SHA-256 (RFC 5869) from the master key with the purpose as info.
    pub fn derive(&self, purpose: &str) -> Secret {
        let mut key = vec![0; KEY];
        // 32 bytes are far below HKDF's limit of 255 hashes, the only way in which this could fail.
        let _ = Hkdf::<Sha256>::new(None, self.master.expose()).expand(purpose.as_bytes(), &mut key);
        Secret::new(key)
    }
}

/// Look at a data folder without making anything: whether what is there can be used. A folder that isn't there yet is
/// fine, if it can be one.
///
/// # Errors
/// What would stop [`DataFolder::open`], or whatever reads a file of secrets in it.
pub fn look(path: &Path) -> Result<(), DataError> {
    if let Some(there) = path.ancestors().find(|path| path.exists()) {
        is_folder(there)?;
    }
    is_not_orphaned(path)?;
    for name in SECRETS {
        let file = path.join(name);
        if !file.exists() {
            continue;
        }
        let secret = read(&file)?;
        if name == MASTER {
            is_master(&file, &secret)?;
        } else if name == ring::FILE {
            ring::list(path, Duration::ZERO)?;
        }
    }
    Ok(())
}

fn is_folder(path: &Path) -> Result<(), DataError> {
    match path.is_dir() {
        true => Ok(()),
        false => Err(folder_error(path, "the data folder can't be there")(
            io::ErrorKind::NotADirectory.into(),
        )),
    }
}

/// Keys of tokens without the master key: it was there, and is lost.
fn is_not_orphaned(folder: &Path) -> Result<(), DataError> {
    let file = folder.join(MASTER);
    if folder.join(ring::FILE).exists() && !file.exists() {
        return Err(DataError::Damaged {
            path: file,
            what: format!(
                "is gone, and this folder was in use; restore it from a backup, or move {} away as well to begin anew: everybody must sign in again then",
                ring::FILE
            ),
        });
    }
    Ok(())
}

fn is_master(file: &Path, master: &Secret) -> Result<(), DataError> {
    let length = master.expose().len();
    if length != KEY {
        return Err(DataError::Damaged {
            path: file.to_owned(),
            what: format!(
                "has {length} bytes instead of {KEY}; restore it from a backup: what was derived from it can't be made again"
            ),
        });
    }
    Ok(())
}

/// 32 random bytes.
///
/// # Errors
/// The system gives none.
pub fn random() -> Result<[u8; KEY], DataError> {
    let mut bytes = [0; KEY];
    getrandom::fill(&mut bytes).map_err(DataError::Random)?;
    Ok(bytes)
}

fn lock(folder: &Path) -> Result<File, DataError> {
    let path = folder.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(folder_error(&path, "can't be opened"))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        return Err(DataError::InUse {
            path: folder.to_owned(),
            pid: pid.trim().to_owned(),
        });
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io_error(&path, "can't be written"))?;
    Ok(file)
}

/// Read a file of secrets; make it if there is none.
///
/// # Errors
/// It can't be read or made, or others may read it.
pub fn read_or_create(
    path: &Path,
    make: impl FnOnce() -> Result<Secret, DataError>,
) -> Result<Secret, DataError> {
    match read(path) {
        Err(DataError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            let made = make()?;
            replace(path, &made)?;
            Ok(made)
        }
        read => read,
    }
}

/// Read a file of secrets.
///
/// # Errors
/// It can't be read, is far too large, or others may read it.
pub fn read(path: &Path) -> Result<Secret, DataError> {
    let file = File::open(path).map_err(io_error(path, "can't be opened"))?;
    let about = file.metadata().map_err(io_error(path, "can't be looked at"))?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(DataError::Readable {
            path: path.to_owned(),
            mode,
        });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error(path, "can't be read"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(DataError::Damaged {
            path: path.to_owned(),
            what: format!("is larger than {MAX_FILE} bytes"),
        });
    }
    Ok(Secret::new(bytes))
}

/// Write a file of secrets: whole or not at all, on the disk when this returns, and for its owner alone.
///
/// # Errors
/// It can't be written.
pub fn replace(path: &Path, secret: &Secret) -> Result<(), DataError> {
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(secret.expose())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(io_error(path, "can't be written"))
}

fn folder_error(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> DataError {
    let path = path.to_owned();
    move |error| DataError::Folder { path, what, error }
}

fn io_error(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> DataError {
    let path = path.to_owned();
    move |error| DataError::Io { path, what, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_and_differ_by_purpose() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let (one, other) = {
            let data = DataFolder::open(&path).unwrap();
            (data.derive("one"), data.derive("other"))
        };
        assert!(one != other);
        assert!(DataFolder::open(&path).unwrap().derive("one") == one);
        let mode = std::fs::metadata(path.join("master.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn look_makes_nothing_and_finds_what_stops_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        look(&path).unwrap();
        assert!(!path.exists());
        drop(DataFolder::open(&path).unwrap());
        look(&path).unwrap();
        std::fs::write(path.join("master.key"), "short").unwrap();
        let said = look(&path).unwrap_err().to_string();
        assert!(said.contains("has 5 bytes instead of 32"), "{said}");
        std::fs::write(path.join("admin.token"), "x").unwrap();
        std::fs::set_permissions(path.join("admin.token"), std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::remove_file(path.join("master.key")).unwrap();
        let said = look(&path).unwrap_err().to_string();
        assert!(said.contains("admin.token: others may read this file"), "{said}");
        std::fs::write(path.join(ring::FILE), "x").unwrap();
        let said = look(&path).unwrap_err().to_string();
        assert!(said.contains("master.key: is gone"), "{said}");
    }

    #[test]
    fn file_in_the_place_of_the_folder_is_told_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for said in [
            look(&file).unwrap_err().to_string(),
            look(&file.join("below")).unwrap_err().to_string(),
            DataFolder::open(&file).unwrap_err().to_string(),
            DataFolder::open(&file.join("below")).unwrap_err().to_string(),
        ] {
            assert!(
                said.contains("the data folder can't be ") && said.contains("set data.dir or BERTH_DATA_DIR"),
                "{said}"
            );
        }
    }

    #[test]
    fn second_process_is_told_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let _open = DataFolder::open(folder.path()).unwrap();
        let error = DataFolder::open(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("another berth (process {}) uses", std::process::id())),
            "{error}"
        );
    }

    #[test]
    fn file_that_others_may_read_or_that_is_damaged_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataFolder::open(folder.path()).unwrap());
        let key = folder.path().join("master.key");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = DataFolder::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("others may read this file (mode 644)"), "{error}");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&key, "short").unwrap();
        let error = DataFolder::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("has 5 bytes instead of 32"), "{error}");
    }
}
