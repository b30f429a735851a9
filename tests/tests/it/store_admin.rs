//! The admin API: who may ask, and that what it changes is so at once.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest, PATIENCE};
use berth_tests::store::Store;
use berth_tests::wire::{Response, request};
use serde_json::Value;

/// A host with an identity store, and these accounts: oldest first, ids `…0001` and on.
pub(crate) fn start(emails: &[&str]) -> (Store, Berth) {
    let store = Store::new();
    let berth =
        store.start(&Manifest::new().auth_with("fixtures/auth-static", "grants = { sessions = true }"));
    for (at, email) in emails.iter().enumerate() {
        store.run(&format!(
            "insert into identity.users (id, email, email_canonical, name) values ('{}', '{email}', '{email}', 'N{at}')",
            id(at + 1)
        ));
    }
    (store, berth)
}

pub(crate) fn id(n: usize) -> String {
    format!("01920000-0000-7000-8000-{n:012}")
}

fn ask(store: &Store, berth: &Berth, method: &str, path: &str, body: &str) -> Response {
    let bearer = format!("Bearer {}", store.admin_token());
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
    ];
    request(berth.admin, method, path, &headers, body.as_bytes())
}

fn json(store: &Store, berth: &Berth, method: &str, path: &str, body: &str) -> Value {
    let answer = ask(store, berth, method, path, body);
    assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    answer.json()
}

fn emails(page: &Value) -> Vec<&str> {
    let users = page["users"].as_array().unwrap();
    users.iter().map(|user| user["email"].as_str().unwrap()).collect()
}

#[test]
fn accounts_are_for_whoever_shows_the_token_and_health_is_for_all() {
    let (store, berth) = start(&["ada@example.com"]);
    let mode = std::fs::metadata(store.data().join("admin.token"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let token = store.admin_token();
    let good = format!("Bearer {token}");
    for headers in [
        &[] as &[(&str, &str)],
        &[("authorization", "Bearer nonsense")],
        &[("authorization", &token)],
        &[("authorization", &format!("{good}x"))],
        &[("authorization", &good[..good.len() - 1])],
        &[("authorization", &good), ("authorization", &good)],
        &[("cookie", &token)],
    ] {
        for (method, path) in [
            ("GET", "/admin/users"),
            ("DELETE", "/admin/users/ada@example.com"),
        ] {
            let answer = request(berth.admin, method, path, headers, b"");
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (401, "unauthorized"),
                "{headers:?}"
            );
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert!(!answer.text().contains(&token));
        }
    }
    assert_eq!(store.one::<i64>("select count(*) from identity.users"), 1);
    for path in ["/health", "/metrics"] {
        assert_eq!(request(berth.admin, "GET", path, &[], b"").status, 200, "{path}");
    }
    // Callers have no such path.
    assert_eq!(berth.get("/admin/users").status, 404);
    // The token is the same after a restart.
    drop(berth);
    let berth =
        store.start(&Manifest::new().auth_with("fixtures/auth-static", "grants = { sessions = true }"));
    assert_eq!(store.admin_token(), token);
    assert_eq!(ask(&store, &berth, "GET", "/admin/users", "").status, 200);
}

#[test]
fn host_without_accounts_says_so() {
    let berth = Manifest::new().auth("fixtures/auth-static").start();
    let answer = request(berth.admin, "GET", "/admin/users", &[], b"");
    assert_eq!((answer.status, answer.code().as_str()), (404, "no-accounts"));
    assert_eq!(
        request(berth.admin, "GET", "/admin", &[], b"").code(),
        "not-found"
    );
}

#[test]
fn accounts_are_listed_in_pages_newest_first_and_found_by_a_part_of_the_address() {
    let names: Vec<String> = (0..7).map(|n| format!("u{n}@example.com")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (store, berth) = start(&names);
    store.run(&format!(
        "insert into identity.users (id, email, email_canonical, roles, active, email_verified, mfa_enabled, created_at, updated_at)
         values ('{}', 'Eve_%@Other.org', 'eve_%@other.org', '{{admin}}', false, true, true, to_timestamp(1.5), to_timestamp(2))",
        id(99)
    ));
    let mut path = "/admin/users?limit=3".to_owned();
    let mut seen = Vec::new();
    let mut pages = 0;
    loop {
        let page = json(&store, &berth, "GET", &path, "");
        seen.extend(emails(&page).into_iter().map(str::to_owned));
        pages += 1;
        match page["next"].as_str() {
            Some(next) => path = format!("/admin/users?limit=3&cursor={next}"),
            None => break,
        }
    }
    let mut expected = vec!["eve_%@other.org"];
    expected.extend(names.iter().rev());
    assert_eq!(
        (pages, seen),
        (3, expected.iter().map(|e| (*e).to_owned()).collect())
    );
    for (query, count) in [
        ("email=EXAMPLE.com", 7),
        ("email=u3%40", 1),
        // What would be a pattern is text.
        ("email=%25", 1),
        ("email=_", 1),
        ("email=nobody", 0),
    ] {
        let page = json(&store, &berth, "GET", &format!("/admin/users?{query}"), "");
        assert_eq!(emails(&page).len(), count, "{query}");
    }
    let eve = json(&store, &berth, "GET", &format!("/admin/users/{}", id(99)), "");
    let expected = serde_json::json!({
        "id": id(99), "email": "eve_%@other.org", "emailVerified": true, "name": "", "roles": ["admin"],
        "active": false, "mfaEnabled": true, "createdAt": 1500, "updatedAt": 2000, "sessions": 0,
    });
    assert_eq!(eve, expected);
    for bad in ["limit=0", "limit=1000", "cursor=x", "mail=x", "email=%00"] {
        let answer = ask(&store, &berth, "GET", &format!("/admin/users?{bad}"), "");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "invalid-request"),
            "{bad}"
        );
    }
}

/// Operators in `public` that fit better than Postgres' own would be run with the host's login.
#[test]
fn hosts_statements_find_nothing_in_public() {
    let (store, berth) = start(&["ada@example.com"]);
    for (left, right) in [("numeric", "integer"), ("bigint", "interval")] {
        let name = format!("public.planted_{left}");
        store.run(&format!(
            "create function {name}({left}, {right}) returns {right} language plpgsql
                 as 'begin raise exception ''planted''; end';
             create operator public.* (leftarg = {left}, rightarg = {right}, function = {name})"
        ));
    }
    let planted = "select count(*) from pg_catalog.pg_operator where oprnamespace = 'public'::regnamespace";
    assert_eq!(store.one::<i64>(planted), 2);
    // Whatever was prepared is gone.
    drop(berth);
    let berth =
        store.start(&Manifest::new().auth_with("fixtures/auth-static", "grants = { sessions = true }"));
    let user = json(&store, &berth, "GET", "/admin/users/ada%40example.com", "");
    assert!(user["createdAt"].as_u64().unwrap() > 1_700_000_000_000, "{user}");
    json(
        &store,
        &berth,
        "POST",
        "/admin/users/ada%40example.com/roles",
        r#"{"add":["ops"]}"#,
    );
    let started = Instant::now();
    while store.one::<i64>("select count(*) from identity.audit where action = 'roles'") == 0 {
        assert!(started.elapsed() < PATIENCE, "{:#?}", berth.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    let page = json(&store, &berth, "GET", "/admin/audit?user=ada%40example.com", "");
    assert_eq!(page["entries"][0]["action"], "roles", "{page}");
}

#[test]
fn roles_are_given_and_taken() {
    let (store, berth) = start(&["ada@example.com"]);
    let change = |body: &str| {
        ask(
            &store,
            &berth,
            "POST",
            "/admin/users/ada%40example.com/roles",
            body,
        )
    };
    let roles = |answer: Response| {
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["roles"].to_string()
    };
    assert_eq!(
        roles(change(r#"{"add":["ops","admin","ops"]}"#)),
        r#"["admin","ops"]"#
    );
    assert_eq!(
        roles(change(r#"{"add":["ops"],"remove":["admin","never"]}"#)),
        r#"["ops"]"#
    );
    assert_eq!(roles(change(r#"{"remove":["ops"]}"#)), "[]");
    for (body, pointer) in [
        (r#"{"add":["a","two words"]}"#, "/add/1"),
        (r#"{"remove":[""]}"#, "/remove/0"),
        (r#"{"add":"admin"}"#, ""),
        ("{}", ""),
        ("", ""),
    ] {
        let answer = change(body);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "invalid-json"),
            "{body}"
        );
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{body}");
    }
    let many = |from: u32| -> String {
        let roles: Vec<String> = (from..from + 40).map(|n| format!("\"r{n}\"")).collect();
        format!(r#"{{"add":[{}]}}"#, roles.join(","))
    };
    assert_eq!(change(&many(0)).status, 200);
    let answer = change(&many(40));
    assert_eq!(
        (answer.status, answer.json()["errors"][0]["pointer"].as_str()),
        (400, Some("/add"))
    );
    let missing = ask(
        &store,
        &berth,
        "POST",
        "/admin/users/nobody/roles",
        r#"{"add":["a"]}"#,
    );
    assert_eq!((missing.status, missing.code().as_str()), (404, "user-not-found"));
    let text = [("authorization", format!("Bearer {}", store.admin_token()))];
    let headers: Vec<(&str, &str)> = text.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let answer = request(
        berth.admin,
        "POST",
        "/admin/users/ada%40example.com/roles",
        &headers,
        b"{}",
    );
    assert_eq!(answer.status, 415);
}

fn open_session(store: &Store, user: usize, session: usize) {
    store.run(&format!(
        "insert into identity.sessions (id, user_id, expires_at) values ('{}', '{}', now() + interval '1 day')",
        id(session),
        id(user)
    ));
}

#[test]
fn deactivation_ends_every_session_at_once_and_activation_brings_none_back() {
    let (store, berth) = start(&["ada@example.com", "bob@example.com"]);
    for (user, session) in [(1, 101), (1, 102), (2, 103)] {
        open_session(&store, user, session);
    }
    let open = |user: usize| {
        json(&store, &berth, "GET", &format!("/admin/users/{}", id(user)), "")["sessions"].clone()
    };
    assert_eq!((open(1), open(2)), (2.into(), 1.into()));
    for _ in 0..2 {
        let answer = json(
            &store,
            &berth,
            "POST",
            "/admin/users/ada%40example.com/deactivate",
            "",
        );
        assert_eq!(answer["active"], false);
    }
    assert_eq!((open(1), open(2)), (0.into(), 1.into()));
    let by: String = store
        .one("select string_agg(distinct ended_by, ',') from identity.sessions where ended_at is not null");
    assert_eq!(by, "deactivated");
    let late: i64 = store.one("select count(*) from identity.sessions where ended_at <> expires_at");
    assert_eq!(late, 0, "an ended session expires when it ends");
    let answer = json(
        &store,
        &berth,
        "POST",
        "/admin/users/ADA%40example.com/activate",
        "",
    );
    assert_eq!((answer["active"].clone(), open(1)), (true.into(), 0.into()));
}

#[test]
fn deleted_account_takes_its_sessions_along_and_leaves_its_record() {
    let (store, berth) = start(&["ada@example.com", "bob@example.com"]);
    open_session(&store, 1, 101);
    open_session(&store, 2, 102);
    let answer = json(&store, &berth, "DELETE", "/admin/users/ada%40example.com", "");
    assert_eq!(answer["deleted"], id(1));
    let again = ask(&store, &berth, "DELETE", "/admin/users/ada%40example.com", "");
    assert_eq!((again.status, again.code().as_str()), (404, "user-not-found"));
    assert_eq!(store.one::<i64>("select count(*) from identity.users"), 1);
    assert_eq!(store.one::<i64>("select count(*) from identity.sessions"), 1);
    json(
        &store,
        &berth,
        "POST",
        "/admin/users/bob%40example.com/roles",
        r#"{"add":["ops"],"remove":["x"]}"#,
    );
    json(
        &store,
        &berth,
        "POST",
        "/admin/users/bob%40example.com/deactivate",
        "",
    );
    json(
        &store,
        &berth,
        "POST",
        "/admin/users/bob%40example.com/activate",
        "",
    );
    let record = || -> String {
        store.one(
            "select coalesce(string_agg(concat_ws(' ', action, account, actor, outcome, detail), '; ' order by id), '')
             from identity.audit",
        )
    };
    let expected = "delete ada@example.com operator ok; roles bob@example.com operator ok +ops -x; \
                    deactivate bob@example.com operator ok; activate bob@example.com operator ok";
    let started = Instant::now();
    while record() != expected {
        assert!(started.elapsed() < PATIENCE, "{}", record());
        std::thread::sleep(Duration::from_millis(5));
    }
    berth.logged("the deletion", |e| {
        e["target"] == "berth::admin" && e["action"] == "delete" && e["user_id"] == id(1)
    });
}

#[test]
fn paths_and_methods_that_are_not_there_are_404_and_405() {
    let (store, berth) = start(&["ada@example.com"]);
    for (method, path, status) in [
        ("PUT", "/admin/users", 405),
        ("POST", "/admin/users/ada%40example.com", 405),
        ("GET", "/admin/users/ada%40example.com/roles", 405),
        ("POST", "/admin/users/ada%40example.com/promote", 404),
        ("GET", "/admin/users/", 404),
        ("GET", "/admin/users/ada%40example.com/roles/x", 404),
        ("GET", "/admin/users/%ff", 400),
        ("GET", "/admin/users/a%00b", 400),
        ("GET", "/admin", 404),
    ] {
        let answer = ask(&store, &berth, method, path, "");
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(answer.header("x-request-id").is_some());
    }
    let nasty = ask(&store, &berth, "GET", "/admin/users/x'%20or%20'1'='1", "");
    assert_eq!(nasty.code(), "user-not-found");
}
