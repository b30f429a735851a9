//! Access tokens of the host's own keys, and passwords, through guests and over HTTP.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Output;

use berth_tests::berth::{Berth, Manifest, PATIENCE, run};
use berth_tests::sessions::{ask, call, manifest, open, user};
use berth_tests::store::Store;
use berth_tests::{guest, root};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Value, json};
use wit_component::DecodedWasm;
use wit_parser::{Resolve, WorldItem};

const GRANTS: [&str; 3] = ["tokens", "passwords", "sessions"];

/// `berth` with arguments, the store's data folder and a manifest, to its end.
fn berth(store: &Store, arguments: &[&str], more: &[(&str, &str)]) -> Output {
    let mut environment = store.environment();
    environment.extend(more.iter().map(|&(name, value)| (name, value.to_owned())));
    let environment: Vec<(&str, &str)> = environment.iter().map(|(n, v)| (*n, v.as_str())).collect();
    run(manifest().text(), arguments, &environment)
}

fn said(out: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&out.stdout), text(&out.stderr))
}

fn jwks(berth: &Berth) -> JwkSet {
    let answer = berth.get("/.well-known/jwks.json");
    assert_eq!(answer.header("content-type"), Some("application/jwk-set+json"));
    assert_eq!(answer.header("cache-control"), Some("public, max-age=300"));
    serde_json::from_slice(&answer.body).unwrap()
}

/// Wait until the running host has noticed that the keys changed.
fn until_kids_are(berth: &Berth, wanted: impl Fn(&[String]) -> bool) {
    let started = std::time::Instant::now();
    loop {
        let kids: Vec<String> = jwks(berth)
            .keys
            .iter()
            .filter_map(|k| k.common.key_id.clone())
            .collect();
        if wanted(&kids) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "the keys stay {kids:?}");
        std::thread::yield_now();
    }
}

#[test]
fn component_loads_with_every_grant_and_with_none_missing() {
    for missing in GRANTS {
        let rest: Vec<String> = GRANTS
            .iter()
            .filter(|g| **g != missing)
            .map(|g| format!("{g} = true"))
            .collect();
        let manifest = Manifest::new().handler_with(
            "fixtures/identity",
            &format!("grants = {{ {} }}", rest.join(", ")),
        );
        let out = run(manifest.text(), &["check"], &[]);
        let (found, _) = said(&out);
        assert_eq!(out.status.code(), Some(64), "without {missing}: {found}");
        assert!(
            found.contains(&format!("add `{missing} = true` to the plugin's `grants`")),
            "without {missing}: {found}"
        );
    }
    let out = run(manifest().text(), &["check"], &[]);
    assert!(out.status.success(), "{:?}", said(&out));
}

/// `interface.function` of `berth:host` that a decoded component or package has.
fn functions(resolve: &Resolve, interfaces: &[wit_parser::InterfaceId]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for id in interfaces {
        let interface = &resolve.interfaces[*id];
        let package = &resolve.packages[interface.package.unwrap()].name;
        if (package.namespace.as_str(), package.name.as_str()) == ("berth", "host") {
            let name = interface.name.as_deref().unwrap();
            names.extend(
                interface
                    .functions
                    .keys()
                    .map(|function| format!("{name}.{function}")),
            );
        }
    }
    names
}

/// The functions of the four interfaces for plugins with identity and data, as the WIT has them.
fn offered() -> BTreeSet<String> {
    let mut resolve = Resolve::default();
    resolve.push_dir(root().join("wit/host")).unwrap();
    let all: Vec<_> = resolve.interfaces.iter().map(|(id, _)| id).collect();
    let offered: BTreeSet<String> = functions(&resolve, &all)
        .into_iter()
        .filter(|name| is_ours(name))
        .collect();
    assert!(offered.len() >= 16, "{offered:?}");
    offered
}

fn is_ours(name: &str) -> bool {
    ["sql", "tokens", "passwords", "sessions"]
        .iter()
        .any(|i| name.split('.').next() == Some(*i))
}

/// The fixtures import every function, and nothing that isn't in the WIT.
#[test]
fn fixtures_import_every_function_of_the_wit() {
    let mut imported = BTreeSet::new();
    for fixture in ["fixtures/identity", "fixtures/sql"] {
        let bytes = std::fs::read(guest(fixture)).unwrap();
        let DecodedWasm::Component(resolve, world) = wit_component::decode(&bytes).unwrap() else {
            panic!("{fixture} is a component");
        };
        let imports: Vec<_> = resolve.worlds[world]
            .imports
            .values()
            .filter_map(|item| match item {
                WorldItem::Interface { id, .. } => Some(*id),
                _ => None,
            })
            .collect();
        imported.extend(
            functions(&resolve, &imports)
                .into_iter()
                .filter(|name| is_ours(name)),
        );
    }
    assert_eq!(imported, offered());
}

/// Every function of the WIT is called through the fixtures, and works.
#[test]
fn fixtures_call_every_function_of_the_wit() {
    let store = Store::new();
    let berth = store.start(&manifest().handler_with("fixtures/sql", "grants = { sql = [\"called\"] }"));
    let mut called = BTreeSet::new();

    let user = user(&store).to_string();
    let mut works = |function: &str, arguments: &Value| {
        let answer = call(&berth, function, arguments);
        assert!(answer.get("ok").is_some(), "{function}: {answer}");
        called.insert(function.to_owned());
        answer["ok"].clone()
    };
    let token = works("tokens.issue", &json!({ "subject": "u", "session-id": "s" }));
    assert_eq!(works("tokens.verify", &json!({ "token": token }))["subject"], "u");
    let hash = works("passwords.hash", &json!({ "password": "x" }));
    let verdict = works("passwords.verify", &json!({ "password": "x", "hash": hash }));
    assert_eq!(verdict["matches"], true);
    let opened = works(
        "sessions.open",
        &json!({ "user-id": user, "client-ip": "192.0.2.1" }),
    );
    let refreshed = works(
        "sessions.refresh",
        &json!({ "refresh-token": opened["refresh-token"] }),
    );
    assert_eq!(refreshed["session-id"], opened["session-id"]);
    let list = works("sessions.open-sessions", &json!({ "user-id": user }));
    assert_eq!(list[0]["id"], opened["session-id"]);
    works(
        "sessions.close",
        &json!({ "user-id": user, "session-id": opened["session-id"], "reason": "logout" }),
    );
    works(
        "sessions.close-all",
        &json!({ "user-id": user, "reason": "revoked" }),
    );
    let none = call(&berth, "sessions.nothing", &Value::Null);
    assert_eq!(none, json!({ "error": "no such function" }));

    let steps = [
        (
            "sql.execute",
            json!({ "do": "execute", "sql": "create table t (n int8)" }),
            json!({ "touched": 0 }),
        ),
        (
            "sql.[static]transaction.begin",
            json!({ "do": "begin" }),
            json!({ "begun": 0 }),
        ),
        (
            "sql.[method]transaction.execute",
            json!({ "do": "execute", "in": 0, "sql": "insert into t values (1)" }),
            json!({ "touched": 1 }),
        ),
        (
            "sql.[method]transaction.query",
            json!({ "do": "query", "in": 0, "sql": "select n from t" }),
            json!({ "columns": [["n", "int8"]], "rows": [[{ "int64": 1 }]] }),
        ),
        (
            "sql.[method]transaction.commit",
            json!({ "do": "commit", "in": 0 }),
            json!("committed"),
        ),
        (
            "sql.[static]transaction.begin",
            json!({ "do": "begin" }),
            json!({ "begun": 1 }),
        ),
        (
            "sql.[method]transaction.rollback",
            json!({ "do": "rollback", "in": 1 }),
            json!("rolled back"),
        ),
        (
            "sql.query",
            json!({ "do": "query", "sql": "select n from t" }),
            json!({ "columns": [["n", "int8"]], "rows": [[{ "int64": 1 }]] }),
        ),
    ];
    let asked: Vec<&Value> = steps.iter().map(|(_, step, _)| step).collect();
    let answer = berth.post("/sql/", &json!(asked).to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    for ((function, _, expected), got) in steps.iter().zip(answer.json().as_array().unwrap()) {
        assert_eq!(got, expected, "{function}");
        called.insert((*function).to_owned());
    }
    assert_eq!(called, offered());
}

#[test]
fn issued_token_is_verified_by_anybody_with_the_published_keys() {
    let store = Store::new();
    let berth = store.start(&manifest());
    let arguments =
        json!({ "subject": "u-1", "session-id": "s-1", "life": 60, "extra": "{\"plan\":\"free\"}" });
    let token = call(&berth, "tokens.issue", &arguments)["ok"]
        .as_str()
        .unwrap()
        .to_owned();
    let keys = jwks(&berth);
    let header = decode_header(&token).unwrap();
    assert_eq!(
        (header.alg, header.typ.as_deref()),
        (Algorithm::EdDSA, Some("at+jwt"))
    );
    let key = keys.find(header.kid.as_deref().unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_issuer(&["berth"]);
    validation.set_audience(&["berth"]);
    let claims = decode::<Value>(&token, &DecodingKey::from_jwk(key).unwrap(), &validation)
        .unwrap()
        .claims;
    assert_eq!((&claims["sub"], &claims["sid"]), (&json!("u-1"), &json!("s-1")));
    assert_eq!(
        claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(),
        60
    );
    assert_eq!(claims["ext"], json!({ "plan": "free" }));
    // And by the host.
    let verified = call(&berth, "tokens.verify", &json!({ "token": token }));
    assert_eq!(verified["ok"]["subject"], "u-1");
    assert_eq!(verified["ok"]["extra"], "{\"plan\":\"free\"}");
    assert_eq!(
        verified["ok"]["expires-at"].as_u64(),
        claims["exp"].as_u64().map(|exp| exp * 1000)
    );
    assert_eq!(
        call(&berth, "tokens.verify", &json!({ "token": format!("{token}x") })),
        json!({ "ok": null })
    );
    // A signature is no session.
    let unknown = ask(&berth, &json!(token));
    assert_eq!(
        (unknown.status, unknown.code().as_str()),
        (401, "invalid-access-token")
    );
    for (bad, what) in [
        (json!({ "subject": "", "session-id": "s" }), "`subject`"),
        (json!({ "subject": "u", "session-id": "a b" }), "`session-id`"),
        (json!({ "subject": "u", "session-id": "s", "life": 0 }), "`life`"),
        (
            json!({ "subject": "u", "session-id": "s", "life": 86_401 }),
            "`life`",
        ),
        (
            json!({ "subject": "u", "session-id": "s", "extra": "[1]" }),
            "`extra`",
        ),
        (
            json!({ "subject": "u", "session-id": "s", "extra": format!("{{\"a\":\"{}\"}}", "x".repeat(2048)) }),
            "`extra`",
        ),
    ] {
        let refused = call(&berth, "tokens.issue", &bad);
        assert_eq!(refused["error"], "invalid", "{bad}");
        assert!(refused["detail"].as_str().unwrap().starts_with(what), "{refused}");
    }
}

#[test]
fn keys_are_published_only_where_tokens_are_issued() {
    let berth = Manifest::new().handler("hello").start();
    assert_eq!(berth.get("/.well-known/jwks.json").code(), "not-found");
    let out = run(manifest().text(), &["routes"], &[]);
    assert!(said(&out).0.contains("/.well-known/jwks.json"));
    let taken = manifest()
        .raw("[[routes]]\npath = \"/.well-known/jwks.json\"\nplugin = \"echo\"\naccess = \"public\"");
    let out = run(taken.text(), &["check"], &[]);
    assert!(
        said(&out).1.contains("is the host's own; choose another path"),
        "{:?}",
        said(&out)
    );
}

#[test]
fn keys_rotate_while_the_host_serves() {
    let store = Store::new();
    let ada = {
        let berth = store.start(&manifest());
        let ada = user(&store);
        let before = open(&berth, ada)["access-token"].clone();
        let old = jwks(&berth).keys[0].common.key_id.clone().unwrap();

        let out = self::berth(&store, &["keys", "rotate", "tokens"], &[]);
        assert!(out.status.success(), "{:?}", said(&out));
        until_kids_are(&berth, |kids| kids.len() == 2 && kids.contains(&old));
        let after = open(&berth, ada)["access-token"].clone();
        let kid = |token: &Value| decode_header(token.as_str().unwrap()).unwrap().kid.unwrap();
        assert_eq!(kid(&before), old);
        assert!(said(&out).0.contains(&kid(&after)), "{:?}", said(&out));
        assert_eq!(
            (ask(&berth, &before).status, ask(&berth, &after).status),
            (200, 200)
        );

        let out = self::berth(&store, &["keys", "list", "--json"], &[]);
        let listed: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(
            (&listed[0]["kid"], &listed[1]["kid"]),
            (&json!(kid(&after)), &json!(old))
        );
        assert_eq!(listed[0]["verifies_until"], Value::Null);
        // A day, and a minute until the last host has noticed.
        let life = listed[1]["verifies_until"].as_u64().unwrap() - listed[1]["retired"].as_u64().unwrap();
        assert_eq!(life, 86_400 + 60);
        let text = said(&self::berth(&store, &["keys", "list"], &[])).0;
        assert_eq!(text.lines().count(), 2, "{text}");
        for secret in secrets(&store) {
            assert!(!text.contains(&secret) && !listed.to_string().contains(&secret));
        }

        let out = self::berth(&store, &["keys", "rotate", "tokens", "--drop-old"], &[]);
        assert!(out.status.success(), "{:?}", said(&out));
        until_kids_are(&berth, |kids| kids.len() == 1);
        for token in [&before, &after] {
            assert_eq!(ask(&berth, token).code(), "invalid-access-token");
        }
        let last = open(&berth, ada)["access-token"].clone();
        assert_eq!(ask(&berth, &last).status, 200);
        (ada, last)
    };
    // The keys are the same after a restart.
    let berth = store.start(&manifest());
    assert_eq!(ask(&berth, &ada.1).status, 200);
}

fn secrets(store: &Store) -> Vec<String> {
    let text = std::fs::read_to_string(store.data().join("tokens.json")).unwrap();
    let ring: Value = serde_json::from_str(&text).unwrap();
    ring["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k["secret"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn hs256_is_a_setting_and_its_key_is_never_published() {
    let store = Store::new();
    let (ada, before) = {
        let berth = store.start(&manifest());
        let ada = user(&store);
        (ada, open(&berth, ada)["access-token"].clone())
    };
    let berth = store.start_with(&manifest(), &[("BERTH_TOKENS_ALGORITHM", "HS256")]);
    let after = open(&berth, ada)["access-token"].clone();
    assert_eq!(
        decode_header(after.as_str().unwrap()).unwrap().alg,
        Algorithm::HS256
    );
    assert_eq!(
        (ask(&berth, &before).status, ask(&berth, &after).status),
        (200, 200)
    );
    let keys = jwks(&berth);
    assert_eq!(keys.keys.len(), 1, "the public key of the retired one alone");
    assert_eq!(
        keys.keys[0].common.key_id,
        decode_header(before.as_str().unwrap()).unwrap().kid
    );
    let text = berth.get("/.well-known/jwks.json").text();
    assert!(secrets(&store).iter().all(|secret| !text.contains(secret)));
}

#[test]
fn foreign_tokens_and_own_ones_exclude_each_other() {
    for grant in ["tokens", "sessions"] {
        let text = Manifest::new()
            .raw("[tokens]\nhs256_key_file = \"key\"")
            .handler_with("fixtures/identity", &format!("grants = {{ {grant} = true }}"));
        let out = run(text.text(), &["check"], &[]);
        assert_eq!(out.status.code(), Some(64));
        let wanted = format!(
            "berth.toml:2:18: tokens.hs256_key_file: means that tokens are issued elsewhere, and \"identity\" has the grant `{grant} = true`, which issues them here; remove one of the two"
        );
        assert!(said(&out).1.contains(&wanted), "{:?}", said(&out));
    }
    let out = run(
        "[tokens]\nalgorithm = \"RS256\"\naccess_life = \"0s\"\nrefresh_life = \"2years\"",
        &["check"],
        &[],
    );
    let (_, faults) = said(&out);
    assert!(faults.contains("tokens.algorithm: "), "{faults}");
    assert!(
        faults.contains("\"0s\" is out of bounds; from \"1s\" to \"400days\""),
        "{faults}"
    );
    assert!(faults.contains("\"2years\" is out of bounds"), "{faults}");
}

/// The host doesn't start, and says in one sentence why; nothing is overwritten.
#[test]
fn damaged_ring_and_lost_master_key_stop_the_start_with_a_sentence() {
    use std::os::unix::fs::PermissionsExt;
    let store = Store::new();
    drop(store.start(&manifest()));
    let (ring, master) = (store.data().join("tokens.json"), store.data().join("master.key"));
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let refused = |wanted: &str| {
        let ports = [
            ("BERTH_HTTP_LISTEN", "127.0.0.1:0"),
            ("BERTH_ADMIN_LISTEN", "127.0.0.1:0"),
        ];
        let out = berth(&store, &["serve"], &ports);
        let (_, errors) = said(&out);
        let last = errors.lines().last().unwrap_or_default().to_owned();
        assert_eq!(out.status.code(), Some(1), "{errors}");
        assert!(last.starts_with("berth: /") && last.contains(wanted), "{last}");
        assert!(!errors.contains("hunter2"), "{errors}");
    };
    let good = std::fs::read(&ring).unwrap();
    mode(&ring, 0o644);
    refused("tokens.json: others may read this file (mode 644); run `chmod 600` on it");
    mode(&ring, 0o600);
    std::fs::write(&ring, "{\"version\":1,\"keys\":\"hunter2\"}").unwrap();
    refused("tokens.json: is not a key ring (line 1); restore it from a backup");
    assert!(
        std::fs::read_to_string(&ring).unwrap().contains("hunter2"),
        "left as it was"
    );
    let out = berth(&store, &["keys", "rotate", "tokens"], &[]);
    assert_eq!(out.status.code(), Some(1));
    std::fs::write(&ring, good).unwrap();
    std::fs::rename(&master, master.with_extension("away")).unwrap();
    refused("master.key: is gone, and this folder was in use; restore it from a backup");
    std::fs::rename(master.with_extension("away"), &master).unwrap();
    drop(store.start(&manifest()));

    let empty = Store::new();
    let out = berth(&empty, &["keys", "list"], &[]);
    assert!(said(&out).1.contains("there are no keys yet"), "{:?}", said(&out));
    assert!(!empty.data().exists(), "looking makes nothing");
}

#[test]
fn passwords_are_hashed_and_verified_and_counted() {
    let store = Store::new();
    let berth = store.start(&manifest());
    let verify = |password: &str, hash: Option<&str>| {
        call(
            &berth,
            "passwords.verify",
            &json!({ "password": password, "hash": hash }),
        )
    };
    let counted =
        || ["argon2", "bcrypt"].map(|algorithm| berth.metric("berth_password_hashes_total", &[algorithm]));
    let hash = call(&berth, "passwords.hash", &json!({ "password": "correct horse" }))["ok"].clone();
    let hash = hash.as_str().unwrap();
    assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
    assert_eq!(
        verify("correct horse", Some(hash)),
        json!({ "ok": { "matches": true, "rehash": false } })
    );
    assert_eq!(counted(), [2.0, 0.0]);
    let no = json!({ "ok": { "matches": false, "rehash": false } });
    for (password, hash) in [
        ("wrong", Some(hash)),
        ("", Some(hash)),
        ("wrong", None),
        ("", None),
        ("x", Some("?")),
    ] {
        let before = counted();
        assert_eq!(verify(password, hash), no);
        assert_eq!(counted(), [before[0] + 1.0, before[1]], "{password:?}");
    }
    let bcrypt = "$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga";
    assert_eq!(
        verify("allmine", Some(bcrypt)),
        json!({ "ok": { "matches": true, "rehash": true } })
    );
    assert_eq!(verify("allmin", Some(bcrypt)), no);
    assert_eq!(counted(), [7.0, 2.0]);
    assert_eq!(
        call(&berth, "passwords.hash", &json!({ "password": "x".repeat(4097) })),
        json!({ "error": "too-long" })
    );
    assert_eq!(verify(&"x".repeat(4097), None), json!({ "error": "too-long" }));
    assert_eq!(counted(), [7.0, 2.0]);
}

/// P5 through guests: with one place and no queue, of many at once some are sent away with a time, and the host answers
/// others meanwhile.
#[test]
fn queue_of_passwords_that_is_full_says_when_to_come_back() {
    let store = Store::new();
    let manifest = manifest().raw("[passwords]\nconcurrency = 1\nqueue = 0");
    let berth = store.start(&manifest);
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..24)
            .map(|_| scope.spawn(|| call(&berth, "passwords.verify", &json!({ "password": "x" }))))
            .collect();
        assert_eq!(berth.get("/health").status, 200);
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let busy = answers.iter().filter(|a| a["error"] == "busy").count();
    let done = answers.iter().filter(|a| a["ok"]["matches"] == false).count();
    assert!(busy > 0 && done > 0 && busy + done == 24, "{answers:?}");
    assert!(
        answers
            .iter()
            .filter(|a| a["error"] == "busy")
            .all(|a| (1..=60).contains(&a["detail"].as_u64().unwrap()))
    );
    assert_eq!(
        berth.metric("berth_password_hashes_refused_total", &[]),
        busy as f64
    );
    assert_eq!(
        berth.metric("berth_password_hashes_total", &["argon2"]),
        done as f64
    );
    assert_eq!(berth.metric("berth_password_hashes_waiting", &[]), 0.0);
}
