//! Postgres, whichever way berth gets it: what is kept, what `/health` says, what happens when it goes away.

use berth_tests::berth::Manifest;
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
