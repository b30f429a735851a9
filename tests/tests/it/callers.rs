//! `access` on routes: who gets through, and what the handler is told of them.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use berth_tests::berth::Berth;
use berth_tests::guest;
use berth_tests::wire::{Connection, Response, head, is, request, request_as};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;
use tempfile::NamedTempFile;

const KEY: &str = "a key of the tests, longer than 32 bytes";

/// The file is read at the start, and may go then.
pub(crate) fn key_file() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    writeln!(file, "{KEY}").unwrap();
    file
}

fn manifest(policy: &str, handler: &str) -> String {
    let (policy, handler) = (guest(policy), guest(handler));
    format!(
        r#"
[plugins.auth]
component = {policy:?}
policy = "auth"
[plugins.h]
component = {handler:?}
[[routes]]
path = "/public/*"
plugin = "h"
access = "public"
[[routes]]
path = "/user/*"
plugin = "h"
access = "user"
[[routes]]
path = "/admin/*"
plugin = "h"
access = "role:admin"
"#
    )
}

fn start() -> Berth {
    let file = key_file();
    let path = file.path().display().to_string();
    Berth::start(
        &manifest("fixtures/auth-static", "fixtures/echo"),
        &[("BERTH_TOKENS_HS256_KEY_FILE", &path)],
    )
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub(crate) fn token_until(subject: &str, exp: u64) -> String {
    let mut header = Header::new(Algorithm::HS256);
    header.typ = Some("at+jwt".to_owned());
    let claims =
        json!({ "iss": "berth", "aud": "berth", "sub": subject, "sid": "s-1", "iat": now(), "exp": exp });
    encode(&header, &claims, &EncodingKey::from_secret(KEY.as_bytes())).unwrap()
}

fn ask(berth: &Berth, path: &str, subject: &str) -> Response {
    let token = token_until(subject, now() + 60);
    request_as(berth.address, &token, "GET", path, &[], b"")
}

#[test]
fn no_token_is_401_missing_role_is_403_and_the_right_one_gets_through() {
    let berth = start();
    let none = berth.get("/user/status/200");
    is(&none, 401, "unauthorized");
    assert_eq!(none.header("www-authenticate"), Some("Bearer"));
    is(&berth.get("/admin/status/200"), 401, "unauthorized");
    assert_eq!(ask(&berth, "/user/status/200", "u-1").status, 200);
    let missing = ask(&berth, "/admin/status/200", "u-1");
    is(&missing, 403, "forbidden");
    assert_eq!(missing.json()["detail"], "This needs the role \"admin\".");
    assert_eq!(ask(&berth, "/admin/status/200", "admin").status, 200);
    assert_eq!(berth.get("/public/status/200").status, 200);
    // Typed routes ask in the same way, and the policy gets the principal that it made.
    let me = ask(&berth, "/api/v1/me", "u-1");
    assert_eq!(
        (me.status, me.json()["email"].as_str()),
        (200, Some("ada@example.com"))
    );
}

#[test]
fn token_that_is_not_valid_is_401_and_only_of_its_age_is_anything_said() {
    let berth = start();
    let with = |value: &str| {
        request(
            berth.address,
            "GET",
            "/user/status/200",
            &[("authorization", value)],
            b"",
        )
    };
    let good = token_until("u-1", now() + 60);
    assert_eq!(with(&format!("bearer {good}")).status, 200);
    for bad in [
        good.clone(),
        format!("Basic {good}"),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        "Bearer x.y.z".to_owned(),
        format!("Bearer {good}a"),
        format!("Bearer {}a", token_until("u-1", now() - 1)),
        format!("Bearer {}", "x".repeat(20_000)),
    ] {
        is(&with(&bad), 401, "invalid-access-token");
    }
    // Whose time is over was its bearer's, who may refresh it.
    let expired = with(&format!("Bearer {}", token_until("u-1", now() - 1)));
    is(&expired, 401, "token-expired");
    assert_eq!(expired.json()["errorCode"], "TOKEN_EXPIRED");
    assert_eq!(expired.header("www-authenticate"), Some("Bearer"));
    let bearer = format!("Bearer {good}");
    let twice = [
        ("authorization", bearer.as_str()),
        ("authorization", bearer.as_str()),
    ];
    is(
        &request(berth.address, "GET", "/user/x", &twice, b""),
        401,
        "invalid-access-token",
    );
}

#[test]
fn handler_is_told_the_caller_in_headers_that_nobody_can_forge() {
    let berth = start();
    let forged = [
        ("berth-user-id", "root"),
        ("Berth-User-Roles", "admin"),
        ("berth-request-id", "forged"),
        ("berth-anything", "x"),
        ("berth_user_id", "root"),
    ];
    let told = |path: &str, token: Option<&str>| {
        let bearer = token.map(|subject| format!("Bearer {}", token_until(subject, now() + 60)));
        let mut headers = forged.to_vec();
        headers.push(("x-request-id", "id-1"));
        headers.push(("connection", "berth-user-id"));
        if let Some(bearer) = &bearer {
            headers.push(("authorization", bearer));
        }
        let text = request(berth.address, "GET", path, &headers, b"").text();
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with("berth") || line.starts_with("authorization"))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(told("/public/headers", None), ["berth-request-id: id-1"]);
    // On a public route nobody is asked who they are.
    let public = told("/public/headers", Some("admin"));
    assert!(
        public[0].starts_with("authorization: Bearer "),
        "the handler's own business"
    );
    assert_eq!(public[1..], ["berth-request-id: id-1"]);
    assert_eq!(
        told("/admin/headers", Some("admin")),
        [
            "berth-request-id: id-1",
            "berth-user-id: admin",
            "berth-user-roles: user,admin"
        ]
    );
}

#[test]
fn policy_that_refuses_is_passed_on_and_one_that_fails_closes_the_door() {
    let berth = start();
    is(&ask(&berth, "/user/status/200", "gone"), 401, "session-ended");
    for broken in ["panic", "spin", "bad-role"] {
        let answer = ask(&berth, "/user/status/200", broken);
        is(&answer, 503, "auth-unavailable");
        assert_eq!(answer.header("retry-after"), Some("5"));
    }
    assert_eq!(berth.metric("berth_plugin_traps_total", &["auth", "cpu"]), 1.0);
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["auth", "unreachable"]),
        1.0
    );
    let event = berth.logged("the role", |e| {
        e["message"]
            .as_str()
            .is_some_and(|m| m.contains("can't be passed on"))
    });
    assert_eq!(
        (event["level"].as_str(), event["plugin"].as_str()),
        (Some("ERROR"), Some("auth"))
    );
    assert_eq!(ask(&berth, "/user/status/200", "u-1").status, 200);
    assert_eq!(berth.get("/public/status/200").status, 200);
}

#[test]
fn policy_that_fails_again_and_again_gets_a_pause_and_recovers() {
    let berth = start();
    for _ in 0..20 {
        is(&ask(&berth, "/user/status/200", "panic"), 503, "auth-unavailable");
    }
    berth.logged("the loop", |e| e["code"] == "crash-loop" && e["plugin"] == "auth");
    // Not even asked, for a second.
    is(&ask(&berth, "/user/status/200", "u-1"), 503, "auth-unavailable");
    assert_eq!(berth.get("/public/status/200").status, 200);
    while ask(&berth, "/user/status/200", "u-1").status != 200 {
        std::thread::yield_now();
    }
    berth.logged("that it works", |e| e["message"] == "the plugin works again");
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["auth", "unreachable"]),
        20.0
    );
}

#[test]
fn logins_that_break_the_policy_lock_nobody_out() {
    let berth = start();
    for _ in 0..25 {
        let body = r#"{"email":"panic@example.com","password":"correct horse"}"#;
        assert_eq!(berth.post("/api/v1/auth/login", body).code(), "plugin-trap");
    }
    assert_eq!(ask(&berth, "/user/status/200", "u-1").status, 200);
}

#[test]
fn without_a_working_policy_protected_routes_are_503_and_public_ones_serve() {
    let file = key_file();
    let path = file.path().display().to_string();
    let berth = Berth::start(
        &manifest("fixtures/auth-wrong-version", "fixtures/echo"),
        &[("BERTH_TOKENS_HS256_KEY_FILE", &path)],
    );
    is(&ask(&berth, "/user/status/200", "u-1"), 503, "auth-unavailable");
    is(&berth.get("/admin/status/200"), 503, "auth-unavailable");
    assert_eq!(berth.get("/public/status/200").status, 200);
}

#[test]
fn without_a_key_no_token_is_valid() {
    let berth = Berth::start(&manifest("fixtures/auth-static", "fixtures/echo"), &[]);
    is(
        &ask(&berth, "/user/status/200", "u-1"),
        401,
        "invalid-access-token",
    );
    is(&berth.get("/user/status/200"), 401, "unauthorized");
}

#[test]
fn caller_is_asked_before_the_body_is_read_and_holds_no_place() {
    let berth = start();
    let mut connection = Connection::open(berth.address);
    let json = ("content-type", "application/json");
    connection.send(head("PATCH", "/api/v1/me/password", &[json], 100_000));
    is(&connection.response("PATCH").unwrap(), 401, "unauthorized");
    // One place each for policy and handler: they don't wait for each other.
    let file = key_file();
    let path = file.path().display().to_string();
    let text = format!(
        "[limits]\ninstances = 1\nconcurrency = 1\nwall = \"5s\"\n{}",
        manifest("fixtures/auth-static", "fixtures/echo")
    );
    let berth = Berth::start(&text, &[("BERTH_TOKENS_HS256_KEY_FILE", &path)]);
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| ask(&berth, "/user/status/200", "u-1")))
            .collect();
        for one in asked {
            let answer = one.join().unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    });
}

/// Everything but the compiler, which has nothing to tell and takes minutes to tell it.
const LOUD: &str = "trace,cranelift_codegen=off,regalloc2=off,cranelift_wasm=off,cranelift_frontend=off,wasmtime=off,wasmtime_internal_cranelift=off,wasmtime_environ=off";

#[test]
fn tokens_and_keys_are_not_logged() {
    let file = key_file();
    let path = file.path().display().to_string();
    let berth = Berth::start(
        &manifest("fixtures/auth-static", "fixtures/echo"),
        &[("BERTH_TOKENS_HS256_KEY_FILE", &path), ("RUST_LOG", LOUD)],
    );
    let token = token_until("u-1", now() + 60);
    for bearer in [format!("Bearer {token}"), format!("Bearer {token}x")] {
        request(
            berth.address,
            "GET",
            "/user/status/200",
            &[("authorization", &bearer)],
            b"",
        );
    }
    berth.logged("both requests", |e| {
        e["target"] == "berth::request" && e["status"] == 401
    });
    let log = berth.log().iter().map(ToString::to_string).collect::<String>();
    assert!(log.contains("berth::request"));
    for secret in [token.as_str(), KEY] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
}
