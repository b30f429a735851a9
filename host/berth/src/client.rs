//! A client of the admin API: a request and its JSON answer, a component on its way in, or events as they come.

mod pieces;
mod sse;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_host::admin::TOKEN_FILE;
use berth_host::data::{self, DataError};
use berth_host::secret::Secret;
use berth_host::state::HostSpec;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::text::clean;
use pieces::Pieces;
pub(crate) use pieces::Sent;
use sse::Parser;

/// How long an answer may take. The host itself waits less for its database.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a host may take with a component that it has: compiling the largest takes minutes on a slow machine.
const WORK: Duration = Duration::from_secs(600);
/// How long a stream may be silent. The host says something every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// The header of a component's signature: the text of its `.minisig` file, in base64.
const SIGNATURE: &str = "berth-signature";

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum ClientError {
    /// The manifest has no admin address.
    Off(PathBuf),
    /// There is no token to show.
    Token(PathBuf, DataError),
    /// Nobody answers there.
    Unreachable(SocketAddr, String),
    /// The host refused the token of this file.
    NotPermitted(SocketAddr, PathBuf),
    /// The host refused.
    Refused(Refusal),
    /// A stream that had begun has ended.
    Ended(SocketAddr, String),
}

/// What a host says when it refuses.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The name of the reason.
    pub(crate) code: String,
    /// All of it.
    pub(crate) answer: Value,
}

impl Refusal {
    /// From a problem, or from the event of a refusal; nothing if it is neither.
    pub(crate) fn of(answer: Value) -> Option<Self> {
        let code = clean(answer.get("code")?.as_str()?);
        Some(Self { code, answer }).filter(|refusal| !refusal.code.is_empty())
    }

    /// Why, in a sentence.
    pub(crate) fn reason(&self) -> String {
        let said = ["detail", "reason"]
            .iter()
            .find_map(|member| self.answer.get(member).and_then(Value::as_str));
        clean(said.unwrap_or(&self.code))
    }

    /// Every reason, a sentence each: the single faults of a component, else the one sentence.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let faults = ["faults", "errors"]
            .iter()
            .find_map(|member| self.answer.get(member).and_then(Value::as_array));
        let sentence = |fault: &Value| {
            let message = fault.get("message").or_else(|| fault.get("detail"));
            message.unwrap_or(fault).as_str().map(clean)
        };
        let found: Vec<String> = faults.into_iter().flatten().filter_map(sentence).collect();
        match found.is_empty() {
            true => vec![self.reason()],
            false => found,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off(file) => write!(
                f,
                "{}: `admin.listen` is \"off\", so a host that serves it can't be asked",
                file.display()
            ),
            Self::Token(path, DataError::Io { error, .. })
                if error.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                write!(
                    f,
                    "{}: only the user that runs the host may read it; run this as that user",
                    path.display()
                )
            }
            Self::Token(path, DataError::Io { error, .. })
                if error.kind() == std::io::ErrorKind::NotFound =>
            {
                write!(
                    f,
                    "{}: there is no such file. A host makes it when it starts; is this its manifest (--config), and its \
                 data folder (`data.dir`)?",
                    path.display()
                )
            }
            Self::Token(_, error) => write!(f, "{error}"),
            Self::Unreachable(address, reason) => write!(
                f,
                "no host answers at {address} ({reason}); start it with `berth serve`, or name its manifest with --config"
            ),
            Self::NotPermitted(address, path) => write!(
                f,
                "the host at {address} doesn't take the token of {}; does it use another data folder?",
                path.display()
            ),
            Self::Refused(refusal) => f.write_str(&refusal.reason()),
            Self::Ended(address, reason) => write!(f, "the host at {address} says no more: {reason}"),
        }
    }
}

/// Knows where to ask, and with what.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    token: Secret,
    token_file: PathBuf,
}

impl Client {
    /// For the host that serves this manifest.
    pub(crate) fn new(spec: &HostSpec) -> Result<Self, ClientError> {
        let address = spec.admin.ok_or_else(|| ClientError::Off(spec.file.clone()))?;
        let token_file = spec.data.join(TOKEN_FILE);
        let token = data::read(&token_file).map_err(|error| ClientError::Token(token_file.clone(), error))?;
        Ok(Self {
            address: reachable(address),
            token,
            token_file,
        })
    }

    /// One request, its JSON answer.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json");
        let body = Bytes::from(body.map(Value::to_string).unwrap_or_default());
        match timeout(
            PATIENCE,
            self.exchange(request, Pieces::new(body, &Sent::default())),
        )
        .await
        {
            Ok(answer) => answer,
            Err(_) => Err(self.silent(PATIENCE)),
        }
    }

    /// Send a component, with the text of its signature. There is patience as long as it moves, and then for the host's
    /// work on it.
    pub(crate) async fn send(
        &self,
        path: &str,
        component: Bytes,
        signature: Option<&str>,
        sent: &Sent,
    ) -> Result<Value, ClientError> {
        let total = component.len();
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/wasm");
        if let Some(text) = signature {
            request = request.header(SIGNATURE, STANDARD.encode(text));
        }
        let mut answer = std::pin::pin!(self.exchange(request, Pieces::new(component, sent)));
        let mut moved = (sent.bytes(), Instant::now());
        loop {
            let patience = if sent.bytes() < total { PATIENCE } else { WORK };
            tokio::select! {
                answer = &mut answer => return answer,
                () = sleep(Duration::from_secs(1)) => {}
            }
            if sent.bytes() != moved.0 {
                moved = (sent.bytes(), Instant::now());
            } else if moved.1.elapsed() > patience {
                return Err(self.silent(patience));
            }
        }
    }

    /// Follow a stream of events.
    pub(crate) async fn follow(&self, path: &str) -> Result<Follow, ClientError> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .header(header::ACCEPT, EVENT_STREAM);
        let nothing = Pieces::new(Bytes::new(), &Sent::default());
        let begun = async {
            let (head, body, connection) = self.open(request, nothing).await?;
            let kind = head.headers.get(header::CONTENT_TYPE);
            let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(EVENT_STREAM.as_bytes()));
            if head.status.is_success() && is_stream {
                return Ok(Follow {
                    address: self.address,
                    parser: Parser::default(),
                    body,
                    _connection: connection,
                });
            }
            match self.answer(&head, body).await {
                Ok(_) => Err(self.unreachable("it doesn't stream; is it an older berth?")),
                Err(error) => Err(error),
            }
        };
        match timeout(PATIENCE, begun).await {
            Ok(begun) => begun,
            Err(_) => Err(self.silent(PATIENCE)),
        }
    }

    async fn exchange(&self, request: http::request::Builder, body: Pieces) -> Result<Value, ClientError> {
        let (head, body, _connection) = self.open(request, body).await?;
        self.answer(&head, body).await
    }

    /// Ask, on a connection of its own, up to the head of the answer.
    async fn open(
        &self,
        request: http::request::Builder,
        body: Pieces,
    ) -> Result<(http::response::Parts, Incoming, Connection), ClientError> {
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(error))?;
        let connection = Connection(tokio::spawn(connection));
        let token = self.token.expose_text().unwrap_or_default().trim();
        let request = request
            .header(header::HOST, self.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(body)
            .map_err(|error| self.unreachable(error))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.unreachable(error))?;
        let (head, body) = response.into_parts();
        Ok((head, body, connection))
    }

    /// The JSON of an answer, or why there is none.
    async fn answer(&self, head: &http::response::Parts, body: Incoming) -> Result<Value, ClientError> {
        let body = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| self.unreachable(error))?;
        let value: Value = serde_json::from_slice(&body.to_bytes())
            .map_err(|_| self.unreachable("what answers there is no berth"))?;
        if head.status.is_success() {
            return Ok(value);
        }
        match Refusal::of(value) {
            Some(refusal) if refusal.code == "unauthorized" => {
                Err(ClientError::NotPermitted(self.address, self.token_file.clone()))
            }
            Some(refusal) => Err(ClientError::Refused(refusal)),
            None => Err(self.unreachable(format!("it answered with {}", head.status))),
        }
    }

    fn unreachable(&self, reason: impl fmt::Display) -> ClientError {
        ClientError::Unreachable(self.address, reason.to_string())
    }

    fn silent(&self, patience: Duration) -> ClientError {
        self.unreachable(format!("nothing for {} s", patience.as_secs()))
    }
}

/// The type of a stream of events.
const EVENT_STREAM: &str = "text/event-stream";

/// The task that moves a connection's bytes, which ends with it.
#[derive(Debug)]
struct Connection(JoinHandle<hyper::Result<()>>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A stream of events.
#[derive(Debug)]
pub(crate) struct Follow {
    address: SocketAddr,
    parser: Parser,
    body: Incoming,
    _connection: Connection,
}

impl Follow {
    /// Wait for the next event. There is no end of them but an error.
    pub(crate) async fn next(&mut self) -> Result<Value, ClientError> {
        let ended = |reason: String| ClientError::Ended(self.address, reason);
        loop {
            if let Some(data) = self.parser.next() {
                return serde_json::from_str(&data).map_err(|_| ended("it sends no JSON".to_owned()));
            }
            let frame = match timeout(SILENCE, self.body.frame()).await {
                Ok(Some(frame)) => frame.map_err(|error| ended(error.to_string()))?,
                Ok(None) => return Err(ended("it ended the stream, as it does when it stops".to_owned())),
                Err(_) => return Err(ended(format!("nothing for {} s", SILENCE.as_secs()))),
            };
            if let Some(bytes) = frame.data_ref()
                && self.parser.feed(bytes).is_err()
            {
                return Err(ended("an event of it is far too long".to_owned()));
            }
        }
    }
}

/// Where an address that a host listens on can be called from the same machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
