//! What one store holds, how an instance is made, and when one may be used again.
//!
//! Scope of the state: everything in [`Ctx`] belongs to one store. What belongs to the request that the store serves now
//! is replaced for the next one (`Instance::renew`); what the plugin shares over requests is in [`Plugin`], what the
//! process shares in [`Runtime`].

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use http::HeaderValue;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::Store;
use wasmtime::component::{GuestTaskId, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::handler::Proxy;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::engine::Runtime;
use super::limits::{Limiter, Meter, on_epoch};
use super::plugin::{Plugin, Pre, Version};
use super::reuse::has_grown;
use crate::admit::{Admission, Instances, Place};
use crate::body::Stream;
use crate::caps::outgoing::Outgoing;
use crate::caps::sql::SqlCtx;
use crate::caps::stdio::GuestOutput;
use crate::dispatch::auth::bindings::AuthPolicy;

/// Host resources (bodies, streams, pollables …) that one store may hold at once. wasmtime's default is a million.
const MAX_RESOURCES: usize = 4_096;
/// The same for what the component model's own streams, futures and tasks need; a future takes a few entries.
const MAX_CONCURRENT: usize = 4 * MAX_RESOURCES;
/// The same of a plugin that may open files: each may be a file descriptor, and the process has only so many.
const MAX_RESOURCES_WITH_FILES: usize = 128;
/// Bytes that one host call may lift out of the guest: a little more than any host function takes, so that the function
/// itself can refuse. wasmtime's default is 128 MiB.
const MAX_LIFTED: usize = 6 * 1024 * 1024;
/// Bytes of one header map in memory.
const MAX_FIELDS: usize = 128 * 1024;
/// Lines (log calls and standard output together) that one request may write.
const MAX_LINES: u32 = 128;
/// Host resources that an instance may have left over from its requests and still be used again.
pub(super) const MAX_LEFT_OVER: usize = 16;

/// Which request a store works for; host functions and log lines read it.
#[derive(Debug)]
pub struct Origin {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// Its version.
    pub version: Arc<Version>,
    /// The request's id.
    pub request_id: HeaderValue,
    /// The client's address; none where a store works for nobody in particular.
    pub client: Option<IpAddr>,
    /// Whether it came through TLS.
    pub secure: bool,
    lines: AtomicU32,
    ended: AtomicBool,
}

/// One request of a store that serves several at once.
pub struct Task {
    /// As the guest's calls into the host can be traced back to it.
    pub id: GuestTaskId,
    /// The request.
    pub origin: Arc<Origin>,
    /// Its answer; gone when nobody reads it any more.
    pub stream: Weak<Stream>,
}

impl Origin {
    /// Of what a store does for nobody in particular, because it serves several requests at once.
    pub fn shared(plugin: Arc<Plugin>, version: Arc<Version>) -> Self {
        Self {
            plugin,
            version,
            request_id: HeaderValue::from_static(""),
            client: None,
            secure: false,
            lines: AtomicU32::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// A request's origin, with all its log lines still to write.
    pub fn new(
        plugin: Arc<Plugin>,
        version: Arc<Version>,
        request_id: HeaderValue,
        client: IpAddr,
        secure: bool,
    ) -> Self {
        Self {
            plugin,
            version,
            request_id,
            client: Some(client),
            secure,
            lines: AtomicU32::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// Whether the store no longer works for the request: what it left unfinished will stay so.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The store is about to go.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// The request's id as text.
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// Whether the request may write one more log line. Says once that it may not.
    pub fn take_line(&self) -> bool {
        let before = self.lines.fetch_add(1, Ordering::Relaxed);
        if before >= MAX_LINES {
            self.plugin.ledger.metrics.line_suppressed();
        }
        if before == MAX_LINES {
            tracing::warn!(
                target: "berth::guest",
                plugin = self.plugin.name,
                request_id = self.request_id(),
                "more than {MAX_LINES} lines from one request: the rest is dropped",
            );
        }
        before < MAX_LINES
    }
}

/// Says that a request has ended, when it is dropped.
struct Lease(Arc<Origin>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The origin of a store's present request, for what outlives one request inside the store (its standard output).
#[derive(Debug)]
pub struct CurrentOrigin(Mutex<Arc<Origin>>);

impl CurrentOrigin {
    /// The present one.
    pub fn get(&self) -> Arc<Origin> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, origin: Arc<Origin>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = origin;
    }
}

/// The data of one store.
pub struct Ctx {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    sql: SqlCtx,
    limiter: Limiter,
    meter: Arc<Meter>,
    current: Arc<CurrentOrigin>,
    origin: Arc<Origin>,
    /// The requests of a store that serves several at once; else empty.
    pub(super) tasks: Vec<Task>,
    /// The request's place in its plugin's share; given back when it is done with the store.
    place: Option<Place>,
}

impl fmt::Debug for Ctx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ctx")
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

impl Ctx {
    /// Which request this is.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// The requests of a store that serves several at once; else empty.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The same for who keeps them, and what the store has grown to.
    pub(super) fn tasks_and_sizes(&mut self) -> (&mut Vec<Task>, (usize, usize)) {
        let sizes = self.limiter.sizes();
        (&mut self.tasks, sizes)
    }

    /// The transactions of the request, and where the guest's handles are.
    pub fn sql(&mut self) -> (&mut SqlCtx, &mut ResourceTable) {
        (&mut self.sql, &mut self.table)
    }

    /// How many host resources the store holds.
    pub(super) fn resources(&mut self) -> usize {
        self.table.iter_mut().count()
    }
}

impl WasiView for Ctx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Ctx {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outgoing,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

/// The exports of an instance, by what it is.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one per store, and a box would be an allocation per request"
)]
pub enum Exports {
    /// An `auth` policy.
    Auth(AuthPolicy),
    /// A `wasi:http` handler.
    Http(Proxy),
}

/// A store with an instance in it, or about to have one.
pub struct Instance {
    /// Before the store, because fields are dropped in this order: what a closing store cuts off must not look
    /// finished to whoever reads it.
    lease: Option<Lease>,
    /// The store.
    pub store: Store<Ctx>,
    /// What it exports; nothing until it is instantiated.
    pub exports: Option<Exports>,
    /// Requests that it may still serve, the present one included.
    uses: u32,
    /// Memory and table elements when it was instantiated.
    born_with: (usize, usize),
    /// Its place among the host's instances. After the store, and not in its data: a store drops its data before it gives
    /// its slots back, and whoever gets the place then must find a free slot.
    permit: OwnedSemaphorePermit,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("uses", &self.uses)
            .finish_non_exhaustive()
    }
}

impl Instance {
    /// For one request: the idle one that the admission brought, or a fresh store.
    pub fn obtain(runtime: &Runtime, origin: Arc<Origin>, meter: &Arc<Meter>, admission: Admission) -> Self {
        match admission {
            Admission::Idle { mut instance, place } => {
                instance.renew(origin, meter, place);
                *instance
            }
            Admission::Fresh { place, instance } => Self {
                uses: origin.plugin.spec.reuse.uses(),
                lease: Some(Lease(Arc::clone(&origin))),
                store: store(runtime, origin, meter, Some(place)),
                exports: None,
                born_with: (0, 0),
                permit: instance,
            },
        }
    }

    /// For several requests at once.
    pub fn shared(
        runtime: &Runtime,
        origin: Arc<Origin>,
        meter: &Arc<Meter>,
        instance: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            uses: origin.plugin.spec.reuse.uses(),
            // The worker knows when its store ends.
            lease: None,
            store: store(runtime, origin, meter, None),
            exports: None,
            born_with: (0, 0),
            permit: instance,
        }
    }

    /// The store, what it exports, and its place among the host's instances, which must outlive the store.
    pub(super) fn into_parts(self) -> (Store<Ctx>, Option<Exports>, OwnedSemaphorePermit) {
        (self.store, self.exports, self.permit)
    }

    /// How many requests it may serve, and how large it was when it was made.
    pub(super) fn birth(&self) -> (u32, (usize, usize)) {
        (self.uses, self.born_with)
    }

    /// Run the component's start functions, unless that was done for an earlier request. Takes guest CPU time.
    ///
    /// # Errors
    /// A trap, a limit, or a pool without a free slot.
    pub async fn start(&mut self, pre: &Pre) -> wasmtime::Result<()> {
        if self.exports.is_none() {
            self.exports = Some(match pre {
                Pre::Auth(pre) => Exports::Auth(pre.instantiate_async(&mut self.store).await?),
                Pre::Http(pre) => Exports::Http(pre.instantiate_async(&mut self.store).await?),
            });
            self.born_with = self.store.data().limiter.sizes();
        }
        Ok(())
    }

    /// Everything of the last request is replaced by the next one's.
    fn renew(&mut self, origin: Arc<Origin>, meter: &Arc<Meter>, place: Place) {
        self.lease = Some(Lease(Arc::clone(&origin)));
        let ctx = self.store.data_mut();
        ctx.outgoing = Outgoing::new(Arc::clone(&origin));
        ctx.limiter.renew(Arc::clone(meter));
        ctx.meter = Arc::clone(meter);
        ctx.current.set(Arc::clone(&origin));
        ctx.origin = origin;
        ctx.place = Some(place);
        self.store.set_hostcall_fuel(MAX_LIFTED);
        self.store.set_epoch_deadline(1);
    }

    /// The request has ended well. The instance waits for its plugin's next one, unless it is used up, has grown, or
    /// holds what a request left behind.
    pub fn release(mut self, version: &Version, instances: &Instances) {
        self.uses = self.uses.saturating_sub(1);
        let streams = self
            .store
            .concurrent_resource_table()
            .map_or(0, |t| t.iter_mut().count());
        self.lease = None;
        let ctx = self.store.data_mut();
        ctx.sql.end();
        let grown = has_grown(self.born_with, ctx.limiter.sizes());
        let left_over = streams + ctx.resources();
        if self.uses > 0 && !grown && left_over <= MAX_LEFT_OVER {
            // Its place goes to the next request only when the instance is there for it.
            let place = ctx.place.take();
            version.shelf.put(self);
            if instances.wanted() {
                version.shelf.give_up_one();
            }
            drop(place);
        }
    }
}

/// A fresh store. WASI is there because every toolchain imports it, and empty: no arguments, no environment, no
/// sockets, no folders but those granted; standard output goes to the log.
fn store(runtime: &Runtime, origin: Arc<Origin>, meter: &Arc<Meter>, place: Option<Place>) -> Store<Ctx> {
    let current = Arc::new(CurrentOrigin(Mutex::new(Arc::clone(&origin))));
    let mut wasi = WasiCtx::builder();
    wasi.stdout(GuestOutput::stdout(&current, origin.plugin.spec.log))
        .stderr(GuestOutput::stderr(&current, origin.plugin.spec.log))
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false);
    let mut wasi = wasi.build();
    let mut table = ResourceTable::new();
    table.set_max_capacity(MAX_RESOURCES);
    if let Some(folders) = &origin.version.folders {
        wasi.filesystem().clone_from(folders);
        table.set_max_capacity(MAX_RESOURCES_WITH_FILES);
    }
    let mut http = WasiHttpCtx::new();
    http.set_field_size_limit(MAX_FIELDS);
    let memory_limit = origin.plugin.spec.limits.memory;
    let ctx = Ctx {
        table,
        wasi,
        http,
        outgoing: Outgoing::new(Arc::clone(&origin)),
        sql: SqlCtx::default(),
        limiter: Limiter::new(Arc::clone(meter), Arc::clone(&runtime.budget), memory_limit),
        meter: Arc::clone(meter),
        current,
        origin,
        tasks: Vec::new(),
        place,
    };
    let mut store = Store::new(&runtime.engine, ctx);
    store.limiter(|ctx| &mut ctx.limiter);
    if let Some(table) = store.concurrent_resource_table() {
        table.set_max_capacity(MAX_CONCURRENT);
    }
    store.set_hostcall_fuel(MAX_LIFTED);
    store.epoch_deadline_callback(|store| Ok(on_epoch(&store.data().meter)));
    store.set_epoch_deadline(1);
    store
}
