//! Bodies of outgoing requests and of their responses, both streamed, neither buffered.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use wasmtime_wasi_http::{Error, WasiBody};

use super::fault;
use crate::headers::without_forbidden_trailers;
use crate::runtime::instance::Origin;

/// The plugin's permit for one request, held until both of its bodies are done.
pub(super) type Permit = Arc<OwnedSemaphorePermit>;

/// How far a request's body is, for whoever waits for the response.
#[derive(Debug)]
pub(super) struct Progress {
    since: Instant,
    /// Microseconds after `since` at which the server last took something; [`Self::AT_GUEST`] while it is the guest's
    /// turn.
    at: AtomicU64,
}

impl Progress {
    const AT_GUEST: u64 = u64::MAX;

    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            at: AtomicU64::new(0),
        }
    }

    fn moved(&self) {
        let at = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(0);
        self.at.store(at, Ordering::Relaxed);
    }

    fn waits_for_guest(&self) {
        self.at.store(Self::AT_GUEST, Ordering::Relaxed);
    }

    /// How long the server has been silent.
    pub(super) fn silence(&self) -> Duration {
        match self.at.load(Ordering::Relaxed) {
            Self::AT_GUEST => Duration::ZERO,
            at => self.since.elapsed().saturating_sub(Duration::from_micros(at)),
        }
    }
}

/// A request's body. If the store that writes it is dropped, its end is an error: to the server, a body that was cut
/// off must not look whole.
pub(super) struct Upload {
    body: WasiBody,
    origin: Arc<Origin>,
    progress: Arc<Progress>,
    _permit: Permit,
}

impl Upload {
    pub(super) fn new(body: WasiBody, origin: Arc<Origin>, progress: Arc<Progress>, permit: Permit) -> Self {
        Self {
            body,
            origin,
            progress,
            _permit: permit,
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                self.progress.waits_for_guest();
                return Poll::Pending;
            }
        };
        self.progress.moved();
        match frame {
            // Its store is gone, or another request's: nobody has finished this body.
            None if self.origin.has_ended() => Poll::Ready(Some(Err(Error::ConnectionTerminated))),
            frame => Poll::Ready(frame.map(|f| f.map(without_forbidden_trailers))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body; fails when nothing comes for too long while the guest waits for it.
pub(super) struct Download {
    body: Incoming,
    patience: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the timer runs for the frame that is waited for.
    armed: bool,
    _permit: Permit,
}

impl Download {
    pub(super) fn new(body: Incoming, patience: Duration, permit: Permit) -> Self {
        Self {
            body,
            patience,
            timer: None,
            armed: false,
            _permit: permit,
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.armed = false;
            return Poll::Ready(
                frame.map(|f| f.map(without_forbidden_trailers).map_err(|e| fault::in_body(&e))),
            );
        }
        let patience = this.patience;
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        if !this.armed {
            this.armed = true;
            timer.as_mut().reset(tokio::time::Instant::now() + patience);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
