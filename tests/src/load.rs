//! Many clients at once: how long each request takes, and what came back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Builder;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Run asynchronous clients on two threads of their own.
pub fn run<F: Future>(clients: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(clients)
}

/// Times of requests, sorted.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Of these.
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The time below which this share (0 to 1) of the requests stayed.
    ///
    /// # Panics
    /// There are none.
    pub fn percentile(&self, share: f64) -> Duration {
        let at = ((self.0.len() as f64 * share).ceil() as usize).clamp(1, self.0.len());
        self.0[at - 1]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| self.percentile(share));
        write!(
            f,
            "{} requests, p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}",
            self.len()
        )
    }
}

/// A kept-alive connection.
pub struct Client(http1::SendRequest<Empty<Bytes>>);

impl Client {
    /// Connect.
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address)
            .await
            .expect("the host accepts connections");
        stream.set_nodelay(true).expect("TCP_NODELAY can be set");
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        // How it ended shows in its requests.
        tokio::spawn(async move { drop(connection.await) });
        Self(sender)
    }

    /// One `GET`, to the end of its body: the status, `Retry-After`, and how long it took.
    pub async fn get(&mut self, path: &str) -> (u16, Option<String>, Duration) {
        let started = Instant::now();
        let response = self.send(Request::get(path)).await;
        let status = response.status().as_u16();
        let retry = response.headers().get("retry-after");
        let retry = retry.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        response.into_body().collect().await.expect("a whole body");
        (status, retry, started.elapsed())
    }

    /// One `GET` with a request id of ours, to the end of its body: the status and the body.
    pub async fn ask(&mut self, path: &str, id: &str) -> (u16, String) {
        let response = self.send(Request::get(path).header("x-request-id", id)).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a whole body");
        (status, String::from_utf8_lossy(&body.to_bytes()).into_owned())
    }

    async fn send(&mut self, request: Builder) -> Response<Incoming> {
        let request = request.header("host", "berth.test").body(Empty::new());
        self.0.ready().await.expect("a connection that is open");
        let sent = self.0.send_request(request.expect("a request"));
        sent.await.expect("an answer")
    }
}

/// One request on each of so many connections, all at once: how many answers there were of each status, with or
/// without `Retry-After`.
pub async fn at_once(address: SocketAddr, path: &'static str, count: usize) -> BTreeMap<(u16, bool), usize> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        clients.push(Client::open(address).await);
    }
    let asked: Vec<_> = clients
        .into_iter()
        .map(|mut client| tokio::spawn(async move { client.get(path).await }))
        .collect();
    let mut answers = BTreeMap::new();
    for one in asked {
        let (status, retry, _) = one.await.expect("a client that ends");
        *answers.entry((status, retry.is_some())).or_default() += 1;
    }
    answers
}

/// Keep so many connections busy with one request after another for a while, every answer a 200.
///
/// # Panics
/// An answer wasn't.
pub async fn steadily(
    address: SocketAddr,
    path: &'static str,
    connections: usize,
    duration: Duration,
) -> Times {
    let end = Instant::now() + duration;
    let busy: Vec<_> = (0..connections)
        .map(|_| {
            tokio::spawn(async move {
                let mut client = Client::open(address).await;
                let mut times = Vec::new();
                while Instant::now() < end {
                    let (status, _, time) = client.get(path).await;
                    assert_eq!(status, 200);
                    times.push(time);
                    // Not a benchmark of the host: the others need to get on as well.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                times
            })
        })
        .collect();
    let mut all = Vec::new();
    for one in busy {
        all.extend(one.await.expect("a client that ends"));
    }
    Times::of(all)
}
