//! The one place that turns results and errors into statuses, headers and bodies.
//!
//! Errors are `application/problem+json`: the members of RFC 9457, and beside them the ones that existing clients
//! read (`error`, `message`, `errorCode`, `statusCode`). The `detail` is written for the caller; causes, paths and
//! backtraces go to the log only. A policy's own problem passes through here too and is held to 4xx and 5xx.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::stream::BoxStream;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Response, StatusCode};
use serde::Serialize;

use crate::body::ReplyBody;
use crate::cors::Cors;
use crate::error::{Error, FieldError, PolicyProblem, Trap};

/// The longest `code` of a policy that is passed on, in bytes.
const MAX_CODE: usize = 64;
/// The longest `detail` (of a problem or a field) that is passed on, in bytes.
const MAX_DETAIL: usize = 4 * 1024;
/// The most field errors that are passed on.
const MAX_FIELDS: usize = 64;
/// The longest wait a policy may ask of its caller: a day, in seconds.
const MAX_RETRY_AFTER: u32 = 86_400;

/// How a request went, in words that a client and a log line both use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The stable name, in kebab-case.
    pub code: Cow<'static, str>,
    detail: Cow<'static, str>,
    retry_after: Option<u32>,
    fields: Vec<FieldError>,
    allow: Option<String>,
    challenge: bool,
    /// The connection can't go on: the rest of the request is unread.
    close: bool,
}

/// The body of every error.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProblemJson<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    error: &'a str,
    message: &'a str,
    error_code: String,
    status_code: u16,
    /// Milliseconds since the Unix epoch.
    timestamp: u64,
    request_id: &'a str,
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
}

/// What kind of success a route has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Success {
    /// 200.
    Done,
    /// 201.
    Created,
}

/// A JSON answer of a host route or a policy.
pub fn json(success: Success, body: Vec<u8>) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::full(body));
    *response.status_mut() = match success {
        Success::Done => StatusCode::OK,
        Success::Created => StatusCode::CREATED,
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Accounts and tokens must not stay in a shared cache.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A plain text answer of a host route, such as the metrics.
pub fn text(content_type: &'static str, body: String) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::full(body));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A stream of server-sent events.
pub fn live(stream: BoxStream<'static, Bytes>) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::live(stream));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A JSON document for everybody, which caches may keep for `max_age` seconds.
pub fn public(content_type: &'static str, body: Bytes, max_age: u32) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::full(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let cache = HeaderValue::try_from(format!("public, max-age={max_age}"));
    // Letters and digits are a valid header value.
    headers.insert(
        CACHE_CONTROL,
        cache.unwrap_or(HeaderValue::from_static("no-cache")),
    );
    response
}

/// The answer to `OPTIONS`.
pub fn options(allow: &str) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Ok(value) = HeaderValue::from_str(allow) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

/// The answer to a preflight.
pub fn preflight(cors: &Cors, origin: &HeaderValue, method: &Method) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    cors.write_preflight(origin, method, response.headers_mut());
    response
}

/// Whether a response with this status has no body, by RFC 9110 section 6.4.1.
pub fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// Whether a response with this status may say how long its body is, by RFC 9110 section 8.6.
pub fn may_have_length(status: StatusCode) -> bool {
    !status.is_informational() && status != StatusCode::NO_CONTENT
}

/// The status, code and texts of an error.
pub fn answer(error: &Error) -> Answer {
    use StatusCode as S;
    match error {
        Error::NotFound => plain(S::NOT_FOUND, "not-found", "There is nothing at this path."),
        Error::MethodNotAllowed { allow } => Answer {
            allow: Some(allow.clone()),
            ..plain(
                S::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                format!("This path takes {allow}."),
            )
        },
        Error::InvalidPath(what) => plain(
            S::BAD_REQUEST,
            "invalid-path",
            format!("The request's path can't be used: {what}."),
        ),
        Error::InvalidHead(what) => closing(plain(
            S::BAD_REQUEST,
            "invalid-request",
            format!("The request breaks HTTP: {what}."),
        )),
        Error::HeadTooLarge { limit } => closing(plain(
            S::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "header-too-large",
            format!("The request's path and headers are larger than the {limit} bytes that are taken."),
        )),
        Error::BodyTooLarge { limit } => closing(plain(
            S::PAYLOAD_TOO_LARGE,
            "body-too-large",
            format!("The body is larger than the {limit} bytes that this path takes."),
        )),
        Error::BodyTimeout { after } => closing(plain(
            S::REQUEST_TIMEOUT,
            "body-timeout",
            format!("The body stopped coming: nothing for {} s.", after.as_secs_f64()),
        )),
        Error::BodyBroken => closing(plain(
            S::BAD_REQUEST,
            "invalid-request",
            "The body could not be read to its end.",
        )),
        Error::MediaType { given } => plain(
            S::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            match given {
                Some(given) => format!("This path takes application/json, not {given}."),
                None => "This path takes application/json; send it with that Content-Type.".to_owned(),
            },
        ),
        Error::Json(fields) => Answer {
            fields: fields.clone(),
            ..plain(
                S::BAD_REQUEST,
                "invalid-json",
                match fields.first() {
                    Some(FieldError { pointer, detail }) if pointer.is_empty() => {
                        format!("The body: {detail}.")
                    }
                    Some(FieldError { pointer, detail }) => format!("{pointer}: {detail}."),
                    None => "The body is not the JSON that this path takes.".to_owned(),
                },
            )
        },
        Error::Unauthenticated { token_given } => Answer {
            challenge: true,
            ..if *token_given {
                plain(
                    S::UNAUTHORIZED,
                    "invalid-access-token",
                    "The access token isn't valid, or no longer.",
                )
            } else {
                plain(
                    S::UNAUTHORIZED,
                    "unauthorized",
                    "Sign in first: send \"Authorization: Bearer <token>\".",
                )
            }
        },
        Error::TokenExpired => Answer {
            challenge: true,
            ..plain(
                S::UNAUTHORIZED,
                "token-expired",
                "The access token has expired. Refresh it, or sign in again.",
            )
        },
        Error::Forbidden { role } => plain(
            S::FORBIDDEN,
            "forbidden",
            format!("This needs the role \"{role}\"."),
        ),
        Error::AuthUnavailable => Answer {
            retry_after: Some(5),
            ..plain(
                S::SERVICE_UNAVAILABLE,
                "auth-unavailable",
                "Nobody can be signed in just now. Try again shortly.",
            )
        },
        Error::TooManyAttempts { wait } => Answer {
            // Whole seconds, and never too early.
            retry_after: Some(
                u32::try_from(wait.as_millis().div_ceil(1000).max(1)).unwrap_or(MAX_RETRY_AFTER),
            ),
            ..plain(
                S::TOO_MANY_REQUESTS,
                "too-many-requests",
                "Too many attempts. Try again later.",
            )
        },
        Error::AdminToken => Answer {
            challenge: true,
            ..plain(
                S::UNAUTHORIZED,
                "unauthorized",
                "Send \"Authorization: Bearer <token>\" with the token from the file admin.token in the data folder.",
            )
        },
        Error::NoAccounts => plain(
            S::NOT_FOUND,
            "no-accounts",
            "This host keeps no accounts: none of its plugins has the grant `sessions`.",
        ),
        Error::UserNotFound => plain(S::NOT_FOUND, "user-not-found", "There is no such account."),
        Error::InvalidParameter(what) => plain(
            S::BAD_REQUEST,
            "invalid-request",
            format!("The query can't be used: {what}."),
        ),
        Error::DatabaseUnavailable => Answer {
            retry_after: Some(2),
            ..plain(
                S::SERVICE_UNAVAILABLE,
                "database-unavailable",
                "The database can't be reached just now. Try again shortly.",
            )
        },
        Error::PluginBusy => Answer {
            retry_after: Some(1),
            ..plain(
                S::TOO_MANY_REQUESTS,
                "plugin-busy",
                "Too many requests for this path are waiting. Try again shortly.",
            )
        },
        Error::HostBusy => Answer {
            retry_after: Some(1),
            ..plain(
                S::SERVICE_UNAVAILABLE,
                "host-busy",
                "The server is busy. Try again shortly.",
            )
        },
        Error::PluginUnavailable { plugin } => plain(
            S::SERVICE_UNAVAILABLE,
            "plugin-unavailable",
            format!("The plugin \"{plugin}\", which serves this path, could not be loaded."),
        ),
        Error::PluginDisabled { plugin } => plain(
            S::SERVICE_UNAVAILABLE,
            "plugin-disabled",
            format!("The plugin \"{plugin}\", which serves this path, is switched off."),
        ),
        Error::NoPlugin { name } => plain(
            S::NOT_FOUND,
            "plugin-not-found",
            bounded(&format!("There is no plugin \"{name}\" in the manifest.")),
        ),
        Error::SwapRefused { code, detail } => plain(S::UNPROCESSABLE_ENTITY, *code, bounded(detail)),
        Error::Conflict(detail) => plain(S::CONFLICT, "conflict", bounded(detail)),
        Error::Guest(fault) => guest(fault.trap),
        Error::Problem(problem) => policy(problem),
        Error::Internal(_) => plain(
            S::INTERNAL_SERVER_ERROR,
            "internal",
            "Something went wrong in the server. The request's id helps to find it in the log.",
        ),
    }
}

/// The answer for a guest's end. The table is in [`crate::error`].
fn guest(trap: Trap) -> Answer {
    use StatusCode as S;
    match trap {
        Trap::Cpu => plain(
            S::SERVICE_UNAVAILABLE,
            "plugin-cpu",
            "The plugin used up its CPU time for one request.",
        ),
        Trap::Wall => plain(
            S::GATEWAY_TIMEOUT,
            "plugin-timeout",
            "The plugin did not answer in time.",
        ),
        Trap::Memory => plain(
            S::SERVICE_UNAVAILABLE,
            "plugin-memory",
            "The plugin needed more memory than it may have.",
        ),
        Trap::Table => plain(
            S::SERVICE_UNAVAILABLE,
            "plugin-table",
            "The plugin needed a larger table than it may have.",
        ),
        Trap::Handles => plain(
            S::SERVICE_UNAVAILABLE,
            "plugin-handles",
            "The plugin opened more resources than it may.",
        ),
        Trap::Stack => plain(
            S::INTERNAL_SERVER_ERROR,
            "plugin-stack",
            "The plugin called too deep.",
        ),
        Trap::Exit => plain(
            S::INTERNAL_SERVER_ERROR,
            "plugin-exit",
            "The plugin exited instead of answering.",
        ),
        Trap::Unreachable => plain(S::INTERNAL_SERVER_ERROR, "plugin-trap", "The plugin crashed."),
        Trap::NoResponse => plain(
            S::INTERNAL_SERVER_ERROR,
            "plugin-no-response",
            "The plugin ended without a response.",
        ),
        Trap::Refused => plain(
            S::INTERNAL_SERVER_ERROR,
            "plugin-error",
            "The plugin could not answer.",
        ),
        // Nobody reads this one; it gives the log line its fields.
        Trap::ClientGone => plain(
            S::BAD_REQUEST,
            "client-gone",
            "The caller left before the answer.",
        ),
        Trap::Draining => Answer {
            retry_after: Some(1),
            ..closing(plain(
                S::SERVICE_UNAVAILABLE,
                "draining",
                "The server is stopping. Try again shortly.",
            ))
        },
    }
}

/// What a policy said, within bounds.
fn policy(problem: &PolicyProblem) -> Answer {
    let status = StatusCode::from_u16(problem.status)
        .ok()
        .filter(|s| s.is_client_error() || s.is_server_error());
    let code_ok = !problem.code.is_empty()
        && problem.code.len() <= MAX_CODE
        && problem
            .code
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let (Some(status), true) = (status, code_ok) else {
        return plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "policy-problem",
            "The policy refused the request in a way that can't be passed on.",
        );
    };
    Answer {
        retry_after: problem.retry_after.map(|s| s.min(MAX_RETRY_AFTER)),
        fields: problem
            .fields
            .iter()
            .take(MAX_FIELDS)
            .map(|f| FieldError {
                pointer: bounded(&f.pointer),
                detail: bounded(&f.detail),
            })
            .collect(),
        challenge: status == StatusCode::UNAUTHORIZED,
        ..plain(status, problem.code.clone(), bounded(&problem.detail))
    }
}

/// Write an answer down.
pub fn problem(answer: &Answer, request_id: &HeaderValue) -> Response<ReplyBody> {
    let status = answer.status;
    let body = ProblemJson {
        kind: "about:blank",
        title: status.canonical_reason().unwrap_or("Error"),
        status: status.as_u16(),
        detail: &answer.detail,
        code: &answer.code,
        error: &answer.detail,
        message: &answer.detail,
        error_code: answer.code.to_ascii_uppercase().replace('-', "_"),
        status_code: status.as_u16(),
        timestamp: now_ms(),
        request_id: request_id.to_str().unwrap_or_default(),
        errors: &answer.fields,
    };
    // Serialising strings and numbers into memory can't fail; if it ever did, the status still says enough.
    let body = serde_json::to_vec(&body).map_or_else(|_| Bytes::new(), Bytes::from);
    let mut response = Response::new(ReplyBody::full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = answer.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(allow) = answer
        .allow
        .as_deref()
        .and_then(|a| HeaderValue::from_str(a).ok())
    {
        headers.insert(ALLOW, allow);
    }
    if answer.challenge {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if answer.close {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

fn plain(
    status: StatusCode,
    code: impl Into<Cow<'static, str>>,
    detail: impl Into<Cow<'static, str>>,
) -> Answer {
    Answer {
        status,
        code: code.into(),
        detail: detail.into(),
        retry_after: None,
        fields: Vec::new(),
        allow: None,
        challenge: false,
        close: false,
    }
}

fn closing(answer: Answer) -> Answer {
    Answer {
        close: true,
        ..answer
    }
}

/// At most [`MAX_DETAIL`] bytes, cut at a character, without control characters.
fn bounded(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_DETAIL);
    text.get(..end)
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// The code of a guest's end where no answer can be sent any more, for the log.
pub fn log_code(trap: Trap) -> &'static str {
    match guest(trap).code {
        Cow::Borrowed(code) => code,
        Cow::Owned(_) => "plugin-trap",
    }
}

#[cfg(test)]
mod tests;
