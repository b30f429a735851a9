//! Postgres: the host's own connections, its migrations, and whether the server is there.
//!
//! With `postgres.url`, a server that somebody else runs; without, a private cluster in the data folder
//! ([`PrivateError`] says what can stand in its way).

pub(crate) mod connect;
mod fault;
pub mod migrate;
mod private;
mod reach;
pub mod roles;
mod run;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};
use tokio_util::task::AbortOnDropHandle;

use crate::data::{DataError, DataFolder};
use crate::secret::Secret;
pub use private::PrivateError;
use private::Supervisor;
use reach::Reach;
pub use run::RunError;

/// How an address is written.
pub(crate) const EXAMPLE: &str = "postgres://user@host:5432/database?sslmode=verify-full";
/// The oldest major version of Postgres that berth works with.
pub const OLDEST: u32 = 14;
/// A connection that was used within this time is not tested before its next use.
const FRESH: Duration = Duration::from_secs(1);
/// How long a stop waits for connections that are in use.
const CLOSE: Duration = Duration::from_secs(2);

/// What the manifest says of Postgres.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresSpec {
    /// Where the server is; the private cluster if nowhere. May have a password in it.
    pub url: Option<Secret>,
    /// The file with the password of the login in `url`.
    pub password_file: Option<PathBuf>,
    /// Where the private cluster's programs are; looked for if it isn't said.
    pub bin_dir: Option<PathBuf>,
    /// The host's connections at once.
    pub connections: u32,
    /// Of these, how many are kept when nobody needs them.
    pub idle_connections: u32,
    /// How long the others are kept, and how long any connection lives.
    pub idle_time: Duration,
    /// How long a request waits for a connection.
    pub acquire_time: Duration,
    /// How long one statement may take, a plugin's or the host's own.
    pub statement_time: Duration,
    /// The connections of one plugin at once.
    pub plugin_connections: u32,
}

impl Default for PostgresSpec {
    fn default() -> Self {
        Self {
            url: None,
            password_file: None,
            bin_dir: None,
            connections: 25,
            idle_connections: 5,
            idle_time: Duration::from_secs(5 * 60),
            acquire_time: Duration::from_secs(5),
            statement_time: Duration::from_secs(10),
            plugin_connections: 8,
        }
    }
}

/// Why there is no database.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The address can't be read. Never says it, as it may have a password in it.
    #[error("postgres.url: {0}; it is like {EXAMPLE}")]
    Url(String),
    /// The password's file.
    #[error("postgres.password_file: {0}")]
    PasswordFile(DataError),
    /// No connection, or a login that may not do enough.
    #[error("Postgres at {at} can't be used: {reason}")]
    Connect {
        /// Host, port and database.
        at: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The private cluster.
    #[error(transparent)]
    Private(#[from] PrivateError),
    /// The tables.
    #[error(transparent)]
    Migrate(#[from] migrate::MigrateError),
    /// Hosts on one database derive the logins of plugins and the refresh tokens from one key.
    #[error(
        "the database at {at} belongs to a berth with another master.key than the one in {}: give every host on it the same master.key and tokens.json; if that key is lost for good, run `delete from berth.host_key`, which ends every session at its next refresh",
        folder.display()
    )]
    OtherKey {
        /// Host, port and database.
        at: String,
        /// The data folder.
        folder: PathBuf,
    },
    /// A statement at the start.
    #[error("Postgres at {at} can't be used: {reason}")]
    Start {
        /// Host, port and database.
        at: String,
        /// Why.
        reason: String,
    },
}

/// Why there is no connection at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// The server is not there.
    #[error("Postgres can't be reached")]
    Unreachable,
    /// All connections were in use for the whole of `postgres.acquire_time`.
    #[error("no connection to Postgres became free in time")]
    Timeout,
}

/// The database, with the host's own connections to it.
pub struct Postgres {
    pool: PgPool,
    options: PgConnectOptions,
    spec: PostgresSpec,
    version: String,
    reach: Arc<Reach>,
    private: Option<Supervisor>,
    _watch: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for Postgres {
    /// Without the driver's options, whose own `Debug` shows the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres")
            .field("at", &fault::place(&self.options))
            .field("version", &self.version)
            .field("reachable", &self.is_reachable())
            .finish_non_exhaustive()
    }
}

/// Numbers of the host's own connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolNumbers {
    /// Open.
    pub open: u32,
    /// Of these, not in use.
    pub idle: usize,
    /// At most.
    pub max: u32,
}

impl Postgres {
    /// Connect, starting the private cluster if there is no address, and bring the tables up to date. `plugins` is how
    /// many plugins will have connections of their own.
    ///
    /// # Errors
    /// See [`PostgresError`]. A private cluster that was started is stopped again.
    pub async fn start(spec: &PostgresSpec, data: &DataFolder, plugins: u32) -> Result<Self, PostgresError> {
        let reach = Arc::new(Reach::new());
        let (private, options) = match &spec.url {
            Some(url) => (None, connect::options(spec, url)?),
            None => {
                let connections = spec
                    .connections
                    .saturating_add(spec.plugin_connections.saturating_mul(plugins));
                let bin_dir = spec.bin_dir.as_deref();
                let (private, options) = private::start(data, bin_dir, connections, &reach).await?;
                (Some(private), options)
            }
        };
        match open(spec, &options, &reach, data, plugins > 0).await {
            Ok((pool, version)) => Ok(Self {
                _watch: AbortOnDropHandle::new(tokio::spawn(reach::watch(
                    options.clone(),
                    Arc::clone(&reach),
                ))),
                pool,
                options,
                spec: spec.clone(),
                version,
                reach,
                private,
            }),
            Err(error) => {
                if let Some(private) = private {
                    private.stop().await;
                }
                Err(error)
            }
        }
    }

    /// One that is thought to be there and has never been asked.
    #[cfg(test)]
    pub(crate) fn untried(spec: &PostgresSpec, url: &Secret) -> Self {
        let options = connect::options(spec, url).unwrap();
        let reach = Arc::new(Reach::new());
        Self {
            pool: pool_options(spec, &reach).connect_lazy_with(options.clone()),
            options,
            spec: spec.clone(),
            version: "15.18".to_owned(),
            reach,
            private: None,
            _watch: AbortOnDropHandle::new(tokio::spawn(std::future::ready(()))),
        }
    }

    /// A connection of the host's own. Fails at once while the server is known to be gone.
    ///
    /// # Errors
    /// See [`AcquireError`].
    pub async fn acquire(&self) -> Result<PoolConnection<sqlx::Postgres>, AcquireError> {
        if !self.is_reachable() {
            return Err(AcquireError::Unreachable);
        }
        tokio::select! {
            acquired = self.pool.acquire() => acquired.map_err(|error| {
                self.saw(&error);
                match error {
                    sqlx::Error::PoolTimedOut if self.is_reachable() => AcquireError::Timeout,
                    _ => AcquireError::Unreachable,
                }
            }),
            () = self.reach.until_lost() => Err(AcquireError::Unreachable),
        }
    }

    /// Be told of an error of a connection. If it says that the connection is gone, the server is asked at once and older
    /// connections are tested before they are used again. True if it does.
    pub fn saw(&self, error: &sqlx::Error) -> bool {
        let loss = fault::is_loss(error);
        if loss {
            self.reach.broke();
        }
        loss
    }

    /// The host's own connections, for what needs more than one statement; see [`Postgres::rows`].
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
        self.reach.is_reachable()
    }

    /// The server's version when it was first reached, as in `15.18`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// `private` or `server`.
    pub const fn kind(&self) -> &'static str {
        match self.private {
            Some(_) => "private",
            None => "server",
        }
    }

    /// How often the private cluster's server was started again.
    pub fn restarts(&self) -> u64 {
        self.private.as_ref().map_or(0, Supervisor::restarts)
    }

    /// The host's own connections in numbers.
    pub fn numbers(&self) -> PoolNumbers {
        PoolNumbers {
            open: self.pool.size(),
            idle: self.pool.num_idle(),
            max: self.spec.connections,
        }
    }

    /// Close the connections, and stop the private cluster.
    pub async fn stop(&self) {
        if tokio::time::timeout(CLOSE, self.pool.close()).await.is_err() {
            tracing::debug!(target: "berth::postgres", "connections to Postgres were still in use at the stop");
        }
        if let Some(private) = &self.private {
            private.stop().await;
        }
    }
}

/// The folder of the sockets by which the connections of plugins go through this process.
///
/// # Errors
/// It can't be made, or is somebody else's.
pub(crate) fn relays(data: &DataFolder) -> Result<PathBuf, PrivateError> {
    private::relays(data)
}

/// Check the server, bring its tables up to date, and open the pool.
async fn open(
    spec: &PostgresSpec,
    options: &PgConnectOptions,
    reach: &Arc<Reach>,
    data: &DataFolder,
    logins: bool,
) -> Result<(PgPool, String), PostgresError> {
    let (connection, version) = connect::first(options, logins).await?;
    migrate::run(connection).await?;
    // The server ends a statement by itself, so that nothing is done that nobody waits for any more.
    let statement_time = spec.statement_time.as_millis().to_string();
    let ours = options.clone().options([("statement_timeout", statement_time)]);
    let pool = pool_options(spec, reach)
        .connect_with(ours)
        .await
        .map_err(|error| PostgresError::Connect {
            at: fault::place(options),
            reason: fault::reason(&error, options),
        })?;
    same_key(&pool, options, data).await?;
    Ok((pool, version))
}

/// The first host leaves the mark of its key, which says nothing of the key; every other one compares.
async fn same_key(pool: &PgPool, options: &PgConnectOptions, data: &DataFolder) -> Result<(), PostgresError> {
    let ours = data.derive("berth database mark v1");
    let theirs = async {
        sqlx::query("insert into berth.host_key (fingerprint) values ($1) on conflict do nothing")
            .bind(ours.expose())
            .execute(pool)
            .await?;
        sqlx::query_scalar::<_, Vec<u8>>("select fingerprint from berth.host_key")
            .fetch_one(pool)
            .await
    };
    let theirs = theirs.await.map_err(|error| PostgresError::Start {
        at: fault::place(options),
        reason: fault::reason(&error, options),
    })?;
    if theirs == ours.expose() {
        return Ok(());
    }
    Err(PostgresError::OtherKey {
        at: fault::place(options),
        folder: data.path().to_owned(),
    })
}

/// Waiting is bounded, and no connection is given out that broke while nobody used it.
fn pool_options(spec: &PostgresSpec, reach: &Arc<Reach>) -> PgPoolOptions {
    let reach = Arc::clone(reach);
    PgPoolOptions::new()
        .max_connections(spec.connections)
        .min_connections(spec.idle_connections.min(spec.connections))
        .idle_timeout(spec.idle_time)
        .max_lifetime(spec.idle_time)
        .acquire_timeout(spec.acquire_time)
        // The driver's own test is a round trip before every use; a connection that worked a moment ago needs none.
        .test_before_acquire(false)
        .before_acquire(move |connection: &mut PgConnection, about| {
            let doubtful = about.idle_for > FRESH || reach.broke_within(about.age);
            // False for one that is broken, which is expected after an outage and not worth the driver's warning.
            Box::pin(async move { Ok(!doubtful || connection.ping().await.is_ok()) })
        })
}

/// The password in an address, as it is written there.
pub(crate) fn password_of(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split(['/', '?', '#']).next()?;
    let from_login = authority
        .rsplit_once('@')
        .and_then(|(login, _)| Some(login.split_once(':')?.1));
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    let query = query.split('#').next().unwrap_or_default();
    let from_query = || query.split('&').find_map(|pair| pair.strip_prefix("password="));
    from_login.or_else(from_query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_of_an_address_is_found_wherever_it_is() {
        for (url, password) in [
            ("postgres://ada:hunter2@host/app", Some("hunter2")),
            ("postgres://ada:hun@ter2@host/app", Some("hun@ter2")),
            ("postgresql://host/app?user=ada&password=hunter2", Some("hunter2")),
            ("postgres://ada@host:5432/app?sslmode=require", None),
            ("postgres://host:5432", None),
            ("nonsense", None),
        ] {
            assert_eq!(password_of(url), password, "{url}");
        }
    }

    #[test]
    fn debug_of_the_settings_has_no_password() {
        let spec = PostgresSpec {
            url: Some(Secret::new("postgres://ada:hunter2@host/app")),
            ..PostgresSpec::default()
        };
        assert!(!format!("{spec:?}").contains("hunter2"));
    }
}
