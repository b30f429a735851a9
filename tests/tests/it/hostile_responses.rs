//! Guests whose responses or outgoing requests break rules: what reaches the wire is sound, or cut.

use std::time::Duration;

use berth_tests::berth::{Berth, Manifest, PATIENCE};
use berth_tests::wire::{Connection, Ended, Response, head};

use crate::hostile::{fails, with_hello};

/// A response whose head was sent and whose body then failed: the part that came, a cut, one log line, one count, and
/// the next request is served.
#[track_caller]
fn is_cut(berth: &Berth, path: &str, body: &str, code: &str, trap: &str) {
    let plugin = path.split('/').nth(1).unwrap();
    let before = berth.metric("berth_plugin_traps_total", &[plugin, trap]);
    let answer = berth.get(path);
    assert_eq!(
        (answer.status, answer.ended),
        (200, Ended::Cut),
        "{path}: {}",
        answer.text()
    );
    assert_eq!(answer.text(), body, "{path}");
    let line = berth.request_line(answer.header("x-request-id").unwrap());
    assert_eq!(
        (line["code"].as_str(), line["trap"].as_str()),
        (Some(code), Some(trap)),
        "{line}"
    );
    berth.logged("the failure", |e| {
        e["target"] == "berth::plugin" && e["trap"] == trap && e["request_id"] == line["id"]
    });
    // The driver may report a moment after the connection saw the cut.
    let started = std::time::Instant::now();
    while berth.metric("berth_plugin_traps_total", &[plugin, trap]) < before + 1.0 {
        assert!(started.elapsed() < PATIENCE, "{path}: {trap} is not counted");
        std::thread::yield_now();
    }
    assert_eq!(berth.get("/hello/next").text(), "Hello, next.\n");
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &[plugin, trap]),
        before + 1.0,
        "{path}: counted once"
    );
}

const HALF: &str = "half of the bo";

#[test]
fn body_that_is_never_finished_is_cut() {
    let manifest = Manifest::new()
        .handler("hello")
        .handler("fixtures/bad-response")
        .handler("fixtures/bad-p3");
    let berth = Berth::start(manifest.text(), &[("BERTH_HTTP_IDLE_TIME", "400ms")]);
    is_cut(&berth, "/bad-response/park", HALF, "plugin-timeout", "wall");
    is_cut(&berth, "/bad-p3/park", HALF, "plugin-timeout", "wall");
}

#[test]
fn trap_in_the_middle_of_writing_is_cut() {
    let berth = with_hello("bad-response", "");
    is_cut(
        &berth,
        "/bad-response/trap/200",
        &"x".repeat(21 * 4096),
        "plugin-trap",
        "unreachable",
    );
}

#[test]
fn body_that_is_given_up_or_forgotten_is_cut() {
    for reuse in ["", "reuse = \"serial\""] {
        let berth = with_hello("bad-response", reuse);
        is_cut(&berth, "/bad-response/drop/200", HALF, "plugin-error", "refused");
        is_cut(
            &berth,
            "/bad-response/forget/200",
            HALF,
            "plugin-error",
            "refused",
        );
        // Before the head is out there is still a better answer.
        fails(&berth, "/bad-response/drop", 500, "plugin-error", "refused");
        fails(&berth, "/bad-response/forget", 500, "plugin-error", "refused");
        assert_eq!(
            berth.metric("berth_instances_idle", &[]),
            0.0,
            "such an instance isn't used again"
        );
    }
}

#[test]
fn body_of_a_03_handler_that_is_forgotten_is_cut() {
    // Only time can tell: the store may still move what the guest has passed on.
    let manifest = Manifest::new().handler("hello").handler("fixtures/bad-p3");
    let berth = Berth::start(manifest.text(), &[("BERTH_HTTP_IDLE_TIME", "400ms")]);
    is_cut(&berth, "/bad-p3/forget", HALF, "plugin-timeout", "wall");
    is_cut(&berth, "/bad-p3/forget/100", HALF, "plugin-timeout", "wall");
}

#[test]
fn body_that_is_not_as_long_as_promised_is_cut() {
    let manifest = Manifest::new()
        .handler("hello")
        .handler("fixtures/bad-response")
        .handler("fixtures/bad-p3");
    let berth = manifest.start();
    for plugin in ["bad-response", "bad-p3"] {
        // With a pause the head is out before the fault, without it is not.
        is_cut(
            &berth,
            &format!("/{plugin}/promise/100/10/200"),
            "xxxxxxxxxx",
            "plugin-error",
            "refused",
        );
        fails(
            &berth,
            &format!("/{plugin}/promise/100/10"),
            500,
            "plugin-error",
            "refused",
        );
        fails(
            &berth,
            &format!("/{plugin}/promise/10/100"),
            500,
            "plugin-error",
            "refused",
        );
        let exact = berth.get(&format!("/{plugin}/promise/10/10"));
        assert_eq!((exact.text().as_str(), exact.ended), ("xxxxxxxxxx", Ended::Whole));
    }
}

#[test]
fn what_is_written_after_the_promised_length_is_dropped() {
    let berth = with_hello("bad-response", "");
    let mut connection = Connection::open(berth.address);
    for _ in 0..2 {
        connection.send(head("GET", "/bad-response/later/10", &[], 0));
        let answer = connection.response("GET").unwrap();
        assert_eq!(
            (answer.text().as_str(), answer.ended),
            ("xxxxxxxxxx", Ended::Whole)
        );
    }
}

#[test]
fn statuses_without_a_body_have_none_whatever_the_guest_says() {
    let berth = with_hello("bad-response", "");
    let mut connection = Connection::open(berth.address);
    for (method, status) in [
        ("GET", 204),
        ("GET", 304),
        ("HEAD", 200),
        ("HEAD", 204),
        ("GET", 200),
    ] {
        connection.send(head(method, &format!("/bad-response/status/{status}"), &[], 0));
        // In step: the next answer begins right behind this one.
        let answer = connection.response(method).unwrap();
        assert_eq!(answer.status, status, "{method}");
        assert_eq!(answer.header("transfer-encoding"), None);
        // RFC 9110 section 8.6: never with 204, and with 304 it need not be.
        let length = answer.header("content-length");
        assert_eq!(length, (status == 200).then_some("7"), "{method} {status}");
    }
    for interim in [101, 103] {
        fails(
            &berth,
            &format!("/bad-response/status/{interim}"),
            500,
            "plugin-error",
            "refused",
        );
    }
}

#[test]
fn response_headers_have_a_limit() {
    let berth = with_hello("bad-response", "limits = { cpu = \"10s\" }");
    let fine = berth.get("/bad-response/huge/65536");
    assert_eq!(
        (fine.status, fine.header("x-huge").map(str::len)),
        (200, Some(65_536))
    );
    fails(
        &berth,
        "/bad-response/huge/1048576",
        500,
        "plugin-trap",
        "unreachable",
    );
    let fine = berth.get("/bad-response/many/500");
    assert_eq!((fine.status, fine.text().as_str()), (200, "Ok(())\n"));
    fails(
        &berth,
        "/bad-response/many/32769",
        500,
        "plugin-trap",
        "unreachable",
    );
}

fn values<'a>(answer: &'a Response, name: &str) -> Vec<&'a str> {
    let found = answer.headers.iter().filter(|(n, _)| n == name);
    found.map(|(_, v)| v.as_str()).collect()
}

#[test]
fn repeated_headers_stay_apart_and_in_order() {
    let berth = with_hello("bad-response", "");
    let answer = berth.get("/bad-response/cookies");
    assert_eq!(values(&answer, "set-cookie"), ["a=1; Path=/", "b=2"]);
    assert_eq!(values(&answer, "x-mine"), ["1", "2"]);
}

#[test]
fn headers_of_the_connection_and_broken_ones_never_reach_the_wire() {
    let berth = with_hello("bad-response", "");
    let answer = berth.get("/bad-response/refusals");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text().lines().count(), 16);
    for line in answer.text().lines() {
        assert!(line.contains("Err(HeaderError::"), "{line}");
    }
    for name in [
        "connection",
        "keep-alive",
        "upgrade",
        "host",
        "te",
        "x-mine",
        "set-cookie",
        "content-length",
    ] {
        assert_eq!(answer.header(name), None, "{name}");
    }
    assert_eq!(
        answer.header("transfer-encoding"),
        Some("chunked"),
        "the host's own framing"
    );
}

#[test]
fn trailers_are_filtered_like_headers() {
    let manifest = Manifest::new()
        .handler("hello")
        .handler("fixtures/bad-response")
        .handler("fixtures/bad-p3");
    let berth = manifest.start();
    for plugin in ["bad-response", "bad-p3"] {
        let mut connection = Connection::open(berth.address);
        connection.send(format!(
            "GET /{plugin}/trailers HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te, close\r\n\r\n"
        ));
        let wire = String::from_utf8(connection.rest()).unwrap();
        let (_, body) = wire.split_once("\r\n\r\n").unwrap();
        let (text, trailers) = body.split_once("\r\n0\r\n").unwrap_or_else(|| panic!("{wire}"));
        assert_eq!(
            text.matches("Err(HeaderError::").count(),
            if plugin == "bad-p3" { 6 } else { 16 },
            "{text}"
        );
        assert_eq!(trailers, "x-sum: 42\r\n\r\n", "{plugin}: only the good one");
    }
}

#[test]
fn outgoing_requests_that_break_rules_are_errors_of_the_guest() {
    let berth = with_hello("bad-outgoing", "");
    let answer = berth.get("/bad-outgoing/x");
    assert_eq!(
        answer.text().lines().collect::<Vec<_>>(),
        [
            "absolute path: refused",
            "path without a slash: refused",
            "path with a line break: refused",
            "no path: ErrorCode::HttpProtocolError",
            "no authority: ErrorCode::HttpRequestUriInvalid",
            "zero timeouts taken: true",
            "zero timeouts: ErrorCode::HttpRequestDenied",
            "to the host itself: ErrorCode::HttpRequestDenied",
        ]
    );
    let denied = berth.logged("the denial", |e| e["host"] == "127.0.0.1");
    assert_eq!(denied["plugin"], "bad-outgoing");
    assert!(berth.get("/health").status == 200);
    let line = berth.request_line(answer.header("x-request-id").unwrap());
    assert!(line["duration_us"].as_u64().unwrap() < Duration::from_secs(20).as_micros() as u64);
}
