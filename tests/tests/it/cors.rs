//! Cross-origin requests: what a browser is told, by the host and not by the guest.

use berth_tests::berth::{Berth, Manifest};
use berth_tests::guest;
use berth_tests::wire::{Response, request};

const APP: &str = "https://app.example.com";

fn start() -> Berth {
    let echo = guest("fixtures/echo");
    let manifest = Manifest::new().auth("fixtures/auth-static");
    let text = format!(
        r#"
[http.cors]
origins = ["{APP}"]
credentials = true
{}
[plugins.echo]
component = {echo:?}
[[routes]]
path = "/own/*"
plugin = "echo"
access = "public"
cors = {{ origins = ["*"], headers = ["x-mine"], max_age = "5s" }}
[[routes]]
path = "/default/*"
plugin = "echo"
access = "public"
methods = ["GET", "POST"]
"#,
        manifest.text()
    );
    Berth::start(&text, &[])
}

fn told(answer: &Response) -> Vec<String> {
    let mut lines: Vec<String> = answer
        .headers
        .iter()
        .filter(|(name, _)| name.starts_with("access-control-") || name == "vary")
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    lines.sort();
    lines
}

fn preflight(berth: &Berth, path: &str, origin: &str, method: &str) -> Response {
    let headers = [("origin", origin), ("access-control-request-method", method)];
    request(berth.address, "OPTIONS", path, &headers, b"")
}

#[test]
fn preflight_is_answered_by_the_host() {
    let berth = start();
    let answer = preflight(&berth, "/own/x", "https://anybody.test", "DELETE");
    assert_eq!(answer.status, 204);
    assert_eq!(
        told(&answer),
        [
            "access-control-allow-headers: x-mine",
            "access-control-allow-methods: DELETE",
            "access-control-allow-origin: *",
            "access-control-expose-headers: x-request-id",
            "access-control-max-age: 5",
        ]
    );
    for path in ["/default/x", "/api/v1/auth/login"] {
        assert_eq!(
            told(&preflight(&berth, path, APP, "POST")),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-headers: authorization, content-type, x-request-id",
                "access-control-allow-methods: POST",
                "access-control-allow-origin: https://app.example.com",
                "access-control-expose-headers: x-request-id",
                "access-control-max-age: 600",
                "vary: origin",
            ],
            "{path}"
        );
    }
    // Another origin, a method that the route doesn't take, a path that isn't there: no leave.
    assert_eq!(
        told(&preflight(&berth, "/default/x", "https://evil.test", "POST")),
        ["vary: origin"]
    );
    assert_eq!(
        told(&preflight(&berth, "/default/x", APP, "DELETE")),
        Vec::<String>::new()
    );
    assert_eq!(preflight(&berth, "/nope", APP, "GET").status, 404);
    // No guest ran.
    assert_eq!(berth.metric("berth_plugin_requests_total", &["echo", "2xx"]), 0.0);
}

#[test]
fn every_answer_of_the_route_says_who_may_read_it_errors_included() {
    let berth = start();
    let with = |origin: &str, path: &str| request(berth.address, "GET", path, &[("origin", origin)], b"");
    let allowed = [
        "access-control-allow-credentials: true",
        "access-control-allow-origin: https://app.example.com",
        "access-control-expose-headers: x-request-id",
        "vary: origin",
    ];
    for (path, status) in [
        ("/default/status/200", 200),
        ("/default/status/500", 500),
        ("/api/v1/me", 401),
        ("/health", 200),
    ] {
        let answer = with(APP, path);
        assert_eq!(
            (answer.status, told(&answer)),
            (status, allowed.map(str::to_owned).to_vec()),
            "{path}"
        );
        assert_eq!(told(&with("https://evil.test", path)), ["vary: origin"], "{path}");
    }
    assert_eq!(told(&berth.get("/default/status/200")), ["vary: origin"]);
}

#[test]
fn without_it_nothing_is_said_and_a_handler_of_every_method_sees_the_preflight() {
    let berth = Manifest::new().handler("fixtures/echo").start();
    let answer = preflight(&berth, "/echo/status/200", APP, "GET");
    assert_eq!((answer.status, told(&answer)), (200, vec![]));
}
