//! A collector of traces: takes what is posted to `/v1/traces` and reads the protobuf in it by hand, so that the tests
//! don't use the library that the host uses.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::berth::PATIENCE;

/// One span, as it was sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// 16 hexadecimal digits, or nothing.
    pub parent_id: String,
    /// The list, as in the header.
    pub trace_state: String,
    /// Its name.
    pub name: String,
    /// 1 internal, 2 server.
    pub kind: u64,
    /// Nanoseconds since the Unix epoch.
    pub start: u64,
    /// The same.
    pub end: u64,
    /// Values as text.
    pub attributes: BTreeMap<String, String>,
    /// 0 unset, 1 ok, 2 error.
    pub status: u64,
    /// The resource's attributes.
    pub resource: BTreeMap<String, String>,
}

impl Span {
    /// An attribute, or an empty text.
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    /// On a free port.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let spans = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&spans);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let taken = Arc::clone(&taken);
                std::thread::spawn(move || serve(stream, &taken));
            }
        });
        Self { address, spans }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has come so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("no test failed meanwhile").clone()
    }

    /// Wait for a span.
    pub fn span(&self, what: &str, matches: impl Fn(&Span) -> bool) -> Span {
        let started = Instant::now();
        loop {
            if let Some(span) = self.spans().into_iter().find(|s| matches(s)) {
                return span;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "no span {what} in {:#?}",
                self.spans()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Wait for the server span of a request.
    pub fn request(&self, id: &str) -> Span {
        self.span(&format!("of the request {id}"), |s| {
            s.attribute("berth.request_id") == id
        })
    }
}

/// Requests with a `Content-Length`, one after the other.
fn serve(mut stream: TcpStream, taken: &Mutex<Vec<Span>>) {
    let mut buffer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        let head_end = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut chunk) {
                Ok(n) if n > 0 => buffer.extend_from_slice(&chunk[..n]),
                _ => return,
            }
        };
        let head = String::from_utf8_lossy(&buffer[..head_end]).to_lowercase();
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(
            head.contains("\r\ncontent-type: application/x-protobuf\r\n"),
            "{head}"
        );
        let length: usize = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: "))
            .and_then(|l| l.trim().parse().ok())
            .expect("a length");
        while buffer.len() < head_end + length {
            match stream.read(&mut chunk) {
                Ok(n) if n > 0 => buffer.extend_from_slice(&chunk[..n]),
                _ => return,
            }
        }
        let body: Vec<u8> = buffer.drain(..head_end + length).skip(head_end).collect();
        taken
            .lock()
            .expect("no test failed meanwhile")
            .extend(spans(&body));
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}

/// A field of a message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn number(&self) -> u64 {
        match self {
            Self::Number(n) => *n,
            Self::Bytes(_) => panic!("a number, not bytes"),
        }
    }

    fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(_) => panic!("bytes, not a number"),
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).expect("UTF-8")
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().expect("a varint has an end");
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint of more than 64 bits");
}

/// The fields of a message, <https://protobuf.dev/programming-guides/encoding/>.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let mut take = |n: usize| {
            let (taken, rest) = bytes.split_at(n);
            bytes = rest;
            taken
        };
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => Field::Number(u64::from_le_bytes(take(8).try_into().expect("eight"))),
            5 => Field::Number(u32::from_le_bytes(take(4).try_into().expect("four")).into()),
            2 => {
                let length = usize::try_from(varint(&mut bytes)).expect("a length");
                let (taken, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(taken)
            }
            other => panic!("wire type {other}"),
        };
        found.push((tag >> 3, field));
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `KeyValue {1: key, 2: AnyValue {1: string, 2: bool, 3: int, 4: double}}`
fn attribute(bytes: &[u8]) -> (String, String) {
    let (mut key, mut value) = (String::new(), String::new());
    for (number, field) in fields(bytes) {
        match number {
            1 => key = field.text(),
            2 => {
                for (kind, field) in fields(field.bytes()) {
                    value = match kind {
                        1 => field.text(),
                        2 => (field.number() != 0).to_string(),
                        3 => field.number().cast_signed().to_string(),
                        4 => f64::from_bits(field.number()).to_string(),
                        other => panic!("a value of kind {other}"),
                    };
                }
            }
            _ => {}
        }
    }
    (key, value)
}

/// `ExportTraceServiceRequest {1: ResourceSpans {1: Resource {1: attributes}, 2: ScopeSpans {2: Span}}}`
fn spans(request: &[u8]) -> Vec<Span> {
    let mut found = Vec::new();
    for (_, resource_spans) in fields(request) {
        let parts = fields(resource_spans.bytes());
        let of = |wanted: u64| parts.iter().filter(move |(number, _)| *number == wanted);
        let resource: BTreeMap<String, String> = of(1)
            .flat_map(|(_, resource)| fields(resource.bytes()))
            .filter(|(number, _)| *number == 1)
            .map(|(_, pair)| attribute(pair.bytes()))
            .collect();
        for (_, scope) in of(2) {
            for (number, span) in fields(scope.bytes()) {
                if number == 2 {
                    found.push(Span {
                        resource: resource.clone(),
                        ..read_span(span.bytes())
                    });
                }
            }
        }
    }
    found
}

fn read_span(bytes: &[u8]) -> Span {
    let mut span = Span::default();
    for (number, field) in fields(bytes) {
        match number {
            1 => span.trace_id = hex(field.bytes()),
            2 => span.span_id = hex(field.bytes()),
            3 => span.trace_state = field.text(),
            4 => span.parent_id = hex(field.bytes()),
            5 => span.name = field.text(),
            6 => span.kind = field.number(),
            7 => span.start = field.number(),
            8 => span.end = field.number(),
            9 => {
                let (key, value) = attribute(field.bytes());
                assert!(
                    span.attributes.insert(key.clone(), value).is_none(),
                    "{key} twice"
                );
            }
            15 => {
                let code = fields(field.bytes()).into_iter().find(|(number, _)| *number == 3);
                span.status = code.map_or(0, |(_, code)| code.number());
            }
            _ => {}
        }
    }
    span
}
