//! The auth policy: what callers may send, who may sign in, and what a token means.
//!
//! Requests are validated in full, and every fault of one is reported at once. The decisions are in `policy`; the
//! host keeps hashes, tokens, sessions and rate limits, and this component's role sees the accounts alone.
//!
//! Nothing is mailed yet: no address is ever verified, and `verify-email` answers 400 `invalid-token` to every token.

mod accounts;
mod common;
mod host;
mod policy;
mod refusal;
mod validate;

use crate::exports::berth::policy::auth::{
    Claims, Credentials, Guest, PasswordChange, Principal, Problem, Registration, RequestInfo, Session,
    SessionInfo, User,
};
use crate::host::Real;

wit_bindgen::generate!({ path: "../../wit/policy", world: "auth-policy", generate_all });
export!(Auth);

struct Auth;

impl Guest for Auth {
    fn register(info: RequestInfo, registration: Registration) -> Result<Session, Problem> {
        policy::register(&Real, &info, &registration)
    }

    fn login(info: RequestInfo, credentials: Credentials) -> Result<Session, Problem> {
        policy::login(&Real, &info, &credentials)
    }

    fn refresh(_info: RequestInfo, refresh_token: String) -> Result<Session, Problem> {
        policy::refresh(&Real, &refresh_token)
    }

    fn logout(_info: RequestInfo, caller: Principal) -> Result<(), Problem> {
        policy::logout(&Real, &caller)
    }

    fn authenticate(_info: RequestInfo, claims: Claims) -> Result<Principal, Problem> {
        policy::authenticate(claims)
    }

    fn me(_info: RequestInfo, caller: Principal) -> Result<User, Problem> {
        policy::me(&Real, &caller)
    }

    fn change_password(_info: RequestInfo, caller: Principal, change: PasswordChange) -> Result<(), Problem> {
        policy::change_password(&Real, &caller, &change)
    }

    fn verify_email(_info: RequestInfo, token: String) -> Result<User, Problem> {
        policy::verify_email(&token)
    }

    fn sessions(_info: RequestInfo, caller: Principal) -> Result<Vec<SessionInfo>, Problem> {
        policy::sessions(&Real, &caller)
    }

    fn revoke(_info: RequestInfo, caller: Principal, session_id: String) -> Result<(), Problem> {
        policy::revoke(&Real, &caller, &session_id)
    }
}
