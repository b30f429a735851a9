//! A caller of the auth API of a host with the bundled policy and a database of its own.

use serde_json::{Value, json};

use crate::berth::{Berth, Manifest};
use crate::guest;
use crate::store::Store;
use crate::wire::{Response, request, request_as};

/// A password that nobody guesses first.
pub const PASSWORD: &str = "correct horse battery";

/// A host with accounts.
#[derive(Debug)]
pub struct Accounts {
    /// Its database and data folder.
    pub store: Store,
    /// The host.
    pub berth: Berth,
}

impl Default for Accounts {
    fn default() -> Self {
        Self::new()
    }
}

/// The bundled policy, and the handler `fixtures/echo` for callers (`/user/*`) and for the role admin (`/admin/*`).
pub fn manifest() -> Manifest {
    let echo = guest("fixtures/echo");
    Manifest::new().accounts().raw(&format!(
        "[plugins.h]\ncomponent = {echo:?}\n\
         [[routes]]\npath = \"/user/*\"\nplugin = \"h\"\naccess = \"user\"\n\
         [[routes]]\npath = \"/admin/*\"\nplugin = \"h\"\naccess = \"role:admin\"\n"
    ))
}

impl Accounts {
    /// Nobody has an account yet.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// The same with more environment.
    pub fn with(environment: &[(&str, &str)]) -> Self {
        let store = Store::new();
        let berth = store.start_with(&manifest(), environment);
        Self { store, berth }
    }

    /// One request with a token, if there is one, and a JSON body, unless it is null.
    pub fn call(&self, method: &str, path: &str, token: Option<&str>, body: &Value) -> Response {
        self.call_from(method, path, token, body, &[])
    }

    /// The same with more headers.
    pub fn call_from(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &Value,
        more: &[(&str, &str)],
    ) -> Response {
        let mut headers = more.to_vec();
        let mut text = String::new();
        if !body.is_null() {
            headers.push(("content-type", "application/json"));
            text = body.to_string();
        }
        let address = self.berth.address;
        match token {
            Some(token) => request_as(address, token, method, path, &headers, text.as_bytes()),
            None => request(address, method, path, &headers, text.as_bytes()),
        }
    }

    /// `POST /api/v1/auth/register`.
    pub fn register(&self, email: &str, password: &str) -> Response {
        let body = json!({ "email": email, "password": password });
        self.call("POST", "/api/v1/auth/register", None, &body)
    }

    /// `POST /api/v1/auth/login`.
    pub fn login(&self, email: &str, password: &str) -> Response {
        let body = json!({ "email": email, "password": password });
        self.call("POST", "/api/v1/auth/login", None, &body)
    }

    /// `POST /api/v1/auth/refresh`.
    pub fn refresh(&self, token: &str) -> Response {
        let body = json!({ "refreshToken": token });
        self.call("POST", "/api/v1/auth/refresh", None, &body)
    }

    /// `GET /api/v1/me`.
    pub fn me(&self, token: &str) -> Response {
        self.call("GET", "/api/v1/me", Some(token), &Value::Null)
    }

    /// A new account, signed in.
    pub fn signed_up(&self, email: &str) -> Session {
        Session::of(&self.register(email, PASSWORD), 201)
    }

    /// Another session of an account.
    pub fn signed_in(&self, email: &str) -> Session {
        Session::of(&self.login(email, PASSWORD), 200)
    }

    /// One call of the admin API.
    pub fn admin(&self, method: &str, path: &str, body: &Value) -> Response {
        let token = self.store.admin_token();
        let headers = [("content-type", "application/json")];
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        request_as(self.berth.admin, &token, method, path, &headers, text.as_bytes())
    }
}

/// What a client has when it is signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The user's id.
    pub id: String,
    /// For `Authorization`.
    pub access: String,
    /// For `refresh`.
    pub refresh: String,
}

impl Session {
    /// From an answer that must have this status.
    #[track_caller]
    pub fn of(answer: &Response, status: u16) -> Self {
        assert_eq!(answer.status, status, "{}", answer.text());
        let body = answer.json();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let session = Self {
            id: text(&body["user"]["id"]),
            access: text(&body["accessToken"]),
            refresh: text(&body["refreshToken"]),
        };
        for part in [&session.id, &session.access, &session.refresh] {
            assert!(!part.is_empty(), "{}", answer.text());
        }
        session
    }
}
