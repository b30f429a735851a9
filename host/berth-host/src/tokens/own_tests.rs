//! Tokens of the host's own keys. The names J1 to J7 are those of the list of cases that break others.

use std::path::Path;
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

use super::issue::{Extra, IssueError, Issuer};
use super::*;
use crate::data;
use crate::secret::Secret;

const HOUR: Duration = Duration::from_secs(3600);
/// A moment to begin at.
const T: u64 = 1_900_000_000;

fn spec(algorithm: TokenAlgorithm) -> TokenSpec {
    TokenSpec {
        hs256_key_file: None,
        algorithm,
        issuer: "berth".to_owned(),
        audience: "api".to_owned(),
    }
}

struct Own {
    folder: tempfile::TempDir,
    ring: Arc<Ring>,
    issuer: Issuer,
    verifier: Verifier,
}

fn own(algorithm: TokenAlgorithm) -> Own {
    let folder = tempfile::tempdir().unwrap();
    let ring = Arc::new(Ring::open(folder.path(), algorithm, HOUR).unwrap());
    let spec = spec(algorithm);
    Own {
        issuer: Issuer::new(&spec, Arc::clone(&ring)),
        verifier: Verifier::of_ring(&spec, Arc::clone(&ring)),
        ring,
        folder,
    }
}

impl Own {
    fn issue(&self, now: u64) -> String {
        let issued = self.issuer.issue_at("u-1", "s-1", None, &Extra::default(), now);
        issued.unwrap().token
    }

    fn kid(&self) -> String {
        ring::list(self.folder.path(), HOUR).unwrap()[0].kid.clone()
    }

    /// The secret of the current key.
    fn secret(&self) -> Vec<u8> {
        use base64::Engine;
        let stored = data::read(&self.folder.path().join(ring::FILE)).unwrap();
        let stored: Value = serde_json::from_slice(stored.expose()).unwrap();
        let secret = stored["keys"].as_array().unwrap().last().unwrap()["secret"]
            .as_str()
            .unwrap();
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(secret)
            .unwrap()
    }

    /// Signed as the host would, with other claims.
    fn signed(&self, claims: &Value) -> String {
        let keys = self.ring.keys();
        let signing = keys.signing();
        let header = Header {
            typ: Some(TYPE.to_owned()),
            kid: Some(signing.kid.clone()),
            ..Header::new(signing.algorithm.jwt())
        };
        encode(&header, claims, &signing.key).unwrap()
    }
}

fn good() -> Value {
    json!({ "iss": "berth", "aud": "api", "sub": "u-1", "sid": "s-1", "iat": T, "exp": T + 60 })
}

fn unsigned(header: &Value, claims: &Value) -> String {
    use base64::Engine;
    let text = |value: &Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.", text(header), text(claims))
}

fn published(ring: &Ring) -> Value {
    serde_json::from_slice(&ring.jwks()).unwrap()
}

/// J6: signing and verifying work at all, with each algorithm.
#[test]
fn j6_a_token_that_is_signed_verifies_with_every_algorithm() {
    for algorithm in TokenAlgorithm::ALL {
        let own = own(algorithm);
        let extra = Extra::parse(r#"{"plan":"free","n":[1,{}]}"#).unwrap();
        let issued = own.issuer.issue_at("u-1", "s-1", Some(60), &extra, T).unwrap();
        assert_eq!(issued.expires_in, 60);
        let claims = own.verifier.verify_at(&issued.token, T).unwrap();
        assert_eq!(
            (claims.subject.as_str(), claims.session_id.as_str()),
            ("u-1", "s-1")
        );
        assert_eq!((claims.issued_at, claims.expires_at), (T * 1000, (T + 60) * 1000));
        assert_eq!(claims.extra, r#"{"n":[1,{}],"plan":"free"}"#);
        let header = decode_header(&issued.token).unwrap();
        assert_eq!((header.alg, header.kid), (algorithm.jwt(), Some(own.kid())));
        assert_eq!(header.typ.as_deref(), Some("at+jwt"));
    }
}

/// J1: no signature is no token, however it is spelt.
#[test]
fn j1_alg_none_is_refused() {
    let own = own(TokenAlgorithm::EdDsa);
    for alg in [
        json!("none"),
        json!("None"),
        json!("NONE"),
        json!(""),
        json!(null),
    ] {
        let header = json!({ "alg": alg, "typ": "at+jwt", "kid": own.kid() });
        assert!(
            own.verifier.verify_at(&unsigned(&header, &good()), T).is_err(),
            "{alg}"
        );
    }
    let header = json!({ "typ": "at+jwt", "kid": own.kid() });
    assert!(own.verifier.verify_at(&unsigned(&header, &good()), T).is_err());
    // A signature cut off.
    let token = own.issue(T);
    let (signed, _) = token.rsplit_once('.').unwrap();
    assert!(own.verifier.verify_at(&format!("{signed}."), T).is_err());
}

/// J2: the public key, which everybody has, is no HS256 key; and a key verifies with its own algorithm alone.
#[test]
fn j2_hs256_with_the_public_key_is_refused() {
    use base64::Engine;
    let own = own(TokenAlgorithm::EdDsa);
    let x = published(&own.ring)["keys"][0]["x"].as_str().unwrap().to_owned();
    let point = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(&x)
        .unwrap();
    for key in [
        point.as_slice(),
        x.as_bytes(),
        own.ring.jwks().as_ref(),
        &own.secret(),
    ] {
        let mut header = Header::new(Algorithm::HS256);
        (header.typ, header.kid) = (Some(TYPE.to_owned()), Some(own.kid()));
        let token = encode(&header, &good(), &EncodingKey::from_secret(key)).unwrap();
        assert!(own.verifier.verify_at(&token, T).is_err());
    }
    let hs256 = self::own(TokenAlgorithm::Hs256);
    let mut header = Header::new(Algorithm::HS384);
    (header.typ, header.kid) = (Some(TYPE.to_owned()), Some(hs256.kid()));
    let token = encode(&header, &good(), &EncodingKey::from_secret(&hs256.secret())).unwrap();
    assert!(hs256.verifier.verify_at(&token, T).is_err());
    header.alg = Algorithm::HS256;
    let token = encode(&header, &good(), &EncodingKey::from_secret(&hs256.secret())).unwrap();
    assert!(hs256.verifier.verify_at(&token, T).is_ok(), "the right one");
}

/// J3: the key is found by `kid` and by nothing that a token brings along.
#[test]
fn j3_a_key_is_found_by_kid_alone() {
    let (own, other) = (own(TokenAlgorithm::EdDsa), own(TokenAlgorithm::EdDsa));
    assert!(own.verifier.verify_at(&other.issue(T), T).is_err());
    let keys = own.ring.keys();
    let mut header = Header::new(Algorithm::EdDSA);
    header.typ = Some(TYPE.to_owned());
    for kid in [None, Some(""), Some("../../etc/passwd"), Some("' or 1=1")] {
        header.kid = kid.map(str::to_owned);
        let token = encode(&header, &good(), &keys.signing().key).unwrap();
        assert!(own.verifier.verify_at(&token, T).is_err(), "{kid:?}");
    }
    header.kid = Some(own.kid());
    header.crit = Some(vec!["b64".to_owned()]);
    let token = encode(&header, &good(), &keys.signing().key).unwrap();
    assert!(own.verifier.verify_at(&token, T).is_err(), "crit");
    // Its own key in the header, its address, a certificate: not looked at.
    (header.crit, header.kid) = (None, Some(other.kid()));
    header.jwk = serde_json::from_value(published(&other.ring)["keys"][0].clone()).unwrap();
    header.jku = Some("https://attacker.example/jwks.json".to_owned());
    let theirs = other.ring.keys();
    let token = encode(&header, &good(), &theirs.signing().key).unwrap();
    assert!(own.verifier.verify_at(&token, T).is_err(), "jwk");
}

/// J4: a claim that is missing, or of another type, is not a claim that was checked.
#[test]
fn j4_claims_must_be_there_and_of_their_type() {
    let own = own(TokenAlgorithm::EdDsa);
    assert!(own.verifier.verify_at(&own.signed(&good()), T).is_ok());
    for name in ["iss", "aud", "sub", "sid", "iat", "exp"] {
        let mut claims = good();
        claims.as_object_mut().unwrap().remove(name);
        assert!(
            own.verifier.verify_at(&own.signed(&claims), T).is_err(),
            "without {name}"
        );
        for value in [
            json!(null),
            json!(["berth"]),
            json!(["api"]),
            json!({}),
            json!(true),
            json!(-1),
            json!(1.5),
        ] {
            claims[name] = value.clone();
            assert!(
                own.verifier.verify_at(&own.signed(&claims), T).is_err(),
                "{name} = {value}"
            );
        }
    }
    for (name, value) in [
        ("exp", json!("never")),
        ("exp", json!((T + 60).to_string())),
        ("exp", json!(T as f64 + 60.5)),
        ("nbf", json!("99999999999")),
        ("nbf", json!(null)),
        ("nbf", json!(T + 1)),
        ("iat", json!(T + 6)),
        ("iss", json!("Berth")),
        ("aud", json!("berth")),
        ("ext", json!("text")),
    ] {
        let mut claims = good();
        claims[name] = value.clone();
        assert!(
            own.verifier.verify_at(&own.signed(&claims), T).is_err(),
            "{name} = {value}"
        );
    }
    // The same claim twice.
    let mut claims = good().to_string();
    claims.insert_str(claims.len() - 1, r#","sub":"root""#);
    let raw: Box<serde_json::value::RawValue> = match serde_json::from_str(&claims) {
        Ok(raw) => raw,
        Err(error) => panic!("{error}"),
    };
    let keys = own.ring.keys();
    let header = decode_header(own.issue(T)).unwrap();
    let token = encode(&header, &raw, &keys.signing().key).unwrap();
    assert!(own.verifier.verify_at(&token, T).is_err(), "a claim given twice");
}

/// J5: both sides of every boundary in time.
#[test]
fn j5_expiry_has_no_leeway() {
    let own = own(TokenAlgorithm::EdDsa);
    let token = own.issue(T);
    let valid_at = |now| own.verifier.verify_at(&token, now).is_ok();
    assert!(valid_at(T));
    assert!(valid_at(T + 3599));
    assert!(
        !valid_at(T + 3600),
        "RFC 7519: on or after the time it must not be accepted"
    );
    assert!(!valid_at(T + 3600 + 59));
    // The bearer of what was a good token is told; of anything else, nobody is.
    let late = |token: &str| own.verifier.verify_at(token, T + 3600).err();
    assert_eq!(late(&token), Some(TokenFault::Expired));
    assert_eq!(late(&format!("{token}x")), Some(TokenFault::Invalid));
    let mut other = good();
    other["aud"] = json!("else");
    assert_eq!(late(&own.signed(&other)), Some(TokenFault::Invalid));
    // Another host's clock may be ahead by five seconds and no more.
    assert!(valid_at(T - 5));
    assert!(!valid_at(T - 6));
    let mut claims = good();
    claims["nbf"] = json!(T);
    let token = own.signed(&claims);
    assert!(own.verifier.verify_at(&token, T).is_ok());
    assert!(own.verifier.verify_at(&token, T - 1).is_err());
}

/// J7 (the other half is with the sessions): what is no access token isn't one because its signature is right.
#[test]
fn j7_another_type_of_token_is_refused() {
    let own = own(TokenAlgorithm::EdDsa);
    let keys = own.ring.keys();
    for typ in [
        None,
        Some("JWT"),
        Some("refresh"),
        Some("rt+jwt"),
        Some("application/at+jwt"),
    ] {
        let header = Header {
            typ: typ.map(str::to_owned),
            kid: Some(own.kid()),
            ..Header::new(Algorithm::EdDSA)
        };
        let token = encode(&header, &good(), &keys.signing().key).unwrap();
        assert!(own.verifier.verify_at(&token, T).is_err(), "{typ:?}");
    }
}

#[test]
fn what_is_issued_is_bounded() {
    let own = own(TokenAlgorithm::EdDsa);
    let fault = |subject: &str, session: &str, life| match own.issuer.issue_at(
        subject,
        session,
        life,
        &Extra::default(),
        T,
    ) {
        Err(IssueError::Invalid(what)) => what,
        _ => panic!("{subject} {session} {life:?} was taken"),
    };
    assert_eq!(
        fault("", "s", None),
        "`subject` is not 1 to 128 visible ASCII characters"
    );
    assert_eq!(
        fault("a b", "s", None),
        "`subject` is not 1 to 128 visible ASCII characters"
    );
    assert_eq!(
        fault("u", &"s".repeat(129), None),
        "`session-id` is not 1 to 128 visible ASCII characters"
    );
    for life in [0, 3601, u32::MAX] {
        assert_eq!(
            fault("u", "s", Some(life)),
            "`life` is not 1 to 3600 seconds (`tokens.access_life`)"
        );
    }
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(2041));
    assert!(Extra::parse(&long[..]).is_err() && long.len() == 2049);
    assert!(Extra::parse(&format!(r#"{{"a":"{}"}}"#, "x".repeat(2040))).is_ok());
    for bad in [
        "[]",
        "1",
        "null",
        "\"x\"",
        "{",
        "{} {}",
        "{\"a\":}",
        &"[".repeat(2000),
    ] {
        assert!(Extra::parse(bad).is_err(), "{bad}");
    }
    assert!(Extra::parse("").is_ok());
}

#[test]
fn rotated_key_verifies_until_its_last_token_has_expired() {
    let own = own(TokenAlgorithm::EdDsa);
    let before = own.issue(now());
    let old = own.kid();
    let fresh = ring::rotate(own.folder.path(), TokenAlgorithm::EdDsa, HOUR, false).unwrap();
    assert_ne!(fresh.kid, old);
    assert!(own.ring.refresh(now()).unwrap(), "the file has changed");
    assert!(!own.ring.refresh(now()).unwrap(), "and not again");
    let after = own.issue(now());
    assert_eq!(decode_header(&after).unwrap().kid, Some(fresh.kid.clone()));
    for token in [&before, &after] {
        assert!(own.verifier.verify(token).is_ok());
    }
    let listed = ring::list(own.folder.path(), HOUR).unwrap();
    let kids: Vec<&str> = listed.iter().map(|key| key.kid.as_str()).collect();
    assert_eq!(kids, [fresh.kid.as_str(), &old]);
    let (retired, until) = (listed[1].retired.unwrap(), listed[1].verifies_until.unwrap());
    assert_eq!((until - retired, listed[0].retired), (3600 + 60, None));
    let published_kids = |ring: &Ring| published(ring)["keys"].as_array().unwrap().len();
    assert_eq!(published_kids(&own.ring), 2);
    // A token of the old key that would be valid still, made with a leaked key: its time is over with the key's.
    let keys = own.ring.keys();
    assert!(keys.verifying(&old, until - 1).is_some());
    assert!(keys.verifying(&old, until).is_none());
    drop(keys);
    assert!(own.ring.refresh(until).unwrap(), "it is dropped");
    assert_eq!(published_kids(&own.ring), 1);
    assert_eq!(ring::list(own.folder.path(), HOUR).unwrap().len(), 1);
}

#[test]
fn keys_can_be_forgotten_at_once() {
    let own = own(TokenAlgorithm::EdDsa);
    let before = own.issue(now());
    ring::rotate(own.folder.path(), TokenAlgorithm::EdDsa, HOUR, true).unwrap();
    own.ring.refresh(now()).unwrap();
    assert!(own.verifier.verify(&before).is_err());
    assert!(own.verifier.verify(&own.issue(now())).is_ok());
}

#[test]
fn another_algorithm_makes_a_new_current_key_and_old_tokens_stay_valid() {
    let own = own(TokenAlgorithm::EdDsa);
    let before = own.issue(now());
    let ring = Arc::new(Ring::open(own.folder.path(), TokenAlgorithm::Hs256, HOUR).unwrap());
    let spec = spec(TokenAlgorithm::Hs256);
    let verifier = Verifier::of_ring(&spec, Arc::clone(&ring));
    let issued = Issuer::new(&spec, Arc::clone(&ring)).issue("u-1", "s-1", None, &Extra::default());
    let after = issued.unwrap().token;
    assert_eq!(decode_header(&after).unwrap().alg, Algorithm::HS256);
    assert!(verifier.verify(&before).is_ok() && verifier.verify(&after).is_ok());
    let published = published(&ring);
    assert_eq!(
        published["keys"].as_array().unwrap().len(),
        1,
        "never a symmetric key: {published}"
    );
    assert_eq!(published["keys"][0]["alg"], "EdDSA");
}

/// RFC 8037 appendix A.2 has the public key of this seed.
#[test]
fn public_key_is_the_one_of_rfc_8037() {
    let folder = tempfile::tempdir().unwrap();
    let stored = json!({ "version": 1, "keys": [{ "kid": "k", "algorithm": "EdDSA", "created": T,
        "secret": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A" }] });
    data::replace(&folder.path().join(ring::FILE), &Secret::new(stored.to_string())).unwrap();
    let ring = Ring::open(folder.path(), TokenAlgorithm::EdDsa, HOUR).unwrap();
    assert_eq!(
        published(&ring),
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "k",
            "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }] })
    );
}

#[test]
fn ring_that_is_damaged_or_readable_is_refused_without_a_byte_of_it() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(ring::FILE);
    let error = |text: &str| {
        data::replace(&file, &Secret::new(text)).unwrap();
        let error = Ring::open(folder.path(), TokenAlgorithm::EdDsa, HOUR)
            .unwrap_err()
            .to_string();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(error.contains("tokens.json: "), "{error}");
        error
    };
    let key = |secret: &str| format!(r#"{{"kid":"k","algorithm":"EdDSA","created":1,"secret":"{secret}"}}"#);
    let good = key("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A");
    assert!(error("hunter2").contains("is not a key ring (line 1)"));
    assert!(error("").contains("is not a key ring"));
    assert!(error(r#"{"version":1,"keys":[{"secret":"hunter2"}]}"#).contains("is not a key ring"));
    assert!(error(r#"{"version":2,"keys":[]}"#).contains("is of version 2, and this berth knows version 1"));
    assert!(error(r#"{"version":1,"keys":[]}"#).contains("has no current key"));
    assert!(
        error(&format!(r#"{{"version":1,"keys":[{good},{good}]}}"#)).contains("more than one current key")
    );
    assert!(
        error(&format!(r#"{{"version":1,"keys":[{}]}}"#, key("hunter2")))
            .contains("the key \"k\" is not one")
    );
    data::replace(&file, &Secret::new(format!(r#"{{"version":1,"keys":[{good}]}}"#))).unwrap();
    assert!(Ring::open(folder.path(), TokenAlgorithm::EdDsa, HOUR).is_ok());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = Ring::open(folder.path(), TokenAlgorithm::EdDsa, HOUR)
        .unwrap_err()
        .to_string();
    assert!(error.contains("others may read this file (mode 640)"), "{error}");
}

#[test]
fn file_is_for_its_owner_alone_and_debug_says_nothing_of_it() {
    use std::os::unix::fs::PermissionsExt;
    let own = own(TokenAlgorithm::Hs256);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&own.folder.path().join(ring::FILE)), 0o600);
    ring::rotate(own.folder.path(), TokenAlgorithm::Hs256, HOUR, false).unwrap();
    assert_eq!(mode(&own.folder.path().join(ring::FILE)), 0o600);
    let text = format!("{:?} {:?} {:?}", own.ring, own.issuer, own.verifier);
    assert!(text.contains("tokens.json") && !text.contains("secret"), "{text}");
}

#[test]
fn damaged_change_leaves_the_keys_as_they_were() {
    let own = own(TokenAlgorithm::EdDsa);
    data::replace(&own.folder.path().join(ring::FILE), &Secret::new("{}")).unwrap();
    assert!(own.ring.refresh(now()).is_err());
    assert!(own.verifier.verify(&own.issue(now())).is_ok());
    assert!(
        ring::rotate(own.folder.path(), TokenAlgorithm::EdDsa, HOUR, false).is_err(),
        "not overwritten"
    );
}
