//! The record of attempts: what is in it, and that it costs nobody a request.

use berth_tests::berth::{Berth, Manifest, eventually};
use berth_tests::store::Store;
use berth_tests::wire::request;

/// A policy with constant answers, beside an identity store.
fn manifest() -> Manifest {
    Manifest::new().auth_with("fixtures/auth-static", "grants = { sessions = true }")
}

fn login(berth: &Berth, email: &str, id: &str) {
    let headers = [("content-type", "application/json"), ("x-request-id", id)];
    let body = format!(r#"{{"email":"{email}","password":"hunter2hunter2"}}"#);
    request(
        berth.address,
        "POST",
        "/api/v1/auth/login",
        &headers,
        body.as_bytes(),
    );
}

fn rows(store: &Store) -> i64 {
    store.one("select count(*) from identity.audit")
}

#[track_caller]
fn becomes(store: &Store, wanted: i64) {
    store.becomes("select count(*) from identity.audit", wanted);
}

#[test]
fn attempts_are_recorded_with_who_what_from_where_and_by_which_component() {
    let store = Store::new();
    let berth = store.start(&manifest());
    login(&berth, "Ada@Example.com", "r-1");
    login(&berth, "problem@example.com", "r-2");
    login(&berth, "panic@example.com", "r-3");
    login(&berth, "a\\u0000b\\u001b[2J@example.com", "r-4");
    login(&berth, &"x".repeat(10_000), "r-5");
    berth.post(
        "/api/v1/auth/register",
        r#"{"email":"ada@example.com","password":"hunter2hunter2"}"#,
    );
    berth.post("/api/v1/auth/refresh", r#"{"refreshToken":"hunter2hunter2"}"#);
    becomes(&store, 7);
    let row = |id: &str| -> String {
        store.one(&format!(
            "select concat_ws(' ', action, outcome, user_id, account, coalesce(actor, '-'), client_ip, plugin, length(digest))
             from identity.audit where request_id = '{id}'"
        ))
    };
    let loaded = berth.logged("that the policy is loaded", |e| {
        e["target"] == "berth::plugin" && e["plugin"] == "auth"
    });
    let digest = loaded["version"].as_str().unwrap();
    let length = digest.len();
    let user = "01920000-0000-7000-8000-000000000001";
    assert_eq!(
        row("r-1"),
        format!("login ok {user} Ada@Example.com - 127.0.0.1 auth {length}")
    );
    assert_eq!(
        row("r-2"),
        format!("login slow-down problem@example.com - 127.0.0.1 auth {length}")
    );
    assert_eq!(
        row("r-3"),
        format!("login plugin-trap panic@example.com - 127.0.0.1 auth {length}")
    );
    assert!(
        row("r-4").contains("a\u{fffd}b\u{fffd}[2J@example.com"),
        "{}",
        row("r-4")
    );
    let cut: i64 = store.one("select length(account)::bigint from identity.audit where request_id = 'r-5'");
    assert_eq!(cut, 320);
    let same: i64 = store.one(&format!(
        "select count(*) from identity.audit where digest = '{digest}'"
    ));
    assert_eq!(same, 7);
    let secrets: i64 = store.one("select count(*) from identity.audit a where a::text like '%hunter2%'");
    assert_eq!(secrets, 0, "no passwords, no tokens");
    let late: i64 =
        store.one("select count(*) from identity.audit where abs(extract(epoch from now() - at)) > 3600");
    assert_eq!(late, 0, "the time of the attempt");
}

#[test]
fn attempt_that_failed_is_found_by_the_account_that_it_was_on() {
    let store = Store::new();
    let berth = store.start(&manifest());
    store.run(
        "insert into identity.users (id, email, email_canonical)
         values ('01920000-0000-7000-8000-000000000009', 'problem@example.com', 'problem@example.com')",
    );
    login(&berth, "problem@example.com", "r-1");
    login(&berth, "problem@example.com", "r-2");
    becomes(&store, 2);
    let found: i64 = store
        .one("select count(*) from identity.audit where user_id = '01920000-0000-7000-8000-000000000009'");
    assert_eq!(found, 2);
}

#[test]
fn rows_that_wait_are_written_at_the_stop() {
    let store = Store::new();
    let mut berth = store.start(&manifest());
    let count = 300;
    std::thread::scope(|scope| {
        for part in 0..3 {
            let berth = &berth;
            scope.spawn(move || {
                (0..count / 3).for_each(|n| login(berth, "ada@example.com", &format!("r-{part}-{n}")))
            });
        }
    });
    berth.signal("TERM");
    assert!(berth.wait().success());
    // A private Postgres is there only while berth runs.
    let _again = store.start(&manifest());
    assert_eq!(rows(&store), i64::from(count));
}

#[test]
fn audit_that_cannot_be_written_costs_no_request_and_is_counted() {
    let store = Store::new();
    let berth = store.start(&manifest());
    store.run("alter table identity.audit rename to elsewhere");
    for n in 0..20 {
        let answer = berth.post(
            "/api/v1/auth/login",
            r#"{"email":"ada@example.com","password":"x"}"#,
        );
        assert_eq!(answer.status, 200, "{n}");
    }
    assert_eq!(
        berth.metric_becomes("berth_audit_dropped_total", &[], |n| n == 20.0),
        20.0
    );
    berth.logged("that rows are lost", |e| {
        e["target"] == "berth::audit" && e["level"] == "ERROR"
    });
    let lines = berth
        .log()
        .into_iter()
        .filter(|e| e["target"] == "berth::audit")
        .count();
    assert_eq!(lines, 1, "said once");
    store.run("alter table identity.elsewhere rename to audit");
    login(&berth, "ada@example.com", "r-1");
    becomes(&store, 1);
    berth.logged("that it works again", |e| {
        e["target"] == "berth::audit" && e["level"] == "INFO"
    });
}

#[test]
fn rows_wait_while_their_table_is_locked_and_requests_do_not() {
    let store = Store::new();
    let berth = store.start(&manifest());
    store.with(async |pool| {
        let mut transaction = pool.begin().await.unwrap();
        sqlx::query("lock table identity.audit in access exclusive mode")
            .execute(&mut *transaction)
            .await
            .unwrap();
        // Nobody waits for the writer, which waits for the table.
        let answer = tokio::task::spawn_blocking({
            let address = berth.address;
            move || {
                (0..50)
                    .map(|_| {
                        let body = r#"{"email":"ada@example.com","password":"x"}"#;
                        berth_tests::wire::post_json(address, "/api/v1/auth/login", body).status
                    })
                    .collect::<Vec<_>>()
            }
        });
        let statuses = answer.await.unwrap();
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
        transaction.rollback().await.unwrap();
    });
    becomes(&store, 50);
    assert_eq!(berth.metric("berth_audit_dropped_total", &[]), 0.0);
}

/// Of 20 000 rows of others, none is read.
#[test]
fn record_of_one_account_is_found_by_an_index() {
    // Its server tells what was read once berth has stopped.
    let store = Store::server();
    let mut berth = store.start(&manifest());
    let (ada, bob) = (
        "01920000-0000-7000-8000-000000000001",
        "01920000-0000-7000-8000-000000000002",
    );
    store.run(&format!(
        "insert into identity.users (id, email, email_canonical)
             values ('{ada}', 'ada@example.com', 'ada@example.com');
         insert into identity.audit (action, outcome, user_id, account)
             values ('login', 'by-both', '{ada}', 'Ada@Example.com'), ('login', 'by-user', '{ada}', null),
                    ('login', 'by-account', null, 'ADA@example.com');
         insert into identity.audit (action, outcome, user_id, account)
             select 'login', 'ok', '{bob}', 'bob@example.com' from generate_series(1, 20000);
         analyze identity.audit"
    ));
    let bearer = format!("Bearer {}", store.admin_token());
    let outcomes = |query: &str| -> (Vec<String>, Option<i64>) {
        let path = format!("/admin/audit?{query}");
        let answer = request(berth.admin, "GET", &path, &[("authorization", &bearer)], b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let page = answer.json();
        let entries = page["entries"].as_array().unwrap();
        let outcomes = entries
            .iter()
            .map(|row| row["outcome"].as_str().unwrap().to_owned());
        (outcomes.collect(), page["next"].as_i64())
    };
    let read = || -> i64 {
        store.one(
            "select seq_tup_read + idx_tup_fetch from pg_stat_user_tables
             where schemaname = 'identity' and relname = 'audit'",
        )
    };
    let before = read();
    let all = outcomes("user=ada%40example.com").0;
    assert_eq!(
        all,
        ["by-account", "by-user", "by-both"],
        "newest first, each once"
    );
    assert_eq!(outcomes(&format!("user={ada}")).0, ["by-user", "by-both"]);
    assert!(outcomes("user=nobody%40example.com").0.is_empty());
    // In pages, of which the rows of others are none.
    let (first, next) = outcomes("user=ada%40example.com&limit=2");
    assert_eq!(first, ["by-account", "by-user"]);
    let next = format!("user=ada%40example.com&limit=2&cursor={}", next.unwrap());
    assert_eq!(outcomes(&next), (vec!["by-both".to_owned()], None));
    let (newest, next) = outcomes("limit=1");
    assert_eq!((newest, next.is_some()), (vec!["ok".to_owned()], true));
    berth.signal("TERM");
    assert!(berth.wait().success());
    // A connection that has ended has counted.
    let theirs = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'berth'";
    eventually("berth is gone", || store.one::<i64>(theirs) == 0);
    let read = read() - before;
    assert!((1..100).contains(&read), "{read} rows were read");
}

#[test]
fn old_rows_are_deleted() {
    let store = Store::new();
    drop(store.start(&manifest()));
    store.run(
        "insert into identity.audit (at, action, outcome)
         select now() - interval '8 days', 'login', 'old' from generate_series(1, 2500)
         union all select now() - interval '6 days', 'login', 'young'",
    );
    let _berth = store.start_with(&manifest(), &[("BERTH_IDENTITY_AUDIT_DAYS", "7")]);
    becomes(&store, 1);
    let left: String = store.one("select outcome from identity.audit");
    assert_eq!(left, "young");
}
