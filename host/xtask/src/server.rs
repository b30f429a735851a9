//! A throw-away Postgres for the tests: TCP with TLS on a free port, a certificate of its own authority, and a login that
//! may make databases and logins and is no superuser, as a hosted Postgres gives it. Nothing it keeps is meant to last, so
//! it writes nothing down for sure.
//!
//! A shell in a process group of its own runs it and waits for the end of its standard input, which is a pipe from us. So
//! the server stops and its folder goes however we end: by a return, Ctrl-C, or `kill -9`.

use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::account::Account;
use crate::commands;
use crate::failure::{self, Failure};
use crate::say;
use crate::workspace::Workspace;

/// The login of the tests.
const LOGIN: &str = "berth_tests";
/// How long the server may take to be ready.
const READY: Duration = Duration::from_secs(60);
const ADVICE: &str = "Check the free space and the permissions of that folder.";

/// `$0` is the folder; the rest is the server's command line. Signals that come before a program handles them are lost, so
/// it is told until it has ended, after which it stays a zombie until it is waited for.
const RUN: &str = "\
\"$@\" >\"$0/log\" 2>&1 &
cat >/dev/null
while kill -INT $! 2>/dev/null && ! grep -q '^State:.Z' /proc/$!/status; do sleep 0.05; done
wait $!
rm -rf \"$0\"
";

/// What the certificates are made from; see req(1ssl).
const CERTIFICATES: &str = "\
[req]
distinguished_name = name
x509_extensions = authority
prompt = no
[name]
CN = Postgres of berth's tests
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[server]
subjectAltName = DNS:localhost, IP:127.0.0.1
extendedKeyUsage = serverAuth
";

/// Only TLS, only with the password; 127.0.0.2 is a name that the certificate doesn't have.
const CLIENTS: &str = "hostssl all all 127.0.0.0/8 scram-sha-256\n";

/// A running server. It stops when this is dropped.
pub(crate) struct Server {
    shell: Child,
    url: String,
}

impl Server {
    /// Make and start one with the programs in `programs`.
    pub(crate) fn start(workspace: &Workspace, programs: &Path) -> Result<Self, Failure> {
        let start = Instant::now();
        let account = Account::postgres();
        let folder = make_folder(workspace, account)?;
        let started = Self::start_in(&folder, programs, account);
        if started.is_err() {
            // The shell removes it when there is one.
            std::fs::remove_dir_all(&folder).ok();
        }
        let server = started?;
        say::done(
            "postgres",
            &format!("a server for the tests runs in {}", folder.display()),
            start,
        );
        Ok(server)
    }

    /// The address of the tests' login.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    fn start_in(folder: &Path, programs: &Path, account: Option<Account>) -> Result<Self, Failure> {
        let run = |command: &mut Command| {
            command.current_dir(folder);
            if let Some(account) = account {
                account.apply(command);
            }
            commands::output(command)
        };
        let password = random()?;
        let data = folder.join("data");
        write(&folder.join("superuser"), &random()?, account)?;
        write(&folder.join("certificates"), CERTIFICATES, account)?;
        make_certificates(&run)?;
        let mut initdb = commands::clean(programs.join("initdb"));
        initdb
            .arg("--pgdata")
            .arg(&data)
            .args(["--username", "superuser", "--pwfile", "superuser"]);
        initdb.args([
            "--encoding",
            "UTF8",
            "--locale",
            "C",
            "--auth",
            "scram-sha-256",
            "--no-sync",
        ]);
        run(&mut initdb)?;
        write(&data.join("pg_hba.conf"), CLIENTS, account)?;
        // Before anybody can connect, and without a superuser's connection: Postgres' own single-user mode.
        let statement = format!("create role {LOGIN} login createrole createdb password '{password}'\n");
        write(&folder.join("login.sql"), &statement, account)?;
        let mut single = commands::clean("sh");
        single
            .args(["-c", "\"$0\" --single -D data postgres <login.sql"])
            .arg(programs.join("postgres"));
        run(&mut single)?;

        let port = free_port()?;
        let mut shell = commands::clean("sh");
        shell
            .args(["-c", RUN])
            .arg(folder)
            .arg(programs.join("postgres"))
            .arg("-D")
            .arg(&data);
        for setting in [
            &format!("port={port}") as &str,
            "listen_addresses=127.0.0.1,127.0.0.2",
            "unix_socket_directories=",
            "ssl=on",
            "ssl_cert_file=../server.crt",
            "ssl_key_file=../server.key",
            "max_connections=500",
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
        ] {
            shell.args(["-c", setting]);
        }
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .current_dir("/");
        if let Some(account) = account {
            account.apply(&mut shell);
        }
        let shell = shell.spawn().map_err(failure::io(
            "`sh` could not be started",
            "Check that it is there.",
        ))?;
        let authority = encoded(&folder.join("ca.crt"));
        let server = Self {
            shell,
            url: format!(
                "postgres://{LOGIN}:{password}@127.0.0.1:{port}/postgres?sslmode=verify-full&sslrootcert={authority}"
            ),
        };
        wait_until_ready(&data, &folder.join("log"))?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its input; it can't be waited for in vain, as the server's fast stop ends every session.
        drop(self.shell.stdin.take());
        self.shell.wait().ok();
    }
}

/// In the target folder if the server's user gets there, else where everybody does.
fn make_folder(workspace: &Workspace, account: Option<Account>) -> Result<PathBuf, Failure> {
    let target = workspace.target();
    let in_target = account.is_none_or(|account| account.reaches(target));
    let base = if in_target {
        target.to_path_buf()
    } else {
        std::env::temp_dir()
    };
    let base = base.join("berth-test-postgres");
    sweep(&base);
    let folder = base.join(std::process::id().to_string());
    let made = std::fs::create_dir_all(&folder).and_then(|()| match account {
        Some(account) => account.give(&base).and_then(|()| account.give(&folder)),
        None => Ok(()),
    });
    made.map_err(failure::io(
        format!("The folder {} could not be made", folder.display()),
        ADVICE,
    ))?;
    Ok(folder)
}

/// Remove what runs have left that were killed before there was a shell to do it: the folders are named for their process.
fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
    {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let served = std::fs::exists(entry.path().join("log")).unwrap_or(true);
        if !served && !Path::new("/proc").join(pid).exists() {
            // Whatever can't be removed is in nobody's way.
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// An authority, and the server's certificate by it, in the folder that `run` runs in.
fn make_certificates(run: &impl Fn(&mut Command) -> Result<String, Failure>) -> Result<(), Failure> {
    const KEY: [&str; 5] = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ];
    let openssl = |arguments: &[&str]| {
        let mut openssl = commands::clean("openssl");
        openssl.args(arguments);
        openssl
    };
    let mut authority = openssl(&["req", "-x509", "-config", "certificates", "-days", "7"]);
    run(authority.args(KEY).args(["-keyout", "ca.key", "-out", "ca.crt"]))?;
    let mut request = openssl(&["req", "-new", "-config", "certificates"]);
    run(request
        .args(KEY)
        .args(["-keyout", "server.key", "-out", "server.csr"]))?;
    run(&mut openssl(&[
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "7",
        "-extfile",
        "certificates",
        "-extensions",
        "server",
        "-out",
        "server.crt",
    ]))?;
    // Postgres refuses a key that others may read.
    run(commands::clean("chmod").args(["600", "server.key"]))?;
    Ok(())
}

/// The last line of the server's own file says so.
fn wait_until_ready(data: &Path, log: &Path) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        let state = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
        if state.lines().any(|line| line.trim() == "ready") {
            return Ok(());
        }
        let said = std::fs::read_to_string(log).unwrap_or_default();
        if start.elapsed() > READY || said.contains("FATAL:") {
            return Err(Failure::new(format!(
                "The Postgres for the tests does not start. Its log:\n{}",
                said.trim()
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn write(file: &Path, text: &str, account: Option<Account>) -> Result<(), Failure> {
    let written =
        std::fs::write(file, text).and_then(|()| account.map_or(Ok(()), |account| account.give(file)));
    written.map_err(failure::io(
        format!("{} could not be written", file.display()),
        ADVICE,
    ))
}

fn free_port() -> Result<u16, Failure> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(failure::io(
            "There is no free port on 127.0.0.1",
            "End what listens there.",
        ))
}

fn random() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(failure::io(
            "/dev/urandom can't be read",
            "Check that it is there.",
        ))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A path as a parameter of an address.
fn encoded(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.to_string_lossy().bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => text.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => text.push(char::from(byte)),
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_encoded_for_an_address() {
        assert_eq!(encoded(Path::new("/a b/c&d=é.crt")), "/a%20b/c%26d%3D%C3%A9.crt");
    }

    #[test]
    fn shell_ends_its_program_with_its_input_and_removes_the_folder() {
        let folder = std::env::temp_dir().join(format!("berth-xtask-shell-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut shell = Command::new("sh")
            .args(["-c", RUN])
            .arg(&folder)
            // What runs in a shell's background ignores SIGINT unless it handles it itself, as Postgres does.
            .args(["env", "--default-signal=INT", "sleep", "600"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        while !folder.join("log").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(shell.stdin.take());
        assert!(shell.wait().unwrap().success());
        assert!(!folder.exists());
    }
}
