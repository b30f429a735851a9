//! `cargo xtask up`: from a fresh checkout to a running berth.
//!
//! It ends by *becoming* berth (`exec`), so that a signal sent to the terminal's job or to this process id
//! reaches berth itself, and berth's exit code is the command's.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::account::Account;
use crate::commands::{self, SEE_ABOVE};
use crate::failure::Failure;
use crate::prerequisites::Prerequisites;
use crate::workspace::{self, Workspace};
use crate::{guests, say};

pub(crate) const HELP: &str = "\
Build the guests and berth, then run `berth up --config plugins/berth.toml`.

Usage: cargo xtask up [-- ARGUMENTS]

ARGUMENTS go to `berth up` as they are; `cargo xtask up -- --help` lists them.
Stop it with Ctrl-C: requests in flight are finished first; a second Ctrl-C stops at once.
A changed guest is served as soon as it is built again: `cargo xtask guests` in another terminal.

Accounts and keys stay in plugins/.berth between runs, or where BERTH_DATA_DIR says; as root in a checkout that the
user `postgres` can't get into, below /var/lib/berth.";

pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<(), Failure> {
    let for_berth = match arguments.split_first() {
        None => &[],
        Some((separator, rest)) if separator == "--" => rest,
        Some((other, _)) => {
            return Err(Failure::usage(format!(
                "`up` has no argument `{other}`. What is meant for berth comes after two dashes: \
                 `cargo xtask up -- {}`.",
                arguments.join(" ")
            )));
        }
    };

    let mut prerequisites = Prerequisites::new(workspace);
    prerequisites.c_compiler()?;
    prerequisites.wasm_target()?;
    prerequisites.postgres()?;
    guests::build(workspace)?;
    build_berth(workspace)?;

    let config = workspace::short(&workspace.guest_sources().join("berth.toml"));
    let mut berth = commands::clean(workspace::program(&workspace.binary("debug", "berth")));
    berth.args(["up", "--config"]).arg(config).args(for_berth);
    if let Some(folder) = data_folder(workspace) {
        say::note(
            "data",
            &format!(
                "in {}, because the user `postgres` can't get into this checkout; BERTH_DATA_DIR chooses another folder",
                folder.display()
            ),
        );
        berth.env("BERTH_DATA_DIR", folder);
    }
    say::note("run", &commands::show(&berth));
    let error = berth.exec();
    Err(Failure::new(format!(
        "`{}` could not be started: {error}. Run `cargo build --workspace` and look at its output.",
        commands::show(&berth)
    )))
}

/// Where berth keeps its data if it can't be beside the manifest: as root it runs Postgres as another user, which has no
/// way into a checkout below /root. The same folder for every run in this checkout.
fn data_folder(workspace: &Workspace) -> Option<PathBuf> {
    let given = std::env::var_os("BERTH_DATA_DIR").is_some_and(|folder| !folder.is_empty());
    let account = Account::postgres()?;
    if given || account.reaches(&workspace.guest_sources()) {
        return None;
    }
    let root = workspace.root().as_os_str().as_bytes();
    Some(Path::new("/var/lib/berth").join(format!("dev-{:016x}", hash(root))))
}

/// FNV-1a, <https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>: the standard library's hash may change with it.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Builds berth with the profile and the selection of packages that `up` and `test` share: another selection would
/// unify other features and build wasmtime a second time.
pub(crate) fn build_berth(workspace: &Workspace) -> Result<(), Failure> {
    let start = Instant::now();
    commands::succeed(
        commands::cargo(workspace).args(["build", "--workspace"]),
        SEE_ABOVE,
    )?;
    say::done(
        "berth",
        &format!(
            "built {}",
            workspace::short(&workspace.binary("debug", "berth")).display()
        ),
        start,
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_fnv_1a() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
