//! Sessions and their refresh tokens.
//!
//! A session is a row; its refresh tokens are stored nowhere. Each is made from the session's id and a counter with a key
//! of the host (HMAC-SHA-256), and is checked before the database is asked anything. The row has the counter of the one
//! token that is good:
//!
//! - that token moves the counter on, in one conditional `UPDATE`, and gives its successor;
//! - the token before it gives the *same* successor for [`GRACE_SECONDS`], because two tabs refresh at once and answers
//!   get lost;
//! - any older one was used by two parties, of whom one is a thief, and ends the session.
//!
//! Every statement stands alone and may be run again, as after its connection broke: nothing here needs a transaction.
//! Times are the database's, so several hosts on one database agree.

mod refresh_token;
mod statements;

use std::sync::Arc;
use std::time::Duration;

use sqlx::Postgres as Driver;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use uuid::Uuid;

use self::refresh_token::RefreshKey;
use self::statements as sql;
use super::{Account, SessionSpec, Unavailable};
use crate::data::DataFolder;
use crate::postgres::{Postgres, RunError};
use crate::tokens::issue::{Extra, IssueError, Issuer};

/// How long a refresh token that was used gives the same successor, in seconds.
pub const GRACE_SECONDS: u32 = 10;
/// The most open sessions of a user; one more ends the oldest.
pub const MAX_OPEN: u32 = 100;
/// The longest address that is kept, in bytes.
const MAX_CLIENT_IP: usize = 64;
/// The longest `User-Agent` that is kept, in bytes; a longer one is cut.
const MAX_USER_AGENT: usize = 512;
/// Sessions that are deleted in one statement.
const BATCH: i64 = 1_000;
/// How often old sessions are looked for.
const SWEEP: Duration = Duration::from_secs(10 * 60);

/// Who is signed in.
#[derive(Debug)]
pub struct Sessions {
    postgres: Arc<Postgres>,
    key: RefreshKey,
    spec: SessionSpec,
    issuer: Arc<Issuer>,
}

/// What a client needs to call on.
pub struct Opened {
    /// The session.
    pub session: Uuid,
    /// Whose it is.
    pub user: Uuid,
    /// For `Authorization: Bearer`.
    pub access_token: String,
    /// For [`Sessions::refresh`], once.
    pub refresh_token: String,
    /// Seconds until the access token expires.
    pub expires_in: u32,
}

/// An open session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its id.
    pub id: Uuid,
    /// Milliseconds since the Unix epoch.
    pub created_at: u64,
    /// When it was last refreshed, in milliseconds since the Unix epoch.
    pub last_used_at: u64,
    /// Where it was opened from.
    pub client_ip: String,
    /// The `User-Agent` that it was opened with.
    pub user_agent: Option<String>,
}

/// Why a session ended. The database knows these words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// Its user signed out.
    Logout,
    /// A refresh token of it was used twice.
    Reuse,
    /// Its user or an operator ended it from elsewhere.
    Revoked,
    /// The password was changed.
    Password,
    /// The account was deactivated.
    Deactivated,
}

impl EndedBy {
    const fn word(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::Reuse => "reuse",
            Self::Revoked => "revoked",
            Self::Password => "password",
            Self::Deactivated => "deactivated",
        }
    }
}

/// A session that ended because one of its refresh tokens was used twice, of which once by a thief.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reuse {
    /// The session.
    pub session: Uuid,
    /// Whose it was.
    pub user: Uuid,
    /// Their e-mail address, canonical.
    pub email: String,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// What about the arguments.
    #[error("{0}")]
    Invalid(String),
    /// There is no such user, or the user is deactivated.
    #[error("there is no such user, or the user is deactivated")]
    NoUser,
    /// The refresh token isn't one of ours, has expired, or its session has ended.
    #[error("the refresh token isn't valid")]
    NoSession,
    /// The refresh token was used before: its session has ended now.
    #[error("the refresh token was used before")]
    Reused(Box<Reuse>),
    /// Postgres can't be reached at the moment.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The host's own fault. For the log.
    #[error("{0}")]
    Broken(String),
}

impl From<IssueError> for SessionError {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Invalid(what) => Self::Invalid(what),
            IssueError::Signing(_) => Self::Broken(error.to_string()),
        }
    }
}

impl Sessions {
    pub(super) fn new(
        postgres: Arc<Postgres>,
        data: &DataFolder,
        spec: SessionSpec,
        issuer: Arc<Issuer>,
    ) -> Self {
        Self {
            postgres,
            key: RefreshKey::new(data.derive("berth refresh tokens v1")),
            spec,
            issuer,
        }
    }

    /// The account behind an open session of `user`, if the session is open, theirs, and they are active. One look-up
    /// by two primary keys.
    ///
    /// # Errors
    /// Postgres can't be reached.
    pub async fn account(&self, session: Uuid, user: Uuid) -> Result<Option<Account>, Unavailable> {
        let query = || sqlx::query(sql::ACCOUNT).bind(session).bind(user);
        let rows = self.rows(query).await?;
        let account = rows.first().map(Account::from_row).transpose();
        account.map_err(|error| failed(&error))
    }

    /// Open a session for a user.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn open(
        &self,
        user: Uuid,
        client_ip: &str,
        user_agent: Option<&str>,
        extra: &Extra,
    ) -> Result<Opened, SessionError> {
        if client_ip.len() > MAX_CLIENT_IP {
            return Err(SessionError::Invalid(format!(
                "`client-ip` is longer than {MAX_CLIENT_IP} bytes"
            )));
        }
        // What Postgres can't keep, and nobody needs.
        let clean = |text: &str| text.replace('\0', "");
        let user_agent = user_agent.map(|text| {
            let end = text.floor_char_boundary(MAX_USER_AGENT);
            clean(text.get(..end).unwrap_or_default())
        });
        let client_ip = clean(client_ip);
        let session = Uuid::now_v7();
        let rows = self
            .rows(|| {
                sqlx::query(sql::OPEN)
                    .bind(session)
                    .bind(user)
                    .bind(self.spec.refresh_life.as_secs_f64())
                    .bind(&client_ip)
                    .bind(&user_agent)
                    .bind(i64::from(MAX_OPEN) - 1)
            })
            .await?;
        if rows.is_empty() {
            return Err(SessionError::NoUser);
        }
        self.tokens(session, user, 0, self.spec.refresh_life.as_secs(), extra)
    }

    /// Take a refresh token, give the next pair.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn refresh(&self, refresh_token: &str, extra: &Extra) -> Result<Opened, SessionError> {
        let Some((session, counter)) = self.key.read(refresh_token) else {
            return Err(SessionError::NoSession);
        };
        // Beyond what the row can count there is no token.
        let used = i64::try_from(counter).map_err(|_| SessionError::NoSession)?;
        let life = self.spec.refresh_life.as_secs_f64();
        let rotate = || sqlx::query(sql::ROTATE).bind(session).bind(used).bind(life);
        if let Some(row) = self.rows(rotate).await?.first() {
            let (user, left) = owner(row)?;
            return self.tokens(session, user, counter + 1, left, extra);
        }
        let look = || {
            sqlx::query(sql::LOOK)
                .bind(session)
                .bind(f64::from(GRACE_SECONDS))
        };
        let rows = self.rows(look).await?;
        let Some(row) = rows.first() else {
            return Err(SessionError::NoSession);
        };
        let state = sql::state(row).map_err(|error| failed(&error))?;
        match (state.open, state.active) {
            (false, _) => return Err(SessionError::NoSession),
            (true, false) => return Err(SessionError::NoUser),
            (true, true) => {}
        }
        if state.rotation == used + 1 && state.recent {
            let (user, left) = owner(row)?;
            return self.tokens(session, user, counter + 1, left, extra);
        }
        if state.rotation <= used {
            // Made by this key and never given out: the database is older than the token, as after a restore.
            return Err(SessionError::NoSession);
        }
        let reason = EndedBy::Reuse.word();
        self.rows(|| sqlx::query(sql::END).bind(session).bind(reason))
            .await?;
        tracing::warn!(
            target: "berth::identity",
            session = %session,
            "a refresh token was used again after it had been replaced; its session has ended",
        );
        let (user, _) = owner(row)?;
        Err(SessionError::Reused(Box::new(Reuse {
            session,
            user,
            email: state.email,
        })))
    }

    /// The open sessions of a user, newest first, at most [`MAX_OPEN`].
    ///
    /// # Errors
    /// Postgres can't be reached.
    pub async fn list(&self, user: Uuid) -> Result<Vec<SessionInfo>, Unavailable> {
        let rows = self
            .rows(|| sqlx::query(sql::LIST).bind(user).bind(i64::from(MAX_OPEN)))
            .await?;
        let infos: Result<Vec<_>, sqlx::Error> = rows.iter().map(sql::info).collect();
        infos.map_err(|error| failed(&error))
    }

    /// End one session of a user. False if the user has no such open session.
    ///
    /// # Errors
    /// Postgres can't be reached.
    pub async fn close(&self, user: Uuid, session: Uuid, by: EndedBy) -> Result<bool, Unavailable> {
        let rows = self
            .rows(|| sqlx::query(sql::CLOSE).bind(session).bind(user).bind(by.word()))
            .await?;
        Ok(!rows.is_empty())
    }

    /// End every session of a user but the one to keep, if any; how many there were.
    ///
    /// # Errors
    /// Postgres can't be reached.
    pub async fn close_all(&self, user: Uuid, keep: Option<Uuid>, by: EndedBy) -> Result<u32, Unavailable> {
        let rows = self
            .rows(|| sqlx::query(sql::CLOSE_ALL).bind(user).bind(keep).bind(by.word()))
            .await?;
        Ok(u32::try_from(rows.len()).unwrap_or(u32::MAX))
    }

    /// Delete sessions that ended or expired a while ago, in small batches. For ever.
    pub async fn sweep(&self) {
        let mut ticks = tokio::time::interval(SWEEP);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            loop {
                match self.rows(|| sqlx::query(sql::SWEEP).bind(BATCH)).await {
                    Ok(gone) if gone.len() as i64 == BATCH => tokio::task::yield_now().await,
                    Ok(_) => break,
                    // Said already; the next tick tries again.
                    Err(Unavailable) => break,
                }
            }
        }
    }

    async fn rows<'q>(
        &self,
        query: impl Fn() -> Query<'q, Driver, PgArguments>,
    ) -> Result<Vec<PgRow>, Unavailable> {
        let rows = self.postgres.rows(query).await;
        rows.map_err(|error| match error {
            // Whoever watches the server says so if it is gone.
            RunError::Acquire(_) | RunError::Broke(_) => Unavailable,
            RunError::Timeout(_) | RunError::Failed(_) => failed(&error),
        })
    }

    /// The pair for a session that has `left` seconds.
    fn tokens(
        &self,
        session: Uuid,
        user: Uuid,
        counter: u64,
        left: u64,
        extra: &Extra,
    ) -> Result<Opened, SessionError> {
        let life = self.spec.access_life.as_secs().min(left);
        if life == 0 {
            return Err(SessionError::NoSession);
        }
        let life = u32::try_from(life).unwrap_or(u32::MAX);
        let issued = self
            .issuer
            .issue(&user.to_string(), &session.to_string(), Some(life), extra)?;
        Ok(Opened {
            session,
            user,
            access_token: issued.token,
            refresh_token: self.key.make(session, counter),
            expires_in: issued.expires_in,
        })
    }
}

/// The user, and the seconds that are left.
fn owner(row: &PgRow) -> Result<(Uuid, u64), SessionError> {
    let (user, left) = sql::owner(row).map_err(|error| failed(&error))?;
    Ok((user, u64::try_from(left).unwrap_or(0)))
}

/// Say what is wrong with a statement or its rows: a fault of ours, or of somebody who changed the tables.
fn failed(error: &dyn std::error::Error) -> Unavailable {
    tracing::error!(target: "berth::identity", %error, "a statement of the identity store failed");
    Unavailable
}
