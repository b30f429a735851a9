//! Bodies in both directions: streaming, limits, what a handler sees of a request.

use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest};
use berth_tests::wire::{Connection, Ended, head, request};

fn echo() -> Berth {
    Manifest::new()
        .handler("fixtures/echo")
        .handler("fixtures/echo-p3")
        .start()
}

#[test]
fn large_body_comes_back_identical_from_both_generations() {
    let berth = echo();
    let body: Vec<u8> = (0..8 * 1024 * 1024u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for path in ["/echo/echo", "/echo-p3/echo", "/echo-p3/relay"] {
        let address = berth.address;
        // Sent while it is read: an echo that streams would otherwise fill both sockets.
        let answer = std::thread::scope(|scope| {
            let mut connection = Connection::open(address);
            connection.send(head(
                "POST",
                path,
                &[("content-type", "application/octet-stream")],
                body.len(),
            ));
            let mut sender = connection.sender();
            let body = &body;
            scope.spawn(move || sender.send(body));
            connection.response("POST").unwrap()
        });
        assert_eq!((answer.status, answer.ended), (200, Ended::Whole), "{path}");
        assert!(
            answer.body == body,
            "{path}: {} of {} bytes, or others",
            answer.body.len(),
            body.len()
        );
    }
}

#[test]
fn body_is_echoed_piece_by_piece_as_it_comes() {
    let berth = echo();
    for path in ["/echo/echo", "/echo-p3/echo", "/echo-p3/relay"] {
        let mut connection = Connection::open(berth.address);
        connection.send(format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        ));
        for piece in ["first", "second", "third"] {
            connection.send(format!("{:x}\r\n{piece}\r\n", piece.len()));
            // The piece must come back before the next one is sent.
            while !String::from_utf8_lossy(connection.pending()).contains(piece) {
                assert!(connection.fill(), "{path}: {piece}");
            }
        }
        connection.send("0\r\n\r\n");
        let answer = connection.response("POST").unwrap();
        assert_eq!(
            (answer.text().as_str(), answer.ended),
            ("firstsecondthird", Ended::Whole),
            "{path}"
        );
    }
}

#[test]
fn handler_sees_method_path_and_query_and_repeated_headers_stay_apart() {
    let berth = echo();
    let answer = request(
        berth.address,
        "PUT",
        "/echo/echo?a=1&b=%20",
        &[("content-type", "text/x")],
        b"hi",
    );
    assert_eq!(answer.header("x-echo-method"), Some("PUT"));
    assert_eq!(answer.header("x-echo-path"), Some("/echo/echo?a=1&b=%20"));
    assert_eq!(answer.header("content-type"), Some("text/x"));
    let cookies: Vec<_> = answer
        .headers
        .iter()
        .filter(|(n, _)| n == "set-cookie")
        .map(|(_, v)| v.as_str())
        .collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
}

#[test]
fn handler_never_sees_headers_of_the_connection_or_of_the_host() {
    let berth = echo();
    let headers = [
        ("accept", "a/b"),
        ("Accept", "c/d"),
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "secret"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("berth-user-id", "root"),
        ("Berth-User-Roles", "admin"),
        ("x-mine", "yes"),
    ];
    let seen = request(berth.address, "GET", "/echo/headers", &headers, b"").text();
    assert!(seen.contains("accept: a/b\naccept: c/d\n"), "{seen}");
    assert!(seen.contains("x-mine: yes\n"), "{seen}");
    for hidden in [
        "connection",
        "x-hop",
        "keep-alive",
        "te:",
        "upgrade",
        "berth-user",
        "host:",
    ] {
        assert!(!seen.contains(hidden), "{hidden} in {seen}");
    }
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let berth = echo();
    let mut connection = Connection::open(berth.address);
    connection.send(head("HEAD", "/echo/big/100000", &[], 0));
    let answer = connection.response("HEAD").unwrap();
    assert_eq!(answer.status, 200);
    // The connection is still in step: the next answer begins right here.
    connection.send(head("GET", "/echo/sleep/1", &[], 0));
    assert_eq!(connection.response("GET").unwrap().status, 200);
    assert!(
        !berth.log().iter().any(|e| e["level"] == "ERROR"),
        "a body that nobody sees fails no guest"
    );
}

#[test]
fn statuses_without_a_body_have_none() {
    let berth = echo();
    let mut connection = Connection::open(berth.address);
    for status in [204, 304] {
        connection.send(head("GET", &format!("/echo/status/{status}"), &[], 0));
        let answer = connection.response("GET").unwrap();
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("transfer-encoding"), None);
    }
    connection.send(head("GET", "/echo/status/418", &[], 0));
    let answer = connection.response("GET").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (418, "status 418\n"));
}

#[test]
fn answer_with_a_length_is_complete_and_its_guest_may_go_on() {
    let berth = Manifest::new().handler("fixtures/counter").start();
    let answer = berth.get("/counter/length");
    assert_eq!(
        (answer.header("content-length"), answer.text().as_str()),
        (Some("2"), "1\n")
    );
    let line = berth.request_line(answer.header("x-request-id").unwrap());
    assert_eq!(
        (
            line["status"].as_u64(),
            line["code"].as_str(),
            line["bytes"].as_u64()
        ),
        (Some(200), None, Some(2))
    );
    berth.logged("what the guest does afterwards", |e| {
        e["message"] == "work after the answer"
    });
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["counter", "client-gone"]),
        0.0
    );
    assert_eq!(
        berth.metric("berth_plugin_requests_total", &["counter", "2xx"]),
        1.0
    );
}

#[test]
fn client_that_leaves_during_a_body_is_counted_once() {
    let berth = echo();
    let mut connection = Connection::open(berth.address);
    connection.send(head(
        "GET",
        "/echo/big/1000000000",
        &[("x-request-id", "leaver")],
        0,
    ));
    assert!(connection.fill());
    drop(connection);
    assert_eq!(berth.request_line("leaver")["code"], "client-gone");
    while berth.metric("berth_instances_free", &[]) < 256.0 {
        std::thread::yield_now();
    }
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["echo", "client-gone"]),
        1.0
    );
}

#[test]
fn client_that_never_reads_loses_its_connection() {
    let environment = [("BERTH_HTTP_IDLE_TIME", "400ms"), ("BERTH_HTTP_CONNECTIONS", "1")];
    let berth = Berth::start(Manifest::new().handler("hello").text(), &environment);
    let mut lazy = Connection::open(berth.address);
    let mut sender = lazy.sender();
    // Pipelined until both sockets are full; the host then has something to write that nobody takes.
    let flooding = std::thread::spawn(move || {
        for _ in 0..2_000 {
            sender.send(head("GET", "/health", &[], 0).repeat(20));
        }
    });
    let mut second = Connection::open(berth.address);
    second.send(head("GET", "/health", &[], 0));
    assert_eq!(
        second.response("GET").unwrap().status,
        200,
        "the only connection was given up"
    );
    flooding.join().unwrap();
    lazy.rest();
}

#[test]
fn slow_handler_streams_and_is_not_billed_for_waiting() {
    let berth = echo();
    let started = Instant::now();
    let answer = berth.get("/echo/slow");
    assert_eq!(
        (answer.text().as_str(), answer.ended),
        ("one\ntwo\n", Ended::Whole)
    );
    assert!(started.elapsed() >= Duration::from_millis(300));
    let line = berth.request_line(answer.header("x-request-id").unwrap());
    assert_eq!(line["bytes"], 8);
    assert!(line["duration_us"].as_u64().unwrap() >= 300_000, "{line}");
    assert!(line["cpu_us"].as_u64().unwrap() < 200_000, "{line}");
}

#[test]
fn typed_body_over_the_limit_is_413_before_it_is_read() {
    let berth = Manifest::new().auth("fixtures/auth-static").start();
    let path = "/api/v1/auth/login";
    // Declared: answered although not one byte of it was sent.
    let mut connection = Connection::open(berth.address);
    connection.send(head(
        "POST",
        path,
        &[("content-type", "application/json")],
        2 * 1024 * 1024,
    ));
    let answer = connection.response("POST").unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (413, "body-too-large"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(answer.text().contains("1048576 bytes"), "{}", answer.text());
    // Chunked without end: answered at the limit, and readable although we are still sending.
    let mut connection = Connection::open(berth.address);
    connection.send(format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    ));
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    for _ in 0..40 {
        connection.send(&chunk);
    }
    let answer = connection.response("POST").unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (413, "body-too-large"));
    assert_eq!(answer.header("connection"), Some("close"));
    // Exactly at the limit is not over it.
    let exact = format!("{{\"token\":\"{}\"}}", "x".repeat(1024 * 1024 - 12));
    assert_eq!(exact.len(), 1024 * 1024);
    assert_eq!(berth.post("/api/v1/auth/verify-email", &exact).status, 200);
}

#[test]
fn typed_body_that_stops_coming_is_408() {
    let berth = Berth::start(
        Manifest::new().auth("fixtures/auth-static").text(),
        &[("BERTH_HTTP_IDLE_TIME", "300ms")],
    );
    let mut connection = Connection::open(berth.address);
    connection.send(head(
        "POST",
        "/api/v1/auth/login",
        &[("content-type", "application/json")],
        100,
    ));
    connection.send("{\"email\":");
    let answer = connection.response("POST").unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (408, "body-timeout"));
    assert_eq!(
        berth.metric("berth_instances_free", &[]),
        256.0,
        "a slow upload holds no instance"
    );
}

#[test]
fn reader_that_stops_reading_is_cut_off() {
    let berth = Berth::start(
        Manifest::new()
            .handler_with("fixtures/echo", "limits = { cpu = \"10s\" }")
            .text(),
        &[("BERTH_HTTP_IDLE_TIME", "400ms")],
    );
    let mut connection = Connection::open(berth.address);
    connection.send(head(
        "GET",
        "/echo/big/1000000000",
        &[("x-request-id", "lazy")],
        0,
    ));
    // The body that doesn't move and the socket that takes nothing have the same patience; either may be first.
    let line = berth.request_line("lazy");
    assert!(
        ["client-gone", "plugin-timeout"].contains(&line["code"].as_str().unwrap()),
        "{line}"
    );
    assert_eq!(connection.response("GET").unwrap().ended, Ended::Cut);
    while berth.metric("berth_instances_free", &[]) < 256.0 {
        std::thread::yield_now();
    }
}

#[test]
fn expect_100_continue_is_answered_when_the_body_is_wanted() {
    let berth = Manifest::new()
        .auth("fixtures/auth-static")
        .handler("fixtures/echo")
        .start();
    let headers = [("expect", "100-continue"), ("content-type", "application/json")];
    let body = r#"{"token":"t"}"#;
    let mut connection = Connection::open(berth.address);
    connection.send(head("POST", "/api/v1/auth/verify-email", &headers, body.len()));
    while !connection.pending().starts_with(b"HTTP/1.1 100 Continue\r\n\r\n") {
        assert!(connection.fill());
    }
    connection.send(body);
    assert_eq!(connection.response("POST").unwrap().status, 200);
    // A body that will not be read is not asked for.
    let mut connection = Connection::open(berth.address);
    connection.send(head("POST", "/api/v1/auth/login", &headers, 2 * 1024 * 1024));
    while !connection.fill() {}
    assert!(connection.pending().starts_with(b"HTTP/1.1 413 "));
    // A handler that answers before it reads: the final head stands for the 100 (RFC 9110 section 10.1.1).
    let mut connection = Connection::open(berth.address);
    connection.send(head("POST", "/echo/echo", &headers, 5));
    while !connection.fill() {}
    assert!(connection.pending().starts_with(b"HTTP/1.1 200 "));
    connection.send("hello");
    assert_eq!(connection.response("POST").unwrap().text(), "hello");
}

#[test]
fn client_that_leaves_during_its_upload_is_no_fault_of_the_guest() {
    for plugin in ["echo", "echo-p3"] {
        let berth = Manifest::new().handler(&format!("fixtures/{plugin}")).start();
        for n in 0..25 {
            let mut connection = Connection::open(berth.address);
            let id = format!("{plugin}-{n}");
            connection.send(head(
                "POST",
                &format!("/{plugin}/x"),
                &[("x-request-id", &id)],
                100_000,
            ));
            connection.send([b'x'; 1000]);
            drop(connection);
            let line = berth.request_line(&id);
            assert_eq!(line["trap"], "client-gone", "{line}");
        }
        assert_eq!(
            berth.metric("berth_plugin_traps_total", &[plugin, "client-gone"]),
            25.0
        );
        assert_eq!(
            berth.metric("berth_plugin_traps_total", &[plugin, "refused"]),
            0.0
        );
        assert!(
            !berth.log().iter().any(|e| e["level"] == "ERROR"),
            "nobody is blamed"
        );
    }
}

#[test]
fn upload_that_stalls_is_no_fault_of_the_guest() {
    let berth = Berth::start(
        Manifest::new().handler("fixtures/echo").text(),
        &[("BERTH_HTTP_IDLE_TIME", "300ms")],
    );
    let mut connection = Connection::open(berth.address);
    connection.send(head("POST", "/echo/x", &[], 100_000));
    connection.send([b'x'; 1000]);
    let answer = connection.response("POST").unwrap();
    assert_eq!(answer.ended, Ended::Cut);
    let line = berth.request_line(answer.header("x-request-id").unwrap());
    assert_eq!(line["trap"], "client-gone", "{line}");
    assert!(
        !berth.log().iter().any(|e| e["level"] == "ERROR"),
        "nobody is blamed"
    );
}
