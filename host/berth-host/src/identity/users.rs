//! The accounts, for the operator: listed, looked at, given roles, deactivated, deleted. With the host's own
//! connections, so that none of it depends on a policy.

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::{Account, canonical};

/// The most accounts of one page.
pub const MAX_PAGE: u32 = 200;
/// The accounts of a page unless more or fewer are asked for.
pub const PAGE: u32 = 50;
/// The longest role, in bytes.
pub const MAX_ROLE: usize = 64;
/// The most roles of an account.
pub const MAX_ROLES: usize = 64;

const CHECK_VIOLATION: &str = "23514";

/// Whether a role may be called that: it becomes a header of requests, where a comma stands between two.
pub fn is_role(name: &str) -> bool {
    (1..=MAX_ROLE).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
}

/// Why the operator got nothing.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// There is no such account.
    #[error("there is no such account")]
    NotFound,
    /// An account would have more than [`MAX_ROLES`].
    #[error("an account has at most {MAX_ROLES} roles")]
    TooManyRoles,
    /// Postgres can't be reached, or refuses.
    #[error("Postgres: {0}")]
    Database(sqlx::Error),
}

impl From<sqlx::Error> for UsersError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::RowNotFound => Self::NotFound,
            sqlx::Error::Database(it) if it.code().as_deref() == Some(CHECK_VIOLATION) => Self::TooManyRoles,
            _ => Self::Database(error),
        }
    }
}

/// Which account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// By its id.
    Id(Uuid),
    /// By its e-mail address, in canonical form.
    Email(String),
}

impl Which {
    /// From what an operator types.
    pub fn parse(text: &str) -> Self {
        match Uuid::try_parse(text) {
            Ok(id) => Self::Id(id),
            Err(_) => Self::Email(canonical(text)),
        }
    }

    /// The id, if it is by id.
    pub fn id(&self) -> Option<Uuid> {
        match self {
            Self::Id(id) => Some(*id),
            Self::Email(_) => None,
        }
    }

    /// The address, if it is by address.
    pub fn email(&self) -> Option<&str> {
        match self {
            Self::Id(_) => None,
            Self::Email(email) => Some(email),
        }
    }
}

/// A page of accounts, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The accounts.
    pub users: Vec<Account>,
    /// After which id the next page begins, if there is one.
    pub next: Option<Uuid>,
}

/// The columns of [`Account`], in any statement on `identity.users`.
macro_rules! columns {
    () => {
        "id, email_canonical, email_verified, name, roles, active, mfa_enabled, \
         (extract(epoch from created_at) * 1000)::bigint as created_ms, \
         (extract(epoch from updated_at) * 1000)::bigint as updated_ms"
    };
}

/// Which one, as `$1` (an id) and `$2` (an address).
macro_rules! which {
    () => {
        "(id = $1 or email_canonical = $2)"
    };
}

fn account(row: &PgRow) -> sqlx::Result<Account> {
    let milliseconds =
        |name| -> sqlx::Result<u64> { Ok(row.try_get::<i64, _>(name)?.try_into().unwrap_or(0)) };
    Ok(Account {
        id: row.try_get("id")?,
        email: row.try_get("email_canonical")?,
        email_verified: row.try_get("email_verified")?,
        name: row.try_get("name")?,
        roles: row.try_get("roles")?,
        active: row.try_get("active")?,
        mfa_enabled: row.try_get("mfa_enabled")?,
        created_at: milliseconds("created_ms")?,
        updated_at: milliseconds("updated_ms")?,
    })
}

/// A page of the accounts whose address contains a text, in whatever case.
///
/// # Errors
/// [`UsersError::Database`].
pub async fn list(
    pool: &PgPool,
    email: Option<&str>,
    after: Option<Uuid>,
    limit: u32,
) -> Result<Page, UsersError> {
    let limit = limit.clamp(1, MAX_PAGE);
    // Ids are UUIDs of version 7, so their order is that of the accounts' age.
    let rows = sqlx::query(concat!(
        "select ",
        columns!(),
        " from identity.users
          where ($1::text is null or position($1 in email_canonical) > 0) and ($2::uuid is null or id < $2)
          order by id desc limit $3"
    ))
    .bind(email.map(canonical))
    .bind(after)
    .bind(i64::from(limit) + 1)
    .fetch_all(pool)
    .await?;
    let mut users = rows.iter().map(account).collect::<sqlx::Result<Vec<_>>>()?;
    let more = users.len() > limit as usize;
    users.truncate(limit as usize);
    Ok(Page {
        next: users.last().filter(|_| more).map(|user| user.id),
        users,
    })
}

/// One account, and how many sessions it has open.
///
/// # Errors
/// See [`UsersError`].
pub async fn find(pool: &PgPool, which: &Which) -> Result<(Account, u64), UsersError> {
    let row = sqlx::query(concat!(
        "select ",
        columns!(),
        ", (select count(*) from identity.sessions s
             where s.user_id = users.id and ended_at is null and expires_at > now()) as sessions
          from identity.users where ",
        which!()
    ))
    .bind(which.id())
    .bind(which.email())
    .fetch_one(pool)
    .await?;
    let sessions: i64 = row.try_get("sessions")?;
    Ok((account(&row)?, sessions.unsigned_abs()))
}

/// Give roles and take others. What it has already, or hasn't, is no error.
///
/// # Errors
/// See [`UsersError`].
pub async fn change_roles(
    pool: &PgPool,
    which: &Which,
    add: &[String],
    remove: &[String],
) -> Result<Account, UsersError> {
    let row = sqlx::query(concat!(
        "update identity.users set updated_at = now(), roles = (
             select coalesce(array_agg(role order by role), '{}')
             from (select distinct role from unnest(roles || $3::text[]) role where role <> all ($4::text[])) kept)
          where ",
        which!(),
        " returning ",
        columns!()
    ))
    .bind(which.id())
    .bind(which.email())
    .bind(add)
    .bind(remove)
    .fetch_one(pool)
    .await?;
    Ok(account(&row)?)
}

/// Let somebody in again, or keep them out: a deactivated account's sessions end at once.
///
/// # Errors
/// See [`UsersError`].
pub async fn set_active(pool: &PgPool, which: &Which, active: bool) -> Result<Account, UsersError> {
    let mut transaction = pool.begin().await?;
    let row = sqlx::query(concat!(
        "update identity.users set active = $3,
            updated_at = case when active = $3 then updated_at else now() end
          where ",
        which!(),
        " returning ",
        columns!()
    ))
    .bind(which.id())
    .bind(which.email())
    .bind(active)
    .fetch_one(&mut *transaction)
    .await?;
    let account = account(&row)?;
    if !active {
        sqlx::query(
            "update identity.sessions set ended_at = now(), ended_by = 'deactivated'
             where user_id = $1 and ended_at is null",
        )
        .bind(account.id)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(account)
}

/// Delete an account and its sessions.
///
/// # Errors
/// See [`UsersError`].
pub async fn delete(pool: &PgPool, which: &Which) -> Result<Account, UsersError> {
    let row = sqlx::query(concat!(
        "delete from identity.users where ",
        which!(),
        " returning ",
        columns!()
    ))
    .bind(which.id())
    .bind(which.email())
    .fetch_one(pool)
    .await?;
    Ok(account(&row)?)
}

/// An account as the operator sees it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UserJson<'a> {
    id: String,
    email: &'a str,
    email_verified: bool,
    name: &'a str,
    roles: &'a [String],
    active: bool,
    mfa_enabled: bool,
    created_at: u64,
    updated_at: u64,
    /// Open ones; only where one account is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<u64>,
}

impl<'a> UserJson<'a> {
    /// Of an account, with its number of open sessions where that is known.
    pub fn new(account: &'a Account, sessions: Option<u64>) -> Self {
        Self {
            id: account.id.to_string(),
            email: &account.email,
            email_verified: account.email_verified,
            name: &account.name,
            roles: &account.roles,
            active: account.active,
            mfa_enabled: account.mfa_enabled,
            created_at: account.created_at,
            updated_at: account.updated_at,
            sessions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_have_names_that_can_stand_in_a_header() {
        for good in ["admin", "a", "team:ops", "read.only-1_x", &"x".repeat(64)] {
            assert!(is_role(good), "{good}");
        }
        for bad in ["", "two words", "a,b", "ä", "a\n", &"x".repeat(65)] {
            assert!(!is_role(bad), "{bad:?}");
        }
    }

    #[test]
    fn accounts_are_named_by_id_or_address() {
        let id = "01920000-0000-7000-8000-000000000001";
        assert_eq!(Which::parse(id).id().unwrap().to_string(), id);
        assert_eq!(Which::parse("Ada@Example.com").email(), Some("ada@example.com"));
    }
}
