//! The connections of one plugin, as its own role.
//!
//! A pool of our own and not the driver's, because of one rule: **a connection whose call did not end is ended on the
//! server and never used again**, whatever future was dropped where. Here a connection belongs to the task that uses it,
//! and only [`Connection::give_back`] lets anybody else have it.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection as _, Row};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::errors::{Failed, Left};
use super::relay::{Relay, Relays};
use super::run::MAX_BYTES;
use crate::caps::bindings::berth::host::sql::Error;
use crate::metrics::SqlMetrics;
use crate::postgres::{Postgres, PostgresSpec};

/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 64;
/// How long the tidying of a connection may take.
const TIDY: Duration = Duration::from_secs(5);
/// A connection that has waited longer is asked whether it still is one.
const TRUSTED: Duration = Duration::from_secs(1);
/// How long to wait for a connection that is being cleaned, which takes a tenth of a millisecond; a new one takes some.
const SOON: Duration = Duration::from_millis(10);
/// The SQLSTATE when a role has too many connections.
const TOO_MANY: &str = "53300";
/// How long to wait before another attempt to connect.
const RETRY: Duration = Duration::from_millis(100);
/// Names of types that are remembered.
const NAMES: usize = 1_024;
/// How much later than the host the server itself gives up.
const SECOND_LINE: Duration = Duration::from_secs(1);

/// Everything that `DISCARD ALL` does but for forgetting prepared statements and plans, and whether no transaction is
/// open: then this one has just begun.
const CLEAN: &str = "RESET SESSION AUTHORIZATION; RESET ALL; CLOSE ALL; UNLISTEN *; DISCARD TEMP; DISCARD SEQUENCES; \
    SELECT pg_catalog.pg_advisory_unlock_all(), pg_catalog.now() = pg_catalog.statement_timestamp()";

/// The connections of one plugin.
pub struct Pool {
    plugin: String,
    relays: Relays,
    host: Arc<Postgres>,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    /// Whether somebody looks after the idle ones.
    watched: AtomicBool,
    /// Connections that are being cleaned, and a bell for whoever waits for one of them.
    tidying: AtomicUsize,
    tidied: Notify,
    /// Raised whenever the plugin changes its tables or types: what was prepared before may not fit.
    definitions: AtomicU64,
    names: Mutex<HashMap<u32, Arc<str>>>,
    last_complaint: Mutex<Option<Instant>>,
    /// What is counted.
    pub metrics: Arc<SqlMetrics>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("plugin", &self.plugin)
            .finish_non_exhaustive()
    }
}

struct Live {
    connection: PgConnection,
    relay: Relay,
    _open: Open,
    /// The server's process.
    pid: i32,
    born: Instant,
    definitions: u64,
}

/// An open connection in the metrics. Counted as closed when dropped.
struct Open(Arc<SqlMetrics>);

impl Open {
    fn new(metrics: &Arc<SqlMetrics>) -> Self {
        metrics.opened();
        Self(Arc::clone(metrics))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed();
    }
}

struct Idle {
    live: Live,
    since: Instant,
}

impl Pool {
    /// Of a plugin's role, with a search path. Connects when somebody needs it, by way of sockets in a folder that is the
    /// host's alone.
    pub(crate) fn new(
        plugin: &str,
        options: PgConnectOptions,
        schemas: &[String],
        host: &Arc<Postgres>,
        sockets: &Path,
        idle_in_transaction: Duration,
    ) -> Self {
        let spec = host.spec();
        let milliseconds = |time: Duration| (time + SECOND_LINE).as_millis().to_string();
        // As options of the start they are also what RESET goes back to.
        let options = options
            .application_name(&format!("berth {plugin}"))
            .statement_cache_capacity(STATEMENTS)
            .disable_statement_logging()
            .options([
                ("search_path", schemas.join(",")),
                ("statement_timeout", milliseconds(spec.statement_time)),
                (
                    "idle_in_transaction_session_timeout",
                    milliseconds(idle_in_transaction),
                ),
                ("client_min_messages", "error".to_owned()),
            ]);
        Self {
            plugin: plugin.to_owned(),
            relays: Relays::new(sockets, options),
            places: Arc::new(Semaphore::new(spec.plugin_connections as usize)),
            host: Arc::clone(host),
            idle: Mutex::default(),
            watched: AtomicBool::new(false),
            tidying: AtomicUsize::new(0),
            tidied: Notify::new(),
            definitions: AtomicU64::new(0),
            names: Mutex::default(),
            last_complaint: Mutex::default(),
            metrics: Arc::default(),
        }
    }

    pub(super) fn spec(&self) -> &PostgresSpec {
        self.host.spec()
    }

    /// Whether the plugin's role can log in.
    ///
    /// # Errors
    /// The driver's words.
    pub(crate) async fn probe(self: &Arc<Self>) -> Result<(), sqlx::Error> {
        let live = self.connect().await?;
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| sqlx::Error::PoolClosed)?;
        self.lend(live, place).give_back().await;
        Ok(())
    }

    /// A connection of the caller's own.
    ///
    /// # Errors
    /// None became free in time, or the server can't be reached.
    pub(super) async fn acquire(self: &Arc<Self>) -> Result<Connection, Error> {
        let deadline = Instant::now() + self.spec().acquire_time;
        let place = timeout(self.spec().acquire_time, Arc::clone(&self.places).acquire_owned());
        let Ok(place) = place.await else {
            return Err(Error::PoolTimeout);
        };
        let place = place.map_err(|_| Error::Unavailable)?;
        match timeout(deadline.saturating_duration_since(Instant::now()), self.find()).await {
            Ok(Ok(live)) => Ok(self.lend(live, place)),
            Ok(Err(error)) => {
                self.complain(&error);
                Err(Error::Unavailable)
            }
            Err(_) => Err(Error::Unavailable),
        }
    }

    /// A connection that waits, or a new one.
    async fn find(&self) -> Result<Live, sqlx::Error> {
        while let Some(waiting) = self.take_idle().await {
            let mut live = waiting.live;
            if waiting.since.elapsed() < TRUSTED
                || matches!(timeout(TRUSTED, live.connection.ping()).await, Ok(Ok(())))
            {
                return Ok(live);
            }
        }
        loop {
            match self.connect().await {
                // The server has not noticed yet that another connection has gone.
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(TOO_MANY) => {
                    sleep(RETRY).await;
                }
                connected => return connected,
            }
        }
    }

    /// One that waits, or will in a moment.
    async fn take_idle(&self) -> Option<Idle> {
        let mut tidied = pin!(self.tidied.notified());
        // Armed before looking, so that nothing is missed in between.
        tidied.as_mut().enable();
        let waiting = self.idle().pop();
        if waiting.is_some() || self.tidying.load(Ordering::Acquire) == 0 {
            return waiting;
        }
        // Whether in time or not, a look tells.
        let _ = timeout(SOON, tidied).await;
        self.idle().pop()
    }

    async fn connect(&self) -> Result<Live, sqlx::Error> {
        let (relay, options) = self.relays.open()?;
        let (relay, mut connection) = tokio::try_join!(
            async { relay.begin().await.map_err(sqlx::Error::Io) },
            options.connect()
        )?;
        let open = Open::new(&self.metrics);
        let pid = sqlx::raw_sql("select pg_catalog.pg_backend_pid()::text")
            .fetch_one(&mut connection)
            .await?;
        let pid: String = pid.try_get(0)?;
        let pid = pid
            .parse()
            .map_err(|_| sqlx::Error::Protocol("a process has no number".to_owned()))?;
        Ok(Live {
            connection,
            relay,
            _open: open,
            pid,
            born: Instant::now(),
            definitions: self.definitions(),
        })
    }

    fn lend(self: &Arc<Self>, live: Live, place: OwnedSemaphorePermit) -> Connection {
        Connection {
            pool: Arc::clone(self),
            live: Some(live),
            place: Some(place),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn definitions(&self) -> u64 {
        self.definitions.load(Ordering::Relaxed)
    }

    /// The plugin has changed tables or types.
    pub(super) fn redefined(&self) {
        self.definitions.fetch_add(1, Ordering::Relaxed);
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The name of a type, if it is remembered.
    pub(super) fn name(&self, oid: u32) -> Option<Arc<str>> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(&oid).cloned()
    }

    /// Remember the name of a type.
    pub(super) fn remember(&self, oid: u32, name: &Arc<str>) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES {
            names.clear();
        }
        names.insert(oid, Arc::clone(name));
    }

    /// Close what waits.
    pub(crate) fn close(&self) {
        self.idle().clear();
    }

    /// Say why there is no connection, at most once a minute.
    fn complain(&self, error: &sqlx::Error) {
        let mut last = self.last_complaint.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|at| at.elapsed() > Duration::from_secs(60)) {
            *last = Some(Instant::now());
            tracing::warn!(target: "berth::sql", plugin = self.plugin, %error, "the plugin's role can't connect to Postgres");
        }
    }

    /// End a connection on the server, whatever it does there.
    async fn end(&self, live: Live) {
        self.metrics.cancelled();
        let end = sqlx::query("select pg_catalog.pg_terminate_backend($1)").bind(live.pid);
        if let Err(error) = self.host.rows_once(end).await {
            // The server's own timeouts are left then.
            tracing::warn!(target: "berth::sql", plugin = self.plugin, %error, "a statement that nobody waits for can't be ended");
        }
        // Only now: as long as the connection is open, its process number is its own.
        drop(live);
    }

    /// Close what nobody has needed for long, until nothing is left; one task at a time.
    fn watch(self: &Arc<Self>) {
        if self.watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let pool: Weak<Self> = Arc::downgrade(self);
        let patience = self.spec().idle_time;
        tokio::spawn(async move {
            loop {
                sleep(patience).await;
                let Some(pool) = pool.upgrade() else { return };
                let mut idle = pool.idle();
                idle.retain(|idle| idle.since.elapsed() < patience);
                if idle.is_empty() {
                    // Under the lock, under which this is called as well.
                    pool.watched.store(false, Ordering::Release);
                    return;
                }
            }
        });
    }
}

/// A connection is being cleaned. Dropped, it is no longer.
struct Tidying(Arc<Pool>);

impl Tidying {
    fn begin(pool: &Arc<Pool>) -> Self {
        pool.tidying.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(pool))
    }
}

impl Drop for Tidying {
    fn drop(&mut self) {
        self.0.tidying.fetch_sub(1, Ordering::AcqRel);
        self.0.tidied.notify_waiters();
    }
}

/// A connection that is lent. Dropped, it is ended on the server.
pub(super) struct Connection {
    pool: Arc<Pool>,
    live: Option<Live>,
    place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// The driver's connection; nothing after its end.
    pub(super) fn driver(&mut self) -> Option<&mut PgConnection> {
        self.live.as_mut().map(|live| &mut live.connection)
    }

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// A call on it has failed: whether that is because the relay has cut it.
    pub(super) fn judge(&self, failed: Failed) -> Failed {
        let cut = self.live.as_ref().is_some_and(|live| live.relay.was_cut());
        match failed.left {
            Left::Broken if cut => Failed::too_much(Error::TooManyBytes(MAX_BYTES as u64)),
            _ => failed,
        }
    }

    /// Forget what was prepared if it may no longer fit.
    pub(super) async fn refresh(&mut self) -> Result<(), Failed> {
        let definitions = self.pool.definitions();
        match &self.live {
            Some(live) if live.definitions != definitions => self.forget().await,
            _ => Ok(()),
        }
    }

    /// Forget what was prepared.
    pub(super) async fn forget(&mut self) -> Result<(), Failed> {
        if let Some(live) = &mut self.live {
            live.definitions = self.pool.definitions.load(Ordering::Relaxed);
            live.connection.clear_cached_statements().await?;
        }
        Ok(())
    }

    /// Clean it and let another call have it; close it if it isn't clean then.
    pub(super) async fn give_back(mut self) {
        let Some(mut live) = self.live.take() else { return };
        let _tidying = Tidying::begin(&self.pool);
        let clean = timeout(TIDY, async {
            let row = sqlx::raw_sql(CLEAN).fetch_one(&mut live.connection).await?;
            let idle: String = row.try_get_unchecked(1)?;
            Ok::<_, sqlx::Error>(idle == "t")
        });
        match clean.await {
            Ok(Ok(true)) => {
                let pool = &self.pool;
                if live.born.elapsed() > pool.spec().idle_time {
                    let _ = timeout(TIDY, live.connection.close()).await;
                    return;
                }
                let mut idle = pool.idle();
                pool.watch();
                idle.push(Idle {
                    live,
                    since: Instant::now(),
                });
                drop(idle);
                // Its place last, so that whoever gets it finds the connection.
                drop(self.place.take());
            }
            Ok(Ok(false) | Err(_)) | Err(_) => self.pool.end(live).await,
        }
    }

    /// Close it: the server has ended it, or nobody knows.
    pub(super) fn close(mut self) {
        self.live = None;
    }

    /// End on the server whatever it does, and close it.
    pub(super) async fn end(mut self) {
        if let Some(live) = self.live.take() {
            self.pool.end(live).await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(live) = self.live.take() else { return };
        let (pool, place) = (Arc::clone(&self.pool), self.place.take());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                pool.end(live).await;
                drop(place);
            });
        }
    }
}
