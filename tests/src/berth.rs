//! A running `berth`, on free ports, with its log.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::{guest, program, prometheus, wire};

/// The time within which anything that is waited for must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Wait until something is so.
///
/// # Panics
/// It is not within [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, so: impl Fn() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < PATIENCE, "not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The `berth` program, with a clean environment and without ports of its own.
pub fn command() -> Command {
    let mut command = Command::new(program("BERTH_BIN", "target/debug/berth"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BERTH_") {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// A manifest under construction.
#[derive(Clone, Debug, Default)]
pub struct Manifest(String);

impl Manifest {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lines as they are.
    pub fn raw(mut self, text: &str) -> Self {
        self.0.push_str(text);
        self.0.push('\n');
        self
    }

    /// A handler from the built guests, at `/<name>/*`; `name` is the last part of `component`.
    pub fn handler(self, component: &str) -> Self {
        let path = guest(component);
        let name = component.rsplit('/').next().unwrap_or_default();
        self.handler_file(name, &path, "")
    }

    /// The same with more lines in its table.
    pub fn handler_with(self, component: &str, more: &str) -> Self {
        let path = guest(component);
        let name = component.rsplit('/').next().unwrap_or_default();
        self.handler_file(name, &path, more)
    }

    /// A handler from a file, at `/<name>/*`.
    pub fn handler_file(mut self, name: &str, component: &Path, more: &str) -> Self {
        let _ = writeln!(
            self.0,
            "[plugins.{name}]\ncomponent = {component:?}\n{more}\n\
             [[routes]]\npath = \"/{name}/*\"\nplugin = \"{name}\"\naccess = \"public\"\n"
        );
        self
    }

    /// The `auth` policy.
    pub fn auth(self, component: &str) -> Self {
        self.auth_with(component, "")
    }

    /// The same with more lines in its table.
    pub fn auth_with(mut self, component: &str, more: &str) -> Self {
        let component = guest(component);
        let _ = writeln!(
            self.0,
            "[plugins.auth]\ncomponent = {component:?}\npolicy = \"auth\"\n{more}\n"
        );
        self
    }

    /// The bundled `auth` policy with what it needs. Start it with a [`crate::store::Store`].
    pub fn accounts(self) -> Self {
        self.auth_with(
            "auth",
            "grants = { sql = [\"identity\"], passwords = true, sessions = true, log = true }",
        )
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Start a host with it.
    pub fn start(&self) -> Berth {
        Berth::start(self.text(), &[])
    }
}

/// A running host. Killed and waited for when dropped.
#[derive(Debug)]
pub struct Berth {
    child: Child,
    /// For callers.
    pub address: SocketAddr,
    /// For operators.
    pub admin: SocketAddr,
    log: PathBuf,
    folder: Arc<TempDir>,
}

impl Berth {
    /// Write a manifest, start a host with it and some more environment, and wait until it is ready.
    pub fn start(manifest: &str, environment: &[(&str, &str)]) -> Self {
        let folder = Arc::new(TempDir::new().expect("a temporary folder"));
        Self::start_at(command(), &folder, manifest, environment)
    }

    /// The same in a folder that is there, with what lies in it: components, or what a berth before it has left. Its log
    /// begins anew.
    pub fn start_at(
        program: Command,
        folder: &Arc<TempDir>,
        manifest: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let log = File::create(folder.path().join("log.jsonl")).expect("the log can be written");
        Self::start_in(program, Arc::clone(folder), manifest, environment, log.into())
    }

    /// The same after a shell command in the same process, as in `ulimit -n 100`.
    pub fn start_limited(manifest: &str, environment: &[(&str, &str)], limit: &str) -> Self {
        let berth = command();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("{limit} && exec \"$0\" \"$@\"")])
            .arg(berth.get_program());
        let folder = Arc::new(TempDir::new().expect("a temporary folder"));
        Self::start_at(shell, &folder, manifest, environment)
    }

    /// The same with a log that nobody ever reads: a pipe that fills up.
    pub fn start_unread(manifest: &str) -> Self {
        let folder = Arc::new(TempDir::new().expect("a temporary folder"));
        Self::start_in(command(), folder, manifest, &[], Stdio::piped())
    }

    fn start_in(
        mut program: Command,
        folder: Arc<TempDir>,
        manifest: &str,
        environment: &[(&str, &str)],
        errors: Stdio,
    ) -> Self {
        let config = folder.path().join("berth.toml");
        std::fs::write(&config, manifest).expect("the manifest can be written");
        let log = folder.path().join("log.jsonl");
        let mut child = program
            .args(["serve", "--log-format", "json", "--config"])
            .arg(&config)
            .env("BERTH_HTTP_LISTEN", "127.0.0.1:0")
            .env("BERTH_ADMIN_LISTEN", "127.0.0.1:0")
            // All tests call from one address. Those of the limits set them.
            .env("BERTH_IDENTITY_ADDRESS_RATE", "off")
            .env("BERTH_IDENTITY_ACCOUNT_RATE", "off")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .expect("berth starts");
        let mut lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        let mut line = |prefix: &str| -> String {
            let line = lines.next().and_then(Result::ok).unwrap_or_default();
            line.strip_prefix(prefix).map(str::to_owned).unwrap_or_else(|| {
                panic!(
                    "berth said {line:?} instead of {prefix:?}…; its log:\n{}",
                    std::fs::read_to_string(&log).unwrap_or_default()
                )
            })
        };
        let address = line("berth listens on http");
        let (_, address) = address.split_once("://").expect("a scheme");
        let address = address.parse().expect("an address");
        let admin = line("berth admin on http://").parse().expect("an address");
        line("ready in ");
        Self {
            child,
            address,
            admin,
            log,
            folder,
        }
    }

    /// `GET` from it.
    pub fn get(&self, path: &str) -> wire::Response {
        wire::get(self.address, path)
    }

    /// `POST` JSON to it.
    pub fn post(&self, path: &str, body: &str) -> wire::Response {
        wire::post_json(self.address, path, body)
    }

    /// Its folder, where the manifest is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file of its log.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The events logged so far.
    pub fn log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Wait for an event. The log has a thread of its own, so a line may come a moment after its answer.
    pub fn logged(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            if let Some(event) = self.log().into_iter().find(|e| matches(e)) {
                return event;
            }
            if started.elapsed() > PATIENCE {
                panic!(
                    "not logged: {what}; the log:\n{}",
                    std::fs::read_to_string(&self.log).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The request line of an id.
    pub fn request_line(&self, id: &str) -> Value {
        self.logged(&format!("the request {id}"), |e| {
            e["target"] == "berth::request" && e["id"] == id
        })
    }

    /// All metrics.
    pub fn metrics(&self) -> Vec<prometheus::Family> {
        let text = wire::get(self.admin, "/metrics").text();
        prometheus::parse(&text).unwrap_or_else(|fault| panic!("{fault} in:\n{text}"))
    }

    /// A value from the metrics: `metric("berth_plugin_traps_total", &["spin", "cpu"])`. Labels are given in their
    /// order, by value; over those that are left out, such as the version, it sums.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let families = self.metrics();
        let samples = families.iter().flat_map(|f| &f.samples);
        let matching: Vec<f64> = samples
            .filter(|s| s.name == name)
            .filter(|s| {
                let mut values = s.labels.iter().map(|(_, value)| value);
                labels.iter().all(|wanted| values.any(|value| value == wanted))
            })
            .map(|s| s.value)
            .collect();
        assert!(
            !matching.is_empty(),
            "no metric {name} with {labels:?} in {families:#?}"
        );
        matching.into_iter().sum()
    }

    /// Wait for a metric to become what is wanted.
    pub fn metric_becomes(&self, name: &str, labels: &[&str], wanted: impl Fn(f64) -> bool) -> f64 {
        let started = Instant::now();
        loop {
            let value = self.metric(name, labels);
            if wanted(value) {
                return value;
            }
            assert!(started.elapsed() < PATIENCE, "{name} {labels:?} stays at {value}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Send a signal by name, as in `TERM`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .expect("kill runs");
        assert!(sent.success(), "kill -s {name} {pid}");
    }

    /// Have it stop as a service manager would, and wait for its clean end.
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = self.wait();
        assert!(status.success(), "berth ended with {status}");
    }

    /// Wait for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "berth did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A host that must not start: what it says on standard error.
#[track_caller]
pub fn refused_start(manifest: &str, environment: &[(&str, &str)]) -> String {
    let mut all = vec![
        ("BERTH_HTTP_LISTEN", "127.0.0.1:0"),
        ("BERTH_ADMIN_LISTEN", "127.0.0.1:0"),
    ];
    all.extend(environment);
    let out = run(manifest, &["serve"], &all);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    said
}

/// Run `berth` with arguments in a folder with a manifest, to its end.
pub fn run(manifest: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let folder = TempDir::new().expect("a temporary folder");
    std::fs::write(folder.path().join("berth.toml"), manifest).expect("the manifest can be written");
    command()
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(folder.path())
        .output()
        .expect("berth runs")
}
