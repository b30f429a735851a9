//! An account as the host reads it, in whatever statement.

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

/// An account, as the host knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// UUID version 7.
    pub id: Uuid,
    /// Canonical.
    pub email: String,
    /// Whether it was shown to be the user's.
    pub email_verified: bool,
    /// To show; may be empty.
    pub name: String,
    /// Names of roles.
    pub roles: Vec<String>,
    /// False for a deactivated one.
    pub active: bool,
    /// Whether a second factor is set up.
    pub mfa_enabled: bool,
    /// Milliseconds since the Unix epoch.
    pub created_at: u64,
    /// Milliseconds since the Unix epoch.
    pub updated_at: u64,
}

/// The columns of an [`Account`], the first ones in any statement on `identity.users`.
macro_rules! account_columns {
    () => {
        "id, email_canonical, email_verified, name, roles, active, mfa_enabled, \
         (extract(epoch from created_at) * 1000)::bigint, (extract(epoch from updated_at) * 1000)::bigint"
    };
}
pub(super) use account_columns;

impl Account {
    /// From a row that begins with `account_columns!`.
    ///
    /// # Errors
    /// Somebody has changed the table.
    pub(super) fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get(0)?,
            email: row.try_get(1)?,
            email_verified: row.try_get(2)?,
            name: row.try_get(3)?,
            roles: row.try_get(4)?,
            active: row.try_get(5)?,
            mfa_enabled: row.try_get(6)?,
            created_at: milliseconds(row.try_get(7)?),
            updated_at: milliseconds(row.try_get(8)?),
        })
    }
}

/// A time as statements give it; never before the epoch.
pub(super) fn milliseconds(since_epoch: i64) -> u64 {
    u64::try_from(since_epoch).unwrap_or(0)
}
