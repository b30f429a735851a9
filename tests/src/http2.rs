//! HTTP/2 for tests: a client for whole requests, and raw frames (RFC 9113) for what no client would send.

use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::wire::{Ended, Response};

/// How long one read may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Run a test's asynchronous part, on a thread of its own.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(3 * PATIENCE, future).await.expect("in time") })
}

/// Connect with prior knowledge.
pub async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("the host accepts connections");
    handshake(stream).await
}

/// Begin HTTP/2 on a stream.
pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> SendRequest<Bytes> {
    let (client, connection) = h2::client::handshake(stream).await.expect("an HTTP/2 handshake");
    tokio::spawn(async move {
        // How the connection ended shows in the streams that were on it.
        let _ = connection.await;
    });
    client
}

/// One request, with its body and trailers, to the end of its answer.
pub async fn send(
    client: &SendRequest<Bytes>,
    request: Request<()>,
    body: &[u8],
    trailers: Option<HeaderMap>,
) -> (Response, Option<HeaderMap>) {
    let mut client = client.clone().ready().await.expect("room for a stream");
    let end = body.is_empty() && trailers.is_none();
    let (answer, mut stream) = client
        .send_request(request, end)
        .expect("a request that can be sent");
    if !end {
        let sent = stream.send_data(Bytes::copy_from_slice(body), trailers.is_none());
        sent.expect("a body that can be sent");
        if let Some(trailers) = trailers {
            stream.send_trailers(trailers).expect("trailers that can be sent");
        }
    }
    let (head, mut incoming) = answer.await.expect("an answer").into_parts();
    let mut response = Response {
        status: head.status.as_u16(),
        headers: head
            .headers
            .iter()
            .map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
            .collect(),
        body: Vec::new(),
        ended: Ended::Whole,
    };
    while let Some(data) = incoming.data().await {
        match data {
            Ok(data) => {
                response.body.extend_from_slice(&data);
                let _ = incoming.flow_control().release_capacity(data.len());
            }
            Err(_) => {
                response.ended = Ended::Cut;
                return (response, None);
            }
        }
    }
    let trailers = incoming.trailers().await.unwrap_or_default();
    (response, trailers)
}

/// `GET`.
pub async fn get(client: &SendRequest<Bytes>, uri: &str) -> Response {
    let request = Request::get(uri).body(()).expect("a URI");
    send(client, request, b"", None).await.0
}

/// The kinds of frames that tests look for.
pub mod kind {
    #![allow(missing_docs, reason = "the names of RFC 9113 section 6")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const CONTINUATION: u8 = 9;
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// See [`kind`].
    pub kind: u8,
    /// As they are.
    pub flags: u8,
    /// 0 for the connection.
    pub stream: u32,
    /// As it is.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a `RST_STREAM` or a `GOAWAY`.
    pub fn error_code(&self) -> Option<u32> {
        let at = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        let bytes = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }
}

/// A connection on which frames are written and read by hand.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    /// Connect, with the preface and empty settings sent.
    pub fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the host accepts connections");
        stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let mut raw = Self {
            stream,
            buffer: Vec::new(),
        };
        raw.bytes(PREFACE);
        raw.frame(kind::SETTINGS, 0, 0, b"");
        raw
    }

    /// Send bytes. False if the host has gone.
    pub fn bytes(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Send a frame. False if the host has gone.
    pub fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let bytes = encode(kind, flags, stream, payload);
        self.bytes(&bytes)
    }

    /// The next frame; nothing when the host has closed.
    pub fn read(&mut self) -> Option<Frame> {
        loop {
            if let [a, b, c, kind, flags, s0, s1, s2, s3, ..] = self.buffer[..] {
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                if self.buffer.len() >= 9 + length {
                    let payload = self.buffer[9..9 + length].to_vec();
                    self.buffer.drain(..9 + length);
                    let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
                    return Some(Frame {
                        kind,
                        flags,
                        stream,
                        payload,
                    });
                }
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    return None;
                }
                Err(e) => panic!("nothing came for {PATIENCE:?}: {e}"),
            }
        }
    }

    /// The next frame that is as wanted; nothing when the host has closed before.
    pub fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        std::iter::from_fn(|| self.read()).find(wanted)
    }
}

/// A frame's bytes.
pub fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .expect("a short payload")
        .to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A header block (RFC 7541) of literals without indexing and without Huffman codes.
pub fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let string = |text: &str, block: &mut Vec<u8>| {
        // The length as an integer with a prefix of seven bits.
        let mut rest = text.len();
        if rest < 127 {
            block.push(rest as u8);
        } else {
            block.push(127);
            rest -= 127;
            while rest >= 128 {
                block.push((rest % 128) as u8 | 0x80);
                rest /= 128;
            }
            block.push(rest as u8);
        }
        block.extend_from_slice(text.as_bytes());
    };
    for (name, value) in headers {
        block.push(0);
        string(name, &mut block);
        string(value, &mut block);
    }
    block
}

/// The header block of a `GET`.
pub fn get_block(path: &str) -> Vec<u8> {
    header_block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "berth.test"),
        (":path", path),
    ])
}
