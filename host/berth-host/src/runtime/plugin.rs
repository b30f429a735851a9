//! From a file to something that can be instantiated, or a sentence that says why not.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tracing::level_filters::LevelFilter;
use wasmtime::component::{Component, InstancePre};
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi_http::handler::ProxyPre;

use super::concurrent::Workers;
use super::engine::Runtime;
use super::instance::Ctx;
pub use super::load_fault::LoadFault;
use super::load_fault::{memory_limit, one_line};
use super::reuse::{Reuse, Shelf};
use super::streak::Streak;
use super::{folders, link};
use crate::admit::Slots;
use crate::caps::outgoing::Client;
use crate::caps::settings::Settings;
use crate::caps::sql;
use crate::contract::{self, Fault, FaultKind, Faults, Kind, Report};
use crate::dispatch::auth::bindings::AuthPolicyPre;
use crate::grants::{Capability, Grants};
use crate::metrics::{PluginMetrics, VersionMetrics};
use crate::services::Services;

/// The largest component file, in bytes. A Python component has about 40 MiB.
pub const MAX_COMPONENT: u64 = 256 * 1024 * 1024;

/// The unit of memories, in bytes.
const WASM_PAGE: u64 = 64 * 1024;

/// Which policy a plugin is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `berth:policy/auth`.
    Auth,
}

impl Policy {
    /// Every policy.
    pub const ALL: [Self; 1] = [Self::Auth];

    /// The value of `policy = "…"`, which is the WIT interface's name.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Auth => "auth",
        }
    }

    /// The export that makes a component this policy.
    pub const fn export(self) -> &'static str {
        match self {
            Self::Auth => "berth:policy/auth@0.1.0",
        }
    }
}

/// The limits of one plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PluginLimits {
    /// Linear memory of one instance, in bytes.
    pub memory: usize,
    /// Guest CPU time of one request.
    pub cpu: Duration,
    /// From the start of the call to the response head.
    pub wall: Duration,
    /// Requests that run at once; four times as many may wait.
    pub concurrency: u32,
}

/// What the manifest says of a plugin.
#[derive(Clone, Debug)]
pub struct PluginSpec {
    /// Its name.
    pub name: String,
    /// Where its component is.
    pub component: PathBuf,
    /// Which policy it is; a plain HTTP handler if none.
    pub policy: Option<Policy>,
    /// What it may import.
    pub grants: Grants,
    /// What it may use.
    pub limits: PluginLimits,
    /// Whether its instances serve more than one request.
    pub reuse: Reuse,
    /// Its plain settings.
    pub settings: Settings,
    /// The most talkative level at which its guest is heard.
    pub log: LevelFilter,
}

/// A plugin by its name: what stays the same when its component changes.
pub struct Plugin {
    /// Its name, as in the manifest and in every log line.
    pub name: String,
    /// Its limits.
    pub limits: PluginLimits,
    /// Whether its instances serve more than one request.
    pub reuse: Reuse,
    /// What it may use.
    pub grants: Grants,
    /// Its settings.
    pub settings: Settings,
    /// Keys, database, identity store, for its host functions.
    pub services: Arc<Services>,
    /// Its connections to Postgres; nothing unless it may have any.
    pub sql: Option<Arc<sql::Pool>>,
    /// What calls other hosts for it; nothing unless it may call any.
    pub outgoing: Option<Client>,
    /// The most talkative level at which its guest is heard.
    pub log: LevelFilter,
    /// Its share of the host's concurrency.
    pub slots: Slots,
    /// What is counted of it whatever its version.
    pub metrics: PluginMetrics,
    /// What is served; or why nothing is.
    pub current: Result<Arc<Version>, LoadFault>,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// One component of a plugin, compiled and linked.
pub struct Version {
    /// The first 12 hexadecimal digits of the file's SHA-256.
    pub digest: String,
    /// What to instantiate.
    pub pre: Pre,
    /// How long compiling and linking took.
    pub took: Duration,
    /// The folders that it may see, open; nothing unless some are granted.
    pub folders: Option<WasiFilesystemCtx>,
    /// Its instances that wait for their next request.
    pub shelf: Shelf,
    /// Its instances that serve several requests at once.
    pub workers: Workers,
    /// Its failures in a row.
    pub streak: Streak,
    /// Of an `auth` policy, those of `authenticate` alone: what else fails must not lock anybody out.
    pub callers: Streak,
    /// What is counted of it.
    pub metrics: VersionMetrics,
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Version")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// A component that is ready to be instantiated, by what it is.
pub enum Pre {
    /// An `auth` policy.
    Auth(AuthPolicyPre<Ctx>),
    /// A `wasi:http` handler, 0.2 or 0.3.
    Http(ProxyPre<Ctx>),
}

impl Pre {
    /// Its machine code and what belongs to it, in bytes.
    pub fn code_bytes(&self) -> usize {
        let component = match self {
            Self::Auth(pre) => pre.instance_pre().component(),
            Self::Http(ProxyPre::P2(pre)) => pre.instance_pre().component(),
            Self::Http(ProxyPre::P3(pre)) => pre.instance_pre().component(),
        };
        let image = component.image_range();
        (image.end as usize).saturating_sub(image.start as usize)
    }

    /// For people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Auth(_) => "auth policy",
            Self::Http(ProxyPre::P2(_)) => "wasi:http 0.2 handler",
            Self::Http(ProxyPre::P3(_)) => "wasi:http 0.3 handler (experimental)",
        }
    }
}

/// Read, check, compile and link a plugin's component. Takes the thread for as long as it takes: 50 to 180 ms for a
/// Rust component.
///
/// # Errors
/// Everything that [`LoadFault`] names.
pub fn load(runtime: &Runtime, spec: &PluginSpec) -> Result<Version, LoadFault> {
    let started = Instant::now();
    let compiled = compile(runtime, spec)?;
    finish(runtime, spec, &compiled, started)
}

/// All that can be said of a plugin's component.
#[derive(Debug)]
pub struct Inspection {
    /// What [`load`] gives.
    pub loaded: Result<Version, LoadFault>,
    /// What it is made of; nothing if it doesn't compile.
    pub report: Option<Report>,
}

/// The same as [`load`], with a report. `bare` is for a component without a manifest: it is whatever policy it
/// exports unless `spec` names one, and gets what it imports.
pub fn inspect(runtime: &Runtime, spec: &PluginSpec, bare: bool) -> Inspection {
    let started = Instant::now();
    let compiled = match compile(runtime, spec) {
        Ok(compiled) => compiled,
        Err(fault) => {
            return Inspection {
                loaded: Err(fault),
                report: None,
            };
        }
    };
    let report = contract::report(&compiled.bytes, (!bare).then_some(&spec.grants));
    let loaded = if bare {
        let spec = PluginSpec {
            policy: spec.policy.or_else(|| contract::policy_of(&report.exports)),
            grants: Grants::new(Capability::ALL.to_vec()),
            ..spec.clone()
        };
        finish(runtime, &spec, &compiled, started)
    } else {
        finish(runtime, spec, &compiled, started)
    };
    Inspection {
        loaded,
        report: Some(report),
    }
}

struct Compiled {
    bytes: Vec<u8>,
    digest: String,
    component: Component,
}

fn compile(runtime: &Runtime, spec: &PluginSpec) -> Result<Compiled, LoadFault> {
    let bytes = read(&spec.component)?;
    sniff(&bytes)?;
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .take(6)
        .map(|b| format!("{b:02x}"))
        .collect();
    let component =
        Component::from_binary(&runtime.engine, &bytes).map_err(|e| LoadFault::of_compiling(&e))?;
    // The pools are made for the largest limit of all plugins; this one may have a smaller one.
    let largest = component
        .resources_required()
        .and_then(|r| r.max_initial_memory_size)
        .map_or(0, |pages| pages.saturating_mul(WASM_PAGE));
    if largest > spec.limits.memory as u64 {
        return Err(LoadFault::Oversized(memory_limit(
            largest,
            spec.limits.memory as u64,
        )));
    }
    Ok(Compiled {
        bytes,
        digest,
        component,
    })
}

fn finish(
    runtime: &Runtime,
    spec: &PluginSpec,
    compiled: &Compiled,
    started: Instant,
) -> Result<Version, LoadFault> {
    let pre = prepare(runtime, spec, compiled)?;
    let folders = folders::open(spec.grants.folders())?;
    Ok(Version {
        digest: compiled.digest.clone(),
        pre,
        folders,
        took: started.elapsed(),
        shelf: Shelf::default(),
        workers: Workers::default(),
        streak: Streak::default(),
        callers: Streak::default(),
        metrics: VersionMetrics::default(),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, LoadFault> {
    let unreadable = |e: std::io::Error| LoadFault::Unreadable {
        path: path.to_owned(),
        reason: match e.kind() {
            std::io::ErrorKind::NotFound => {
                "there is no such file; build the component, or correct `component`".to_owned()
            }
            _ => e.to_string(),
        },
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_COMPONENT {
        return Err(LoadFault::TooLarge { size });
    }
    std::fs::read(path).map_err(unreadable)
}

/// The preamble (component model binary format): magic, then version and layer. Layer 0 is a core module.
fn sniff(bytes: &[u8]) -> Result<(), LoadFault> {
    match bytes {
        [b'\0', b'a', b's', b'm', _, _, 0, 0, ..] => Err(if contract::is_preview1(bytes) {
            LoadFault::Preview1
        } else {
            LoadFault::CoreModule
        }),
        [b'\0', b'a', b's', b'm', ..] => Ok(()),
        _ => {
            let begins = bytes.get(..bytes.len().min(8)).unwrap_or_default();
            Err(LoadFault::NotWasm {
                begins: String::from_utf8_lossy(begins).into_owned(),
            })
        }
    }
}

fn prepare(runtime: &Runtime, spec: &PluginSpec, compiled: &Compiled) -> Result<Pre, LoadFault> {
    let ty = compiled.component.component_type();
    let exports: Vec<String> = ty
        .exports(&runtime.engine)
        .map(|(name, _)| name.to_owned())
        .collect();
    let imports: Vec<String> = ty
        .imports(&runtime.engine)
        .map(|(name, _)| name.to_owned())
        .collect();
    let unfit = |otherwise: Vec<Fault>| {
        // A component that the decoder has no words for is told by its names and in wasmtime's words.
        let explained = contract::explain(&compiled.bytes, spec.policy, &spec.grants).unwrap_or_default();
        LoadFault::Unfit(Faults::new(explained, otherwise))
    };
    let kind = contract::classify(spec.policy, &exports).map_err(|fault| unfit(vec![*fault]))?;
    let missing = spec.grants.missing(imports.iter().map(String::as_str));
    if !missing.is_empty() {
        let faults = missing
            .iter()
            .map(|m| Fault::new(FaultKind::NotGranted, m.to_string()));
        return Err(unfit(faults.collect()));
    }
    concurrent(spec, kind, &imports)?;
    linked(runtime, spec, kind, &compiled.component).map_err(|error| {
        let text = format!("its imports or exports don't fit this host: {}", one_line(&error));
        unfit(vec![Fault::new(FaultKind::Other, text)])
    })
}

/// Whether a component can serve several requests at once, if it is to.
fn concurrent(spec: &PluginSpec, kind: Kind, imports: &[String]) -> Result<(), LoadFault> {
    if !matches!(spec.reuse, Reuse::Concurrent { .. }) {
        return Ok(());
    }
    if kind != Kind::Http03 {
        return Err(LoadFault::NotConcurrent(
            "`reuse = \"concurrent\"` is for handlers of wasi:http 0.3, and this component isn't one; use \"serial\""
                .to_owned(),
        ));
    }
    let waits = |name: &&String| Capability::of_import(name).is_some_and(Capability::waits);
    match imports.iter().find(waits) {
        Some(waits) => Err(LoadFault::NotConcurrent(format!(
            "it imports \"{waits}\", whose functions wait and hold up every other request of the instance meanwhile, so `reuse = \"concurrent\"` can't be had; use \"serial\""
        ))),
        None => Ok(()),
    }
}

/// The linker compares imports, the bindings compare exports; both with their types.
fn linked(runtime: &Runtime, spec: &PluginSpec, kind: Kind, component: &Component) -> wasmtime::Result<Pre> {
    let linker = link::granted(&runtime.linker, &spec.grants)?;
    let pre: InstancePre<Ctx> = linker.instantiate_pre(component)?;
    Ok(match kind {
        Kind::Policy(Policy::Auth) => Pre::Auth(AuthPolicyPre::new(pre)?),
        Kind::Http02 => Pre::Http(ProxyPre::P2(wasmtime_wasi_http::p2::bindings::ProxyPre::new(
            pre,
        )?)),
        Kind::Http03 => Pre::Http(ProxyPre::P3(wasmtime_wasi_http::p3::bindings::ServicePre::new(
            pre,
        )?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_component_are_told_apart() {
        assert_eq!(sniff(b"\0asm\x01\0\0\0"), Err(LoadFault::CoreModule));
        assert_eq!(sniff(b"\0asm\x0d\0\x01\0"), Ok(()));
        assert_eq!(sniff(b"#!/bin/sh\n").unwrap_err().code(), "not-wasm");
        assert_eq!(sniff(b"").unwrap_err().code(), "not-wasm");
    }
}
