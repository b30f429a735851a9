//! The `auth` policy over HTTP: JSON in, JSON out, refusals, and a policy that misbehaves.

use berth_tests::berth::{Berth, Manifest};
use berth_tests::store::Store;
use berth_tests::wire::request;

fn bundled() -> (Store, Berth) {
    let store = Store::new();
    let berth = store.start(&Manifest::new().accounts());
    (store, berth)
}

fn fixture() -> Berth {
    Manifest::new().auth("fixtures/auth-static").start()
}

const VALID: &str = r#"{"email":"Ada@Example.com","password":"correct horse"}"#;

#[test]
fn bundled_policy_validates_before_it_asks_for_anything() {
    let (_store, berth) = bundled();
    let table = [
        (
            "/api/v1/auth/register",
            r#"{"email":"nonsense","password":"long enough"}"#,
            400,
            "invalid-email",
            "/email",
        ),
        (
            "/api/v1/auth/signup",
            r#"{"email":"a@example.com","password":"short"}"#,
            400,
            "weak-password",
            "/password",
        ),
        (
            "/api/v1/auth/signup",
            r#"{"email":"a@example.com","password":"PassWord"}"#,
            400,
            "weak-password",
            "/password",
        ),
        (
            "/api/v1/auth/signup",
            r#"{"email":"ada.lovelace@example.com","password":"Ada.Lovelace"}"#,
            400,
            "weak-password",
            "/password",
        ),
        (
            "/api/v1/auth/login",
            r#"{"email":"a","password":""}"#,
            400,
            "invalid-email",
            "/email",
        ),
        (
            "/api/v1/auth/refresh",
            r#"{"refreshToken":""}"#,
            400,
            "invalid-request",
            "/refreshToken",
        ),
        (
            "/api/v1/auth/verify-email",
            r#"{"token":""}"#,
            400,
            "invalid-request",
            "/token",
        ),
    ];
    for (path, body, status, code, pointer) in table {
        let answer = berth.post(path, body);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{path}: {}",
            answer.text()
        );
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{path}");
    }
    // Nothing is mailed, so no token is right.
    let answer = berth.post("/api/v1/auth/verify-email", r#"{"token":"x"}"#);
    assert_eq!((answer.status, answer.code().as_str()), (400, "invalid-token"));
}

#[test]
fn bundled_policy_names_all_faults_at_once() {
    let answer = bundled().1.post(
        "/api/v1/auth/register",
        r#"{"email":"x","password":"y","name":"z"}"#,
    );
    assert_eq!((answer.status, answer.code().as_str()), (400, "invalid-request"));
    let errors = answer.json()["errors"].clone();
    let pointers: Vec<_> = errors
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["pointer"].as_str().unwrap())
        .collect();
    assert_eq!(pointers, ["/email", "/password"]);
}

#[test]
fn body_that_is_not_the_right_json_is_400_with_pointers() {
    let berth = fixture();
    let answer = berth.post("/api/v1/auth/register", r#"{"email":7}"#);
    assert_eq!((answer.status, answer.code().as_str()), (400, "invalid-json"));
    let errors = answer.json()["errors"].clone();
    assert_eq!(errors[0]["pointer"], "/email");
    assert_eq!(errors[0]["detail"], "must be a string, not a number");
    assert_eq!(errors[1]["pointer"], "/password");
    assert_eq!(errors[1]["detail"], "is missing");
    for body in ["", "{", "[]", "nul", "{\"email\":\"\u{0}\"}"] {
        let answer = berth.post("/api/v1/auth/login", body);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "invalid-json"),
            "{body:?}"
        );
    }
    let answer = request(
        berth.address,
        "POST",
        "/api/v1/auth/login",
        &[("content-type", "application/json")],
        b"{\"email\":\"\xff\"}",
    );
    assert_eq!(answer.json()["errors"][0]["detail"], "it is not UTF-8");
}

#[test]
fn wrong_media_type_is_415() {
    let berth = fixture();
    for headers in [
        &[("content-type", "application/x-www-form-urlencoded")] as &[_],
        &[],
    ] {
        let answer = request(
            berth.address,
            "POST",
            "/api/v1/auth/login",
            headers,
            VALID.as_bytes(),
        );
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (415, "unsupported-media-type")
        );
    }
    let charset = [("content-type", "Application/JSON; charset=utf-8")];
    assert_eq!(
        request(
            berth.address,
            "POST",
            "/api/v1/auth/login",
            &charset,
            VALID.as_bytes()
        )
        .status,
        200
    );
}

#[test]
fn session_has_the_members_that_clients_read() {
    let berth = fixture();
    let answer = berth.post("/api/v1/auth/register", VALID);
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (201, Some("application/json"))
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let body = answer.json();
    assert_eq!(body["token"], body["accessToken"]);
    for member in ["accessToken", "refreshToken"] {
        assert!(!body[member].as_str().unwrap().is_empty(), "{member}");
    }
    assert!(body["expiresIn"].as_u64().unwrap() > 0);
    let user = &body["user"];
    assert_eq!(user["email"], "Ada@Example.com");
    for (member, kind) in [
        ("id", "s"),
        ("name", "s"),
        ("emailVerified", "b"),
        ("mfaEnabled", "b"),
        ("active", "b"),
        ("createdAt", "n"),
        ("updatedAt", "n"),
        ("roles", "a"),
    ] {
        let value = &user[member];
        let right = match kind {
            "s" => value.is_string(),
            "b" => value.is_boolean(),
            "n" => value.is_u64(),
            _ => value.is_array(),
        };
        assert!(right, "{member}: {value}");
    }
    assert_eq!(berth.post("/api/v1/auth/login", VALID).status, 200);
    assert_eq!(
        berth
            .post("/api/v1/auth/refresh", r#"{"refreshToken":"r"}"#)
            .status,
        200
    );
    assert!(berth.post("/api/v1/auth/verify-email", r#"{"token":"t"}"#).json()["id"].is_string());
}

#[test]
fn nobody_is_signed_in_without_a_valid_token() {
    let berth = fixture();
    let table = [
        ("GET", "/api/v1/me"),
        ("GET", "/api/v1/auth/me"),
        ("GET", "/api/v1/auth/profile"),
        ("POST", "/api/v1/auth/logout"),
        ("PATCH", "/api/v1/me/password"),
        ("GET", "/api/v1/auth/sessions"),
        (
            "DELETE",
            "/api/v1/auth/sessions/0192f0c1-0000-7000-8000-000000000000",
        ),
    ];
    for (method, path) in table {
        let answer = request(berth.address, method, path, &[], b"");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, "unauthorized"),
            "{method} {path}"
        );
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        let answer = request(
            berth.address,
            method,
            path,
            &[("authorization", "Bearer nonsense")],
            b"",
        );
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, "invalid-access-token"),
            "{method} {path}"
        );
        assert_eq!(answer.json()["errorCode"], "INVALID_ACCESS_TOKEN");
    }
}

fn login(berth: &Berth, email: &str) -> berth_tests::wire::Response {
    berth.post(
        "/api/v1/auth/login",
        &format!(r#"{{"email":"{email}","password":"x"}}"#),
    )
}

#[test]
fn refusal_of_a_policy_is_passed_on() {
    let answer = login(&fixture(), "problem@example.com");
    assert_eq!((answer.status, answer.code().as_str()), (429, "slow-down"));
    assert_eq!(answer.header("retry-after"), Some("7"));
    assert_eq!(answer.json()["errorCode"], "SLOW_DOWN");
    assert_eq!(answer.json()["errors"].as_array().unwrap().len(), 1);
}

#[test]
fn refusal_that_is_none_or_out_of_bounds_is_a_500() {
    let berth = fixture();
    for email in ["bad-status@example.com", "bad-code@example.com"] {
        let answer = login(&berth, email);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (500, "policy-problem"),
            "{email}"
        );
        assert!(answer.body.len() < 2000, "{email}");
    }
}

#[test]
fn policy_that_misbehaves_costs_its_own_request() {
    let berth = fixture();
    for (email, status, code, trap) in [
        ("spin@example.com", 503, "plugin-cpu", "cpu"),
        ("panic@example.com", 500, "plugin-trap", "unreachable"),
        ("bomb@example.com", 503, "plugin-memory", "memory"),
        ("recurse@example.com", 500, "plugin-stack", "stack"),
    ] {
        let answer = login(&berth, email);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{email}");
        assert_eq!(
            berth.request_line(answer.header("x-request-id").unwrap())["trap"],
            trap
        );
        assert_eq!(login(&berth, "ada@example.com").status, 200, "after {email}");
    }
    assert_eq!(berth.metric("berth_instances_free", &[]), 256.0);
}
