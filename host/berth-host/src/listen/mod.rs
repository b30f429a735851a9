//! Sockets: accept, serve HTTP/1.1 and HTTP/2, with or without TLS, stop without losing a request.
//!
//! What hyper does by itself, and can't be told otherwise: a head that doesn't parse is answered with 400 and an empty
//! body, one that is far too large with 431 (a path, with 414) and an empty body, and one that doesn't arrive in time closes the connection
//! without an answer. The same time bounds an idle kept-alive connection.

mod connection;
mod lingering;
pub mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::service::service_fn;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin;
use crate::metrics::{HostMetrics, Listener, Open};
use crate::runtime::reuse::IDLE;
use crate::serve::{self, Peer};
use crate::state::Host;
pub(crate) use connection::StreamGuard;
use tls::Tls;

/// Connections that the kernel holds for us while we are busy.
const BACKLOG: i32 = 1024;
/// How long to wait after an accept that failed for want of something (file descriptors, memory).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// How long operators have to take their last answer when the host stops.
const ADMIN_GRACE: Duration = Duration::from_secs(2);

/// Connections of operators at once.
pub const ADMIN_CONNECTIONS: usize = 64;

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

    /// Cancelled when everything is to stop.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Stop accepting and wait until every request is answered and every guest is done, at most `patience`.
    /// Returns how many connections had to be cut.
    pub async fn drain(&self, host: &Host, patience: Duration) -> usize {
        self.stop.cancel();
        self.connections.close();
        let quiet = async {
            self.connections.wait().await;
            host.versions().iter().for_each(|version| version.retire());
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
            _ = ticks.tick() => host.versions().iter().for_each(|version| version.shelf.give_up_older(IDLE)),
            () = shutdown.stop.cancelled() => return,
        }
    }
}

/// Accept callers until told to stop, with TLS if it is given.
pub async fn run(host: Arc<Host>, bound: Bound, tls: Option<Arc<Tls>>, shutdown: Shutdown) {
    if let Some(tls) = &tls {
        let (tls, stop) = (Arc::clone(tls), shutdown.stop.clone());
        tokio::spawn(async move { tls.follow(stop).await });
    }
    let secure = tls.is_some();
    let permits = Arc::new(Semaphore::new(host.limits.connections));
    let counted = (&host.metrics, Listener::Http);
    accept(bound, &shutdown, permits, counted, |stream, peer| {
        let (host, peer) = (
            Arc::clone(&host),
            Arc::new(Peer::new(peer, secure, Arc::clone(&host))),
        );
        let limits = host.limits;
        let service =
            service_fn(move |request| serve::request(Arc::clone(&host), Arc::clone(&peer), request));
        connection::run(stream, tls.clone(), service, limits, shutdown.clone())
    })
    .await;
}

/// Accept operators until told to stop: the metrics, the health report, and the admin API. No plugin answers here.
pub async fn run_admin(host: Arc<Host>, bound: Bound, shutdown: Shutdown) {
    let permits = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
    let counted = (&host.metrics, Listener::Admin);
    accept(bound, &shutdown, permits, counted, |stream, peer| {
        let host = Arc::clone(&host);
        let (limits, stop) = (host.limits, shutdown.stopping());
        let service = service_fn(move |request| {
            let answer = admin::answer(Arc::clone(&host), peer, request, stop.clone());
            async move { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        let stopping = shutdown.stopping();
        let connection = connection::run(stream, None, service, limits, shutdown.clone());
        async move {
            // Somebody who follows the events and doesn't read them must not hold up the stop.
            let late = async {
                stopping.cancelled().await;
                sleep(ADMIN_GRACE).await;
            };
            tokio::select! {
                () = connection => {}
                () = late => {}
            }
        }
    })
    .await;
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
