//! One plugin's client: its pool of connections, its limits, and one call from the check to the response head.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::client::legacy::{self, Error as PoolError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::body::{Download, Progress, Upload};
use super::connect::{Connector, System};
use super::denied;
use super::fault::{self, ConnectFault};
use crate::grants::hosts::{HttpGrant, Scheme, Target};
use crate::headers;
use crate::runtime::instance::Origin;

/// Requests of one plugin at once; more wait for as long as a connection may take.
const MAX_REQUESTS: usize = 64;
/// Connections of one plugin at once, idle ones included.
const MAX_CONNECTIONS: usize = 256;
/// Idle connections to one host.
const MAX_IDLE: usize = 32;
/// How long a connection waits for its next request. Shorter than what servers usually wait, so that they are rarely
/// the ones to close.
const IDLE: Duration = Duration::from_secs(15);
/// Bytes of a response's head. A guest's header map has twice as much, for its overhead.
const MAX_HEAD: u32 = 64 * 1024;
/// Bytes that a server may send ahead of the guest's reading, on one HTTP/2 stream and on the whole connection.
const WINDOWS: (u32, u32) = (256 * 1024, 1024 * 1024);
/// How often a busy HTTP/2 connection is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// What a guest gets that asks for nothing, and the most that it can ask for.
const CONNECT: Bounds = Bounds::seconds(10, 60);
/// Until the response head, from the moment that the server has the request.
const FIRST_BYTE: Bounds = Bounds::seconds(30, 600);
/// Between two pieces of the response's body.
const BETWEEN_BYTES: Bounds = Bounds::seconds(30, 600);

struct Bounds {
    default: Duration,
    most: Duration,
}

impl Bounds {
    const fn seconds(default: u64, most: u64) -> Self {
        Self {
            default: Duration::from_secs(default),
            most: Duration::from_secs(most),
        }
    }

    fn hold(&self, wanted: Option<Duration>) -> Duration {
        wanted.unwrap_or(self.default).min(self.most)
    }
}

/// Calls the hosts that one plugin may call.
#[derive(Clone)]
pub struct Client {
    grant: Arc<HttpGrant>,
    pool: legacy::Client<Connector<System>, Upload>,
    requests: Arc<Semaphore>,
}

impl Client {
    /// For a plugin with this grant.
    pub fn new(grant: &HttpGrant) -> Self {
        let grant = Arc::new(grant.clone());
        let connector = Connector::new(Arc::clone(&grant), System::new(), MAX_CONNECTIONS, CONNECT.most);
        let pool = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_HEAD as usize)
            .http2_max_header_list_size(MAX_HEAD)
            .http2_initial_stream_window_size(WINDOWS.0)
            .http2_initial_connection_window_size(WINDOWS.1)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .build(connector);
        Self {
            grant,
            pool,
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
        }
    }

    /// What the plugin may call.
    pub fn grant(&self) -> &HttpGrant {
        &self.grant
    }

    /// Send a request to a target that the grant allows, and wait for its response's head.
    ///
    /// # Errors
    /// The code for the guest.
    pub(super) async fn send(
        self,
        origin: Arc<Origin>,
        target: Target,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
    ) -> Result<Response<WasiBody>, Error> {
        let started = Instant::now();
        let method = request.method().clone();
        let result = self.exchange(&origin, &target, request, options).await;
        let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (status, error) = match &result {
            Ok(response) => (Some(response.status().as_u16()), None),
            Err(error) => (None, Some(error.to_string())),
        };
        tracing::debug!(
            target: "berth::outgoing",
            plugin = origin.plugin.name,
            request_id = origin.request_id(),
            %method,
            host = %target.host,
            port = target.port,
            status,
            error,
            took_ms,
            "outgoing HTTP request to {target}",
        );
        result
    }

    async fn exchange(
        self,
        origin: &Arc<Origin>,
        target: &Target,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
    ) -> Result<Response<WasiBody>, Error> {
        let options = options.unwrap_or_default();
        let connect = CONNECT.hold(options.connect_timeout);
        let first_byte = FIRST_BYTE.hold(options.first_byte_timeout);
        let between_bytes = BETWEEN_BYTES.hold(options.between_bytes_timeout);

        let permit = timeout(connect, Arc::clone(&self.requests).acquire_owned())
            .await
            .map_err(|_| Error::ConnectionLimitReached)?
            .map_err(|_| Error::ConnectionLimitReached)?;
        let permit = Arc::new(permit);
        let progress = Arc::new(Progress::new());
        let (mut head, body) = request.into_parts();
        headers::strip_all(&mut head.headers);
        head.uri = normal(head.uri, target)?;
        let upload = Upload::new(
            body,
            Arc::clone(origin),
            Arc::clone(&progress),
            Arc::clone(&permit),
        );
        let request = Request::from_parts(head, upload);

        let response = self.head(request, &progress, connect, first_byte).await?;
        let response = response.map_err(|error| explain(origin, target, &error))?;
        let (mut head, body) = response.into_parts();
        headers::strip_all(&mut head.headers);
        // What the client keeps there is none of the guest's.
        head.extensions.clear();
        let body = Download::new(body, between_bytes, permit).boxed_unsync();
        Ok(Response::from_parts(head, body))
    }

    /// Within the times that are allowed: the outer error is that one of them is over.
    async fn head(
        &self,
        mut request: Request<Upload>,
        progress: &Progress,
        connect: Duration,
        first_byte: Duration,
    ) -> Result<Result<Response<Incoming>, PoolError>, Error> {
        let mut connection = capture_connection(&mut request);
        let mut sent = pin!(self.pool.request(request));
        tokio::select! {
            biased;
            result = &mut sent => return Ok(result),
            _ = async { connection.wait_for_connection_metadata().await.is_some() } => {}
            () = sleep(connect) => return Err(Error::ConnectionTimeout),
        }
        let mut left = first_byte;
        loop {
            tokio::select! {
                biased;
                result = &mut sent => return Ok(result),
                () = sleep(left) => {}
            }
            // A body that is still on its way is no silence.
            left = first_byte.saturating_sub(progress.silence());
            if left.is_zero() {
                return Err(Error::ConnectionReadTimeout);
            }
        }
    }
}

/// The code for the guest, and a line in the log where somebody can do something about it.
fn explain(origin: &Origin, target: &Target, error: &PoolError) -> Error {
    match fault::connect_fault(error) {
        Some(ConnectFault::Refused(ip)) => {
            let why = format!("it resolves to {ip}, which is not a public address and is not granted");
            denied(origin, target, &target.entry_for(*ip), &why);
        }
        Some(ConnectFault::NoRoots(why)) if origin.take_line() => tracing::warn!(
            target: "berth::guest",
            plugin = origin.plugin.name,
            request_id = origin.request_id(),
            "outgoing HTTP request to {target} failed: {why}",
        ),
        _ => tracing::debug!(
            target: "berth::outgoing",
            plugin = origin.plugin.name,
            request_id = origin.request_id(),
            "outgoing HTTP request to {target} failed: {}",
            fault::chain(error),
        ),
    }
    fault::before_head(error)
}

/// The same URL with its authority as it was checked: spellings of one host share their connections.
fn normal(uri: Uri, target: &Target) -> Result<Uri, Error> {
    let authority = target.entry();
    if uri.authority().is_some_and(|a| a.as_str() == authority) {
        return Ok(uri);
    }
    let mut parts = uri.into_parts();
    parts.scheme = Some(match target.scheme {
        Scheme::Http => UriScheme::HTTP,
        Scheme::Https => UriScheme::HTTPS,
    });
    parts.authority = Some(Authority::try_from(authority).map_err(|_| Error::HttpRequestUriInvalid)?);
    parts
        .path_and_query
        .get_or_insert_with(|| PathAndQuery::from_static("/"));
    Uri::from_parts(parts).map_err(|_| Error::HttpRequestUriInvalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_held_to_the_ceiling_and_nothing_is_a_wish_too() {
        assert_eq!(CONNECT.hold(None), Duration::from_secs(10));
        assert_eq!(CONNECT.hold(Some(Duration::MAX)), Duration::from_secs(60));
        assert_eq!(BETWEEN_BYTES.hold(Some(Duration::ZERO)), Duration::ZERO);
    }
}
