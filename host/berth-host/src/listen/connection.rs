//! One connection, from its first byte to its last.
//!
//! Which protocol it is, TLS says by ALPN; without TLS the first bytes do (HTTP/2 with prior knowledge begins with its
//! preface). Finding out, the handshake included, has the time of a request's head and no more.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::Shutdown;
use super::lingering::{Lingering, Protocol};
use super::tls::Tls;
use crate::body::ReplyBody;
use crate::state::HostLimits;

/// How much larger than its limit a head may be and still be read, so that it gets an answer with a sentence; beyond
/// that hyper answers by itself.
const HEAD_SLACK: usize = 16 * 1024;
/// Bytes of answers that one HTTP/2 stream may have waiting for its client.
const SEND_BUFFER: usize = 256 * 1024;
/// Resets that a client may have outstanding before the connection is given up (CVE-2023-44487, "rapid reset").
const PENDING_RESETS: usize = 20;

/// How long a client may take to say goodbye on an HTTP/2 connection without streams.
const GOODBYE: Duration = Duration::from_secs(2);

/// A service of this host.
pub(super) trait Serve:
    Service<Request<Incoming>, Response = Response<ReplyBody>, Error = Infallible>
{
}
impl<S: Service<Request<Incoming>, Response = Response<ReplyBody>, Error = Infallible>> Serve for S {}

/// Serve a connection until it ends.
pub(super) async fn run<S>(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    service: S,
    limits: HostLimits,
    shutdown: Shutdown,
) where
    S: Serve + Send + 'static,
    S::Future: Send + 'static,
{
    // Without this a small body waits for the acknowledgement of its head: 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(target: "berth::listen", %error, "TCP_NODELAY can't be set");
    }
    let reset = Arc::new(AtomicBool::new(false));
    let writes = Arc::new(Writes::default());
    let mut stream = Lingering::new(stream, limits.idle_time, Arc::clone(&reset), Arc::clone(&writes));
    if let Some(tls) = tls {
        let handshake = timeout(limits.header_time, tls.acceptor().accept(stream));
        let accepted = tokio::select! {
            accepted = handshake => accepted,
            () = shutdown.stop.cancelled() => return,
        };
        match accepted {
            Ok(Ok(stream)) => match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => serve_http2(stream, service, limits, &shutdown, writes).await,
                _ => serve_http1(stream, service, limits, &shutdown, &reset).await,
            },
            Ok(Err(error)) => {
                tracing::debug!(target: "berth::listen", %error, "a TLS handshake failed");
            }
            Err(_) => tracing::debug!(target: "berth::listen", "a TLS handshake took too long"),
        }
        return;
    }
    let protocol = tokio::select! {
        biased;
        protocol = timeout(limits.header_time, stream.sniff()) => protocol,
        () = shutdown.stop.cancelled() => return,
    };
    match protocol {
        Ok(Ok(Protocol::Http1)) => serve_http1(stream, service, limits, &shutdown, &reset).await,
        Ok(Ok(Protocol::Http2)) => serve_http2(stream, service, limits, &shutdown, writes).await,
        // The client left, or said nothing for as long as a head may take.
        Ok(Err(_)) | Err(_) => {}
    }
}

async fn serve_http1<I, S>(io: I, service: S, limits: HostLimits, shutdown: &Shutdown, reset: &AtomicBool)
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Serve,
{
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(limits.header_bytes.saturating_add(HEAD_SLACK));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut stop = pin!(shutdown.stop.cancelled());
    let mut abort = pin!(shutdown.abort.cancelled());
    let mut stopping = false;
    let ended = poll_fn(|cx| {
        if abort.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        // First once as it is, so that a request that has come already is seen before the stop.
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        if !stopping && stop.as_mut().poll(cx).is_ready() {
            stopping = true;
            connection.as_mut().graceful_shutdown();
            return connection.as_mut().poll(cx);
        }
        Poll::Pending
    });
    match ended.await {
        Ok(()) => {}
        Err(error) if error.is_incomplete_message() || error.is_timeout() => {}
        // A body that was cut off. In HTTP/1.0 a body ends with its connection, so only a reset tells it from a whole one.
        Err(error) if error.is_user() => reset.store(true, Ordering::Relaxed),
        Err(error) => tracing::debug!(target: "berth::listen", %error, "a connection ended badly"),
    }
}

async fn serve_http2<I, S>(io: I, service: S, limits: HostLimits, shutdown: &Shutdown, writes: Arc<Writes>)
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Serve,
    S::Future: Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_send_buf_size(SEND_BUFFER);
    let activity = Arc::new(Activity::new(writes));
    let counted = service_fn(|request| {
        let stream = StreamGuard::open(&activity);
        let answered = service.call(request);
        async move {
            let mut response = answered.await?;
            response.body_mut().hold(stream.answered());
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), counted));
    let mut stop = pin!(shutdown.stop.cancelled());
    let mut abort = pin!(shutdown.abort.cancelled());
    // The shorter of the two, because it isn't known yet which will count.
    let look = limits.header_time.min(limits.idle_time);
    let mut timer = pin!(sleep(look));
    let mut stopping = false;
    let ended = poll_fn(|cx| {
        if abort.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        if !stopping && stop.as_mut().poll(cx).is_ready() {
            stopping = true;
            connection.as_mut().graceful_shutdown();
            timer.as_mut().reset((Instant::now() + GOODBYE).into());
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
        }
        while timer.as_mut().poll(cx).is_ready() {
            let due = activity.due(&limits, stopping);
            if due.is_zero() {
                if stopping || activity.open() > 0 {
                    return Poll::Ready(Ok(()));
                }
                stopping = true;
                connection.as_mut().graceful_shutdown();
                timer.as_mut().reset((Instant::now() + GOODBYE).into());
                if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                    return Poll::Ready(ended);
                }
            } else {
                timer.as_mut().reset((Instant::now() + due.min(look)).into());
            }
        }
        Poll::Pending
    });
    if let Err(error) = ended.await {
        tracing::debug!(target: "berth::listen", %error, "an HTTP/2 connection ended badly");
    }
}

/// When a socket last took bytes. hyper lets go of an answer's body when its last piece is with the HTTP/2 layer, which
/// may be long before a slow client has it.
#[derive(Debug)]
pub(super) struct Writes {
    base: Instant,
    /// Milliseconds after `base`.
    last: AtomicU64,
}

impl Default for Writes {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            last: AtomicU64::new(0),
        }
    }
}

impl Writes {
    fn now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Bytes went out.
    pub(super) fn touch(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }
}

/// What happens on an HTTP/2 connection, as far as its end depends on it. hyper has no idle time for HTTP/2, and a
/// client that opens no window would hold its answers for ever.
#[derive(Debug)]
struct Activity {
    writes: Arc<Writes>,
    /// Streams whose answer is not out yet.
    open: AtomicUsize,
    /// Of these, the ones whose answer is being sent, each with the time at which it last moved.
    answered: Mutex<Vec<Weak<AtomicU64>>>,
    /// When a stream last began or ended, as `writes` counts.
    changed: AtomicU64,
}

impl Activity {
    fn new(writes: Arc<Writes>) -> Self {
        Self {
            writes,
            open: AtomicUsize::new(0),
            answered: Mutex::default(),
            changed: AtomicU64::new(0),
        }
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn touch(&self) {
        self.changed.store(self.writes.now(), Ordering::Relaxed);
    }

    /// How much longer the connection may be as it is. Nothing: its time is over.
    fn due(&self, limits: &HostLimits, stopping: bool) -> Duration {
        let now = self.writes.now();
        let left = |patience: Duration, since: u64| {
            patience.saturating_sub(Duration::from_millis(now.saturating_sub(since)))
        };
        if self.open() == 0 {
            let patience = if stopping { GOODBYE } else { limits.header_time };
            let last = self.writes.last.load(Ordering::Relaxed);
            return left(patience, self.changed.load(Ordering::Relaxed).max(last));
        }
        // One answer that nobody takes is enough: it may hold an instance. Whoever works on a request keeps its
        // deadlines.
        let mut oldest = now;
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.retain(|moved| match moved.upgrade() {
            Some(moved) => {
                oldest = oldest.min(moved.load(Ordering::Relaxed));
                true
            }
            None => false,
        });
        left(limits.idle_time, oldest)
    }
}

/// Counts one stream as open, until it is dropped with the answer's body.
#[derive(Debug)]
pub(crate) struct StreamGuard {
    activity: Arc<Activity>,
    moved: Arc<AtomicU64>,
}

impl StreamGuard {
    fn open(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::Relaxed);
        activity.touch();
        Self {
            activity: Arc::clone(activity),
            moved: Arc::default(),
        }
    }

    /// The answer is there; what is left is to send it.
    fn answered(self) -> Self {
        self.moved();
        let mut answered = self
            .activity
            .answered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if answered.len() == answered.capacity() {
            answered.retain(|moved| moved.strong_count() > 0);
        }
        answered.push(Arc::downgrade(&self.moved));
        drop(answered);
        self
    }

    /// A piece of the answer went out.
    pub(crate) fn moved(&self) {
        self.moved.store(self.activity.writes.now(), Ordering::Relaxed);
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.activity.touch();
        self.activity.open.fetch_sub(1, Ordering::Relaxed);
    }
}
