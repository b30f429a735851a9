//! Access tokens: JSON Web Tokens (RFC 7519) in the profile of RFC 9068, verified by the host before any policy sees
//! a claim.
//!
//! Strict on purpose: one algorithm per key, every claim there and of its type, `typ` as it must be, no leeway for the
//! one clock that issues and verifies. What is wrong with a token is never told to its bearer.

use std::fmt;
use std::path::{Path, PathBuf};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::dispatch::auth::bindings::exports::berth::policy::auth::Claims;

/// The longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 8 * 1024;
/// The shortest key, in bytes: as long as the hash (RFC 7518 section 3.2).
const MIN_KEY: usize = 32;
/// The longest `sub` and `sid`, in bytes.
const MAX_ID: usize = 128;
/// The `typ` of an access token (RFC 9068 section 2.1).
const TYPE: &str = "at+jwt";

/// What the manifest says of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpec {
    /// Where the HS256 key is; without one no token is valid.
    pub hs256_key_file: Option<PathBuf>,
    /// The `iss` that tokens must have.
    pub issuer: String,
    /// The `aud` that tokens must have.
    pub audience: String,
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

/// Knows a valid token.
pub struct Verifier {
    key: DecodingKey,
    validation: Validation,
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
    #[serde(default)]
    ext: Map<String, Value>,
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
        let key = read(path)?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["iss", "aud", "sub", "exp"]);
        validation.set_issuer(&[&spec.issuer]);
        validation.set_audience(&[&spec.audience]);
        validation.validate_nbf = true;
        validation.leeway = 0;
        Ok(Some(Self {
            key: DecodingKey::from_secret(&key),
            validation,
        }))
    }

    /// The claims of a valid access token.
    pub fn verify(&self, token: &str) -> Option<Claims> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let token = decode::<AccessClaims>(token, &self.key, &self.validation).ok()?;
        let is_access = token.header.typ.is_some_and(|typ| typ.eq_ignore_ascii_case(TYPE));
        let claims = token.claims;
        let usable = is_access && is_id(&claims.sub) && is_id(&claims.sid);
        usable.then(|| Claims {
            subject: claims.sub,
            session_id: claims.sid,
            issued_at: claims.iat.saturating_mul(1_000),
            expires_at: claims.exp.saturating_mul(1_000),
            extra: Value::Object(claims.ext).to_string(),
            account: None,
        })
    }
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
mod tests {
    use std::io::Write;
    use std::time::{SystemTime, UNIX_EPOCH};

    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn verifier() -> Verifier {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{KEY}").unwrap();
        let spec = TokenSpec {
            hs256_key_file: Some(file.path().to_owned()),
            issuer: "berth".to_owned(),
            audience: "berth".to_owned(),
        };
        Verifier::load(&spec).unwrap().unwrap()
    }

    fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    fn good() -> Value {
        json!({ "iss": "berth", "aud": "berth", "sub": "u1", "sid": "s1", "iat": now(), "exp": now() + 60 })
    }

    fn signed(typ: Option<&str>, alg: Algorithm, key: &str, claims: &Value) -> String {
        let mut header = Header::new(alg);
        header.typ = typ.map(str::to_owned);
        encode(&header, claims, &EncodingKey::from_secret(key.as_bytes())).unwrap()
    }

    fn verified(claims: &Value) -> Option<Claims> {
        verifier().verify(&signed(Some("at+jwt"), Algorithm::HS256, KEY, claims))
    }

    #[test]
    fn valid_token_gives_its_claims() {
        let mut claims = good();
        claims["ext"] = json!({ "plan": "free" });
        let found = verified(&claims).unwrap();
        assert_eq!((found.subject.as_str(), found.session_id.as_str()), ("u1", "s1"));
        assert_eq!(found.expires_at, claims["exp"].as_u64().unwrap() * 1000);
        assert_eq!(found.extra, r#"{"plan":"free"}"#);
        assert_eq!(verified(&good()).unwrap().extra, "{}");
    }

    #[test]
    fn claim_that_is_missing_of_another_type_or_wrong_makes_the_token_invalid() {
        for name in ["iss", "aud", "sub", "sid", "iat", "exp"] {
            let mut claims = good();
            claims.as_object_mut().unwrap().remove(name);
            assert!(verified(&claims).is_none(), "without {name}");
            for value in [
                json!(null),
                json!(["berth"]),
                json!({}),
                json!(true),
                json!(-1),
                json!(1.5),
            ] {
                claims[name] = value.clone();
                assert!(verified(&claims).is_none(), "{name} = {value}");
            }
        }
        let wrong = [
            ("iss", json!("else")),
            ("aud", json!("else")),
            ("sub", json!("")),
            ("sub", json!("two words")),
            ("sub", json!("a\r\nb")),
            ("sid", json!("x".repeat(129))),
            ("exp", json!("never")),
            ("exp", json!(now() - 1)),
            ("nbf", json!(now() + 30)),
            ("nbf", json!("99999999999")),
            ("ext", json!("text")),
        ];
        for (name, value) in wrong {
            let mut claims = good();
            claims[name] = value.clone();
            assert!(verified(&claims).is_none(), "{name} = {value}");
        }
    }

    #[test]
    fn signature_algorithm_and_type_must_be_right() {
        let claims = good();
        let verifier = verifier();
        assert!(
            verifier
                .verify(&signed(Some("AT+JWT"), Algorithm::HS256, KEY, &claims))
                .is_some()
        );
        for typ in [None, Some("JWT"), Some("refresh")] {
            assert!(
                verifier
                    .verify(&signed(typ, Algorithm::HS256, KEY, &claims))
                    .is_none(),
                "{typ:?}"
            );
        }
        assert!(
            verifier
                .verify(&signed(Some("at+jwt"), Algorithm::HS384, KEY, &claims))
                .is_none()
        );
        assert!(
            verifier
                .verify(&signed(
                    Some("at+jwt"),
                    Algorithm::HS256,
                    &KEY.replace('0', "1"),
                    &claims
                ))
                .is_none()
        );
        // {"alg":"none","typ":"at+jwt"} with the same claims and no signature, and other nonsense.
        let token = signed(Some("at+jwt"), Algorithm::HS256, KEY, &claims);
        let body = token.split('.').nth(1).unwrap();
        for bad in [
            format!("eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.{body}."),
            format!("{token}x"),
            format!("{body}.{body}.{body}"),
            String::new(),
            "a.b.c".to_owned(),
            "x".repeat(1_000_000),
        ] {
            assert!(verifier.verify(&bad).is_none());
        }
    }

    #[test]
    fn one_line_end_is_no_part_of_the_key_and_nothing_else_is_cut_off() {
        let read_back = |bytes: &[u8]| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(bytes).unwrap();
            read(file.path()).unwrap()
        };
        let key = [b'k'; 32];
        for end in [&b"\n"[..], b"\r\n", b""] {
            assert_eq!(read_back(&[&key[..], end].concat()), key);
        }
        for end in [&b" "[..], b"\n\n", b"\t"] {
            let whole = [&key[..], end].concat();
            let cut = whole.strip_suffix(b"\n").unwrap_or(&whole);
            assert_eq!(read_back(&whole), cut);
        }
    }

    #[test]
    fn key_that_is_missing_or_short_is_refused_without_being_said() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "hunter2").unwrap();
        let spec = |path: PathBuf| TokenSpec {
            hs256_key_file: Some(path),
            issuer: String::new(),
            audience: String::new(),
        };
        let short = Verifier::load(&spec(file.path().to_owned()))
            .unwrap_err()
            .to_string();
        assert!(
            short.ends_with(
                "the token key has 7 bytes; HS256 needs at least 32, as from `openssl rand -hex 32`"
            )
        );
        assert!(!short.contains("hunter2"));
        let missing = Verifier::load(&spec("/nowhere/key".into()))
            .unwrap_err()
            .to_string();
        assert_eq!(
            missing,
            "/nowhere/key: the token key can't be read: there is no such file"
        );
        assert_eq!(format!("{:?}", verifier()), "Verifier { .. }");
    }
}
