//! Connections to other hosts: resolve, check every address, connect to exactly those that passed.
//!
//! There is no second look-up between the check and the connection, so an answer of the resolver that changes can't
//! get an unchecked address in.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tower_service::Service;
use wasmtime_wasi::runtime::AbortOnDropJoinHandle;

use super::fault::ConnectFault;
use super::tls::Tls;
use crate::grants::hosts::{Host, HttpGrant, Scheme, Target};

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;
/// How long one address is tried alone (RFC 8305 section 8).
const HEAD_START: Duration = Duration::from_millis(250);
/// Look-ups of one plugin at once. A look-up holds a thread and can't be interrupted.
const LOOKUPS: usize = 8;

/// From a name to addresses.
pub(super) trait Resolve: Clone + Send + Sync + 'static {
    /// Every address of a name.
    fn resolve(&self, name: String, port: u16) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;
}

/// The machine's resolver.
#[derive(Clone)]
pub(super) struct System {
    lookups: Arc<Semaphore>,
}

impl System {
    pub(super) fn new() -> Self {
        Self {
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
        }
    }
}

impl Resolve for System {
    async fn resolve(&self, name: String, port: u16) -> io::Result<Vec<SocketAddr>> {
        let permit = Arc::clone(&self.lookups)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        // On a task of its own, which ends with the look-up's thread and not with whoever waits for it: the permit
        // counts threads.
        tokio::spawn(async move {
            let found = tokio::net::lookup_host((name.as_str(), port)).await;
            drop(permit);
            found.map(Iterator::collect)
        })
        .await
        .map_err(io::Error::other)?
    }
}

/// Makes the connections of one plugin.
#[derive(Clone)]
pub(super) struct Connector<R> {
    grant: Arc<HttpGrant>,
    resolver: R,
    tls: Tls,
    /// Connections that it may have, idle ones included.
    connections: Arc<Semaphore>,
    limit: Duration,
}

impl<R: Resolve> Connector<R> {
    /// `limit` is how long a connection may take, from the name to the end of the TLS handshake.
    pub(super) fn new(grant: Arc<HttpGrant>, resolver: R, connections: usize, limit: Duration) -> Self {
        Self {
            grant,
            resolver,
            tls: Tls::default(),
            connections: Arc::new(Semaphore::new(connections)),
            limit,
        }
    }

    async fn connect(self, target: Target) -> Result<Stream, ConnectFault> {
        let deadline = Instant::now() + self.limit;
        let permit = timeout_at(deadline, Arc::clone(&self.connections).acquire_owned())
            .await
            .map_err(|_| ConnectFault::Limit)?
            .map_err(|_| ConnectFault::Stopped)?;
        let addresses = timeout_at(deadline, self.addresses(&target))
            .await
            .map_err(|_| ConnectFault::DnsTimeout)??;
        let tcp = timeout_at(deadline, first(addresses))
            .await
            .map_err(|_| ConnectFault::Timeout)?
            .map_err(ConnectFault::Tcp)?;
        let transport = match target.scheme {
            Scheme::Http => Transport::Plain(TokioIo::new(tcp)),
            Scheme::Https => {
                let handshake = self.handshake(target.host, tcp);
                let tls = timeout_at(deadline, handshake)
                    .await
                    .map_err(|_| ConnectFault::Timeout)??;
                Transport::Tls(Box::new(TokioIo::new(tls)))
            }
        };
        Ok(Stream {
            transport,
            _permit: permit,
        })
    }

    /// The addresses that passed the check, of both families in turn, as the resolver ordered them.
    async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, ConnectFault> {
        let found = match &target.host {
            Host::Ip(ip) => vec![SocketAddr::new(*ip, target.port)],
            Host::Name(name) => {
                let found = self.resolver.resolve(name.clone(), target.port).await;
                found.map_err(ConnectFault::Dns)?
            }
        };
        let first = found.first().ok_or(ConnectFault::NoAddress)?.ip();
        let admitted = |address: &SocketAddr| self.grant.admits(target, address.ip());
        let passed: Vec<SocketAddr> = found.iter().filter(|a| admitted(a)).copied().collect();
        if passed.is_empty() {
            return Err(ConnectFault::Refused(first.to_canonical()));
        }
        Ok(in_turn(passed))
    }

    async fn handshake(&self, host: Host, tcp: TcpStream) -> Result<TlsStream<TcpStream>, ConnectFault> {
        let name = match host {
            Host::Ip(ip) => ServerName::IpAddress(ip.into()),
            Host::Name(name) => ServerName::try_from(name).map_err(|_| ConnectFault::NoHost)?,
        };
        let connector = self.tls.connector().await?;
        connector.connect(name, tcp).await.map_err(ConnectFault::Tls)
    }
}

/// Both families in turn, beginning with the first one's.
fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let leads_with_6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut these, mut those): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|a| a.is_ipv6() == leads_with_6);
    let mut ordered = Vec::new();
    while let Some(next) = these.pop_front() {
        ordered.push(next);
        if !those.is_empty() {
            std::mem::swap(&mut these, &mut those);
        }
    }
    ordered.truncate(MAX_ADDRESSES);
    ordered
}

/// A connection to whichever address answers first; each next one is tried when the last has failed or kept silent
/// for a while.
async fn first(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    attempts.extend(waiting.next().map(TcpStream::connect));
    loop {
        tokio::select! {
            biased;
            ended = attempts.next() => match ended {
                Some(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Some(Err(error)) => {
                    last = error;
                    attempts.extend(waiting.next().map(TcpStream::connect));
                }
                None => return Err(last),
            },
            () = sleep(HEAD_START), if waiting.len() > 0 => {
                attempts.extend(waiting.next().map(TcpStream::connect));
            }
        }
    }
}

/// Where the client wants to connect: its key is the URL's scheme and authority.
fn target(uri: &Uri) -> Option<Target> {
    let scheme = match uri.scheme_str()? {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    Some(Target {
        scheme,
        host: Host::parse(uri.host()?)?,
        port: uri.port_u16().unwrap_or(scheme.default_port()),
    })
}

impl<R: Resolve> Service<Uri> for Connector<R> {
    type Response = Stream;
    type Error = ConnectFault;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectFault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Connecting {
        let connector = self.clone();
        // On a task of its own: what polls the request may be a guest's future, whose time is the guest's.
        Connecting(wasmtime_wasi::runtime::spawn(async move {
            match target(&uri) {
                Some(target) => connector.connect(target).await,
                None => Err(ConnectFault::NoHost),
            }
        }))
    }
}

/// A connection being made; dropping it ends the attempt.
pub(super) struct Connecting(AbortOnDropJoinHandle<Result<Stream, ConnectFault>>);

impl Future for Connecting {
    type Output = Result<Stream, ConnectFault>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// A connection. Its permit is given back when it is closed.
pub(super) struct Stream {
    transport: Transport,
    _permit: OwnedSemaphorePermit,
}

enum Transport {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Stream {
    /// The address at the other end.
    #[cfg(test)]
    fn peer(&self) -> std::net::IpAddr {
        let Transport::Plain(tcp) = &self.transport else {
            panic!("a test without TLS");
        };
        tcp.inner().peer_addr().unwrap().ip()
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match &self.transport {
            Transport::Tls(tls) if tls.inner().get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            _ => Connected::new(),
        }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Transport::Tls(tls) => Pin::new(tls).poll_read(cx, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Transport::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(tcp) => tcp.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Transport::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, slices),
        }
    }
}

#[cfg(test)]
mod tests;
