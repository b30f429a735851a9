//! Signing access tokens with the current key of the ring.

use std::sync::Arc;

use jsonwebtoken::{Header, encode};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::ring::Ring;
use super::{TYPE, TokenSpec, is_id, now};

/// The longest `ext`, in bytes of JSON: a token is a header of every request.
const MAX_EXTRA: usize = 2 * 1024;

/// Signs tokens.
#[derive(Debug)]
pub struct Issuer {
    ring: Arc<Ring>,
    issuer: String,
    audience: String,
}

/// A token.
pub struct Issued {
    /// For `Authorization: Bearer`.
    pub token: String,
    /// Seconds from now.
    pub expires_in: u32,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// What about the arguments.
    #[error("{0}")]
    Invalid(String),
    /// The host's own fault. For the log.
    #[error("a token can't be signed: {0}")]
    Signing(String),
}

/// Claims that were checked: a JSON object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extra(Map<String, Value>);

impl Extra {
    /// From JSON text; empty for none.
    ///
    /// # Errors
    /// It is no object, or longer than 2 KiB.
    pub fn parse(text: &str) -> Result<Self, IssueError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > MAX_EXTRA {
            return Err(IssueError::Invalid(format!(
                "`extra` is longer than {MAX_EXTRA} bytes"
            )));
        }
        serde_json::from_str(text)
            .map(Self)
            .map_err(|error| IssueError::Invalid(format!("`extra` is not a JSON object: {error}")))
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    sid: &'a str,
    /// So that two tokens of one second differ.
    jti: String,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Map::is_empty")]
    ext: &'a Map<String, Value>,
}

impl Issuer {
    /// With the keys of `ring`.
    pub fn new(spec: &TokenSpec, ring: Arc<Ring>) -> Self {
        Self {
            ring,
            issuer: spec.issuer.clone(),
            audience: spec.audience.clone(),
        }
    }

    /// A token for `life` seconds, or as long as one may live.
    ///
    /// # Errors
    /// The ids are not 1 to 128 visible ASCII characters, the life is none or too long, or signing failed.
    pub fn issue(
        &self,
        subject: &str,
        session: &str,
        life: Option<u32>,
        extra: &Extra,
    ) -> Result<Issued, IssueError> {
        self.issue_at(subject, session, life, extra, now())
    }

    pub(super) fn issue_at(
        &self,
        subject: &str,
        session: &str,
        life: Option<u32>,
        extra: &Extra,
        now: u64,
    ) -> Result<Issued, IssueError> {
        for (name, id) in [("subject", subject), ("session-id", session)] {
            if !is_id(id) {
                return Err(IssueError::Invalid(format!(
                    "`{name}` is not 1 to {} visible ASCII characters",
                    super::MAX_ID
                )));
            }
        }
        let longest = u32::try_from(self.ring.life()).unwrap_or(u32::MAX);
        let life = life.unwrap_or(longest);
        if life == 0 || life > longest {
            return Err(IssueError::Invalid(format!(
                "`life` is not 1 to {longest} seconds (`tokens.access_life`)"
            )));
        }
        let keys = self.ring.keys();
        let signing = keys.signing();
        let header = Header {
            typ: Some(TYPE.to_owned()),
            kid: Some(signing.kid.clone()),
            ..Header::new(signing.algorithm.jwt())
        };
        let claims = Claims {
            iss: &self.issuer,
            aud: &self.audience,
            sub: subject,
            sid: session,
            jti: Uuid::now_v7().to_string(),
            iat: now,
            exp: now.saturating_add(u64::from(life)),
            ext: &extra.0,
        };
        let token = encode(&header, &claims, &signing.key);
        let token = token.map_err(|error| IssueError::Signing(error.to_string()))?;
        Ok(Issued {
            token,
            expires_in: life,
        })
    }
}
