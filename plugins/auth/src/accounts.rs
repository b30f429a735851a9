//! The accounts, in the host's `identity.users`. What this policy's role may touch there is granted column by column.

use crate::berth::host::sql::{self, Timestamp, Value};
use crate::exports::berth::policy::auth::{Problem, User};
use crate::refusal::internal;

/// In the order that [`read`] wants.
const COLUMNS: &str = "id, email_canonical, email_verified, name, roles, created_at, updated_at, \
                       mfa_enabled, active, password_hash";
/// What Postgres calls the rule that an address has one account.
const ONE_PER_ADDRESS: &str = "users_email_canonical_key";
const UNIQUE_VIOLATION: &str = "23505";
const CHECK_VIOLATION: &str = "23514";

/// An account with what only the policy sees of it.
#[derive(Clone, Debug)]
pub struct Account {
    pub user: User,
    /// None for an account that signs in elsewhere.
    pub hash: Option<String>,
}

/// An account to be made.
#[derive(Debug)]
pub struct NewAccount<'a> {
    pub id: String,
    /// As it was typed.
    pub email: &'a str,
    pub canonical: &'a str,
    pub hash: &'a str,
    pub name: &'a str,
}

/// Why an account wasn't made.
#[derive(Debug)]
pub enum NotMade {
    /// Its address has one.
    Taken,
    /// Postgres doesn't take the address; its idea of lower case can differ from ours in a rare letter.
    Address,
    /// Anything else.
    Other(Problem),
}

pub fn find_by_email(canonical: &str) -> Result<Option<Account>, Problem> {
    let statement = format!("select {COLUMNS} from identity.users where email_canonical = $1");
    one(sql::query(&statement, &[Value::Text(canonical.to_owned())]))
}

pub fn find(id: &str) -> Result<Option<Account>, Problem> {
    let statement = format!("select {COLUMNS} from identity.users where id = $1");
    one(sql::query(&statement, &[Value::Uuid(id.to_owned())]))
}

pub fn create(account: &NewAccount<'_>) -> Result<User, NotMade> {
    let statement = format!(
        "insert into identity.users (id, email, email_canonical, password_hash, name) \
         values ($1, $2, $3, $4, $5) returning {COLUMNS}"
    );
    let parameters = [
        Value::Uuid(account.id.clone()),
        Value::Text(account.email.to_owned()),
        Value::Text(account.canonical.to_owned()),
        Value::Text(account.hash.to_owned()),
        Value::Text(account.name.to_owned()),
    ];
    match sql::query(&statement, &parameters) {
        Err(sql::Error::Database(error)) => Err(refused(error)),
        rows => match one(rows) {
            Ok(Some(account)) => Ok(account.user),
            Ok(None) => Err(NotMade::Other(internal(
                "an account was made and isn't there",
                &[],
            ))),
            Err(problem) => Err(NotMade::Other(problem)),
        },
    }
}

/// By the constraint's name, never by the message: that one is in the server's language.
fn refused(error: sql::DatabaseError) -> NotMade {
    let constraint = error.constraint.as_deref().unwrap_or_default();
    match (error.code.as_str(), constraint) {
        (UNIQUE_VIOLATION, ONE_PER_ADDRESS) => NotMade::Taken,
        (CHECK_VIOLATION, name) if name.starts_with("users_email") => NotMade::Address,
        _ => NotMade::Other(sql::Error::Database(error).into()),
    }
}

/// Put another hash in the place of the one that was read. False if it isn't that one any more.
pub fn replace_hash(id: &str, old: &str, new: &str) -> Result<bool, Problem> {
    let statement = "update identity.users set password_hash = $3, updated_at = now() \
                     where id = $1 and password_hash = $2";
    let parameters = [
        Value::Uuid(id.to_owned()),
        Value::Text(old.to_owned()),
        Value::Text(new.to_owned()),
    ];
    Ok(sql::execute(statement, &parameters)? == 1)
}

fn one(rows: Result<sql::Rows, sql::Error>) -> Result<Option<Account>, Problem> {
    let rows = match rows {
        Ok(rows) => rows.rows,
        Err(error) => return Err(error.into()),
    };
    match rows.into_iter().next().map(read) {
        None => Ok(None),
        Some(Some(account)) => Ok(Some(account)),
        Some(None) => Err(internal("a row of identity.users isn't what it should be", &[])),
    }
}

/// A row with [`COLUMNS`]; nothing if a value is of another type.
fn read(row: Vec<Value>) -> Option<Account> {
    let [
        id,
        email,
        verified,
        name,
        roles,
        created,
        updated,
        mfa,
        active,
        hash,
    ] = row.try_into().ok()?;
    Some(Account {
        user: User {
            id: match id {
                Value::Uuid(id) => id,
                _ => return None,
            },
            email: text(email)?,
            email_verified: boolean(&verified)?,
            name: text(name)?,
            roles: match roles {
                Value::TextArray(roles) => roles.into_iter().collect::<Option<_>>()?,
                _ => return None,
            },
            created_at: milliseconds(&created)?,
            updated_at: milliseconds(&updated)?,
            mfa_enabled: boolean(&mfa)?,
            active: boolean(&active)?,
        },
        hash: match hash {
            Value::Null => None,
            hash => Some(text(hash)?),
        },
    })
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Boolean(value) => Some(*value),
        _ => None,
    }
}

/// Since the Unix epoch. Clients know no earlier time.
fn milliseconds(value: &Value) -> Option<u64> {
    match value {
        Value::Timestamp(Timestamp::At(at)) => {
            let seconds = u64::try_from(at.seconds).unwrap_or(0);
            seconds
                .checked_mul(1000)?
                .checked_add(u64::from(at.microseconds / 1000))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::berth::host::sql::{DatabaseError, Instant};

    fn row() -> Vec<Value> {
        let at = |seconds, microseconds| {
            Value::Timestamp(Timestamp::At(Instant {
                seconds,
                microseconds,
            }))
        };
        vec![
            Value::Uuid("01920000-0000-7000-8000-000000000001".to_owned()),
            Value::Text("ada@example.com".to_owned()),
            Value::Boolean(true),
            Value::Text("Ada".to_owned()),
            Value::TextArray(vec![Some("admin".to_owned())]),
            at(1_700_000_000, 999_999),
            at(-1, 5),
            Value::Boolean(false),
            Value::Boolean(true),
            Value::Null,
        ]
    }

    #[test]
    fn row_becomes_an_account_or_nothing() {
        let account = read(row()).unwrap();
        assert_eq!(account.user.roles, ["admin"]);
        assert_eq!(account.user.created_at, 1_700_000_000_999);
        assert_eq!(account.user.updated_at, 0);
        assert!(account.hash.is_none() && account.user.active && account.user.email_verified);
        for at in 0..row().len() {
            let mut wrong = row();
            wrong[at] = Value::Int64(1);
            assert!(read(wrong).is_none(), "column {at}");
        }
        assert!(read(row().split_off(1)).is_none());
    }

    #[test]
    fn refusal_of_an_address_is_known_by_the_constraint() {
        let error = |code: &str, constraint: Option<&str>| DatabaseError {
            code: code.to_owned(),
            message: "дублирующееся значение".to_owned(),
            constraint: constraint.map(str::to_owned),
        };
        assert!(matches!(
            refused(error("23505", Some("users_email_canonical_key"))),
            NotMade::Taken
        ));
        assert!(matches!(
            refused(error("23514", Some("users_email_canonical_check"))),
            NotMade::Address
        ));
        assert!(matches!(
            refused(error("57P01", None)),
            NotMade::Other(problem) if problem.status == 503 && problem.code == "database-unavailable" && problem.retry_after == Some(1)
        ));
    }
}
