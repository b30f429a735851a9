//! The public keys of tokens, for others who verify: a JWK Set (RFC 7517 section 5) of Ed25519 keys in the form of RFC
//! 8037 section 2.
//!
//! An HS256 key is never in it: whoever has it can issue.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::Serialize;

/// Where it is served (by convention; no RFC has it).
pub const PATH: &str = "/.well-known/jwks.json";
/// Its media type (RFC 7517 section 8.5.2).
pub const CONTENT_TYPE: &str = "application/jwk-set+json";
/// How long others may keep it, in seconds. Who meets a `kid` that isn't in it must ask again anyway.
pub const MAX_AGE: u32 = 300;

#[derive(Serialize)]
struct KeySet<'a> {
    keys: Vec<Key<'a>>,
}

#[derive(Serialize)]
struct Key<'a> {
    kty: &'static str,
    crv: &'static str,
    #[serde(rename = "use")]
    purpose: &'static str,
    alg: &'static str,
    kid: &'a str,
    x: String,
}

/// The document for these ids and points.
pub(super) fn document(keys: &[(&str, [u8; 32])]) -> Bytes {
    let keys = keys.iter().map(|(kid, point)| Key {
        kty: "OKP",
        crv: "Ed25519",
        purpose: "sig",
        alg: "EdDSA",
        kid,
        x: URL_SAFE_NO_PAD.encode(point),
    });
    let set = KeySet { keys: keys.collect() };
    // Serialising strings can't fail.
    serde_json::to_vec(&set).map_or_else(|_| Bytes::from_static(b"{\"keys\":[]}"), Bytes::from)
}
