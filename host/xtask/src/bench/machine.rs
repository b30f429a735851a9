//! Where and when it was measured: the part of a result without which the rest means nothing.

use std::process::Command;

use super::json::Json;
use crate::commands;
use crate::workspace::Workspace;

/// Facts about the machine; `unknown` where one can't be read, because no fact is worth failing a bench for.
pub(super) struct Machine {
    pub(super) date: String,
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) kernel: String,
    /// Load over the last minute; ask before building, which is a load too.
    pub(super) load: String,
    pub(super) rustc: String,
    /// The wasmtime that berth embeds.
    pub(super) wasmtime: String,
    /// The wasmtime CLI, if one is measured.
    pub(super) wasmtime_cli: Option<String>,
}

impl Machine {
    pub(super) fn look(workspace: &Workspace) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let ask =
            |program: &str, argument: &[&str]| commands::output(Command::new(program).args(argument)).ok();
        let or_unknown = |fact: Option<String>| fact.unwrap_or_else(|| "unknown".to_owned());
        let lock = std::fs::read_to_string(workspace.root().join("Cargo.lock")).ok();
        Self {
            date: or_unknown(ask("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"])),
            cpu: or_unknown(read("/proc/cpuinfo").and_then(|text| cpu_model(&text))),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: or_unknown(read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned())),
            load: or_unknown(
                read("/proc/loadavg").and_then(|text| text.split(' ').next().map(str::to_owned)),
            ),
            rustc: or_unknown(ask("rustc", &["-V"])),
            wasmtime: or_unknown(lock.and_then(|text| locked_version(&text, "wasmtime"))),
            wasmtime_cli: None,
        }
    }
}

impl Machine {
    /// The first lines of a report: of which command, when, and where.
    pub(super) fn text(&self, command: &str) -> String {
        format!(
            "\nberth {command}, {}\n  machine      {}, {} cores, Linux {}, load {} before the start\n  \
             versions     {}; wasmtime {} in berth, CLI {}\n",
            self.date,
            self.cpu,
            self.cores,
            self.kernel,
            self.load,
            self.rustc,
            self.wasmtime,
            self.wasmtime_cli.as_deref().unwrap_or("not measured"),
        )
    }

    /// The same for a program.
    pub(super) fn json(&self) -> Json {
        Json::object([
            ("date", Json::text(&self.date)),
            ("cpu", Json::text(&self.cpu)),
            ("cores", Json::Number(self.cores as f64)),
            ("kernel", Json::text(&self.kernel)),
            ("load", Json::text(&self.load)),
            ("rustc", Json::text(&self.rustc)),
            ("wasmtime", Json::text(&self.wasmtime)),
            (
                "wasmtimeCli",
                self.wasmtime_cli.as_ref().map_or(Json::Null, Json::text),
            ),
        ])
    }
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim().to_owned())
}

/// The version of a package in a Cargo.lock.
fn locked_version(lock: &str, package: &str) -> Option<String> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    lines
        .nth(1)?
        .strip_prefix("version = \"")?
        .strip_suffix('"')
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_comes_from_the_lock_file() {
        let lock = "[[package]]\nname = \"wasmtime-wasi\"\nversion = \"1.0.0\"\n\n\
                    [[package]]\nname = \"wasmtime\"\nversion = \"48.0.8\"\n";
        assert_eq!(locked_version(lock, "wasmtime").as_deref(), Some("48.0.8"));
        assert_eq!(locked_version(lock, "wasm"), None);
    }

    #[test]
    fn cpu_model_is_the_first_ones() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel name\t: other\n";
        assert_eq!(cpu_model(cpuinfo).as_deref(), Some("AMD EPYC"));
        assert_eq!(cpu_model(""), None);
    }
}
