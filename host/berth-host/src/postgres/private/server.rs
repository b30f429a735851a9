//! One server process of the cluster: start, readiness, end.

use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::log::{Tail, follow};
use super::{Cluster, DATABASE, MAINTENANCE, PrivateError, initialise, io_error, leftovers, socket};
use crate::postgres::fault;

/// How long a server may take until it lets us in. Long, because after a crash it first repeats what it had written.
const READY: Duration = Duration::from_secs(10 * 60);
/// After this long the log says that it is still waited for.
const SLOW: Duration = Duration::from_secs(5);
/// How long the log of a server that has ended may take to be read to its end.
const WORDS: Duration = Duration::from_secs(1);
/// How often it is tried to connect to a server that starts.
const TRY: Duration = Duration::from_millis(20);
/// How long one try may take.
const CONNECT: Duration = Duration::from_secs(30);
/// How long a stop may take in the server's own way: it ends all sessions and writes everything down.
const FAST: Duration = Duration::from_secs(30);
/// How long it may take when it is told to stop at once.
const QUICK: Duration = Duration::from_secs(5);

/// A running server. Told to stop when it is dropped, but waited for only by [`Server::stop`].
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    tail: Tail,
    /// Ends when nobody is left who could write to its log.
    reader: JoinHandle<()>,
}

impl Server {
    /// Clear away what an earlier server left, start one, and wait until it lets us in.
    pub(super) async fn start(cluster: &Cluster) -> Result<Self, PrivateError> {
        leftovers::clear(&cluster.folder, &cluster.socket).await?;
        let mut server = Self::spawn(cluster)?;
        let started = Instant::now();
        let ready = tokio::time::timeout(READY, server.ready(cluster)).await;
        let failed = match ready {
            Ok(Ok(())) => {
                tracing::debug!(
                    target: "berth::postgres",
                    took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                    "the private Postgres is ready",
                );
                return Ok(server);
            }
            Ok(Err(error)) => error,
            Err(_) => unusable(
                cluster,
                format!("it isn't ready after {} minutes", READY.as_secs() / 60),
            ),
        };
        server.stop().await;
        Err(failed)
    }

    fn spawn(cluster: &Cluster) -> Result<Self, PrivateError> {
        let program = cluster.binaries.postgres();
        let mut postgres = Command::new(&program);
        postgres.arg("-D").arg(&cluster.folder);
        postgres.arg("-c").arg(socket::setting(&cluster.socket));
        let max_connections = format!("max_connections={}", cluster.max_connections);
        let port = format!("port={}", super::PORT);
        for setting in [&max_connections, &port]
            .into_iter()
            .map(String::as_str)
            .chain(SETTINGS)
        {
            postgres.args(["-c", setting]);
        }
        initialise::environment(&mut postgres)
            .current_dir("/")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(account) = &cluster.account {
            account.apply(&mut postgres);
        }
        let mut child = postgres.spawn().map_err(io_error(&program, "can't be run"))?;
        let tail = Tail::default();
        let stream = child.stderr.take();
        let into = tail.clone();
        let reader = tokio::spawn(async move {
            if let Some(stream) = stream {
                follow(stream, into).await;
            }
        });
        Ok(Self { child, tail, reader })
    }

    /// Wait until it lets us in, and make our database if it isn't there.
    async fn ready(&mut self, cluster: &Cluster) -> Result<(), PrivateError> {
        let options = cluster.options(MAINTENANCE);
        let started = Instant::now();
        let mut tries = tokio::time::interval(TRY);
        tries.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = false;
        loop {
            tokio::select! {
                status = self.child.wait() => return Err(PrivateError::Died {
                    folder: cluster.folder.clone(),
                    status: describe(status),
                    said: self.last_words().await,
                }),
                _ = tries.tick() => {}
            }
            match tokio::time::timeout(CONNECT, options.connect()).await {
                Ok(Ok(connection)) => return make_database(cluster, connection).await,
                Ok(Err(error)) if fault::is_starting(&error) => {}
                Ok(Err(error)) => return Err(unusable(cluster, fault::reason(&error, &options))),
                Err(_) => {
                    return Err(unusable(
                        cluster,
                        "it accepts a connection and says nothing".to_owned(),
                    ));
                }
            }
            if !told && started.elapsed() > SLOW {
                told = true;
                tracing::info!(target: "berth::postgres", said = self.tail.text(), "the private Postgres isn't ready yet and is waited for");
            }
        }
    }

    /// Wait for its end, which nobody asked for, and say how it ended.
    pub(super) async fn ended(&mut self) -> String {
        describe(self.child.wait().await)
    }

    /// The last lines of its log, once it has ended.
    pub(super) async fn last_words(&mut self) -> String {
        // A backend that outlives its server holds the log open; what was said until now has to do then.
        let _ = tokio::time::timeout(WORDS, &mut self.reader).await;
        self.tail.text()
    }

    /// Stop it: first in its own way, then at once.
    pub(super) async fn stop(mut self) {
        for (signal, patience) in [(Signal::INT, FAST), (Signal::QUIT, QUICK), (Signal::KILL, QUICK)] {
            self.signal(signal);
            if tokio::time::timeout(patience, self.child.wait()).await.is_ok() {
                return;
            }
            tracing::warn!(
                target: "berth::postgres",
                "the private Postgres did not stop within {} s and is told to more sharply; it will repair itself at the next start",
                patience.as_secs(),
            );
        }
    }

    fn signal(&self, signal: Signal) {
        // No id any more: it has ended and was waited for.
        let pid = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, signal)
        {
            tracing::warn!(target: "berth::postgres", %error, "the private Postgres can't be signalled");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::INT);
        }
    }
}

/// What berth needs, whatever `postgresql.conf` says. The log has levels and short messages only: a statement, its
/// parameters or the values in a message's detail may be secrets, and an error's own words go to whoever made it.
const SETTINGS: [&str; 23] = [
    // Of one process, in files that are gone with its statement: a plugin's sort must not fill the disk of all.
    "temp_file_limit=1GB",
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "fsync=on",
    "full_page_writes=on",
    "synchronous_commit=on",
    "cluster_name=berth",
    "timezone=UTC",
    "log_timezone=UTC",
    "lc_messages=C",
    "logging_collector=off",
    "log_destination=stderr",
    "log_line_prefix=",
    "log_min_messages=log",
    "log_min_error_statement=panic",
    "log_error_verbosity=terse",
    "log_statement=none",
    "log_duration=off",
    "log_min_duration_statement=-1",
    "log_min_duration_sample=-1",
    "log_transaction_sample_rate=0",
    "log_parameter_max_length=0",
    "log_parameter_max_length_on_error=0",
];

async fn make_database(cluster: &Cluster, mut connection: PgConnection) -> Result<(), PrivateError> {
    let made = async {
        let there: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(DATABASE)
            .fetch_one(&mut connection)
            .await?;
        if !there {
            sqlx::raw_sql(AssertSqlSafe(format!("create database {DATABASE}")))
                .execute(&mut connection)
                .await?;
        }
        connection.close().await
    };
    made.await
        .map_err(|error| unusable(cluster, fault::reason(&error, &cluster.options(MAINTENANCE))))
}

fn unusable(cluster: &Cluster, reason: String) -> PrivateError {
    PrivateError::Unusable {
        folder: cluster.folder.clone(),
        reason,
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}
