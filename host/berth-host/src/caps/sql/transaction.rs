//! Calls and transactions: which task owns a connection, and what ends it.
//!
//! A guest never holds a connection. A task does, for one call or for one transaction, and the guest's call waits for the
//! task's answer. A store that is dropped drops the waiting end; the task sees that, ends the statement on the server and
//! closes the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::errors::{Failed, Left};
use super::pool::{Connection, Pool};
use super::run::{Answer, Ask, End, attended, run};
use crate::caps::bindings::berth::host::sql::{DatabaseError, Error};

/// How long a transaction may wait for its next statement.
pub(crate) const IDLE: Duration = Duration::from_secs(5);
/// How long a rollback may take before the connection is given up.
const ROLLBACK: Duration = Duration::from_secs(5);
/// Transactions that one request may have open.
const MAX_OPEN: u32 = 4;

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the transactions of one request have in common.
#[derive(Debug, Default)]
struct Scope {
    ended: CancellationToken,
    open: AtomicU32,
}

/// The transactions of the request that a store serves now. Dropped, or at the request's end, they are rolled back.
#[derive(Debug, Default)]
pub struct SqlCtx(Option<Arc<Scope>>);

impl SqlCtx {
    /// The request has ended.
    pub(crate) fn end(&mut self) {
        if let Some(scope) = self.0.take() {
            scope.ended.cancel();
        }
    }
}

impl Drop for SqlCtx {
    fn drop(&mut self) {
        self.end();
    }
}

/// A transaction of a guest. Dropped, it is rolled back.
#[derive(Debug)]
pub struct Transaction {
    orders: mpsc::Sender<Order>,
    _place: Place,
}

/// One of the request's open transactions.
#[derive(Debug)]
struct Place(Arc<Scope>);

impl Place {
    fn take(ctx: &mut SqlCtx) -> Result<Self, Error> {
        let scope = ctx.0.get_or_insert_default();
        let open = scope.open.fetch_add(1, Ordering::Relaxed);
        let place = Self(Arc::clone(scope));
        match open < MAX_OPEN {
            true => Ok(place),
            false => Err(Error::Denied(format!(
                "more than {MAX_OPEN} open transactions are not for one request; end one first"
            ))),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum Order {
    Run(Box<Ask>, Reply<Answer>),
    End { keep: bool, reply: Reply<()> },
}

/// Run one statement on a connection of its own.
pub(super) async fn single(pool: &Arc<Pool>, ask: Ask) -> Result<Answer, Error> {
    let (reply, answer) = oneshot::channel();
    tokio::spawn(one_call(Arc::clone(pool), ask, reply));
    // The task is gone without a word only when the host stops.
    answer.await.unwrap_or(Err(Error::Unavailable))
}

async fn one_call(pool: Arc<Pool>, ask: Ask, mut reply: Reply<Answer>) {
    let Some(mut connection) = acquire(&pool, &mut reply).await else {
        return;
    };
    let work = async {
        connection.refresh().await?;
        match run(&mut connection, &ask).await {
            // Nothing was done, so that it can be done again.
            Err(Failed {
                left: Left::Outdated, ..
            }) => {
                connection.forget().await?;
                run(&mut connection, &ask).await
            }
            done => done,
        }
    };
    let end = attended(work, &mut reply, pool.spec().statement_time).await;
    if let Some((connection, reply, answer)) = go_on(connection, reply, end).await {
        let _ = reply.send(Ok(answer));
        connection.give_back().await;
    }
}

/// A connection; nothing if there is none, which has been told then, or nobody waits any more.
async fn acquire<T>(pool: &Arc<Pool>, reply: &mut Reply<T>) -> Option<Connection> {
    let acquired = tokio::select! {
        biased;
        () = reply.closed() => return None,
        acquired = pool.acquire() => acquired,
    };
    match acquired {
        Ok(connection) => Some(connection),
        Err(error) => {
            tell(reply, Err(error));
            None
        }
    }
}

/// Answer through a borrowed end.
fn tell<T>(reply: &mut Reply<T>, answer: Result<T, Error>) {
    let (nobody, _) = oneshot::channel();
    // If nobody waits any more, nobody misses it.
    let _ = std::mem::replace(reply, nobody).send(answer);
}

/// What is needed to go on after an attempt that went well. Else whoever waits has been told, and the connection is dealt
/// with.
async fn go_on<T, R>(
    connection: Connection,
    reply: Reply<R>,
    end: End<T>,
) -> Option<(Connection, Reply<R>, T)> {
    // If nobody waits any more, nobody misses the answer.
    match end {
        End::Done(Ok(done)) => return Some((connection, reply, done)),
        End::Done(Err(failed)) => {
            let failed = connection.judge(failed);
            let _ = reply.send(Err(failed.error));
            match failed.left {
                Left::Usable => connection.give_back().await,
                Left::Running => connection.end().await,
                Left::Outdated | Left::Broken => connection.close(),
            }
        }
        End::Late => {
            let _ = reply.send(Err(Error::Timeout));
            connection.end().await;
        }
        End::Deserted => connection.end().await,
    }
    None
}

/// A statement of the host's.
async fn simple(connection: &mut Connection, statement: &'static str) -> Result<(), Failed> {
    let driver = connection.driver().ok_or_else(Failed::gone)?;
    sqlx::raw_sql(statement).execute(driver).await?;
    Ok(())
}

async fn rollback(mut connection: Connection) {
    match timeout(ROLLBACK, simple(&mut connection, "ROLLBACK")).await {
        Ok(Ok(())) => connection.give_back().await,
        _ => connection.end().await,
    }
}

impl Transaction {
    /// Begin one.
    pub(super) async fn begin(pool: &Arc<Pool>, ctx: &mut SqlCtx) -> Result<Self, Error> {
        let place = Place::take(ctx)?;
        let ended = place.0.ended.clone();
        let (orders, received) = mpsc::channel(1);
        let (reply, begun) = oneshot::channel();
        tokio::spawn(life(Arc::clone(pool), received, ended, reply));
        begun.await.unwrap_or(Err(Error::Unavailable))?;
        Ok(Self {
            orders,
            _place: place,
        })
    }

    /// Run one statement within it.
    pub(super) async fn run(&self, ask: Ask) -> Result<Answer, Error> {
        self.order(|reply| Order::Run(Box::new(ask), reply)).await
    }

    /// End it.
    pub(super) async fn end(&self, keep: bool) -> Result<(), Error> {
        self.order(|reply| Order::End { keep, reply }).await
    }

    async fn order<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        if self.orders.send(order(reply)).await.is_err() {
            return Err(Error::TransactionOver);
        }
        answer.await.unwrap_or(Err(Error::TransactionOver))
    }
}

/// A transaction from its beginning to its end.
async fn life(
    pool: Arc<Pool>,
    mut orders: mpsc::Receiver<Order>,
    ended: CancellationToken,
    mut reply: Reply<()>,
) {
    let time = pool.spec().statement_time;
    let Some(mut connection) = acquire(&pool, &mut reply).await else {
        return;
    };
    let begun = async {
        connection.refresh().await?;
        simple(&mut connection, "BEGIN").await
    };
    let begun = attended(begun, &mut reply, time).await;
    let Some((mut connection, reply, ())) = go_on(connection, reply, begun).await else {
        return;
    };
    if reply.send(Ok(())).is_err() {
        return rollback(connection).await;
    }
    // Whether a statement has failed: Postgres then answers a COMMIT with a rollback, and no error.
    let mut failed = false;
    loop {
        let order = tokio::select! {
            biased;
            () = ended.cancelled() => None,
            order = orders.recv() => order,
            () = sleep(IDLE) => {
                tracing::debug!(target: "berth::sql", "a transaction was idle for too long");
                None
            }
        };
        let Some(order) = order else {
            // Whoever orders something from now on is told at once.
            orders.close();
            return rollback(connection).await;
        };
        match order {
            Order::Run(ask, mut reply) => {
                let end = attended(run(&mut connection, &ask), &mut reply, time).await;
                match end {
                    End::Done(Err(Failed {
                        error,
                        left: Left::Usable | Left::Outdated,
                    })) => {
                        failed = true;
                        let _ = reply.send(Err(error));
                    }
                    end => match go_on(connection, reply, end).await {
                        Some((same, reply, answer)) => {
                            connection = same;
                            let _ = reply.send(Ok(answer));
                        }
                        None => return,
                    },
                }
            }
            Order::End { keep, mut reply } => {
                orders.close();
                let statement = if keep && !failed { "COMMIT" } else { "ROLLBACK" };
                let end = attended(simple(&mut connection, statement), &mut reply, time).await;
                let Some((connection, reply, ())) = go_on(connection, reply, end).await else {
                    return;
                };
                let _ = reply.send(match keep && failed {
                    true => Err(Error::Database(DatabaseError {
                        code: "25P02".to_owned(),
                        message: "a statement of this transaction has failed: it is rolled back".to_owned(),
                        constraint: None,
                    })),
                    false => Ok(()),
                });
                return connection.give_back().await;
            }
        }
    }
}
