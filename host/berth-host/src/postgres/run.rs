//! One statement on the host's own connections, bounded in every way: no connection is waited for from a server that is
//! known to be gone, none longer than `postgres.acquire_time`, no statement longer than `postgres.statement_time`.

use std::time::Duration;

use sqlx::Postgres as Driver;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use tokio::time::timeout;

use super::{AcquireError, Postgres, fault};

/// How often a statement is tried whose connection breaks. When a server ends all of them, the second may still look whole
/// and end in the next moment.
const ATTEMPTS: u32 = 3;
/// How much longer than the server, which ends a statement in time by itself, the host waits for it to say so.
const SECOND_LINE: Duration = Duration::from_secs(1);

/// Why a statement gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No connection. Nothing was done.
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    /// The server says nothing any more. What the statement does may still be done.
    #[error("Postgres did not answer a statement within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection broke. What the statement does may be done.
    #[error("the connection to Postgres broke: {0}")]
    Broke(sqlx::Error),
    /// The server's own refusal. Nothing was done.
    #[error("{0}")]
    Failed(sqlx::Error),
}

impl RunError {
    /// Whether the same statement may do later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Acquire(_) | Self::Timeout(_) | Self::Broke(_) => true,
            Self::Failed(error) => fault::is_passing(error),
        }
    }
}

impl Postgres {
    /// The rows of a statement, which is prepared once on each connection. It must be harmless to run twice: a connection
    /// that worked a moment ago is not tried before it is used, so one that turns out to be broken is replaced and the
    /// statement run again.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn rows<'q>(
        &self,
        query: impl Fn() -> Query<'q, Driver, PgArguments>,
    ) -> Result<Vec<PgRow>, RunError> {
        for _ in 1..ATTEMPTS {
            match self.rows_once(query()).await {
                Err(RunError::Broke(_)) => {}
                rows => return rows,
            }
        }
        self.rows_once(query()).await
    }

    /// The same for a statement that is not harmless to run twice.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn rows_once(&self, query: Query<'_, Driver, PgArguments>) -> Result<Vec<PgRow>, RunError> {
        let mut connection = self.acquire().await?;
        let patience = self.spec().statement_time + SECOND_LINE;
        match timeout(patience, query.fetch_all(&mut *connection)).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) if self.saw(&error) => Err(RunError::Broke(error)),
            Ok(Err(error)) => Err(RunError::Failed(error)),
            Err(_) => {
                // Its answer may still come, and is nobody's.
                connection.close_on_drop();
                Err(RunError::Timeout(patience))
            }
        }
    }
}
