//! Traces: what a collector gets, what a guest sees, and what a collector that isn't there costs.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest};
use berth_tests::collector::{Collector, Span};
use berth_tests::wire::{self, Response, request};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn traced(collector: &Collector, manifest: Manifest, more: &str) -> Berth {
    manifest
        .raw(&format!("[telemetry]\notlp = \"{}\"\n{more}", collector.url()))
        .start()
}

fn echo(collector: &Collector) -> Berth {
    traced(collector, Manifest::new().handler("fixtures/echo"), "")
}

fn id(answer: &Response) -> &str {
    answer.header("x-request-id").unwrap()
}

/// What the guest saw: the fixture answers with its request's headers.
fn seen(answer: &Response, name: &str) -> Vec<String> {
    let prefix = format!("{name}: ");
    answer
        .text()
        .lines()
        .filter_map(|l| l.strip_prefix(&prefix).map(str::to_owned))
        .collect()
}

/// Wait for the guest's span below a request's.
fn guest_span(collector: &Collector, server: &Span) -> Span {
    collector.span("of the guest", |s| s.parent_id == server.span_id)
}

#[test]
fn request_has_a_server_span_and_the_guests_below_it() {
    let collector = Collector::start();
    let berth = traced(
        &collector,
        Manifest::new().handler("fixtures/echo"),
        "service_name = \"the-edge\"\n",
    );
    let before = wall_clock();
    let answer = berth.get("/echo/burn/20?password=secret");
    let after = wall_clock();
    assert_eq!(answer.status, 200);
    let line = berth.request_line(id(&answer));
    let span = collector.request(id(&answer));
    assert_eq!(
        (span.name.as_str(), span.kind, span.status),
        ("GET /echo/*", 2, 0)
    );
    assert_eq!(span.parent_id, "");
    assert!(before <= span.start && span.start <= span.end && span.end <= after + 1_000_000_000);
    let version = line["version"].as_str().unwrap();
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.route", "/echo/*"),
        ("http.response.status_code", "200"),
        ("url.path", "/echo/burn/20"),
        ("url.scheme", "http"),
        ("client.address", "127.0.0.1"),
        ("server.address", "berth.test"),
        ("network.protocol.version", "1.1"),
        ("berth.plugin", "echo"),
        ("berth.version", version),
        ("berth.trap", ""),
        ("error.type", ""),
    ] {
        assert_eq!(span.attribute(key), value, "{key} of {span:#?}");
    }
    assert_eq!(line["trace_id"].as_str(), Some(span.trace_id.as_str()));
    for (key, value) in [
        ("service.name", "the-edge"),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ] {
        assert_eq!(
            span.resource.get(key).map(String::as_str),
            Some(value),
            "{span:#?}"
        );
    }
    let guest = guest_span(&collector, &span);
    assert_eq!(
        (guest.name.as_str(), guest.kind, guest.status),
        ("plugin echo", 1, 0)
    );
    assert_eq!(guest.trace_id, span.trace_id);
    let cpu = |s: &Span| s.attribute("berth.cpu_ms").parse::<f64>().unwrap();
    // It works for 20 ms by the clock, in which others may have the core.
    assert!(cpu(&guest) >= 3.0 && cpu(&span) >= 3.0, "{guest:#?}");
    assert!(span.attribute("berth.queue_ms").parse::<f64>().unwrap() >= 0.0);
    let everything = format!("{:?}", collector.spans());
    assert!(!everything.contains("secret"), "no query strings: {everything}");
}

fn wall_clock() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

#[test]
fn callers_trace_is_joined_and_the_guest_sees_its_own_span() {
    let collector = Collector::start();
    let berth = echo(&collector);
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [
        ("traceparent", parent.as_str()),
        ("tracestate", "vendor=x,other=y"),
    ];
    let answer = request(berth.address, "GET", "/echo/headers", &headers, b"");
    let span = collector.request(id(&answer));
    assert_eq!((span.trace_id.as_str(), span.parent_id.as_str()), (TRACE, CALLER));
    assert_eq!(span.trace_state, "vendor=x,other=y");
    let guest = guest_span(&collector, &span);
    assert_eq!(
        seen(&answer, "traceparent"),
        [format!("00-{TRACE}-{}-01", guest.span_id)]
    );
    assert_eq!(seen(&answer, "tracestate"), ["vendor=x,other=y"]);
}

#[test]
fn malformed_parent_is_ignored_with_its_state() {
    let collector = Collector::start();
    let berth = echo(&collector);
    let headers = [("traceparent", "00-nonsense-01"), ("tracestate", "vendor=x")];
    let answer = request(berth.address, "GET", "/echo/headers", &headers, b"");
    let span = collector.request(id(&answer));
    assert_eq!((span.parent_id.as_str(), span.trace_state.as_str()), ("", ""));
    let guest = guest_span(&collector, &span);
    let ours = format!("00-{}-{}-01", span.trace_id, guest.span_id);
    assert_eq!(seen(&answer, "traceparent"), [ours]);
    assert!(seen(&answer, "tracestate").is_empty(), "{}", answer.text());
}

#[test]
fn callers_decision_not_to_sample_is_kept_and_passed_on() {
    let collector = Collector::start();
    let berth = echo(&collector);
    let parent = format!("00-{TRACE}-{CALLER}-00");
    let headers = [("traceparent", parent.as_str())];
    let answer = request(berth.address, "GET", "/echo/headers", &headers, b"");
    let seen = seen(&answer, "traceparent").remove(0);
    assert!(
        seen.starts_with(&format!("00-{TRACE}-")) && seen.ends_with("-00"),
        "{seen}"
    );
    assert_ne!(seen, parent);
    let later = berth.get("/echo/status/200");
    collector.request(id(&later));
    assert!(collector.spans().iter().all(|s| s.trace_id != TRACE));
}

#[test]
fn nothing_is_traced_at_zero_percent_but_what_the_caller_traces() {
    let collector = Collector::start();
    let berth = traced(
        &collector,
        Manifest::new().handler("fixtures/echo"),
        "sample = \"0%\"\n",
    );
    let own = berth.get("/echo/status/200");
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [("traceparent", parent.as_str())];
    let joined = request(berth.address, "GET", "/echo/status/200", &headers, b"");
    collector.request(id(&joined));
    let own = id(&own);
    assert!(
        collector
            .spans()
            .iter()
            .all(|s| s.attribute("berth.request_id") != own)
    );
}

#[test]
fn server_errors_are_errors_and_the_callers_are_not() {
    let collector = Collector::start();
    let manifest = Manifest::new()
        .handler("fixtures/echo")
        .handler("fixtures/trap-before-head")
        .handler("fixtures/trap-after-head");
    let berth = traced(&collector, manifest, "");
    let trapped = berth.get("/trap-before-head/x");
    let span = collector.request(id(&trapped));
    assert_eq!(span.status, 2, "{span:#?}");
    for (key, value) in [
        ("http.response.status_code", "500"),
        ("berth.trap", "unreachable"),
        ("error.type", "plugin-trap"),
    ] {
        assert_eq!(span.attribute(key), value, "{span:#?}");
    }
    let guest = guest_span(&collector, &span);
    assert_eq!((guest.status, guest.attribute("berth.trap")), (2, "unreachable"));

    let cut = berth.get("/trap-after-head/x");
    let span = collector.request(id(&cut));
    assert_eq!((span.status, span.attribute("berth.trap")), (2, "unreachable"));

    let nothing = berth.get("/nothing/here");
    let span = collector.request(id(&nothing));
    assert_eq!((span.status, span.name.as_str()), (0, "GET"), "{span:#?}");
    assert_eq!(span.attribute("http.route"), "");

    let odd = request(berth.address, "BREW", "/echo/status/200", &[], b"");
    let span = collector.request(id(&odd));
    assert_eq!(span.name, "HTTP /echo/*");
    assert_eq!(span.attribute("http.request.method"), "_OTHER");
    assert_eq!(span.attribute("http.request.method_original"), "BREW");
}

#[test]
fn run_that_the_host_ended_says_so() {
    let collector = Collector::start();
    let manifest = Manifest::new().handler_with("fixtures/echo", "limits = { wall = \"200ms\" }");
    let berth = traced(&collector, manifest, "");
    let late = berth.get("/echo/sleep/20000");
    let span = collector.request(id(&late));
    assert_eq!(span.attribute("http.response.status_code"), "504");
    assert_eq!((span.status, span.attribute("berth.trap")), (2, "wall"));
    let guest = guest_span(&collector, &span);
    assert_eq!(guest.attribute("berth.dropped"), "true", "{guest:#?}");
}

#[test]
fn typed_policy_is_traced_like_a_handler() {
    let collector = Collector::start();
    let berth = traced(&collector, Manifest::new().auth("fixtures/auth-static"), "");
    let body = r#"{"email":"problem@example.com","password":"x"}"#;
    let answer = berth.post("/api/v1/auth/login", body);
    let span = collector.request(id(&answer));
    assert_eq!((span.name.as_str(), span.status), ("POST /api/v1/auth/login", 0));
    assert_eq!(span.attribute("http.response.status_code"), "429");
    assert_eq!(guest_span(&collector, &span).name, "plugin auth");
    assert_eq!(
        berth.metric("berth_plugin_request_bytes_total", &["auth"]),
        body.len() as f64
    );
}

#[test]
fn without_telemetry_the_callers_header_goes_through_unchanged() {
    let berth = Manifest::new().handler("fixtures/echo").start();
    for parent in [format!("00-{TRACE}-{CALLER}-01"), "nonsense".to_owned()] {
        let headers = [("traceparent", parent.as_str()), ("tracestate", "vendor=x")];
        let answer = request(berth.address, "GET", "/echo/headers", &headers, b"");
        assert_eq!(seen(&answer, "traceparent"), [parent]);
        assert_eq!(seen(&answer, "tracestate"), ["vendor=x"]);
        assert!(berth.request_line(id(&answer)).get("trace_id").is_none());
    }
}

#[test]
fn last_spans_are_delivered_before_the_end() {
    let collector = Collector::start();
    let mut berth = echo(&collector);
    let ids: Vec<String> = (0..20)
        .map(|_| id(&berth.get("/echo/status/200")).to_owned())
        .collect();
    berth.signal("TERM");
    assert_eq!(berth.wait().code(), Some(0));
    let spans = collector.spans();
    for id in ids {
        assert!(
            spans.iter().any(|s| s.attribute("berth.request_id") == id),
            "{id} is in none of {} spans",
            spans.len()
        );
    }
}

/// A collector that takes connections and never answers, and one that isn't there.
#[test]
fn collector_that_is_down_holds_up_neither_requests_nor_the_stop() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [silent.local_addr().unwrap(), gone.local_addr().unwrap()];
    drop(gone);
    for address in addresses {
        let manifest = Manifest::new()
            .handler("fixtures/echo")
            .raw(&format!("[telemetry]\notlp = \"http://{address}\"\n"));
        let mut berth = manifest.start();
        let mut connection = wire::Connection::open(berth.address);
        // More than the queue holds.
        for _ in 0..3_000 {
            connection.send(wire::head("GET", "/echo/status/204", &[], 0));
            assert_eq!(connection.response("GET").unwrap().status, 204);
        }
        let warned = |e: &serde_json::Value| {
            e["target"] == "berth::telemetry"
                && e["message"]
                    .as_str()
                    .is_some_and(|m| m.starts_with("traces can't be delivered"))
        };
        berth.logged("that traces can't be delivered", warned);
        berth.metric_becomes("berth_trace_spans_total", &["failed"], |n| n > 0.0);
        if address == addresses[0] {
            // Two spans a request, and hardly a batch has left the queue of 4096.
            assert!(berth.metric("berth_trace_spans_total", &["dropped"]) > 0.0);
        }
        assert_eq!(berth.metric("berth_trace_spans_total", &["exported"]), 0.0);
        drop(connection);
        let stopping = Instant::now();
        berth.signal("TERM");
        assert_eq!(berth.wait().code(), Some(0));
        // A second for the spans; without a bound it would be all attempts of all batches, which is 40.
        assert!(
            stopping.elapsed() < Duration::from_secs(15),
            "{:?}",
            stopping.elapsed()
        );
        assert_eq!(berth.log().iter().filter(|e| warned(e)).count(), 1, "said once");
    }
}
