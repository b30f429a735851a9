//! A 0.3 handler whose instances serve several requests at once: see [`crate::runtime::concurrent`].

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::{Request, Response, header};
use hyper::body::Incoming;
use tokio::time::timeout;
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::handler::{ExpirationError, InstantiationError, TrapOrPanicError};

use super::http::{MAX_UNSEEN, Told, error_code, into_guest, no_response, size};
use super::{report, too_late, went_well};
use crate::admit::Place;
use crate::body::{GuestBody, ReplyBody, Stream};
use crate::dispatch::auth::bindings::berth::policy::types::Principal;
use crate::error::{Error, Fault, Trap};
use crate::respond;
use crate::runtime::concurrent::{self, Failed, NoInstance, Shared};
use crate::runtime::instance::Origin;
use crate::runtime::plugin::{Plugin, Version};
use crate::runtime::trap;
use crate::serve::Record;
use crate::state::Host;

/// A call of such a handler.
#[derive(Debug)]
pub struct SharedCall {
    /// The handler.
    pub plugin: Arc<Plugin>,
    /// Its version.
    pub version: Arc<Version>,
    /// As it came.
    pub request: Request<Incoming>,
    /// Who calls, where that is needed.
    pub caller: Option<Principal>,
    /// The place in the plugin's share.
    pub place: Place,
}

/// What a request has as long as somebody waits for it. Dropping it tells the worker.
#[derive(Debug)]
pub struct Seat {
    _place: Place,
    worker: Arc<OnceLock<Arc<Shared>>>,
    stream: Arc<Stream>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let whole = self.stream.is_complete();
        if !whole {
            let cause = "the client left before the end of the response";
            self.stream.die(Fault::new(Trap::ClientGone, cause));
        }
        if let Some(worker) = self.worker.get() {
            // The last one of an instance that others have left is what it waits for.
            if !whole || worker.is_retiring() {
                worker.left();
            }
        }
    }
}

/// Call the handler.
///
/// # Errors
/// The guest's failure, as long as no head was sent.
pub async fn call(
    host: &Arc<Host>,
    record: &mut Record,
    call: SharedCall,
) -> Result<Response<ReplyBody>, Error> {
    let SharedCall {
        plugin,
        version,
        request,
        caller,
        place,
    } = call;
    let wall = plugin.spec.limits.wall;
    let patience = host.limits.idle_time;
    let is_head = request.method() == http::Method::HEAD;
    let origin = Arc::new(Origin::new(
        Arc::clone(&plugin),
        Arc::clone(&version),
        record.id().clone(),
        record.client(),
        record.is_secure(),
    ));
    let span = record.guest_span();
    let since = Instant::now();
    let stream = Arc::new(Stream::default());
    let mut request = into_guest(
        request,
        Told::of(record, caller.as_ref()),
        &version,
        &stream,
        since,
        patience,
    )?;
    if let Some(span) = &span {
        span.inject(request.headers_mut());
    }
    let worker = Arc::new(OnceLock::new());
    let seat = Seat {
        _place: place,
        worker: Arc::clone(&worker),
        stream: Arc::clone(&stream),
    };
    let data = concurrent::Request {
        origin: Arc::clone(&origin),
        stream: Arc::clone(&stream),
        worker,
        deadline: since + wall,
    };
    let handler = version.workers.handler(host, &plugin, &version);
    // The worker keeps the deadline; one that is stuck in a host call can't, so it is kept here as well.
    let answered = timeout(wall, handler.handle(data, request)).await;
    let answered = match answered {
        Ok(Ok(response)) if response.status().is_informational() => {
            let cause = format!(
                "the handler answered with the interim status {}",
                response.status()
            );
            Err((Error::Guest(Fault::new(Trap::Refused, cause)), false))
        }
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(failure(error, &stream).await),
        Err(_) => Err((Error::Guest(late(wall)), false)),
    };
    if let Some(span) = span {
        // Nobody can say how much of the instance's CPU time was this request's.
        let outcome = answered.as_ref().map(|_| ()).map_err(|(error, _)| error);
        span.end(Duration::ZERO, Some(outcome));
    }
    match answered {
        Ok(response) => {
            went_well(&origin);
            Ok(reply(response, stream, seat, since, patience, is_head))
        }
        Err((error, told)) => {
            let error = stream.blame(error);
            if !told {
                report(&origin, &error);
            }
            Err(error)
        }
    }
}

fn reply(
    response: Response<WasiBody>,
    stream: Arc<Stream>,
    seat: Seat,
    since: Instant,
    patience: Duration,
    is_head: bool,
) -> Response<ReplyBody> {
    let (parts, body) = response.into_parts();
    let mut head = Response::from_parts(parts, ());
    let bodiless = is_head || respond::is_bodiless(head.status());
    stream.attach(body, if bodiless { None } else { size(&head) });
    if !respond::may_have_length(head.status()) {
        head.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let (mut body, _) = GuestBody::new(stream, since, size(&head));
    body.sit(seat, patience);
    let reply = if bodiless {
        tokio::spawn(body.drain(MAX_UNSEEN));
        ReplyBody::empty()
    } else {
        ReplyBody::guest(body)
    };
    head.map(|()| reply)
}

fn late(wall: Duration) -> Fault {
    too_late("the handler had not begun its response", wall)
}

/// What a worker's error means for one request, and whether it was reported by the worker.
async fn failure(error: wasmtime::Error, stream: &Stream) -> (Error, bool) {
    if let Some(failed) = error.downcast_ref::<InstantiationError<concurrent::Request>>() {
        return match failed.error.downcast_ref::<Failed>() {
            Some(Failed(error)) => (error.clone(), false),
            None if failed.error.is::<NoInstance>() => (Error::HostBusy, false),
            None => (Error::Internal(format!("{:#}", failed.error)), false),
        };
    }
    if error.is::<ExpirationError>() {
        return (
            Error::Guest(Fault::new(
                Trap::Wall,
                "the handler had not begun its response in time",
            )),
            false,
        );
    }
    let is_trap = error.is::<TrapOrPanicError>()
        || error.is::<wasmtime::Trap>()
        || error.is::<wasmtime_wasi::I32Exit>();
    if !is_trap {
        return (error_code(&error).unwrap_or_else(no_response), false);
    }
    // The instance is being dropped; its worker says the cause in a moment.
    match timeout(Duration::from_secs(1), stream.death()).await {
        Ok(fault) => (Error::Guest(fault), true),
        Err(_) => {
            let cause = trap::bounded(format!("{error:?}"));
            (Error::Guest(Fault::new(Trap::Unreachable, cause)), false)
        }
    }
}
