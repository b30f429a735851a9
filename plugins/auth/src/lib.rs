//! The auth policy: what callers may send, who may sign in, and what a token means.
//!
//! Requests are validated in full, and every fault of one is reported at once. Whatever needs accounts answers
//! `not-implemented`, as this build has no identity store.

mod validate;

use crate::berth::policy::types::FieldError;
use crate::exports::berth::policy::auth::{
    Claims, Credentials, Guest, PasswordChange, Principal, Problem, Registration, RequestInfo, Session,
    SessionInfo, User,
};
use crate::validate::{Fault, is_uuid};

wit_bindgen::generate!({ path: "../../wit/policy", world: "auth-policy", generate_all });
export!(Auth);

struct Auth;

impl Guest for Auth {
    fn register(_info: RequestInfo, registration: Registration) -> Result<Session, Problem> {
        let Registration {
            email,
            password,
            name,
        } = registration;
        accept(validate::registration(&email, &password, name.as_deref()))?;
        Err(not_implemented())
    }

    fn login(_info: RequestInfo, credentials: Credentials) -> Result<Session, Problem> {
        accept(validate::credentials(&credentials.email, &credentials.password))?;
        Err(not_implemented())
    }

    fn refresh(_info: RequestInfo, refresh_token: String) -> Result<Session, Problem> {
        accept(validate::token("/refreshToken", &refresh_token))?;
        Err(not_implemented())
    }

    fn logout(_info: RequestInfo, _caller: Principal) -> Result<(), Problem> {
        Err(not_implemented())
    }

    fn authenticate(_info: RequestInfo, claims: Claims) -> Result<Principal, Problem> {
        if !is_uuid(&claims.subject) || !is_uuid(&claims.session_id) {
            return Err(problem(
                401,
                "invalid-token",
                "The access token isn't one of ours. Sign in again.",
            ));
        }
        Err(not_implemented())
    }

    fn me(_info: RequestInfo, _caller: Principal) -> Result<User, Problem> {
        Err(not_implemented())
    }

    fn change_password(
        _info: RequestInfo,
        _caller: Principal,
        change: PasswordChange,
    ) -> Result<(), Problem> {
        accept(validate::password_change(
            &change.current_password,
            &change.new_password,
        ))?;
        Err(not_implemented())
    }

    fn verify_email(_info: RequestInfo, token: String) -> Result<User, Problem> {
        accept(validate::token("/token", &token))?;
        Err(not_implemented())
    }

    fn sessions(_info: RequestInfo, _caller: Principal) -> Result<Vec<SessionInfo>, Problem> {
        Err(not_implemented())
    }

    fn revoke(_info: RequestInfo, _caller: Principal, session_id: String) -> Result<(), Problem> {
        if !is_uuid(&session_id) {
            return Err(problem(
                404,
                "session-not-found",
                "You have no session with this id.",
            ));
        }
        Err(not_implemented())
    }
}

/// Lets a request without faults pass.
fn accept(faults: Vec<Fault>) -> Result<(), Problem> {
    if faults.is_empty() {
        return Ok(());
    }
    let (code, detail) = validate::summary(&faults);
    let fields = faults
        .into_iter()
        .map(|fault| FieldError {
            pointer: fault.pointer.to_owned(),
            detail: fault.detail,
        })
        .collect();
    Err(Problem {
        fields,
        ..problem(400, code, &detail)
    })
}

fn not_implemented() -> Problem {
    let detail = "Accounts need the identity store, which this build of the auth policy doesn't have yet.";
    problem(501, "not-implemented", detail)
}

fn problem(status: u16, code: &str, detail: &str) -> Problem {
    Problem {
        status,
        code: code.to_owned(),
        detail: detail.to_owned(),
        retry_after: None,
        fields: Vec::new(),
    }
}
