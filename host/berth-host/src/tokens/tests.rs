//! Tokens of somebody else: one key from a file.

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
        algorithm: TokenAlgorithm::EdDsa,
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
    verifier()
        .verify(&signed(Some("at+jwt"), Algorithm::HS256, KEY, claims))
        .ok()
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
            .is_ok()
    );
    for typ in [None, Some("JWT"), Some("refresh")] {
        assert!(
            verifier
                .verify(&signed(typ, Algorithm::HS256, KEY, &claims))
                .is_err(),
            "{typ:?}"
        );
    }
    assert!(
        verifier
            .verify(&signed(Some("at+jwt"), Algorithm::HS384, KEY, &claims))
            .is_err()
    );
    assert!(
        verifier
            .verify(&signed(
                Some("at+jwt"),
                Algorithm::HS256,
                &KEY.replace('0', "1"),
                &claims
            ))
            .is_err()
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
        assert!(verifier.verify(&bad).is_err());
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
        algorithm: TokenAlgorithm::EdDsa,
        issuer: String::new(),
        audience: String::new(),
    };
    let short = Verifier::load(&spec(file.path().to_owned()))
        .unwrap_err()
        .to_string();
    assert!(
        short.ends_with("the token key has 7 bytes; HS256 needs at least 32, as from `openssl rand -hex 32`")
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
