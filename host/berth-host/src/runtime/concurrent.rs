//! Instances that serve several requests at once (`reuse = "concurrent"`, 0.3 handlers only).
//!
//! wasmtime's `ProxyHandler` drives them: a worker per instance, a queue per version. What it doesn't do is decided
//! here: when an instance takes another request, when it is given up, and what becomes of its requests when it dies.
//! All of them fail with the one cause; none is tried again, because nobody knows how far it got.
//!
//! What is not promised here, in contrast to the other kinds of reuse: CPU time per request (see
//! [`Meter::of_stretches`]), and that a request ends as soon as its client has left (it ends with its instance, which
//! is given up once nobody waits for any of its requests).

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Sleep, sleep, sleep_until, timeout};
use wasmtime::component::GuestTaskId;
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{
    HandlerState, Instance as Handled, ProxyHandler, ShouldAccept, WorkerExpiration, WorkerState,
    WorkerStatus,
};

use super::instance::{Ctx, Exports, Instance, MAX_LEFT_OVER, Origin, Task};
use super::limits::Meter;
use super::plugin::{Plugin, Version};
use super::reuse::{IDLE, Reuse, has_grown};
use super::trap;
use crate::admit::Instances;
use crate::body::Stream;
use crate::error::{Error, Fault, Trap};
use crate::state::Host;

/// How much longer than its wall time a request may take until its instance, which must be stuck then, is dropped.
const GRACE: Duration = Duration::from_millis(100);

/// The workers of one version.
#[derive(Default)]
pub struct Workers {
    handler: OnceLock<ProxyHandler<Pool>>,
    idle: Arc<Idle>,
}

/// What idle workers wait for.
#[derive(Debug, Default)]
struct Idle {
    count: AtomicUsize,
    /// All are to go.
    closed: AtomicBool,
    /// They should look whether they may stay.
    changed: Arc<Notify>,
}

impl Workers {
    /// What requests are handed to. Made at the first one.
    pub fn handler(
        &self,
        host: &Arc<Host>,
        plugin: &Arc<Plugin>,
        version: &Arc<Version>,
    ) -> &ProxyHandler<Pool> {
        self.handler.get_or_init(|| {
            ProxyHandler::new(Pool {
                host: Arc::downgrade(host),
                plugin: Arc::downgrade(plugin),
                version: Arc::downgrade(version),
                idle: Arc::clone(&self.idle),
            })
        })
    }

    /// How many instances wait for a request.
    pub fn idle(&self) -> usize {
        self.idle.count.load(Ordering::Relaxed)
    }

    /// Let idle instances look whether somebody waits for their places, and go if so. False if there is none.
    pub fn give_up_idle(&self) -> bool {
        let any = self.idle() > 0;
        if any {
            self.idle.changed.notify_waiters();
        }
        any
    }

    /// Let every instance go as soon as it is idle.
    pub fn close(&self) {
        self.idle.closed.store(true, Ordering::Relaxed);
        self.idle.changed.notify_waiters();
    }
}

/// No instance became free in time.
#[derive(Debug, thiserror::Error)]
#[error("no instance became free in time")]
pub struct NoInstance;

/// Makes instances for one version.
pub struct Pool {
    host: Weak<Host>,
    plugin: Weak<Plugin>,
    version: Weak<Version>,
    idle: Arc<Idle>,
}

impl HandlerState for Pool {
    type StoreData = Ctx;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Handled<Ctx, Expiration, Worker>> {
        let gone = || wasmtime::Error::msg("the host is gone");
        let host = self.host.upgrade().ok_or_else(gone)?;
        let plugin = self.plugin.upgrade().ok_or_else(gone)?;
        let version = self.version.upgrade().ok_or_else(gone)?;
        let Reuse::Concurrent { at_once, .. } = plugin.spec.reuse else {
            return Err(wasmtime::Error::msg(
                "the plugin's instances serve one request at a time",
            ));
        };
        let limits = plugin.spec.limits;
        let permit = host
            .instances
            .take(limits.wall, || host.give_up_idle())
            .await
            .map_err(|_| wasmtime::Error::new(NoInstance))?;
        let meter = Arc::new(Meter::of_stretches(limits.cpu, Arc::clone(&host.runtime.turns)));
        let origin = Arc::new(Origin::shared(Arc::clone(&plugin), Arc::clone(&version)));
        let mut instance = Instance::shared(&host.runtime, Arc::clone(&origin), &meter, permit);
        let started = timeout(limits.wall, instance.start(&version.pre)).await;
        match started {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(wasmtime::Error::new(Failed(trap::classify(&error, &meter)))),
            Err(_) => {
                let cause = format!(
                    "the component had not started after {} ms",
                    limits.wall.as_millis()
                );
                return Err(wasmtime::Error::new(Failed(Fault::new(Trap::Wall, cause).into())));
            }
        }
        let (uses, born_with) = instance.birth();
        let (store, Some(Exports::Http(proxy)), permit) = instance.into_parts() else {
            return Err(wasmtime::Error::msg("the plugin is no handler"));
        };
        let shared = Arc::new(Shared {
            origin,
            meter,
            uses,
            at_once,
            born_with,
            requests: Mutex::default(),
            retiring: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            somebody_left: AtomicBool::new(false),
            left: AtomicWaker::new(),
            permit: Mutex::new(Some(permit)),
        });
        Ok(Handled {
            store,
            proxy,
            view: WasiHttpView::http,
            expiration: Expiration {
                instances: Arc::clone(&host.instances),
                shared: Arc::clone(&shared),
                idle: Arc::clone(&self.idle),
                is_idle: false,
                timer: Box::pin(sleep(IDLE)),
                wall: limits.wall,
                patience: host.limits.idle_time,
                changed: Box::pin(Arc::clone(&self.idle.changed).notified_owned()),
            },
            state: Worker(shared),
        })
    }
}

/// The error of an instance that could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{0:?}")]
pub struct Failed(pub Error);

/// What a request brings to its worker.
pub struct Request {
    /// For log lines.
    pub origin: Arc<Origin>,
    /// Where its answer goes.
    pub stream: Arc<Stream>,
    /// Told to the one who waits, so that the worker is woken when they leave.
    pub worker: Arc<OnceLock<Arc<Shared>>>,
    /// When it must have its response head.
    pub deadline: Instant,
}

/// What a worker's parts share.
#[derive(Debug)]
pub struct Shared {
    origin: Arc<Origin>,
    meter: Arc<Meter>,
    uses: u32,
    at_once: u32,
    born_with: (usize, usize),
    /// Every request whose answer isn't complete.
    requests: Mutex<Vec<Weak<Stream>>>,
    /// No more requests.
    retiring: AtomicBool,
    /// Its time was over.
    expired: AtomicBool,
    /// Somebody left before the end of their answer.
    somebody_left: AtomicBool,
    left: AtomicWaker,
    /// The instance's place among the host's; given back after the store is dropped.
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, Vec<Weak<Stream>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody who waited for one of its requests has left.
    pub fn left(&self) {
        self.somebody_left.store(true, Ordering::Release);
        self.left.wake();
    }

    /// Whether it takes no more requests.
    pub fn is_retiring(&self) -> bool {
        self.retiring.load(Ordering::Relaxed)
    }

    fn retire(&self) {
        self.retiring.store(true, Ordering::Relaxed);
    }

    /// How many requests somebody still waits for, and how many were left before their end.
    fn audience(&self) -> (usize, usize) {
        let (mut waiting, mut left) = (0, 0);
        self.requests().retain(|stream| match stream.upgrade() {
            Some(stream) if stream.is_complete() => false,
            Some(stream) if stream.is_dead() => {
                left += 1;
                true
            }
            Some(_) => {
                waiting += 1;
                true
            }
            // Complete, or there would be somebody who marks it dead.
            None => false,
        });
        (waiting, left)
    }
}

/// When a worker takes requests, and what becomes of them.
pub struct Worker(Arc<Shared>);

impl WorkerState for Worker {
    type StoreData = Ctx;
    type RequestData = Request;

    fn should_accept_request(&self, at_once: usize, total: usize) -> ShouldAccept {
        let shared = &self.0;
        if shared.is_retiring() || total >= shared.uses as usize {
            return ShouldAccept::Never;
        }
        if at_once >= shared.at_once as usize {
            return ShouldAccept::No;
        }
        ShouldAccept::Yes
    }

    fn on_request_start(
        &self,
        mut store: StoreContextMut<'_, Ctx>,
        request: Request,
        id: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        let shared = &self.0;
        let stream = Arc::downgrade(&request.stream);
        let ctx = store.data_mut();
        let (tasks, sizes) = ctx.tasks_and_sizes();
        tasks.retain(|task| task.stream.strong_count() > 0);
        let alone = tasks.is_empty();
        tasks.push(Task {
            id,
            origin: request.origin,
            stream: Weak::clone(&stream),
        });
        // The request that is being taken has brought two: itself and its body.
        if has_grown(shared.born_with, sizes) || (alone && ctx.resources() > MAX_LEFT_OVER) {
            shared.retire();
        }
        let mut requests = shared.requests();
        requests.retain(|stream| stream.strong_count() > 0);
        requests.push(stream);
        drop(requests);
        // If it was set before, the request has been handed over before; that doesn't happen.
        let _ = request.worker.set(Arc::clone(shared));
        let shared = Arc::clone(shared);
        Box::pin(async move {
            sleep_until(request.deadline.into()).await;
            shared.retire();
        })
    }

    fn drop(&self, store: Store<Ctx>, result: wasmtime::Result<()>) {
        let shared = &self.0;
        shared.meter.end();
        if let Err(error) = result {
            let (waiting, _) = shared.audience();
            let fault = match (shared.expired.load(Ordering::Relaxed), waiting) {
                (true, 0) => Fault::new(Trap::ClientGone, "nobody waited for its requests any more"),
                (true, _) => Fault::new(Trap::Wall, "its requests did not get on"),
                (false, _) => match trap::classify(&error, &shared.meter) {
                    Error::Guest(fault) => fault,
                    // The process's budget, which is nobody's fault in particular.
                    other => Fault::new(Trap::Memory, format!("{other:?}")),
                },
            };
            let origin = &shared.origin;
            if !fault.trap.is_blameless() {
                origin.version.metrics.trap(fault.trap);
                tracing::error!(
                    target: "berth::plugin",
                    plugin = origin.plugin.name,
                    version = origin.version.digest,
                    trap = fault.trap.label(),
                    requests = waiting,
                    "an instance with several requests failed: {}",
                    fault.cause,
                );
                crate::dispatch::failed(origin);
            }
            // Before the store goes, or its closing channels would read as finished bodies.
            for stream in shared.requests().drain(..) {
                if let Some(stream) = stream.upgrade() {
                    stream.die(fault.clone());
                }
            }
        }
        shared.origin.end();
        drop(store);
        let permit = shared
            .permit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(permit);
    }
}

/// When a worker must go.
pub struct Expiration {
    instances: Arc<Instances>,
    shared: Arc<Shared>,
    idle: Arc<Idle>,
    is_idle: bool,
    timer: Pin<Box<Sleep>>,
    wall: Duration,
    patience: Duration,
    changed: Pin<Box<OwnedNotified>>,
}

impl Expiration {
    fn set_idle(&mut self, idle: bool) {
        if idle == self.is_idle {
            return;
        }
        self.is_idle = idle;
        if idle {
            self.idle.count.fetch_add(1, Ordering::SeqCst);
        } else {
            self.idle.count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Whether it may go, being idle: it is told to, or another plugin waits for an instance. Wakes the task when that
    /// changes.
    fn is_released(&mut self, cx: &mut Context<'_>) -> bool {
        // Armed before looking, so that nothing is missed in between.
        while self.changed.as_mut().poll(cx).is_ready() {
            let changed = Arc::clone(&self.idle.changed).notified_owned();
            self.changed.set(changed);
        }
        self.idle.closed.load(Ordering::Relaxed) || self.instances.wanted()
    }

    /// Whether it is later than `when`; wakes the task when it is. The timer may be early, and is set again then: that
    /// is rarer than a new `when`.
    fn passed(&mut self, cx: &mut Context<'_>, when: Instant) -> bool {
        if self.timer.deadline() > when.into() {
            self.timer.as_mut().reset(when.into());
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= when {
                return true;
            }
            self.timer.as_mut().reset(when.into());
        }
        false
    }
}

impl WorkerExpiration for Expiration {
    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        status: WorkerStatus,
        start: Instant,
    ) -> Poll<()> {
        let this = &mut *self;
        this.shared.meter.rest();
        this.set_idle(status == WorkerStatus::Idle);
        let over = match status {
            WorkerStatus::Idle => {
                this.is_released(cx) || this.shared.is_retiring() || this.passed(cx, start + IDLE)
            }
            WorkerStatus::Requests | WorkerStatus::PostReturn => {
                this.shared.left.register(cx.waker());
                let deserted = this.shared.somebody_left.swap(false, Ordering::Acquire) && {
                    let (waiting, left) = this.shared.audience();
                    if left > 0 {
                        this.shared.retire();
                    }
                    waiting == 0 && left > 0
                };
                deserted
                    || match status {
                        WorkerStatus::Requests => this.passed(cx, start + this.wall + GRACE),
                        // Bodies that are being read have their own patience; work after them has this one.
                        _ => this.passed(cx, start + this.patience) && this.shared.audience().0 == 0,
                    }
            }
        };
        if over {
            this.shared.expired.store(true, Ordering::Relaxed);
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Expiration {
    fn drop(&mut self) {
        self.set_idle(false);
    }
}
