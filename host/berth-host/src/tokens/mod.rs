//! Access tokens: JSON Web Tokens (RFC 7519) in the profile of RFC 9068 (without its `client_id`: there are no clients of
//! OAuth here), verified by the host before any policy sees a claim.
//!
//! Strict on purpose: one algorithm per key, one key per `kid`, every claim there and of its type, `typ` as it must be, no
//! leeway for the one clock that issues and verifies. That a token has expired is told to its bearer, and nothing
//! else that is wrong with one.
//!
//! Keys come from one of two places. With `tokens.hs256_key_file`, somebody else issues and this host only verifies.
//! Without, the host has a [`ring::Ring`] of its own and [`issue::Issuer`] signs with the newest of its keys.

pub mod issue;
pub mod jwks;
pub mod ring;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, TokenData, Validation, decode, decode_header};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use self::ring::Ring;
use crate::dispatch::auth::bindings::exports::berth::policy::auth::Claims;

/// The longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 8 * 1024;
/// The shortest key, in bytes: as long as the hash (RFC 7518 section 3.2).
const MIN_KEY: usize = 32;
/// The longest `sub` and `sid`, in bytes.
const MAX_ID: usize = 128;
/// The `typ` of an access token (RFC 9068 section 2.1).
const TYPE: &str = "at+jwt";
/// How far ahead the clock of whoever issued a token may be, in seconds. Expiry has no such leeway.
const CLOCK_SKEW: u64 = 5;

/// What the manifest says of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpec {
    /// Where the HS256 key of whoever issues tokens is; without one, the host issues them itself.
    pub hs256_key_file: Option<PathBuf>,
    /// What the host's own keys are for.
    pub algorithm: TokenAlgorithm,
    /// The `iss` that tokens must have.
    pub issuer: String,
    /// The `aud` that tokens must have.
    pub audience: String,
}

/// How the host signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, Deserialize)]
pub enum TokenAlgorithm {
    /// Ed25519 (RFC 8037): others can verify with the public key and can't issue.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// HMAC with SHA-256 (RFC 7518 section 3.2): whoever can verify can issue.
    #[serde(rename = "HS256")]
    Hs256,
}

impl TokenAlgorithm {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::EdDsa, Self::Hs256];

    /// Its name in tokens (`alg`) and in the manifest.
    pub const fn key(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Hs256 => "HS256",
        }
    }

    const fn jwt(self) -> Algorithm {
        match self {
            Self::EdDsa => Algorithm::EdDSA,
            Self::Hs256 => Algorithm::HS256,
        }
    }
}

/// Why the key can't be used. Never says a byte of it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read.
    #[error("{}: the token key can't be read: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The key is too short to be safe.
    #[error("{}: the token key has {length} bytes; HS256 needs at least {MIN_KEY}, as from `openssl rand -hex 32`", path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// Bytes.
        length: usize,
    },
}

/// Why a token isn't accepted. Whoever has one that is right but for its age was its bearer, and may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// Whatever it is; nobody is told.
    Invalid,
    /// Everything is right, but its time is over.
    Expired,
}

/// Knows a valid token.
pub struct Verifier {
    keys: Keys,
    eddsa: Validation,
    hs256: Validation,
}

enum Keys {
    /// Somebody else's.
    File(DecodingKey),
    /// The host's own.
    Ring(Arc<Ring>),
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct AccessClaims {
    #[serde(rename = "iss")]
    _issuer: String,
    #[serde(rename = "aud")]
    _audience: String,
    sub: String,
    sid: String,
    iat: u64,
    exp: u64,
    #[serde(default, deserialize_with = "there")]
    nbf: Option<u64>,
    #[serde(default)]
    ext: Map<String, Value>,
}

/// May be left out, but not be null.
fn there<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u64>, D::Error> {
    u64::deserialize(value).map(Some)
}

impl Verifier {
    /// With the key of the manifest; nothing if it names none.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn load(spec: &TokenSpec) -> Result<Option<Self>, KeyError> {
        let Some(path) = &spec.hs256_key_file else {
            return Ok(None);
        };
        let key = DecodingKey::from_secret(&read(path)?);
        Ok(Some(Self::new(spec, Keys::File(key))))
    }

    /// With the host's own keys.
    pub fn of_ring(spec: &TokenSpec, ring: Arc<Ring>) -> Self {
        Self::new(spec, Keys::Ring(ring))
    }

    fn new(spec: &TokenSpec, keys: Keys) -> Self {
        Self {
            keys,
            eddsa: validation(spec, Algorithm::EdDSA),
            hs256: validation(spec, Algorithm::HS256),
        }
    }

    /// The host's own keys, if these are what tokens are verified with.
    pub fn ring(&self) -> Option<&Arc<Ring>> {
        match &self.keys {
            Keys::File(_) => None,
            Keys::Ring(ring) => Some(ring),
        }
    }

    /// The claims of a valid access token.
    ///
    /// # Errors
    /// See [`TokenFault`].
    pub fn verify(&self, token: &str) -> Result<Claims, TokenFault> {
        self.verify_at(token, now())
    }

    /// The same at another time, in seconds since the Unix epoch.
    fn verify_at(&self, token: &str, now: u64) -> Result<Claims, TokenFault> {
        let token = self.signed(token, now).ok_or(TokenFault::Invalid)?;
        // Nothing that would have to be understood (RFC 7515 section 4.1.11) is.
        let is_access =
            token.header.crit.is_none() && token.header.typ.is_some_and(|typ| typ.eq_ignore_ascii_case(TYPE));
        let claims = token.claims;
        let is_not_early =
            claims.iat <= now.saturating_add(CLOCK_SKEW) && claims.nbf.is_none_or(|nbf| nbf <= now);
        if !(is_access && is_not_early && is_id(&claims.sub) && is_id(&claims.sid)) {
            return Err(TokenFault::Invalid);
        }
        if now >= claims.exp {
            return Err(TokenFault::Expired);
        }
        Ok(Claims {
            subject: claims.sub,
            session_id: claims.sid,
            issued_at: claims.iat.saturating_mul(1_000),
            expires_at: claims.exp.saturating_mul(1_000),
            extra: Value::Object(claims.ext).to_string(),
            account: None,
        })
    }

    /// What a token says, if its signature, issuer and audience are right.
    fn signed(&self, token: &str, now: u64) -> Option<TokenData<AccessClaims>> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        match &self.keys {
            Keys::File(key) => decode(token, key, &self.hs256).ok(),
            Keys::Ring(ring) => {
                let kid = decode_header(token).ok()?.kid?;
                let keys = ring.keys();
                let key = keys.verifying(&kid, now)?;
                let validation = match key.algorithm {
                    TokenAlgorithm::EdDsa => &self.eddsa,
                    TokenAlgorithm::Hs256 => &self.hs256,
                };
                decode(token, &key.verifying, validation).ok()
            }
        }
    }
}

/// One algorithm each: a list of two families makes every token invalid. The times are judged by [`Verifier`].
fn validation(spec: &TokenSpec, algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.set_required_spec_claims(&["iss", "aud", "sub", "exp"]);
    validation.set_issuer(&[&spec.issuer]);
    validation.set_audience(&[&spec.audience]);
    validation.validate_exp = false;
    validation.leeway = 0;
    validation
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// Something that can be a header's value and a log field.
fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// One line end at the end is a text editor's and not part of the key; everything else is.
fn read(path: &Path) -> Result<Vec<u8>, KeyError> {
    let key = std::fs::read(path).map_err(|error| KeyError::Unreadable {
        path: path.to_owned(),
        reason: match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            _ => error.to_string(),
        },
    })?;
    let key = key.strip_suffix(b"\n").unwrap_or(&key);
    let key = key.strip_suffix(b"\r").unwrap_or(key);
    if key.len() < MIN_KEY {
        return Err(KeyError::Short {
            path: path.to_owned(),
            length: key.len(),
        });
    }
    Ok(key.to_vec())
}

#[cfg(test)]
mod own_tests;
#[cfg(test)]
mod tests;
