//! The tests of the reference system's accounts, by their names, over real HTTP and a real Postgres.
//!
//! The table in `tests/README.md` has a row for each. Where the reference calls a function that has no route here, the
//! fixtures call it through `berth:host`: `sql` looks an account up, `identity` issues and verifies a token.

use std::time::Instant;

use berth_tests::accounts::{Accounts, PASSWORD, Session, manifest};
use berth_tests::sessions::call;
use berth_tests::store::Store;
use berth_tests::wire::{Response, is};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use uuid::Uuid;

const ADA: &str = "ada@example.com";

/// Accounts beside the fixtures: `sql` sees the schema `identity`, and `identity` may have tokens signed.
fn with_guests() -> Accounts {
    let identity = "grants = { tokens = true, passwords = true, sessions = true }";
    let manifest = manifest()
        .handler_with("fixtures/sql", "grants = { sql = [\"identity\"] }")
        .handler_with("fixtures/identity", identity);
    let store = Store::new();
    let berth = store.start(&manifest);
    Accounts { store, berth }
}

/// The rows of accounts, `[id, e-mail]`, that a plugin finds with this condition.
fn find(it: &Accounts, condition: &str, value: &Value) -> Value {
    let statement = format!("select id, email from identity.users where {condition}");
    let steps = json!([{ "do": "query", "sql": statement, "with": [value] }]);
    let answer = it.berth.post("/sql/", &steps.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()[0]["rows"].take()
}

/// The session of an access token.
fn session_of(it: &Accounts, access: &str) -> String {
    let listed = it.call("GET", "/api/v1/auth/sessions", Some(access), &Value::Null);
    listed.json()["sessions"][0]["id"].as_str().unwrap().to_owned()
}

/// `GET /admin/users/{…}`.
fn look_up(it: &Accounts, who: &str) -> Response {
    it.admin(
        "GET",
        &format!("/admin/users/{}", who.replace('@', "%40")),
        &Value::Null,
    )
}

/// The reference's `POST /auth/signup`.
fn signup(it: &Accounts, email: &str, password: &str) -> Response {
    let body = json!({ "email": email, "password": password });
    it.call("POST", "/api/v1/auth/signup", None, &body)
}

#[test]
fn test_create_user() {
    let answer = Accounts::new().register(ADA, PASSWORD);
    let user = answer.json()["user"].clone();
    assert_eq!((answer.status, user["email"].as_str()), (201, Some(ADA)));
    assert!(!user["id"].as_str().unwrap().is_empty());
    assert_ne!(user["createdAt"], 0);
}

#[test]
fn test_create_user_duplicate() {
    let it = Accounts::new();
    it.signed_up(ADA);
    let again = it.register(ADA, PASSWORD);
    assert_eq!(
        (again.status, again.json()["error"].as_str()),
        (409, Some("email already registered"))
    );
    assert_eq!(again.json()["message"], "email already registered");
}

#[test]
fn test_authenticate_user() {
    let it = Accounts::new();
    let ada = it.signed_up(ADA);
    assert_eq!(it.signed_in(ADA).id, ada.id);
}

#[test]
fn test_authenticate_user_wrong_password() {
    let it = Accounts::new();
    it.signed_up(ADA);
    let answer = it.login(ADA, "wrongpassword");
    assert_eq!(
        (answer.status, answer.json()["error"].as_str()),
        (401, Some("invalid email or password"))
    );
}

#[test]
fn test_authenticate_user_not_found() {
    let answer = Accounts::new().login("nonexistent@example.com", PASSWORD);
    assert_eq!(
        (answer.status, answer.json()["error"].as_str()),
        (401, Some("invalid email or password"))
    );
}

#[test]
fn test_get_user() {
    let it = with_guests();
    let ada = it.signed_up(ADA);
    let found = find(&it, "id = $1", &json!({ "uuid": ada.id }));
    assert_eq!(found, json!([[{ "uuid": ada.id }, { "text": ADA }]]));
    let found = look_up(&it, &ada.id).json();
    assert_eq!(
        (found["id"].as_str(), found["email"].as_str()),
        (Some(ada.id.as_str()), Some(ADA))
    );
}

#[test]
fn test_get_user_not_found() {
    let it = with_guests();
    let nobody = Uuid::now_v7().to_string();
    assert_eq!(find(&it, "id = $1", &json!({ "uuid": nobody })), json!([]));
    is(&look_up(&it, &nobody), 404, "user-not-found");
}

#[test]
fn test_generate_token() {
    let it = with_guests();
    let ada = it.signed_up(ADA);
    let session = session_of(&it, &ada.access);
    let arguments = json!({ "subject": ada.id, "session-id": session });
    let issued = call(&it.berth, "tokens.issue", &arguments);
    let token = issued["ok"].as_str().unwrap();
    assert_eq!(
        token.split('.').filter(|part| !part.is_empty()).count(),
        3,
        "{token}"
    );
    assert_eq!(it.me(token).json()["id"], ada.id);
}

#[test]
fn test_verify_token() {
    let it = with_guests();
    let ada = it.signed_up(ADA);
    let verified = call(&it.berth, "tokens.verify", &json!({ "token": ada.access }));
    assert_eq!(verified["ok"]["subject"], ada.id);
    let me = it.me(&ada.access);
    assert_eq!(
        (me.status, me.json()["id"].as_str()),
        (200, Some(ada.id.as_str()))
    );
}

#[test]
fn test_verify_token_invalid() {
    let it = Accounts::new();
    for garbage in ["invalid.token.here", "x", "a.b.c.d", ""] {
        let answer = it.me(garbage);
        is(&answer, 401, "invalid-access-token");
        assert_eq!(answer.json()["errorCode"], "INVALID_ACCESS_TOKEN");
    }
}

#[test]
fn test_verify_token_wrong_secret() {
    let it = Accounts::new();
    let ada = it.signed_up(ADA);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let claims = json!({
        "iss": "berth", "aud": "berth", "sub": ada.id, "sid": Uuid::now_v7().to_string(), "iat": now, "exp": now + 3600,
    });
    let mut header = Header::new(Algorithm::HS256);
    header.typ = Some("at+jwt".to_owned());
    let key = EncodingKey::from_secret(b"different-secret-of-at-least-32-bytes");
    is(
        &it.me(&encode(&header, &claims, &key).unwrap()),
        401,
        "invalid-access-token",
    );
    // The right header and claims under a signature that is cut from elsewhere.
    let other = it.signed_up("bob@example.com").access;
    let (head, _) = ada.access.rsplit_once('.').unwrap();
    let (_, signature) = other.rsplit_once('.').unwrap();
    is(
        &it.me(&format!("{head}.{signature}")),
        401,
        "invalid-access-token",
    );
}

#[test]
fn test_end_to_end_auth_flow() {
    let it = Accounts::new();
    let created = it.signed_up(ADA);
    let session = it.signed_in(ADA);
    let verified = it.me(&session.access).json()["id"].clone();
    let found = look_up(&it, &created.id).json()["id"].clone();
    assert_eq!(
        (&verified, &found),
        (&Value::from(session.id), &Value::from(created.id))
    );
    assert_eq!(verified, found);
}

#[test]
fn test_get_user_by_email() {
    let it = with_guests();
    let ada = it.signed_up(ADA);
    let found = find(&it, "email_canonical = $1", &json!({ "text": ADA }));
    assert_eq!(found, json!([[{ "uuid": ada.id }, { "text": ADA }]]));
    let found = look_up(&it, ADA).json();
    assert_eq!(
        (found["id"].as_str(), found["email"].as_str()),
        (Some(ada.id.as_str()), Some(ADA))
    );
}

/// The reference's `user not found` is the code.
#[test]
fn test_get_user_by_email_not_found() {
    let it = with_guests();
    let nobody = "nonexistent@example.com";
    let found = find(&it, "email_canonical = $1", &json!({ "text": nobody }));
    assert_eq!(found, json!([]));
    let answer = look_up(&it, nobody);
    is(&answer, 404, "user-not-found");
    assert_eq!(answer.json()["errorCode"], "USER_NOT_FOUND");
}

#[test]
fn test_signup_success() {
    let answer = signup(&Accounts::new(), "test@example.com", PASSWORD);
    let session = Session::of(&answer, 201);
    let body = answer.json();
    assert_eq!(
        (body["user"]["email"].as_str(), body["token"].as_str()),
        (Some("test@example.com"), Some(session.access.as_str()))
    );
}

#[test]
fn test_signup_duplicate_email() {
    let it = Accounts::new();
    assert_eq!(signup(&it, ADA, PASSWORD).status, 201);
    is(&signup(&it, ADA, PASSWORD), 409, "email-already-exists");
}

#[test]
fn test_signup_invalid_email() {
    is(
        &signup(&Accounts::new(), "invalid-email", PASSWORD),
        400,
        "invalid-email",
    );
}

#[test]
fn test_signup_weak_password() {
    is(&signup(&Accounts::new(), ADA, "short"), 400, "weak-password");
}

#[test]
fn test_login_success() {
    let it = Accounts::new();
    it.signed_up(ADA);
    let body = it.login(ADA, PASSWORD).json();
    assert_eq!(body["user"]["email"], ADA);
    assert!(!body["token"].as_str().unwrap().is_empty());
}

#[test]
fn test_login_invalid_email() {
    is(
        &Accounts::new().login("nonexistent@example.com", PASSWORD),
        401,
        "invalid-credentials",
    );
}

#[test]
fn test_login_wrong_password() {
    let it = Accounts::new();
    it.signed_up(ADA);
    is(&it.login(ADA, "wrongpassword"), 401, "invalid-credentials");
}

#[test]
fn test_me_handler_authenticated() {
    let it = Accounts::new();
    let ada = it.signed_up(ADA);
    let me = it.me(&ada.access);
    assert_eq!((me.status, me.json()["email"].as_str()), (200, Some(ADA)));
}

/// The reference lets everybody in as a built-in user; that was its worst fault.
#[test]
fn test_me_handler_no_auth() {
    let it = Accounts::new();
    let answer = it.call("GET", "/api/v1/me", None, &Value::Null);
    is(&answer, 401, "unauthorized");
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
}

#[test]
fn test_me_handler_invalid_token() {
    is(
        &Accounts::new().me("invalid.token.here"),
        401,
        "invalid-access-token",
    );
}

/// So many calls in a row, and what one takes.
fn measure(what: &str, count: u32, mut call: impl FnMut(u32)) {
    let started = Instant::now();
    (0..count).for_each(&mut call);
    println!(
        "{what}: {:?} each, of {count} in a row over HTTP",
        started.elapsed() / count
    );
}

#[test]
fn benchmark_signup() {
    let it = Accounts::new();
    measure("signup", 20, |n| {
        assert_eq!(signup(&it, &format!("user{n}@example.com"), PASSWORD).status, 201);
    });
    assert_eq!(it.store.one::<i64>("select count(*) from identity.users"), 20);
}

#[test]
fn benchmark_login() {
    let it = Accounts::new();
    it.signed_up(ADA);
    measure("login", 20, |_| {
        it.signed_in(ADA);
    });
}

/// A handler has a token signed; no database is asked.
#[test]
fn benchmark_generate_token() {
    let it = with_guests();
    let arguments = json!({ "subject": "u", "session-id": "s" });
    measure("a token issued", 200, |_| {
        assert!(call(&it.berth, "tokens.issue", &arguments)["ok"].is_string());
    });
}

/// A handler has a token verified; its session isn't looked at.
#[test]
fn benchmark_verify_token() {
    let it = with_guests();
    let ada = it.signed_up(ADA);
    let arguments = json!({ "token": ada.access });
    measure("a token verified", 200, |_| {
        assert_eq!(
            call(&it.berth, "tokens.verify", &arguments)["ok"]["subject"],
            ada.id
        );
    });
}
