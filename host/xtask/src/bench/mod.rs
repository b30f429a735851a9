//! `cargo xtask bench`: berth against plain hyper and `wasmtime serve`, on one machine, at one time.
//!
//! Absolute numbers say more about the machine than about berth, so the result is *ratios*: all servers run at
//! once, the cases take turns in an order that rotates from round to round, each ratio is taken within a round,
//! and the median over the rounds is what counts. Whatever slows the machine down slows both sides.
//!
//! Every request is checked once before anything is measured, and a run in which wrk saw a refused or broken
//! request is a failure: a fast wrong answer is not a result. berth's request logging stays on.
//!
//! `cargo xtask bench swap` compares berth with itself while its components are swapped: see [`swap`].

mod cases;
mod database;
mod json;
mod machine;
mod manifest;
mod options;
mod report;
mod request;
mod servers;
mod swap;
mod wrk;

use std::path::PathBuf;
use std::time::Instant;

use crate::commands::{self, SEE_ABOVE};
use crate::failure::{self, Failure};
use crate::prerequisites::{self, Prerequisites};
use crate::workspace::{self, Workspace};
use crate::{guests, say};
use cases::{Case, Server};
use machine::Machine;
use options::{Cli, Options};
use report::{Measured, Report};
use servers::Servers;
use wrk::Wrk;

pub(crate) use options::HELP;

pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<(), Failure> {
    if let Some((first, rest)) = arguments.split_first()
        && first == "swap"
    {
        return swap::run(workspace, rest);
    }
    let options = Options::parse(arguments)?;
    let cases = options.cases()?;
    let mut machine = Machine::look(workspace);
    let tools = prepare(workspace, &options, &cases)?;
    machine.wasmtime_cli = tools
        .wasmtime
        .as_deref()
        .map(prerequisites::wasmtime_version)
        .transpose()?;

    let start = Instant::now();
    let servers = Servers::start(workspace, &tools, &cases)?;
    for case in &cases {
        servers.check(case)?;
    }
    say::done(
        "servers",
        &format!("{} answer as they should", say::counted(cases.len(), "case")),
        start,
    );

    let measured = measure(&servers, &tools, &options, &cases)?;
    let report = Report::new(machine, &servers, &options, measured);
    if options.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.text());
    }
    servers.end();
    Ok(())
}

/// The programs that a bench runs.
struct Tools {
    /// Everything generated, and every server's log.
    folder: PathBuf,
    wrk: PathBuf,
    wasmtime: Option<PathBuf>,
}

/// Checks the prerequisites and builds what the chosen cases need, no more.
fn prepare(workspace: &Workspace, options: &Options, cases: &[&'static Case]) -> Result<Tools, Failure> {
    let needs = |wanted: fn(&Server) -> bool| cases.iter().any(|case| wanted(&case.server));
    let folder = workspace.target().join("bench");
    std::fs::create_dir_all(&folder).map_err(failure::io(
        format!(
            "The folder {} could not be made",
            workspace::short(&folder).display()
        ),
        "Check the permissions of the target folder.",
    ))?;

    let mut prerequisites = Prerequisites::new(workspace);
    prerequisites.c_compiler()?;
    let wrk = prerequisites.wrk()?;
    let wasmtime = match &options.cli {
        _ if !needs(|server| matches!(server, Server::WasmtimeServe(_))) => None,
        Cli::None => None,
        Cli::At(path) => Some(path.clone()),
        Cli::Install => Some(prerequisites.wasmtime_cli()?),
    };

    if needs(|server| !matches!(server, Server::PlainHyper)) {
        prerequisites.wasm_target()?;
        guests::build(workspace)?;
    }
    if needs(|server| !matches!(server, Server::WasmtimeServe(_))) {
        build(workspace)?;
    }
    Ok(Tools {
        folder,
        wrk,
        wasmtime,
    })
}

/// The whole workspace at once: a smaller selection would unify other features and build wasmtime a second time.
fn build(workspace: &Workspace) -> Result<(), Failure> {
    let start = Instant::now();
    commands::succeed(
        commands::cargo(workspace).args(["build", "--release", "--workspace"]),
        SEE_ABOVE,
    )?;
    say::done("berth and plain-hyper", "built for release", start);
    Ok(())
}

/// One warm-up per case, then the rounds.
fn measure(
    servers: &Servers,
    tools: &Tools,
    options: &Options,
    cases: &[&'static Case],
) -> Result<Vec<Measured>, Failure> {
    let wrk = Wrk::new(tools, options.connections);
    let mut measured: Vec<Measured> = cases.iter().map(|&case| Measured::new(case)).collect();
    for case in cases {
        wrk.run(case, servers.target(case)?, 1)?;
    }
    for round in 0..options.rounds {
        let start = Instant::now();
        let first = round % measured.len().max(1);
        let (later, sooner) = measured.split_at_mut(first);
        for one in sooner.iter_mut().chain(later) {
            one.runs
                .push(wrk.run(one.case, servers.target(one.case)?, options.seconds)?);
        }
        say::done("round", &format!("{} of {}", round + 1, options.rounds), start);
    }
    Ok(measured)
}
