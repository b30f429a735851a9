//! Making a cluster. It is made in a folder beside its place and moved there when it is whole, so that a berth that is
//! killed meanwhile leaves nothing that looks like a cluster.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::account::Account;
use super::binaries::Binaries;
use super::{LOGIN, PrivateError, io_error, leftovers};
use crate::secret::Secret;

/// What folders of unfinished clusters begin with.
const UNFINISHED: &str = "postgres.new-";
/// Sorting by bytes, characters by Unicode, and the same on every machine; the second where the C library has no first.
const LOCALES: [&str; 2] = ["C.UTF-8", "C"];

/// The major version that made a cluster; nothing if there is none.
pub(super) fn version(folder: &Path) -> Result<Option<u32>, PrivateError> {
    let path = folder.join("PG_VERSION");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let major = text.trim().split('.').next().and_then(|major| major.parse().ok());
            major
                .map(Some)
                .ok_or_else(|| PrivateError::NoCluster(folder.to_owned()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // Somebody may have made the folder; nothing is lost when a cluster takes its place.
            let holds_something = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
            match holds_something {
                true => Err(PrivateError::NoCluster(folder.to_owned())),
                false => Ok(None),
            }
        }
        Err(error) => Err(io_error(&path, "can't be read")(error)),
    }
}

/// Remove what a berth that was killed while it made a cluster has left, its processes first.
pub(super) async fn sweep(data: &Path) -> Result<(), PrivateError> {
    let entries = std::fs::read_dir(data).map_err(io_error(data, "can't be listed"))?;
    for entry in entries.filter_map(Result::ok) {
        if !entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            continue;
        }
        let folder = entry.path();
        tracing::info!(target: "berth::postgres", folder = %folder.display(), "an unfinished cluster of an earlier run is removed");
        leftovers::kill(&folder).await?;
        std::fs::remove_dir_all(&folder).map_err(io_error(&folder, "can't be removed"))?;
    }
    Ok(())
}

/// Make a cluster at `folder`, whose superuser has this password.
pub(super) async fn make(
    binaries: &Binaries,
    account: Option<&Account>,
    folder: &Path,
    password: &Secret,
) -> Result<(), PrivateError> {
    let started = std::time::Instant::now();
    let parent = folder.parent().unwrap_or(Path::new("/"));
    let work = parent.join(format!("{UNFINISHED}{}", std::process::id()));
    let made = make_in(&work, binaries, account, password).await;
    let placed = made.and_then(|cluster| {
        std::fs::rename(&cluster, folder).map_err(io_error(folder, "the new cluster can't be moved here"))?;
        let parent_file = std::fs::File::open(parent).map_err(io_error(parent, "can't be opened"))?;
        parent_file
            .sync_all()
            .map_err(io_error(parent, "can't be written"))
    });
    let removed = std::fs::remove_dir_all(&work).map_err(io_error(&work, "can't be removed"));
    placed?;
    removed?;
    tracing::info!(
        target: "berth::postgres",
        folder = %folder.display(),
        programs = %binaries.postgres().display(),
        took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "made a private cluster",
    );
    Ok(())
}

async fn make_in(
    work: &Path,
    binaries: &Binaries,
    account: Option<&Account>,
    password: &Secret,
) -> Result<PathBuf, PrivateError> {
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(work)
        .map_err(io_error(work, "can't be made"))?;
    // In a file for a moment, because a command line can be read by everybody.
    let pwfile = work.join("password");
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&pwfile)
        .and_then(|mut file| file.write_all(password.expose()));
    written.map_err(io_error(&pwfile, "can't be written"))?;
    if let Some(account) = account {
        account.give(&pwfile)?;
        account.give(work)?;
    }
    let cluster = work.join("cluster");
    let mut said = String::new();
    for locale in LOCALES {
        let mut initdb = Command::new(binaries.initdb());
        initdb
            .arg("--pgdata")
            .arg(&cluster)
            .arg("--pwfile")
            .arg(&pwfile)
            .args(["--username", LOGIN, "--encoding", "UTF8", "--locale", locale])
            .args(["--auth-local", "scram-sha-256", "--auth-host", "scram-sha-256"])
            .args(["--data-checksums", "--no-instructions"]);
        // Its folder tells the process apart, should it outlive us.
        environment(&mut initdb).current_dir(work).kill_on_drop(true);
        if let Some(account) = account {
            account.apply(&mut initdb);
        }
        let output = initdb
            .output()
            .await
            .map_err(io_error(&binaries.initdb(), "can't be run"))?;
        if output.status.success() {
            return Ok(cluster);
        }
        said = last_lines(&String::from_utf8_lossy(&output.stderr));
        // It cleans up after itself, but not when it was killed.
        if cluster.exists() {
            std::fs::remove_dir_all(&cluster).map_err(io_error(&cluster, "can't be removed"))?;
        }
    }
    Err(PrivateError::Initialise {
        program: binaries.initdb().display().to_string(),
        said,
    })
}

/// Nothing of our own environment, which may have secrets in it, and messages in English, which we read. A group of its
/// own, so that Ctrl-C in a terminal reaches berth alone.
pub(super) fn environment(command: &mut Command) -> &mut Command {
    command.env_clear();
    for name in ["PATH", "LD_LIBRARY_PATH"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("LC_ALL", "C").stdin(Stdio::null()).process_group(0)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let first = lines.len().saturating_sub(4);
    lines.get(first..).unwrap_or_default().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_has_a_version_and_an_empty_folder_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = folder.path().join("postgres");
        assert_eq!(version(&cluster).unwrap(), None);
        std::fs::create_dir(&cluster).unwrap();
        assert_eq!(version(&cluster).unwrap(), None);
        std::fs::write(cluster.join("PG_VERSION"), "15\n").unwrap();
        assert_eq!(version(&cluster).unwrap(), Some(15));
        std::fs::write(cluster.join("PG_VERSION"), "9.6\n").unwrap();
        assert_eq!(version(&cluster).unwrap(), Some(9));
    }

    #[test]
    fn folder_with_something_else_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("notes"), "").unwrap();
        let said = version(folder.path()).unwrap_err().to_string();
        assert!(said.contains("this is no Postgres cluster"), "{said}");
        std::fs::write(folder.path().join("PG_VERSION"), "x").unwrap();
        assert!(version(folder.path()).is_err());
    }
}
