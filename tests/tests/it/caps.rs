//! What a guest gets from the host.

use berth_tests::berth::{Berth, Manifest};
use berth_tests::wire::{Response, request};

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

/// The guest's own lines, as message and level.
fn lines(berth: &Berth, answer: &Response) -> Vec<(String, String)> {
    let id = answer.header("x-request-id").unwrap();
    // The log is in order: whatever a guest wrote before its answer is there with the request's line.
    berth.request_line(id);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    berth
        .log()
        .iter()
        .filter(|e| e["target"] == "berth::guest" && e["request_id"] == id)
        .map(|e| (text(&e["message"]), text(&e["level"])))
        .collect()
}

fn levels(log: &str, rust_log: Option<&str>) -> Vec<String> {
    let manifest = Manifest::new().handler_with("fixtures/log-handler", &format!("{GRANTS}\n{log}"));
    let environment: Vec<(&str, &str)> = rust_log.map(|value| ("RUST_LOG", value)).into_iter().collect();
    let berth = Berth::start(manifest.text(), &environment);
    let answer = berth.get("/log-handler/levels");
    assert_eq!(answer.text(), "levels");
    let mut levels: Vec<String> = lines(&berth, &answer)
        .into_iter()
        .map(|(_, level)| level)
        .collect();
    levels.dedup();
    levels
}

#[test]
fn guest_is_heard_at_its_plugins_level() {
    // The 200 lines at `trace` come first: if they counted, none of the others would be there.
    assert_eq!(levels("", None), ["INFO", "WARN", "ERROR"]);
    assert_eq!(levels("log = \"warn\"", None), ["WARN", "ERROR"]);
    assert_eq!(levels("log = \"off\"", None), [""; 0]);
}

#[test]
fn talkative_plugin_is_heard_without_rust_log_and_with_it_as_far_as_that_goes() {
    assert_eq!(
        levels("log = \"debug\"", None),
        ["DEBUG", "INFO", "WARN", "ERROR"]
    );
    let info = Some("info");
    assert_eq!(levels("log = \"debug\"", info), ["INFO", "WARN", "ERROR"]);
    assert_eq!(levels("", Some("berth=trace")), ["INFO", "WARN", "ERROR"]);
}

#[test]
fn standard_output_has_the_plugins_level_too() {
    let berth = Manifest::new()
        .handler_with("fixtures/echo", "log = \"warn\"")
        .start();
    let answer = berth.get("/echo/stdout");
    let only = ("a line to stderr".to_owned(), "WARN".to_owned());
    assert_eq!(lines(&berth, &answer), [only]);
}

/// With a general `trace`, only what is ours writes at `trace`.
#[test]
fn libraries_do_not_bring_a_callers_token_into_the_log() {
    let manifest = Manifest::new().handler("fixtures/echo");
    let berth = Berth::start(manifest.text(), &[("RUST_LOG", "trace")]);
    let headers = [
        ("authorization", "Bearer the-secret"),
        ("cookie", "session=the-secret"),
    ];
    let answer = request(
        berth.address,
        "GET",
        "/echo/status/200?token=the-secret",
        &headers,
        b"",
    );
    berth.request_line(answer.header("x-request-id").unwrap());
    let told: Vec<_> = berth
        .log()
        .into_iter()
        .filter(|e| e.to_string().contains("the-secret"))
        .collect();
    assert!(told.is_empty(), "{told:?}");
}
