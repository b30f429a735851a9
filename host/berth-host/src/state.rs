//! What the whole process shares. Built once from a valid manifest; read without locks by every request.

use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use crate::admit::Instances;
use crate::cors::Cors;
use crate::forwarded::TrustedProxies;
use crate::grants::Capability;
use crate::identity::limits::Attempts;
use crate::identity::{IdentitySpec, SessionSpec};
use crate::listen::tls::TlsFiles;
use crate::metrics::HostMetrics;
use crate::passwords::PasswordSpec;
use crate::postgres::PostgresSpec;
use crate::route::{AddError, Methods};
use crate::runtime::compile::be_nice;
use crate::runtime::engine::{Runtime, RuntimeSettings};
use crate::runtime::plugin::{Ledger, LoadFault, Plugin, PluginSpec, Version};
use crate::runtime::reload::events::Events;
use crate::runtime::reload::probe::PROBES;
use crate::runtime::reload::{Inbox, Reload, start};
use crate::services::Services;
use crate::table::Table;
use crate::telemetry::{Telemetry, TelemetryError, TelemetrySpec};
use crate::tokens::TokenSpec;

/// Components that operators may send at once.
const UPLOADS: usize = 2;
/// Operators who may follow events and logs at once: fewer than the admin address has connections.
const FOLLOWERS: usize = 32;

/// Who may call a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Public,
    /// Every signed-in user.
    User,
    /// A signed-in user with this role.
    Role(String),
}

/// A route to a handler, from the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// Its pattern; see [`crate::route`].
    pub path: String,
    /// The handler's name.
    pub plugin: String,
    /// Which methods it takes.
    pub methods: Methods,
    /// Who may call it.
    pub access: Access,
    /// Which other origins may.
    pub cors: Option<Arc<Cors>>,
}

/// Limits of the host itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// Time for a request's head to arrive; also the longest a kept-alive connection may be idle.
    pub header_time: Duration,
    /// Bytes of a body on a typed route.
    pub body_bytes: u64,
    /// How long a body may make no progress, in either direction.
    pub idle_time: Duration,
    /// Connections at once.
    pub connections: usize,
    /// Requests at once on one HTTP/2 connection.
    pub http2_streams: u32,
    /// Instances at once, over all plugins.
    pub instances: u32,
    /// Linear memory of all guests together, in bytes.
    pub memory_budget: usize,
    /// How long requests may take to end when the host stops.
    pub drain_time: Duration,
}

impl HostLimits {
    /// Those of connections and requests.
    pub fn http(&self) -> (usize, [Duration; 3], u64, usize, u32) {
        (
            self.header_bytes,
            [self.header_time, self.idle_time, self.drain_time],
            self.body_bytes,
            self.connections,
            self.http2_streams,
        )
    }

    /// Those of all guests together.
    pub fn instances(&self) -> (u32, usize) {
        (self.instances, self.memory_budget)
    }
}

/// How files are followed, and versions kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReloadSpec {
    /// Follow the files of the components and the manifest; if it isn't said, `berth up` does and `berth serve` doesn't.
    pub watch: Option<bool>,
    /// How many versions of a plugin are kept beside the current one.
    pub keep: usize,
}

impl Default for ReloadSpec {
    fn default() -> Self {
        Self { watch: None, keep: 5 }
    }
}

/// A whole host, before it is built.
#[derive(Clone, Debug, PartialEq)]
pub struct HostSpec {
    /// The address for callers.
    pub listen: SocketAddr,
    /// TLS for callers, if they have it.
    pub tls: Option<TlsFiles>,
    /// Which tokens are valid.
    pub tokens: TokenSpec,
    /// How long sessions live.
    pub sessions: SessionSpec,
    /// How often somebody may try to sign in, and how long that is kept.
    pub identity: IdentitySpec,
    /// The proxies that say whose a request is.
    pub trusted_proxies: TrustedProxies,
    /// How passwords are hashed.
    pub passwords: PasswordSpec,
    /// The data folder.
    pub data: PathBuf,
    /// The database.
    pub postgres: PostgresSpec,
    /// The address for operators, if there is one.
    pub admin: Option<SocketAddr>,
    /// Limits of the host.
    pub limits: HostLimits,
    /// The plugins, in the manifest's order.
    pub plugins: Vec<PluginSpec>,
    /// The routes, in the manifest's order.
    pub routes: Vec<RouteSpec>,
    /// Which other origins may call the routes of the host and its policies.
    pub cors: Option<Arc<Cors>>,
    /// Where traces go, if they do.
    pub telemetry: Option<TelemetrySpec>,
    /// How files are followed, and versions kept.
    pub reload: ReloadSpec,
    /// The manifest, for messages.
    pub file: PathBuf,
}

/// What a manifest needs beside plugins and routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The data folder: keys or a private cluster.
    pub data: bool,
    /// The database.
    pub postgres: bool,
    /// The identity store.
    pub identity: bool,
    /// How many plugins have a login to the database, and connections of their own.
    pub logins: u32,
    /// Keys of its own for tokens.
    pub ring: bool,
}

impl HostSpec {
    /// The same while developing: instances that are used again are used a number of times that nobody can rely on.
    pub fn for_development(&mut self) {
        for plugin in &mut self.plugins {
            plugin.reuse = plugin.reuse.for_development();
        }
    }

    /// What must be started for it.
    pub fn needs(&self) -> Needs {
        let granted = |capability| self.plugins.iter().any(|p| p.grants.has(capability));
        let with_sql = self
            .plugins
            .iter()
            .filter(|p| p.grants.has(Capability::Sql))
            .count();
        let identity = granted(Capability::Sessions);
        let postgres = identity || granted(Capability::Sql) || self.postgres.url.is_some();
        Needs {
            data: postgres || granted(Capability::Tokens),
            postgres,
            identity,
            logins: u32::try_from(with_sql).unwrap_or(u32::MAX),
            ring: issues_tokens(&self.plugins),
        }
    }

    /// What the instance pools must hold for this manifest.
    pub fn runtime_settings(&self, workers: usize) -> RuntimeSettings {
        RuntimeSettings {
            instances: self.limits.instances,
            workers,
            max_memory: self
                .plugins
                .iter()
                .map(|p| p.limits.memory)
                .max()
                .unwrap_or(64 * 1024 * 1024),
            memory_budget: self.limits.memory_budget,
        }
    }
}

/// Whether the host signs tokens for any of these.
pub fn issues_tokens(plugins: &[PluginSpec]) -> bool {
    let may = |plugin: &PluginSpec| [Capability::Tokens, Capability::Sessions].map(|c| plugin.grants.has(c));
    plugins.iter().any(|plugin| may(plugin).contains(&true))
}

/// The running host.
pub struct Host {
    /// The engine.
    pub runtime: Runtime,
    /// The plugins and the routes to them, as the manifest has them now.
    pub table: ArcSwap<Table>,
    /// Keys, database, identity store.
    pub services: Arc<Services>,
    /// How often somebody may try to sign in.
    pub attempts: Attempts,
    /// The proxies that say whose a request is.
    pub trusted_proxies: TrustedProxies,
    /// The host's instances; see [`crate::admit`].
    pub instances: Arc<Instances>,
    /// The instances beside them that try out new versions.
    pub probes: Arc<Semaphore>,
    /// Components that operators may send at once; each is held in memory whole.
    pub uploads: Semaphore,
    /// Operators who may follow events and logs at once.
    pub followers: Arc<Semaphore>,
    /// What was swapped, refused, or taken back.
    pub events: Events,
    /// Where changes are asked for.
    pub reload: Reload,
    inbox: Mutex<Option<Inbox>>,
    /// Limits of the host.
    pub limits: HostLimits,
    /// What is counted of the host itself.
    pub metrics: Arc<HostMetrics>,
    /// Where traces go, if they do.
    pub telemetry: Option<Telemetry>,
    /// When it was built.
    pub started: Instant,
    /// The drain time is over: what is cut from now on is cut by the host.
    pub cutting: AtomicBool,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("table", &self.table.load().generation)
            .finish_non_exhaustive()
    }
}

/// The host could not be built at all. Faults of single components don't end up here: their routes answer 503.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The engine.
    #[error("the Wasm engine can't start: {0:#}")]
    Engine(wasmtime::Error),
    /// A route; `berth check` finds these first.
    #[error("the route {path}: {error}")]
    Route {
        /// Its pattern.
        path: String,
        /// Why.
        error: AddError,
    },
    /// The exporter of traces.
    #[error("traces can't be exported: {0}")]
    Telemetry(TelemetryError),
    /// A thread.
    #[error("a thread can't be started: {0}")]
    Thread(#[from] std::io::Error),
}

impl Host {
    /// Load everything and put the routes up. `said` is told of every plugin as it is done.
    ///
    /// Call it on the runtime that will serve.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(
        spec: &HostSpec,
        services: &Arc<Services>,
        workers: usize,
        mut said: impl FnMut(&Plugin),
    ) -> Result<Self, BuildError> {
        let mut runtime = Runtime::new(spec.runtime_settings(workers)).map_err(BuildError::Engine)?;
        runtime.cache = services.cache();
        let (reload, inbox) = Reload::new();
        let plugins = load_all(&runtime, &spec.plugins, services)?;
        plugins.iter().for_each(|p| said(p));
        let table = Table::new(1, spec, plugins)?;
        let telemetry = spec.telemetry.as_ref().map(Telemetry::start);
        let telemetry = telemetry.transpose().map_err(BuildError::Telemetry)?;
        Ok(Self {
            runtime,
            table: ArcSwap::from_pointee(table),
            services: Arc::clone(services),
            attempts: Attempts::new(&spec.identity),
            trusted_proxies: spec.trusted_proxies.clone(),
            instances: Arc::new(Instances::new(spec.limits.instances)),
            probes: Arc::new(Semaphore::new(PROBES as usize)),
            uploads: Semaphore::new(UPLOADS),
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
            events: Events::default(),
            reload,
            inbox: Mutex::new(Some(inbox)),
            limits: spec.limits,
            metrics: Arc::default(),
            telemetry,
            started: Instant::now(),
            cutting: AtomicBool::new(false),
        })
    }
}

impl Host {
    /// Drop one idle instance of any plugin, so that another can be made. False if there is none.
    pub fn give_up_idle(&self) -> bool {
        self.versions()
            .iter()
            .any(|version| version.shelf.give_up_one() || version.workers.give_up_idle())
    }

    /// What was asked of [`Host::reload`], for the one that makes the changes.
    pub fn take_inbox(&self) -> Option<Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What every plugin serves, candidates included.
    pub fn versions(&self) -> Vec<Arc<Version>> {
        let table = self.table.load();
        let serving = table.plugins.iter().map(|plugin| plugin.serving());
        serving
            .flat_map(|serving| serving.versions().cloned().collect::<Vec<_>>())
            .collect()
    }
}

/// On a thread that gives way to whatever else the machine does.
fn load_all(
    runtime: &Runtime,
    specs: &[PluginSpec],
    services: &Arc<Services>,
) -> Result<Vec<Arc<Plugin>>, BuildError> {
    thread::scope(|scope| {
        let compiling = thread::Builder::new()
            .name("berth-compile".to_owned())
            .spawn_scoped(scope, || {
                be_nice();
                specs
                    .iter()
                    .map(|spec| {
                        let state = services.state_of(&spec.name);
                        let disabled = state.disabled;
                        // One component that the compiler can't take is one plugin's fault.
                        let load = || start::load(runtime, spec, services, &state);
                        let loaded = catch_unwind(AssertUnwindSafe(load)).unwrap_or(Err(LoadFault::Compiler));
                        let ledger = Arc::<Ledger>::default();
                        let current = loaded.map(|version| ledger.count(version));
                        let plugin = Plugin::new(spec.clone(), services, ledger, current, disabled);
                        plugin.enter();
                        Arc::new(plugin)
                    })
                    .collect()
            })?;
        compiling
            .join()
            .map_err(|_| BuildError::Engine(wasmtime::Error::msg("the compiler panicked")))
    })
}
