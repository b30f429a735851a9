//! Postgres: the host's own connections, its migrations, and whether the server is there.
//!
//! With `postgres.url`, a server that somebody else runs; without, a private cluster in the data folder.

pub mod migrate;
pub mod roles;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::data::DataFolder;
use crate::secret::Secret;

/// What the manifest says of Postgres.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresSpec {
    /// Where the server is; the private cluster if nowhere. Has a password in it.
    pub url: Option<Secret>,
    /// The host's connections at once.
    pub connections: u32,
    /// Of these, how many are kept when nobody needs them.
    pub idle_connections: u32,
    /// How long the others are kept, and how long any connection lives.
    pub idle_time: Duration,
    /// How long a request waits for a connection.
    pub acquire_time: Duration,
    /// How long one statement of a plugin may take.
    pub statement_time: Duration,
    /// The connections of one plugin at once.
    pub plugin_connections: u32,
}

/// Why there is no database.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The address can't be read. Never says it, as it has a password in it.
    #[error("postgres.url: {0}; it is like postgres://user:password@host:5432/database?sslmode=verify-full")]
    Url(String),
    /// No connection.
    #[error("Postgres at {at} can't be used: {reason}")]
    Connect {
        /// Host, port and database.
        at: String,
        /// The driver's words.
        reason: String,
    },
    /// The tables.
    #[error(transparent)]
    Migrate(#[from] migrate::MigrateError),
}

/// The database, with the host's own connections to it.
#[derive(Debug)]
pub struct Postgres {
    pool: PgPool,
    options: PgConnectOptions,
    spec: PostgresSpec,
    reachable: AtomicBool,
}

impl Postgres {
    /// Connect, starting the private cluster if there is no address, and bring the tables up to date.
    ///
    /// # Errors
    /// See [`PostgresError`].
    pub async fn start(spec: &PostgresSpec, _data: &DataFolder) -> Result<Self, PostgresError> {
        let url = spec.url.as_ref().and_then(Secret::expose_text);
        let options: PgConnectOptions = url
            .unwrap_or_default()
            .parse()
            .map_err(|error: sqlx::Error| PostgresError::Url(error.to_string()))?;
        let options = options.application_name("berth");
        let pool = PgPoolOptions::new()
            .max_connections(spec.connections)
            .min_connections(spec.idle_connections.min(spec.connections))
            .idle_timeout(spec.idle_time)
            .max_lifetime(spec.idle_time)
            .acquire_timeout(spec.acquire_time)
            .connect_with(options.clone())
            .await
            .map_err(|error| PostgresError::Connect {
                at: format!("{}:{}", options.get_host(), options.get_port()),
                reason: error.to_string(),
            })?;
        migrate::run(&pool).await?;
        Ok(Self {
            pool,
            options,
            spec: spec.clone(),
            reachable: AtomicBool::new(true),
        })
    }

    /// The host's own connections.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// How the server is reached, with the host's login.
    pub fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    /// What the manifest says.
    pub fn spec(&self) -> &PostgresSpec {
        &self.spec
    }

    /// Whether the server answered when it was last asked.
    pub fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Close the connections, and stop the private cluster.
    pub async fn stop(&self) {
        self.pool.close().await;
    }
}
