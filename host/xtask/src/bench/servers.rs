//! The servers under measurement: each a child process on a free loopback port, its output in a file.
//!
//! They all run at once and idle while another is measured. A [`Server`] owns its process: dropping it, on
//! success and on every error, ends the process and waits for it. On Ctrl-C the terminal tells them itself.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::cases::{self, Case, Serves};
use super::json::string_member;
use super::{Tools, database, manifest};
use crate::commands;
use crate::failure::{self, Failure};
use crate::workspace::{self, Workspace};

/// A server that compiles its components has this long to answer.
const START: Duration = Duration::from_secs(60);
/// A server that was asked to end has this long before it is killed; berth ends its own children in that time.
const END: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// All servers that the chosen cases need.
pub(super) struct Servers {
    running: Vec<Server>,
}

/// One running server.
pub(super) struct Server {
    kind: cases::Server,
    pub(super) name: &'static str,
    pub(super) command: String,
    address: SocketAddr,
    log: PathBuf,
    child: Child,
    /// Of the account that was made for the bench, where there is one.
    token: Option<String>,
}

impl Servers {
    /// Starts each server once and waits until all of them accept connections.
    pub(super) fn start(
        workspace: &Workspace,
        tools: &Tools,
        cases: &[&'static Case],
    ) -> Result<Self, Failure> {
        let mut kinds: Vec<cases::Server> = Vec::new();
        for case in cases {
            if !kinds.contains(&case.server) {
                kinds.push(case.server);
            }
        }
        let mut servers = Self { running: Vec::new() };
        // What asks another one's database comes after it, and needs it to be there.
        for kind in kinds.clone() {
            if let cases::Server::NativeSql(setup) = kind
                && !kinds.contains(&cases::Server::Berth(setup))
            {
                kinds.push(cases::Server::Berth(setup));
            }
        }
        kinds.sort_by_key(|kind| matches!(kind, cases::Server::NativeSql(_)));
        for (kind, address) in kinds.iter().zip(free_addresses(kinds.len())?) {
            let mut server = Server::start(workspace, tools, *kind, address)?;
            if matches!(kind, cases::Server::Berth(setup) if setup.serves == Serves::Accounts) {
                server.sign_up()?;
            }
            servers.running.push(server);
        }
        Ok(servers)
    }

    /// All is measured: ends the servers, and removes their logs, which have a line for every request and so gigabytes.
    pub(super) fn end(self) {
        let logs: Vec<PathBuf> = self.running.iter().map(|server| server.log.clone()).collect();
        drop(self);
        for log in logs {
            // It is in the target folder, which somebody may have cleaned.
            std::fs::remove_file(log).ok();
        }
    }

    /// Sends the case's request until it is answered rightly or the server's time is over.
    pub(super) fn check(&self, case: &Case) -> Result<(), Failure> {
        let server = self.of(case)?;
        server
            .until_answered(|| case.request.ask(server.address, server.token.as_deref()))
            .map_err(|fault| server.failure(case.key, &case.request.describe(), &fault))
    }

    /// Where a case's requests go, and with which token.
    pub(super) fn target(&self, case: &Case) -> Result<(SocketAddr, Option<&str>), Failure> {
        self.of(case)
            .map(|server| (server.address, server.token.as_deref()))
    }

    /// Where a case's server said that operators can ask it.
    pub(super) fn admin(&self, case: &Case) -> Result<SocketAddr, Failure> {
        let server = self.of(case)?;
        let said = std::fs::read_to_string(&server.log).unwrap_or_default();
        let address = said
            .lines()
            .find_map(|line| line.strip_prefix("berth admin on http://"));
        address.and_then(|address| address.parse().ok()).ok_or_else(|| {
            Failure::new(format!(
                "{} didn't say where its admin API is. Its log, {}, ends so:\n{}",
                server.name,
                workspace::short(&server.log).display(),
                last_lines(&server.log)
            ))
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Server> {
        self.running.iter()
    }

    fn of(&self, case: &Case) -> Result<&Server, Failure> {
        self.running
            .iter()
            .find(|server| server.kind == case.server)
            .ok_or_else(|| Failure::new(format!("No server was started for the case `{}`.", case.key)))
    }
}

impl Server {
    fn start(
        workspace: &Workspace,
        tools: &Tools,
        kind: cases::Server,
        address: SocketAddr,
    ) -> Result<Self, Failure> {
        let name = kind.name();
        let mut command = command(workspace, tools, kind, address)?;
        let log = tools.folder.join(format!("{name}.log"));
        let context = || format!("The log {} could not be made", workspace::short(&log).display());
        let advice = "Check the permissions of the target folder.";
        let stdout = File::create(&log).map_err(failure::io(context(), advice))?;
        let stderr = stdout.try_clone().map_err(failure::io(context(), advice))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .map_err(failure::io(
                format!("`{}` could not be started", commands::show(&command)),
                "Check that the program is there and executable.",
            ))?;
        Ok(Self {
            kind,
            name,
            command: commands::show(&command),
            address,
            log,
            child,
            token: None,
        })
    }

    /// Makes the account that the cases use.
    fn sign_up(&mut self) -> Result<(), Failure> {
        let register = cases::REGISTER;
        let answer = self
            .until_answered(|| register.exchange(self.address, None))
            .map_err(|fault| self.failure("me", &register.describe(), &fault))?;
        let token = string_member(&answer, "accessToken").ok_or_else(|| {
            self.failure(
                "me",
                &register.describe(),
                &format!("answered without a token: {answer}"),
            )
        })?;
        self.token = Some(token.to_owned());
        let login = cases::REGISTER_LOGIN;
        login
            .exchange(self.address, None)
            .map_err(|fault| self.failure("login", &login.describe(), &fault))?;
        let fill = cases::FILL;
        fill.ask(self.address, None)
            .map_err(|fault| self.failure("sql", &fill.describe(), &fault))
    }

    /// Asks until there is an answer, right or wrong: only a server that isn't there yet is worth waiting for.
    fn until_answered<T>(&self, ask: impl Fn() -> Result<T, String>) -> Result<T, String> {
        let deadline = Instant::now() + START;
        loop {
            match ask() {
                Err(fault)
                    if fault.starts_with("did not answer")
                        && !self.has_ended()
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(PAUSE);
                }
                answered => return answered,
            }
        }
    }

    fn failure(&self, case: &str, request: &str, fault: &str) -> Failure {
        Failure::new(format!(
            "The case `{case}` can't be measured: {} was asked for `{request}` and {fault}. It was started as `{}`; \
             its log, {}, ends so:\n{}",
            self.name,
            self.command,
            workspace::short(&self.log).display(),
            last_lines(&self.log)
        ))
    }

    /// Whether the process is gone (a zombie until we wait for it), without the `&mut` that asking `child` takes.
    fn has_ended(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).map_or(true, |stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('Z') || rest.starts_with('X'))
        })
    }
}

impl Drop for Server {
    /// SIGTERM first: std can only kill outright, and a killed berth could not end its own children.
    fn drop(&mut self) {
        let asked = Command::new("sh")
            .args(["-c", "kill -TERM \"$0\"", &self.child.id().to_string()])
            .status();
        let deadline = Instant::now() + END;
        while asked.is_ok() && Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn command(
    workspace: &Workspace,
    tools: &Tools,
    kind: cases::Server,
    address: SocketAddr,
) -> Result<Command, Failure> {
    match kind {
        cases::Server::PlainHyper => {
            let mut hyper = commands::clean(workspace::program(&workspace.binary("release", "plain-hyper")));
            hyper.arg(address.to_string());
            Ok(hyper)
        }
        cases::Server::NativeSql(setup) => {
            let mut hyper = commands::clean(workspace::program(&workspace.binary("release", "plain-hyper")));
            hyper.arg(address.to_string()).env(
                "PLAIN_HYPER_DATABASE",
                database::url(&database::folder(tools, setup))?,
            );
            Ok(hyper)
        }
        cases::Server::Berth(setup) => {
            let file = tools.folder.join(format!("{}.toml", setup.name));
            let components = workspace.components();
            let text = match setup.serves {
                Serves::Plain => manifest::manifest(address, &components, setup),
                Serves::Accounts => {
                    let data = database::fresh_folder(tools, setup)?;
                    manifest::with_accounts(address, &components, &data)
                }
                Serves::Swapped => {
                    let data = database::fresh_folder(tools, setup)?;
                    manifest::swapped(address, &components, &data, setup)
                }
            };
            std::fs::write(&file, text).map_err(failure::io(
                format!(
                    "The manifest {} could not be written",
                    workspace::short(&file).display()
                ),
                "Check the permissions of the target folder.",
            ))?;
            let mut berth = commands::clean(workspace::program(&workspace.binary("release", "berth")));
            berth.args(["serve", "--config"]).arg(workspace::short(&file));
            Ok(berth)
        }
        cases::Server::WasmtimeServe(cli) => {
            let wasmtime = tools.wasmtime.as_ref().ok_or_else(|| {
                Failure::new(format!(
                    "The case `{}` needs a wasmtime CLI. Leave out --no-wasmtime.",
                    cli.name
                ))
            })?;
            let mut serve = commands::clean(workspace::program(wasmtime));
            serve
                .arg("serve")
                .args(cli.arguments)
                .arg("--addr")
                .arg(address.to_string());
            serve.arg(workspace::short(
                &workspace.components().join(format!("{}.wasm", cli.component)),
            ));
            Ok(serve)
        }
    }
}

/// Addresses that are free now. They are held together, so that none comes twice, and let go just before the
/// servers take them.
fn free_addresses(count: usize) -> Result<Vec<SocketAddr>, Failure> {
    let hold = || -> std::io::Result<Vec<SocketAddr>> {
        let held: Vec<TcpListener> = (0..count)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<std::io::Result<_>>()?;
        held.iter().map(TcpListener::local_addr).collect()
    };
    hold().map_err(failure::io(
        "No free port was found on 127.0.0.1",
        "Check that loopback networking works here.",
    ))
}

fn last_lines(log: &Path) -> String {
    const LINES: usize = 15;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last: Vec<&str> = lines
        .iter()
        .skip(lines.len().saturating_sub(LINES))
        .copied()
        .collect();
    if last.is_empty() {
        "  (it is empty)".to_owned()
    } else {
        format!("  {}", last.join("\n  "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_distinct() {
        let addresses = free_addresses(4).unwrap_or_default();
        assert_eq!(addresses.len(), 4);
        let distinct: std::collections::BTreeSet<_> = addresses.iter().collect();
        assert_eq!(distinct.len(), 4);
    }
}
