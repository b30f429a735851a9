//! `berth check` and `berth routes`: everything that can be said of a manifest without serving it.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use berth_host::config::{self, Environment, ManifestFault};
use berth_host::files::Files;
use berth_host::runtime::engine::Runtime;
use berth_host::runtime::load::inspect;
use berth_host::state::HostSpec;
use berth_host::table::route_table;
use serde_json::json;

use crate::args::{CheckArgs, ReadArgs};
use crate::inspected::Inspected;
use crate::{EXIT_FAILED, EXIT_FAULTY};

/// The manifest of a running host, to find it by. It may have faults: the host serves what it was before.
pub(crate) fn host_of(file: &Path) -> Result<HostSpec, ExitCode> {
    match config::load_anyway(file, &Environment::of_process()) {
        Ok((spec, faults)) if faults.is_empty() => Ok(spec),
        // It can't be found by what is faulty itself.
        Ok((_, faults))
            if faults
                .iter()
                .any(|it| it.key.starts_with("admin") || it.key.starts_with("data")) =>
        {
            Err(refuse(file, &faults))
        }
        Ok((spec, faults)) => {
            let them = if faults.len() == 1 { "a fault" } else { "faults" };
            eprintln!(
                "berth: {} has {them} (`berth check` tells them); going by its admin address and data folder all the same",
                file.display()
            );
            Ok(spec)
        }
        Err(faults) => Err(refuse(file, &faults)),
    }
}

/// Print the faults of a manifest, and give the exit code for them.
pub(crate) fn refuse(file: &Path, faults: &[ManifestFault]) -> ExitCode {
    for fault in faults {
        eprintln!("{fault}");
    }
    eprintln!("berth: {} in {}", count(faults.len(), "fault"), file.display());
    ExitCode::from(EXIT_FAULTY)
}

pub(crate) fn check(args: &CheckArgs) -> ExitCode {
    match &args.component {
        // A manifest in the component's place is what somebody tries who forgets `--config`.
        Some(file) if file.extension().is_some_and(|e| e == "toml") => manifest(file, args.json),
        Some(file) => component(file, args),
        None => manifest(&args.config, args.json),
    }
}

/// Everything about a manifest and its components.
fn manifest(file: &Path, json: bool) -> ExitCode {
    let refuse = |faults: &[ManifestFault]| {
        if json {
            print(
                &json!({ "ok": false, "manifest": faults, "plugins": [] }),
                EXIT_FAULTY,
            )
        } else {
            refuse(file, faults)
        }
    };
    let spec = match read(file) {
        Ok(spec) => spec,
        Err(faults) => return refuse(&faults),
    };
    if let Err(error) = Files::load(&spec).and_then(|_| Files::look(&spec)) {
        return refuse(&[ManifestFault {
            file: file.to_owned(),
            line: None,
            column: None,
            key: error.key().to_owned(),
            message: error.to_string(),
        }]);
    }
    let plugins = match inspect_all(&spec, false) {
        Ok(plugins) => plugins,
        Err(code) => return code,
    };
    let (plugin_count, routes) = (
        count(spec.plugins.len(), "plugin"),
        count(route_table(&spec).len(), "route"),
    );
    conclude(
        &plugins,
        json,
        &format!("{}: {plugin_count}, {routes}, ", file.display()),
    )
}

/// Everything about one component without a manifest: it gets what it imports, and is what it exports.
fn component(file: &Path, args: &CheckArgs) -> ExitCode {
    let policy = args.policy.as_deref().map(|p| format!("policy = \"{p}\"\n"));
    let text = format!(
        "[plugins.component]\ncomponent = \"-\"\n{}",
        policy.unwrap_or_default()
    );
    let mut spec = match config::parse(file, &text, &Environment::of_process()) {
        Ok(spec) => spec,
        Err(faults) => return refuse(file, &faults),
    };
    for plugin in &mut spec.plugins {
        plugin.component = file.to_owned();
        plugin.name = file
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    }
    match inspect_all(&spec, true) {
        Ok(plugins) => conclude(&plugins, args.json, &format!("{}: ", file.display())),
        Err(code) => code,
    }
}

fn inspect_all(spec: &HostSpec, bare: bool) -> Result<Vec<Inspected>, ExitCode> {
    let runtime = Runtime::new(spec.runtime_settings(1)).map_err(|error| {
        eprintln!("berth: the Wasm engine can't start: {error:#}");
        ExitCode::from(EXIT_FAILED)
    })?;
    let inspected = spec
        .plugins
        .iter()
        .map(|plugin| Inspected::new(&plugin.name, inspect(&runtime, plugin, bare), bare));
    Ok(inspected.collect())
}

/// Print what was found; `summary` is how the last line begins.
fn conclude(plugins: &[Inspected], json: bool, summary: &str) -> ExitCode {
    let faulty = plugins.iter().filter(|p| !p.ok).count();
    let code = if faulty == 0 { 0 } else { EXIT_FAULTY };
    if json {
        return print(
            &json!({ "ok": faulty == 0, "manifest": [], "plugins": plugins }),
            code,
        );
    }
    let mut out: String = plugins.iter().map(Inspected::text).collect();
    let warnings: usize = plugins.iter().map(Inspected::warnings).sum();
    out.push_str(summary);
    if warnings > 0 {
        out.push_str(&format!("{}, ", count(warnings, "warning")));
    }
    out.push_str(&format!("{}\n", count(faulty, "fault")));
    write(&out, code)
}

pub(crate) fn routes(args: &ReadArgs) -> ExitCode {
    let spec = match read(&args.config) {
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

fn read(file: &Path) -> Result<HostSpec, Vec<ManifestFault>> {
    config::load(file, &Environment::of_process())
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

pub(crate) fn count(n: usize, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}
