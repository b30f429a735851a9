//! The accounts, for the operator: listed, looked at, given roles, deactivated, deleted. With the host's own
//! connections, so that none of it depends on a policy.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::account::account_columns;
use super::sessions::EndedBy;
use super::{Account, Identity, Unavailable, canonical};
use crate::postgres::{Postgres, RunError};

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
    #[error("{0}")]
    Database(#[from] RunError),
    /// The sessions' store, which has said why.
    #[error(transparent)]
    Sessions(#[from] Unavailable),
}

impl From<sqlx::Error> for UsersError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(RunError::Failed(error))
    }
}

fn only(rows: &[PgRow]) -> Result<Account, UsersError> {
    let row = rows.first().ok_or(UsersError::NotFound)?;
    Ok(Account::from_row(row)?)
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

/// Which one, as `$1` (an id) and `$2` (an address).
macro_rules! which {
    () => {
        "(id = $1 or email_canonical = $2)"
    };
}

/// A page of the accounts whose address contains a text, in whatever case.
///
/// # Errors
/// [`UsersError::Database`].
pub async fn list(
    postgres: &Postgres,
    email: Option<&str>,
    after: Option<Uuid>,
    limit: u32,
) -> Result<Page, UsersError> {
    let limit = limit.clamp(1, MAX_PAGE);
    let email = email.map(canonical);
    // Ids are UUIDs of version 7, so their order is that of the accounts' age.
    let query = || {
        sqlx::query(concat!(
            "select ",
            account_columns!(),
            " from identity.users
              where ($1::text is null or position($1 in email_canonical) > 0) and ($2::uuid is null or id < $2)
              order by id desc limit $3"
        ))
        .bind(&email)
        .bind(after)
        .bind(i64::from(limit) + 1)
    };
    let rows = postgres.rows(query).await?;
    let mut users = rows
        .iter()
        .map(Account::from_row)
        .collect::<sqlx::Result<Vec<_>>>()?;
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
pub async fn find(postgres: &Postgres, which: &Which) -> Result<(Account, u64), UsersError> {
    let query = || {
        sqlx::query(concat!(
            "select ",
            account_columns!(),
            ", (select count(*) from identity.sessions s
                 where s.user_id = users.id and ended_at is null and expires_at > now()) as sessions
              from identity.users where ",
            which!()
        ))
        .bind(which.id())
        .bind(which.email())
    };
    let rows = postgres.rows(query).await?;
    let account = only(&rows)?;
    let sessions: i64 = rows.first().map_or(Ok(0), |row| row.try_get("sessions"))?;
    Ok((account, sessions.unsigned_abs()))
}

/// Give roles and take others. What it has already, or hasn't, is no error.
///
/// # Errors
/// See [`UsersError`].
pub async fn change_roles(
    postgres: &Postgres,
    which: &Which,
    add: &[String],
    remove: &[String],
) -> Result<Account, UsersError> {
    let query = || {
        sqlx::query(concat!(
            "update identity.users set updated_at = now(), roles = (
                 select coalesce(array_agg(role order by role), '{}')
                 from (select distinct role from unnest(roles || $3::text[]) role where role <> all ($4::text[])) kept)
              where ",
            which!(),
            " returning ",
            account_columns!()
        ))
        .bind(which.id())
        .bind(which.email())
        .bind(add)
        .bind(remove)
    };
    let rows = postgres.rows(query).await.map_err(|error| match &error {
        RunError::Failed(sqlx::Error::Database(it)) if it.code().as_deref() == Some(CHECK_VIOLATION) => {
            UsersError::TooManyRoles
        }
        _ => UsersError::Database(error),
    })?;
    only(&rows)
}

/// Let somebody in again, or keep them out: a deactivated account's sessions are worth nothing at once, and end.
///
/// # Errors
/// See [`UsersError`]. What was done of it stays done, and the whole may be done again.
pub async fn set_active(identity: &Identity, which: &Which, active: bool) -> Result<Account, UsersError> {
    let query = || {
        sqlx::query(concat!(
            "update identity.users set active = $3,
                updated_at = case when active = $3 then updated_at else now() end
              where ",
            which!(),
            " returning ",
            account_columns!()
        ))
        .bind(which.id())
        .bind(which.email())
        .bind(active)
    };
    let account = only(&identity.postgres.rows(query).await?)?;
    if !active {
        // After the account, so that none is opened in between.
        let sessions = &identity.sessions;
        sessions.close_all(account.id, None, EndedBy::Deactivated).await?;
    }
    Ok(account)
}

/// Delete an account and its sessions.
///
/// # Errors
/// See [`UsersError`]. If the connection broke, it may be gone all the same.
pub async fn delete(postgres: &Postgres, which: &Which) -> Result<Account, UsersError> {
    let query = sqlx::query(concat!(
        "delete from identity.users where ",
        which!(),
        " returning ",
        account_columns!()
    ))
    .bind(which.id())
    .bind(which.email());
    // Again it would find nothing, and say so of an account that it has just deleted.
    only(&postgres.rows_once(query).await?)
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
