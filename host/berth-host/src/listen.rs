//! Sockets: accept, serve HTTP/1.1, stop without losing a request.
//!
//! What hyper does by itself, and can't be told otherwise: a head that doesn't parse is answered with 400 and an empty
//! body, one that is far too large with 431 (a path, with 414) and an empty body, and one that doesn't arrive in time closes the connection
//! without an answer. The same time bounds an idle kept-alive connection.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::{HostMetrics, Listener, Open};
use crate::runtime::reuse::{IDLE, Shelf};
use crate::serve::{self, Peer};
use crate::state::{Host, HostLimits};
use crate::{health, metrics, respond};

/// Connections that the kernel holds for us while we are busy.
const BACKLOG: i32 = 1024;
/// How long to wait after an accept that failed for want of something (file descriptors, memory).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Connections of operators at once.
pub const ADMIN_CONNECTIONS: usize = 64;
/// How long, and for how many bytes, a closed connection is still read, so that a client that is still sending gets
/// to read the answer instead of a reset.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 8 * 1024 * 1024;

/// A socket that listens, with the address it got.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    /// The address; the port is never 0.
    pub address: SocketAddr,
}

/// Bind an address.
///
/// # Errors
/// The system's own, such as "address in use".
pub fn bind(address: SocketAddr) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // So that a restart need not wait for the last connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    let address = listener.local_addr()?;
    Ok(Bound { listener, address })
}

/// Tells everything that serves to stop.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Take no more requests, finish the ones at hand.
    stop: CancellationToken,
    /// Let go of everything.
    abort: CancellationToken,
    connections: TaskTracker,
}

impl Shutdown {
    /// Nothing stops yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stop accepting and wait until every request is answered and every guest is done, at most `patience`.
    /// Returns how many connections had to be cut.
    pub async fn drain(&self, host: &Host, patience: Duration) -> usize {
        self.stop.cancel();
        self.connections.close();
        let quiet = async {
            self.connections.wait().await;
            host.shelves().for_each(Shelf::close);
            // Guests that still work after their answer keep their place until they are done.
            host.instances.all_gone().await;
        };
        let in_time = timeout(patience, quiet).await.is_ok();
        let cut = if in_time { 0 } else { self.connections.len() };
        host.cutting.store(true, Ordering::Relaxed);
        self.abort.cancel();
        cut
    }
}

/// Give up instances that have been idle for long, until told to stop.
pub async fn sweep(host: Arc<Host>, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(IDLE / 4);
    loop {
        tokio::select! {
            _ = ticks.tick() => host.shelves().for_each(|shelf| shelf.give_up_older(IDLE)),
            () = shutdown.stop.cancelled() => return,
        }
    }
}

/// Accept callers until told to stop.
pub async fn run(host: Arc<Host>, bound: Bound, shutdown: Shutdown) {
    let permits = Arc::new(Semaphore::new(host.limits.connections));
    let counted = (&host.metrics, Listener::Http);
    accept(bound, &shutdown, permits, counted, |stream, peer| {
        let (host, peer) = (Arc::clone(&host), Arc::new(Peer::new(peer, Arc::clone(&host))));
        let limits = host.limits;
        let service =
            service_fn(move |request| serve::request(Arc::clone(&host), Arc::clone(&peer), request));
        connection(stream, service, limits, shutdown.clone())
    })
    .await;
}

/// Accept operators until told to stop: the metrics and the health report, no plugins.
pub async fn run_admin(host: Arc<Host>, bound: Bound, shutdown: Shutdown) {
    let permits = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
    let counted = (&host.metrics, Listener::Admin);
    accept(bound, &shutdown, permits, counted, |stream, _| {
        let host = Arc::clone(&host);
        let limits = host.limits;
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let host = Arc::clone(&host);
            async move {
                Ok::<_, std::convert::Infallible>(match request.uri().path() {
                    "/metrics" => metrics_text(host).await,
                    "/health" => health::report(&host),
                    _ => {
                        let answer = respond::answer(&crate::error::Error::NotFound);
                        respond::problem(&answer, &http::HeaderValue::from_static("admin"))
                    }
                })
            }
        });
        connection(stream, service, limits, shutdown.clone())
    })
    .await;
}

/// Rendered apart from the requests: it asks the kernel, and may have thousands of lines.
async fn metrics_text(host: Arc<Host>) -> http::Response<crate::body::ReplyBody> {
    match tokio::task::spawn_blocking(move || metrics::render(&host)).await {
        Ok(text) => respond::text(metrics::CONTENT_TYPE, text),
        Err(error) => {
            tracing::error!(target: "berth", %error, "the metrics could not be rendered");
            let error = crate::error::Error::Internal(error.to_string());
            respond::problem(&respond::answer(&error), &http::HeaderValue::from_static("admin"))
        }
    }
}

async fn accept<F, C>(
    bound: Bound,
    shutdown: &Shutdown,
    permits: Arc<Semaphore>,
    (metrics, listener): (&Arc<HostMetrics>, Listener),
    serve: F,
) where
    F: Fn(TcpStream, SocketAddr) -> C,
    C: Future<Output = ()> + Send + 'static,
{
    loop {
        let next = async {
            // The permit first: connections beyond the limit wait in the kernel, unaccepted.
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, bound.listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = shutdown.stop.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let open = Open::new(metrics, listener);
                let connection = serve(stream, peer);
                shutdown.connections.spawn(async move {
                    let _permit = permit;
                    let _open = open;
                    connection.await;
                });
            }
            // The other end gave up before we looked; nothing is wrong here.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                metrics.listener(listener).accept_failed();
                tracing::warn!(target: "berth::listen", %error, "a connection can't be accepted; trying again in {} ms", ACCEPT_BACKOFF.as_millis());
                tokio::select! {
                    () = sleep(ACCEPT_BACKOFF) => {}
                    () = shutdown.stop.cancelled() => return,
                }
            }
        }
    }
}

async fn connection<S>(stream: TcpStream, service: S, limits: HostLimits, shutdown: Shutdown)
where
    S: hyper::service::Service<
            http::Request<hyper::body::Incoming>,
            Response = http::Response<crate::body::ReplyBody>,
            Error = std::convert::Infallible,
        >,
{
    // Without this a small body waits for the acknowledgement of its head: 40 ms.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(target: "berth::listen", %error, "TCP_NODELAY can't be set");
    }
    let reset = Arc::new(AtomicBool::new(false));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(limits.header_bytes);
    let mut connection = pin!(builder.serve_connection(
        TokioIo::new(Lingering::new(stream, limits.idle_time, Arc::clone(&reset))),
        service
    ));
    let mut stop = pin!(shutdown.stop.cancelled());
    let mut abort = pin!(shutdown.abort.cancelled());
    let mut stopping = false;
    let served = poll_fn(|cx| {
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
    match served.await {
        Ok(()) => {}
        Err(error) if error.is_incomplete_message() || error.is_timeout() => {}
        // A body that was cut off. In HTTP/1.0 a body ends with its connection, so only a reset tells it from a whole one.
        Err(error) if error.is_user() => reset.store(true, Ordering::Relaxed),
        Err(error) => tracing::debug!(target: "berth::listen", %error, "a connection ended badly"),
    }
}

/// A socket that minds its end.
///
/// - When its writing side is shut down, it still reads what the client sends, for a while: closing with unread bytes
///   makes the kernel send a reset, which can overtake the answer (a 413 to a client that is still sending).
/// - A client that reads nothing for `patience` while there is something to write is cut off, or it would keep the
///   connection for ever.
/// - When the answer was cut off, it closes with a reset.
struct Lingering {
    stream: TcpStream,
    shut: bool,
    left: usize,
    timer: Option<Pin<Box<Sleep>>>,
    patience: Duration,
    stuck: Option<Pin<Box<Sleep>>>,
    reset: Arc<AtomicBool>,
}

impl Lingering {
    fn new(stream: TcpStream, patience: Duration, reset: Arc<AtomicBool>) -> Self {
        Self {
            stream,
            shut: false,
            left: LINGER_BYTES,
            timer: None,
            patience,
            stuck: None,
            reset,
        }
    }

    /// Keep the time of a write that can't go on.
    fn timed<T>(&mut self, cx: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.stuck = None;
            return write;
        }
        let patience = self.patience;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // If it can't be set, the client sees an ordinary end; there is nothing else left to do.
            let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timed(cx, write)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.timed(cx, write)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.shut {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.shut = true;
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut scratch = [0; 4096];
        while this.left > 0 && timer.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut scratch);
            // An error here is a client that is gone: nothing is left to wait for.
            if ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf)).is_err() || buf.filled().is_empty()
            {
                break;
            }
            this.left = this.left.saturating_sub(buf.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}
