//! A client for HTTP/1.1 that hides nothing: it sends bytes as given, and says how a body ended.
//!
//! A usual client library would repair, retry or refuse what the tests are about.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// How long one read may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As its framing says.
    Whole,
    /// The connection was closed or reset before that.
    Cut,
}

/// A response, as it was on the wire.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Names in lower case, in order, with repetitions.
    pub headers: Vec<(String, String)>,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// How it ended.
    pub ended: Ended,
}

impl Response {
    /// The first header of a name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `Null` if it isn't.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The `code` of a problem.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// An answer has this status and, as a problem, this code.
#[track_caller]
pub fn is(answer: &Response, status: u16, code: &str) {
    let found = (answer.status, answer.code());
    assert_eq!((found.0, found.1.as_str()), (status, code), "{}", answer.text());
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    was_reset: bool,
}

impl Connection {
    /// Connect.
    pub fn open(address: SocketAddr) -> Self {
        Self::try_open(address).expect("the host accepts connections")
    }

    /// Connect, if anybody is there.
    pub fn try_open(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a read timeout can be set");
        stream.set_nodelay(true).expect("TCP_NODELAY can be set");
        Some(Self {
            stream,
            buffer: Vec::new(),
            was_reset: false,
        })
    }

    /// Send bytes. An error is ignored: a host may answer and close while we still send.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Another handle for sending, for a thread of its own.
    pub fn sender(&self) -> Self {
        Self {
            stream: self.stream.try_clone().expect("a socket can be cloned"),
            buffer: Vec::new(),
            was_reset: false,
        }
    }

    /// Close our sending side.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Read one response to a request of this method. Nothing if the host closed without one.
    pub fn response(&mut self, method: &str) -> Option<Response> {
        let head_end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            if !self.fill() {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..head_end]).into_owned();
        self.buffer.drain(..head_end + 4);
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0);
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        if status == 100 {
            return self.response(method);
        }
        let mut response = Response {
            status,
            headers,
            body: Vec::new(),
            ended: Ended::Whole,
        };
        let bodiless = method == "HEAD" || status == 204 || status == 304;
        if !bodiless {
            let (body, ended) = if response
                .header("transfer-encoding")
                .is_some_and(|v| v.contains("chunked"))
            {
                self.chunked()
            } else if let Some(length) = response.header("content-length").and_then(|v| v.parse().ok()) {
                self.exactly(length)
            } else {
                self.until_closed()
            };
            response.body = body;
            response.ended = ended;
        }
        Some(response)
    }

    /// Whatever else comes until the host closes.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.buffer)
    }

    /// Read once. False at the end, however it came.
    pub fn fill(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                true
            }
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                self.was_reset = true;
                false
            }
            Err(e) => panic!("nothing came for {PATIENCE:?}: {e}"),
        }
    }

    /// What has come and was not taken.
    pub fn pending(&self) -> &[u8] {
        &self.buffer
    }

    fn chunked(&mut self) -> (Vec<u8>, Ended) {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(at) = find(&self.buffer, b"\r\n") {
                    break at;
                }
                if !self.fill() {
                    return (body, Ended::Cut);
                }
            };
            let size = String::from_utf8_lossy(&self.buffer[..line]).into_owned();
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
                .unwrap_or_else(|_| panic!("a chunk's size: {size:?}"));
            while self.buffer.len() < line + 2 + size + 2 {
                if !self.fill() {
                    return (body, Ended::Cut);
                }
            }
            body.extend_from_slice(&self.buffer[line + 2..line + 2 + size]);
            self.buffer.drain(..line + 2 + size + 2);
            if size == 0 {
                return (body, Ended::Whole);
            }
        }
    }

    fn exactly(&mut self, length: usize) -> (Vec<u8>, Ended) {
        while self.buffer.len() < length {
            if !self.fill() {
                return (std::mem::take(&mut self.buffer), Ended::Cut);
            }
        }
        (self.buffer.drain(..length).collect(), Ended::Whole)
    }

    fn until_closed(&mut self) -> (Vec<u8>, Ended) {
        let body = self.rest();
        (body, if self.was_reset { Ended::Cut } else { Ended::Whole })
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// One request on a connection of its own.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let mut connection = Connection::open(address);
    connection.send(head(method, path, headers, body.len()));
    connection.send(body);
    connection
        .response(method)
        .unwrap_or_else(|| panic!("{method} {path}: closed without a response"))
}

/// One request of somebody with a token.
pub fn request_as(
    address: SocketAddr,
    token: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let bearer = format!("Bearer {token}");
    let mut all = vec![("authorization", bearer.as_str())];
    all.extend(headers);
    request(address, method, path, &all, body)
}

/// `GET`.
pub fn get(address: SocketAddr, path: &str) -> Response {
    request(address, "GET", path, &[], b"")
}

/// `POST` of JSON text.
pub fn post_json(address: SocketAddr, path: &str, body: &str) -> Response {
    request(
        address,
        "POST",
        path,
        &[("content-type", "application/json")],
        body.as_bytes(),
    )
}

/// A request's head. `Host` is added unless given, `Content-Length` when there is a body.
pub fn head(method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("host")) {
        head.push_str("host: berth.test\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if length > 0 || matches!(method, "POST" | "PUT" | "PATCH") {
        head.push_str(&format!("content-length: {length}\r\n"));
    }
    head + "\r\n"
}
