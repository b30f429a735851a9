//! `cargo xtask up`: from a fresh checkout to a running berth.
//!
//! It ends by *becoming* berth (`exec`), so that a signal sent to the terminal's job or to this process id
//! reaches berth itself, and berth's exit code is the command's.

use std::os::unix::process::CommandExt as _;
use std::time::Instant;

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
A changed guest is served after a restart: Ctrl-C, then the same command again.";

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
    guests::build(workspace)?;
    build_berth(workspace)?;

    let config = workspace::short(&workspace.guest_sources().join("berth.toml"));
    let mut berth = commands::clean(workspace::program(&workspace.binary("debug", "berth")));
    berth.args(["up", "--config"]).arg(config).args(for_berth);
    say::note("run", &commands::show(&berth));
    let error = berth.exec();
    Err(Failure::new(format!(
        "`{}` could not be started: {error}. Run `cargo build --workspace` and look at its output.",
        commands::show(&berth)
    )))
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
