//! Reading the record, for the operator.

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};

use crate::identity::users::{UsersError, Which};

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
        at: row.try_get::<i64, _>("at_ms")?.try_into().unwrap_or(0),
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

/// A page of the record, of one account if it is named. An account that is gone is found by what was typed.
///
/// # Errors
/// [`UsersError::Database`].
pub async fn list(
    pool: &PgPool,
    whose: Option<&Which>,
    before: Option<i64>,
    limit: u32,
) -> Result<AuditPage, UsersError> {
    let rows = sqlx::query(
        "select id, (extract(epoch from at) * 1000)::bigint as at_ms, action, outcome, user_id::text, account, actor,
            client_ip, request_id, plugin, digest, detail
         from identity.audit
         where ($1::bigint is null or id < $1) and (
            ($2::uuid is null and $3::text is null)
            or user_id = $2
            or user_id = (select id from identity.users where email_canonical = $3)
            or lower(account) = $3)
         order by id desc limit $4",
    )
    .bind(before)
    .bind(whose.and_then(Which::id))
    .bind(whose.and_then(Which::email))
    .bind(i64::from(limit) + 1)
    .fetch_all(pool)
    .await?;
    let mut entries = rows.iter().map(entry).collect::<sqlx::Result<Vec<_>>>()?;
    let more = entries.len() > limit as usize;
    entries.truncate(limit as usize);
    Ok(AuditPage {
        next: entries.last().filter(|_| more).map(|entry| entry.id),
        entries,
    })
}
