//! What the decisions need of the world, and the world: the host's functions. Tests put another one in its place.

use crate::accounts::{self, Account, NewAccount, NotMade};
use crate::berth::host::log::{self, Level};
use crate::berth::host::passwords::{self, Verdict};
use crate::berth::host::sessions::{self, Info, Reason, Tokens};
use crate::exports::berth::policy::auth::{Problem, RequestInfo, User};

/// Accounts, passwords and sessions.
pub trait Host {
    fn find_by_email(&self, canonical: &str) -> Result<Option<Account>, Problem>;
    fn find(&self, id: &str) -> Result<Option<Account>, Problem>;
    fn create(&self, account: &NewAccount<'_>) -> Result<User, NotMade>;
    /// False if the hash isn't the old one any more.
    fn replace_hash(&self, id: &str, old: &str, new: &str) -> Result<bool, Problem>;
    fn hash(&self, password: &str) -> Result<String, passwords::Error>;
    /// Takes the time of one hash, whatever it is given.
    fn verify(&self, password: &str, hash: Option<&str>) -> Result<Verdict, passwords::Error>;
    fn open(&self, user: &str, info: &RequestInfo) -> Result<Tokens, sessions::Error>;
    fn refresh(&self, token: &str) -> Result<Tokens, sessions::Error>;
    fn sessions(&self, user: &str) -> Result<Vec<Info>, sessions::Error>;
    fn close(&self, user: &str, session: &str, why: Reason) -> Result<bool, sessions::Error>;
    fn close_all(&self, user: &str, keep: Option<&str>, why: Reason) -> Result<u32, sessions::Error>;
    /// Bytes that nobody can guess.
    fn random(&self) -> Result<[u8; 10], Problem>;
    /// Something that an operator should look at.
    fn warn(&self, what: &str);
}

/// The host that runs this component.
#[derive(Clone, Copy, Debug)]
pub struct Real;

/// Claims of the policy's own. None: what a token would say of roles is old as soon as they change, and the host tells
/// `authenticate` the account as it is.
const NO_CLAIMS: &str = "";

impl Host for Real {
    fn find_by_email(&self, canonical: &str) -> Result<Option<Account>, Problem> {
        accounts::find_by_email(canonical)
    }

    fn find(&self, id: &str) -> Result<Option<Account>, Problem> {
        accounts::find(id)
    }

    fn create(&self, account: &NewAccount<'_>) -> Result<User, NotMade> {
        accounts::create(account)
    }

    fn replace_hash(&self, id: &str, old: &str, new: &str) -> Result<bool, Problem> {
        accounts::replace_hash(id, old, new)
    }

    fn hash(&self, password: &str) -> Result<String, passwords::Error> {
        passwords::hash(password)
    }

    fn verify(&self, password: &str, hash: Option<&str>) -> Result<Verdict, passwords::Error> {
        passwords::verify(password, hash)
    }

    fn open(&self, user: &str, info: &RequestInfo) -> Result<Tokens, sessions::Error> {
        sessions::open(user, &info.client_ip, info.user_agent.as_deref(), NO_CLAIMS)
    }

    fn refresh(&self, token: &str) -> Result<Tokens, sessions::Error> {
        sessions::refresh(token, NO_CLAIMS)
    }

    fn sessions(&self, user: &str) -> Result<Vec<Info>, sessions::Error> {
        sessions::open_sessions(user)
    }

    fn close(&self, user: &str, session: &str, why: Reason) -> Result<bool, sessions::Error> {
        sessions::close(user, session, why)
    }

    fn close_all(&self, user: &str, keep: Option<&str>, why: Reason) -> Result<u32, sessions::Error> {
        sessions::close_all(user, keep, why)
    }

    fn random(&self) -> Result<[u8; 10], Problem> {
        let mut bytes = [0; 10];
        getrandom::fill(&mut bytes)
            .map_err(|_| crate::refusal::internal("there are no random bytes", &[]))?;
        Ok(bytes)
    }

    fn warn(&self, what: &str) {
        log::write(Level::Warn, what, &[]);
    }
}
