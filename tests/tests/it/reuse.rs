//! `reuse = "serial"`: one instance, one request after another, and when it is given up.

use berth_tests::berth::{Berth, Manifest, PATIENCE};
use berth_tests::wire::get;

/// The fixture answers how often its instance was called, and what it was told to do.
fn counter(more: &str) -> Berth {
    Manifest::new().handler_with("fixtures/counter", more).start()
}

fn idle(berth: &Berth) -> f64 {
    berth.metric("berth_instances_idle", &[])
}

/// The instance goes back when the guest is done, which may be a moment after its answer.
fn becomes_idle(berth: &Berth, count: f64) {
    let started = std::time::Instant::now();
    while idle(berth) != count {
        assert!(
            started.elapsed() < PATIENCE,
            "{} idle instances, not {count}",
            idle(berth)
        );
        std::thread::yield_now();
    }
}

#[test]
fn fresh_instance_for_every_request_is_the_default() {
    let berth = counter("");
    for _ in 0..3 {
        assert_eq!(berth.get("/counter/x").text(), "1\n");
    }
    assert_eq!(idle(&berth), 0.0);
}

#[test]
fn serial_instance_is_used_again_up_to_its_count() {
    let berth = counter("reuse = \"serial\"\nreuse_count = 3");
    for expected in ["1", "2", "3", "1", "2"] {
        assert_eq!(berth.get("/counter/x").text().trim(), expected);
        becomes_idle(&berth, if expected == "3" { 0.0 } else { 1.0 });
    }
    assert_eq!(
        berth.metric("berth_instances_free", &[]),
        255.0,
        "an idle instance keeps its place"
    );
}

#[test]
fn two_requests_at_once_get_two_instances() {
    let berth = counter("reuse = \"serial\"");
    let address = berth.address;
    std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(move || get(address, "/counter/sleep").text()));
        for one in both {
            assert_eq!(one.join().unwrap(), "1\n");
        }
    });
    becomes_idle(&berth, 2.0);
}

#[test]
fn instance_that_trapped_or_grew_is_thrown_away() {
    let berth = counter("reuse = \"serial\"");
    assert_eq!(berth.get("/counter/x").text(), "1\n");
    becomes_idle(&berth, 1.0);
    assert_eq!(berth.get("/counter/trap").code(), "plugin-trap");
    becomes_idle(&berth, 0.0);
    assert_eq!(
        berth.get("/counter/x").text(),
        "1\n",
        "the next request has a fresh one"
    );
    becomes_idle(&berth, 1.0);
    assert_eq!(berth.get("/counter/grow").text(), "2\n");
    becomes_idle(&berth, 0.0);
    assert_eq!(berth.get("/counter/x").text(), "1\n");
}

#[test]
fn output_and_log_of_a_reused_instance_carry_the_present_request() {
    let berth = counter("reuse = \"serial\"");
    for n in 1..=2 {
        let answer = berth.get("/counter/print");
        let id = answer.header("x-request-id").unwrap();
        let event = berth.logged("its line", |e| e["message"] == format!("call {n}"));
        assert_eq!(event["request_id"], id);
        becomes_idle(&berth, 1.0);
    }
}

#[test]
fn idle_instance_gives_way_to_another_plugin() {
    let manifest = Manifest::new()
        .raw("[limits]\ninstances = 1\n")
        .handler("hello")
        .handler_with("fixtures/counter", "reuse = \"serial\"");
    let berth = manifest.start();
    assert_eq!(berth.get("/counter/x").text(), "1\n");
    becomes_idle(&berth, 1.0);
    assert_eq!(berth.get("/hello/x").status, 200);
    assert_eq!(berth.get("/counter/x").text(), "1\n");
}

#[test]
fn idle_instances_do_not_hold_up_a_stop() {
    let mut berth = counter("reuse = \"serial\"");
    assert_eq!(berth.get("/counter/x").status, 200);
    becomes_idle(&berth, 1.0);
    berth.signal("TERM");
    assert_eq!(berth.wait().code(), Some(0));
}

#[test]
fn policy_is_reused_as_well() {
    let manifest = Manifest::new()
        .auth("fixtures/auth-static")
        .text()
        .replace("policy", "reuse = \"serial\"\npolicy");
    let berth = Berth::start(&manifest, &[]);
    for _ in 0..50 {
        assert_eq!(
            berth.post("/api/v1/auth/verify-email", r#"{"token":"t"}"#).status,
            200
        );
    }
    becomes_idle(&berth, 1.0);
}
