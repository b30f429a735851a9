//! HTTP/2 with prior knowledge: whole requests, and frames where they matter.

use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest};
use berth_tests::http2::{self, Frame, Raw, block_on, connect, get, get_block, header_block, kind};
use berth_tests::wire::{self, Ended};
use http::{HeaderMap, HeaderValue, Request};

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const INTERNAL_ERROR: u32 = 2;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

fn hello() -> Berth {
    Manifest::new().handler("hello").start()
}

#[test]
fn handlers_policies_and_host_routes_answer_over_http2_as_over_http1() {
    let berth = Manifest::new()
        .handler("hello")
        .handler("hello-p3")
        .auth("fixtures/auth-static")
        .start();
    block_on(async {
        let client = connect(berth.address).await;
        for path in ["/hello/x", "/hello-p3/x", "/nope", "/api/v1/me"] {
            let new = get(&client, &format!("http://berth.test{path}")).await;
            let old = berth.get(path);
            assert_eq!(new.status, old.status, "{path}");
            assert_eq!(new.header("content-type"), old.header("content-type"), "{path}");
            assert!(new.header("x-request-id").is_some());
            if new.status == 200 {
                assert_eq!(new.body, old.body, "{path}");
            } else {
                assert_eq!(new.code(), old.code(), "{path}");
            }
        }
        let login = Request::post("http://berth.test/api/v1/auth/login")
            .header("content-type", "application/json")
            .body(())
            .unwrap();
        let body = br#"{"email":"ada@example.com","password":"correct horse"}"#;
        let (answer, _) = http2::send(&client, login, body, None).await;
        let old = berth.post("/api/v1/auth/login", std::str::from_utf8(body).unwrap());
        assert_eq!((answer.status, answer.body), (old.status, old.body));
    });
}

#[test]
fn authority_wins_over_host_and_one_of_them_must_be_there() {
    let berth = Manifest::new().handler("fixtures/echo").start();
    let status = |headers: &[(&str, &str)]| -> Vec<u8> {
        let mut raw = Raw::open(berth.address);
        raw.frame(kind::HEADERS, END_STREAM | END_HEADERS, 1, &header_block(headers));
        let head = raw.find(|f| f.kind == kind::HEADERS && f.stream == 1);
        head.expect("an answer").payload
    };
    let with = |more: &[(&'static str, &'static str)]| {
        let mut headers = vec![(":method", "GET"), (":scheme", "http"), (":path", "/echo/x")];
        headers.extend(more);
        status(&headers)
    };
    // Static table: 8 is `:status: 200`, 12 is `:status: 400` (RFC 7541 appendix A).
    assert_eq!(with(&[(":authority", "a.test"), ("host", "b.test")])[0], 0x88);
    assert_eq!(with(&[(":authority", "a.test:8080")])[0], 0x88);
    assert_eq!(with(&[("host", "b.test")])[0], 0x88);
    assert_eq!(with(&[])[0], 0x8c);
}

#[test]
fn guest_that_dies_after_the_head_resets_its_stream_only() {
    let berth = Manifest::new()
        .handler("hello")
        .handler("fixtures/trap-after-head")
        .start();
    let mut raw = Raw::open(berth.address);
    raw.frame(
        kind::HEADERS,
        END_STREAM | END_HEADERS,
        1,
        &get_block("/trap-after-head/x"),
    );
    let end = raw.find(|f| {
        f.stream == 1 && (f.kind == kind::RST_STREAM || f.flags & END_STREAM != 0 && f.kind == kind::DATA)
    });
    assert_eq!(
        end.as_ref().and_then(Frame::error_code),
        Some(INTERNAL_ERROR),
        "{end:?}"
    );
    raw.frame(kind::HEADERS, END_STREAM | END_HEADERS, 3, &get_block("/hello/x"));
    let head = raw.find(|f| f.stream == 3 && f.kind == kind::HEADERS).unwrap();
    assert_eq!(head.payload[0], 0x88, "the connection serves on");
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["trap-after-head", "unreachable"]),
        1.0
    );
}

#[test]
fn stream_that_the_client_resets_ends_its_guest_and_not_the_connection() {
    let berth = Manifest::new()
        .handler("hello")
        .handler_with("fixtures/park", "limits = { concurrency = 1 }")
        .start();
    let mut raw = Raw::open(berth.address);
    raw.frame(kind::HEADERS, END_STREAM | END_HEADERS, 1, &get_block("/park/x"));
    while berth.metric("berth_instances_free", &[]) > 255.0 {
        std::thread::yield_now();
    }
    raw.frame(kind::RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    while berth.metric("berth_instances_free", &[]) < 256.0 {
        std::thread::yield_now();
    }
    raw.frame(kind::HEADERS, END_STREAM | END_HEADERS, 3, &get_block("/hello/x"));
    assert!(raw.find(|f| f.stream == 3 && f.kind == kind::HEADERS).is_some());
    let line = berth.logged("the request that was reset", |e| {
        e["target"] == "berth::request" && e["plugin"] == "park"
    });
    assert_eq!(line["trap"], "client-gone");
}

#[test]
fn trailers_pass_both_ways_without_those_that_speak_for_the_host() {
    let berth = Manifest::new()
        .handler("fixtures/echo")
        .handler("fixtures/echo-p3")
        .start();
    block_on(async {
        let client = connect(berth.address).await;
        for plugin in ["echo", "echo-p3"] {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("abc"));
            trailers.insert("berth-user-id", HeaderValue::from_static("root"));
            let request = Request::post(format!("http://berth.test/{plugin}/x"))
                .body(())
                .unwrap();
            let (answer, back) = http2::send(&client, request, b"body", Some(trailers)).await;
            assert_eq!(
                (answer.status, answer.body.as_slice()),
                (200, b"body".as_slice()),
                "{plugin}"
            );
            // The 0.3 one sends them back.
            let back = back.unwrap_or_default();
            let sum = back.get("x-sum").map(HeaderValue::as_bytes);
            assert_eq!(
                sum,
                (plugin == "echo-p3").then_some(b"abc".as_slice()),
                "{plugin}"
            );
            assert!(!back.contains_key("berth-user-id"));
        }
    });
}

#[test]
fn large_body_comes_back_identical_and_slow_readers_are_flow_controlled() {
    let berth = Manifest::new().handler("fixtures/echo").start();
    block_on(async {
        let client = connect(berth.address).await;
        let answer = get(&client, "http://berth.test/echo/big/3000000").await;
        assert_eq!(
            (answer.status, answer.body.len(), answer.ended),
            (200, 3_000_000, Ended::Whole)
        );
    });
}

#[test]
fn head_that_is_too_large_is_refused_and_the_host_lives() {
    let berth = hello();
    block_on(async {
        let client = connect(berth.address).await;
        let request = Request::get("http://berth.test/hello/x")
            .header("x-large", "x".repeat(100_000))
            .body(())
            .unwrap();
        // The client knows the host's limit from its settings, or the host says 431.
        let mut ready = client.clone().ready().await.unwrap();
        if let Ok((answer, _)) = ready.send_request(request, true) {
            match answer.await {
                Ok(answer) => assert_eq!(answer.status().as_u16(), 431),
                Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
            }
        }
    });
    let mut raw = Raw::open(berth.address);
    let block = header_block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "berth.test"),
        (":path", "/hello/x"),
        ("x-large", &"x".repeat(15_000)),
        ("x-larger", &"x".repeat(900)),
    ]);
    // Within one frame's size, below the limit: taken.
    raw.frame(kind::HEADERS, END_STREAM | END_HEADERS, 1, &block);
    assert_eq!(raw.find(|f| f.kind == kind::HEADERS).unwrap().payload[0], 0x88);
}

#[test]
fn silent_and_idle_connections_are_closed() {
    let berth = Berth::start(
        Manifest::new().handler("hello").text(),
        &[("BERTH_HTTP_HEADER_TIME", "300ms")],
    );
    // Half a preface.
    let mut half = wire::Connection::open(berth.address);
    half.send(&http2::PREFACE[..10]);
    assert!(half.rest().is_empty());
    // A whole one, and nothing more: told to go, then closed.
    let mut raw = Raw::open(berth.address);
    assert_eq!(
        raw.find(|f| f.kind == kind::GOAWAY).unwrap().error_code(),
        Some(0)
    );
    while raw.read().is_some() {}
    // One that has served, likewise.
    let mut raw = Raw::open(berth.address);
    raw.frame(kind::HEADERS, END_STREAM | END_HEADERS, 1, &get_block("/hello/x"));
    assert!(raw.find(|f| f.kind == kind::HEADERS && f.stream == 1).is_some());
    assert!(raw.find(|f| f.kind == kind::GOAWAY).is_some());
    while raw.read().is_some() {}
}

#[test]
fn client_that_opens_no_window_loses_its_connection() {
    let berth = Berth::start(
        Manifest::new().handler("fixtures/echo").text(),
        &[("BERTH_HTTP_IDLE_TIME", "400ms")],
    );
    let mut raw = Raw::open(berth.address);
    // SETTINGS_INITIAL_WINDOW_SIZE (4) is nothing from now on.
    raw.frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    raw.frame(
        kind::HEADERS,
        END_STREAM | END_HEADERS,
        1,
        &get_block("/echo/big/1000000"),
    );
    while raw.read().is_some() {}
    while berth.metric("berth_instances_free", &[]) < 256.0 {
        std::thread::yield_now();
    }
}

#[test]
fn rapid_resets_end_the_connection_that_makes_them() {
    let berth = hello();
    let mut raw = Raw::open(berth.address);
    let block = get_block("/hello/x");
    let mut burst = Vec::new();
    for n in 0..20_000u32 {
        let stream = 2 * n + 1;
        burst.extend(http2::encode(
            kind::HEADERS,
            END_STREAM | END_HEADERS,
            stream,
            &block,
        ));
        burst.extend(http2::encode(kind::RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    }
    raw.bytes(&burst);
    let goaway = raw.find(|f| f.kind == kind::GOAWAY);
    if let Some(goaway) = goaway {
        assert_eq!(goaway.error_code(), Some(ENHANCE_YOUR_CALM));
    }
    while raw.read().is_some() {}
    assert_eq!(berth.get("/hello/x").status, 200);
    while berth.metric("berth_instances_free", &[]) < 256.0 {
        std::thread::yield_now();
    }
}

#[test]
fn endless_continuations_end_the_connection() {
    let berth = hello();
    let mut raw = Raw::open(berth.address);
    raw.frame(kind::HEADERS, END_STREAM, 1, &get_block("/hello/x"));
    let more = header_block(&[("x-more", &"y".repeat(16_000))]);
    let mut sent = 0;
    while sent < 2_000 && raw.frame(kind::CONTINUATION, 0, 1, &more) {
        sent += 1;
    }
    while raw.read().is_some() {}
    assert!(sent < 2_000, "the host took {sent} continuations");
    assert_eq!(berth.get("/hello/x").status, 200);
}

#[test]
fn sigterm_lets_streams_end_and_closes_idle_connections() {
    let mut berth = Manifest::new().handler("fixtures/echo").start();
    let address = berth.address;
    let mut idle = Raw::open(address);
    assert!(idle.find(|f| f.kind == kind::SETTINGS).is_some());
    let busy = std::thread::spawn(move || {
        block_on(async {
            let client = connect(address).await;
            get(&client, "http://berth.test/echo/sleep/1000").await
        })
    });
    while berth.metric("berth_instances_free", &[]) > 255.0 {
        std::thread::yield_now();
    }
    let stopped = Instant::now();
    berth.signal("TERM");
    assert!(idle.find(|f| f.kind == kind::GOAWAY).is_some());
    let answer = busy.join().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "slept 1000\n"));
    assert_eq!(berth.wait().code(), Some(0));
    // A client that ignores the goodbye does not hold up the stop for its whole time of 30 s.
    assert!(stopped.elapsed() < Duration::from_secs(15));
}

const WINDOW_UPDATE: u8 = 8;
/// SETTINGS_INITIAL_WINDOW_SIZE (4) is nothing.
const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];

#[test]
fn answers_that_nobody_takes_hold_no_place_whatever_else_the_connection_does() {
    let more = "reuse = \"concurrent\"\ngrants = { log = true }\nlimits = { concurrency = 2 }";
    let manifest = Manifest::new().handler_with("fixtures/counter-p3", more);
    let berth = Berth::start(manifest.text(), &[("BERTH_HTTP_IDLE_TIME", "400ms")]);
    let mut raw = Raw::open(berth.address);
    raw.frame(kind::SETTINGS, 0, 0, &NO_WINDOW);
    for stream in [1, 3] {
        raw.frame(
            kind::HEADERS,
            END_STREAM | END_HEADERS,
            stream,
            &get_block("/counter-p3/x"),
        );
    }
    // Other streams move all the time.
    let mut stream = 5;
    while raw.frame(
        kind::HEADERS,
        END_STREAM | END_HEADERS,
        stream,
        &get_block("/health"),
    ) && stream < 400
    {
        stream += 2;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(stream < 400, "the connection was given up");
    assert_eq!(berth.get("/counter-p3/x").status, 200);
}

#[test]
fn slow_reader_gets_the_whole_of_its_answer() {
    let berth = Berth::start(
        Manifest::new().handler("fixtures/echo").text(),
        &[("BERTH_HTTP_HEADER_TIME", "200ms")],
    );
    let mut raw = Raw::open(berth.address);
    raw.frame(kind::SETTINGS, 0, 0, &NO_WINDOW);
    raw.frame(
        kind::HEADERS,
        END_STREAM | END_HEADERS,
        1,
        &get_block("/echo/big/4000"),
    );
    let mut got = 0;
    // Longer than an idle connection may live and say goodbye: the whole answer is in the host's hands at once.
    for _ in 0..40 {
        raw.frame(WINDOW_UPDATE, 0, 1, &100u32.to_be_bytes());
        let data = raw.find(|f| f.kind == kind::DATA).expect("the next piece");
        got += data.payload.len();
        std::thread::sleep(Duration::from_millis(80));
    }
    assert_eq!(got, 4_000);
}

#[test]
fn instance_that_died_holds_no_permit_while_an_answer_of_it_is_unread() {
    let more = "reuse = \"concurrent\"\ngrants = { log = true }\nlimits = { cpu = \"200ms\" }";
    let manifest = Manifest::new()
        .handler_with("fixtures/counter-p3", more)
        .handler_with("fixtures/spin", "limits = { cpu = \"200ms\", wall = \"5s\" }");
    let berth = manifest.start();
    let mut raw = Raw::open(berth.address);
    raw.frame(kind::SETTINGS, 0, 0, &NO_WINDOW);
    raw.frame(
        kind::HEADERS,
        END_STREAM | END_HEADERS,
        1,
        &get_block("/counter-p3/x"),
    );
    assert!(raw.find(|f| f.kind == kind::HEADERS && f.stream == 1).is_some());
    assert_eq!(berth.get("/counter-p3/spin").code(), "plugin-cpu");
    // With the permit lost it would wait for it until its wall time.
    for _ in 0..4 {
        assert_eq!(berth.get("/spin/x").code(), "plugin-cpu");
    }
}
