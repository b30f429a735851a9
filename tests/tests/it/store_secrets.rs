//! No password, token, hash or key gets into a log, an error or a trace, whatever the level.

use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use berth_tests::berth::Manifest;
use berth_tests::collector::Collector;
use berth_tests::store::Store;
use berth_tests::wire::{Response, request_as};
use serde_json::{Value, json};

/// Odd enough to be found, and nothing else has them.
const PASSWORD: &str = "zzPasswortZwölf-Kälber";
const NEXT_PASSWORD: &str = "zzNextPassword-Wombats";
const WRONG_PASSWORD: &str = "zzWrongPassword-Quokkas";

/// A secret in every form in which something could have written it.
fn forms(secret: &[u8]) -> Vec<String> {
    let mut forms = vec![
        STANDARD.encode(secret),
        STANDARD_NO_PAD.encode(secret),
        URL_SAFE_NO_PAD.encode(secret),
        secret.iter().map(|byte| format!("{byte:02x}")).collect(),
        secret.iter().map(|byte| format!("{byte:02X}")).collect(),
        // As `Debug` shows a list of bytes.
        secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", "),
    ];
    if let Ok(text) = std::str::from_utf8(secret) {
        forms.extend([
            text.to_owned(),
            text.escape_default().to_string(),
            json!(text).to_string().trim_matches('"').to_owned(),
        ]);
    }
    forms.retain(|form| form.len() >= 8);
    forms
}

#[test]
fn full_run_at_trace_level_writes_no_secret_anywhere() {
    let store = Store::new();
    let collector = Collector::start();
    let url = collector.url();
    let manifest = Manifest::new().accounts();
    let mut berth = store.start_with(
        &manifest,
        &[("RUST_LOG", "trace"), ("BERTH_TELEMETRY_OTLP", &url)],
    );
    let mut seen = Vec::new();
    let mut secrets: Vec<(String, Vec<u8>)> = [PASSWORD, NEXT_PASSWORD, WRONG_PASSWORD]
        .iter()
        .map(|password| ("a password".to_owned(), password.as_bytes().to_vec()))
        .collect();
    let mut keep_tokens = |answer: &Response| {
        let json = answer.json();
        let text = |name: &str| {
            json[name]
                .as_str()
                .unwrap_or_else(|| panic!("{name} in {json}"))
                .to_owned()
        };
        let pair = (text("accessToken"), text("refreshToken"));
        secrets.push(("an access token".to_owned(), pair.0.clone().into_bytes()));
        // Its parts are as good as the whole.
        let signature = pair.0.rsplit('.').next().unwrap_or_default().to_owned();
        secrets.push(("a token's signature".to_owned(), signature.into_bytes()));
        secrets.push(("a refresh token".to_owned(), pair.1.clone().into_bytes()));
        pair
    };

    // A full run: everything that has to do with secrets, once as it should be and once not.
    let credentials = |password: &str| json!({ "email": "ada@example.com", "password": password });
    let post = |path: &str, body: Value| berth.post(path, &body.to_string());
    let registered = post("/api/v1/auth/register", credentials(PASSWORD));
    assert_eq!(registered.status, 201, "{}", registered.text());
    let (access, refresh) = keep_tokens(&registered);
    for (path, body, status) in [
        ("/api/v1/auth/register", credentials(PASSWORD), 409),
        ("/api/v1/auth/login", credentials(WRONG_PASSWORD), 401),
        (
            "/api/v1/auth/login",
            json!({ "email": "ada@example.com", "password": [PASSWORD] }),
            400,
        ),
        (
            "/api/v1/auth/register",
            json!({ "email": 1, "password": PASSWORD }),
            400,
        ),
        (
            "/api/v1/auth/refresh",
            json!({ "refreshToken": format!("{refresh}x") }),
            401,
        ),
        ("/api/v1/auth/verify-email", json!({ "token": PASSWORD }), 400),
    ] {
        let answer = post(path, body);
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        seen.push(answer.text());
    }
    let (again, _) = keep_tokens(&post("/api/v1/auth/login", credentials(PASSWORD)));
    let refreshed = post("/api/v1/auth/refresh", json!({ "refreshToken": refresh }));
    let (access_2, _) = keep_tokens(&refreshed);
    for (method, path, token, body, status) in [
        ("GET", "/api/v1/me", access.clone(), Value::Null, 200),
        ("GET", "/api/v1/me", format!("{access}x"), Value::Null, 401),
        ("GET", "/api/v1/auth/sessions", access_2.clone(), Value::Null, 200),
        (
            "PATCH",
            "/api/v1/me/password",
            access_2.clone(),
            json!({ "currentPassword": WRONG_PASSWORD, "newPassword": NEXT_PASSWORD }),
            400,
        ),
        (
            "PATCH",
            "/api/v1/me/password",
            access_2.clone(),
            json!({ "currentPassword": PASSWORD, "newPassword": NEXT_PASSWORD }),
            200,
        ),
        ("GET", "/api/v1/me", again, Value::Null, 401),
        ("POST", "/api/v1/auth/logout", access_2, Value::Null, 200),
    ] {
        let json = [("content-type", "application/json")];
        let body = body.to_string();
        let answer = request_as(berth.address, &token, method, path, &json, body.as_bytes());
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        seen.push(answer.text());
    }
    seen.push(berth.get("/health").text());
    seen.push(format!("{:?}", berth.metrics()));
    let hash: String = store.one("select password_hash from identity.users");
    secrets.push(("a hash".to_owned(), hash.clone().into_bytes()));
    let digest = hash.rsplit('$').next().unwrap_or_default();
    secrets.push(("a hash's digest".to_owned(), digest.as_bytes().to_vec()));
    for file in ["master.key", "admin.token"] {
        let bytes = std::fs::read(store.data().join(file)).unwrap();
        let bytes = bytes.trim_ascii_end().to_vec();
        secrets.push((file.to_owned(), bytes));
    }
    secrets.push((
        "the password of the database".to_owned(),
        store.password().into_bytes(),
    ));
    // The policy's own role; its password is made from the master key and is nowhere else.
    // Both ways are run, so what only one of them can show is searched for there.
    let verifiers = if store.is_private() {
        store.verifiers()
    } else {
        Vec::new()
    };
    assert_eq!(verifiers.is_empty(), !store.is_private(), "the plugin has a role");
    for verifier in verifiers {
        // SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>
        let keys = verifier.rsplit('$').next().unwrap_or_default();
        for key in keys.split(':') {
            let raw = STANDARD.decode(key).unwrap();
            secrets.push((
                "a key of a role's verifier as text".to_owned(),
                key.as_bytes().to_vec(),
            ));
            secrets.push(("a key of a role's verifier".to_owned(), raw));
        }
    }
    let ring: Value =
        serde_json::from_slice(&std::fs::read(store.data().join("tokens.json")).unwrap()).unwrap();
    let keys: Vec<Vec<u8>> = ring["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["secret"].as_str().unwrap().as_bytes().to_vec())
        .collect();
    assert!(!keys.is_empty());
    for key in keys {
        let raw = URL_SAFE_NO_PAD.decode(&key).unwrap();
        secrets.push(("a token key as text".to_owned(), key));
        secrets.push(("a token key".to_owned(), raw));
    }

    berth.signal("TERM");
    assert!(berth.wait().success());
    seen.push(std::fs::read_to_string(berth.log_file()).unwrap());
    seen.push(format!("{:?}", collector.spans()));
    let all = seen.concat();
    let lines = all.matches(r#""target":"berth::request""#).count();
    assert!(lines >= 16, "there is something to search: {lines} requests");
    for (what, secret) in &secrets {
        for form in forms(secret) {
            if let Some(at) = all.find(&form) {
                let start = at.saturating_sub(300);
                let around: String = all.chars().skip(start).take(600).collect();
                panic!("{what} is in what was written, as {form:?}: …{around}…");
            }
        }
    }

    // And nothing of a start that fails.
    let folder = store.folder().join("wrong");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("berth.toml"), manifest.text()).unwrap();
    let output = berth_tests::berth::command()
        .args(["serve", "--config"])
        .arg(folder.join("berth.toml"))
        .env("RUST_LOG", "trace")
        .env("BERTH_DATA_DIR", folder.join("data"))
        .env(
            "BERTH_POSTGRES_URL",
            format!("postgres://nobody:{PASSWORD}@127.0.0.1:1/none"),
        )
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(said.contains("127.0.0.1:1"), "{said}");
    for form in forms(PASSWORD.as_bytes()) {
        assert!(!said.contains(&form), "{said}");
    }
}
