//! `cargo xtask test`: every test, against the real binary and the real components.
//!
//! The tests themselves build nothing: they get absolute paths in variables, so that a missing or stale
//! artifact is found here, once, with cargo's own message, and not in the middle of a test.

use std::process::Command;
use std::time::Instant;

use crate::commands::{self, exit_code};
use crate::failure::Failure;
use crate::prerequisites::Prerequisites;
use crate::server::Server;
use crate::workspace::Workspace;
use crate::{guests, say, up};

pub(crate) const HELP: &str = "\
Build the guests, the fixtures and berth, then run every test in the workspace.

Usage: cargo xtask test [FILTER...] [-- ARGUMENTS]

A FILTER is a part of a test's name; a test that contains one of them runs. ARGUMENTS go to the tests:
  cargo xtask test                              everything
  cargo xtask test expired_session              only tests with that in their name
  cargo xtask test routes -- --nocapture        and show what they print

Runs `cargo nextest` when it is installed, `cargo test` otherwise; then the documentation's examples; then the
unit tests of the guests, compiled for this machine. All of them run even if the first ones fail.
The tests find what was built in BERTH_BIN, BERTH_GUESTS and BERTH_WASMTIME, and in BERTH_TEST_POSTGRES a Postgres
that runs as long as they do. The tests that use a database (`store_…`) run a second time, each on a private
cluster of berth's own.";

/// Guests with unit tests of their own that run without a Wasm engine.
const TESTED_NATIVELY: &[&str] = &["auth"];

pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<(), Failure> {
    let mut prerequisites = Prerequisites::new(workspace);
    prerequisites.c_compiler()?;
    prerequisites.wasm_target()?;
    prerequisites.document_tests()?;
    prerequisites.openssl()?;
    let programs = prerequisites.postgres()?;
    let wasmtime = prerequisites.wasmtime_cli()?;
    guests::build(workspace)?;
    up::build_berth(workspace)?;

    let selection = Selection::new(arguments);
    let server = Server::start(workspace, &programs)?;
    let nextest = commands::works(commands::cargo(workspace).args(["nextest", "--version"]));
    let failures: Vec<Failed> = suites(workspace, nextest, &selection)
        .into_iter()
        .map(|(name, mut command)| {
            command
                .env("BERTH_BIN", workspace.binary("debug", "berth"))
                .env("BERTH_GUESTS", workspace.components())
                .env("BERTH_WASMTIME", &wasmtime)
                .env("BERTH_TEST_POSTGRES", server.url());
            run_suite(name, &mut command)
        })
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect();
    drop(server);
    match failures.first() {
        None => Ok(()),
        Some(first) => {
            let commands: Vec<_> = failures.iter().map(|failed| failed.sentence.as_str()).collect();
            Err(Failure::passed_on(
                format!(
                    "Not all tests passed: {}. The output above names the tests.",
                    commands.join("; ")
                ),
                first.exit,
            ))
        }
    }
}

/// A suite that ran and failed.
struct Failed {
    sentence: String,
    exit: u8,
}

fn run_suite(name: &str, command: &mut Command) -> Result<Option<Failed>, Failure> {
    let start = Instant::now();
    say::note(name, &commands::show(command));
    let status = commands::status(command)?;
    if status.success() {
        say::done(name, "passed", start);
        return Ok(None);
    }
    say::failed(name, start);
    let sentence = format!(
        "`{}` ended with {}",
        commands::show(command),
        commands::describe(status)
    );
    Ok(Some(Failed {
        sentence,
        exit: exit_code(status),
    }))
}

/// The test runs, in order; the longest first, because its failures are the ones to read first.
fn suites(workspace: &Workspace, nextest: bool, selection: &Selection) -> Vec<(&'static str, Command)> {
    let cargo = |arguments: Vec<String>| {
        let mut cargo = commands::cargo(workspace);
        cargo.args(arguments);
        cargo
    };
    let mut on_private = cargo(selection.stores(nextest));
    on_private.env("BERTH_TEST_STORE", "private");
    let mut suites = vec![
        ("tests", cargo(selection.workspace(nextest))),
        ("tests on private clusters", on_private),
    ];
    if nextest {
        // nextest does not run the examples in the documentation; `cargo test` has already done so.
        suites.push((
            "doc tests",
            cargo(selection.with(&["test", "--workspace", "--doc"])),
        ));
    }
    let guests_native = workspace.target().join("guests-native").display().to_string();
    for package in TESTED_NATIVELY {
        let base = [
            "test",
            "--manifest-path",
            "plugins/Cargo.toml",
            "--package",
            package,
            "--target-dir",
            &guests_native,
        ];
        suites.push(("guest tests", cargo(selection.with(&base))));
    }
    suites
}

/// Which tests to run, and what to tell them.
struct Selection {
    filters: Vec<String>,
    arguments: Vec<String>,
}

impl Selection {
    fn new(arguments: &[String]) -> Self {
        let mut parts = arguments.splitn(2, |argument| argument == "--");
        let mut part = || parts.next().map(<[String]>::to_vec).unwrap_or_default();
        Self {
            filters: part(),
            arguments: part(),
        }
    }

    /// The run over the workspace's own tests.
    fn workspace(&self, nextest: bool) -> Vec<String> {
        if !nextest {
            return self.with(&["test", "--workspace"]);
        }
        let mut all: Vec<String> = ["nextest", "run", "--workspace"].map(str::to_owned).to_vec();
        all.extend_from_slice(&self.filters);
        if !self.arguments.is_empty() {
            all.push("--".to_owned());
            all.extend_from_slice(&self.arguments);
        }
        all
    }

    /// The run over the tests that use a database, which are in modules that are named for it.
    fn stores(&self, nextest: bool) -> Vec<String> {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        if nextest {
            // A test must match the expression and one of the filters.
            let mut all = words(&[
                "nextest",
                "run",
                "--workspace",
                "--no-tests",
                "pass",
                "-E",
                "test(/^store_/)",
            ]);
            all.extend(self.workspace(true).into_iter().skip(3));
            return all;
        }
        let mut all = words(&["test", "--workspace", "--test", "it", "--"]);
        if self.filters.is_empty() {
            all.push("store_".to_owned());
        }
        all.extend_from_slice(&self.filters);
        all.extend_from_slice(&self.arguments);
        all
    }

    /// A `cargo test` command; it takes one filter itself, the test program any number.
    fn with(&self, base: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = base.iter().map(|&argument| argument.to_owned()).collect();
        if !self.filters.is_empty() || !self.arguments.is_empty() {
            all.push("--".to_owned());
            all.extend_from_slice(&self.filters);
            all.extend_from_slice(&self.arguments);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(arguments: &[&str]) -> Selection {
        Selection::new(
            &arguments
                .iter()
                .map(|&argument| argument.to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn no_filter_runs_everything() {
        assert_eq!(selection(&[]).workspace(true), ["nextest", "run", "--workspace"]);
        assert_eq!(selection(&[]).workspace(false), ["test", "--workspace"]);
    }

    #[test]
    fn tests_with_a_database_run_again_within_the_filters() {
        let expression = [
            "nextest",
            "run",
            "--workspace",
            "--no-tests",
            "pass",
            "-E",
            "test(/^store_/)",
        ];
        assert_eq!(selection(&[]).stores(true), expression);
        assert_eq!(
            selection(&["one", "--", "--nocapture"]).stores(true),
            [&expression[..], &["one", "--", "--nocapture"]].concat()
        );
        assert_eq!(
            selection(&[]).stores(false),
            ["test", "--workspace", "--test", "it", "--", "store_"]
        );
        assert_eq!(
            selection(&["one"]).stores(false),
            ["test", "--workspace", "--test", "it", "--", "one"]
        );
    }

    #[test]
    fn filters_and_arguments_reach_both_runners() {
        let selected = selection(&["one", "two", "--", "--nocapture"]);
        assert_eq!(
            selected.workspace(true),
            ["nextest", "run", "--workspace", "one", "two", "--", "--nocapture"]
        );
        assert_eq!(
            selected.workspace(false),
            ["test", "--workspace", "--", "one", "two", "--nocapture"]
        );
    }
}
