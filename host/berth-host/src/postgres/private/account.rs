//! The operating system's user that Postgres runs as when berth runs as root.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tokio::process::Command;

use super::{PrivateError, io_error};

/// The name that every distribution's package makes.
const NAME: &str = "postgres";

/// A user, with its first group and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// Whom Postgres must run as; nobody if we aren't root and it runs as ourselves.
    pub(super) fn find() -> Result<Option<Self>, PrivateError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let path = Path::new("/etc/passwd");
        let users = std::fs::read_to_string(path).map_err(io_error(path, "can't be read"))?;
        match parse(&users, NAME) {
            Some(account) => Ok(Some(account)),
            None => Err(PrivateError::Account(format!(
                "Postgres refuses to run as root, and there is no user `{NAME}` for it: install Debian's package (`apt-get install postgresql`), add one (`useradd --system {NAME}`), or run berth as another user"
            ))),
        }
    }

    /// Let a program run as this user. The standard library drops all other groups with it.
    pub(super) fn apply(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Whether a file or folder is this user's.
    pub(super) fn owns(self, about: &std::fs::Metadata) -> bool {
        about.uid() == self.uid
    }

    /// Give a file or folder to this user.
    pub(super) fn give(self, path: &Path) -> Result<(), PrivateError> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .map_err(io_error(path, "can't be given to the user `postgres`"))
    }

    /// Whether it may pass through a folder and all folders above it.
    pub(super) fn can_reach(self, folder: &Path) -> Result<(), PrivateError> {
        let mut above: Vec<&Path> = folder.ancestors().collect();
        above.reverse();
        for step in above {
            let about = std::fs::metadata(step).map_err(io_error(step, "can't be looked at"))?;
            if !self.may_pass(about.uid(), about.gid(), about.mode()) {
                return Err(PrivateError::Account(format!(
                    "the private Postgres runs as the user `{NAME}`, who may not pass through {step} on the way to the data folder {folder}: run `chmod o+x {step}`, or set data.dir (BERTH_DATA_DIR) to a folder elsewhere, as in /var/lib/berth",
                    step = step.display(),
                    folder = folder.display(),
                )));
            }
        }
        Ok(())
    }

    fn may_pass(self, owner: u32, group: u32, mode: u32) -> bool {
        let bit = if owner == self.uid {
            0o100
        } else if group == self.gid {
            0o010
        } else {
            0o001
        };
        mode & bit != 0
    }
}

/// A user of `/etc/passwd`; see passwd(5).
fn parse(users: &str, name: &str) -> Option<Account> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Account { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_found_by_its_whole_name() {
        let users = "root:x:0:0::/root:/bin/sh\npostgres2:x:7:7::/:/bin/sh\npostgres:x:101:104:PostgreSQL:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(parse(users, "postgres"), Some(Account { uid: 101, gid: 104 }));
        assert_eq!(parse(users, "postgre"), None);
        assert_eq!(parse("postgres:x:many:1::/:", "postgres"), None);
    }

    #[test]
    fn the_bit_that_counts_is_that_of_owner_group_or_others() {
        let account = Account { uid: 101, gid: 104 };
        assert!(account.may_pass(0, 0, 0o711));
        assert!(!account.may_pass(0, 0, 0o750));
        assert!(account.may_pass(0, 104, 0o710));
        assert!(
            !account.may_pass(0, 104, 0o701),
            "a group's bit goes before that of others"
        );
        assert!(account.may_pass(101, 0, 0o700));
        assert!(!account.may_pass(101, 0, 0o077));
    }

    #[test]
    fn folder_that_stops_it_is_named_with_what_to_do() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let closed = folder.path().join("closed");
        std::fs::create_dir_all(closed.join("data")).unwrap();
        for (path, mode) in [(folder.path(), 0o711), (&closed, 0o700)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        // Nobody's: only the bits for others count.
        let account = Account {
            uid: 65_001,
            gid: 65_001,
        };
        let said = account.can_reach(&closed.join("data")).unwrap_err().to_string();
        assert!(
            said.contains(&format!("run `chmod o+x {}`", closed.display())),
            "{said}"
        );
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o711)).unwrap();
        account.can_reach(&closed.join("data")).unwrap();
    }
}
