//! `cargo xtask bench swap`: what callers notice while a component is swapped again and again under them.
//!
//! Each case is measured twice in a round, once while nothing is swapped and once while an operator deploys one version
//! after the other, as fast as the host takes them; which comes first changes from round to round. So both see the same
//! machine, the same process and the same load, and their ratio is what swapping costs. The two versions differ in a
//! custom section: another digest, the same work.
//!
//! A request that fails ends the bench, as does a deploy that isn't answered with a swap, and a version that stays in
//! memory. So a report means that there was none.

mod operator;
mod report;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::cases::{Case, HELLO, HELLO_P3, Server, Serves, Setup, VERIFY_EMAIL};
use super::machine::Machine;
use super::options::Options;
use super::request::Request;
use super::servers::Servers;
use super::wrk::{Run, Wrk};
use crate::failure::{self, Failure};
use crate::say;
use crate::workspace::{self, Workspace};
use operator::{Operator, Swap};
use report::Report;

/// Swaps of each case if nobody says how many.
const SWAPS: usize = 1_000;
/// Of these, one of so many where each is compiled.
const COMPILED_SHARE: usize = 10;
/// The last requests on an earlier version end within this time.
const END: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// A case, and what is swapped meanwhile.
struct Swapped {
    case: Case,
    plugin: &'static str,
    component: &'static str,
    /// Every version is a new one, so that none is in the cache.
    compiled: bool,
}

const SETUP: Setup = Setup {
    name: "berth-swap",
    reuse: &[("hello-reused", "serial"), ("hello-p3", "concurrent")],
    serves: Serves::Swapped,
};
const SERVER: Server = Server::Berth(&SETUP);
const HELLO_REUSED: Request = Request {
    path: "/hello-reused/world",
    ..HELLO
};

#[rustfmt::skip]
const CASES: &[Swapped] = &[
    Swapped { case: Case { key: "typed-fresh",       server: SERVER, request: VERIFY_EMAIL }, plugin: "auth",         component: "fixtures/auth-static", compiled: false },
    Swapped { case: Case { key: "http02-fresh",      server: SERVER, request: HELLO },        plugin: "hello",        component: "hello",                compiled: false },
    Swapped { case: Case { key: "http02-reused",     server: SERVER, request: HELLO_REUSED }, plugin: "hello-reused", component: "hello",                compiled: false },
    Swapped { case: Case { key: "http03-concurrent", server: SERVER, request: HELLO_P3 },     plugin: "hello-p3",     component: "hello-p3",             compiled: false },
    Swapped { case: Case { key: "http02-compiled",   server: SERVER, request: HELLO },        plugin: "hello",        component: "hello",                compiled: true },
];

/// What was measured of a case: one run of each kind per round, and every swap.
struct Measured {
    of: &'static Swapped,
    component: Vec<u8>,
    still: Vec<Run>,
    swapping: Vec<Run>,
    swaps: Vec<Swap>,
    /// Versions that were made.
    versions: u64,
}

/// What the process was like.
#[derive(Clone, Copy)]
struct Footprint {
    resident_bytes: f64,
    threads: f64,
    descriptors: f64,
}

pub(super) fn run(workspace: &Workspace, arguments: &[String]) -> Result<(), Failure> {
    let options = Options::of_swaps(arguments)?;
    let chosen = options.chosen(CASES, |it| it.case.key)?;
    let cases: Vec<&'static Case> = chosen.iter().map(|it| &it.case).collect();
    let machine = Machine::look(workspace);
    let tools = super::prepare(workspace, &options, &cases)?;

    let start = Instant::now();
    let servers = Servers::start(workspace, &tools, &cases)?;
    for case in &cases {
        servers.check(case)?;
    }
    say::done("berth", "answers as it should", start);
    let Some(first) = cases.first() else {
        return Err(Failure::usage("There is nothing to measure."));
    };
    let operator = Operator::of(servers.admin(first)?, &super::database::folder(&tools, &SETUP))?;

    let mut measured = Vec::new();
    for of in chosen {
        let file = workspace.components().join(format!("{}.wasm", of.component));
        measured.push(Measured {
            of,
            component: std::fs::read(&file).map_err(failure::io(
                format!("{} can't be read", workspace::short(&file).display()),
                "Run `cargo xtask guests`.",
            ))?,
            still: Vec::new(),
            swapping: Vec::new(),
            swaps: Vec::new(),
            versions: 0,
        });
    }
    let wrk = Wrk::new(&tools, options.connections);
    let before = warm_up(&servers, &wrk, &operator, &mut measured)?;
    measure(&servers, &wrk, &options, &operator, &mut measured)?;
    let after = settle(&operator, &measured)?;
    let report = Report::new(machine, &servers, &options, measured, (before, after));
    if options.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.text());
    }
    servers.end();
    Ok(())
}

/// Requests and both versions once, so that nothing that is measured is a first time; then what the process is like.
fn warm_up(
    servers: &Servers,
    wrk: &Wrk,
    operator: &Operator,
    measured: &mut [Measured],
) -> Result<Footprint, Failure> {
    for one in measured.iter_mut() {
        one.swap(operator)?;
        one.swap(operator)?;
        wrk.run(&one.of.case, servers.target(&one.of.case)?, 1)?;
        one.swaps.clear();
    }
    settle(operator, measured)
}

fn measure(
    servers: &Servers,
    wrk: &Wrk,
    options: &Options,
    operator: &Operator,
    measured: &mut [Measured],
) -> Result<(), Failure> {
    let swaps = options.swaps.unwrap_or(SWAPS);
    for round in 0.. {
        let start = Instant::now();
        let mut due = 0_usize;
        for one in measured.iter_mut() {
            let wanted = if one.of.compiled {
                swaps.div_ceil(COMPILED_SHARE)
            } else {
                swaps
            };
            if round >= options.rounds && one.swaps.len() >= wanted {
                continue;
            }
            due += 1;
            let case = &one.of.case;
            let target = servers.target(case)?;
            let still = || wrk.run(case, target, options.seconds);
            if round % 2 == 0 {
                one.still.push(still()?);
            }
            let run = alongside(|| wrk.run(case, target, options.seconds), || one.swap(operator))?;
            one.swapping.push(run);
            if round % 2 == 1 {
                one.still.push(still()?);
            }
        }
        if due == 0 {
            break;
        }
        let made: usize = measured.iter().map(|one| one.swaps.len()).sum();
        say::done("round", &format!("{}, {made} swaps so far", round + 1), start);
    }
    Ok(())
}

/// Wait until only the versions that serve are in memory, then look at the process.
fn settle(operator: &Operator, measured: &[Measured]) -> Result<Footprint, Failure> {
    let deadline = Instant::now() + END;
    loop {
        let mut stays = None;
        for one in measured {
            let alive = operator.metric(&format!("berth_plugin_versions{{plugin=\"{}\"}}", one.of.plugin))?;
            if alive > 1.0 {
                stays = Some((one.of.plugin, alive));
            }
        }
        match stays {
            None => break,
            Some((plugin, alive)) if Instant::now() > deadline => {
                return Err(Failure::new(format!(
                    "{alive} versions of the plugin `{plugin}` are in memory although nobody asks it: they are not dropped."
                )));
            }
            Some(_) => std::thread::sleep(PAUSE),
        }
    }
    Ok(Footprint {
        resident_bytes: operator.metric("process_resident_memory_bytes")?,
        threads: operator.metric("process_threads")?,
        descriptors: operator.metric("process_open_fds")?,
    })
}

impl Measured {
    /// One more version.
    fn swap(&mut self, operator: &Operator) -> Result<(), Failure> {
        self.versions += 1;
        let number = if self.of.compiled {
            // No other case, and no earlier bench, has had this one.
            2 + self.versions
        } else {
            self.versions % 2
        };
        let component = version(&self.component, number);
        let swap = operator.deploy(self.of.plugin, &component)?;
        self.swaps.push(swap);
        Ok(())
    }
}

/// A version of a component that differs in a custom section, and so in its digest.
fn version(component: &[u8], number: u64) -> Vec<u8> {
    const NAME: &[u8] = b"version";
    let content = number.to_le_bytes();
    // All lengths are below 128, so each is one byte in LEB128.
    let name_bytes = NAME.len() as u8;
    let section_bytes = 1 + name_bytes + content.len() as u8;
    let mut bytes = component.to_vec();
    bytes.extend_from_slice(&[0, section_bytes, name_bytes]);
    bytes.extend_from_slice(NAME);
    bytes.extend_from_slice(&content);
    bytes
}

/// Runs the measurement, with `meanwhile` over and over on another thread until it ends.
fn alongside<T>(
    measure: impl FnOnce() -> Result<T, Failure>,
    mut meanwhile: impl FnMut() -> Result<(), Failure> + Send,
) -> Result<T, Failure> {
    let measuring = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            while measuring.load(Ordering::Relaxed) {
                meanwhile()?;
            }
            Ok(())
        });
        let result = measure();
        measuring.store(false, Ordering::Relaxed);
        match other.join() {
            Ok(outcome) => outcome.and(result),
            Err(_) => Err(Failure::new("The thread that swaps has panicked.")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_differ_in_a_section_that_ends_where_it_says() {
        let (one, two) = (version(b"component", 1), version(b"component", 2));
        assert_ne!(one, two);
        let section = one.strip_prefix(b"component").unwrap_or_default();
        assert_eq!(section.first(), Some(&0));
        assert_eq!(
            section.get(1).map(|&bytes| usize::from(bytes)),
            Some(section.len() - 2)
        );
    }

    #[test]
    fn what_runs_beside_stops_with_the_measurement_and_its_fault_counts() {
        let ran = AtomicBool::new(false);
        // It ends when the other one has been there.
        let measured = || {
            while !ran.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Ok(1)
        };
        let beside = |result: Result<(), Failure>| {
            ran.store(true, Ordering::Relaxed);
            result
        };
        assert_eq!(alongside(measured, || beside(Ok(()))).ok(), Some(1));
        ran.store(false, Ordering::Relaxed);
        assert!(alongside(measured, || beside(Err(Failure::new("refused")))).is_err());
    }
}
