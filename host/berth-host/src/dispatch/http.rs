//! A `wasi:http` handler, 0.2 or 0.3: one fresh instance, driven until it has nothing more to do.
//!
//! The driver owns the store. Until the response head it is polled by the connection's own task, so that a handler
//! that answers at once costs no task of its own, and a client that leaves drops it, store and all. If the guest is
//! still at work when the head is there (a streaming body, work after the answer), the driver goes on in a task,
//! watched by `watch`.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::channel::oneshot;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{sleep, timeout};
use wasmtime::{AsContextMut, StoreContextMut};
use wasmtime_wasi_http::handler::{Prepared, Proxy, ProxyPre};
use wasmtime_wasi_http::p2::bindings::http::types as p2;
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use super::{Bill, report, too_late, went_well};
use crate::body::{GuestBody, ReplyBody, RequestBody, Stream};
use crate::dispatch::auth::bindings::berth::policy::types::Principal;
use crate::error::{Error, Fault, Trap};
use crate::gate::HttpCall;
use crate::headers;
use crate::respond;
use crate::runtime::instance::{Ctx, Exports, Instance, Origin};
use crate::runtime::limits::Meter;
use crate::runtime::plugin::{Pre, Version};
use crate::runtime::trap;
use crate::runtime::turns::metered;
use crate::serve::Record;
use crate::state::Host;

/// Bytes of a body that are read although nobody will see them.
pub(super) const MAX_UNSEEN: usize = 16 * 1024 * 1024;

type Head = Response<()>;
type Driver = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Call the handler.
///
/// # Errors
/// The guest's failure, as long as no head was sent.
pub async fn call(
    host: &Arc<Host>,
    record: &mut Record,
    call: HttpCall,
) -> Result<Response<ReplyBody>, Error> {
    let HttpCall {
        plugin,
        version,
        request,
        caller,
        admission,
    } = call;
    let limits = plugin.spec.limits;
    let is_head = request.method() == http::Method::HEAD;
    let origin = Arc::new(Origin::new(
        plugin,
        Arc::clone(&version),
        record.id().clone(),
        record.client(),
        record.is_secure(),
    ));
    let meter = Arc::new(Meter::new(limits.cpu, Arc::clone(&host.runtime.turns)));
    record.runs(&meter);
    let bill = Bill::open(record, &version, &meter);
    let stream = Arc::new(Stream::default());
    let instance = Instance::obtain(&host.runtime, Arc::clone(&origin), &meter, admission);
    let told = Told::of(record, caller.as_ref());
    let mut request = into_guest(
        request,
        told,
        &version,
        &stream,
        meter.base(),
        host.limits.idle_time,
    )?;
    if let Some(span) = &bill.span {
        span.inject(request.headers_mut());
    }

    let (head_tx, mut head_rx) = oneshot::channel();
    let run = Run {
        host: Arc::clone(host),
        instance,
        version,
        meter: Arc::clone(&meter),
        stream: Arc::clone(&stream),
        is_head,
    };
    let mut driver: Driver = Box::pin(async move {
        let result = run.drive(request, head_tx).await;
        bill.close(&result);
        result
    });
    let mut ended = None;
    let head = timeout(
        limits.wall,
        poll_fn(|cx| {
            if ended.is_none()
                && let Poll::Ready(end) = driver.as_mut().poll(cx)
            {
                ended = Some(end);
            }
            match (Pin::new(&mut head_rx).poll(cx), &ended) {
                (Poll::Ready(Ok(head)), _) => Poll::Ready(Ok(head)),
                (_, Some(Err(error))) => Poll::Ready(Err(error.clone())),
                (Poll::Ready(Err(_)), _) | (_, Some(Ok(()))) => Poll::Ready(Err(no_response())),
                (Poll::Pending, None) => Poll::Pending,
            }
        }),
    )
    .await
    .unwrap_or_else(|_| {
        Err(Error::Guest(too_late(
            "the handler had not begun its response",
            limits.wall,
        )))
    });

    let mut head = match head {
        Ok(head) => head,
        Err(error) => {
            report(&origin, &error);
            return Err(error);
        }
    };
    if let Some(Err(error)) = ended.as_ref() {
        report(&origin, error);
        // Nothing was sent yet, so there is a better answer than half of one.
        if !stream.is_complete() {
            return Err(error.clone());
        }
    }
    if !respond::may_have_length(head.status()) {
        head.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let rest = ended.is_none().then_some(driver);
    let since = meter.base();
    let (body, gone) = GuestBody::new(Arc::clone(&stream), since, size(&head));
    if let Some(driver) = rest {
        tokio::spawn(watch(driver, gone, origin, stream, since, host.limits.idle_time));
    }
    let reply = if is_head || respond::is_bodiless(head.status()) {
        tokio::spawn(body.drain(MAX_UNSEEN));
        ReplyBody::empty()
    } else {
        ReplyBody::guest(body)
    };
    Ok(head.map(|()| reply))
}

/// Everything that one run of a guest needs.
struct Run {
    host: Arc<Host>,
    instance: Instance,
    version: Arc<Version>,
    meter: Arc<Meter>,
    stream: Arc<Stream>,
    is_head: bool,
}

impl Run {
    /// Run the guest to its end. The head is sent as soon as it is there; its body goes into the shared stream
    /// first, so that [`Stream::die`] finds it while the store is still alive.
    async fn drive(self, request: Request<WasiBody>, head_tx: oneshot::Sender<Head>) -> Result<(), Error> {
        let Self {
            host,
            mut instance,
            version,
            meter,
            stream,
            is_head,
        } = self;
        let mut bodiless = is_head;
        let (tx, mut rx) = oneshot::channel();
        let outcome = {
            let mut run = pin!(metered(
                &meter,
                run(&mut instance, &version.pre, request, tx, &stream)
            ));
            let mut ended = None;
            let head = poll_fn(|cx| {
                if ended.is_none()
                    && let Poll::Ready(end) = run.as_mut().poll(cx)
                {
                    ended = Some(end);
                }
                match (Pin::new(&mut rx).poll(cx), &ended) {
                    (Poll::Pending, None) => Poll::Pending,
                    (Poll::Pending, Some(_)) => Poll::Ready(None),
                    (Poll::Ready(head), _) => Poll::Ready(head.ok()),
                }
            })
            .await;
            match (head, ended) {
                (Some(Ok(response)), _) if response.status().is_informational() => {
                    // An interim status is the connection's business; as a final one it desynchronises it.
                    let cause = format!(
                        "the handler answered with the interim status {}",
                        response.status()
                    );
                    return Err(Error::Guest(Fault::new(Trap::Refused, cause)));
                }
                (Some(Ok(response)), ended) => {
                    let (parts, body) = response.into_parts();
                    let head = Response::from_parts(parts, ());
                    bodiless |= respond::is_bodiless(head.status());
                    stream.attach(body, if bodiless { None } else { size(&head) });
                    // If nobody waits any more, the driver is about to be dropped.
                    let _ = head_tx.send(head);
                    match ended {
                        Some(end) => end,
                        None => run.await,
                    }
                }
                (_, Some(Err(error))) => Err(error),
                (Some(Err(error)), _) => return Err(stream.blame(refusal(&error, &meter))),
                (None, _) => return Err(stream.blame(no_response())),
            }
        };
        match outcome {
            Ok(()) => {
                let settled = stream.settle();
                if !bodiless && let Err(fault) = settled {
                    return Err(stream.blame(Error::Guest(fault)));
                }
                went_well(instance.store.data().origin());
                instance.release(&version, &host.instances);
                Ok(())
            }
            Err(error) => {
                let error = stream.blame(trap::classify(&error, &meter));
                // Before the store is dropped, or its closing channels would read as a finished body.
                stream.die(fault_of(&error));
                Err(error)
            }
        }
    }
}

/// One call of the handler, and whatever it still does afterwards.
async fn run(
    instance: &mut Instance,
    pre: &Pre,
    request: Request<WasiBody>,
    tx: oneshot::Sender<wasmtime::Result<Response<WasiBody>>>,
    stream: &Stream,
) -> wasmtime::Result<()> {
    instance.start(pre).await?;
    let Instance {
        store,
        exports: Some(Exports::Http(proxy)),
        ..
    } = instance
    else {
        return Err(wasmtime::Error::msg(
            "the route leads to a plugin that is no handler",
        ));
    };
    store
        .run_concurrent(async |accessor| -> wasmtime::Result<()> {
            let prepared = accessor.with(|mut store| prepare(store.as_context_mut(), proxy, request, tx))?;
            // Deadlines are kept outside: a timer in here isn't polled while the guest is in a host call.
            prepared.run(accessor, std::future::pending()).await?;
            poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
            // The store still moves what a 0.3 guest has passed on: trailers, another body.
            if matches!(proxy, Proxy::P3(_)) {
                poll_fn(|cx| stream.poll_end(cx)).await;
            }
            Ok(())
        })
        .await?
}

/// Start the call. What wasmtime makes of a request for 0.2 is always `http`; with TLS it is made here.
fn prepare<'p>(
    mut store: StoreContextMut<'_, Ctx>,
    proxy: &'p Proxy,
    request: Request<WasiBody>,
    tx: oneshot::Sender<wasmtime::Result<Response<WasiBody>>>,
) -> wasmtime::Result<Prepared<'p, Ctx>> {
    let Proxy::P2(guest) = proxy else {
        return Prepared::new(store, proxy, request, WasiHttpView::http, tx);
    };
    if !store.data().origin().secure {
        return Prepared::new(store, proxy, request, WasiHttpView::http, tx);
    }
    let tx = Arc::new(Mutex::new(Some(tx)));
    let request = store
        .data_mut()
        .http()
        .new_incoming_request(p2::Scheme::Https, request)?;
    let out = store.data_mut().http().new_response_outparam_from_callback({
        let tx = Arc::clone(&tx);
        move |response| {
            let waiting = tx.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waiting) = waiting {
                // If nobody waits any more, the store is about to be dropped.
                let _ = waiting.send(response.map_err(Into::into));
            }
        }
    })?;
    let handler = guest.wasi_http_incoming_handler().func_handle();
    let call = handler.start_call_concurrent(store, (request, out))?;
    Ok(Prepared::P2 { guest, call, tx })
}

/// Keep an eye on a driver whose head is out: stop it when nobody reads any more, or nothing moves.
async fn watch(
    mut driver: Driver,
    gone: oneshot::Receiver<()>,
    origin: Arc<Origin>,
    stream: Arc<Stream>,
    since: Instant,
    patience: Duration,
) {
    enum End {
        Ran(Result<(), Error>),
        Gone,
        Stuck,
    }
    let mut gone = Some(gone);
    stream.touch(since);
    let mut timer = pin!(sleep(patience));
    let end = poll_fn(|cx| {
        if let Poll::Ready(end) = driver.as_mut().poll(cx) {
            return Poll::Ready(End::Ran(end));
        }
        if let Some(receiver) = &mut gone
            && Pin::new(receiver).poll(cx).is_ready()
        {
            gone = None;
            // A reader that had read everything is no loss; the guest may finish what it still does.
            if !stream.is_complete() {
                return Poll::Ready(End::Gone);
            }
        }
        while timer.as_mut().poll(cx).is_ready() {
            let idle = stream.idle(since);
            if idle >= patience {
                return Poll::Ready(End::Stuck);
            }
            timer.as_mut().reset((Instant::now() + (patience - idle)).into());
        }
        Poll::Pending
    })
    .await;
    let error = match end {
        End::Ran(Ok(())) => return,
        End::Ran(Err(error)) => error,
        // Counted by the request's own record.
        End::Gone => {
            stream.die(Fault::new(
                Trap::ClientGone,
                "the client left during the response body",
            ));
            return;
        }
        End::Stuck => Error::Guest(too_late("the response body made no progress", patience)),
    };
    stream.die(fault_of(&error));
    report(&origin, &error);
}

/// What the host tells a handler of a request: in headers that no client can send.
pub(super) struct Told {
    scheme: Scheme,
    request_id: HeaderValue,
    caller: Option<(HeaderValue, HeaderValue)>,
}

impl Told {
    /// Of this request and its caller.
    pub(super) fn of(record: &Record, caller: Option<&Principal>) -> Self {
        Self {
            scheme: if record.is_secure() {
                Scheme::HTTPS
            } else {
                Scheme::HTTP
            },
            request_id: record.id().clone(),
            // `authenticate` lets no other characters through.
            caller: caller.and_then(|who| {
                let roles = HeaderValue::try_from(who.roles.join(","));
                Some((HeaderValue::from_str(&who.user_id).ok()?, roles.ok()?))
            }),
        }
    }

    /// Write them, and give back the scheme.
    fn write(self, headers: &mut HeaderMap) -> Scheme {
        headers.insert(BERTH_REQUEST_ID, self.request_id);
        if let Some((id, roles)) = self.caller {
            // The host has verified it; a handler that had it could act as its caller elsewhere.
            headers.remove(header::AUTHORIZATION);
            headers.insert(BERTH_USER_ID, id);
            headers.insert(BERTH_USER_ROLES, roles);
        }
        self.scheme
    }
}

/// The request's id, as in the log and the answer.
pub const BERTH_REQUEST_ID: HeaderName = HeaderName::from_static("berth-request-id");
/// Who calls; not there on a public route.
pub const BERTH_USER_ID: HeaderName = HeaderName::from_static("berth-user-id");
/// The caller's roles, with commas between them; not there on a public route.
pub const BERTH_USER_ROLES: HeaderName = HeaderName::from_static("berth-user-roles");

/// The request as the guest sees it: without the headers of the connection and those that only the host may set, and
/// (0.3) with an absolute target.
pub(super) fn into_guest(
    request: Request<Incoming>,
    told: Told,
    version: &Arc<Version>,
    stream: &Arc<Stream>,
    since: Instant,
    patience: Duration,
) -> Result<Request<WasiBody>, Error> {
    let (mut parts, body) = request.into_parts();
    headers::strip(&mut parts.headers);
    let scheme = told.write(&mut parts.headers);
    let given = parts.uri.authority().is_some();
    if !given {
        // Only HTTP/1.0 gets here without one; wasi:http can't do without.
        parts
            .headers
            .entry(header::HOST)
            .or_insert(HeaderValue::from_static("localhost"));
    }
    // 0.3 takes all of its target from here; 0.2 only the path, and the authority from Host if it isn't here. What
    // the client calls its scheme is not asked.
    if given || matches!(version.pre, Pre::Http(ProxyPre::P3(_))) {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.scheme = Some(scheme);
        if uri.authority.is_none()
            && let Some(host) = parts.headers.get(header::HOST)
        {
            let authority = Authority::try_from(host.as_bytes());
            uri.authority = Some(authority.map_err(|_| Error::InvalidHead("the Host header is not a host"))?);
        }
        uri.path_and_query
            .get_or_insert_with(|| PathAndQuery::from_static("/"));
        parts.uri = Uri::from_parts(uri).map_err(|_| Error::InvalidHead("the target is not a URI"))?;
    }
    let body = RequestBody::new(body, Arc::clone(version), Arc::clone(stream), since, patience);
    let body = body.boxed_unsync();
    Ok(Request::from_parts(parts, body))
}

pub(super) fn size(head: &Head) -> Option<u64> {
    head.headers()
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

pub(super) fn no_response() -> Error {
    Error::Guest(Fault::new(
        Trap::NoResponse,
        "the handler returned without setting a response",
    ))
}

/// The guest's own `error-code`, if the error is one.
pub(super) fn error_code(error: &wasmtime::Error) -> Option<Error> {
    let is_code = error.is::<p2::ErrorCode>()
        || error.is::<wasmtime_wasi_http::p3::bindings::http::types::ErrorCode>()
        || error.is::<wasmtime_wasi_http::Error>();
    is_code.then(|| {
        let cause = trap::bounded(format!("the handler answered with an error code: {error:#}"));
        Error::Guest(Fault::new(Trap::Refused, cause))
    })
}

/// The head's sender gave an error: the guest's own `error-code`, a trap, or that there was no response at all.
fn refusal(error: &wasmtime::Error, meter: &Meter) -> Error {
    if let Some(code) = error_code(error) {
        return code;
    }
    if error.is::<wasmtime::Trap>() || error.is::<wasmtime_wasi::I32Exit>() || meter.is_exhausted() {
        return trap::classify(error, meter);
    }
    no_response()
}

fn fault_of(error: &Error) -> Fault {
    match error {
        Error::Guest(fault) => fault.clone(),
        other => Fault::new(Trap::Unreachable, format!("{other:?}")),
    }
}
