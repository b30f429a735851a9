//! `berth check` and `berth routes`: everything that can be said of a manifest without serving it.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use berth_host::config::{self, ManifestFault};
use berth_host::files::Files;
use berth_host::runtime::engine::Runtime;
use berth_host::runtime::plugin::{LoadFault, Version, load};
use berth_host::state::{HostSpec, route_table};
use serde_json::json;

use crate::args::ReadArgs;
use crate::{EXIT_FAILED, EXIT_FAULTY};

/// Print the faults of a manifest, and give the exit code for them.
pub(crate) fn refuse(file: &Path, faults: &[ManifestFault]) -> ExitCode {
    for fault in faults {
        eprintln!("{fault}");
    }
    eprintln!("berth: {} in {}", count(faults.len(), "fault"), file.display());
    ExitCode::from(EXIT_FAULTY)
}

pub(crate) fn check(args: &ReadArgs) -> ExitCode {
    let spec = match read(args) {
        Ok(spec) => spec,
        Err(faults) if args.json => {
            return print(
                &json!({ "ok": false, "manifest": faults, "plugins": [] }),
                EXIT_FAULTY,
            );
        }
        Err(faults) => return refuse(&args.config, &faults),
    };
    if let Err(error) = Files::load(&spec) {
        let fault = ManifestFault {
            file: args.config.clone(),
            line: None,
            column: None,
            key: error.key().to_owned(),
            message: error.to_string(),
        };
        if args.json {
            return print(
                &json!({ "ok": false, "manifest": [fault], "plugins": [] }),
                EXIT_FAULTY,
            );
        }
        return refuse(&args.config, &[fault]);
    }
    let runtime = match Runtime::new(spec.runtime_settings(1)) {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("berth: the Wasm engine can't start: {error:#}");
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let checked: Vec<(&str, Result<Version, LoadFault>)> = spec
        .plugins
        .iter()
        .map(|plugin| (plugin.name.as_str(), load(&runtime, plugin)))
        .collect();
    let faulty = checked.iter().filter(|(_, result)| result.is_err()).count();
    let code = if faulty == 0 { 0 } else { EXIT_FAULTY };
    if args.json {
        let plugins: Vec<_> = checked
            .iter()
            .map(|(name, result)| match result {
                Ok(version) => {
                    json!({ "name": name, "ok": true, "kind": version.pre.kind(), "version": version.digest })
                }
                Err(fault) => {
                    json!({ "name": name, "ok": false, "code": fault.code(), "message": fault.to_string() })
                }
            })
            .collect();
        return print(
            &json!({ "ok": faulty == 0, "manifest": [], "plugins": plugins }),
            code,
        );
    }
    let mut out = String::new();
    for (name, result) in &checked {
        out.push_str(&match result {
            Ok(version) => format!(
                "ok      {name}: {}, version {}\n",
                version.pre.kind(),
                version.digest
            ),
            Err(fault) => format!("faulty  {name}: {fault}\n"),
        });
    }
    let (plugins, routes) = (
        count(spec.plugins.len(), "plugin"),
        count(route_table(&spec).len(), "route"),
    );
    out.push_str(&format!(
        "{}: {plugins}, {routes}, {}\n",
        args.config.display(),
        count(faulty, "fault")
    ));
    write(&out, code)
}

pub(crate) fn routes(args: &ReadArgs) -> ExitCode {
    let spec = match read(args) {
        Ok(spec) => spec,
        Err(faults) => return refuse(&args.config, &faults),
    };
    let rows = route_table(&spec);
    if args.json {
        return print(&json!(rows), 0);
    }
    let mut out = format!(
        "{:<8} {:<34} {:<12} {}\n",
        "METHODS", "PATH", "SERVED BY", "ACCESS"
    );
    for row in rows {
        out.push_str(&format!(
            "{:<8} {:<34} {:<12} {}\n",
            row.methods, row.path, row.served_by, row.access
        ));
    }
    write(&out, 0)
}

fn read(args: &ReadArgs) -> Result<HostSpec, Vec<ManifestFault>> {
    config::load(&args.config, &|name| std::env::var(name).ok())
}

fn print(value: &serde_json::Value, code: u8) -> ExitCode {
    write(&format!("{value:#}\n"), code)
}

/// A reader that has seen enough (`berth routes | head`) is no failure.
pub(crate) fn write(text: &str, code: u8) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::from(code),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(code),
        Err(error) => {
            eprintln!("berth: standard output: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn count(n: usize, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}
