//! A server that guests call: plain sockets, one thread per connection, and a count of the connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A listening server. It ends with the test's process.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens, on loopback.
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Upstream {
    /// Serve every connection with a function.
    pub fn start(serve: impl Fn(Peer) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                thread::spawn(move || {
                    stream.set_nodelay(true).expect("TCP_NODELAY can be set");
                    serve(Peer {
                        stream,
                        buffer: Vec::new(),
                    });
                });
            }
        });
        Self { address, accepted }
    }

    /// One that answers every request on a connection with these bytes, after reading a body that has a length.
    pub fn answering(response: impl Into<Vec<u8>>) -> Self {
        let response = response.into();
        Self::start(move |mut peer| {
            while let Some(head) = peer.head() {
                peer.sized_body(&head);
                peer.send(&response);
            }
        })
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// A URL of it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// The other end of a connection to an [`Upstream`].
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Peer {
    /// The next request's head, in lower case but for values. Nothing when the connection is closed.
    pub fn head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..at + 4).collect();
                return Some(String::from_utf8_lossy(&head).into_owned());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Read the body that a head gives the length of, or whose chunks end. Returns its bytes as they were on the wire,
    /// and whether they ended as they should.
    pub fn body(&mut self, head: &str) -> (Vec<u8>, bool) {
        let head = head.to_ascii_lowercase();
        if head.contains("transfer-encoding: chunked") {
            loop {
                if let Some(at) = end_of_chunks(&self.buffer) {
                    return (self.buffer.drain(..at).collect(), true);
                }
                if !self.fill() {
                    return (std::mem::take(&mut self.buffer), false);
                }
            }
        }
        let length = length(&head);
        while self.buffer.len() < length {
            if !self.fill() {
                return (std::mem::take(&mut self.buffer), false);
            }
        }
        (self.buffer.drain(..length).collect(), true)
    }

    /// Read and forget a body that has a length. Returns how many bytes came.
    pub fn sized_body(&mut self, head: &str) -> usize {
        let length = length(&head.to_ascii_lowercase());
        let mut got = self.buffer.len();
        self.buffer.clear();
        while got < length && self.fill() {
            got += self.buffer.len();
            self.buffer.clear();
        }
        got
    }

    /// Send bytes; false when the other end is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Wait until the other end closes.
    pub fn closed(&mut self) {
        while self.fill() {}
    }

    fn fill(&mut self) -> bool {
        let mut chunk = [0; 64 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                true
            }
        }
    }
}

fn length(head: &str) -> usize {
    let value = head.lines().find_map(|l| l.strip_prefix("content-length:"));
    value.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

/// Where chunks and trailers end: the empty line after the chunk of no bytes.
fn end_of_chunks(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = bytes[at..].windows(2).position(|w| w == b"\r\n")?;
        let size = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
        at += line + 2;
        if size == 0 {
            break;
        }
        at += size + 2;
        if at > bytes.len() {
            return None;
        }
    }
    loop {
        let line = bytes[at..].windows(2).position(|w| w == b"\r\n")?;
        at += line + 2;
        if line == 0 {
            return Some(at);
        }
    }
}
