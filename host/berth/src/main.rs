//! The `berth` program: arguments, log, manifest, build, serve, signals, exit codes.
//!
//! Exit codes: 0 after a clean stop, 1 when the host could not start or serve, 2 for wrong arguments, 64 for a faulty
//! manifest or component (`EX_USAGE` of sysexits.h).

mod args;
mod check;
mod client;
mod inspected;
mod keys;
mod log;
mod plugin;
mod stop;
mod text;
mod user;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use berth_host::config::{self, Environment};
use berth_host::files::Files;
use berth_host::listen::tls::Tls;
use berth_host::listen::{self, Shutdown};
use berth_host::runtime::plugin::Plugin;
use berth_host::runtime::reload::Reloader;
use berth_host::runtime::reload::events::StepTimes;
use berth_host::services::Services;
use berth_host::state::{Host, HostSpec};
use clap::Parser;
use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::level_filters::LevelFilter;

use args::{Args, Command, LogFormat, ServeArgs};
use log::Log;
use stop::Signals;

/// A manifest or a component is faulty.
const EXIT_FAULTY: u8 = 64;
/// The host could not start or serve.
const EXIT_FAILED: u8 = 1;

fn main() -> ExitCode {
    quiet_errors();
    match Args::parse().command {
        Command::Up(args) => serve(&args, LogFormat::Text, true),
        Command::Serve(args) => serve(&args, LogFormat::Auto, false),
        Command::Check(args) => check::check(&args),
        Command::Routes(args) => check::routes(&args),
        Command::Keys(command) => keys::run(&command),
        Command::User(args) => user::run(&args),
        Command::Plugin(args) => plugin::run(&args),
    }
}

/// Keep host backtraces out of wasmtime's errors, whatever `RUST_BACKTRACE` says: it makes one whenever a store is
/// dropped with a parked fiber, which is on every request, and capturing it costs 6 % of a typed call. A guest's own
/// backtrace and those of panics are not affected. `RUST_LIB_BACKTRACE=1` brings them back.
#[expect(
    unsafe_code,
    reason = "the only way to set the default of std's Backtrace; see the proof in the block"
)]
fn quiet_errors() {
    if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
        // SAFETY: this is the first statement of the program; no other thread exists that could read the environment.
        unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    }
}

fn serve(args: &ServeArgs, format: LogFormat, development: bool) -> ExitCode {
    let mut spec = match config::load(&args.config, &Environment::of_process()) {
        Ok(spec) => spec,
        Err(faults) => return check::refuse(&args.config, &faults),
    };
    if development {
        spec.for_development();
    }
    let files = match Files::load(&spec) {
        Ok(files) => files,
        Err(error) => {
            eprintln!("berth: {error}");
            return ExitCode::from(EXIT_FAULTY);
        }
    };
    let guests = spec.plugins.iter().map(|plugin| plugin.log).max();
    let log = log::start(
        args.log_format.unwrap_or(format),
        guests.unwrap_or(LevelFilter::OFF),
    );
    // Every connection needs a descriptor, and the usual soft limit of 1024 is for programs that use select(2).
    let descriptors = raise_descriptor_limit();
    if descriptors.is_some_and(|have| have < spec.limits.connections as u64) {
        tracing::warn!(
            target: "berth",
            descriptors, connections = spec.limits.connections,
            "fewer file descriptors than `http.connections`: raise the limit (ulimit -n) or lower the setting",
        );
    }
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(run(spec, files, (workers, development), &log));
            // Without waiting for what still blocks, such as the look-up of a collector's name.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(format!("the worker threads can't be started: {error}")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("berth: {message}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Ask for as many file descriptors as this process may have, and say how many that is; nothing if unlimited.
fn raise_descriptor_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(target: "berth", %error, "the limit of file descriptors stays as it is");
    }
    getrlimit(Resource::Nofile).current
}

async fn run(
    spec: HostSpec,
    files: Files,
    (workers, development): (usize, bool),
    log: &Log,
) -> Result<(), String> {
    let started = Instant::now();
    // Before the work of loading, so that an address that is taken is known at once.
    let callers = bind("http", spec.listen)?;
    let operators = spec.admin.map(|address| bind("admin", address)).transpose()?;
    let mut signals = Signals::hook()?;
    let services = tokio::select! {
        started = Services::start(&spec, files.tokens) => started.map_err(|error| error.to_string())?,
        name = signals.next() => {
            tracing::info!(target: "berth", signal = name, "stopped before it was ready");
            return Ok(());
        }
    };
    let services = Arc::new(services);
    let ended = serve_with(
        spec,
        files.tls,
        &services,
        (callers, operators),
        (workers, development, started),
        (log, signals),
    )
    .await;
    services.stop().await;
    ended
}

async fn serve_with(
    spec: HostSpec,
    tls: Option<Arc<Tls>>,
    services: &Arc<Services>,
    (callers, operators): (listen::Bound, Option<listen::Bound>),
    (workers, development, started): (usize, bool, Instant),
    (log, signals): (&Log, Signals),
) -> Result<(), String> {
    let host = Host::build(&spec, services, workers, announce).map_err(|error| error.to_string())?;
    let host = Arc::new(host);
    host.metrics.log_lines_dropped_by(log.dropped());
    let settings = host.runtime.settings();
    tracing::info!(
        target: "berth",
        instances = settings.instances,
        workers = settings.workers,
        memory_reset = %host.runtime.reset,
        "instance pool ready",
    );

    let watch = spec.reload.watch.unwrap_or(development);
    let reloader = Reloader::new(&host, spec, watch, development)
        .map_err(|error| format!("the thread that compiles can't be started: {error}"))?;
    reloader.try_out_new().await;

    let shutdown = Shutdown::new();
    // The addresses are the one thing that goes to standard output, so that a script can read them.
    let admin = operators
        .as_ref()
        .map(|o| format!("berth admin on http://{}\n", o.address))
        .unwrap_or_default();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let ready = format!("ready in {} ms\n", started.elapsed().as_millis());
    check::write(
        &format!("berth listens on {scheme}://{}\n{admin}{ready}", callers.address),
        0,
    );
    let changes = tokio::spawn(reloader.run(shutdown.stopping()));
    tokio::spawn(stop::reload_on_hangup(Arc::clone(&host)));
    tokio::spawn(listen::sweep(Arc::clone(&host), shutdown.clone()));
    if let Some(admin) = operators {
        tokio::spawn(listen::run_admin(Arc::clone(&host), admin, shutdown.clone()));
    }
    tokio::spawn(listen::run(Arc::clone(&host), callers, tls, shutdown.clone()));

    stop::wait(&host, &shutdown, signals)
        .await
        .map_err(|stopped| stopped.to_string())?;
    stop::finish(changes).await;
    tracing::info!(target: "berth", "stopped");
    Ok(())
}

fn bind(section: &str, address: std::net::SocketAddr) -> Result<listen::Bound, String> {
    listen::bind(address).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => "; stop what listens there, or choose another",
            std::io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
            _ => "",
        };
        format!("[{section}] listen = \"{address}\": {error}{hint}")
    })
}

fn announce(plugin: &Plugin) {
    match &plugin.serving().current {
        Ok(version) => {
            let steps = StepTimes::from(version.steps);
            tracing::info!(
                target: "berth::plugin",
                plugin = plugin.name,
                version = version.digest,
                kind = version.pre.kind(),
                bytes = version.size,
                total_us = steps.total_us,
                read_us = steps.read_us,
                verify_us = steps.verify_us,
                compile_us = steps.compile_us,
                cached = steps.cached,
                link_us = steps.link_us,
                "loaded",
            );
        }
        Err(fault) => tracing::error!(
            target: "berth::plugin",
            plugin = plugin.name,
            code = fault.code(),
            "can't be loaded, its routes answer 503: {fault}",
        ),
    }
}
