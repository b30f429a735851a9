use super::*;
use crate::error::Fault;
use std::time::Duration;

fn problem_of(status: u16, code: &str, detail: &str) -> Error {
    Error::Problem(PolicyProblem {
        status,
        code: code.to_owned(),
        detail: detail.to_owned(),
        retry_after: None,
        fields: Vec::new(),
    })
}

fn guest_error(trap: Trap) -> Error {
    Error::Guest(Fault::new(trap, "the cause, for the log only"))
}

/// Variant → status → code. A change here is a change of the API.
#[test]
fn every_error_has_its_status_and_code() {
    let table = [
        (Error::NotFound, 404, "not-found"),
        (
            Error::MethodNotAllowed {
                allow: "GET".to_owned(),
            },
            405,
            "method-not-allowed",
        ),
        (Error::InvalidPath("x"), 400, "invalid-path"),
        (Error::InvalidHead("x"), 400, "invalid-request"),
        (Error::HeadTooLarge { limit: 1 }, 431, "header-too-large"),
        (Error::BodyTooLarge { limit: 1 }, 413, "body-too-large"),
        (
            Error::BodyTimeout {
                after: Duration::from_secs(1),
            },
            408,
            "body-timeout",
        ),
        (Error::BodyBroken, 400, "invalid-request"),
        (Error::MediaType { given: None }, 415, "unsupported-media-type"),
        (Error::Json(Vec::new()), 400, "invalid-json"),
        (Error::Unauthenticated { token_given: false }, 401, "unauthorized"),
        (
            Error::Unauthenticated { token_given: true },
            401,
            "invalid-access-token",
        ),
        (Error::TokenExpired, 401, "token-expired"),
        (
            Error::Forbidden {
                role: "admin".to_owned(),
            },
            403,
            "forbidden",
        ),
        (
            Error::TooManyAttempts {
                wait: Duration::from_millis(1),
            },
            429,
            "too-many-requests",
        ),
        (Error::AdminToken, 401, "unauthorized"),
        (Error::NoAccounts, 404, "no-accounts"),
        (Error::UserNotFound, 404, "user-not-found"),
        (Error::InvalidParameter("x".to_owned()), 400, "invalid-request"),
        (Error::DatabaseUnavailable, 503, "database-unavailable"),
        (Error::AuthUnavailable, 503, "auth-unavailable"),
        (Error::DatabaseUnavailable, 503, "database-unavailable"),
        (Error::PluginBusy, 429, "plugin-busy"),
        (Error::HostBusy, 503, "host-busy"),
        (
            Error::PluginUnavailable {
                plugin: "x".to_owned(),
            },
            503,
            "plugin-unavailable",
        ),
        (
            Error::PluginDisabled {
                plugin: "x".to_owned(),
            },
            503,
            "plugin-disabled",
        ),
        (Error::NoPlugin { name: "x".to_owned() }, 404, "plugin-not-found"),
        (Error::Conflict("It is so already.".to_owned()), 409, "conflict"),
        (guest_error(Trap::Cpu), 503, "plugin-cpu"),
        (guest_error(Trap::Wall), 504, "plugin-timeout"),
        (guest_error(Trap::Memory), 503, "plugin-memory"),
        (guest_error(Trap::Table), 503, "plugin-table"),
        (guest_error(Trap::Handles), 503, "plugin-handles"),
        (guest_error(Trap::Stack), 500, "plugin-stack"),
        (guest_error(Trap::Exit), 500, "plugin-exit"),
        (guest_error(Trap::Unreachable), 500, "plugin-trap"),
        (guest_error(Trap::NoResponse), 500, "plugin-no-response"),
        (guest_error(Trap::Refused), 500, "plugin-error"),
        (guest_error(Trap::ClientGone), 400, "client-gone"),
        (guest_error(Trap::Draining), 503, "draining"),
        (problem_of(418, "teapot", "short and stout"), 418, "teapot"),
        (
            Error::Internal("the cause, for the log only".to_owned()),
            500,
            "internal",
        ),
    ];
    for (error, status, code) in table {
        let answer = answer(&error);
        assert_eq!(
            (answer.status.as_u16(), answer.code.as_ref()),
            (status, code),
            "{error:?}"
        );
        assert!(
            answer.detail.ends_with('.') || code == "teapot",
            "{code}: {:?} is a sentence",
            answer.detail
        );
        assert!(
            !answer.detail.contains("log only"),
            "{code}: a cause stays in the log"
        );
    }
}

/// The table in the docs of [`crate::error`] is the one above.
#[test]
fn documented_table_of_traps_is_true() {
    let source = include_str!("../error.rs");
    for trap in Trap::ALL {
        let row = source
            .lines()
            .find(|l| l.starts_with(&format!("//! | [`Trap::{trap:?}`] ")));
        let row = row.unwrap_or_else(|| panic!("no row for {trap:?}"));
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let answer = guest(trap);
        let status = if trap == Trap::ClientGone {
            "none".to_owned()
        } else {
            answer.status.as_u16().to_string()
        };
        assert_eq!(cells[2], status, "{row}");
        assert_eq!(cells[3], format!("`{}`", answer.code), "{row}");
        assert_eq!(cells[4], format!("`{}`", trap.label()), "{row}");
    }
}

#[test]
fn policy_is_held_to_4xx_and_5xx_and_to_a_code_in_kebab_case() {
    for (status, code) in [
        (200, "ok"),
        (302, "go"),
        (99, "x"),
        (600, "x"),
        (0, "x"),
        (400, ""),
        (400, "Two Words"),
        (400, "a\nb"),
    ] {
        let answer = answer(&problem_of(status, code, "x"));
        assert_eq!(
            (answer.status.as_u16(), answer.code.as_ref()),
            (500, "policy-problem"),
            "{status} {code:?}"
        );
    }
}

#[test]
fn texts_of_a_policy_are_bounded_and_clean() {
    let answer = answer(&Error::Problem(PolicyProblem {
        status: 400,
        code: "x".to_owned(),
        detail: format!("a\r\nb\u{0}{}", "é".repeat(10_000)),
        retry_after: Some(u32::MAX),
        fields: vec![
            FieldError {
                pointer: "/a".to_owned(),
                detail: "x".repeat(100_000)
            };
            1000
        ],
    }));
    assert!(answer.detail.starts_with("a  b \u{e9}"));
    assert!(answer.detail.len() <= MAX_DETAIL);
    assert_eq!(answer.fields.len(), MAX_FIELDS);
    assert!(answer.fields.iter().all(|f| f.detail.len() <= MAX_DETAIL));
    assert_eq!(answer.retry_after, Some(MAX_RETRY_AFTER));
}

#[test]
fn time_to_wait_is_rounded_up() {
    for (ms, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_999, 60)] {
        let wait = Duration::from_millis(ms);
        assert_eq!(
            answer(&Error::TooManyAttempts { wait }).retry_after,
            Some(seconds),
            "{ms} ms"
        );
    }
}

#[test]
fn unread_requests_close_their_connection() {
    let id = HeaderValue::from_static("x");
    let closes = |error: &Error| problem(&answer(error), &id).headers().contains_key(CONNECTION);
    assert!(closes(&Error::BodyTooLarge { limit: 1 }));
    assert!(closes(&Error::BodyTimeout {
        after: Duration::from_secs(1)
    }));
    assert!(closes(&Error::InvalidHead("x")));
    assert!(!closes(&Error::NotFound));
}
