//! HTTP/1.1 on the wire: request ids, heads that break rules, timeouts, keep-alive.

use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest};
use berth_tests::wire::{Connection, head, request};

fn hello() -> Berth {
    Manifest::new().handler("hello").start()
}

#[test]
fn request_id_is_the_clients_if_usable_and_always_returned() {
    let berth = hello();
    let id = |given: &str| {
        let answer = request(berth.address, "GET", "/hello/x", &[("x-request-id", given)], b"");
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("order-66"), "order-66");
    assert_eq!(id(&"x".repeat(128)), "x".repeat(128));
    for unusable in ["", "two words", &"x".repeat(129), "caf\u{e9}"] {
        let made = id(unusable);
        assert_eq!(
            (made.len(), made.as_bytes()[14]),
            (36, b'7'),
            "{unusable:?} gives a UUIDv7, not {made:?}"
        );
    }
    assert_ne!(id(""), id(""));
    // In the error's body and in the log as well.
    let answer = request(
        berth.address,
        "GET",
        "/nope",
        &[("x-request-id", "order-67")],
        b"",
    );
    assert_eq!(answer.json()["requestId"], "order-67");
    let line = berth.request_line("order-67");
    assert_eq!(
        (line["status"].as_u64(), line["path"].as_str()),
        (Some(404), Some("/nope"))
    );
    berth.request_line("order-66");
}

#[test]
fn problem_has_the_members_of_rfc_9457_and_of_older_clients() {
    let berth = hello();
    let answer = berth.get("/nope");
    let body = answer.json();
    assert_eq!(body["type"], "about:blank");
    assert_eq!(body["title"], "Not Found");
    assert_eq!(
        (body["status"].as_u64(), body["statusCode"].as_u64()),
        (Some(404), Some(404))
    );
    assert_eq!(
        (body["code"].as_str(), body["errorCode"].as_str()),
        (Some("not-found"), Some("NOT_FOUND"))
    );
    assert_eq!(body["detail"], body["message"]);
    assert_eq!(body["detail"], body["error"]);
    assert!(body["timestamp"].as_u64().unwrap() > 1_700_000_000_000);
    assert_eq!(body["requestId"].as_str(), answer.header("x-request-id"));
    assert!(body.get("errors").is_none());
}

#[test]
fn http_11_needs_exactly_one_host() {
    let berth = hello();
    let status = |text: &str| {
        let mut connection = Connection::open(berth.address);
        connection.send(text);
        connection.response("GET").map(|r| (r.status, r.code()))
    };
    let refused = Some((400, "invalid-request".to_owned()));
    assert_eq!(status("GET /health HTTP/1.1\r\n\r\n"), refused);
    assert_eq!(
        status("GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
        refused
    );
    let fine = Some((200, String::new()));
    assert_eq!(status("GET /health HTTP/1.1\r\nhost: a:8080\r\n\r\n"), fine);
    assert_eq!(status("GET /health HTTP/1.0\r\n\r\n"), fine);
    assert_eq!(
        status("GET http://other.test/health HTTP/1.1\r\nhost: a\r\n\r\n"),
        fine,
        "absolute form"
    );
}

#[test]
fn host_that_is_none_is_the_clients_fault_for_every_generation() {
    let berth = Manifest::new().handler("hello").handler("hello-p3").start();
    for path in ["/hello/x", "/hello-p3/x"] {
        let status = |text: String| {
            let mut connection = Connection::open(berth.address);
            connection.send(&text);
            connection.response("GET").map(|r| r.status)
        };
        assert_eq!(
            status(format!("GET {path} HTTP/1.0\r\n\r\n")),
            Some(200),
            "{path}"
        );
        for host in ["", "a b", "a/b", "user@a"] {
            assert_eq!(
                status(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")),
                Some(400),
                "{path} {host:?}"
            );
        }
        let named = "connection: host, content-type, x-hop";
        assert_eq!(
            status(format!("GET {path} HTTP/1.1\r\nhost: a\r\n{named}\r\n\r\n")),
            Some(200),
            "{path}"
        );
    }
    assert!(
        !berth.log().iter().any(|e| e["level"] == "ERROR"),
        "no plugin is blamed"
    );
}

#[test]
fn heads_that_hyper_refuses_are_400_and_431_with_an_empty_body() {
    let berth = hello();
    for (text, status) in [
        ("NOT HTTP AT ALL\r\n\r\n".to_owned(), 400),
        (
            "GET /health HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n".to_owned(),
            400,
        ),
        (
            "POST /hello/x HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx".to_owned(),
            400,
        ),
        (
            format!(
                "GET /health HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
                "y".repeat(300 * 1024)
            ),
            431,
        ),
        (
            format!(
                "GET /health HTTP/1.1\r\nhost: a\r\n{}\r\n",
                "x: y\r\n".repeat(200)
            ),
            431,
        ),
    ] {
        let mut connection = Connection::open(berth.address);
        connection.send(&text);
        let answer = connection.response("GET").unwrap();
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{:.60}", text);
        assert!(connection.rest().is_empty(), "and the connection is closed");
    }
    assert_eq!(berth.get("/health").status, 200);
}

#[test]
fn head_a_little_over_the_limit_is_431_with_a_sentence() {
    let berth = hello();
    let value = "y".repeat(64 * 1024);
    let answer = request(berth.address, "GET", "/health", &[("x-large", &value)], b"");
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (431, "header-too-large"),
        "{}",
        answer.text()
    );
    let long = format!("/hello/{}", "y".repeat(65_000));
    let answer = request(berth.address, "GET", &long, &[("x-small", &value[..1000])], b"");
    assert_eq!(answer.code(), "header-too-large", "the path counts too");
    // Longer than a URI may be in hyper: its own answer.
    let answer = request(berth.address, "GET", &format!("/hello/{value}"), &[], b"");
    assert_eq!((answer.status, answer.body.len()), (414, 0));
}

#[test]
fn large_head_below_the_limit_is_served() {
    let berth = Manifest::new().handler("fixtures/echo").start();
    let value = "y".repeat(50 * 1024);
    let answer = request(berth.address, "GET", "/echo/headers", &[("x-large", &value)], b"");
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains(&value));
}

#[test]
fn slow_head_is_cut_at_the_limit_and_others_are_served_meanwhile() {
    let berth = Berth::start(
        Manifest::new().handler("hello").text(),
        &[("BERTH_HTTP_HEADER_TIME", "500ms")],
    );
    let started = Instant::now();
    let mut slow = Connection::open(berth.address);
    slow.send("GET /health HTTP/1.1\r\nhost: a\r\n");
    let mut silent = Connection::open(berth.address);
    // Drip: each byte must not buy more time.
    let mut drip = slow.sender();
    let dripping = std::thread::spawn(move || {
        while started.elapsed() < Duration::from_millis(1500) {
            drip.send("x");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert_eq!(berth.get("/hello/other").status, 200);
    assert!(slow.rest().is_empty(), "closed without an answer");
    let slow_cut = started.elapsed();
    assert!(silent.rest().is_empty());
    assert!(slow_cut >= Duration::from_millis(450), "{slow_cut:?}");
    assert!(
        slow_cut < Duration::from_millis(1400),
        "the drip did not buy time: {slow_cut:?}"
    );
    dripping.join().unwrap();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let berth = hello();
    let mut connection = Connection::open(berth.address);
    let all: String = (0..10)
        .map(|n| head("GET", &format!("/hello/{n}"), &[], 0))
        .collect();
    connection.send(all);
    for n in 0..10 {
        assert_eq!(
            connection.response("GET").unwrap().text(),
            format!("Hello, {n}.\n")
        );
    }
}

#[test]
fn connections_beyond_the_limit_wait_and_are_served_later() {
    let berth = Berth::start(
        Manifest::new().handler("hello").text(),
        &[("BERTH_HTTP_CONNECTIONS", "2")],
    );
    let mut first = Connection::open(berth.address);
    let mut second = Connection::open(berth.address);
    for connection in [&mut first, &mut second] {
        connection.send(head("GET", "/health", &[], 0));
        assert_eq!(connection.response("GET").unwrap().status, 200);
    }
    let mut third = Connection::open(berth.address);
    third.send(head("GET", "/health", &[], 0));
    drop(first);
    assert_eq!(third.response("GET").unwrap().status, 200);
}

#[test]
fn small_head_and_small_body_do_not_wait_for_an_acknowledgement() {
    let berth = Manifest::new().handler("fixtures/echo").start();
    let mut connection = Connection::open(berth.address);
    let mut in_pieces = 0;
    let mut median = |path: &str| {
        let mut times: Vec<Duration> = (0..50)
            .map(|_| {
                let started = Instant::now();
                connection.send(head("GET", path, &[], 0));
                assert!(connection.fill());
                in_pieces += usize::from(!connection.pending().ends_with(b"\r\n0\r\n\r\n"));
                assert_eq!(connection.response("GET").unwrap().status, 200);
                started.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[25]
    };
    // The same wait before everything, and between the flushed beginning and the end.
    let whole = median("/echo/sleep/1");
    let split = median("/echo/slow/1");
    assert!(in_pieces > 0, "an answer was written in more than one piece");
    // Nagle's algorithm and a delayed acknowledgement would add 40 ms to each, by the kernel's constant.
    assert!(
        split < whole + Duration::from_millis(20),
        "{whole:?}, split {split:?}"
    );
}

#[test]
fn first_requests_in_parallel_are_all_served() {
    let berth = hello();
    let answers = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..32)
            .map(|_| scope.spawn(|| berth.get("/hello/x").status))
            .collect();
        asked
            .into_iter()
            .map(|one| one.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert_eq!(answers, [200; 32]);
}

#[test]
fn target_with_user_information_is_refused() {
    let berth = hello();
    for target in ["http://u@berth.test/hello/x", "http://u:p@berth.test/hello/x"] {
        let answer = request(berth.address, "GET", target, &[], b"");
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid-request"));
    }
    assert_eq!(
        request(berth.address, "GET", "http://berth.test/hello/x", &[], b"").status,
        200
    );
}
