//! What the host keeps of accounts whatever a policy says: who is signed in, which refresh token is the next one, who
//! is still welcome, how often somebody may try, and a record of all of it.

pub mod sessions;

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::data::DataFolder;
use crate::postgres::Postgres;
use crate::tokens::issue::Issuer;

/// What the manifest says of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSpec {
    /// How long an access token is valid.
    pub access_life: Duration,
    /// How long a session lives after it was last refreshed.
    pub refresh_life: Duration,
}

/// The identity store.
#[derive(Debug)]
pub struct Identity {
    /// Where it is kept.
    pub postgres: Arc<Postgres>,
    /// Who is signed in.
    pub sessions: sessions::Sessions,
}

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

/// The identity store can't be asked at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Postgres can't be reached")]
pub struct Unavailable;

impl Identity {
    /// On a database whose tables are there.
    pub fn new(postgres: Arc<Postgres>, data: &DataFolder, spec: SessionSpec, issuer: Arc<Issuer>) -> Self {
        Self {
            sessions: sessions::Sessions::new(Arc::clone(&postgres), data, spec, issuer),
            postgres,
        }
    }
}
