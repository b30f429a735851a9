//! Sessions: who is signed in, refresh tokens, and that an access token is worth what its session is.

use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, PATIENCE};
use berth_tests::load::Times;
use berth_tests::sessions::{ask, call, manifest, open, refresh, user};
use berth_tests::store::Store;
use berth_tests::wire::Response;
use serde_json::{Value, json};
use uuid::Uuid;

#[track_caller]
fn is_nobody(answer: &Response) {
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "invalid-access-token"),
        "{}",
        answer.text()
    );
}

fn list(berth: &Berth, user: Uuid) -> Vec<Value> {
    let listed = call(
        berth,
        "sessions.open-sessions",
        &json!({ "user-id": user.to_string() }),
    );
    listed["ok"]
        .as_array()
        .unwrap_or_else(|| panic!("{listed}"))
        .clone()
}

/// Let time pass for the grace of every session.
fn later(store: &Store, seconds: u32) {
    store.run(&format!(
        "update identity.sessions set rotated_at = rotated_at - interval '{seconds} seconds'"
    ));
}

#[test]
fn session_is_opened_refreshed_listed_and_closed() {
    let store = Store::new();
    let berth = store.start(&manifest());
    let ada = user(&store);
    let opened = open(&berth, ada);
    assert_eq!(
        (&opened["user-id"], &opened["expires-in"]),
        (&json!(ada.to_string()), &json!(86_400))
    );
    assert_eq!(ask(&berth, &opened["access-token"]).status, 200);

    let listed = list(&berth, ada);
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["id"], opened["session-id"]);
    assert_eq!(
        (&listed[0]["client-ip"], &listed[0]["user-agent"]),
        (&json!("192.0.2.1"), &json!("tests"))
    );
    let created = listed[0]["created-at"].as_u64().unwrap();
    assert_eq!(listed[0]["last-used-at"].as_u64(), Some(created));

    let next = refresh(&berth, &opened["refresh-token"])["ok"].clone();
    assert_eq!(
        (&next["session-id"], &next["user-id"]),
        (&opened["session-id"], &opened["user-id"])
    );
    assert_ne!(next["refresh-token"], opened["refresh-token"]);
    assert_ne!(next["access-token"], opened["access-token"]);
    for token in [&opened["access-token"], &next["access-token"]] {
        assert_eq!(
            ask(&berth, token).status,
            200,
            "the one before lives on until it expires"
        );
    }
    assert!(list(&berth, ada)[0]["last-used-at"].as_u64().unwrap() > created);

    let other = open(&berth, ada);
    let newest: Vec<Value> = list(&berth, ada).iter().map(|s| s["id"].clone()).collect();
    assert_eq!(
        newest,
        [other["session-id"].clone(), opened["session-id"].clone()],
        "newest first"
    );

    // Somebody else's session, or none, can't be closed.
    let bob = user(&store);
    let close = |user: Uuid, session: &Value| {
        let arguments = json!({ "user-id": user.to_string(), "session-id": session });
        call(&berth, "sessions.close", &arguments)["ok"].clone()
    };
    assert_eq!(close(bob, &opened["session-id"]), json!(false));
    assert_eq!(close(ada, &json!("' or true --")), json!(false));
    assert_eq!(ask(&berth, &opened["access-token"]).status, 200);
    assert_eq!(close(ada, &opened["session-id"]), json!(true));
    assert_eq!(close(ada, &opened["session-id"]), json!(false), "once");
    is_nobody(&ask(&berth, &opened["access-token"]));
    is_nobody(&ask(&berth, &next["access-token"]));
    assert_eq!(
        refresh(&berth, &next["refresh-token"]),
        json!({ "error": "no-session" })
    );
    assert_eq!(ask(&berth, &other["access-token"]).status, 200);
    assert_eq!(
        store.one::<String>("select ended_by from identity.sessions where ended_at is not null"),
        "logout"
    );
}

/// J7: neither token is the other.
#[test]
fn j7_refresh_token_is_no_access_token_and_the_reverse() {
    let store = Store::new();
    let berth = store.start(&manifest());
    let opened = open(&berth, user(&store));
    is_nobody(&ask(&berth, &opened["refresh-token"]));
    let no = json!({ "error": "no-session" });
    assert_eq!(refresh(&berth, &opened["access-token"]), no);
    // Of another host, or made up, or changed.
    let elsewhere = Store::new();
    let other = elsewhere.start(&manifest());
    let foreign = open(&other, user(&elsewhere));
    assert_eq!(refresh(&berth, &foreign["refresh-token"]), no);
    is_nobody(&ask(&berth, &foreign["access-token"]));
    let token = opened["refresh-token"].as_str().unwrap();
    for bad in [
        String::new(),
        "x".to_owned(),
        token[1..].to_owned(),
        format!("{token}="),
        "x".repeat(100_000),
    ] {
        assert_eq!(refresh(&berth, &json!(bad)), no);
    }
    assert!(
        refresh(&berth, &opened["refresh-token"])["ok"].is_object(),
        "it is as good as before"
    );
}

#[test]
fn repeat_within_ten_seconds_gets_the_same_successor_and_a_later_one_ends_the_session() {
    let store = Store::new();
    let berth = store.start(&manifest());
    let opened = open(&berth, user(&store));
    let (first, next) = (
        &opened["refresh-token"],
        refresh(&berth, &opened["refresh-token"])["ok"].clone(),
    );
    later(&store, 8);
    let again = refresh(&berth, first)["ok"].clone();
    assert_eq!(
        again["refresh-token"], next["refresh-token"],
        "an answer was lost, or another tab asked"
    );
    assert_eq!(ask(&berth, &again["access-token"]).status, 200);
    let third = refresh(&berth, &next["refresh-token"])["ok"].clone();
    // Two behind: not even within the grace.
    let before = open(&berth, opened["user-id"].as_str().unwrap().parse().unwrap());
    assert_eq!(refresh(&berth, first), json!({ "error": "reused" }));
    for token in [&opened, &next, &again, &third].map(|pair| &pair["access-token"]) {
        is_nobody(&ask(&berth, token));
    }
    assert_eq!(
        refresh(&berth, &third["refresh-token"]),
        json!({ "error": "no-session" })
    );
    assert_eq!(
        store.one::<String>("select ended_by from identity.sessions where ended_at is not null"),
        "reuse"
    );
    berth.logged("the reuse", |e| {
        e["target"] == "berth::identity" && e["session"] == opened["session-id"]
    });
    // Another session of the same user is another family.
    assert_eq!(ask(&berth, &before["access-token"]).status, 200);
    let after = refresh(&berth, &before["refresh-token"])["ok"].clone();
    later(&store, 11);
    assert_eq!(
        refresh(&berth, &before["refresh-token"]),
        json!({ "error": "reused" })
    );
    is_nobody(&ask(&berth, &after["access-token"]));
}

/// Refresh with one token from many threads at once, spread over hosts.
fn at_once(hosts: &[&Berth], token: &Value, times: usize) -> Vec<Value> {
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..times)
            .map(|n| scope.spawn(move || refresh(hosts[n % hosts.len()], token)))
            .collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// J8: 50 at once end with one successor, everybody stays signed in, and a reuse after that ends the family.
#[test]
fn j8_fifty_concurrent_refreshes_have_one_successor() {
    // Two hosts have one database only on a server.
    let store = Store::server();
    let berth = store.start(&manifest());
    // A second host on the same database with the same keys.
    let elsewhere = tempfile::TempDir::new().unwrap();
    for file in ["master.key", "tokens.json"] {
        let (from, to) = (store.data().join(file), elsewhere.path().join(file));
        std::fs::copy(from, to).unwrap();
    }
    let folder = elsewhere.path().display().to_string();
    let second = store.start_with(&manifest(), &[("BERTH_DATA_DIR", &folder)]);
    let hosts = [&berth, &second];

    let opened = open(&berth, user(&store));
    let mut token = opened["refresh-token"].clone();
    for round in 0..3 {
        let answers = at_once(&hosts, &token, 50);
        for answer in &answers {
            assert!(answer["ok"].is_object(), "round {round}: {answer}");
            assert_eq!(
                answer["ok"]["refresh-token"], answers[0]["ok"]["refresh-token"],
                "one successor"
            );
        }
        for host in hosts {
            assert_eq!(ask(host, &answers[0]["ok"]["access-token"]).status, 200);
        }
        assert_eq!(
            store.one::<i64>("select rotation from identity.sessions"),
            round + 1
        );
        token = answers[0]["ok"]["refresh-token"].clone();
    }
    assert_eq!(
        store.one::<i64>("select count(*) from identity.sessions where ended_at is null"),
        1
    );
    assert_eq!(
        refresh(&second, &opened["refresh-token"]),
        json!({ "error": "reused" })
    );
    for host in hosts {
        is_nobody(&ask(host, &opened["access-token"]));
        assert_eq!(refresh(host, &token), json!({ "error": "no-session" }));
    }
}

/// J9: an access token that hasn't expired is worth nothing when its session is over.
#[test]
fn j9_access_token_is_dead_at_once_when_its_session_or_account_is() {
    let store = Store::new();
    let berth = store.start(&manifest());
    let signed_in = || {
        let ada = user(&store);
        let opened = open(&berth, ada);
        assert_eq!(ask(&berth, &opened["access-token"]).status, 200);
        (ada, opened)
    };

    let (ada, opened) = signed_in();
    let arguments = json!({ "user-id": ada.to_string(), "session-id": opened["session-id"] });
    assert_eq!(call(&berth, "sessions.close", &arguments), json!({ "ok": true }));
    is_nobody(&ask(&berth, &opened["access-token"]));

    let (ada, opened) = signed_in();
    store.run(&format!(
        "update identity.users set active = false where id = '{ada}'"
    ));
    is_nobody(&ask(&berth, &opened["access-token"]));
    assert_eq!(
        refresh(&berth, &opened["refresh-token"]),
        json!({ "error": "no-user" })
    );
    let arguments = json!({ "user-id": ada.to_string(), "client-ip": "" });
    assert_eq!(
        call(&berth, "sessions.open", &arguments),
        json!({ "error": "no-user" })
    );
    store.run(&format!(
        "update identity.users set active = true where id = '{ada}'"
    ));
    assert_eq!(ask(&berth, &opened["access-token"]).status, 200, "and back again");

    let (ada, opened) = signed_in();
    store.run(&format!("delete from identity.users where id = '{ada}'"));
    is_nobody(&ask(&berth, &opened["access-token"]));
    assert_eq!(
        refresh(&berth, &opened["refresh-token"]),
        json!({ "error": "no-session" })
    );

    // A changed password: every session but the one that changed it.
    let (ada, kept) = signed_in();
    let others = [open(&berth, ada), open(&berth, ada)];
    let arguments = json!({ "user-id": ada.to_string(), "keep": kept["session-id"] });
    assert_eq!(call(&berth, "sessions.close-all", &arguments), json!({ "ok": 2 }));
    for other in &others {
        is_nobody(&ask(&berth, &other["access-token"]));
    }
    assert_eq!(ask(&berth, &kept["access-token"]).status, 200);
    let arguments = json!({ "user-id": ada.to_string() });
    assert_eq!(call(&berth, "sessions.close-all", &arguments), json!({ "ok": 1 }));
    is_nobody(&ask(&berth, &kept["access-token"]));

    let (_, opened) = signed_in();
    store.run("update identity.sessions set expires_at = now()");
    is_nobody(&ask(&berth, &opened["access-token"]));
    assert_eq!(
        refresh(&berth, &opened["refresh-token"]),
        json!({ "error": "no-session" })
    );
}

/// A token with a right signature for a session of somebody else, or for none.
#[test]
fn signed_token_without_its_own_open_session_is_nobodys() {
    let store = Store::new();
    let berth = store.start(&manifest());
    let (ada, bob) = (user(&store), user(&store));
    let opened = open(&berth, ada);
    let session = opened["session-id"].as_str().unwrap();
    let issued = |subject: &str, session: &str| {
        call(
            &berth,
            "tokens.issue",
            &json!({ "subject": subject, "session-id": session }),
        )["ok"]
            .clone()
    };
    assert_eq!(ask(&berth, &issued(&ada.to_string(), session)).status, 200);
    for (subject, session) in [
        (bob.to_string().as_str(), session),
        (&ada.to_string(), &Uuid::now_v7().to_string()),
        ("admin", session),
        (&ada.to_string(), "s-1"),
    ] {
        is_nobody(&ask(&berth, &issued(subject, session)));
    }
}

#[test]
fn policy_cannot_make_somebody_else_of_a_bearer() {
    let store = Store::new();
    let berth = store.start(&manifest());
    // The fixture takes this one for somebody else.
    let id: Uuid = "01920000-0000-7000-8000-00000000beef".parse().unwrap();
    store.run(&format!(
        "insert into identity.users (id, email, email_canonical) values ('{id}', 'm@example.com', 'm@example.com')"
    ));
    let answer = ask(&berth, &open(&berth, id)["access-token"]);
    assert_eq!((answer.status, answer.code().as_str()), (503, "auth-unavailable"));
    berth.logged("the fault", |e| {
        e["message"]
            .as_str()
            .is_some_and(|m| m.contains("made somebody else of a token's bearer"))
    });
}

#[test]
fn guests_strings_are_bounded_and_the_hundred_and_first_session_ends_the_oldest() {
    let store = Store::new();
    let berth = store.start(&manifest());
    let ada = user(&store);
    let arguments = |more: Value| {
        let mut all = json!({ "user-id": ada.to_string(), "client-ip": "192.0.2.1" });
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        all
    };
    for (more, what) in [
        (json!({ "user-id": "ada" }), "`user-id` is not a UUID"),
        (
            json!({ "client-ip": "1".repeat(65) }),
            "`client-ip` is longer than 64 bytes",
        ),
        (json!({ "extra": "[]" }), "`extra` is not a JSON object"),
        (
            json!({ "extra": format!("{{\"a\":\"{}\"}}", "x".repeat(2048)) }),
            "`extra` is longer than 2048 bytes",
        ),
    ] {
        let refused = call(&berth, "sessions.open", &arguments(more));
        assert_eq!(refused["error"], "invalid", "{refused}");
        assert!(refused["detail"].as_str().unwrap().starts_with(what), "{refused}");
    }
    let nobody = json!({ "user-id": Uuid::now_v7().to_string(), "client-ip": "" });
    assert_eq!(
        call(&berth, "sessions.open", &nobody),
        json!({ "error": "no-user" })
    );
    assert_eq!(store.one::<i64>("select count(*) from identity.sessions"), 0);

    // A `User-Agent` is whatever a stranger sends: cut, and without what Postgres can't keep.
    let agent = format!("a\0b{}", "\u{e9}".repeat(1000));
    let oldest = call(
        &berth,
        "sessions.open",
        &arguments(json!({ "user-agent": agent })),
    )["ok"]
        .clone();
    let kept = list(&berth, ada)[0]["user-agent"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("ab\u{e9}") && kept.len() <= 512, "{kept}");

    let mut last = Value::Null;
    for _ in 0..100 {
        last = open(&berth, ada);
    }
    let open_ids: Vec<Value> = list(&berth, ada).iter().map(|s| s["id"].clone()).collect();
    assert_eq!(open_ids.len(), 100);
    assert!(open_ids.contains(&last["session-id"]) && !open_ids.contains(&oldest["session-id"]));
    is_nobody(&ask(&berth, &oldest["access-token"]));
    assert_eq!(ask(&berth, &last["access-token"]).status, 200);
    let open_rows = "select count(*) from identity.sessions where ended_at is null";
    assert_eq!(store.one::<i64>(open_rows), 100);
}

#[test]
fn lives_are_settings_and_an_access_token_never_outlives_its_session() {
    let store = Store::new();
    let manifest = manifest().raw("[tokens]\naccess_life = \"10m\"\nrefresh_life = \"5m\"");
    let berth = store.start(&manifest);
    let opened = open(&berth, user(&store));
    assert_eq!(opened["expires-in"], 300, "the session's own end");
    let left = "select extract(epoch from expires_at - now())::float8 from identity.sessions";
    store.run("update identity.sessions set expires_at = now() + interval '100 seconds'");
    let next = refresh(&berth, &opened["refresh-token"])["ok"].clone();
    assert!(
        store.one::<f64>(left) > 250.0,
        "a refresh gives a whole life again"
    );
    assert!(
        (299..=300).contains(&next["expires-in"].as_u64().unwrap()),
        "{next}"
    );
    // A repeat makes no new life.
    store.run("update identity.sessions set expires_at = now() + interval '100 seconds'");
    let again = refresh(&berth, &opened["refresh-token"])["ok"].clone();
    assert!(
        (98..=100).contains(&again["expires-in"].as_u64().unwrap()),
        "{again}"
    );
}

#[test]
fn old_sessions_are_deleted_and_recent_ones_are_kept() {
    let store = Store::new();
    drop(store.start(&manifest()));
    let ada = user(&store);
    store.run(&format!(
        "insert into identity.sessions (id, user_id, created_at, expires_at, ended_at, ended_by)
         select gen_random_uuid(), '{ada}'::uuid, now() - interval '60 days', now() - interval '8 days', null::timestamptz, null::text
         from generate_series(1, 2500)
         union all select gen_random_uuid(), '{ada}'::uuid, now(), now() - interval '6 days', now(), 'logout'
         union all select gen_random_uuid(), '{ada}'::uuid, now(), now() + interval '1 day', null, null"
    ));
    let _berth = store.start(&manifest());
    let started = Instant::now();
    while store.one::<i64>("select count(*) from identity.sessions") != 2 {
        assert!(started.elapsed() < PATIENCE, "2500 old sessions are still there");
        std::thread::yield_now();
    }
}

/// Fails closed, with a time to come back, and works again by itself.
#[test]
fn database_that_is_away_is_503_and_comes_back() {
    let store = Store::new();
    let berth = store.start(&manifest());
    let opened = open(&berth, user(&store));
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity
         where application_name = 'berth' and usename = current_user";
    // Connections that broke meanwhile are replaced without anybody noticing.
    for _ in 0..3 {
        store.run(cut);
        let answer = ask(&berth, &opened["access-token"]);
        assert_eq!(answer.status, 200, "{} {:#?}", answer.text(), berth.log());
    }
    // A connection of our own that is open already, to undo it with.
    let mut own = store.with(async |pool| pool.acquire().await.unwrap().detach());
    let mut run = |statement: &'static str| {
        store.with(async |_| sqlx::raw_sql(statement).execute(&mut own).await.unwrap());
    };
    run("alter role current_user nologin");
    run(cut);
    let away = ask(&berth, &opened["access-token"]);
    assert_eq!(
        (away.status, away.code().as_str()),
        (503, "database-unavailable"),
        "{}",
        away.text()
    );
    assert_eq!(away.header("retry-after"), Some("2"));
    assert_eq!(
        refresh(&berth, &opened["refresh-token"]),
        json!({ "error": "unavailable" })
    );
    assert_eq!(
        berth.get("/health").header("content-type"),
        Some("application/json")
    );
    run("alter role current_user login");
    let started = Instant::now();
    while ask(&berth, &opened["access-token"]).status != 200 {
        assert!(started.elapsed() < PATIENCE, "it doesn't come back");
        std::thread::yield_now();
    }
    assert!(refresh(&berth, &opened["refresh-token"])["ok"].is_object());
}

/// What the look-up of the session costs a request. Printed; no figure is judged.
#[test]
fn cost_of_the_session_check_is_printed() {
    let store = Store::new();
    let berth = store.start(&manifest());
    let opened = open(&berth, user(&store));
    let times = |ask: &dyn Fn() -> u16| {
        let each = (0..300).map(|_| {
            let started = Instant::now();
            assert_eq!(ask(), 200);
            started.elapsed()
        });
        Times::of(each.collect::<Vec<Duration>>()).percentile(0.5)
    };
    let signed_in = times(&|| ask(&berth, &opened["access-token"]).status);
    let public = times(&|| berth.get("/health").status);
    println!("median of 300: signed in {signed_in:?}, health {public:?} (new connection each, debug build)");
}
