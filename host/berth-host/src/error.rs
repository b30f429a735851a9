//! What can go wrong with a request, and with whom the blame lies.
//!
//! Errors keep their type until [`crate::respond`] turns them into an answer; nothing else in the crate names a
//! status. Each has two texts: one for the caller (written in `respond`) and one for the log ([`Fault::cause`],
//! [`Error::Internal`]), and the second has no way into a response.
//!
//! # What a guest can do wrong
//!
//! | fault | status | `code` | log and metric | what happened |
//! |---|---|---|---|---|
//! | [`Trap::Cpu`] | 503 | `plugin-cpu` | `cpu` | used up its CPU time |
//! | [`Trap::Wall`] | 504 | `plugin-timeout` | `wall` | no response head within the wall time, or no progress after it |
//! | [`Trap::Memory`] | 503 | `plugin-memory` | `memory` | was refused more linear memory, and gave up |
//! | [`Trap::Table`] | 503 | `plugin-table` | `table` | was refused more table elements, and gave up |
//! | [`Trap::Handles`] | 503 | `plugin-handles` | `handles` | opened too many resources |
//! | [`Trap::Stack`] | 500 | `plugin-stack` | `stack` | exhausted its call stack |
//! | [`Trap::Exit`] | 500 | `plugin-exit` | `exit` | called `exit` instead of answering |
//! | [`Trap::Unreachable`] | 500 | `plugin-trap` | `unreachable` | panicked, or any other Wasm trap |
//! | [`Trap::NoResponse`] | 500 | `plugin-no-response` | `no-response` | returned without a response |
//! | [`Trap::Refused`] | 500 | `plugin-error` | `refused` | answered with a `wasi:http` error code |
//! | [`Trap::ClientGone`] | none | `client-gone` | `client-gone` | the caller left; counted apart, not an error |
//! | [`Trap::Draining`] | 503 | `draining` | `draining` | still running when the host had to stop |
//!
//! After the response head no status can be sent any more: the connection is aborted (HTTP/1.1), so that a
//! truncated body never looks like a whole one.

use std::fmt;
use std::time::Duration;

/// Why a guest's run ended without a usable result. The one place where such ends are named: each has a status, a
/// code, a log field and a metric label (see the table of this module).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trap {
    /// The request's guest CPU time is used up.
    Cpu,
    /// The wall time until the response head is over, or a body made no progress for too long.
    Wall,
    /// Linear memory was refused (store limit or process budget) and the guest gave up.
    Memory,
    /// Table growth was refused and the guest gave up.
    Table,
    /// The store's resource table is full.
    Handles,
    /// The Wasm call stack is exhausted.
    Stack,
    /// The guest called `exit`.
    Exit,
    /// `unreachable`, an out-of-bounds access, or any other Wasm trap.
    Unreachable,
    /// The handler returned without a response.
    NoResponse,
    /// The handler answered with a `wasi:http` error code.
    Refused,
    /// The caller went away; not the guest's doing.
    ClientGone,
    /// The host stops; not the guest's doing.
    Draining,
}

impl Trap {
    /// Every kind, in the order of the table: the metrics have one counter each.
    pub const ALL: [Self; 12] = [
        Self::Cpu,
        Self::Wall,
        Self::Memory,
        Self::Table,
        Self::Handles,
        Self::Stack,
        Self::Exit,
        Self::Unreachable,
        Self::NoResponse,
        Self::Refused,
        Self::ClientGone,
        Self::Draining,
    ];

    /// The label in the log field `trap` and in the metric `berth_plugin_traps_total`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Wall => "wall",
            Self::Memory => "memory",
            Self::Table => "table",
            Self::Handles => "handles",
            Self::Stack => "stack",
            Self::Exit => "exit",
            Self::Unreachable => "unreachable",
            Self::NoResponse => "no-response",
            Self::Refused => "refused",
            Self::ClientGone => "client-gone",
            Self::Draining => "draining",
        }
    }

    /// Whether somebody other than the guest ended the run.
    pub const fn is_blameless(self) -> bool {
        matches!(self, Self::ClientGone | Self::Draining)
    }
}

/// A guest's end: its kind, and the full cause for the log (with the Wasm backtrace, where there is one).
#[derive(Clone, Debug)]
pub struct Fault {
    /// The kind.
    pub trap: Trap,
    /// For the log only: an error chain, over several lines.
    pub cause: String,
}

impl Fault {
    /// A fault with a cause of the host's own words.
    pub fn new(trap: Trap, cause: impl Into<String>) -> Self {
        Self {
            trap,
            cause: cause.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.trap.label(), self.cause)
    }
}

/// A refusal that a policy returned. Its status is held to 4xx and 5xx by `respond`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyProblem {
    /// As the policy gave it.
    pub status: u16,
    /// As the policy gave it.
    pub code: String,
    /// As the policy gave it.
    pub detail: String,
    /// Seconds.
    pub retry_after: Option<u32>,
    /// Faults in the caller's input.
    pub fields: Vec<FieldError>,
}

/// One fault in the caller's input.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FieldError {
    /// A JSON pointer (RFC 6901) into the request body.
    pub pointer: String,
    /// For the caller.
    pub detail: String,
}

/// Everything that can keep a request from its answer.
#[derive(Clone, Debug)]
pub enum Error {
    /// No route has this path.
    NotFound,
    /// A route has this path, but not this method. Carries the value of `Allow`.
    MethodNotAllowed {
        /// The value of the `Allow` header.
        allow: String,
    },
    /// The path is malformed: what about it, for the caller.
    InvalidPath(&'static str),
    /// The request's head breaks a rule of HTTP: which, for the caller.
    InvalidHead(&'static str),
    /// The request's head is larger than the host takes.
    HeadTooLarge {
        /// Bytes.
        limit: usize,
    },
    /// The body is larger than the route takes.
    BodyTooLarge {
        /// Bytes.
        limit: u64,
    },
    /// The body stopped coming.
    BodyTimeout {
        /// How long nothing came.
        after: Duration,
    },
    /// The body could not be read: the connection broke or its framing is wrong.
    BodyBroken,
    /// The body is not `application/json`. Carries what it was.
    MediaType {
        /// The `Content-Type` given, or nothing.
        given: Option<String>,
    },
    /// The body is not the JSON that the route takes.
    Json(Vec<FieldError>),
    /// No token, or one that isn't accepted.
    Unauthenticated {
        /// Whether a token was there at all.
        token_given: bool,
    },
    /// A token that was good and whose time is over: its bearer can refresh it.
    TokenExpired,
    /// The caller lacks the route's role.
    Forbidden {
        /// The role that would do.
        role: String,
    },
    /// The route isn't public and no working `auth` policy is there to ask. Fails closed.
    AuthUnavailable,
    /// Somebody tries to sign in, or the like, too often.
    TooManyAttempts {
        /// How long they have to wait.
        wait: Duration,
    },
    /// The operator's token isn't there, or isn't the right one.
    AdminToken,
    /// This host keeps no accounts.
    NoAccounts,
    /// There is no such account.
    UserNotFound,
    /// A parameter of the query can't be used: what about it, for the caller.
    InvalidParameter(String),
    /// Whether the caller's session is open can't be asked: the database can't be reached. Fails closed.
    DatabaseUnavailable,
    /// The plugin has as many requests running and waiting as it may have.
    PluginBusy,
    /// The host has no instance to give within the plugin's wall time.
    HostBusy,
    /// The plugin of this route could not be loaded. Carries its name.
    PluginUnavailable {
        /// The plugin's name.
        plugin: String,
    },
    /// An operator has switched the plugin of this route off. Carries its name.
    PluginDisabled {
        /// The plugin's name.
        plugin: String,
    },
    /// The operator asked for a plugin that the manifest doesn't have.
    NoPlugin {
        /// As it was asked for.
        name: String,
    },
    /// What the operator asked for was refused, and nothing was changed: a stable name and a sentence.
    SwapRefused {
        /// As in `berth check --json`.
        code: &'static str,
        /// For the operator.
        detail: String,
    },
    /// What the operator asked for can't be done as things are. The text says why, for the operator.
    Conflict(String),
    /// The guest failed.
    Guest(Fault),
    /// The policy refused.
    Problem(PolicyProblem),
    /// A fault of the host itself. The text is for the log only.
    Internal(String),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::Guest(fault)
    }
}
