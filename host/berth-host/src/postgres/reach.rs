//! Whether the server is there: asked every other second on a connection of its own, and at once when somebody's
//! connection breaks. `/health` and every request read the answer without waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::sync::{Notify, watch};

use super::fault;

/// How often a server that answers is asked.
const PERIOD: Duration = Duration::from_secs(2);
/// How often one that doesn't is tried.
const RETRY: Duration = Duration::from_millis(250);
/// The least time between two questions, however many connections break.
const REST: Duration = Duration::from_millis(20);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of the server.
#[derive(Debug)]
pub(super) struct Reach {
    reachable: watch::Sender<bool>,
    /// Somebody has a reason to doubt.
    doubt: Notify,
    began: Instant,
    /// When a connection was last known to be broken, in milliseconds since `began` and one.
    broken: AtomicU64,
}

impl Reach {
    /// Of a server that has just answered.
    pub(super) fn new() -> Self {
        Self {
            reachable: watch::Sender::new(true),
            doubt: Notify::new(),
            began: Instant::now(),
            broken: AtomicU64::new(0),
        }
    }

    pub(super) fn is_reachable(&self) -> bool {
        *self.reachable.borrow()
    }

    /// Ask the server now.
    pub(super) fn check(&self) {
        self.doubt.notify_one();
    }

    /// A connection has broken: older ones may have as well.
    pub(super) fn broke(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.broken.store(now.saturating_add(1), Ordering::Relaxed);
        self.check();
    }

    /// Whether anything has broken since a connection of this age was made.
    pub(super) fn broke_within(&self, age: Duration) -> bool {
        let broken = self.broken.load(Ordering::Relaxed);
        let made = self.began.elapsed().saturating_sub(age);
        broken > 0 && u128::from(broken) >= made.as_millis()
    }

    /// The server is gone.
    pub(super) fn lost(&self, reason: &str) {
        self.broke();
        if self.reachable.send_replace(false) {
            tracing::warn!(target: "berth::postgres", reason, "Postgres can't be reached");
        }
    }

    fn found(&self, since: Instant) {
        if !self.reachable.send_replace(true) {
            tracing::info!(
                target: "berth::postgres",
                after_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
                "Postgres can be reached again",
            );
        }
    }

    /// Wait until the server is known to be gone.
    pub(super) async fn until_lost(&self) {
        let mut reachable = self.reachable.subscribe();
        // The sender is `self`, so it is there.
        let _ = reachable.wait_for(|reachable| !reachable).await;
    }
}

/// Ask the server for as long as this is polled.
pub(super) async fn watch(options: PgConnectOptions, reach: Arc<Reach>) {
    let mut connection: Option<PgConnection> = None;
    let mut answered = Instant::now();
    loop {
        let pause = if reach.is_reachable() { PERIOD } else { RETRY };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = reach.doubt.notified() => tokio::time::sleep(REST).await,
        }
        let result = match tokio::time::timeout(PATIENCE, ask(connection.take(), &options)).await {
            Ok(Ok(still_open)) => {
                connection = Some(still_open);
                Ok(())
            }
            Ok(Err(error)) => Err(fault::reason(&error, &options)),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        match result {
            Ok(()) => {
                reach.found(answered);
                answered = Instant::now();
            }
            Err(reason) => reach.lost_but_watched(&reason),
        }
    }
}

impl Reach {
    /// The same as [`Reach::lost`] for the watch task, which need not be told to ask again.
    fn lost_but_watched(&self, reason: &str) {
        if self.is_reachable() {
            self.lost(reason);
        }
    }
}

/// On the connection that is there, else or if it is broken on a new one.
async fn ask(
    connection: Option<PgConnection>,
    options: &PgConnectOptions,
) -> Result<PgConnection, sqlx::Error> {
    if let Some(mut connection) = connection
        && connection.ping().await.is_ok()
    {
        return Ok(connection);
    }
    let mut connection = options.connect().await?;
    connection.ping().await?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_from_before_a_break_are_doubted_and_later_ones_are_not() {
        let reach = Reach::new();
        assert!(
            !reach.broke_within(Duration::from_secs(60)),
            "nothing has broken yet"
        );
        reach.broke();
        assert!(reach.broke_within(Duration::from_secs(60)));
        while reach.began.elapsed() < Duration::from_millis(50) {
            std::thread::yield_now();
        }
        assert!(!reach.broke_within(Duration::from_millis(1)));
    }

    #[tokio::test]
    async fn loss_is_known_at_once_to_those_who_wait() {
        let reach = Arc::new(Reach::new());
        let waiting = tokio::spawn({
            let reach = Arc::clone(&reach);
            async move { reach.until_lost().await }
        });
        assert!(reach.is_reachable());
        reach.lost("a test");
        waiting.await.unwrap();
        assert!(!reach.is_reachable());
        reach.found(Instant::now());
        assert!(reach.is_reachable());
    }
}
