//! `cargo xtask`: everything that has to happen around `cargo build`, as one program.
//!
//! A fresh machine has Rust and a C compiler, nothing else, and two commands must be enough there: `up` and
//! `test`. They need more than cargo can do alone (components for another target, a wasmtime CLI, paths handed
//! to the tests), and a shell script or a Makefile would need tools that such a machine may lack. A Rust
//! program is the one thing that is certain to run.
//!
//! It uses `std` only, so that it compiles in seconds, before anything else has been built. That is why there
//! is a small JSON writer and a small argument parser here; neither is meant for use elsewhere.
//!
//! Every command reads the same way: prerequisites, then builds, then the thing itself.

mod account;
mod bench;
mod commands;
mod failure;
mod guests;
mod prerequisites;
mod say;
mod server;
mod test;
mod up;
mod workspace;

use std::process::ExitCode;

use failure::Failure;
use workspace::Workspace;

const HELP: &str = "\
cargo xtask builds, runs, tests and measures berth. It installs what is missing and says so first.

Usage: cargo xtask COMMAND [ARGUMENTS]

  up             Build the guests and berth, then run berth with plugins/berth.toml.
                   cargo xtask up
                   cargo xtask up -- --help        what `berth up` accepts
  test           Build everything, then run every test.
                   cargo xtask test
                   cargo xtask test routes         only tests with `routes` in their name
  bench          Measure berth against plain hyper and `wasmtime serve`, as ratios.
                   cargo xtask bench
                   cargo xtask bench --only hyper typed-fresh --rounds 3
  guests         Build the guest components into target/plugins/.
  prerequisites  Check for the wasm32-wasip2 target, a C compiler and Postgres; install what is missing.

`cargo xtask COMMAND --help` explains a command. Environment: CARGO_TARGET_DIR moves cargo's output;
NO_COLOR switches colours off.";

fn main() -> ExitCode {
    let arguments: Vec<String> = match arguments() {
        Ok(arguments) => arguments,
        Err(failure) => return report(&failure),
    };
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn dispatch(arguments: &[String]) -> Result<(), Failure> {
    let Some((command, rest)) = arguments.split_first() else {
        return Err(Failure::usage(format!("No command was given.\n\n{HELP}")));
    };
    match command.as_str() {
        "up" => explained(rest, up::HELP, up::run),
        "test" => explained(rest, test::HELP, test::run),
        "bench" => explained(rest, bench::HELP, bench::run),
        "guests" => explained(rest, guests::HELP, guests::run),
        "prerequisites" => explained(rest, prerequisites::HELP, prerequisites::run),
        "--help" | "-h" | "help" => {
            println!("{HELP}");
            Ok(())
        }
        unknown => Err(Failure::usage(format!(
            "There is no command `{unknown}`.\n\n{HELP}"
        ))),
    }
}

/// Prints the command's help if it was asked for (before a `--`), else runs the command.
fn explained(
    arguments: &[String],
    help: &str,
    run: fn(&Workspace, &[String]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if arguments
        .iter()
        .take_while(|a| *a != "--")
        .any(|a| a == "--help" || a == "-h")
    {
        println!("{help}");
        return Ok(());
    }
    run(&Workspace::find()?, arguments)
}

fn arguments() -> Result<Vec<String>, Failure> {
    std::env::args_os()
        .skip(1)
        .map(|argument| {
            argument.into_string().map_err(|raw| {
                Failure::usage(format!(
                    "The argument {raw:?} isn't valid UTF-8. Give it in UTF-8, or rename the file that it names."
                ))
            })
        })
        .collect()
}

fn report(failure: &Failure) -> ExitCode {
    say::error(failure.sentence());
    ExitCode::from(failure.exit())
}
