//! Accounts and sessions of a test, through the fixture `identity` and straight in the database.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::berth::{Berth, Manifest};
use crate::guest;
use crate::store::Store;
use crate::wire::{Response, request_as};

/// A manifest with the policy `auth-static`, the fixture `identity` with its grants, and `echo` at `/user/*` for whoever
/// is signed in.
pub fn manifest() -> Manifest {
    let echo = guest("fixtures/echo");
    Manifest::new()
        .auth("fixtures/auth-static")
        .handler_with(
            "fixtures/identity",
            "grants = { tokens = true, passwords = true, sessions = true }",
        )
        .raw(&format!(
            "[plugins.echo]\ncomponent = {echo:?}\n\
             [[routes]]\npath = \"/user/*\"\nplugin = \"echo\"\naccess = \"user\""
        ))
}

/// Call a function: `call(&berth, "sessions.open", json!({ … }))` gives the fixture's answer.
pub fn call(berth: &Berth, function: &str, arguments: &Value) -> Value {
    let answer = berth.post(&format!("/identity/{function}"), &arguments.to_string());
    assert_eq!(answer.status, 200, "{function}: {}", answer.text());
    answer.json()
}

/// A new account.
pub fn user(store: &Store) -> Uuid {
    let id = Uuid::now_v7();
    store.run(&format!(
        "insert into identity.users (id, email, email_canonical, name, roles)
         values ('{id}', 'Ada.{id}@Example.com', 'ada.{id}@example.com', 'Ada', '{{user,admin}}')"
    ));
    id
}

/// Sign it in: what `sessions.open` gives.
pub fn open(berth: &Berth, user: Uuid) -> Value {
    let opened = call(
        berth,
        "sessions.open",
        &json!({ "user-id": user.to_string(), "client-ip": "192.0.2.1", "user-agent": "tests" }),
    );
    assert!(opened["ok"].is_object(), "{opened}");
    opened["ok"].clone()
}

/// Use a refresh token.
pub fn refresh(berth: &Berth, token: &Value) -> Value {
    call(berth, "sessions.refresh", &json!({ "refresh-token": token }))
}

/// Ask for something that only a signed-in user gets.
pub fn ask(berth: &Berth, access_token: &Value) -> Response {
    let token = access_token.as_str().unwrap_or_default();
    request_as(berth.address, token, "GET", "/user/status/200", &[], b"")
}
