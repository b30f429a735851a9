//! Running one statement on the host's pool.

use std::sync::Arc;

use sqlx::Postgres as Driver;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use tokio::time::timeout;

use crate::identity::Unavailable;
use crate::postgres::Postgres;

/// How often a statement is tried whose connection breaks. When a server ends all of them, the second may still look whole
/// and end in the next moment.
const ATTEMPTS: u32 = 3;

#[derive(Debug)]
pub(super) struct Store {
    postgres: Arc<Postgres>,
}

impl Store {
    pub(super) fn new(postgres: Arc<Postgres>) -> Self {
        Self { postgres }
    }

    /// The rows of a statement, which is prepared once on each connection. It must be harmless to run twice: a connection
    /// that worked a moment ago is not tried before it is used, so one that turns out to be broken is replaced and the
    /// statement run again.
    pub(super) async fn rows<'q>(
        &self,
        query: impl Fn() -> Query<'q, Driver, PgArguments>,
    ) -> Result<Vec<PgRow>, Unavailable> {
        for _ in 0..ATTEMPTS {
            match self.once(query()).await? {
                Err(error) if self.postgres.saw(&error) => {}
                rows => return rows.map_err(|error| self.failed(&error)),
            }
        }
        // Whoever watches the server says so if it is gone.
        Err(Unavailable)
    }

    async fn once(
        &self,
        query: Query<'_, Driver, PgArguments>,
    ) -> Result<Result<Vec<PgRow>, sqlx::Error>, Unavailable> {
        let mut connection = self.postgres.acquire().await.map_err(|_| Unavailable)?;
        let patience = self.postgres.spec().statement_time;
        let rows = timeout(patience, query.fetch_all(&mut *connection)).await;
        rows.map_err(|_| {
            tracing::error!(
                target: "berth::identity",
                "a statement of the identity store took longer than {} ms",
                patience.as_millis(),
            );
            // Its answer may still come, and is nobody's.
            connection.close_on_drop();
            Unavailable
        })
    }

    /// Say what is wrong with a statement or its rows: a fault of ours, or of somebody who changed the tables.
    pub(super) fn failed(&self, error: &sqlx::Error) -> Unavailable {
        tracing::error!(target: "berth::identity", %error, "a statement of the identity store failed");
        Unavailable
    }
}
