//! What a caller is told when it doesn't work. Every code and sentence of the policy is here or in `validate`.

use crate::berth::host::log::{self, Field, Level};
use crate::berth::host::{passwords, sessions, sql};
use crate::berth::policy::types::FieldError;
use crate::exports::berth::policy::auth::Problem;

/// Seconds after which a database that could not be reached may be there again.
const DATABASE_RETRY: u32 = 1;

pub fn problem(status: u16, code: &str, detail: &str) -> Problem {
    Problem {
        status,
        code: code.to_owned(),
        detail: detail.to_owned(),
        retry_after: None,
        fields: Vec::new(),
    }
}

/// The one answer to every sign-in that doesn't work, whatever the reason.
pub fn invalid_credentials() -> Problem {
    problem(401, "invalid-credentials", "invalid email or password")
}

/// There is an account with this address. The words are those of the system that existing clients come from.
pub fn email_taken() -> Problem {
    problem(409, "email-already-exists", "email already registered")
}

/// 400, because the caller's token is good: clients that get 401 or 403 sign their user out, who has only mistyped.
pub fn wrong_current_password() -> Problem {
    Problem {
        fields: vec![FieldError {
            pointer: "/currentPassword".to_owned(),
            detail: "is not your present password".to_owned(),
        }],
        ..problem(400, "invalid-credentials", "The current password is wrong.")
    }
}

pub fn invalid_refresh_token() -> Problem {
    problem(
        401,
        "invalid-refresh-token",
        "The refresh token isn't valid, or no longer. Sign in again.",
    )
}

pub fn reused_refresh_token() -> Problem {
    problem(
        401,
        "invalid-refresh-token",
        "The refresh token was used before, so its session has ended. Sign in again.",
    )
}

/// Nothing is mailed yet, so no token can be one of ours.
pub fn invalid_mail_token() -> Problem {
    problem(400, "invalid-token", "The token isn't valid, or no longer.")
}

pub fn user_not_found() -> Problem {
    problem(404, "user-not-found", "This account doesn't exist any more.")
}

pub fn session_not_found() -> Problem {
    problem(404, "session-not-found", "You have no session with this id.")
}

pub fn invalid_access_token() -> Problem {
    problem(
        401,
        "invalid-access-token",
        "The access token isn't valid, or no longer.",
    )
}

/// The host verifies tokens that somebody else issues: this policy knows nothing of their bearers.
pub fn accounts_elsewhere() -> Problem {
    problem(
        503,
        "accounts-elsewhere",
        "Tokens come from elsewhere here, and this server's auth policy knows only its own accounts.",
    )
}

pub fn database_unavailable() -> Problem {
    Problem {
        retry_after: Some(DATABASE_RETRY),
        ..problem(
            503,
            "database-unavailable",
            "Accounts can't be looked up at the moment. Try again shortly.",
        )
    }
}

/// The account is there, the session isn't.
pub fn created_but_not_signed_in(why: Problem) -> Problem {
    Problem {
        detail: "The account was created, but you couldn't be signed in. Sign in shortly.".to_owned(),
        ..why
    }
}

/// The password is changed, the other sessions are still there.
pub fn changed_but_others_signed_in(why: Problem) -> Problem {
    Problem {
        detail: "The password was changed, but your other sessions couldn't be ended. End them one by one."
            .to_owned(),
        ..why
    }
}

/// A fault of this policy or of its tables; the log has more.
pub fn internal(what: &str, fields: &[(&str, &str)]) -> Problem {
    let fields: Vec<Field> = fields
        .iter()
        .map(|(name, value)| Field {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        })
        .collect();
    log::write(Level::Error, what, &fields);
    problem(
        500,
        "internal",
        "Something went wrong in the server. The request's id helps to find it in the log.",
    )
}

/// SQLSTATE classes of a server that is going away, is full, or was told to cancel.
fn is_passing(code: &str) -> bool {
    ["08", "53", "57"].iter().any(|class| code.starts_with(class))
}

impl From<sql::Error> for Problem {
    fn from(error: sql::Error) -> Self {
        use sql::Error;
        match error {
            Error::Unavailable | Error::PoolTimeout | Error::Timeout | Error::TransactionOver => {
                database_unavailable()
            }
            Error::Database(error) if is_passing(&error.code) => database_unavailable(),
            // Never the message: some of Postgres's have values in them.
            Error::Database(error) => internal(
                "a statement failed",
                &[
                    ("sqlstate", &error.code),
                    ("constraint", error.constraint.as_deref().unwrap_or("")),
                ],
            ),
            Error::Invalid(what) => internal("a statement is wrong", &[("what", &what)]),
            Error::Denied(what) => internal("a statement was refused", &[("what", &what)]),
            Error::TooManyRows(_) | Error::TooManyBytes(_) => internal("an account is too large", &[]),
        }
    }
}

impl From<passwords::Error> for Problem {
    fn from(error: passwords::Error) -> Self {
        match error {
            passwords::Error::Busy(seconds) => Problem {
                retry_after: Some(seconds),
                ..problem(
                    503,
                    "passwords-busy",
                    "Too many passwords are being checked. Try again shortly.",
                )
            },
            passwords::Error::TooLong => problem(400, "weak-password", "The password is too long."),
        }
    }
}

impl From<sessions::Error> for Problem {
    fn from(error: sessions::Error) -> Self {
        match error {
            sessions::Error::Invalid(what) => internal("a session can't be opened", &[("what", &what)]),
            sessions::Error::NoUser => invalid_credentials(),
            sessions::Error::NoSession => invalid_refresh_token(),
            sessions::Error::Reused => reused_refresh_token(),
            sessions::Error::Unavailable => database_unavailable(),
        }
    }
}
