//! What one store holds, and how it is made.
//!
//! Scope of the state: everything in [`Ctx`] belongs to one store, and a store serves one request. What the plugin
//! shares over requests is in [`Plugin`], what the process shares in [`Runtime`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http::HeaderValue;
use wasmtime::Store;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::engine::Runtime;
use super::limits::{Limiter, Meter, on_epoch};
use super::plugin::{Plugin, Version};
use crate::admit::Admission;
use crate::caps::outgoing::Outgoing;
use crate::caps::stdio::GuestOutput;

/// Host resources (bodies, streams, pollables …) that one store may hold at once. wasmtime's default is a million.
const MAX_RESOURCES: usize = 4_096;
/// Bytes that one host call may lift out of the guest. wasmtime's default is 128 MiB.
const MAX_LIFTED: usize = 4 * 1024 * 1024;
/// Bytes of one header map in memory.
const MAX_FIELDS: usize = 128 * 1024;
/// Lines (log calls and standard output together) that one request may write.
const MAX_LINES: u32 = 128;

/// Which request a store works for; host functions and log lines read it.
#[derive(Debug)]
pub struct Origin {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// Its version.
    pub version: Arc<Version>,
    /// The request's id.
    pub request_id: HeaderValue,
    lines: AtomicU32,
}

impl Origin {
    /// A request's origin, with all its log lines still to write.
    pub fn new(plugin: Arc<Plugin>, version: Arc<Version>, request_id: HeaderValue) -> Self {
        Self {
            plugin,
            version,
            request_id,
            lines: AtomicU32::new(0),
        }
    }

    /// The request's id as text.
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// Whether the request may write one more log line. Says once that it may not.
    pub fn take_line(&self) -> bool {
        let before = self.lines.fetch_add(1, Ordering::Relaxed);
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

/// The data of one store.
pub struct Ctx {
    table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    limiter: Limiter,
    origin: Arc<Origin>,
    /// Given back when the store is dropped, and not before: the instance's memory is in use until then.
    _admission: Admission,
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

/// A fresh store for one request. WASI is there because every toolchain imports it, and empty: no arguments, no
/// environment, no folders, no sockets; standard output goes to the log.
pub fn store(runtime: &Runtime, origin: Arc<Origin>, meter: &Arc<Meter>, admission: Admission) -> Store<Ctx> {
    let mut wasi = WasiCtx::builder();
    wasi.stdout(GuestOutput::stdout(&origin))
        .stderr(GuestOutput::stderr(&origin))
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false);
    let mut table = ResourceTable::new();
    table.set_max_capacity(MAX_RESOURCES);
    let mut http = WasiHttpCtx::new();
    http.set_field_size_limit(MAX_FIELDS);
    let memory_limit = origin.plugin.limits.memory;
    let ctx = Ctx {
        table,
        wasi: wasi.build(),
        http,
        outgoing: Outgoing::new(Arc::clone(&origin)),
        limiter: Limiter::new(Arc::clone(meter), Arc::clone(&runtime.budget), memory_limit),
        origin,
        _admission: admission,
    };
    let mut store = Store::new(&runtime.engine, ctx);
    store.limiter(|ctx| &mut ctx.limiter);
    store.set_hostcall_fuel(MAX_LIFTED);
    let (meter, hogs) = (Arc::clone(meter), Arc::clone(&runtime.hogs));
    store.epoch_deadline_callback(move |_| Ok(on_epoch(&meter, &hogs)));
    store.set_epoch_deadline(1);
    store
}
