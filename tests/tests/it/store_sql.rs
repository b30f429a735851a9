//! `berth:host/sql`: what a plugin can do with it, and what is left of a call that came to no end.

use std::collections::BTreeSet;
use std::time::Duration;

use berth_tests::berth::{Berth, Manifest, run};
use berth_tests::guest;
use berth_tests::store::Store;
use berth_tests::wire::{Connection, head};
use serde_json::{Value as Json, json};

use crate::metrics::{documented, label_names};

const FIXTURE: &str = "fixtures/sql";

/// The fixture, with more lines in its table.
pub(crate) fn fixture(grant: &str, more: &str) -> Manifest {
    let limits = match more.contains("limits") {
        true => "",
        false => "limits = { cpu = \"5s\" }",
    };
    Manifest::new().handler_with(
        FIXTURE,
        &format!("grants = {{ sql = [{grant}] }}\n{limits}\n{more}"),
    )
}

/// The same under another name, with a schema of that name.
pub(crate) fn second(manifest: Manifest) -> Manifest {
    manifest.handler_file("other", &guest(FIXTURE), "grants = { sql = [\"other\"] }")
}

/// What came of each step of a plugin.
#[track_caller]
pub(crate) fn steps_of(berth: &Berth, plugin: &str, steps: &Json) -> Vec<Json> {
    let answer = berth.post(&format!("/{plugin}/"), &steps.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().as_array().expect("an array").clone()
}

/// What came of each step.
#[track_caller]
pub(crate) fn steps(berth: &Berth, steps: &Json) -> Vec<Json> {
    steps_of(berth, "sql", steps)
}

/// What came of one statement.
#[track_caller]
pub(crate) fn one(berth: &Berth, statement: &str) -> Json {
    steps(berth, &json!([{"do": "query", "sql": statement}])).remove(0)
}

/// The rows of one statement.
#[track_caller]
pub(crate) fn rows(berth: &Berth, statement: &str) -> Json {
    let mut answer = one(berth, statement);
    assert!(answer["rows"].is_array(), "{answer}");
    answer["rows"].take()
}

/// Wait for something in the database.
#[track_caller]
pub(crate) fn becomes(store: &Store, statement: &str, wanted: i64) {
    store.becomes(statement, wanted);
}

/// Backends of plugins that are in the middle of something.
pub(crate) const BUSY: &str = "select count(*) from pg_stat_activity where datname = current_database()
    and application_name like 'berth %' and state <> 'idle'";

/// Send a request and leave without waiting for its answer.
fn send_and_leave(berth: &Berth, steps: &Json, after: Duration) {
    let body = steps.to_string();
    let mut connection = Connection::open(berth.address);
    let headers = [("content-type", "application/json")];
    connection.send(head("POST", "/sql/", &headers, body.len()) + &body);
    std::thread::sleep(after);
}

#[test]
fn statements_run_in_the_plugins_schema() {
    let store = Store::new();
    let berth = store.start(&fixture("\"notes\"", ""));
    let done = steps(
        &berth,
        &json!([
            {"do": "execute", "sql": "create table t (id bigint primary key, text text)"},
            {"do": "execute", "sql": "insert into t values ($1, $2), (2, null)",
                "with": [{"int64": 1}, {"text": "one"}]},
            {"do": "query", "sql": "select * from t order by id"},
            {"do": "query", "sql": "select * from t where false"},
            {"do": "execute", "sql": "insert into t values (1, 'again')"},
            {"do": "query", "sql": "select count(*) from notes.t;"},
            {"do": "query", "sql": ""},
        ]),
    );
    assert_eq!(
        done,
        [
            json!({"touched": 0}),
            json!({"touched": 2}),
            json!({"columns": [["id", "int8"], ["text", "text"]],
                "rows": [[{"int64": 1}, {"text": "one"}], [{"int64": 2}, null]]}),
            json!({"columns": [["id", "int8"], ["text", "text"]], "rows": []}),
            json!({"error": "database", "what": {"code": "23505", "constraint": "t_pkey",
                "message": "duplicate key value violates unique constraint \"t_pkey\""}}),
            json!({"columns": [["count", "int8"]], "rows": [[{"int64": 2}]]}),
            json!({"columns": [], "rows": []}),
        ]
    );
    assert_eq!(
        store.one::<i64>("select count(*) from pg_tables where schemaname = 'notes'"),
        1
    );
    for (result, wanted) in [("ok", 6.0), ("database", 1.0), ("timeout", 0.0)] {
        assert_eq!(
            berth.metric("berth_plugin_sql_calls_total", &["sql", result]),
            wanted
        );
    }
    // While one is cleaned after a call, the next call takes another.
    let connections = berth.metric("berth_plugin_sql_connections", &["sql"]);
    assert!((1.0..=2.0).contains(&connections), "{connections}");
}

/// The same text with other parameters is another statement, and so is one whose table was changed.
#[test]
fn statement_is_prepared_for_what_it_is() {
    let store = Store::new();
    let berth = store.start(&fixture("\"notes\"", ""));
    let done = steps(
        &berth,
        &json!([
            {"do": "query", "sql": "select $1", "with": [{"int64": 4_607_182_418_800_017_408_i64}]},
            {"do": "query", "sql": "select $1", "with": [{"float64": "1"}]},
            {"do": "query", "sql": "select $1", "with": [{"text": "12345678"}]},
            {"do": "query", "sql": "select $1", "with": [null]},
            {"do": "execute", "sql": "create table t as select 1 as a"},
            {"do": "query", "sql": "select * from t"},
            {"do": "execute", "sql": "alter table t add b text default 'x'"},
            {"do": "query", "sql": "select * from t"},
            {"do": "begin"},
            {"do": "query", "in": 0, "sql": "select * from t"},
            {"do": "execute", "in": 0, "sql": "alter table t drop a"},
            {"do": "query", "in": 0, "sql": "select * from t"},
            {"do": "rollback", "in": 0},
            {"do": "query", "sql": "select * from t"},
        ]),
    );
    let rows: Vec<&Json> = done.iter().map(|step| &step["rows"]).collect();
    let both = json!([[{"int64": 1}, {"text": "x"}]]);
    assert_eq!(rows[0], &json!([[{"int64": 4_607_182_418_800_017_408_i64}]]));
    assert_eq!(rows[1], &json!([[{"float64": "1.0"}]]));
    assert_eq!(rows[2], &json!([[{"text": "12345678"}]]));
    assert_eq!(rows[3], &json!([[null]]));
    assert_eq!(rows[5], &json!([[{"int64": 1}]]));
    assert_eq!((rows[7], rows[9], rows[13]), (&both, &both, &both), "{done:?}");
    assert_eq!(rows[11], &json!([[{"text": "x"}]]), "{done:?}");
    // Changed by somebody else, the host's own login: the connection finds out.
    store.run("alter table notes.t rename b to c");
    let answer = one(&berth, "select * from t");
    assert_eq!(
        answer["columns"],
        json!([["a", "int4"], ["c", "text"]]),
        "{answer}"
    );
    // A function that makes the connection forget what is prepared costs nobody anything.
    let done = steps(
        &berth,
        &json!([
            {"do": "query", "sql": "select 1"},
            {"do": "execute", "sql": "create function forget() returns void language plpgsql as $$ begin execute 'deallocate all'; end $$"},
            {"do": "query", "sql": "select 1"},
            {"do": "execute", "sql": "select forget()"},
            {"do": "query", "sql": "select 1"},
            {"do": "query", "sql": "select 1"},
        ]),
    );
    assert!(done.iter().all(|step| step["error"].is_null()), "{done:?}");
}

#[test]
fn transaction_keeps_all_or_nothing() {
    let store = Store::new();
    let berth = store.start(&fixture("\"notes\"", ""));
    let insert =
        |at: u8, id: u8| json!({"do": "execute", "in": at, "sql": format!("insert into t values ({id})")});
    let done = steps(
        &berth,
        &json!([
            {"do": "execute", "sql": "create table t (id int primary key, parent int references t deferrable initially deferred)"},
            {"do": "begin"}, insert(0, 1), {"do": "commit", "in": 0},
            {"do": "begin"}, insert(1, 2), {"do": "rollback", "in": 1},
            {"do": "begin"}, insert(2, 3), {"do": "drop", "in": 2},
            {"do": "begin"}, insert(3, 4), insert(3, 1), {"do": "commit", "in": 3},
            {"do": "begin"}, {"do": "execute", "in": 4, "sql": "insert into t values (5, 99)"}, {"do": "commit", "in": 4},
            {"do": "query", "in": 0, "sql": "select 1"},
            {"do": "commit", "in": 3},
            {"do": "query", "sql": "select id from t"},
        ]),
    );
    assert_eq!(done[3], "committed");
    assert_eq!(done[6], "rolled back");
    assert_eq!(done[12]["what"]["code"], "23505");
    assert_eq!(done[13]["what"]["code"], "25P02", "what failed is not committed");
    assert_eq!(done[16]["what"]["code"], "23503", "a commit may fail");
    assert_eq!(
        (&done[17]["error"], &done[18]["error"]),
        (&json!("transaction-over"), &json!("transaction-over"))
    );
    assert_eq!(done[19]["rows"], json!([[{"int64": 1}]]));
    becomes(&store, BUSY, 0);
}

#[test]
fn missing_grant_is_a_sentence() {
    let berth = Manifest::new().handler(FIXTURE).start();
    assert_eq!(berth.post("/sql/", "[]").status, 503);
    let event = berth.logged("why it isn't loaded", |e| e["code"] == "not-granted");
    let message = event["message"].as_str().unwrap();
    assert!(
        message.contains("it imports \"berth:host/sql@0.1.0\", which is not granted; add `sql = [\"<schema>\"]` to the plugin's `grants`"),
        "{message}"
    );
}

#[test]
fn schema_of_two_plugins_is_a_fault() {
    let component = guest(FIXTURE);
    let plugin = |name: &str, grant: &str| {
        format!("[plugins.{name}]\ncomponent = {component:?}\ngrants = {{ sql = [{grant}] }}\n")
    };
    let out = run(
        &(plugin("a", "\"x\", \"identity\"") + &plugin("b", "\"identity\", \"x\"")),
        &["check"],
        &[],
    );
    let text = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(64), "{text}");
    assert!(
        text.contains(
            "plugins.b.grants.sql: the schema \"x\" is the plugin \"a\"'s already; choose another name"
        ),
        "{text}"
    );
    assert!(!text.contains("\"identity\" is"), "{text}");
}

#[test]
fn grant_that_is_taken_out_is_taken_back() {
    let store = Store::new();
    let read = "select count(*) from identity.users";
    {
        let berth = store.start(&fixture("\"notes\", \"second\", \"identity\"", ""));
        assert_eq!(rows(&berth, read), json!([[{"int64": 0}]]));
        rows(&berth, "create table second.t (id int)");
        rows(&berth, "create table notes.t as select 1 as id");
        // What the host keeps to itself.
        for (statement, code) in [
            ("select * from identity.sessions", "42501"),
            ("select * from identity.audit", "42501"),
            ("delete from identity.users", "42501"),
            ("update identity.users set roles = '{admin}'", "42501"),
            (
                "insert into identity.users (id, email, email_canonical, active) values (gen_random_uuid(), 'a@b', 'a@b', true)",
                "42501",
            ),
            ("select * from berth.migrations", "42501"),
            ("create table identity.t (id int)", "42501"),
        ] {
            assert_eq!(one(&berth, statement)["what"]["code"], code, "{statement}");
        }
    }
    {
        let berth = store.start(&fixture("\"notes\"", ""));
        for statement in [read, "select * from second.t", "drop table second.t"] {
            assert_eq!(one(&berth, statement)["what"]["code"], "42501", "{statement}");
        }
        assert_eq!(rows(&berth, "select * from notes.t"), json!([[{"int64": 1}]]));
    }
    {
        let berth = store.start(&fixture("\"notes\", \"second\"", ""));
        assert_eq!(rows(&berth, "select * from second.t"), json!([]));
    }
    let logins = "select count(*) from pg_roles where rolcanlogin and rolname like
        'berth_' || (select oid from pg_database where datname = current_database()) || '_%'";
    assert_eq!(store.one::<i64>(logins), 1);
    // A manifest without `sql`, but with the database.
    let accounts = Manifest::new().accounts();
    let berth = store.start(&accounts);
    assert_eq!(store.one::<i64>(logins), 1, "the policy's own");
    drop(berth);
    let _berth = store.start(&accounts);
    let locked = logins.replace("where rolcanlogin", "where not rolcanlogin");
    assert_eq!(store.one::<i64>(&locked), 1, "the fixture's, which is gone");
}

#[test]
fn schema_of_somebody_else_is_a_sentence() {
    let store = Store::server();
    store.run("create schema taken; create table taken.t (id int)");
    let out = run(fixture("\"taken\"", "").text(), &["serve"], &env(&store));
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(
        text.contains("plugins.sql.grants.sql: the schema \"taken\" belongs to \"t_"),
        "{text}"
    );
    // Empty, it is as good as new.
    store.run("drop table taken.t");
    let berth = store.start(&fixture("\"taken\"", ""));
    rows(&berth, "create table t (id int)");
}

fn env(store: &Store) -> [(&'static str, &'static str); 2] {
    let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let mut environment = store.environment().into_iter();
    let mut next = || {
        environment
            .next()
            .map(|(name, value)| (name, leak(value)))
            .unwrap()
    };
    [next(), next()]
}

#[test]
fn missing_privilege_is_a_sentence() {
    let store = Store::server();
    store.run("do $$ begin execute format('alter role %I nocreaterole', current_user); end $$");
    let out = run(fixture("\"notes\"", "").text(), &["serve"], &env(&store));
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(
        text.contains(
            "lacks the privilege CREATEROLE, which berth needs to give each plugin a login of its own"
        ),
        "{text}"
    );
    assert!(!text.contains("postgres://"), "{text}");
}

#[test]
fn roles_own_nothing_but_their_schemas() {
    let store = Store::new();
    let _berth = store.start(&second(fixture("\"notes\"", "")));
    let ours =
        "r.rolname like 'berth_' || (select oid from pg_database where datname = current_database()) || '_%'";
    assert_eq!(
        store.one::<String>(&format!(
            "select string_agg(concat(rolsuper, rolcreatedb, rolcreaterole, rolinherit, rolreplication, rolbypassrls, rolconnlimit), ' ')
             from pg_roles r where {ours}"
        )),
        "ffffff16 ffffff16"
    );
    assert_eq!(
        store.one::<String>(&format!(
            "select string_agg(nspname, ' ' order by nspname) from pg_namespace n join pg_roles r on r.oid = nspowner where {ours}"
        )),
        "notes other"
    );
    // Members of nothing.
    assert_eq!(
        store.one::<i64>(&format!(
            "select count(*) from pg_auth_members m join pg_roles r on r.oid = m.member where {ours}"
        )),
        0
    );
}

/// CASES, hosting 24: cancelled at every await of BEGIN … COMMIT, then the pool's only connection is used.
#[test]
fn hosting_24_cancelled_transaction_poisons_nobody() {
    let store = Store::new();
    let manifest = fixture("\"notes\"", "");
    let berth = store.start_with(&manifest, &[("BERTH_POSTGRES_PLUGIN_CONNECTIONS", "1")]);
    rows(&berth, "create table t (id int primary key)");
    for at in 0..60u32 {
        let id = at + 1;
        send_and_leave(
            &berth,
            &json!([
                {"do": "begin"},
                {"do": "execute", "in": 0, "sql": "insert into t values ($1)", "with": [{"int64": id}]},
                {"do": "execute", "in": 0, "sql": "select pg_sleep(0.002)"},
                {"do": "execute", "in": 0, "sql": "insert into t values (-$1)", "with": [{"int64": id}]},
                {"do": "commit", "in": 0},
                {"do": "sleep", "ms": 1000},
            ]),
            Duration::from_micros(u64::from(at) * 250),
        );
        // A borrower finds no transaction, in which this could not be done, and isn't in one that has failed.
        assert_eq!(rows(&berth, "vacuum t"), json!([]), "after {at}");
    }
    becomes(&store, BUSY, 0);
    // Each as a whole or not at all.
    assert_eq!(
        rows(
            &berth,
            "select count(*) from t a where not exists (select from t b where b.id = -a.id)"
        ),
        json!([[{"int64": 0}]])
    );
}

/// CASES, hosting 25: a guest that is dropped in the middle of a query leaves no backend at work.
#[test]
fn hosting_25_dropped_guest_leaves_no_backend() {
    let store = Store::new();
    let berth = store.start(&fixture("\"notes\"", "limits = { wall = \"300ms\" }"));
    let cancelled = || berth.metric("berth_plugin_sql_cancelled_total", &["sql"]);
    let answer = berth.post(
        "/sql/",
        &json!([{"do": "query", "sql": "select pg_sleep(60)"}]).to_string(),
    );
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (504, "plugin-timeout"),
        "{}",
        answer.text()
    );
    becomes(&store, BUSY, 0);
    assert_eq!(cancelled(), 1.0);
    // The same when its client leaves, within a transaction.
    let asleep =
        "select count(*) from pg_stat_activity where query like 'select pg_sleep(61)%' and state = 'active'
        and datname = current_database() and pid <> pg_backend_pid()";
    let slow = json!([{"do": "begin"}, {"do": "query", "in": 0, "sql": "select pg_sleep(61)"}]);
    let body = slow.to_string();
    let mut connection = Connection::open(berth.address);
    let headers = [("content-type", "application/json")];
    connection.send(head("POST", "/sql/", &headers, body.len()) + &body);
    becomes(&store, asleep, 1);
    drop(connection);
    becomes(&store, BUSY, 0);
    berth.metric_becomes("berth_plugin_sql_cancelled_total", &["sql"], |n| n == 2.0);
    berth.metric_becomes("berth_plugin_sql_connections", &["sql"], |n| n == 0.0);
    assert_eq!(rows(&berth, "select 1"), json!([[{"int64": 1}]]));
}

/// CASES, hosting 26: one plugin's leaked transactions are its own trouble, and not for long.
#[test]
fn hosting_26_pool_of_one_plugin_is_its_own() {
    let store = Store::new();
    let berth = store.start_with(
        &second(fixture("\"notes\"", "")),
        &[
            ("BERTH_POSTGRES_PLUGIN_CONNECTIONS", "2"),
            ("BERTH_POSTGRES_ACQUIRE_TIME", "2s"),
        ],
    );
    let hold = json!([{"do": "begin"}, {"do": "begin"}, {"do": "query", "sql": "select 1"},
        {"do": "sleep", "ms": 6000}, {"do": "query", "in": 0, "sql": "select 1"}, {"do": "query", "sql": "select 1"}]);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| steps(&berth, &hold));
        becomes(
            &store,
            "select count(*) from pg_stat_activity where datname = current_database()
            and application_name = 'berth sql' and state = 'idle in transaction'",
            2,
        );
        assert_eq!(one(&berth, "select 1")["error"], "pool-timeout");
        let other = steps_of(&berth, "other", &json!([{"do": "query", "sql": "select 1"}]));
        assert_eq!(other[0]["rows"], json!([[{"int64": 1}]]));
        let held = held.join().unwrap();
        assert_eq!(held[2]["error"], "pool-timeout");
        assert_eq!(
            held[4]["error"], "transaction-over",
            "a transaction has an idle limit"
        );
        assert_eq!(held[5]["rows"], json!([[{"int64": 1}]]));
    });
}

/// An instance lives on with `reuse`, its transactions don't.
#[test]
fn transaction_of_a_reused_instance_ends_with_its_request() {
    let store = Store::new();
    let berth = store.start_with(
        &fixture("\"notes\"", "reuse = \"serial\""),
        &[("BERTH_POSTGRES_PLUGIN_CONNECTIONS", "1")],
    );
    rows(&berth, "create table t (id int)");
    for _ in 0..3 {
        let done = steps(
            &berth,
            &json!([{"do": "begin"}, {"do": "execute", "in": 0, "sql": "insert into t values (1)"}, {"do": "keep"}]),
        );
        assert_eq!(done[2], "kept", "{done:?}");
        assert_eq!(rows(&berth, "select count(*) from t"), json!([[{"int64": 0}]]));
    }
    assert_eq!(berth.metric("berth_instances_idle", &[]), 1.0);
}

#[test]
fn server_that_is_gone_is_unavailable_until_it_is_back() {
    let store = Store::new();
    let berth = store.start(&fixture("\"notes\"", ""));
    assert_eq!(rows(&berth, "select 1"), json!([[{"int64": 1}]]));
    let role = store.one::<String>(
        "select quote_ident(rolname) from pg_roles where rolname like
         'berth_' || (select oid from pg_database where datname = current_database()) || '_%'",
    );
    store.run(&format!(
        "alter role {role} nologin; select pg_terminate_backend(pid) from pg_stat_activity where quote_ident(usename) = '{role}'"
    ));
    let done = steps(
        &berth,
        &json!([{"do": "query", "sql": "select 1"}, {"do": "begin"}, {"do": "execute", "sql": "select 1"}]),
    );
    for step in done {
        assert_eq!(step["error"], "unavailable", "{step}");
    }
    store.run(&format!("alter role {role} login"));
    assert_eq!(rows(&berth, "select 1"), json!([[{"int64": 1}]]));
}

#[test]
fn three_hundred_transactions_at_once_are_served() {
    let store = Store::new();
    let berth = store.start(&fixture("\"notes\"", ""));
    rows(&berth, "create table t (id int)");
    let work = json!([{"do": "begin"}, {"do": "execute", "in": 0, "sql": "insert into t values (1)"},
        {"do": "query", "in": 0, "sql": "select pg_sleep(0.01)"}, {"do": "commit", "in": 0}]);
    let outcomes: Vec<Vec<Json>> = std::thread::scope(|scope| {
        let requests: Vec<_> = (0..300).map(|_| scope.spawn(|| steps(&berth, &work))).collect();
        requests
            .into_iter()
            .map(|request| request.join().unwrap())
            .collect()
    });
    assert!(
        outcomes
            .iter()
            .all(|done| done.last() == Some(&json!("committed"))),
        "{outcomes:?}"
    );
    assert_eq!(rows(&berth, "select count(*) from t"), json!([[{"int64": 300}]]));
    assert!(berth.metric("berth_plugin_sql_connections", &["sql"]) <= 8.0);
}

#[test]
fn metrics_of_sql_are_the_documented_ones() {
    let store = Store::new();
    let berth = store.start(&fixture("\"notes\"", ""));
    let documented = documented();
    let families = berth.metrics();
    let ours: Vec<_> = families
        .iter()
        .filter(|family| family.name.starts_with("berth_plugin_sql_"))
        .collect();
    assert_eq!(ours.len(), 4);
    for family in ours {
        let labels: BTreeSet<&str> = documented[&family.name][1].split(", ").collect();
        assert_eq!(
            label_names(family),
            [labels].into_iter().collect(),
            "{}",
            family.name
        );
    }
}
