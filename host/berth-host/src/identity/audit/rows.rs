//! Reading the record, for the operator.

use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::identity::account::milliseconds;
use crate::identity::users::{UsersError, Which};
use crate::postgres::Postgres;

/// One row, as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRow {
    /// Rises with the time.
    pub id: i64,
    /// Milliseconds since the Unix epoch.
    pub at: u64,
    /// As in `login`.
    pub action: String,
    /// `ok`, or the code of the refusal.
    pub outcome: String,
    /// Whom it was about.
    pub user_id: Option<String>,
    /// What was given as the account.
    pub account: Option<String>,
    /// `operator`, or the user who did it.
    pub actor: Option<String>,
    /// The client's address.
    pub client_ip: Option<String>,
    /// The request's id.
    pub request_id: Option<String>,
    /// The plugin that decided.
    pub plugin: Option<String>,
    /// The digest of its component.
    pub digest: Option<String>,
    /// What else there is to say.
    pub detail: Option<String>,
}

/// A page of the record, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditPage {
    /// The rows.
    pub entries: Vec<AuditRow>,
    /// After which id the next page begins, if there is one.
    pub next: Option<i64>,
}

fn entry(row: &PgRow) -> sqlx::Result<AuditRow> {
    Ok(AuditRow {
        id: row.try_get("id")?,
        at: milliseconds(row.try_get("at_ms")?),
        action: row.try_get("action")?,
        outcome: row.try_get("outcome")?,
        user_id: row.try_get("user_id")?,
        account: row.try_get("account")?,
        actor: row.try_get("actor")?,
        client_ip: row.try_get("client_ip")?,
        request_id: row.try_get("request_id")?,
        plugin: row.try_get("plugin")?,
        digest: row.try_get("digest")?,
        detail: row.try_get("detail")?,
    })
}

/// What is read of a row.
macro_rules! columns {
    () => {
        "id, (extract(epoch from at) * 1000)::bigint as at_ms, action, outcome, user_id::text, account, actor, \
         client_ip, request_id, plugin, digest, detail"
    };
}

/// `$1` before which id, `$2` how many.
const ALL: &str = concat!(
    "select ",
    columns!(),
    " from identity.audit where id < $1 order by id desc limit $2"
);

/// `$3` the user, `$4` the e-mail address. As many rows as are wanted from each of two indexes; most of them are in both.
const OF_ONE: &str = concat!(
    "select * from (
        (select ",
    columns!(),
    " from identity.audit where user_id = $3 and id < $1 order by id desc limit $2)
        union
        (select ",
    columns!(),
    " from identity.audit where lower(account) = $4 and id < $1 order by id desc limit $2)
     ) found order by id desc limit $2"
);

/// A page of the record, of one account if it is named. An account that is gone is found by what was typed.
///
/// # Errors
/// [`UsersError::Database`].
pub async fn list(
    postgres: &Postgres,
    whose: Option<&Which>,
    before: Option<i64>,
    limit: u32,
) -> Result<AuditPage, UsersError> {
    let (before, most) = (before.unwrap_or(i64::MAX), i64::from(limit) + 1);
    let rows = match whose {
        None => postgres.rows(|| sqlx::query(ALL).bind(before).bind(most)).await?,
        Some(which) => {
            let user = user(postgres, which).await?;
            // Planned anew each time, for this very user: for anybody, a walk through all rows may look cheaper.
            let query = || {
                sqlx::query(OF_ONE)
                    .persistent(false)
                    .bind(before)
                    .bind(most)
                    .bind(user)
                    .bind(which.email())
            };
            postgres.rows(query).await?
        }
    };
    let mut entries = rows.iter().map(entry).collect::<sqlx::Result<Vec<_>>>()?;
    let more = entries.len() > limit as usize;
    entries.truncate(limit as usize);
    Ok(AuditPage {
        next: entries.last().filter(|_| more).map(|entry| entry.id),
        entries,
    })
}

/// The id of an account, if there is one.
async fn user(postgres: &Postgres, which: &Which) -> Result<Option<Uuid>, UsersError> {
    let Some(email) = which.email() else {
        return Ok(which.id());
    };
    let query = || sqlx::query("select id from identity.users where email_canonical = $1").bind(email);
    let rows = postgres.rows(query).await?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
}
