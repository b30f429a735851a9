//! Finding `initdb` and `postgres`. Debian keeps them off the `PATH`, one folder for each major version.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::PrivateError;
use crate::postgres::OLDEST;

/// Where Debian's packages put them: `<this>/<major>/bin`.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The programs of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    folder: PathBuf,
    major: u32,
}

impl Binaries {
    /// The installation for a cluster that was made by `existing`, or the newest for a new one. Only `bin_dir` is looked
    /// at if it is given. `cluster` is for messages.
    pub(super) async fn find(
        bin_dir: Option<&Path>,
        existing: Option<u32>,
        cluster: &Path,
    ) -> Result<Self, PrivateError> {
        let folders = match bin_dir {
            Some(folder) => vec![folder.to_owned()],
            None => candidates(Path::new(DEBIAN)).await,
        };
        let mut found = Vec::new();
        for folder in folders {
            if let Some(major) = version_in(&folder).await {
                found.push(Self { folder, major });
            }
        }
        choose(found, bin_dir, existing, cluster)
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.folder.join("initdb")
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.folder.join("postgres")
    }
}

fn choose(
    mut found: Vec<Binaries>,
    bin_dir: Option<&Path>,
    existing: Option<u32>,
    cluster: &Path,
) -> Result<Binaries, PrivateError> {
    // The first of equals stays in front: what is on the PATH is meant.
    found.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
    let Some(newest) = found.first() else {
        return Err(PrivateError::Binaries(match bin_dir {
            Some(folder) => format!(
                "postgres.bin_dir = \"{}\": there are no programs `initdb` and `postgres` that work; name the folder that has both, or leave the key out to look in the usual places",
                folder.display()
            ),
            None => "there is no Postgres on this machine for the private cluster: install it (Debian: `apt-get install postgresql`), name the folder of its programs in postgres.bin_dir, or name a server that runs elsewhere in postgres.url".to_owned(),
        }));
    };
    if let Some(existing) = existing {
        let newest = newest.clone();
        return found
            .into_iter()
            .find(|binaries| binaries.major == existing)
            .ok_or_else(|| wrong_major(cluster, existing, &newest));
    }
    if newest.major < OLDEST {
        return Err(PrivateError::Binaries(format!(
            "{} is Postgres {}, and berth needs {OLDEST} or newer: install a newer one, or name a server that runs elsewhere in postgres.url",
            newest.folder.display(),
            newest.major
        )));
    }
    Ok(newest.clone())
}

fn wrong_major(cluster: &Path, existing: u32, newest: &Binaries) -> PrivateError {
    PrivateError::Major {
        folder: cluster.to_owned(),
        cluster: existing,
        found: newest.major,
        command: format!(
            "`pg_upgrade -b {DEBIAN}/{existing}/bin -B {} -d {folder} -D {folder}.{} -U {}`",
            newest.folder.display(),
            newest.major,
            super::LOGIN,
            folder = cluster.display(),
        ),
    }
}

/// The folders that may have them, the `PATH` first.
async fn candidates(debian: &Path) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .collect();
    if let Ok(majors) = std::fs::read_dir(debian) {
        folders.extend(majors.filter_map(|entry| Some(entry.ok()?.path().join("bin"))));
    }
    if let Some(folder) = ask(Path::new("pg_config"), "--bindir").await {
        folders.push(PathBuf::from(folder.trim()));
    }
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// The major version of the programs in a folder, if both are there and say so.
async fn version_in(folder: &Path) -> Option<u32> {
    let is_program = |name: &str| {
        std::fs::metadata(folder.join(name))
            .is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
    };
    if !is_program("initdb") || !is_program("postgres") {
        return None;
    }
    major(&ask(&folder.join("postgres"), "--version").await?)
}

async fn ask(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program)
        .arg(argument)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, or in `17beta1` and `18devel`.
fn major(said: &str) -> Option<u32> {
    let version = said.split_once("(PostgreSQL) ")?.1;
    let digits = version
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(version.len());
    version.get(..digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(majors: &[u32]) -> Vec<Binaries> {
        let of = |major: &u32| Binaries {
            folder: format!("{DEBIAN}/{major}/bin").into(),
            major: *major,
        };
        majors.iter().map(of).collect()
    }

    fn chosen(majors: &[u32], existing: Option<u32>) -> Result<u32, String> {
        choose(installed(majors), None, existing, Path::new("/data/postgres"))
            .map(|binaries| binaries.major)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn major_is_read_from_every_form() {
        for (said, wanted) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 17beta1", Some(17)),
            ("postgres (PostgreSQL) 18devel", Some(18)),
            ("postgres (PostgreSQL) 9.6.24", Some(9)),
            ("postgres (PostgreSQL) 16", Some(16)),
            ("something else 15", None),
            ("postgres (PostgreSQL) x", None),
        ] {
            assert_eq!(major(said), wanted, "{said}");
        }
    }

    #[test]
    fn newest_makes_a_cluster_and_the_one_that_made_it_goes_on() {
        assert_eq!(chosen(&[14, 17, 16], None), Ok(17));
        assert_eq!(chosen(&[14, 17, 16], Some(16)), Ok(16));
    }

    #[test]
    fn faults_name_the_package_the_versions_and_the_commands() {
        let none = chosen(&[], None).unwrap_err();
        assert!(
            none.contains("`apt-get install postgresql`") && none.contains("postgres.url"),
            "{none}"
        );
        let old = chosen(&[13], None).unwrap_err();
        assert!(
            old.contains("is Postgres 13, and berth needs 14 or newer"),
            "{old}"
        );
        let other = chosen(&[16, 17], Some(15)).unwrap_err();
        for part in [
            "/data/postgres was made by Postgres 15, but this machine has Postgres 17",
            "`apt-get install postgresql-15`",
            "`pg_upgrade -b /usr/lib/postgresql/15/bin -B /usr/lib/postgresql/17/bin -d /data/postgres -D /data/postgres.17 -U berth`",
        ] {
            assert!(other.contains(part), "{other}");
        }
    }

    #[tokio::test]
    async fn folder_needs_both_programs() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, mode| {
            let path = folder.path().join(name);
            std::fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 16.2'\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write("postgres", 0o755);
        assert_eq!(version_in(folder.path()).await, None, "no initdb");
        write("initdb", 0o644);
        assert_eq!(version_in(folder.path()).await, None, "initdb is no program");
        write("initdb", 0o755);
        assert_eq!(version_in(folder.path()).await, Some(16));
    }
}
