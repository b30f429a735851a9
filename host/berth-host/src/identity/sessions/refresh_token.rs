//! Refresh tokens: made and checked with a key, stored nowhere.
//!
//! `berth_rt_` and base64url of: version (1 byte), session (16), counter (8, big-endian), HMAC-SHA-256 of all that (32).
//! Opaque to everybody else. The prefix is for scanners that look for secrets where none should be.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

use crate::secret::Secret;

const PREFIX: &str = "berth_rt_";
const VERSION: u8 = 1;
/// Version, session and counter.
const BODY: usize = 1 + 16 + 8;
const TAG: usize = 32;
const WHOLE: usize = BODY + TAG;

/// What the tokens are made with.
#[derive(Debug)]
pub(super) struct RefreshKey(Secret);

impl RefreshKey {
    pub(super) fn new(key: Secret) -> Self {
        Self(key)
    }

    /// The token of a session with this counter.
    pub(super) fn make(&self, session: Uuid, counter: u64) -> String {
        let mut bytes = Vec::with_capacity(WHOLE);
        bytes.push(VERSION);
        bytes.extend_from_slice(session.as_bytes());
        bytes.extend_from_slice(&counter.to_be_bytes());
        let tag = self.mac(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&tag);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Session and counter of a token that this key made. The tag is compared in constant time.
    pub(super) fn read(&self, token: &str) -> Option<(Uuid, u64)> {
        let text = token.strip_prefix(PREFIX)?;
        let mut bytes = [0; WHOLE];
        // Longer text doesn't fit, and is not even decoded.
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        let (body, tag) = bytes.split_at(BODY);
        self.mac(body).verify_slice(tag).ok()?;
        let (version, rest) = body.split_first()?;
        let (session, counter) = rest.split_at_checked(16)?;
        let session = Uuid::from_slice(session).ok()?;
        let counter = u64::from_be_bytes(counter.try_into().ok()?);
        (length == WHOLE && *version == VERSION).then_some((session, counter))
    }

    fn mac(&self, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = keyed(self.0.expose());
        mac.update(body);
        mac
    }
}

/// HMAC takes a key of any length.
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => Hmac::<Sha256>::new(&Default::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> RefreshKey {
        RefreshKey::new(Secret::new(vec![byte; 32]))
    }

    #[test]
    fn token_comes_back_as_it_was_made_and_only_with_its_key() {
        let session = Uuid::now_v7();
        for counter in [0, 1, u64::MAX] {
            let token = key(1).make(session, counter);
            assert_eq!(token.len(), PREFIX.len() + 76);
            assert_eq!(key(1).read(&token), Some((session, counter)));
            assert_eq!(key(2).read(&token), None);
        }
    }

    #[test]
    fn token_that_differs_in_one_bit_or_in_length_is_none() {
        let token = key(1).make(Uuid::now_v7(), 7);
        let bytes = URL_SAFE_NO_PAD.decode(&token[PREFIX.len()..]).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[at] ^= 1 << bit;
                assert_eq!(
                    key(1).read(&format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(other))),
                    None,
                    "byte {at}, bit {bit}"
                );
            }
        }
        for bad in [
            String::new(),
            PREFIX.to_owned(),
            token[PREFIX.len()..].to_owned(),
            token[..token.len() - 1].to_owned(),
            format!("{token}A"),
            format!("{token}="),
            format!("{PREFIX}{}", "A".repeat(1_000_000)),
        ] {
            assert_eq!(key(1).read(&bad), None);
        }
    }
}
