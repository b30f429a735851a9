//! The bundled policy's whole flow over HTTP: accounts, sign-in, sessions, passwords.

use std::time::{Duration, Instant};

use berth_tests::accounts::{Accounts, PASSWORD, Session, manifest};
use berth_tests::berth::PATIENCE;
use berth_tests::store::Store;
use berth_tests::wire::{Response, is};
use serde_json::{Value, json};
use uuid::Uuid;

const ADA: &str = "ada@example.com";

/// An answer without what differs between two requests.
fn without_time(answer: &Response) -> (u16, Vec<(String, String)>, Value) {
    let mut headers = answer.headers.clone();
    headers.retain(|(name, _)| name != "date" && name != "x-request-id" && name != "content-length");
    let mut body = answer.json();
    for member in ["timestamp", "requestId"] {
        assert!(!body[member].is_null(), "{body}");
        body[member] = Value::Null;
    }
    (answer.status, headers, body)
}

/// Why sessions ended, all of which expired when they did.
fn ended_by(it: &Accounts) -> String {
    it.store.one(
        "select string_agg(ended_by, ' ' order by id) from identity.sessions
         where ended_at is not null and expires_at = ended_at",
    )
}

#[test]
fn account_lives_from_registration_to_logout_and_over_a_restart() {
    let mut it = Accounts::new();
    let body = json!({ "email": "Ada@Example.com", "password": PASSWORD, "name": "Ada", "confirmPassword": PASSWORD });
    let answer = it.call("POST", "/api/v1/auth/signup", None, &body);
    let ada = Session::of(&answer, 201);
    let answer = answer.json();
    assert_eq!(answer["token"], answer["accessToken"]);
    assert_eq!(answer["expiresIn"], 86_400);
    assert_eq!(Uuid::parse_str(&ada.id).unwrap().get_version_num(), 7);
    let user = &answer["user"];
    assert_eq!(
        (user["email"].as_str(), user["name"].as_str()),
        (Some(ADA), Some("Ada"))
    );
    assert_eq!(
        (&user["active"], &user["mfaEnabled"], &user["emailVerified"]),
        (&true.into(), &false.into(), &false.into())
    );
    assert_eq!(user["roles"], json!([]));
    assert!(user["createdAt"].as_u64().unwrap() > 1_700_000_000_000);
    let text: String = it
        .store
        .one("select email || ' ' || password_hash from identity.users");
    assert!(
        text.starts_with("Ada@Example.com $argon2id$"),
        "as typed, hashed: {text}"
    );
    for path in ["/api/v1/me", "/api/v1/auth/me", "/api/v1/auth/profile"] {
        let me = it.call("GET", path, Some(&ada.access), &Value::Null);
        assert_eq!((me.status, &me.json()), (200, user), "{path}");
    }
    let next = Session::of(&it.refresh(&ada.refresh), 200);
    assert_eq!(next.id, ada.id);
    assert_ne!((&next.access, &next.refresh), (&ada.access, &ada.refresh));
    // A clean stop and another start: account and session are still there.
    it.berth.signal("TERM");
    assert!(it.berth.wait().success());
    it.berth = it.store.start(&manifest());
    assert_eq!(it.me(&next.access).json()["id"], ada.id.as_str());
    assert_eq!(it.signed_in("ADA@EXAMPLE.COM").id, ada.id);
    let out = it.call("POST", "/api/v1/auth/logout", Some(&next.access), &Value::Null);
    assert_eq!((out.status, out.json()), (200, json!({ "loggedOut": true })));
    // At once, although the tokens have not expired.
    is(&it.me(&next.access), 401, "invalid-access-token");
    assert_eq!(ended_by(&it), "logout");
    is(&it.refresh(&next.refresh), 401, "invalid-refresh-token");
    assert_eq!(
        it.refresh(&next.refresh).json()["errorCode"],
        "INVALID_REFRESH_TOKEN"
    );
}

#[test]
fn every_sign_in_that_does_not_work_gets_the_same_answer() {
    let it = Accounts::new();
    for email in [ADA, "out@example.com", "elsewhere@example.com"] {
        it.signed_up(email);
    }
    it.store.run(
        "update identity.users set password_hash = null where email_canonical = 'elsewhere@example.com'",
    );
    let out = it.admin("POST", "/admin/users/out%40example.com/deactivate", &Value::Null);
    assert_eq!(out.status, 200);
    let long = "x".repeat(5000);
    let cases = [
        ("nobody@example.com", PASSWORD),
        (ADA, "wrong horse battery"),
        (ADA, ""),
        (ADA, "Correct horse battery"),
        (ADA, "correct horse battery "),
        (ADA, &long),
        ("nobody@example.com", ""),
        ("nobody@example.com", &long),
        ("elsewhere@example.com", PASSWORD),
        ("elsewhere@example.com", ""),
        ("out@example.com", PASSWORD),
    ];
    let hashes = || it.berth.metric("berth_password_hashes_total", &[]);
    let answers: Vec<_> = cases
        .iter()
        .map(|(email, password)| {
            let before = hashes();
            let answer = without_time(&it.login(email, password));
            // What has more bytes than any password is refused without work, whoever it is for.
            let work = if password.len() > 4096 { 0.0 } else { 1.0 };
            assert_eq!(hashes() - before, work, "{email} {password:.30?}");
            answer
        })
        .collect();
    let (status, _, body) = &answers[0];
    assert_eq!(*status, 401);
    assert_eq!(body["code"], "invalid-credentials");
    assert_eq!(body["errorCode"], "INVALID_CREDENTIALS");
    for member in ["detail", "error", "message"] {
        assert_eq!(body[member], "invalid email or password");
    }
    for (answer, case) in answers.iter().zip(&cases) {
        assert_eq!(answer, &answers[0], "{} {:.30?}", case.0, case.1);
    }
    is(&it.login("ada", PASSWORD), 400, "invalid-email");
    assert_eq!(it.login(ADA, PASSWORD).status, 200);
}

#[test]
fn address_has_one_account_however_many_register_it_at_once() {
    let it = Accounts::new();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..12)
            .map(|n| {
                let email = if n % 2 == 0 { "Ada@Example.com" } else { ADA };
                let it = &it;
                scope.spawn(move || it.register(email, PASSWORD).status)
            })
            .collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let made = statuses.iter().filter(|status| **status == 201).count();
    assert!(
        statuses.iter().all(|s| [201, 409, 503].contains(s)),
        "{statuses:?}"
    );
    assert_eq!(
        (made, it.store.one::<i64>("select count(*) from identity.users")),
        (1, 1),
        "{statuses:?}"
    );
    let again = it.register("ADA@example.com", PASSWORD);
    is(&again, 409, "email-already-exists");
    let body = again.json();
    assert_eq!(body["errorCode"], "EMAIL_ALREADY_EXISTS");
    for member in ["error", "message", "detail"] {
        assert_eq!(body[member], "email already registered");
    }
}

#[test]
fn password_is_one_in_every_spelling_of_unicode() {
    let it = Accounts::new();
    assert_eq!(it.register(ADA, "cafe\u{301} пароль 日本").status, 201);
    assert_eq!(it.login(ADA, "caf\u{e9} пароль 日本").status, 200);
    assert_eq!(it.login(ADA, "cafe пароль 日本").status, 401);
    let long = "\u{1f980}".repeat(1024);
    assert_eq!(it.register("bob@example.com", &long).status, 201);
    assert_eq!(it.login("bob@example.com", &long).status, 200);
    assert_eq!(it.login("bob@example.com", &"\u{1f980}".repeat(1023)).status, 401);
}

#[test]
fn hash_of_the_older_system_is_taken_and_renewed() {
    let it = Accounts::new();
    it.store.run(&format!(
        "insert into identity.users (id, email, email_canonical, password_hash) values ('{}', '{ADA}', '{ADA}',
         '$2b$10$abcdefghijklmnopqrstuuCj7fyLDJytXL.TfOiOeiv0fQvSOK1/2')",
        Uuid::now_v7()
    ));
    assert_eq!(it.login(ADA, "wrong horse battery").status, 401);
    let hash = || it.store.one::<String>("select password_hash from identity.users");
    assert!(hash().starts_with("$2b$"));
    it.signed_in(ADA);
    assert!(hash().starts_with("$argon2id$"), "{}", hash());
    it.signed_in(ADA);
}

#[test]
fn changed_password_ends_every_other_session_at_once() {
    let it = Accounts::new();
    let mine = it.signed_up(ADA);
    let others = [it.signed_in(ADA), it.signed_in(ADA)];
    let change = |current: &str, new: &str| {
        let body = json!({ "currentPassword": current, "newPassword": new });
        it.call("PATCH", "/api/v1/me/password", Some(&mine.access), &body)
    };
    let wrong = change("wrong horse battery", "another password");
    is(&wrong, 400, "invalid-credentials");
    assert_eq!(wrong.json()["errors"][0]["pointer"], "/currentPassword");
    is(&change(PASSWORD, "short"), 400, "weak-password");
    is(&change(PASSWORD, "PASSWORD"), 400, "weak-password");
    is(&change(PASSWORD, "ada@example.com"), 400, "weak-password");
    assert_eq!(it.me(&others[0].access).status, 200);
    let changed = change(PASSWORD, "another password");
    assert_eq!(
        (changed.status, changed.json()),
        (200, json!({ "passwordChanged": true }))
    );
    assert_eq!(it.me(&mine.access).status, 200);
    assert_eq!(ended_by(&it), "password password");
    for other in &others {
        is(&it.me(&other.access), 401, "invalid-access-token");
        is(&it.refresh(&other.refresh), 401, "invalid-refresh-token");
    }
    Session::of(&it.refresh(&mine.refresh), 200);
    is(&it.login(ADA, PASSWORD), 401, "invalid-credentials");
    assert_eq!(it.login(ADA, "another password").status, 200);
}

#[test]
fn sessions_are_listed_and_ended_by_their_owner_alone() {
    let it = Accounts::new();
    let first = it.signed_up(ADA);
    let body = json!({ "email": ADA, "password": PASSWORD });
    let agent = [("user-agent", "a telephone")];
    let second = Session::of(
        &it.call_from("POST", "/api/v1/auth/login", None, &body, &agent),
        200,
    );
    let eve = it.signed_up("eve@example.com");
    let list = |who: &Session| {
        let answer = it.call("GET", "/api/v1/auth/sessions", Some(&who.access), &Value::Null);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["sessions"].as_array().unwrap().clone()
    };
    let listed = list(&first);
    assert_eq!(listed.len(), 2);
    let current: Vec<bool> = listed.iter().map(|s| s["current"].as_bool().unwrap()).collect();
    assert_eq!(current, [false, true], "newest first: {listed:?}");
    assert_eq!(
        (listed[0]["userAgent"].as_str(), listed[0]["clientIp"].as_str()),
        (Some("a telephone"), Some("127.0.0.1"))
    );
    let end = |who: &Session, session: &str| {
        let path = format!("/api/v1/auth/sessions/{session}");
        it.call("DELETE", &path, Some(&who.access), &Value::Null)
    };
    let id = listed[0]["id"].as_str().unwrap();
    is(&end(&eve, id), 404, "session-not-found");
    is(&end(&first, "nonsense"), 404, "session-not-found");
    is(
        &end(&first, &Uuid::now_v7().to_string()),
        404,
        "session-not-found",
    );
    assert_eq!(it.me(&second.access).status, 200);
    let ended = end(&first, id);
    assert_eq!((ended.status, ended.json()), (200, json!({ "revoked": id })));
    is(&it.me(&second.access), 401, "invalid-access-token");
    is(&end(&first, id), 404, "session-not-found");
    assert_eq!(ended_by(&it), "revoked");
    assert_eq!((list(&first).len(), list(&eve).len()), (1, 1));
}

#[test]
fn operators_change_is_so_with_the_next_request() {
    let it = Accounts::new();
    let ada = it.signed_up(ADA);
    let get = |path: &str| it.call("GET", path, Some(&ada.access), &Value::Null);
    is(&get("/admin/status/200"), 403, "forbidden");
    let who = "/admin/users/ada%40example.com";
    let roles = |change: Value| it.admin("POST", &format!("{who}/roles"), &change).status;
    assert_eq!(roles(json!({ "add": ["admin", "ops"] })), 200);
    assert_eq!(get("/admin/status/200").status, 200);
    let told = get("/user/headers").text();
    assert!(told.contains("berth-user-roles: admin,ops"), "{told}");
    assert!(told.contains(&format!("berth-user-id: {}", ada.id)), "{told}");
    assert!(!told.contains("authorization"), "{told}");
    assert_eq!(get("/api/v1/me").json()["roles"], json!(["admin", "ops"]));
    assert_eq!(roles(json!({ "remove": ["admin"] })), 200);
    is(&get("/admin/status/200"), 403, "forbidden");
    assert_eq!(
        it.admin("POST", &format!("{who}/deactivate"), &Value::Null)
            .status,
        200
    );
    is(&get("/user/status/200"), 401, "invalid-access-token");
    is(&it.refresh(&ada.refresh), 401, "invalid-refresh-token");
    is(&it.login(ADA, PASSWORD), 401, "invalid-credentials");
    assert_eq!(
        it.admin("POST", &format!("{who}/activate"), &Value::Null).status,
        200
    );
    is(&get("/user/status/200"), 401, "invalid-access-token");
    let again = it.signed_in(ADA);
    assert_eq!(it.me(&again.access).status, 200);
    assert_eq!(it.admin("DELETE", who, &Value::Null).status, 200);
    is(&it.me(&again.access), 401, "invalid-access-token");
    is(&it.login(ADA, PASSWORD), 401, "invalid-credentials");
    // The address is free again, and its new account is another one.
    assert_ne!(it.signed_up(ADA).id, ada.id);
}

#[test]
fn audit_tells_who_did_what() {
    let it = Accounts::new();
    let ada = it.signed_up(ADA);
    it.login(ADA, "wrong horse battery");
    it.register(ADA, PASSWORD);
    it.refresh("nonsense");
    let next = Session::of(&it.refresh(&ada.refresh), 200);
    let body = json!({ "currentPassword": PASSWORD, "newPassword": "another password" });
    it.call("PATCH", "/api/v1/me/password", Some(&next.access), &body);
    it.call("POST", "/api/v1/auth/logout", Some(&next.access), &Value::Null);
    let record = || -> String {
        it.store.one(
            "select coalesce(string_agg(concat_ws(' ', action, outcome, user_id is not null, coalesce(account, '-')), '; '
             order by id), '') from identity.audit",
        )
    };
    let expected = "register ok t ada@example.com; login invalid-credentials t ada@example.com; \
                    register email-already-exists t ada@example.com; refresh invalid-refresh-token f -; \
                    refresh ok t ada@example.com; \
                    change-password ok t ada@example.com; logout ok t ada@example.com";
    let started = Instant::now();
    while record() != expected {
        assert!(started.elapsed() < PATIENCE, "{}", record());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn stolen_refresh_token_is_on_the_record_of_its_account() {
    let it = Accounts::new();
    let ada = it.signed_up(ADA);
    Session::of(&it.refresh(&ada.refresh), 200);
    it.store
        .run("update identity.sessions set rotated_at = rotated_at - interval '11 seconds'");
    is(&it.refresh(&ada.refresh), 401, "invalid-refresh-token");
    let session: String = it
        .store
        .one("select id::text from identity.sessions where ended_by = 'reuse'");
    let started = Instant::now();
    let row = loop {
        let page = it.admin("GET", "/admin/audit?user=ADA%40example.com", &Value::Null);
        let page = page.json();
        let reused = |row: &&Value| row["outcome"] == "reused";
        if let Some(row) = page["entries"].as_array().unwrap().iter().find(reused) {
            break row.clone();
        }
        assert!(started.elapsed() < PATIENCE, "{page}");
        std::thread::sleep(Duration::from_millis(5));
    };
    let expected = json!({
        "action": "refresh", "userId": ada.id, "account": ADA, "actor": null, "clientIp": "127.0.0.1",
        "plugin": "auth", "detail": session,
    });
    for (member, value) in expected.as_object().unwrap() {
        assert_eq!(&row[member], value, "{member}: {row}");
    }
    assert!(
        row["requestId"].as_str().is_some_and(|id| !id.is_empty()),
        "{row}"
    );
    assert!(row["digest"].is_string(), "{row}");
}

#[test]
fn password_change_is_limited_for_its_caller() {
    let it = Accounts::with(&[("BERTH_IDENTITY_ACCOUNT_RATE", "3/hour")]);
    let ada = it.signed_up(ADA);
    let guess = || {
        let body = json!({ "currentPassword": "wrong horse battery", "newPassword": "another password" });
        it.call("PATCH", "/api/v1/me/password", Some(&ada.access), &body)
    };
    for _ in 0..3 {
        is(&guess(), 400, "invalid-credentials");
    }
    let refused = guess();
    is(&refused, 429, "too-many-requests");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(it.me(&ada.access).status, 200);
}

/// With one place and no queue for passwords, of many at once some are told when to come back.
#[test]
fn sign_ins_beyond_the_queue_of_passwords_are_503_with_retry_after() {
    let store = Store::new();
    let berth = store.start(&manifest().raw("[passwords]\nconcurrency = 1\nqueue = 0"));
    let it = Accounts { store, berth };
    let answers: Vec<Response> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..24)
            .map(|_| scope.spawn(|| it.login("nobody@example.com", PASSWORD)))
            .collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (busy, done): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 503);
    assert!(!busy.is_empty() && !done.is_empty(), "{} of 24", busy.len());
    for answer in busy {
        is(answer, 503, "passwords-busy");
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
    }
    for answer in done {
        is(answer, 401, "invalid-credentials");
    }
    assert_eq!(it.login("nobody@example.com", PASSWORD).status, 401);
}

#[test]
fn secrets_of_the_flow_are_not_logged() {
    let it = Accounts::with(&[("RUST_LOG", "debug")]);
    let ada = it.signed_up(ADA);
    let next = Session::of(&it.refresh(&ada.refresh), 200);
    it.login(ADA, "a wrong secret of somebody");
    it.me(&next.access);
    let users = it.admin("GET", "/admin/users", &Value::Null);
    assert!(!users.text().contains("argon2"), "no hashes for the operator");
    let log = it.berth.log().iter().map(ToString::to_string).collect::<String>();
    let hash: String = it.store.one("select password_hash from identity.users");
    let token = it.store.admin_token();
    for secret in [
        PASSWORD,
        "a wrong secret of somebody",
        &ada.access,
        &ada.refresh,
        &next.access,
        &next.refresh,
        &hash,
        &token,
    ] {
        assert!(!log.contains(secret), "a secret is in the log: {secret}");
    }
}
