//! The JSON of the `auth` routes: what comes in, what goes out.
//!
//! Unknown members are ignored. A member that is missing or of the wrong type is named by its JSON pointer, all of
//! them at once.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::auth::AuthOp;
use super::auth::bindings::berth::policy::types::{Session, User};
use super::auth::bindings::exports::berth::policy::auth::{
    Credentials, PasswordChange, Registration, SessionInfo,
};
use crate::error::FieldError;

/// What an operation takes, decoded.
#[derive(Debug)]
pub enum Input {
    /// Nothing.
    Nothing,
    /// Of `register`.
    Registration(Registration),
    /// Of `login`.
    Credentials(Credentials),
    /// Of `refresh` and `verify-email`.
    Token(String),
    /// Of `change-password`.
    PasswordChange(PasswordChange),
    /// Of `revoke`.
    Id(String),
}

#[derive(Deserialize)]
struct RegistrationJson {
    email: String,
    password: String,
    name: Option<String>,
}

#[derive(Deserialize)]
struct CredentialsJson {
    email: String,
    password: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RefreshJson {
    refresh_token: String,
}

#[derive(Deserialize)]
struct TokenJson {
    token: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PasswordChangeJson {
    current_password: String,
    new_password: String,
}

impl Input {
    /// Decode a body.
    ///
    /// # Errors
    /// Every fault in it, each with its JSON pointer.
    pub fn decode(op: AuthOp, body: &[u8]) -> Result<Self, Vec<FieldError>> {
        Ok(match op {
            AuthOp::Register => {
                let it: RegistrationJson = decode(body, &["email", "password"], &["name"])?;
                Self::Registration(Registration {
                    email: it.email,
                    password: it.password,
                    name: it.name,
                })
            }
            AuthOp::Login => {
                let it: CredentialsJson = decode(body, &["email", "password"], &[])?;
                Self::Credentials(Credentials {
                    email: it.email,
                    password: it.password,
                })
            }
            AuthOp::Refresh => {
                Self::Token(decode::<RefreshJson>(body, &["refreshToken"], &[])?.refresh_token)
            }
            AuthOp::VerifyEmail => Self::Token(decode::<TokenJson>(body, &["token"], &[])?.token),
            AuthOp::ChangePassword => {
                let it: PasswordChangeJson = decode(body, &["currentPassword", "newPassword"], &[])?;
                Self::PasswordChange(PasswordChange {
                    current_password: it.current_password,
                    new_password: it.new_password,
                })
            }
            AuthOp::Logout | AuthOp::Me | AuthOp::Sessions | AuthOp::Revoke => Self::Nothing,
        })
    }
}

/// Straight into the struct; only when that fails, once more to find all the faults.
fn decode<'a, T: Deserialize<'a>>(
    body: &'a [u8],
    required: &[&str],
    optional: &[&str],
) -> Result<T, Vec<FieldError>> {
    // serde would also take an array of the members' values.
    let is_object = body.trim_ascii_start().first() == Some(&b'{');
    match serde_json::from_slice(body) {
        Ok(decoded) if is_object => Ok(decoded),
        Ok(_) => Err(faults(body, &"it is not a JSON object", required, optional)),
        Err(error) => Err(faults(body, &error, required, optional)),
    }
}

fn faults(body: &[u8], error: &dyn fmt::Display, required: &[&str], optional: &[&str]) -> Vec<FieldError> {
    let at = |pointer: &str, detail: String| FieldError {
        pointer: pointer.to_owned(),
        detail,
    };
    if body.is_empty() {
        return vec![at("", "it is empty; this path takes a JSON object".to_owned())];
    }
    if std::str::from_utf8(body).is_err() {
        return vec![at("", "it is not UTF-8".to_owned())];
    }
    let value: Value = match serde_json::from_slice(body) {
        Ok(value) => value,
        Err(error) => return vec![at("", format!("it is not JSON: {error}"))],
    };
    let Value::Object(members) = &value else {
        return vec![at("", format!("it must be a JSON object, not {}", kind(&value)))];
    };
    let strings = required
        .iter()
        .map(|m| (m, true))
        .chain(optional.iter().map(|m| (m, false)));
    let found: Vec<FieldError> = strings
        .filter_map(|(member, required)| match members.get(*member) {
            Some(Value::String(_)) => None,
            Some(Value::Null) | None if !required => None,
            None => Some(at(&format!("/{member}"), "is missing".to_owned())),
            Some(other) => Some(at(
                &format!("/{member}"),
                format!("must be a string, not {}", kind(other)),
            )),
        })
        .collect();
    if found.is_empty() {
        // Such as a member that is given twice.
        return vec![at("", error.to_string())];
    }
    found
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// What an operation gives.
#[derive(Debug)]
pub enum Output {
    /// Of `register`, `login`, `refresh`.
    Session(Session),
    /// Of `me`, `verify-email`.
    User(User),
    /// Of `sessions`.
    Sessions(Vec<SessionInfo>),
    /// Of `logout`.
    LoggedOut,
    /// Of `change-password`.
    PasswordChanged,
    /// Of `revoke`: the session that is gone.
    Revoked(String),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionJson<'a> {
    user: UserJson<'a>,
    /// The access token again, under the name that older clients read.
    token: &'a str,
    access_token: &'a str,
    refresh_token: &'a str,
    expires_in: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UserJson<'a> {
    id: &'a str,
    email: &'a str,
    email_verified: bool,
    name: &'a str,
    roles: &'a [String],
    created_at: u64,
    updated_at: u64,
    mfa_enabled: bool,
    active: bool,
}

#[derive(Serialize)]
struct SessionsJson<'a> {
    sessions: Vec<SessionInfoJson<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionInfoJson<'a> {
    id: &'a str,
    created_at: u64,
    last_used_at: u64,
    client_ip: &'a str,
    user_agent: Option<&'a str>,
    current: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum DoneJson<'a> {
    LoggedOut(bool),
    PasswordChanged(bool),
    Revoked(&'a str),
}

impl Output {
    /// Whose account it is about, where it says so.
    pub fn user(&self) -> Option<&User> {
        match self {
            Self::Session(session) => Some(&session.user),
            Self::User(user) => Some(user),
            Self::Sessions(_) | Self::LoggedOut | Self::PasswordChanged | Self::Revoked(_) => None,
        }
    }

    /// As JSON text.
    ///
    /// # Errors
    /// None in practice: these types always serialise.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        match self {
            Self::Session(session) => serde_json::to_vec(&SessionJson {
                user: UserJson::from(&session.user),
                token: &session.access_token,
                access_token: &session.access_token,
                refresh_token: &session.refresh_token,
                expires_in: session.expires_in,
            }),
            Self::User(user) => serde_json::to_vec(&UserJson::from(user)),
            Self::Sessions(list) => serde_json::to_vec(&SessionsJson {
                sessions: list.iter().map(SessionInfoJson::from).collect(),
            }),
            Self::LoggedOut => serde_json::to_vec(&DoneJson::LoggedOut(true)),
            Self::PasswordChanged => serde_json::to_vec(&DoneJson::PasswordChanged(true)),
            Self::Revoked(id) => serde_json::to_vec(&DoneJson::Revoked(id)),
        }
    }
}

impl<'a> From<&'a User> for UserJson<'a> {
    fn from(user: &'a User) -> Self {
        Self {
            id: &user.id,
            email: &user.email,
            email_verified: user.email_verified,
            name: &user.name,
            roles: &user.roles,
            created_at: user.created_at,
            updated_at: user.updated_at,
            mfa_enabled: user.mfa_enabled,
            active: user.active,
        }
    }
}

impl<'a> From<&'a SessionInfo> for SessionInfoJson<'a> {
    fn from(info: &'a SessionInfo) -> Self {
        Self {
            id: &info.id,
            created_at: info.created_at,
            last_used_at: info.last_used_at,
            client_ip: &info.client_ip,
            user_agent: info.user_agent.as_deref(),
            current: info.current,
        }
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(op: AuthOp, body: &[u8]) -> Vec<(String, String)> {
        let faults = Input::decode(op, body).unwrap_err();
        faults.into_iter().map(|f| (f.pointer, f.detail)).collect()
    }

    fn one(pointer: &str, detail: &str) -> Vec<(String, String)> {
        vec![(pointer.to_owned(), detail.to_owned())]
    }

    #[test]
    fn unknown_members_are_ignored_and_a_null_option_is_absent() {
        let body = br#"{"email":"a@b.c","password":"x","name":null,"confirmPassword":"x","more":{"a":[1]}}"#;
        assert!(
            matches!(Input::decode(AuthOp::Register, body), Ok(Input::Registration(r)) if r.name.is_none())
        );
    }

    #[test]
    fn every_fault_is_named_at_once() {
        assert_eq!(
            refused(AuthOp::Register, br#"{"email":7,"name":[]}"#),
            [
                ("/email".to_owned(), "must be a string, not a number".to_owned()),
                ("/password".to_owned(), "is missing".to_owned()),
                ("/name".to_owned(), "must be a string, not an array".to_owned()),
            ]
        );
    }

    #[test]
    fn bodies_that_are_no_object_say_what_they_are() {
        assert_eq!(
            refused(AuthOp::Login, b""),
            one("", "it is empty; this path takes a JSON object")
        );
        assert_eq!(
            refused(AuthOp::Login, b"[]"),
            one("", "it must be a JSON object, not an array")
        );
        // The members' values in their order are not the members.
        assert_eq!(
            refused(AuthOp::Login, br#" ["a@b.c", "secret"]"#),
            one("", "it must be a JSON object, not an array")
        );
        assert_eq!(refused(AuthOp::Login, b"\"\xff\""), one("", "it is not UTF-8"));
        let cut = refused(AuthOp::Login, br#"{"email":"#);
        assert!(
            cut[0].1.starts_with("it is not JSON: EOF while parsing"),
            "{cut:?}"
        );
    }

    #[test]
    fn a_member_given_twice_is_refused() {
        let twice = refused(AuthOp::Refresh, br#"{"refreshToken":"a","refreshToken":"b"}"#);
        assert!(
            twice[0].1.starts_with("duplicate field `refreshToken`"),
            "{twice:?}"
        );
    }

    #[test]
    fn nesting_without_end_is_refused() {
        let deep = [b"{\"email\":".as_slice(), &[b'['; 100_000]].concat();
        assert!(
            refused(AuthOp::Login, &deep)[0]
                .1
                .contains("recursion limit exceeded")
        );
    }
}
