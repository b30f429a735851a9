//! From a component's bytes to something that can be instantiated, or a sentence that says why not.
//!
//! In this order: read the file whole, verify its signature, compile it (or take the machine code from the cache), compare
//! what it exports and imports with what the manifest says, link it. [`super::reload`] does the same with what an operator
//! sends, and instantiates it once before anybody is served by it.

use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre};
use wasmtime_wasi_http::handler::ProxyPre;

use super::cache::Found;
use super::engine::Runtime;
use super::instance::Ctx;
use super::load_fault::{LoadFault, memory_limit, one_line};
use super::plugin::{PluginSpec, Policy, Pre, Version};
use super::reload::watch::read_whole;
use super::reuse::Reuse;
use super::signature;
use super::{folders, link};
use crate::contract::{self, Fault, FaultKind, Faults, Kind, Report};
use crate::dispatch::auth::bindings::AuthPolicyPre;
use crate::grants::{Capability, Grants};

/// The largest component that is taken, in bytes. A Python component has about 40 MiB.
pub const MAX_COMPONENT: u64 = 128 * 1024 * 1024;
/// The unit of memories, in bytes.
const WASM_PAGE: u64 = 64 * 1024;
/// How many hexadecimal digits of a digest are shown: enough to tell versions apart.
const SHORT: usize = 12;

/// A component's bytes, before anything is known of them.
#[derive(Debug)]
pub struct Source {
    /// The whole file.
    pub bytes: Vec<u8>,
    /// Its SHA-256, in lower-case hexadecimal digits.
    pub sha256: String,
    /// The text of its signature, if there is one.
    pub signature: Option<String>,
    /// How long reading and hashing took.
    pub read: Duration,
}

impl Source {
    /// What somebody sent.
    pub fn sent(bytes: Vec<u8>, signature: Option<String>) -> Self {
        let started = Instant::now();
        let sha256 = sha256(&bytes);
        Self {
            bytes,
            sha256,
            signature,
            read: started.elapsed(),
        }
    }

    /// A plugin's file, read whole.
    ///
    /// # Errors
    /// It can't be read, or is too large.
    pub fn file(spec: &PluginSpec) -> Result<Self, LoadFault> {
        let started = Instant::now();
        let bytes = read_whole(&spec.component, MAX_COMPONENT)?;
        // Its own fault, if it has one, is told when it is verified.
        let signature = match spec.public_keys.is_empty() {
            true => None,
            false => signature::read(&spec.component)?,
        };
        let mut source = Self::sent(bytes, signature);
        source.read = started.elapsed();
        Ok(source)
    }

    /// As versions are shown.
    pub fn digest(&self) -> &str {
        short(&self.sha256)
    }
}

/// A digest as versions are shown.
pub fn short(sha256: &str) -> &str {
    sha256.get(..SHORT).unwrap_or(sha256)
}

/// SHA-256 in lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How long each step from a file to a version that serves took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Reading and hashing.
    pub read: Duration,
    /// Verifying the signature.
    pub verify: Duration,
    /// Compiling, or taking the machine code from the cache.
    pub compile: Duration,
    /// Whether it came from the cache.
    pub cached: bool,
    /// Comparing imports and exports, linking.
    pub link: Duration,
    /// Instantiating it once.
    pub probe: Duration,
    /// Putting it in the place of the other one.
    pub switch: Duration,
}

impl Steps {
    /// All of them.
    pub fn total(&self) -> Duration {
        self.read + self.verify + self.compile + self.link + self.probe + self.switch
    }
}

/// Read, check, compile and link a plugin's component. Takes the thread for as long as it takes: 50 to 180 ms for a
/// Rust component.
///
/// # Errors
/// Everything that [`LoadFault`] names.
pub fn load(runtime: &Runtime, spec: &PluginSpec) -> Result<Version, LoadFault> {
    load_source(runtime, spec, &Source::file(spec)?)
}

/// The same of bytes that are here already.
///
/// # Errors
/// Everything that [`LoadFault`] names.
pub fn load_source(runtime: &Runtime, spec: &PluginSpec, source: &Source) -> Result<Version, LoadFault> {
    let compiled = compile(runtime, spec, source)?;
    finish(runtime, spec, source, &compiled)
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
    let read = Source::file(spec).and_then(|source| Ok((compile(runtime, spec, &source)?, source)));
    let (compiled, source) = match read {
        Ok(read) => read,
        Err(fault) => {
            return Inspection {
                loaded: Err(fault),
                report: None,
            };
        }
    };
    let report = contract::report(&source.bytes, (!bare).then_some(&spec.grants));
    let loaded = if bare {
        let spec = PluginSpec {
            policy: spec.policy.or_else(|| contract::policy_of(&report.exports)),
            grants: Grants::new(Capability::ALL.to_vec()),
            ..spec.clone()
        };
        finish(runtime, &spec, &source, &compiled)
    } else {
        finish(runtime, spec, &source, &compiled)
    };
    Inspection {
        loaded,
        report: Some(report),
    }
}

struct Compiled {
    component: Component,
    signed_by: Option<String>,
    steps: Steps,
}

fn compile(runtime: &Runtime, spec: &PluginSpec, source: &Source) -> Result<Compiled, LoadFault> {
    let bytes = &source.bytes;
    let started = Instant::now();
    let signed_by = match spec.public_keys.as_slice() {
        [] => None,
        keys => {
            let signed = signature::verify(keys, bytes, source.signature.as_deref())?;
            tracing::debug!(
                target: "berth::swap",
                plugin = spec.name,
                key = signed.key_id,
                "the signature is good; its signer says: {}",
                signed.trusted_comment,
            );
            Some(signed.key_id)
        }
    };
    let verified = started.elapsed();
    sniff(bytes)?;
    let started = Instant::now();
    let compile = |engine: &Engine, bytes: &[u8]| runtime.compilers.component(engine, bytes);
    let (compiled, found) = match &runtime.cache {
        Some(cache) => cache.component(&runtime.engine, &source.sha256, bytes, compile),
        None => (compile(&runtime.engine, bytes), Found::Missed),
    };
    if let Found::Damaged(why) = &found {
        tracing::warn!(target: "berth::swap", plugin = spec.name, "machine code that was kept is not used: {why}");
    }
    let component = compiled.map_err(|error| LoadFault::of_compiling(&error))?;
    let compiled = started.elapsed();
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
        component,
        signed_by,
        steps: Steps {
            read: source.read,
            verify: verified,
            compile: compiled,
            cached: found == Found::Hit,
            ..Steps::default()
        },
    })
}

fn finish(
    runtime: &Runtime,
    spec: &PluginSpec,
    source: &Source,
    compiled: &Compiled,
) -> Result<Version, LoadFault> {
    let started = Instant::now();
    let ty = compiled.component.component_type();
    let names = |of: &mut dyn Iterator<Item = &str>| of.map(str::to_owned).collect::<Vec<_>>();
    let exports = names(&mut ty.exports(&runtime.engine).map(|(name, _)| name));
    let imports = names(&mut ty.imports(&runtime.engine).map(|(name, _)| name));
    let pre = prepare(runtime, spec, source, &compiled.component, (&imports, &exports))?;
    let folders = folders::open(spec.grants.folders())?;
    let steps = Steps {
        link: started.elapsed(),
        ..compiled.steps
    };
    let mut version = Version::new(source, pre, imports, folders, steps);
    version.signed_by.clone_from(&compiled.signed_by);
    Ok(version)
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

fn prepare(
    runtime: &Runtime,
    spec: &PluginSpec,
    source: &Source,
    component: &Component,
    (imports, exports): (&[String], &[String]),
) -> Result<Pre, LoadFault> {
    let unfit = |otherwise: Vec<Fault>| {
        // A component that the decoder has no words for is told by its names and in wasmtime's words.
        let explained = contract::explain(&source.bytes, spec.policy, &spec.grants).unwrap_or_default();
        LoadFault::Unfit(Faults::new(explained, otherwise))
    };
    let kind = contract::classify(spec.policy, exports).map_err(|fault| unfit(vec![*fault]))?;
    let missing = spec.grants.missing(imports.iter().map(String::as_str));
    if !missing.is_empty() {
        let faults = missing
            .iter()
            .map(|m| Fault::new(FaultKind::NotGranted, m.to_string()));
        return Err(unfit(faults.collect()));
    }
    concurrent(spec, kind, imports)?;
    linked(runtime, spec, kind, component).map_err(|error| {
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
