//! Postgres, whichever way berth gets it: what is kept, what `/health` says, what happens when it goes away.

use berth_tests::berth::{Manifest, refused_start};
use berth_tests::store::Store;

/// A host with a database and nothing else.
fn needs_sql() -> Manifest {
    Manifest::new().handler_with("hello", "grants = { sql = [\"notes\"] }")
}

#[test]
fn health_and_metrics_know_the_database() {
    let store = Store::new();
    let berth = store.start(&needs_sql());
    let health = berth.get("/health").json();
    assert_eq!(health["status"], "healthy", "{health}");
    assert_eq!(health["postgres"]["state"], "ready", "{health}");
    let kind = if store.is_private() { "private" } else { "server" };
    assert_eq!(health["postgres"]["kind"], kind, "{health}");
    let version = store.one::<String>("select split_part(current_setting('server_version'), ' ', 1)");
    assert_eq!(health["postgres"]["version"], version, "{health}");
    assert_eq!(berth.metric("berth_postgres_reachable", &[]), 1.0);
    assert_eq!(berth.metric("berth_postgres_connections_max", &[]), 25.0);
    assert!(berth.metric("berth_postgres_connections_open", &[]) >= 1.0);
    assert_eq!(berth.metric("berth_postgres_restarts_total", &[]), 0.0);
}

#[test]
fn host_that_needs_no_database_has_none() {
    let berth = Manifest::new().handler("hello").start();
    let health = berth.get("/health").json();
    assert!(health.get("postgres").is_none(), "{health}");
    assert!(
        !berth
            .metrics()
            .iter()
            .flat_map(|f| &f.samples)
            .any(|s| s.name.starts_with("berth_postgres_"))
    );
}

#[test]
fn data_survives_a_stop_and_a_start() {
    let store = Store::new();
    let mut berth = store.start(&needs_sql());
    store.run("create table public.kept (n int); insert into public.kept values (7)");
    berth.signal("TERM");
    assert_eq!(berth.wait().code(), Some(0));
    let berth = store.start(&needs_sql());
    assert_eq!(store.one::<i32>("select n from public.kept"), 7);
    assert_eq!(berth.get("/health").json()["status"], "healthy");
}

#[test]
fn data_survives_a_host_that_is_killed() {
    let store = Store::new();
    let mut berth = store.start(&needs_sql());
    store.run("create table public.kept (n int); insert into public.kept values (7)");
    berth.signal("KILL");
    berth.wait();
    let berth = store.start(&needs_sql());
    assert_eq!(store.one::<i32>("select n from public.kept"), 7);
    assert_eq!(berth.get("/health").json()["status"], "healthy");
}

/// A host that must not start: its sentence.
fn refusal(store: &Store) -> String {
    let environment = store.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(n, v)| (*n, v.as_str())).collect();
    refused_start(needs_sql().text(), &environment)
}

/// Change what the database says of its migrations with berth running, and stop it.
fn with_migrations(change: &str) -> Store {
    let store = Store::new();
    let mut berth = store.start(&needs_sql());
    store.run(change);
    berth.signal("TERM");
    assert_eq!(berth.wait().code(), Some(0));
    store
}

#[test]
fn newer_database_is_refused_with_both_numbers() {
    let store = with_migrations(
        "insert into berth.migrations values (9998, 'a', now(), true, '', 0), (9999, 'b', now(), true, '', 0)",
    );
    let said = refusal(&store);
    assert!(
        said.contains("it is at migration 9999, this berth knows "),
        "{said}"
    );
    assert!(
        store.postmaster().is_none(),
        "a private cluster stops with the host that can't use it"
    );
}

#[test]
fn edited_migration_is_refused() {
    let store = with_migrations("update berth.migrations set checksum = 'edited' where version = 1");
    let said = refusal(&store);
    assert!(
        said.contains("migration 1 was run on this database with another text"),
        "{said}"
    );
}

#[test]
fn second_start_says_nothing_new_about_the_tables() {
    let store = with_migrations("select 1");
    let berth = store.start(&needs_sql());
    berth.logged("that it is ready", |e| e["message"] == "instance pool ready");
    assert!(
        berth
            .log()
            .iter()
            .all(|e| e["target"] != "sqlx::postgres::notice"),
        "{:?}",
        berth.log()
    );
}
