//! Keeps a server of the cluster running: one that ends is started again, after a pause that grows while it keeps ending.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::server::Server;
use super::{Cluster, PrivateError};
use crate::postgres::reach::Reach;

/// The pause before the first new start.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause; a server that lived longer than this has the first pause again.
const LONGEST: Duration = Duration::from_secs(10);

/// The task that does it. Stops the server, without waiting for it, when it is dropped.
#[derive(Debug)]
pub(in crate::postgres) struct Supervisor {
    task: Mutex<Option<JoinHandle<()>>>,
    stop: CancellationToken,
    restarts: Arc<AtomicU64>,
}

impl Supervisor {
    /// Start the first server, and then the task.
    pub(super) async fn start(cluster: Cluster, reach: Arc<Reach>) -> Result<Self, PrivateError> {
        let server = Server::start(&cluster).await?;
        let stop = CancellationToken::new();
        let restarts = Arc::default();
        let task = tokio::spawn(supervise(
            cluster,
            server,
            reach,
            stop.clone(),
            Arc::clone(&restarts),
        ));
        Ok(Self {
            task: Mutex::new(Some(task)),
            stop,
            restarts,
        })
    }

    /// How often a server was started again.
    pub(in crate::postgres) fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// Stop the server, and wait for its end.
    pub(in crate::postgres) async fn stop(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(target: "berth::postgres", %error, "the private Postgres was not stopped in order");
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn supervise(
    cluster: Cluster,
    mut server: Server,
    reach: Arc<Reach>,
    stop: CancellationToken,
    restarts: Arc<AtomicU64>,
) {
    let mut pause = FIRST;
    loop {
        let began = Instant::now();
        tokio::select! {
            status = server.ended() => {
                reach.lost("the private Postgres has ended");
                let said = server.last_words().await;
                tracing::warn!(target: "berth::postgres", status, said, "the private Postgres has ended and is started again");
            }
            () = stop.cancelled() => return server.stop().await,
        }
        if began.elapsed() > LONGEST {
            pause = FIRST;
        }
        let started = tokio::select! {
            started = restart(&cluster, &mut pause) => started,
            () = stop.cancelled() => return,
        };
        server = started;
        restarts.fetch_add(1, Ordering::Relaxed);
        reach.check();
    }
}

/// Try until one starts.
async fn restart(cluster: &Cluster, pause: &mut Duration) -> Server {
    loop {
        tokio::time::sleep(*pause).await;
        *pause = (*pause * 2).min(LONGEST);
        match Server::start(cluster).await {
            Ok(server) => {
                tracing::info!(target: "berth::postgres", "the private Postgres runs again");
                return server;
            }
            Err(error) => tracing::warn!(
                target: "berth::postgres",
                next_try_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "the private Postgres can't be started again: {error}",
            ),
        }
    }
}
