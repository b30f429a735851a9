//! Bytes that are nearly HTTP/1.1, against the running host: it lives, it answers what can be read, or it closes.
//!
//! `PROPTEST_CASES` says how many connections are tried, `BERTH_TEST_SEED` repeats a run.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use berth_tests::berth::{Berth, Manifest, PATIENCE};

/// Connections at once.
const THREADS: u64 = 8;
/// Bytes of answers after which a connection is let go: no request here is worth more.
const ENOUGH: usize = 4 * 1024 * 1024;

/// SplitMix64: small, seeded, good enough to choose with.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

const REQUESTS: [&str; 12] = [
    "GET /hello/x HTTP/1.1\r\nhost: a\r\n\r\n",
    "HEAD /hello/x HTTP/1.1\r\nhost: a\r\n\r\n",
    "OPTIONS /health HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /health HTTP/1.0\r\n\r\n",
    "GET http://b.test/hello/%2e%2e/x?q=%zz#f HTTP/1.1\r\nhost: a\r\nconnection: close, x-hop\r\nx-hop: 1\r\n\r\n",
    "POST /echo/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
    "POST /echo/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n3;x=\"y\"\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n",
    "POST /echo-p3/echo HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nhost: evil\r\n\r\n",
    "POST /api/v1/auth/login HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 36\r\n\r\n{\"email\":\"a@b.c\",\"password\":\"secret\"}",
    "POST /api/v1/auth/verify-email HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{\"token\":\"t\"}",
    "GET /echo/headers HTTP/1.1\r\nhost: a\r\nberth-user-id: root\r\nx-request-id: 1\r\ncookie: a=1; b=2\r\n\r\n",
    "GET /echo/status/204 HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
];

const WORDS: [&str; 34] = [
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    ":",
    ",",
    ";",
    "\r\n\r\n",
    "\r\n ",
    "GET ",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT a:1 HTTP/1.1\r\n",
    "content-length: 0\r\n",
    "content-length: 99999999999999999999\r\n",
    "Content-Length: +5\r\n",
    "content-length: -1\r\n",
    "transfer-encoding: chunked\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "host: b\r\n",
    "host:\r\n",
    "connection: close\r\n",
    "expect: 100-continue\r\n",
    "0\r\n\r\n",
    "ffffffffffffffff\r\n",
    "-1\r\n",
    "HTTP/1.1",
    "HTTP/9.9",
    "%00",
    "/../",
    "\u{e9}",
    "\u{ff}",
];

/// One to three requests, changed a little or a lot.
fn bytes(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..=dice.below(3) {
        bytes.extend_from_slice(dice.of(&REQUESTS).as_bytes());
    }
    for _ in 0..dice.below(6) {
        let at = dice.below(bytes.len());
        match dice.below(7) {
            0 => bytes[at] = dice.roll() as u8,
            1 => bytes[at] ^= 1 << dice.below(8),
            2 => drop(bytes.drain(at..(at + 1 + dice.below(20)).min(bytes.len()))),
            3 => drop(bytes.splice(at..at, dice.of(&WORDS).bytes())),
            4 => {
                let part = bytes[at..(at + dice.below(40)).min(bytes.len())].to_vec();
                drop(bytes.splice(at..at, part));
            }
            5 => bytes.truncate(at),
            _ => {
                let long = vec![dice.roll() as u8; dice.below(100_000)];
                drop(bytes.splice(at..at, long));
            }
        }
        if bytes.is_empty() {
            bytes.push(b'\r');
        }
    }
    bytes
}

/// Send in a few pieces, and read until the host closes.
fn exchange(address: SocketAddr, bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("the host accepts connections");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = bytes;
    for _ in 0..dice.below(3) {
        let (first, more) = rest.split_at(dice.below(rest.len()));
        // The host may have answered and closed already.
        let _ = stream.write_all(first);
        rest = more;
    }
    let _ = stream.write_all(rest);
    if dice.below(2) == 0 {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let (mut answers, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
    while answers.len() < ENOUGH {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => answers.extend_from_slice(&chunk[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => break,
            Err(e) => panic!("the connection was neither answered nor closed: {e}"),
        }
    }
    answers
}

/// Read the answers one after the other. The last may be cut off; nothing may be between them.
fn parse(mut wire: &[u8]) -> Result<usize, String> {
    let mut answers = 0;
    while !wire.is_empty() {
        let Some(end) = find(wire, b"\r\n\r\n") else {
            return if is_begun(wire) {
                Ok(answers)
            } else {
                Err("the beginning of a head".to_owned())
            };
        };
        let head = std::str::from_utf8(&wire[..end]).map_err(|_| "a head that is text".to_owned())?;
        wire = &wire[end + 4..];
        answers += 1;
        let mut lines = head.split("\r\n");
        let status = status(lines.next().unwrap_or_default())?;
        let (mut length, mut chunked) = (None, false);
        for line in lines {
            let (name, value) = line.split_once(':').ok_or(format!("a header, not {line:?}"))?;
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            if name.is_empty() || !name.bytes().all(token) || value.contains(['\r', '\n', '\0']) {
                return Err(format!("a header, not {line:?}"));
            }
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    let given = value
                        .trim()
                        .parse::<usize>()
                        .map_err(|_| format!("a length, not {value:?}"))?;
                    if length.replace(given).is_some() {
                        return Err("one Content-Length".to_owned());
                    }
                }
                "transfer-encoding" => chunked = value.trim() == "chunked",
                "berth-user-id" | "x-hop" => return Err(format!("nothing like {line:?}")),
                _ => {}
            }
        }
        if chunked && length.is_some() {
            return Err("one framing".to_owned());
        }
        // Whether it answers HEAD isn't known here: then the next answer is right behind the head.
        if status < 200 || status == 204 || status == 304 || is_begun(wire) {
            continue;
        }
        if chunked {
            let Some(rest) = chunks(wire)? else {
                return Ok(answers);
            };
            wire = rest;
        } else if let Some(length) = length {
            wire = wire.get(length..).unwrap_or_default();
        } else {
            // Until the connection closes.
            return Ok(answers);
        }
    }
    Ok(answers)
}

fn status(line: &str) -> Result<u16, String> {
    let known = line.starts_with("HTTP/1.1 ") || line.starts_with("HTTP/1.0 ");
    let status = line
        .get(9..12)
        .and_then(|s| s.parse().ok())
        .filter(|s| (100..600).contains(s));
    status
        .filter(|_| known)
        .ok_or(format!("a status line, not {line:?}"))
}

fn is_begun(wire: &[u8]) -> bool {
    !wire.is_empty() && wire.iter().zip(b"HTTP/1.").all(|(a, b)| a == b)
}

/// What is behind a chunked body; nothing if that was cut off.
fn chunks(mut wire: &[u8]) -> Result<Option<&[u8]>, String> {
    loop {
        let Some(end) = find(wire, b"\r\n") else {
            return Ok(None);
        };
        let line = String::from_utf8_lossy(&wire[..end]).into_owned();
        let size = usize::from_str_radix(&line, 16).map_err(|_| format!("a chunk's size, not {line:?}"))?;
        wire = &wire[end + 2..];
        if size == 0 {
            // Trailers, then an empty line.
            loop {
                let Some(end) = find(wire, b"\r\n") else {
                    return Ok(None);
                };
                wire = &wire[end + 2..];
                if end == 0 {
                    return Ok(Some(wire));
                }
            }
        }
        if wire.len() < size + 2 {
            return Ok(None);
        }
        if &wire[size..size + 2] != b"\r\n" {
            return Err("the end of a chunk".to_owned());
        }
        wire = &wire[size + 2..];
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|n| {
        n.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number, not {n:?}"))
    })
}

#[test]
fn fuzz_nearly_http_is_answered_or_closed() {
    let cases = number("PROPTEST_CASES").unwrap_or(400);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("BERTH_TEST_SEED").unwrap_or(now.as_nanos() as u64);
    println!("{cases} connections; repeat with BERTH_TEST_SEED={seed}");
    let manifest = Manifest::new()
        .handler("hello")
        .handler("fixtures/echo")
        .handler("fixtures/echo-p3")
        .auth("fixtures/auth-static");
    let environment = [
        ("BERTH_HTTP_HEADER_TIME", "100ms"),
        ("BERTH_HTTP_IDLE_TIME", "100ms"),
        ("BERTH_LIMITS_WALL", "1s"),
    ];
    let berth = Berth::start(manifest.text(), &environment);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let berth = &berth;
            scope.spawn(move || {
                for case in (thread..cases).step_by(THREADS as usize) {
                    let mut dice = Dice(seed.wrapping_add(case));
                    let sent = bytes(&mut dice);
                    let wire = exchange(berth.address, &sent, &mut dice);
                    if let Err(expected) = parse(&wire) {
                        let (sent, wire) = (sent.escape_ascii(), wire.escape_ascii());
                        panic!("case {case} of BERTH_TEST_SEED={seed}: {expected} was expected\nsent: {sent}\ncame: {wire}");
                    }
                    if case % 50 == 0 {
                        assert_eq!(berth.get("/health").status, 200, "case {case} of BERTH_TEST_SEED={seed}");
                    }
                }
            });
        }
    });
    assert_eq!(berth.get("/health").json()["status"], "healthy");
    assert_eq!(berth.get("/hello/next").text(), "Hello, next.\n");
    let started = Instant::now();
    while berth.metric("berth_instances_free", &[]) < 256.0 {
        assert!(started.elapsed() < PATIENCE, "an instance is held by nobody");
        std::thread::sleep(Duration::from_millis(5));
    }
    let log = std::fs::read_to_string(berth.folder().join("log.jsonl")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    assert!(
        !berth.log().iter().any(|e| e["code"] == "internal"),
        "the host never fails for what a client sends"
    );
}

#[test]
fn fuzz_reader_sees_what_is_wrong() {
    let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 204 No Content\r\n\r\n";
    assert_eq!(parse(whole), Ok(2));
    assert_eq!(
        parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        Ok(1)
    );
    for wrong in [
        "rubbish",
        "HTTP/1.1 999 No\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nokHTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\no",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx y: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-hop: 1\r\n\r\n",
    ] {
        assert!(parse(wrong.as_bytes()).is_err(), "{wrong:?}");
    }
}
