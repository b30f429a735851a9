//! From the driver's errors to the guest's, and what they say of the connection.

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::caps::bindings::berth::host::sql::{DatabaseError, Error};

/// The longest message of Postgres that a guest gets, in bytes.
const MAX_MESSAGE: usize = 2 * 1024;

/// What became of a connection in a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// As it was: Postgres answered.
    Usable,
    /// Its statements no longer fit; see [`is_outdated`].
    Outdated,
    /// A statement may still be running on it.
    Running,
    /// Gone, or nobody knows.
    Broken,
}

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// For the guest.
    pub(super) error: Error,
    /// The connection.
    pub(super) left: Left,
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(database) = &error else {
            return match error {
                // The statement was not run. The driver can't read a type that it doesn't know of.
                sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::Decode(_)
                | sqlx::Error::TypeNotFound { .. }
                | sqlx::Error::Encode(_) => Self {
                    error: Error::Invalid(
                        "the statement has a column of a type that can't be read (a multirange, for one); cast it, as in `column::text`"
                            .to_owned(),
                    ),
                    left: Left::Broken,
                },
                error => {
                    tracing::debug!(target: "berth::sql", %error, "a connection broke");
                    Self {
                        error: Error::Unavailable,
                        left: Left::Broken,
                    }
                }
            };
        };
        let postgres = database.try_downcast_ref::<PgDatabaseError>();
        let severity = postgres.map(PgDatabaseError::severity);
        let code = database.code().unwrap_or_default();
        let left = match severity {
            Some(PgSeverity::Fatal | PgSeverity::Panic) => Left::Broken,
            _ if is_outdated(&code, database.message()) => Left::Outdated,
            _ => Left::Usable,
        };
        let error = match &*code {
            // The server's own `statement_timeout`, or a cancellation: both are the host's doing.
            "57014" => Error::Timeout,
            // `idle_in_transaction_session_timeout`.
            "25P03" => Error::TransactionOver,
            // Shutting down, crashed, starting, out of connections.
            _ if left == Left::Broken => Error::Unavailable,
            _ => Error::Database(DatabaseError {
                code: code.into_owned(),
                message: bounded(database.message()),
                constraint: database.constraint().map(str::to_owned),
            }),
        };
        Self { error, left }
    }
}

impl Failed {
    /// There is no connection any more.
    pub(super) fn gone() -> Self {
        Self {
            error: Error::Unavailable,
            left: Left::Broken,
        }
    }

    /// More than there may be; the server would go on sending.
    pub(super) fn too_much(error: Error) -> Self {
        Self {
            error,
            left: Left::Running,
        }
    }
}

/// Whether a statement that the connection had prepared no longer fits: a table was changed, or a function of the guest
/// has forgotten it. Nothing was done.
fn is_outdated(code: &str, message: &str) -> bool {
    code == "26000" || (code == "0A000" && message == "cached plan must not change result type")
}

fn bounded(message: &str) -> String {
    message
        .get(..message.floor_char_boundary(MAX_MESSAGE))
        .unwrap_or_default()
        .to_owned()
}

/// The error's label in the metrics, which is its name in WIT.
pub(super) const fn label(error: &Error) -> &'static str {
    match error {
        Error::Database(_) => "database",
        Error::Invalid(_) => "invalid",
        Error::Denied(_) => "denied",
        Error::Timeout => "timeout",
        Error::TooManyRows(_) => "too-many-rows",
        Error::TooManyBytes(_) => "too-many-bytes",
        Error::PoolTimeout => "pool-timeout",
        Error::Unavailable => "unavailable",
        Error::TransactionOver => "transaction-over",
    }
}
