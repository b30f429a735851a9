//! What a guest gets from the host.

use berth_tests::berth::Manifest;

const GRANTS: &str = "grants = { log = true, settings = true }\nsettings = { greeting = \"ahoy\", size = 3 }";

#[test]
fn granted_settings_and_log_work_and_carry_the_request() {
    let berth = Manifest::new()
        .handler_with("fixtures/log-handler", GRANTS)
        .start();
    let answer = berth.get("/log-handler/x");
    assert_eq!(
        (answer.status, answer.text().trim()),
        (200, "ahoy"),
        "{}",
        answer.text()
    );
    let id = answer.header("x-request-id").unwrap();
    let event = berth.logged("the guest's line", |e| {
        e["target"] == "berth::guest" && e["request_id"] == id
    });
    assert_eq!(
        (event["plugin"].as_str(), event["level"].as_str()),
        (Some("log-handler"), Some("INFO"))
    );
    assert_eq!(event["fields"].as_str().unwrap().split(' ').count(), 2, "{event}");
}

#[test]
fn setting_that_is_not_there_is_none() {
    let berth = Manifest::new()
        .handler_with("fixtures/log-handler", "grants = { log = true, settings = true }")
        .start();
    assert_eq!(berth.get("/log-handler/x").text().trim(), "unset");
}

#[test]
fn log_flood_is_cut_and_said_once() {
    let berth = Manifest::new()
        .handler_with("fixtures/log-handler", GRANTS)
        .start();
    let answer = berth.get("/log-handler/flood");
    assert_eq!(answer.status, 200);
    berth.logged("that lines are dropped", |e| {
        e["message"]
            .as_str()
            .is_some_and(|m| m.contains("more than 128 lines from one request"))
    });
    let lines = berth
        .log()
        .iter()
        .filter(|e| e["target"] == "berth::guest")
        .count();
    assert_eq!(lines, 129, "128 lines and the one that says that there were more");
}

#[test]
fn standard_output_goes_to_the_log_with_the_request() {
    let berth = Manifest::new().handler("fixtures/echo").start();
    let answer = berth.get("/echo/stdout");
    assert_eq!(answer.status, 200);
    let id = answer.header("x-request-id").unwrap();
    for (text, level) in [("a line to stdout", "INFO"), ("a line to stderr", "WARN")] {
        let event = berth.logged(text, |e| e["message"] == text);
        assert_eq!(
            (event["level"].as_str(), event["request_id"].as_str()),
            (Some(level), Some(id)),
            "{event}"
        );
    }
}
