//! Calls that go wrong: slow, broken and hostile servers, guests that die, clients that leave, and large bodies.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use berth_tests::berth::{Berth, PATIENCE};
use berth_tests::upstream::Upstream;
use berth_tests::wire::{Connection, Ended, head, request};

use crate::outgoing::{OK, berth, fetch};

const MIB: usize = 1024 * 1024;

fn berth_for(upstream: &Upstream, more: &str) -> Berth {
    berth(&[format!("127.0.0.1:{}", upstream.port())], more)
}

/// A server that takes a request, sends what it is told to, and then says nothing. The receiver hears `"asked"`, and
/// `"closed"` when the other end has closed the connection.
fn silent_after(begin: &'static str) -> (Upstream, Receiver<&'static str>) {
    let (tx, rx) = channel();
    let tx = Mutex::new(tx);
    let upstream = Upstream::start(move |mut peer| {
        // Nobody listens any more when the test is over.
        let tell = |what| {
            let _ = tx.lock().unwrap().send(what);
        };
        if let Some(head) = peer.head() {
            peer.sized_body(&head);
            tell("asked");
            peer.send(begin);
            peer.closed();
            tell("closed");
        }
    });
    (upstream, rx)
}

fn hears(receiver: &Receiver<&'static str>, expected: &str) {
    let heard = receiver.recv_timeout(PATIENCE);
    assert_eq!(heard, Ok(expected), "the server of the call");
}

#[test]
fn black_hole_ends_at_the_wall_limit_and_its_connection_is_closed() {
    let (upstream, server) = silent_after("");
    let berth = berth_for(&upstream, "limits = { wall = \"2s\" }");
    for plugin in ["fetch", "fetch-p3"] {
        let answer = fetch(&berth, plugin, &upstream.url("/"), &[]);
        assert_eq!((answer.status, answer.code().as_str()), (504, "plugin-timeout"));
        hears(&server, "asked");
        hears(&server, "closed");
    }
}

#[test]
fn client_that_leaves_ends_the_call() {
    for begin in ["", "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun"] {
        let (upstream, server) = silent_after(begin);
        let berth = berth_for(&upstream, "");
        for plugin in ["fetch", "fetch-p3"] {
            let mut connection = Connection::open(berth.address);
            let url = upstream.url("/");
            connection.send(head("GET", &format!("/{plugin}/x"), &[("x-url", &url)], 0));
            hears(&server, "asked");
            if !begin.is_empty() {
                while !String::from_utf8_lossy(connection.pending()).contains("begun") {
                    assert!(connection.fill());
                }
            }
            drop(connection);
            hears(&server, "closed");
        }
    }
}

#[test]
fn upload_of_a_guest_that_dies_is_cut_and_does_not_look_whole() {
    // A server that answers before it has read everything has nobody waiting for its answer's head any more.
    for early in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nbegun"] {
        let (tx, rx) = channel();
        let tx = Mutex::new(tx);
        let upstream = Upstream::start(move |mut peer| {
            if let Some(head) = peer.head() {
                peer.send(early);
                tx.lock().unwrap().send(peer.body(&head)).unwrap();
            }
        });
        let berth = berth_for(&upstream, "");
        let body = "x".repeat(256 * 1024);
        for _ in 0..10 {
            // Chunked, so that only the last chunk says that it is the last.
            let mut connection = Connection::open(berth.address);
            connection.send(format!(
                "POST /fetch/x HTTP/1.1\r\nhost: berth.test\r\ntransfer-encoding: chunked\r\nx-chunked: 1\r\n\
                 x-url: {}\r\nx-trap-after: 100000\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
                upstream.url("/"),
                body.len(),
            ));
            let answer = connection.response("POST").unwrap();
            assert_eq!((answer.status, answer.code().as_str()), (500, "plugin-trap"));
            let (_, whole) = rx.recv_timeout(PATIENCE).unwrap();
            assert!(!whole, "the server must see that the body was cut");
        }
    }
}

#[test]
fn server_that_is_silent_is_given_up_when_the_guest_wants() {
    let (silent, _heard) = silent_after("");
    let (begun, _heard_too) = silent_after("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nbegun");
    let berth = berth(
        &[
            format!("127.0.0.1:{}", silent.port()),
            format!("127.0.0.1:{}", begun.port()),
        ],
        "",
    );
    let answer = fetch(&berth, "fetch", &silent.url("/"), &[("x-first-byte-ms", "100")]);
    assert_eq!(answer.text().trim(), "ConnectionReadTimeout");
    let answer = fetch(&berth, "fetch", &begun.url("/"), &[("x-between-ms", "100")]);
    let text = answer.text();
    assert!(text.starts_with("begun\nbroken: "), "{text}");
}

#[test]
fn timeouts_of_nothing_are_errors_and_harm_nobody() {
    let upstream = Upstream::answering(OK);
    let (silent, _heard) = silent_after("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nbegun");
    let berth = berth(
        &[
            format!("127.0.0.1:{}", upstream.port()),
            format!("127.0.0.1:{}", silent.port()),
        ],
        "",
    );
    for name in ["x-connect-ms", "x-first-byte-ms", "x-between-ms"] {
        // Whether it is in time is a matter of luck; that it is answered is not.
        let answer = fetch(&berth, "fetch", &upstream.url("/"), &[(name, "0")]);
        assert!(matches!(answer.status, 200 | 502), "{name}: {}", answer.text());
    }
    let answer = fetch(&berth, "fetch", &silent.url("/"), &[("x-between-ms", "0")]);
    assert!(answer.text().contains("broken: "), "{}", answer.text());
    // The largest number of milliseconds whose nanoseconds fit.
    let huge = (u64::MAX / 1_000_000).to_string();
    for name in ["x-connect-ms", "x-first-byte-ms", "x-between-ms"] {
        assert_eq!(
            fetch(&berth, "fetch", &upstream.url("/"), &[(name, &huge)]).status,
            200
        );
    }
}

#[test]
fn hostile_and_broken_servers_have_their_codes() {
    let many: String = (0..20_000).map(|n| format!("x-{n}: y\r\n")).collect();
    let table = [
        (
            format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
            "HttpResponseHeaderSectionSize(None)",
        ),
        (
            format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(200_000)),
            "HttpResponseHeaderSectionSize(None)",
        ),
        ("SSH-2.0-OpenSSH_9.9\r\n\r\n".to_owned(), "HttpProtocolError"),
        ("\0\u{1}\u{2}garbage\r\n\r\n".to_owned(), "HttpProtocolError"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n".to_owned(),
            "HttpProtocolError",
        ),
        ("HTTP/1.1 200".to_owned(), "ConnectionTerminated"),
        (String::new(), "ConnectionTerminated"),
    ];
    for (bytes, code) in table {
        let short: String = bytes.chars().take(40).collect();
        let upstream = Upstream::start(move |mut peer| {
            if peer.head().is_some() {
                peer.send(&bytes);
            }
        });
        let berth = berth_for(&upstream, "");
        let answer = fetch(&berth, "fetch", &upstream.url("/"), &[]);
        assert_eq!((answer.status, answer.text().trim()), (502, code), "{short:?}");
    }
}

#[test]
fn headers_without_end_are_given_up_in_bounded_memory() {
    let upstream = Upstream::start(|mut peer| {
        if peer.head().is_some() && peer.send("HTTP/1.1 200 OK\r\n") {
            while peer.send(
                "x-more: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(100),
            ) {}
        }
    });
    let berth = berth_for(&upstream, "");
    let answer = fetch(&berth, "fetch", &upstream.url("/"), &[]);
    assert_eq!(answer.text().trim(), "HttpResponseHeaderSectionSize(None)");
}

#[test]
fn body_that_is_cut_off_is_an_error_in_the_guests_hands() {
    for bytes in [
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n",
    ] {
        let upstream = Upstream::start(move |mut peer| {
            if peer.head().is_some() {
                peer.send(bytes);
            }
        });
        let berth = berth_for(&upstream, "");
        let text = fetch(&berth, "fetch", &upstream.url("/"), &[]).text();
        assert!(text.starts_with("short\nbroken: "), "{text}");
    }
}

#[test]
fn nobody_there_is_connection_refused() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let berth = berth(&[address.to_string()], "");
    for plugin in ["fetch", "fetch-p3"] {
        let answer = fetch(&berth, plugin, &format!("http://{address}/"), &[]);
        assert_eq!(answer.text().trim(), "ConnectionRefused", "{plugin}");
    }
}

#[test]
fn calls_at_once_are_bounded_and_the_rest_hears_of_it() {
    let (upstream, _heard) = silent_after("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nbegun");
    let berth = berth_for(&upstream, "limits = { cpu = \"10s\" }");
    let answer = fetch(
        &berth,
        "fetch",
        &upstream.url("/"),
        &[("x-parallel", "80"), ("x-connect-ms", "1000")],
    );
    let text = answer.text();
    let lines = |what: &str| text.lines().filter(|l| *l == what).count();
    assert_eq!(
        (lines("200"), lines("ConnectionLimitReached")),
        (64, 16),
        "{text}"
    );
    assert_eq!(upstream.accepted(), 64);
    // They end with their store, so the next request has room again.
    let again = fetch(&berth, "fetch", &upstream.url("/"), &[("x-parallel", "64")]);
    assert_eq!(again.text().lines().filter(|l| *l == "200").count(), 64);
}

#[test]
fn more_headers_than_fit_cost_the_guest_its_request_and_nobody_else() {
    let upstream = Upstream::answering(OK);
    let berth = berth_for(&upstream, "limits = { cpu = \"10s\" }");
    let answer = fetch(
        &berth,
        "fetch",
        &upstream.url("/"),
        &[("x-many-headers", "32769")],
    );
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert_eq!(upstream.accepted(), 0);
    assert_eq!(fetch(&berth, "fetch", &upstream.url("/"), &[]).text(), "ok\n");
}

#[test]
fn path_cannot_name_another_host() {
    let upstream = Upstream::answering(OK);
    let berth = berth_for(&upstream, "");
    // The fixture cuts the URL at its first "/", so this path is one that begins with two.
    let answer = fetch(&berth, "fetch", &upstream.url("//evil.example/x"), &[]);
    assert_eq!(answer.text(), "ok\n");
}

/// The most memory that a process has had, in bytes.
fn peak(berth: &Berth) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", berth.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    let line = line
        .or_else(|| status.lines().find(|l| l.starts_with("VmRSS:")))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn large_bodies_stream_both_ways_in_little_memory() {
    const SIZE: usize = 64 * MIB;
    let (tx, rx) = channel();
    let tx = Mutex::new(tx);
    let upstream = Upstream::start(move |mut peer| {
        while let Some(head) = peer.head() {
            let got = peer.sized_body(&head);
            tx.lock().unwrap().send(got).unwrap();
            peer.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n"));
            let piece = vec![b'x'; MIB];
            for _ in 0..SIZE / MIB {
                peer.send(&piece);
            }
        }
    });
    let berth = berth_for(&upstream, "limits = { cpu = \"60s\", wall = \"60s\" }");
    let url = upstream.url("/");
    for plugin in ["fetch", "fetch-p3"] {
        // Whatever one call needs is there before the measurement.
        let small = request(
            berth.address,
            "POST",
            &format!("/{plugin}/x"),
            &[("x-url", &url)],
            b"x",
        );
        assert_eq!((small.body.len(), small.ended), (SIZE, Ended::Whole), "{plugin}");
        assert_eq!(rx.recv_timeout(PATIENCE).unwrap(), 1);
        let before = peak(&berth);
        let body = vec![b'y'; SIZE];
        let answer = request(
            berth.address,
            "POST",
            &format!("/{plugin}/x"),
            &[("x-url", &url)],
            &body,
        );
        assert_eq!(
            (answer.body.len(), answer.ended),
            (SIZE, Ended::Whole),
            "{plugin}"
        );
        if plugin == "fetch" {
            assert_eq!(rx.recv_timeout(PATIENCE).unwrap(), SIZE);
        } else {
            rx.recv_timeout(PATIENCE).unwrap();
        }
        let grown = peak(&berth).saturating_sub(before);
        assert!(
            grown < 16 * MIB,
            "{plugin}: {grown} bytes more for a body of {SIZE}"
        );
    }
}

#[test]
fn server_that_takes_nothing_holds_the_guest_and_no_memory() {
    let (over, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |mut peer| {
        peer.head();
        // Reads nothing more until the test is over, which is an error.
        let _ = wait.lock().unwrap().recv();
    });
    let berth = berth_for(&upstream, "limits = { wall = \"1s\" }");
    let before = peak(&berth);
    let body = vec![b'y'; 64 * MIB];
    let answer = request(
        berth.address,
        "POST",
        "/fetch/x",
        &[("x-url", &upstream.url("/"))],
        &body,
    );
    assert_eq!(answer.code(), "plugin-timeout");
    let grown = peak(&berth).saturating_sub(before);
    assert!(grown < 32 * MIB, "{grown} bytes more");
    drop(over);
}
