//! Plugins that use the database come and go while the host serves, and their roles with them.

use berth_tests::berth::{Berth, Manifest};
use berth_tests::guest;
use berth_tests::store::Store;
use berth_tests::swaps::{Caller, Operator};
use berth_tests::wire::{Connection, head, is};
use serde_json::{Value, json};

use crate::store_sql::{fixture, steps, steps_of};

/// Roles of plugins that can log in.
fn logins(plugin: &str) -> String {
    format!(
        "select count(*) from pg_roles, pg_database where datname = current_database() and rolcanlogin
         and rolname = 'berth_' || pg_database.oid || '_{plugin}'"
    )
}

fn write(berth: &Berth, manifest: &Manifest) {
    let path = berth.folder().join("berth.toml");
    std::fs::write(&path, manifest.text()).unwrap();
}

#[track_caller]
fn apply(berth: &Berth, operator: &Operator, manifest: &Manifest) -> Value {
    write(berth, manifest);
    let answer = operator.post("/admin/reload", &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let event = answer.json();
    assert_eq!(event["kind"], "manifest-applied", "{event}");
    event
}

/// The fixture under another name.
fn with(manifest: &Manifest, name: &str, grants: &str) -> Manifest {
    let more = format!("grants = {{ {grants} }}\nlimits = {{ cpu = \"5s\" }}");
    manifest.clone().handler_file(name, &guest("fixtures/sql"), &more)
}

fn start(store: &Store, manifest: &Manifest) -> (Berth, Operator) {
    let berth = store.start(&manifest.clone().handler("hello"));
    let operator = Operator::with(berth.admin, &store.data());
    (berth, operator)
}

#[test]
fn plugin_with_sql_comes_works_goes_and_finds_its_tables_when_it_is_back() {
    let store = Store::new();
    let base = fixture("\"sql\"", "");
    let (berth, operator) = start(&store, &base);
    let base = base.handler("hello");
    assert_eq!(
        steps(
            &berth,
            &json!([{"do": "execute", "sql": "create table mine (n int)"}])
        ),
        [json!({"touched": 0})]
    );
    let caller = Caller::start(berth.address, "/hello/Ada");

    let event = apply(&berth, &operator, &with(&base, "other", "sql = [\"other\"]"));
    assert_eq!(event["added"], json!(["other"]));
    assert!(event["changed"].is_null(), "{event}");
    store.becomes(&logins("other"), 1);
    let made = steps_of(
        &berth,
        "other",
        &json!([
            {"do": "execute", "sql": "create table theirs (n int)"},
            {"do": "execute", "sql": "insert into theirs values (7)"},
            {"do": "query", "sql": "select * from sql.mine"},
        ]),
    );
    assert_eq!(made[..2], [json!({"touched": 0}), json!({"touched": 1})]);
    assert_eq!(
        made[2]["what"]["code"], "42501",
        "it sees nobody else's tables: {}",
        made[2]
    );
    assert_eq!(
        steps(
            &berth,
            &json!([{"do": "execute", "sql": "insert into mine values (1)"}])
        ),
        [json!({"touched": 1})]
    );

    apply(&berth, &operator, &base);
    is(&berth.post("/other/", "[]"), 404, "not-found");
    store.becomes(&logins("other"), 0);
    store.becomes(&logins("sql"), 1);
    store.becomes("select count(*) from other.theirs", 1);
    assert_eq!(
        steps(
            &berth,
            &json!([{"do": "execute", "sql": "insert into mine values (2)"}])
        ),
        [json!({"touched": 1})]
    );

    apply(&berth, &operator, &with(&base, "other", "sql = [\"other\"]"));
    let rows = steps_of(
        &berth,
        "other",
        &json!([{"do": "count", "sql": "select * from theirs"}]),
    );
    assert_eq!(rows, [json!({"count": 1})]);
    caller.stop().only(&["Hello, Ada.\n"]);
}

#[test]
fn requests_in_flight_on_a_removed_plugin_may_use_the_database_to_their_end() {
    let store = Store::new();
    let base = fixture("\"sql\"", "");
    let (berth, operator) = start(&store, &with(&base, "other", "sql = [\"other\"]"));
    let base = base.handler("hello");
    // It connects when the plugin is gone from the manifest.
    let body = json!([{"do": "sleep", "ms": 1500}, {"do": "execute", "sql": "create table late (n int)"}])
        .to_string();
    let mut connection = Connection::open(berth.address);
    connection.send(head(
        "POST",
        "/other/",
        &[("content-type", "application/json")],
        body.len(),
    ));
    connection.send(&body);
    berth.metric_becomes("berth_plugin_running", &["other"], |n| n == 1.0);
    // Nothing waits for it meanwhile.
    store
        .run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'berth other'");
    apply(&berth, &operator, &base);
    is(&berth.post("/other/", "[]"), 404, "not-found");
    let answer = connection.response("POST").expect("an answer");
    assert_eq!(
        (answer.status, answer.json()[1].clone()),
        (200, json!({"touched": 0})),
        "{}",
        answer.text()
    );
    drop(connection);
    store.becomes(&logins("other"), 0);
    store.becomes(
        "select count(*) from pg_tables where schemaname = 'other' and tablename = 'late'",
        1,
    );
    store.becomes(
        "select count(*) from pg_stat_activity where application_name = 'berth other'",
        0,
    );
}

#[test]
fn refused_manifest_leaves_every_role_as_it_is() {
    let store = Store::new();
    let base = fixture("\"sql\", \"second\"", "");
    let (berth, operator) = start(&store, &base);
    let made = steps(
        &berth,
        &json!([{"do": "execute", "sql": "create table second.mine (n int)"}]),
    );
    assert_eq!(made, [json!({"touched": 0})]);
    let missing = berth.folder().join("missing.wasm");
    let next =
        with(&fixture("\"sql\"", ""), "other", "sql = [\"other\"]").handler_file("missing", &missing, "");
    write(&berth, &next);
    is(
        &operator.post("/admin/reload", &json!({})),
        422,
        "manifest-refused",
    );
    assert_eq!(store.one::<i64>(&logins("other")), 0);
    assert_eq!(
        store.one::<i64>("select count(*) from pg_namespace where nspname = 'other'"),
        0
    );
    let still = steps(
        &berth,
        &json!([{"do": "execute", "sql": "insert into second.mine values (1)"}]),
    );
    assert_eq!(still, [json!({"touched": 1})], "what is granted is granted on");

    // A schema of somebody else: none of the others is made either.
    store.run("create schema foreign_one; create table foreign_one.theirs (n int)");
    let next = with(&base, "other", "sql = [\"other\"]");
    let next = with(&next, "thief", "sql = [\"foreign_one\"]");
    write(&berth, &next);
    let answer = operator.post("/admin/reload", &json!({}));
    is(&answer, 422, "manifest-refused");
    assert!(answer.text().contains("foreign_one"), "{}", answer.text());
    assert_eq!(store.one::<i64>(&logins("other")), 0);
    let still = steps(
        &berth,
        &json!([{"do": "execute", "sql": "insert into second.mine values (2)"}]),
    );
    assert_eq!(still, [json!({"touched": 1})]);
}

#[test]
fn schemas_that_change_are_the_new_versions_at_once_and_nobodys_when_the_old_one_is_gone() {
    let store = Store::new();
    let (berth, operator) = start(&store, &fixture("\"sql\", \"second\"", ""));
    let made = steps(
        &berth,
        &json!([{"do": "execute", "sql": "create table second.mine (n int)"}]),
    );
    assert_eq!(made, [json!({"touched": 0})]);
    let event = apply(
        &berth,
        &operator,
        &fixture("\"sql\", \"third\"", "").handler("hello"),
    );
    assert_eq!(event["changed"], json!(["sql"]));
    let made = steps(
        &berth,
        &json!([{"do": "execute", "sql": "create table third.mine (n int)"}]),
    );
    assert_eq!(made, [json!({"touched": 0})]);
    berth_tests::swaps::until(
        || "the old schema can still be used".to_owned(),
        || {
            let gone = steps(
                &berth,
                &json!([{"do": "query", "sql": "select * from second.mine"}]),
            );
            (gone[0]["what"]["code"] == "42501").then_some(())
        },
    );
}
