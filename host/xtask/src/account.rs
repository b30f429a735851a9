//! The user that Postgres runs as when we are root, and whether it gets to a folder.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::commands;
use crate::prerequisites::is_root;

/// A user and its first group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// The user `postgres`, which Debian's package makes; nobody if we aren't root, or before it is installed.
    pub(crate) fn postgres() -> Option<Self> {
        if !is_root() {
            return None;
        }
        parse(&std::fs::read_to_string("/etc/passwd").ok()?)
    }

    /// Let a program run as this user; the standard library drops the other groups.
    pub(crate) fn apply(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Give a file or folder to it.
    pub(crate) fn give(self, path: &Path) -> std::io::Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
    }

    /// Whether it may pass through a folder, or through the nearest one above it that is there.
    pub(crate) fn reaches(self, folder: &Path) -> bool {
        let there = folder.ancestors().find(|folder| folder.is_dir());
        let mut enter = commands::clean("sh");
        enter
            .args(["-c", "cd \"$0\""])
            .arg(there.unwrap_or(Path::new("/")))
            .current_dir("/");
        self.apply(&mut enter);
        commands::works(&mut enter)
    }
}

fn parse(users: &str) -> Option<Account> {
    let line = users.lines().find_map(|line| line.strip_prefix("postgres:"))?;
    let mut fields = line.split(':').skip(1);
    Some(Account {
        uid: fields.next()?.parse().ok()?,
        gid: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_found_among_others() {
        let users = "root:x:0:0::/root:/bin/sh\npostgresql:x:1:1::/:\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(parse(users), Some(Account { uid: 101, gid: 104 }));
        assert_eq!(parse("root:x:0:0::/root:/bin/sh"), None);
    }
}
