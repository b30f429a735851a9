//! What the host keeps of accounts whatever a policy says: who is signed in, which refresh token is the next one, who
//! is still welcome, how often somebody may try, and a record of all of it.

mod account;
pub mod audit;
pub mod limits;
pub mod sessions;
pub mod users;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use unicode_normalization::UnicodeNormalization;

use crate::data::DataFolder;
use crate::postgres::Postgres;
use crate::tokens::issue::Issuer;
pub use account::Account;
use limits::Rate;

/// What the manifest says of attempts and their record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentitySpec {
    /// How often one address may try, over all accounts; nothing is no limit.
    pub address_rate: Option<Rate>,
    /// How often one address may try for one account; nothing is no limit.
    pub account_rate: Option<Rate>,
    /// How many days the record of attempts is kept.
    pub audit_days: u32,
}

impl Default for IdentitySpec {
    fn default() -> Self {
        let rate = |count, per| NonZeroU32::new(count).map(|count| Rate { count, per });
        Self {
            address_rate: rate(60, Duration::from_secs(60)),
            account_rate: rate(10, Duration::from_secs(5 * 60)),
            audit_days: 365,
        }
    }
}

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

/// An e-mail address as accounts are told apart: in lower case and NFC.
pub fn canonical(email: &str) -> String {
    email.to_lowercase().nfc().collect()
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
