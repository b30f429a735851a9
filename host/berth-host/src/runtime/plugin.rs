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
use super::reuse::{Reuse, Shelf};
use super::streak::Streak;
use super::{folders, link};
use crate::admit::Slots;
use crate::caps::outgoing::Client;
use crate::caps::settings::Settings;
use crate::dispatch::auth::bindings::AuthPolicyPre;
use crate::grants::{Capability, Grants};
use crate::metrics::{PluginMetrics, VersionMetrics};

/// The largest component file, in bytes. A Python component has about 40 MiB.
pub const MAX_COMPONENT: u64 = 256 * 1024 * 1024;

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
    const fn export(self) -> &'static str {
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
    /// For people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Auth(_) => "auth policy",
            Self::Http(ProxyPre::P2(_)) => "wasi:http 0.2 handler",
            Self::Http(ProxyPre::P3(_)) => "wasi:http 0.3 handler (experimental)",
        }
    }
}

/// Why a component can't be served. Its text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadFault {
    /// The file can't be read.
    #[error("{path}: {reason}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The file is too large.
    #[error("the file has {size} bytes; at most {MAX_COMPONENT} are read")]
    TooLarge {
        /// Bytes.
        size: u64,
    },
    /// Not WebAssembly at all.
    #[error(
        "the file is not WebAssembly: it begins with {begins:?}, not with \"\\0asm\"; `component` names the .wasm file that the build made"
    )]
    NotWasm {
        /// The first bytes.
        begins: String,
    },
    /// A core module.
    #[error(
        "the file is a core module, not a component; build it for wasm32-wasip2, or wrap it with `wasm-tools component new`"
    )]
    CoreModule,
    /// Damaged.
    #[error("the file is a damaged component, perhaps cut off: {0}; build it again")]
    Malformed(String),
    /// Not what the manifest says it is.
    #[error("{0}")]
    WrongWorld(String),
    /// A policy of another version.
    #[error("{0}")]
    WrongVersion(String),
    /// Imports without grants.
    #[error("{}", .0.join("; "))]
    NotGranted(Vec<String>),
    /// It can't serve several requests at once.
    #[error("{0}")]
    NotConcurrent(String),
    /// Granted folders that can't be opened.
    #[error("{}", .0.join("; "))]
    Folders(Vec<String>),
    /// An import or export whose type differs.
    #[error("its imports or exports don't fit this host: {0}")]
    Mismatch(String),
}

impl LoadFault {
    /// The stable name, for `berth check --json`, the health report and the log.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "unreadable",
            Self::TooLarge { .. } => "too-large",
            Self::NotWasm { .. } => "not-wasm",
            Self::CoreModule => "core-module",
            Self::Malformed(_) => "malformed",
            Self::WrongWorld(_) => "wrong-world",
            Self::WrongVersion(_) => "wrong-version",
            Self::NotGranted(_) => "not-granted",
            Self::NotConcurrent(_) => "not-concurrent",
            Self::Folders(_) => "folders",
            Self::Mismatch(_) => "mismatch",
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
    let bytes = read(&spec.component)?;
    sniff(&bytes)?;
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .take(6)
        .map(|b| format!("{b:02x}"))
        .collect();
    let component =
        Component::from_binary(&runtime.engine, &bytes).map_err(|e| LoadFault::Malformed(one_line(&e)))?;
    let pre = prepare(runtime, spec, &component)?;
    let folders = folders::open(spec.grants.folders())?;
    Ok(Version {
        digest,
        pre,
        folders,
        took: started.elapsed(),
        shelf: Shelf::default(),
        workers: Workers::default(),
        streak: Streak::default(),
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
        [b'\0', b'a', b's', b'm', _, _, 0, 0, ..] => Err(LoadFault::CoreModule),
        [b'\0', b'a', b's', b'm', ..] => Ok(()),
        _ => {
            let begins = bytes.get(..bytes.len().min(8)).unwrap_or_default();
            Err(LoadFault::NotWasm {
                begins: String::from_utf8_lossy(begins).into_owned(),
            })
        }
    }
}

fn prepare(runtime: &Runtime, spec: &PluginSpec, component: &Component) -> Result<Pre, LoadFault> {
    let ty = component.component_type();
    let exports: Vec<String> = ty
        .exports(&runtime.engine)
        .map(|(name, _)| name.to_owned())
        .collect();
    let kind = classify(spec.policy, &exports)?;
    if matches!(spec.reuse, Reuse::Concurrent { .. }) && kind != Kind::Http03 {
        return Err(LoadFault::NotConcurrent(
            "`reuse = \"concurrent\"` is for handlers of wasi:http 0.3, and this component isn't one; use \"serial\""
                .to_owned(),
        ));
    }
    let imports: Vec<String> = ty
        .imports(&runtime.engine)
        .map(|(name, _)| name.to_owned())
        .collect();
    let missing = spec.grants.missing(imports.iter().map(String::as_str));
    if !missing.is_empty() {
        return Err(LoadFault::NotGranted(
            missing.iter().map(ToString::to_string).collect(),
        ));
    }
    if let Some(waits) = imports.iter().find(|name| {
        matches!(spec.reuse, Reuse::Concurrent { .. })
            && Capability::of_import(name).is_some_and(Capability::waits)
    }) {
        return Err(LoadFault::NotConcurrent(format!(
            "it imports \"{waits}\", whose functions wait and hold up every other request of the instance meanwhile, so `reuse = \"concurrent\"` can't be had; use \"serial\""
        )));
    }
    let mismatch = |e: wasmtime::Error| LoadFault::Mismatch(one_line(&e));
    let linker = link::granted(&runtime.linker, &spec.grants).map_err(mismatch)?;
    let pre: InstancePre<Ctx> = linker.instantiate_pre(component).map_err(mismatch)?;
    Ok(match kind {
        Kind::Auth => Pre::Auth(AuthPolicyPre::new(pre).map_err(mismatch)?),
        Kind::Http02 => Pre::Http(ProxyPre::P2(
            wasmtime_wasi_http::p2::bindings::ProxyPre::new(pre).map_err(mismatch)?,
        )),
        Kind::Http03 => Pre::Http(ProxyPre::P3(
            wasmtime_wasi_http::p3::bindings::ServicePre::new(pre).map_err(mismatch)?,
        )),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Auth,
    Http02,
    Http03,
}

/// What a component is, by what it exports and what the manifest wants it to be.
fn classify(wanted: Option<Policy>, exports: &[String]) -> Result<Kind, LoadFault> {
    let version_of = |interface: &str| {
        exports
            .iter()
            .find_map(|e| e.strip_prefix(interface)?.strip_prefix('@'))
            .map(semver::Version::parse)
    };
    let list = || {
        if exports.is_empty() {
            "nothing".to_owned()
        } else {
            exports.join(", ")
        }
    };
    if let Some(policy) = wanted {
        let (interface, ours) = policy.export().split_once('@').unwrap_or((policy.export(), ""));
        return match version_of(interface) {
            Some(Ok(v)) if v.to_string() == ours => match policy {
                Policy::Auth => Ok(Kind::Auth),
            },
            Some(_) => Err(LoadFault::WrongVersion(format!(
                "the plugin is the {} policy, so its component must export {}; it exports {}; build it against this host's wit/",
                policy.key(),
                policy.export(),
                list()
            ))),
            None => Err(LoadFault::WrongWorld(format!(
                "the plugin is the {} policy, so its component must export {}; it exports {}",
                policy.key(),
                policy.export(),
                list()
            ))),
        };
    }
    let fits = |interface: &str, minor: u64| {
        version_of(interface)
            .is_some_and(|v| v.is_ok_and(|v| v.major == 0 && v.minor == minor && v.pre.is_empty()))
    };
    if fits("wasi:http/handler", 3) {
        return Ok(Kind::Http03);
    }
    if fits("wasi:http/incoming-handler", 2) {
        return Ok(Kind::Http02);
    }
    if let Some(policy) = Policy::ALL
        .into_iter()
        .find(|p| exports.iter().any(|e| e == p.export()))
    {
        return Err(LoadFault::WrongWorld(format!(
            "the component is an {0} policy; say `policy = \"{0}\"` in its table",
            policy.key()
        )));
    }
    let text = format!(
        "a handler exports wasi:http/incoming-handler@0.2.x or wasi:http/handler@0.3.x; it exports {}",
        list()
    );
    let other = ["wasi:http/handler", "wasi:http/incoming-handler"]
        .iter()
        .any(|i| version_of(i).is_some());
    Err(if other {
        LoadFault::WrongVersion(text)
    } else {
        LoadFault::WrongWorld(text)
    })
}

/// wasmtime's error chain on one line.
fn one_line(error: &wasmtime::Error) -> String {
    format!("{error:#}")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exports(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn any_patch_of_a_wasi_version_is_served() {
        assert_eq!(
            classify(None, &exports(&["wasi:http/incoming-handler@0.2.0"])),
            Ok(Kind::Http02)
        );
        assert_eq!(
            classify(None, &exports(&["wasi:http/incoming-handler@0.2.99"])),
            Ok(Kind::Http02)
        );
        assert_eq!(
            classify(None, &exports(&["wasi:http/handler@0.3.7"])),
            Ok(Kind::Http03)
        );
    }

    #[test]
    fn a_policy_without_its_key_is_told_apart_from_a_stranger() {
        let policy = classify(None, &exports(&["berth:policy/auth@0.1.0"])).unwrap_err();
        assert_eq!(
            policy.to_string(),
            "the component is an auth policy; say `policy = \"auth\"` in its table"
        );
        let stranger = classify(None, &exports(&["wasi:cli/run@0.2.6"])).unwrap_err();
        assert_eq!(
            stranger.to_string(),
            "a handler exports wasi:http/incoming-handler@0.2.x or wasi:http/handler@0.3.x; it exports wasi:cli/run@0.2.6"
        );
        assert_eq!(stranger.code(), "wrong-world");
    }

    #[test]
    fn another_version_of_a_policy_is_named_as_such() {
        let fault = classify(Some(Policy::Auth), &exports(&["berth:policy/auth@0.9.0"])).unwrap_err();
        assert_eq!(fault.code(), "wrong-version");
        assert!(
            fault
                .to_string()
                .contains("must export berth:policy/auth@0.1.0; it exports berth:policy/auth@0.9.0")
        );
        assert_eq!(
            classify(None, &exports(&["wasi:http/handler@0.4.0"]))
                .unwrap_err()
                .code(),
            "wrong-version"
        );
    }

    #[test]
    fn files_that_are_no_component_are_told_apart() {
        assert_eq!(sniff(b"\0asm\x01\0\0\0"), Err(LoadFault::CoreModule));
        assert_eq!(sniff(b"\0asm\x0d\0\x01\0"), Ok(()));
        assert_eq!(sniff(b"#!/bin/sh\n").unwrap_err().code(), "not-wasm");
        assert_eq!(sniff(b"").unwrap_err().code(), "not-wasm");
    }
}
