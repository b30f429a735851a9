//! Faults that bit other hosts, where the other files have only one side of them: typed policies beside handlers, 0.3
//! beside 0.2, what a limit doesn't count, and what becomes of an instance that is used again.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest, command};
use berth_tests::components::{self, Built};
use berth_tests::wire::{self, Connection, Ended, Response, get, head};
use berth_tests::{guest, http2, load};
use http::Request;
use tempfile::TempDir;

use crate::docs;
use crate::hostile::{leave_the_others_their_time, with_hello};

const LOGIN: &str = "/api/v1/auth/login";

/// A manifest with the policy of constant answers, and these limits of it.
fn policy(limits: &str) -> Manifest {
    let component = guest("fixtures/auth-static");
    Manifest::new().raw(&format!(
        "[plugins.auth]\ncomponent = {component:?}\npolicy = \"auth\"\nlimits = {{ {limits} }}\n"
    ))
}

fn login(address: SocketAddr, name: &str) -> Response {
    let body = format!(r#"{{"email":"{name}@example.com","password":"x"}}"#);
    wire::post_json(address, LOGIN, &body)
}

fn free_becomes(berth: &Berth, count: f64) {
    berth.metric_becomes("berth_instances_free", &[], |free| free == count);
}

fn idle_becomes(berth: &Berth, count: f64) {
    berth.metric_becomes("berth_instances_idle", &[], |idle| idle == count);
}

#[track_caller]
fn is_host_busy(answer: &Response) {
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "host-busy"),
        "{}",
        answer.text()
    );
    assert_eq!(answer.header("retry-after"), Some("1"));
}

#[test]
fn one_spinning_policy_per_worker_leaves_the_others_their_time() {
    let berth = policy("cpu = \"2s\"").handler("hello").start();
    leave_the_others_their_time(&berth, |address| login(address, "spin"));
    assert_eq!(login(berth.address, "ada").status, 200);
}

#[test]
fn slow_upload_is_not_billed_to_the_policy() {
    let berth = policy("wall = \"300ms\"").start();
    let body = r#"{"email":"ada@example.com","password":"x"}"#;
    let mut connection = Connection::open(berth.address);
    let headers = [("content-type", "application/json")];
    connection.send(head("POST", LOGIN, &headers, body.len()));
    let started = Instant::now();
    for piece in body.as_bytes().chunks(body.len() / 6) {
        sleep(Duration::from_millis(100));
        connection.send(piece);
    }
    assert!(started.elapsed() >= Duration::from_millis(600));
    assert_eq!(connection.response("POST").unwrap().status, 200);
}

#[test]
fn time_in_the_queue_is_not_billed_to_the_guest() {
    let wall = Duration::from_secs(2);
    let berth = Manifest::new()
        .handler_with(
            "fixtures/echo",
            "limits = { wall = \"2s\", cpu = \"10s\", concurrency = 1 }",
        )
        .start();
    let address = berth.address;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(move || get(address, "/echo/sleep/1200")));
        for one in both {
            let answer = one.join().unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    });
    assert!(started.elapsed() > wall, "one has waited for the other");
}

#[test]
fn policy_parked_in_a_host_call_is_ended_by_the_wall_limit() {
    let berth = policy("wall = \"300ms\"").start();
    let answer = login(berth.address, "sleep");
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (504, "plugin-timeout"),
        "{}",
        answer.text()
    );
    let line = berth.request_line(answer.header("x-request-id").unwrap());
    assert_eq!(line["trap"], "wall", "{line}");
    assert!(
        line["cpu_us"].as_u64().unwrap() < 200_000,
        "waiting is not computing: {line}"
    );
    assert_eq!(login(berth.address, "ada").status, 200);
    free_becomes(&berth, 256.0);
}

#[test]
fn answer_that_is_given_twice_is_a_trap_of_the_guest() {
    let berth = with_hello("bad-response", "");
    let answer = berth.get("/bad-response/twice");
    assert_eq!((answer.status, answer.code().as_str()), (500, "plugin-trap"));
    // The first answer is whole, so it stands.
    let answer = berth.get("/bad-response/twice/done");
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.ended),
        (200, "the first\n", Ended::Whole)
    );
    let id = answer.header("x-request-id").unwrap();
    let event = berth.logged("the trap all the same", |e| {
        e["target"] == "berth::plugin" && e["request_id"] == id
    });
    assert!(
        event["message"].as_str().unwrap().contains("handle"),
        "the cause is named: {event}"
    );
    assert_eq!(berth.get("/hello/next").status, 200);
}

#[test]
fn guest_sees_the_authority_that_the_client_asked_for() {
    let berth = Manifest::new()
        .handler("fixtures/echo")
        .handler("fixtures/echo-p3")
        .start();
    for plugin in ["echo", "echo-p3"] {
        let path = format!("/{plugin}/authority");
        let seen = |target: &str, host: &str| {
            let mut connection = Connection::open(berth.address);
            connection.send(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n"));
            connection.response("GET").unwrap().text()
        };
        assert_eq!(seen(&path, "a.test:8080"), "a.test:8080\n", "{plugin}");
        // RFC 9112 section 3.2.2: the target wins.
        let absolute = format!("http://other.test{path}");
        assert_eq!(seen(&absolute, "a.test"), "other.test\n", "{plugin}");
        let answer = http2::block_on(async {
            let client = http2::connect(berth.address).await;
            let request = Request::get(format!("http://a.test{path}"))
                .header("host", "b.test")
                .body(())
                .unwrap();
            http2::send(&client, request, b"", None).await.0
        });
        assert_eq!(answer.text(), "a.test\n", "{plugin}");
    }
}

#[test]
fn repeated_headers_of_a_03_handler_are_kept_apart_and_in_order() {
    let berth = with_hello("bad-p3", "");
    let answer = berth.get("/bad-p3/cookies");
    let values = |name: &str| -> Vec<&str> {
        let named = answer.headers.iter().filter(|(n, _)| n == name);
        named.map(|(_, value)| value.as_str()).collect()
    };
    assert_eq!(values("set-cookie"), ["a=1; Path=/", "b=2"]);
    assert_eq!(values("x-mine"), ["1", "2"]);
}

#[test]
fn want_of_instances_is_503_with_retry_after_for_handlers_and_policies() {
    let berth = policy("wall = \"300ms\"")
        .raw("[limits]\ninstances = 1\n")
        .handler_with("hello", "limits = { wall = \"300ms\" }")
        .handler("fixtures/park")
        .start();
    let mut parked = Connection::open(berth.address);
    parked.send(head("GET", "/park/x", &[], 0));
    free_becomes(&berth, 0.0);
    is_host_busy(&berth.get("/hello/x"));
    is_host_busy(&login(berth.address, "ada"));
    drop(parked);
    free_becomes(&berth, 1.0);
    assert_eq!(berth.get("/hello/x").status, 200);
    assert_eq!(login(berth.address, "ada").status, 200);
}

/// A handler that waits for an hour, as large as a component may be: 32 core instances, 4 memories, 16 tables.
fn as_large_as_allowed() -> Built {
    let more = |module: &str, count: usize| format!("(core instance (instantiate {module}))\n").repeat(count);
    components::build(&format!(
        r#"(component
  (import "wasi:http/types@0.2.6" (instance $http
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (alias export $http "incoming-request" (type $request))
  (alias export $http "response-outparam" (type $out))
  (import "wasi:io/poll@0.2.6" (instance $poll
    (export "pollable" (type $p (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $p))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.6" (instance $clock
    (alias outer 1 $pollable (type $p))
    (export "subscribe-duration" (func (param "when" u64) (result (own $p))))))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core module $main
    (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
    (import "host" "block" (func $block (param i32)))
    (memory 1) (table 1 funcref)
    (func (export "handle") (param i32 i32)
      (call $block (call $subscribe (i64.const 3600000000000)))))
  (core module $memory (memory 1) (table 1 funcref))
  (core module $table (table 1 funcref))
  (core module $small)
  (core instance $main (instantiate $main (with "host" (instance
    (export "subscribe" (func $subscribe))
    (export "block" (func $block))))))
  {} {} {}
  (func $handle (param "request" (own $request)) (param "response-out" (own $out))
    (canon lift (core func $main "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.6" (instance $handler))
)"#,
        more("$memory", 3),
        more("$table", 12),
        more("$small", 16),
    ))
}

#[test]
fn pool_that_is_full_to_the_last_slot_is_never_a_500() {
    const INSTANCES: usize = 4;
    let component = as_large_as_allowed();
    let short = "limits = { wall = \"300ms\" }";
    let berth = Manifest::new()
        .raw(&format!("[limits]\ninstances = {INSTANCES}\n"))
        .handler_with("hello", short)
        .handler_file("long", &component.path(), "limits = { wall = \"10m\" }")
        .handler_file("short", &component.path(), short)
        .start();
    let parked = || -> Vec<Connection> {
        (0..INSTANCES)
            .map(|_| {
                let mut connection = Connection::open(berth.address);
                connection.send(head("GET", "/long/x", &[], 0));
                connection
            })
            .collect()
    };
    for _ in 0..3 {
        let parked = parked();
        free_becomes(&berth, 0.0);
        for (resource, of_each) in [
            ("component-instances", 1),
            ("core-instances", 32),
            ("memories", 4),
            ("tables", 16),
        ] {
            let slots = (INSTANCES * of_each) as f64;
            // One more is for trying out new versions, and for nobody else.
            let all = slots + of_each as f64;
            assert_eq!(berth.metric("berth_pool_max", &[resource]), all, "{resource}");
            // The place is taken a moment before the slots are.
            berth.metric_becomes("berth_pool_used", &[resource], |used| used == slots);
        }
        is_host_busy(&berth.get("/short/x"));
        is_host_busy(&berth.get("/hello/x"));
        drop(parked);
        free_becomes(&berth, INSTANCES as f64);
    }
    // Slots that are given back and taken at once: each request is either served to its deadline or told to come again.
    let answers = load::run(load::at_once(berth.address, "/short/x", 40));
    let served = answers.get(&(504, false)).copied().unwrap_or(0);
    let busy = answers.get(&(503, true)).copied().unwrap_or(0);
    assert!(served >= INSTANCES && served + busy == 40, "{answers:?}");
    assert_eq!(berth.get("/hello/x").status, 200);
}

fn counter(more: &str) -> Berth {
    Manifest::new()
        .handler_with("fixtures/counter", &format!("reuse = \"serial\"\n{more}"))
        .start()
}

#[test]
fn instance_that_traps_after_a_complete_answer_is_not_used_again() {
    let berth = counter("");
    assert_eq!(berth.get("/counter/x").text(), "1\n");
    idle_becomes(&berth, 1.0);
    let answer = berth.get("/counter/late-trap");
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.ended),
        (200, "2\n", Ended::Whole)
    );
    free_becomes(&berth, 256.0);
    idle_becomes(&berth, 0.0);
    let id = answer.header("x-request-id").unwrap();
    berth.logged("the trap", |e| {
        e["target"] == "berth::plugin" && e["trap"] == "unreachable" && e["request_id"] == id
    });
    assert_eq!(berth.get("/counter/x").text(), "1\n", "a fresh one");
}

#[test]
fn instance_that_timed_out_is_not_used_again() {
    let berth = counter("limits = { wall = \"1s\" }");
    assert_eq!(berth.get("/counter/x").text(), "1\n");
    idle_becomes(&berth, 1.0);
    let answer = berth.get("/counter/park");
    assert_eq!((answer.status, answer.code().as_str()), (504, "plugin-timeout"));
    free_becomes(&berth, 256.0);
    idle_becomes(&berth, 0.0);
    assert_eq!(berth.get("/counter/x").text(), "1\n", "a fresh one");
}

#[test]
fn instances_that_nobody_needs_for_ten_seconds_are_given_up() {
    let berth = Manifest::new()
        .handler_with("fixtures/counter", "reuse = \"serial\"")
        .handler_with(
            "fixtures/counter-p3",
            "reuse = \"concurrent\"\ngrants = { log = true }",
        )
        .start();
    let paths = ["/counter/x", "/counter-p3/x"];
    for path in paths {
        assert_eq!(berth.get(path).text(), "1\n");
    }
    idle_becomes(&berth, 2.0);
    let started = Instant::now();
    idle_becomes(&berth, 0.0);
    assert!(started.elapsed() > Duration::from_secs(5), "not at once");
    free_becomes(&berth, 256.0);
    for path in paths {
        assert_eq!(berth.get(path).text(), "1\n");
    }
}

#[test]
fn instances_are_given_up_after_a_few_requests_while_developing() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("berth.toml");
    let manifest = Manifest::new().handler_with("fixtures/counter", "reuse = \"serial\"");
    std::fs::write(&file, manifest.text()).unwrap();
    let (_up, address) = docs::start(command().arg("up").arg("--config").arg(&file));
    let counts: Vec<u32> = (0..60)
        .map(|_| get(address, "/counter/x").text().trim().parse().unwrap())
        .collect();
    // An instance that is kept would count on; several of them would still get beyond this.
    assert!(counts.iter().all(|count| *count <= 8), "{counts:?}");
    assert!(
        counts.iter().filter(|count| **count == 1).count() >= 60 / 8,
        "{counts:?}"
    );
    assert!(counts.iter().any(|count| *count > 1), "used again: {counts:?}");
}
