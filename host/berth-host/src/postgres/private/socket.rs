//! The folder of the socket. A socket's path has at most 107 bytes, so a long data folder needs another place for it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::account::Account;
use super::{PORT, PrivateError, io_error};

/// Bytes of a path in `sockaddr_un`, without the zero at its end; see unix(7).
const MAX_PATH: usize = 107;
/// The longest name of a socket, which ends with the number of a port.
const LONGEST: &str = ".s.PGSQL.65535";

/// The folder, made if it isn't there, and for nobody else.
pub(super) fn folder(data: &Path, account: Option<&Account>) -> Result<PathBuf, PrivateError> {
    let folder = choose(data.join("socket"), data);
    make(&folder, account)?;
    Ok(folder)
}

/// The folder of the sockets that lead to this process itself, made if it isn't there, and for nobody else.
pub(in crate::postgres) fn relays(data: &Path) -> Result<PathBuf, PrivateError> {
    let within = data.join("relay");
    let folder = choose(within.clone(), &within);
    make(&folder, None)?;
    Ok(folder)
}

/// The folder, or a short one that is known by `name`.
fn choose(within: PathBuf, name: &Path) -> PathBuf {
    if fits(&within) {
        return within;
    }
    let short = elsewhere(name);
    tracing::debug!(
        target: "berth::postgres",
        folder = %short.display(),
        "the data folder's path is too long for a socket, which has its folder elsewhere",
    );
    short
}

fn fits(folder: &Path) -> bool {
    folder.join(LONGEST).as_os_str().len() <= MAX_PATH
}

/// The socket itself, under the name that Postgres and its clients agree on.
pub(super) fn file(folder: &Path) -> PathBuf {
    folder.join(format!(".s.PGSQL.{PORT}"))
}

/// A short folder that is the same for every start with this data folder.
fn elsewhere(data: &Path) -> PathBuf {
    let digest = Sha256::digest(data.as_os_str().as_bytes());
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let run = Path::new("/run");
    let ours = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let ours = ours.filter(|folder| folder.is_absolute() && folder.is_dir() && folder.as_os_str().len() < 60);
    let base = if rustix::process::geteuid().is_root() && run.is_dir() {
        run.to_owned()
    } else if let Some(ours) = ours {
        ours
    } else {
        PathBuf::from("/tmp")
    };
    base.join(format!("berth-{name}"))
}

/// Make it, or make sure that the one that is there is ours alone: in a folder for all, anybody may have been first.
fn make(folder: &Path, account: Option<&Account>) -> Result<(), PrivateError> {
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error(folder, "the socket's folder can't be made")(error)),
    }
    let about = std::fs::symlink_metadata(folder).map_err(io_error(folder, "can't be looked at"))?;
    let us = rustix::process::geteuid().as_raw();
    let ours = about.uid() == us || account.is_some_and(|account| account.owns(&about));
    if !about.is_dir() || !ours {
        let error = std::io::Error::other("it belongs to somebody else, or is no folder; remove it");
        return Err(io_error(folder, "can't be the socket's folder")(error));
    }
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
        .map_err(io_error(folder, "its permissions can't be set"))?;
    account.map_or(Ok(()), |account| account.give(folder))
}

/// The folder as `unix_socket_directories` takes it, which is a list: quoted, so that a comma in it is no separator.
pub(super) fn setting(folder: &Path) -> std::ffi::OsString {
    let mut text = b"unix_socket_directories=\"".to_vec();
    for byte in folder.as_os_str().as_bytes() {
        if *byte == b'"' {
            text.push(b'"');
        }
        text.push(*byte);
    }
    text.push(b'"');
    OsStr::from_bytes(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_folders_get_a_short_one_that_stays_and_fits() {
        assert!(fits(Path::new("/var/lib/berth/socket")));
        let long = PathBuf::from(format!("/{}", "x".repeat(100)));
        assert!(!fits(&long.join("socket")));
        assert!(fits(&elsewhere(&long)), "{:?}", elsewhere(&long));
        assert_eq!(elsewhere(&long), elsewhere(&long));
        assert_ne!(elsewhere(&long), elsewhere(&long.join("y")));
    }

    #[test]
    fn folder_of_somebody_else_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        let said = make(&link, None).unwrap_err().to_string();
        assert!(
            said.contains("it belongs to somebody else, or is no folder"),
            "{said}"
        );
        let fresh = folder.path().join("fresh");
        make(&fresh, None).unwrap();
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o777)).unwrap();
        make(&fresh, None).unwrap();
        assert_eq!(std::fs::metadata(&fresh).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn commas_and_quotes_of_a_path_are_its_own() {
        assert_eq!(
            setting(Path::new("/a,b\"c")),
            "unix_socket_directories=\"/a,b\"\"c\""
        );
    }
}
