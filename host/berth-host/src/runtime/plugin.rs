//! A plugin, and the versions of it.
//!
//! Scope of the state: a [`PluginSpec`] is what the manifest says; a [`Plugin`] is that, in force, and lives until the
//! manifest says something else of it; a [`Version`] is one component of it, and lives until its last request has ended; the
//! [`Ledger`] is what is known of the plugin by its name, and outlives both.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tracing::level_filters::LevelFilter;
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi_http::handler::ProxyPre;

use super::concurrent::Workers;
use super::instance::Ctx;
use super::journal::Journal;
use super::load::{Source, Steps};
pub use super::load_fault::LoadFault;
use super::reload::canary::Trial;
use super::reuse::{Reuse, Shelf};
use super::signature::PublicKey;
use super::streak::Streak;
use crate::admit::Slots;
use crate::caps::outgoing::Client;
use crate::caps::settings::Settings;
use crate::caps::sql;
use crate::dispatch::auth::bindings::AuthPolicyPre;
use crate::grants::Grants;
use crate::metrics::{PluginMetrics, SwapMetrics, VersionMetrics};
use crate::services::Services;

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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Who may sign its component; nobody has to if there is none.
    pub public_keys: Vec<PublicKey>,
    /// Its plain settings.
    pub settings: Settings,
    /// The most talkative level at which its guest is heard.
    pub log: LevelFilter,
}

/// A plugin as the manifest has it, with what serves its requests.
pub struct Plugin {
    /// Its name, as in the manifest and in every log line.
    pub name: String,
    /// What the manifest says of it.
    pub spec: PluginSpec,
    /// Keys, database, identity store, for its host functions.
    pub services: Arc<Services>,
    /// Its connections to Postgres; nothing unless it may have any.
    pub sql: Option<Arc<sql::Pool>>,
    /// What calls other hosts for it; nothing unless it may call any.
    pub outgoing: Option<Client>,
    /// Its share of the host's concurrency.
    pub slots: Slots,
    /// What is known of it whatever the manifest says.
    pub ledger: Arc<Ledger>,
    serving: ArcSwap<Serving>,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What answers a plugin's requests at one moment. Never changed, only replaced.
#[derive(Clone, Debug)]
pub struct Serving {
    /// What is served; or why nothing is.
    pub current: Result<Arc<Version>, LoadFault>,
    /// Another version that a share of the callers gets.
    pub canary: Option<Canary>,
    /// An operator has switched it off.
    pub disabled: bool,
}

/// A version on trial.
#[derive(Clone, Debug)]
pub struct Canary {
    /// The candidate.
    pub version: Arc<Version>,
    /// Who gets it, and how it does.
    pub trial: Arc<Trial>,
    /// The digest of the plugin's file when it was deployed, if that could be read.
    pub file: Option<String>,
}

impl Serving {
    /// The versions that may get requests.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        let candidate = self.canary.iter().map(|canary| &canary.version);
        self.current.iter().chain(candidate)
    }
}

impl Plugin {
    /// From what the manifest says, with what it shares with the process. `current` is of `ledger`.
    pub fn new(
        spec: PluginSpec,
        services: &Arc<Services>,
        ledger: Arc<Ledger>,
        current: Result<Arc<Version>, LoadFault>,
        disabled: bool,
    ) -> Self {
        Self {
            name: spec.name.clone(),
            services: Arc::clone(services),
            sql: services.sql_of(&spec.name),
            outgoing: (!spec.grants.http().is_empty()).then(|| Client::new(spec.grants.http())),
            slots: Slots::new(spec.limits.concurrency),
            ledger,
            serving: ArcSwap::from_pointee(Serving {
                current,
                canary: None,
                disabled,
            }),
            spec,
        }
    }

    /// It is served from now on: what its version does is counted apart.
    pub fn enter(&self) {
        if let Some(version) = self.current() {
            self.ledger.enter(&version);
        }
    }

    /// What answers its requests now. For a moment only: whoever waits in between takes a copy.
    pub fn serving(&self) -> Guard<Arc<Serving>> {
        self.serving.load()
    }

    /// The version that is served, if there is one.
    pub fn current(&self) -> Option<Arc<Version>> {
        self.serving.load().current.as_ref().ok().map(Arc::clone)
    }

    /// Replace what answers its requests, in one step. What is no longer served is retired: requests in flight finish on
    /// it, idle instances go at once, and with the last of them its memory.
    ///
    /// Only one caller at a time; see [`super::reload`].
    pub fn serve(&self, next: Serving) {
        let kept: Vec<*const Version> = next.versions().map(Arc::as_ptr).collect();
        let before = self.serving.swap(Arc::new(next));
        for version in before.versions() {
            if !kept.contains(&Arc::as_ptr(version)) {
                version.retire();
            }
        }
    }

    /// It is no longer in the manifest: all of its versions are retired.
    pub fn retire(&self) {
        self.serving
            .load()
            .versions()
            .for_each(|version| version.retire());
    }
}

/// How many versions of a plugin are counted apart, so that the figures of one that was replaced can still be compared.
const COUNTED: usize = 8;

/// What is known of a plugin by its name for as long as the process lives.
#[derive(Debug, Default)]
pub struct Ledger {
    /// What is counted whatever its version.
    pub metrics: PluginMetrics,
    /// What became of its swaps.
    pub swaps: SwapMetrics,
    /// What its guests wrote, and what became of them, lately.
    pub journal: Journal,
    versions: Mutex<Versions>,
}

#[derive(Debug, Default)]
struct Versions {
    /// By digest, the latest last.
    counted: Vec<(String, Arc<VersionMetrics>)>,
    /// Every version that may still have a request.
    alive: Vec<Weak<Version>>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Versions> {
        // Nothing in here is half done between two statements.
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A version may be served. One with the same bytes as an earlier one goes on with its counters.
    pub fn count(&self, mut version: Version) -> Arc<Version> {
        let mut versions = self.lock();
        if let Some((_, metrics)) = versions
            .counted
            .iter()
            .find(|(digest, _)| *digest == version.digest)
        {
            version.metrics = Arc::clone(metrics);
        }
        let version = Arc::new(version);
        versions.alive.retain(|version| version.strong_count() > 0);
        versions.alive.push(Arc::downgrade(&version));
        version
    }

    /// It is served from now on.
    pub fn enter(&self, version: &Version) {
        let mut versions = self.lock();
        versions.counted.retain(|(digest, _)| *digest != version.digest);
        versions
            .counted
            .push((version.digest.clone(), Arc::clone(&version.metrics)));
        if versions.counted.len() > COUNTED {
            // Never one that may still have a request, however long ago it came: many candidates may have come and gone since.
            let alive: Vec<Arc<Version>> = versions.alive.iter().filter_map(Weak::upgrade).collect();
            let is_gone = |(digest, _): &(String, _)| alive.iter().all(|version| version.digest != *digest);
            if let Some(at) = versions.counted.iter().position(is_gone) {
                versions.counted.remove(at);
            }
        }
    }

    /// How many versions are in memory: the current one, a candidate, and those whose requests have not all ended.
    pub fn alive(&self) -> usize {
        self.lock()
            .alive
            .iter()
            .filter(|version| version.strong_count() > 0)
            .count()
    }

    /// The counters of the latest versions, by digest, the latest last.
    pub fn counted(&self) -> Vec<(String, Arc<VersionMetrics>)> {
        self.lock().counted.clone()
    }
}

/// One component of a plugin, compiled and linked.
pub struct Version {
    /// The first 12 hexadecimal digits of the file's SHA-256.
    pub digest: String,
    /// All 64 of them.
    pub sha256: String,
    /// The file's size in bytes.
    pub size: usize,
    /// What to instantiate.
    pub pre: Pre,
    /// Whose signature it has: the number of the key. None where nobody has to sign.
    pub signed_by: Option<String>,
    /// The names of what it imports.
    pub imports: Vec<String>,
    /// How long it took to get here.
    pub steps: Steps,
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
    pub metrics: Arc<VersionMetrics>,
    /// Its bytes, from a start until they are kept: by then its file may be another one.
    unkept: Mutex<Option<Source>>,
}

impl Version {
    /// Nothing has happened to it yet.
    pub(super) fn new(
        source: &Source,
        pre: Pre,
        imports: Vec<String>,
        folders: Option<WasiFilesystemCtx>,
        steps: Steps,
    ) -> Self {
        Self {
            digest: source.digest().to_owned(),
            sha256: source.sha256.clone(),
            size: source.bytes.len(),
            pre,
            signed_by: None,
            imports,
            steps,
            folders,
            shelf: Shelf::default(),
            workers: Workers::default(),
            streak: Streak::default(),
            callers: Streak::default(),
            metrics: Arc::default(),
            unkept: Mutex::default(),
        }
    }

    /// It is served before it is kept.
    pub(super) fn keep_later(mut self, source: Source) -> Self {
        self.unkept = Mutex::new(Some(source));
        self
    }

    /// Its bytes, if they are still to be kept. Nothing the next time.
    pub(super) fn take_unkept(&self) -> Option<Source> {
        self.unkept.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Nobody new is sent to it: its idle instances go, and every other one when its request has ended.
    pub fn retire(&self) {
        self.shelf.close();
        self.workers.close();
    }
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
