//! The record of who tried what, from where, and how it went: `identity.audit`.
//!
//! Requests don't wait for it. Their rows go through a bounded queue to one writer, which stores them in batches, tries
//! again while Postgres is away, and at a stop writes what is left. What doesn't fit into the queue is lost, counted
//! in `berth_audit_dropped_total`, and said once in the log: a record must not cost a sign-in. Rows never have
//! passwords, tokens or bodies in them, and are deleted after `identity.audit_days`.

pub mod rows;

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::canonical;
use crate::postgres::{Postgres, RunError};
use crate::respond::now_ms;

/// Rows that may wait: some megabytes.
const QUEUE: usize = 8192;
/// Rows of one statement.
const BATCH: usize = 256;
/// How long the writer waits before it tries again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a stop waits for the last rows.
const LAST: Duration = Duration::from_secs(5);
/// How often old rows are looked for.
const SWEEP: Duration = Duration::from_secs(60 * 60);
/// Old rows that one statement deletes, so that it holds no lock for long.
const SWEEP_ROWS: i64 = 1000;

/// One row. Texts are cut to what the table takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// As in `login`.
    pub action: &'static str,
    /// `ok`, or the code of the refusal.
    pub outcome: Cow<'static, str>,
    /// Whom it was about, if that is known. If not, the writer looks for an account of this name.
    pub user: Option<Uuid>,
    /// What was given as the account.
    pub account: Option<String>,
    /// `operator`, or the user who did it.
    pub actor: Option<String>,
    /// The client's address.
    pub client_ip: String,
    /// The request's id.
    pub request_id: String,
    /// The plugin that decided.
    pub plugin: Option<String>,
    /// The digest of its component.
    pub digest: Option<String>,
    /// What else there is to say, such as the roles that were added.
    pub detail: Option<String>,
}

/// The way to the record.
#[derive(Debug)]
pub struct Audit {
    queue: Sender<(u64, Entry)>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    /// Rows are being lost, which was said.
    losing: AtomicBool,
}

impl Shared {
    fn dropped(&self, rows: usize, why: &str) {
        self.dropped.fetch_add(rows as u64, Ordering::Relaxed);
        if rows > 0 && !self.losing.swap(true, Ordering::Relaxed) {
            tracing::error!(target: "berth::audit", "rows of the audit are lost: {why}");
        }
    }
}

impl Audit {
    /// Start the writer. Rows are deleted when they are so many days old.
    pub fn start(postgres: Arc<Postgres>, days: u32) -> Self {
        let (audit, rows) = Self::new(QUEUE);
        let writer = write(
            postgres,
            rows,
            Arc::clone(&audit.shared),
            audit.stop.clone(),
            days,
        );
        let writer = Mutex::new(Some(tokio::spawn(writer)));
        Self { writer, ..audit }
    }

    /// With room for so many rows, and nobody to write them.
    fn new(room: usize) -> (Self, Receiver<(u64, Entry)>) {
        let (queue, rows) = mpsc::channel(room);
        let audit = Self {
            queue,
            shared: Arc::default(),
            stop: CancellationToken::new(),
            writer: Mutex::default(),
        };
        (audit, rows)
    }

    /// Put a row on its way.
    pub fn record(&self, entry: Entry) {
        if self.queue.try_send((now_ms(), entry)).is_err() {
            self.shared.dropped(1, "too many are waiting");
        }
    }

    /// How many rows were lost.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Write what is left, within a few seconds.
    pub async fn stop(&self) {
        self.stop.cancel();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut writer) = writer
            && timeout(LAST, &mut writer).await.is_err()
        {
            writer.abort();
            let rows = self.queue.max_capacity() - self.queue.capacity();
            self.shared.dropped(rows, "Postgres took too long at the stop");
        }
    }
}

async fn write(
    postgres: Arc<Postgres>,
    mut rows: Receiver<(u64, Entry)>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    days: u32,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut sweeps = interval(SWEEP);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled(), if !rows.is_closed() => rows.close(),
            _ = sweeps.tick(), if !rows.is_closed() => sweep(&postgres, days).await,
            taken = rows.recv_many(&mut batch, BATCH) => {
                if taken == 0 {
                    return;
                }
                store_all(&postgres, &batch, &shared, &stop).await;
                batch.clear();
            }
        }
    }
}

/// Store a batch, however long Postgres is away.
async fn store_all(postgres: &Postgres, batch: &[(u64, Entry)], shared: &Shared, stop: &CancellationToken) {
    let mut said = false;
    loop {
        match store(postgres, batch).await {
            Ok(()) => {
                if said || shared.losing.swap(false, Ordering::Relaxed) {
                    tracing::info!(target: "berth::audit", "the audit is written again");
                }
                return;
            }
            // It would be the same again.
            Err(error) if !error.is_passing() => {
                return shared.dropped(batch.len(), &format!("Postgres refused them: {error}"));
            }
            Err(_) if stop.is_cancelled() => {
                return shared.dropped(batch.len(), "Postgres is away at the stop");
            }
            Err(error) => {
                if !said {
                    tracing::warn!(target: "berth::audit", "the audit can't be written, its rows wait: {error}");
                    said = true;
                }
                tokio::select! {
                    () = sleep(RETRY) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
    }
}

/// A batch whose connection breaks at the wrong moment may be there already when it is stored again.
async fn store(postgres: &Postgres, batch: &[(u64, Entry)]) -> Result<(), RunError> {
    let column = |text: fn(&Entry) -> Option<&str>, most: usize| -> Vec<Option<String>> {
        batch
            .iter()
            .map(|(_, entry)| text(entry).map(|t| cut(t, most)))
            .collect()
    };
    let at: Vec<i64> = batch
        .iter()
        .map(|(at, _)| i64::try_from(*at).unwrap_or(i64::MAX))
        .collect();
    // An attempt on an account is found by the account, also when it failed.
    let canonical: Vec<Option<String>> = batch
        .iter()
        .map(|(_, entry)| {
            entry
                .account
                .as_deref()
                .map(|account| cut(&canonical(account), 320))
        })
        .collect();
    let users: Vec<Option<Uuid>> = batch.iter().map(|(_, entry)| entry.user).collect();
    let query = sqlx::query(
        "insert into identity.audit
            (at, action, outcome, user_id, account, actor, client_ip, request_id, plugin, digest, detail)
         select timestamptz 'epoch' + t.at * interval '1 millisecond', action, outcome,
            coalesce(user_id, users.id), account, actor, client_ip, request_id, plugin, digest, detail
         from unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::text[],
                     $9::text[], $10::text[], $11::text[], $12::text[]) with ordinality
            as t (at, action, outcome, user_id, account, actor, client_ip, request_id, plugin, digest, detail, canonical, n)
         left join identity.users on users.email_canonical = t.canonical
         order by t.n",
    )
    .bind(at)
    .bind(column(|e| Some(e.action), 64))
    .bind(column(|e| Some(&e.outcome), 64))
    .bind(users)
    .bind(column(|e| e.account.as_deref(), 320))
    .bind(column(|e| e.actor.as_deref(), 64))
    .bind(column(|e| Some(&e.client_ip), 64))
    .bind(column(|e| Some(&e.request_id), 128))
    .bind(column(|e| e.plugin.as_deref(), 64))
    .bind(column(|e| e.digest.as_deref(), 64))
    .bind(column(|e| e.detail.as_deref(), 1024))
    .bind(canonical);
    postgres.rows_once(query).await?;
    Ok(())
}

/// At most so many bytes, without what Postgres or a terminal can't take.
fn cut(text: &str, most: usize) -> String {
    let clean: String = text
        .chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .take(most)
        .collect();
    let end = clean.floor_char_boundary(most);
    clean.get(..end).unwrap_or_default().to_owned()
}

/// Delete what is too old, a little at a time.
async fn sweep(postgres: &Postgres, days: u32) {
    let statement = "delete from identity.audit where id in
         (select id from identity.audit where at < now() - $1 * interval '1 day' order by at limit $2)
         returning id";
    loop {
        let query = || sqlx::query(statement).bind(f64::from(days)).bind(SWEEP_ROWS);
        match postgres.rows(query).await {
            Ok(deleted) if deleted.len() as i64 >= SWEEP_ROWS => {}
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(target: "berth::audit", "old rows can't be deleted now: {error}");
                return;
            }
        }
    }
}

/// An operation that has begun. It is recorded when it has ended, and also when its request was given up.
#[derive(Debug)]
pub struct Pending<'a> {
    audit: &'a Audit,
    entry: Option<Entry>,
}

impl<'a> Pending<'a> {
    /// Of what `entry` says; its outcome comes later.
    pub fn new(audit: &'a Audit, entry: Entry) -> Self {
        Self {
            audit,
            entry: Some(entry),
        }
    }

    /// It has ended in this way. Whom it was about may be known only now; an account that was given stays as it was.
    pub fn ended(mut self, outcome: Cow<'static, str>, user: Option<Uuid>, account: Option<String>) {
        if let Some(entry) = self.entry.take() {
            self.audit.record(Entry {
                outcome,
                user: user.or(entry.user),
                account: entry.account.or(account),
                ..entry
            });
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.audit.record(Entry {
                outcome: "unfinished".into(),
                ..entry
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_at_a_character_and_have_no_controls() {
        assert_eq!(cut("ada", 64), "ada");
        assert_eq!(cut("ééé", 5), "éé");
        assert_eq!(cut("a\0b\x1b[2J\n", 64), "a\u{fffd}b\u{fffd}[2J\u{fffd}");
        // The replacement is longer than what it replaces.
        assert!(cut(&"\0".repeat(1000), 320).len() <= 320);
    }

    #[test]
    fn full_queue_loses_rows_and_holds_up_nobody() {
        let (audit, mut rows) = Audit::new(2);
        let entry = |action| Entry {
            action,
            ..Entry::default()
        };
        for action in ["a", "b", "c", "d"] {
            audit.record(entry(action));
        }
        assert_eq!(audit.dropped(), 2);
        assert_eq!(rows.try_recv().unwrap().1, entry("a"));
        audit.record(entry("e"));
        assert_eq!(audit.dropped(), 2);
        drop(rows);
        audit.record(entry("f"));
        assert_eq!(audit.dropped(), 3);
    }

    #[test]
    fn operation_is_recorded_when_it_ends_and_when_it_is_given_up() {
        let (audit, mut rows) = Audit::new(2);
        let begun = || {
            let entry = Entry {
                action: "login",
                ..Entry::default()
            };
            Pending::new(&audit, entry)
        };
        let user = Uuid::now_v7();
        begun().ended("ok".into(), Some(user), Some("ada@example.com".to_owned()));
        drop(begun());
        let (ended, given_up) = (rows.try_recv().unwrap().1, rows.try_recv().unwrap().1);
        assert_eq!((ended.outcome.as_ref(), ended.user), ("ok", Some(user)));
        assert_eq!(ended.account.as_deref(), Some("ada@example.com"));
        assert_eq!((given_up.outcome.as_ref(), given_up.user), ("unfinished", None));
        assert!(rows.try_recv().is_err(), "once each");
    }
}
