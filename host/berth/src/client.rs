//! A client of the admin API: one request, one JSON answer.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use berth_host::admin::TOKEN_FILE;
use berth_host::data::{self, DataError};
use berth_host::secret::Secret;
use berth_host::state::HostSpec;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take. The host itself waits less for its database.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

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
    /// The host refused: its code and its sentence.
    Refused(String, String),
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
                    "{}: there is no such file. A host makes it when it starts with a plugin that keeps accounts; is this \
                 its manifest (--config), and its data folder (`data.dir`)?",
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
            // Nothing that a terminal obeys.
            Self::Refused(_, detail) => detail
                .chars()
                .filter(|c| !c.is_control())
                .try_for_each(|c| f.write_char(c)),
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
        let unreachable = |reason: String| ClientError::Unreachable(self.address, reason);
        match timeout(PATIENCE, self.exchange(method, path, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(unreachable(format!("nothing for {} s", PATIENCE.as_secs()))),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let unreachable = |reason: String| ClientError::Unreachable(self.address, reason);
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let connection = tokio::spawn(connection);
        let token = self.token.expose_text().unwrap_or_default().trim();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(
                body.map(Value::to_string).unwrap_or_default(),
            )))
            .map_err(|error| unreachable(error.to_string()))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        drop(sender);
        connection.abort();
        let value: Value = serde_json::from_slice(&body.to_bytes())
            .map_err(|_| unreachable("what answers there is no berth".to_owned()))?;
        if head.status.is_success() {
            return Ok(value);
        }
        let text = |member: &str| {
            value
                .get(member)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        match text("code").as_str() {
            "unauthorized" => Err(ClientError::NotPermitted(self.address, self.token_file.clone())),
            "" => Err(unreachable(format!("it answered with {}", head.status))),
            code => Err(ClientError::Refused(code.to_owned(), text("detail"))),
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
