//! `reuse = "concurrent"`: one instance, several requests at once, and what becomes of them when it dies.

use std::collections::BTreeSet;

use berth_tests::berth::{self, Berth, Manifest, eventually};
use berth_tests::guest;
use berth_tests::wire::{Connection, Ended, Response, head};

const REUSE: &str = "reuse = \"concurrent\"\ngrants = { log = true }\n";

fn counter(more: &str) -> Berth {
    Manifest::new()
        .handler("hello")
        .handler_with("fixtures/counter-p3", &format!("{REUSE}{more}"))
        .start()
}

fn free_becomes(berth: &Berth, count: f64) {
    while berth.metric("berth_instances_free", &[]) != count {
        std::thread::yield_now();
    }
}

/// Ask for all of these at once: each is begun by the guest before the next is sent, because a worker that has just
/// taken a request isn't asked to take another in the same moment.
fn at_once(berth: &Berth, paths: &[&str]) -> Vec<Response> {
    let mut asked: Vec<Connection> = paths
        .iter()
        .enumerate()
        .map(|(n, path)| {
            let id = format!("{path}-{n}");
            let mut connection = Connection::open(berth.address);
            let path = format!("/counter-p3/{path}");
            connection.send(head("GET", &path, &[("x-request-id", &id)], 0));
            berth.logged("that it has begun", |e| {
                e["request_id"] == id && e["message"] == "begun"
            });
            connection
        })
        .collect();
    asked.iter_mut().map(|c| c.response("GET").unwrap()).collect()
}

#[test]
fn requests_at_once_share_an_instance() {
    let berth = counter("");
    assert_eq!(berth.get("/counter-p3/x").text(), "1\n");
    let answers = at_once(&berth, &["sleep"; 16]);
    let numbers: BTreeSet<String> = answers.iter().map(Response::text).collect();
    let expected = (2..=17).map(|n| format!("{n}\n")).collect();
    assert_eq!(numbers, expected);
    free_becomes(&berth, 255.0);
    assert_eq!(berth.metric("berth_instances_idle", &[]), 1.0);
}

#[test]
fn more_requests_than_an_instance_takes_get_another_one() {
    let berth = counter("reuse_concurrency = 2");
    let answers = at_once(&berth, &["sleep"; 4]);
    let firsts = answers.iter().filter(|a| a.text() == "1\n").count();
    assert!(answers.iter().all(|a| a.status == 200));
    assert!(firsts >= 2, "{firsts} instances");
}

#[test]
fn instance_is_given_up_after_its_count() {
    let berth = counter("reuse_count = 3");
    for expected in ["1", "2", "3", "1", "2"] {
        assert_eq!(berth.get("/counter-p3/x").text().trim(), expected);
    }
}

#[test]
fn trap_ends_every_request_of_the_instance_with_its_cause_and_the_next_gets_a_fresh_one() {
    let berth = counter("");
    let mut paths = vec!["park"; 15];
    paths.insert(14, "trap");
    let answers = at_once(&berth, &paths);
    for answer in &answers {
        assert_eq!((answer.status, answer.code().as_str()), (500, "plugin-trap"));
    }
    assert_eq!(berth.get("/counter-p3/x").text(), "1\n");
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["counter-p3", "unreachable"]),
        1.0
    );
    let event = berth.logged("the trap", |e| {
        e["target"] == "berth::plugin" && e["level"] == "ERROR"
    });
    assert_eq!(event["requests"], 16);
    assert!(
        event["message"].as_str().unwrap().contains("counter_p3"),
        "{event}"
    );
    for answer in &answers {
        let line = berth.request_line(answer.header("x-request-id").unwrap());
        assert_eq!(line["trap"], "unreachable");
    }
}

#[test]
fn timeout_retires_the_instance_and_leaves_the_others_their_answer() {
    let berth = counter("limits = { wall = \"500ms\" }");
    let answers = at_once(&berth, &["park", "sleep", "sleep"]);
    assert_eq!(
        (answers[0].status, answers[0].code().as_str()),
        (504, "plugin-timeout")
    );
    assert_eq!((answers[1].status, answers[2].status), (200, 200));
    assert_eq!(berth.get("/counter-p3/x").text(), "1\n", "another instance");
    free_becomes(&berth, 255.0);
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["counter-p3", "wall"]),
        1.0
    );
}

#[test]
fn spinning_request_is_ended_by_the_cpu_limit_and_others_are_served() {
    let berth = counter("limits = { cpu = \"200ms\" }");
    // Many ticks of ordinary work are no reason to end an instance.
    for _ in 0..200 {
        assert_eq!(berth.get("/counter-p3/x").status, 200);
    }
    let answers = at_once(&berth, &["sleep", "spin"]);
    for answer in answers {
        assert_eq!((answer.status, answer.code().as_str()), (503, "plugin-cpu"));
    }
    assert_eq!(berth.get("/counter-p3/x").text(), "1\n");
    assert_eq!(berth.get("/hello/x").status, 200);
}

#[test]
fn instance_that_nobody_waits_for_any_more_is_given_up() {
    let berth = counter("");
    let mut connection = Connection::open(berth.address);
    connection.send(head("GET", "/counter-p3/park", &[], 0));
    free_becomes(&berth, 255.0);
    drop(connection);
    free_becomes(&berth, 256.0);
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["counter-p3", "client-gone"]),
        1.0
    );
}

#[test]
fn body_that_stalls_is_cut_off_and_the_instance_retires() {
    let berth = Berth::start(
        Manifest::new().handler_with("fixtures/counter-p3", REUSE).text(),
        &[("BERTH_HTTP_IDLE_TIME", "300ms")],
    );
    let answer = berth.get("/counter-p3/stall");
    assert_eq!(
        (answer.status, answer.text().as_str(), answer.ended),
        (200, "1\n", Ended::Cut)
    );
    // The reader may learn of the cut a moment before the instance does.
    eventually("another instance", || berth.get("/counter-p3/x").text() == "1\n");
    free_becomes(&berth, 255.0);
    let line = berth.request_line(answer.header("x-request-id").unwrap());
    assert_eq!(line["trap"], "wall");
}

#[test]
fn trap_during_a_body_cuts_every_open_body_of_the_instance() {
    let berth = counter("");
    let answers = at_once(&berth, &["stall", "stall-trap"]);
    for answer in answers {
        assert_eq!((answer.status, answer.ended), (200, Ended::Cut));
    }
    assert_eq!(berth.get("/counter-p3/x").text(), "1\n");
}

#[test]
fn instance_that_has_grown_is_given_up() {
    let berth = counter("");
    assert_eq!(berth.get("/counter-p3/grow").text(), "1\n");
    // The one that finds it grown is still served by it.
    assert_eq!(berth.get("/counter-p3/x").text(), "2\n");
    assert_eq!(berth.get("/counter-p3/x").text(), "1\n");
}

#[test]
fn log_lines_carry_the_request_that_wrote_them() {
    let berth = counter("");
    let answers = at_once(&berth, &["log"; 8]);
    for answer in answers {
        let id = answer.header("x-request-id").unwrap();
        let event = berth.logged("its line", |e| {
            e["request_id"] == id
                && e["message"]
                    .as_str()
                    .is_some_and(|text| text.starts_with("call "))
        });
        // On a busy machine there may be two instances, each of which counts its own calls.
        assert_eq!(event["message"], format!("call {}", answer.text().trim()));
    }
}

#[test]
fn idle_instance_gives_way_to_another_plugin_and_holds_up_no_stop() {
    let manifest = Manifest::new()
        .raw("[limits]\ninstances = 1\n")
        .handler("hello")
        .handler_with("fixtures/counter-p3", REUSE);
    let mut berth = manifest.start();
    assert_eq!(berth.get("/counter-p3/x").text(), "1\n");
    assert_eq!(berth.get("/hello/x").status, 200);
    assert_eq!(berth.get("/counter-p3/x").text(), "1\n");
    berth.signal("TERM");
    assert_eq!(berth.wait().code(), Some(0));
}

#[test]
fn head_and_http2_work_as_well() {
    let berth = counter("");
    let answer = berth_tests::wire::request(berth.address, "HEAD", "/counter-p3/x", &[], b"");
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    berth_tests::http2::block_on(async {
        let client = berth_tests::http2::connect(berth.address).await;
        let answer = berth_tests::http2::get(&client, "http://berth.test/counter-p3/x").await;
        assert_eq!(answer.text(), "2\n");
    });
}

#[test]
fn it_is_for_03_handlers_only() {
    let refusal = |component: &str, more: &str| {
        let component = guest(component);
        let manifest = format!("[plugins.p]\ncomponent = {component:?}\nreuse = \"concurrent\"\n{more}");
        let out = berth::run(&manifest, &["check"], &[]);
        assert_eq!(out.status.code(), Some(64));
        String::from_utf8_lossy(&out.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let sentence = "faulty  p: `reuse = \"concurrent\"` is for handlers of wasi:http 0.3, and this component isn't one; use \"serial\"";
    assert_eq!(refusal("hello", ""), sentence);
    assert_eq!(refusal("fixtures/auth-static", "policy = \"auth\"\n"), sentence);
}
