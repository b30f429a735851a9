//! Running one statement on the host's pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, Postgres as Driver};

use crate::identity::Unavailable;
use crate::postgres::Postgres;
use crate::tokens::now;

/// Between two log lines about a database that can't be reached, in seconds.
const TELL_EVERY: u64 = 5;

#[derive(Debug)]
pub(super) struct Store {
    postgres: Arc<Postgres>,
    told: AtomicU64,
}

impl Store {
    pub(super) fn new(postgres: Arc<Postgres>) -> Self {
        Self {
            postgres,
            told: AtomicU64::new(0),
        }
    }

    /// The rows of a statement, which is prepared once on each connection. It must be harmless to run twice: connections
    /// are not tried before they are used, which would double the round trips of every request, so one that turns out to
    /// be broken is replaced and the statement run again.
    pub(super) async fn rows<'q>(
        &self,
        query: impl Fn() -> Query<'q, Driver, PgArguments>,
    ) -> Result<Vec<PgRow>, Unavailable> {
        match self.once(query()).await {
            Err(error) if is_broken(&error) => {
                self.drop_broken().await;
                self.once(query()).await.map_err(|error| self.failed(&error))
            }
            rows => rows.map_err(|error| self.failed(&error)),
        }
    }

    async fn once(&self, query: Query<'_, Driver, PgArguments>) -> Result<Vec<PgRow>, sqlx::Error> {
        query.fetch_all(self.postgres.pool()).await
    }

    /// After a restart of the server all idle connections are as broken as the first.
    async fn drop_broken(&self) {
        let pool = self.postgres.pool();
        for _ in 0..pool.num_idle() {
            let Some(mut connection) = pool.try_acquire() else {
                return;
            };
            if connection.ping().await.is_ok() {
                return;
            }
            connection.close_on_drop();
        }
    }

    /// Say what went wrong: a fault of ours always, an outage now and then.
    pub(super) fn failed(&self, error: &sqlx::Error) -> Unavailable {
        let outage = is_broken(error) || matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed);
        if !outage {
            tracing::error!(target: "berth::identity", %error, "a statement of the identity store failed");
            return Unavailable;
        }
        let (now, told) = (now(), self.told.load(Ordering::Relaxed));
        let due = now >= told.saturating_add(TELL_EVERY);
        if due
            && self
                .told
                .compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            tracing::warn!(target: "berth::identity", %error, "Postgres can't be reached");
        }
        Unavailable
    }
}

/// The connection is of no use any more. Class 57P is a server that stops or starts.
fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
}
