//! A guest that means harm with `sql`: each attempt has its own error, and nobody else notices.

use std::time::{Duration, Instant};

use berth_tests::berth::Berth;
use berth_tests::store::Store;
use serde_json::{Value as Json, json};

use crate::store_sql::{BUSY, becomes, fixture, one, rows, second, steps, steps_of};

/// The host is well, and so is another plugin.
#[track_caller]
fn others_are_unharmed(berth: &Berth) {
    assert_eq!(berth.get("/health").status, 200);
    let other = steps_of(
        berth,
        "other",
        &json!([{"do": "query", "sql": "select secret from t"}]),
    );
    assert_eq!(other[0]["rows"], json!([[{"text": "of other"}]]));
}

fn hosts() -> (Store, Berth) {
    let store = Store::new();
    let berth = store.start_with(
        &second(fixture("\"notes\"", "")),
        &[("BERTH_POSTGRES_STATEMENT_TIME", "1s")],
    );
    steps_of(
        &berth,
        "other",
        &json!([{"do": "execute", "sql": "create table t as select 'of other' as secret"}]),
    );
    (store, berth)
}

#[test]
fn what_postgres_refuses() {
    let (store, berth) = hosts();
    // A role that is there, which no plugin may be.
    let set_role = format!("select set_config('role', '{}', false)", store.login());
    let set_session = format!(
        "select set_config('session_authorization', '{}', false)",
        store.login()
    );
    for (statement, code) in [
        (set_role.as_str(), "42501"),
        (&set_session, "42501"),
        // Somebody else's.
        ("select * from other.t", "42501"),
        ("select secret from t", "42P01"),
        ("drop table other.t", "42501"),
        ("create table other.u (id int)", "42501"),
        ("alter schema other rename to mine", "42501"),
        ("select * from identity.users", "42501"),
        ("select * from berth.migrations", "42501"),
        ("select * from pg_authid", "42501"),
        ("select rolpassword from pg_shadow", "42703"),
        ("select passwd from pg_shadow", "42501"),
        (
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'berth'",
            "42501",
        ),
        // Outside of its schema.
        ("create table public.t (id int)", "42501"),
        ("create temporary table t (id int)", "42501"),
        ("create schema more", "42501"),
        ("create extension dblink", "42501"),
        ("create database more", "42501"),
        (
            "create function f() returns int language c as 'libc', 'getpid'",
            "42501",
        ),
        ("create server s foreign data wrapper postgres_fdw", "42704"),
        (
            "create event trigger e on ddl_command_start execute function f()",
            "42501",
        ),
        ("create publication p for all tables", "42501"),
        ("alter system set work_mem = '1GB'", "42501"),
        ("alter database template1 connection limit 0", "42501"),
        // The machine's files.
        ("select pg_read_file('/etc/passwd')", "42501"),
        ("select pg_read_binary_file('/etc/passwd')", "42501"),
        ("select pg_ls_dir('/')", "42501"),
        ("select pg_reload_conf()", "42501"),
        ("select pg_switch_wal()", "42501"),
        // Two in one.
        ("select 1; select 2", "42601"),
        ("select 1; set role postgres", "42601"),
    ] {
        let answer = one(&berth, statement);
        assert_eq!(answer["what"]["code"], code, "{statement}: {answer}");
    }
    others_are_unharmed(&berth);
}

#[test]
fn what_the_host_denies() {
    let (_store, berth) = hosts();
    for (statement, wanted) in [
        ("set role postgres", "SET is not for plugins"),
        ("/* x */ reset role", "RESET is not for plugins"),
        ("SET SESSION AUTHORIZATION postgres", "SET is not for plugins"),
        ("set search_path to other", "SET is not for plugins"),
        ("set statement_timeout to 0", "SET is not for plugins"),
        ("copy t from program 'id'", "COPY is not for plugins"),
        ("copy (select 1) to '/tmp/x'", "COPY is not for plugins"),
        ("select lo_import('/etc/passwd')", "lo_import is not for plugins"),
        ("select lo_create(0)", "lo_create is not for plugins"),
        ("listen x", "LISTEN is not for plugins"),
        ("notify x", "NOTIFY is not for plugins"),
        (
            "begin",
            "BEGIN is not for plugins: use the resource `transaction`",
        ),
        ("commit", "COMMIT is not for plugins"),
        ("savepoint a", "SAVEPOINT is not for plugins"),
        ("prepare p as select 1", "PREPARE is not for plugins"),
        (
            "declare c cursor with hold for select 1",
            "DECLARE is not for plugins",
        ),
        ("do $$ begin end $$", "DO is not for plugins"),
        ("load 'auto_explain'", "LOAD is not for plugins"),
        ("grant all on t to public", "GRANT is not for plugins"),
        ("alter user x password 'y'", "ALTER USER is not for plugins"),
        ("drop owned by current_user", "DROP OWNED is not for plugins"),
    ] {
        let answer = one(&berth, statement);
        assert_eq!(answer["error"], "denied", "{statement}: {answer}");
        let what = answer["what"].as_str().unwrap();
        assert!(what.starts_with(wanted), "{statement}: {what}");
    }
    others_are_unharmed(&berth);
}

/// The same things by functions, which the host doesn't look into: nothing is left for the next call.
#[test]
fn nothing_is_left_on_a_connection() {
    let store = Store::new();
    let berth = store.start_with(
        &fixture("\"notes\"", ""),
        &[
            ("BERTH_POSTGRES_PLUGIN_CONNECTIONS", "1"),
            ("BERTH_POSTGRES_STATEMENT_TIME", "1s"),
        ],
    );
    let state = "select current_setting('search_path'), current_setting('statement_timeout'), current_setting('work_mem'),
        current_setting('my.own', true), current_user = session_user, (select count(*) from pg_locks where locktype = 'advisory'
        and pid = pg_backend_pid()), (select count(*) from pg_cursors where is_holdable),
        (select count(*) from pg_listening_channels()), pg_backend_pid()";
    let before = rows(&berth, state);
    rows(
        &berth,
        "create function dirty() returns void language plpgsql as $$ begin
            perform set_config('search_path', 'pg_temp', false);
            perform set_config('statement_timeout', '0', false);
            perform set_config('work_mem', '1GB', false);
            perform set_config('my.own', 'secret', false);
            perform pg_advisory_lock(1);
            execute 'listen x';
            execute 'declare c cursor with hold for select 1';
            execute 'prepare p as select 1';
        end $$",
    );
    rows(&berth, "select dirty()");
    let after = rows(&berth, state);
    // A setting of one's own is empty afterwards, instead of absent.
    let same = |rows: &Json| -> Vec<Json> {
        let row = rows[0].as_array().unwrap();
        row.iter()
            .enumerate()
            .filter(|(at, _)| *at != 3)
            .map(|(_, v)| v.clone())
            .collect()
    };
    assert_eq!(same(&after), same(&before));
    assert!(
        after[0][3].is_null() || after[0][3] == json!({"text": ""}),
        "{after}"
    );
    // A role can't be had by a function either.
    let up = format!(
        "create function up() returns void language plpgsql as $$ begin execute 'set role {}'; end $$",
        store.login()
    );
    rows(&berth, &up);
    assert_eq!(one(&berth, "select up()")["what"]["code"], "42501");
}

#[test]
fn late_statement_is_ended_whatever_its_own_timeout_says() {
    let (store, berth) = hosts();
    let started = Instant::now();
    let done = steps(
        &berth,
        &json!([
            {"do": "query", "sql": "select pg_sleep(60)"},
            {"do": "begin"},
            {"do": "query", "in": 0, "sql": "select set_config('statement_timeout', '0', false)"},
            {"do": "query", "in": 0, "sql": "select pg_sleep(60)"},
            {"do": "query", "in": 0, "sql": "select 1"},
        ]),
    );
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(done[0]["error"], "timeout");
    assert_eq!(done[3]["error"], "timeout");
    assert_eq!(done[4]["error"], "transaction-over");
    becomes(&store, BUSY, 0);
    others_are_unharmed(&berth);
}

#[test]
fn too_much_is_cut_off() {
    let store = Store::new();
    let berth = store.start(&second(fixture("\"notes\"", "")));
    steps_of(
        &berth,
        "other",
        &json!([{"do": "execute", "sql": "create table t as select 'of other' as secret"}]),
    );
    let done = steps(
        &berth,
        &json!([
            {"do": "count", "sql": "select n from generate_series(1, 10000000) n"},
            {"do": "execute", "sql": "select n from generate_series(1, 10000000) n"},
            {"do": "count", "sql": "select repeat('x', 100000000)"},
            {"do": "count", "sql": "select repeat('x', 1000) from generate_series(1, 5000)"},
            {"do": "count", "sql": "select n from generate_series(1, 10001) n"},
            {"do": "count", "sql": "select n from generate_series(1, 10000) n"},
            {"do": "count", "sql": "select $1", "with": [{"bytes-of": 4_200_000}]},
            {"do": "count", "sql": "select $1", "with": [{"bytes-of": 4_000_000}]},
            {"do": "count", "sql": "select array_fill(null::int, array[2000000])"},
            // Few bytes on the wire, and 131072 digits each.
            {"do": "count", "sql": "select array_agg(1e131071::numeric) from generate_series(1, 200000)"},
            {"do": "count", "sql": "select 1e131071::numeric from generate_series(1, 9000)"},
            {"do": "count", "sql": "select 1e131071::numeric from generate_series(1, 10)"},
        ]),
    );
    let bytes = json!({"error": "too-many-bytes", "what": 4 * 1024 * 1024});
    let rows_ = json!({"error": "too-many-rows", "what": 10_000});
    assert_eq!(done[0], rows_);
    assert_eq!(done[1], bytes);
    assert_eq!(done[2], bytes);
    assert_eq!(done[3], bytes);
    assert_eq!(done[4], rows_);
    assert_eq!(done[5], json!({"count": 10_000}));
    assert_eq!(done[6], bytes);
    assert_eq!(done[7], json!({"count": 1}));
    assert_eq!(done[8], bytes);
    assert_eq!(done[9], bytes);
    assert_eq!(done[10], bytes);
    assert_eq!(done[11], json!({"count": 10}));
    becomes(&store, BUSY, 0);
    others_are_unharmed(&berth);
}

/// The most memory that the host has had since it was last forgotten, in bytes.
fn peak(berth: &Berth) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", berth.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// What the server sends in one message is cut off before the host has room for it.
#[test]
fn huge_messages_take_no_memory_of_the_host() {
    const BOUND: u64 = 64 * 1024 * 1024;
    // Without TLS, within which the relay can't read: see "Known gaps" in ARCHITECTURE.md.
    let store = Store::private();
    let berth = store.start(&second(fixture("\"notes\"", "")));
    let bytes = json!({"error": "too-many-bytes", "what": 4 * 1024 * 1024});
    for definition in [
        "create function scream() returns void language plpgsql as $$ begin
            raise exception '%', repeat('x', 50000000); end $$",
        "create function shout() returns void language plpgsql as $$ begin
            perform set_config('client_min_messages', 'notice', false);
            raise notice '%', repeat('x', 50000000); end $$",
        "create function last() returns trigger language plpgsql as $$ begin
            raise exception '%', repeat('x', 50000000); end $$",
        "create table t (id int)",
        "create constraint trigger last after insert on t initially deferred for each row execute function last()",
    ] {
        rows(&berth, definition);
    }
    steps_of(
        &berth,
        "other",
        &json!([{"do": "execute", "sql": "create table t as select 'of other' as secret"}]),
    );
    // Forget the start, which takes more than what follows; see proc(5).
    std::fs::write(format!("/proc/{}/clear_refs", berth.pid()), "5").unwrap();
    let before = peak(&berth);
    let done = steps(
        &berth,
        &json!([
            {"do": "count", "sql": "select repeat('x', 500000000)"},
            {"do": "count", "sql": "select scream()"},
            {"do": "count", "sql": "select shout()"},
            {"do": "begin"},
            {"do": "count", "in": 0, "sql": "select repeat('x', 50000000)"},
            {"do": "count", "in": 0, "sql": "select 1"},
            {"do": "begin"},
            {"do": "execute", "in": 1, "sql": "insert into t values (1)"},
            {"do": "commit", "in": 1},
        ]),
    );
    for at in [0, 1, 2, 4, 8] {
        assert_eq!(done[at], bytes, "{at}: {done:?}");
    }
    assert_eq!(done[5]["error"], "transaction-over");
    let statement = json!([{"do": "count", "sql": "select repeat('x', 100000000)"}]);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| steps(&berth, &statement)))
            .collect();
        for one in all {
            assert_eq!(one.join().unwrap(), std::slice::from_ref(&bytes));
        }
    });
    let grown = peak(&berth).saturating_sub(before);
    assert!(grown < BOUND, "{grown} bytes more");
    becomes(&store, BUSY, 0);
    others_are_unharmed(&berth);
}

/// A result may be as large as it may be, whatever it takes beside: 7 bytes a row, 4 a value.
#[test]
fn result_just_below_the_cap_passes() {
    let store = Store::new();
    let berth = store.start(&fixture("\"notes\"", ""));
    let columns: Vec<String> = (0..700)
        .map(|n| format!("repeat('x', 83) as {}{n}", "c".repeat(50)))
        .collect();
    let done = steps(
        &berth,
        &json!([
            {"do": "count", "sql": format!("select repeat('x', {})", 4 * 1024 * 1024 - 11)},
            {"do": "count", "sql": format!("select repeat('x', {})", 4 * 1024 * 1024 - 10)},
            {"do": "count", "sql": "select repeat('x', 408) from generate_series(1, 10000)"},
            {"do": "count", "sql": "select repeat('x', 409) from generate_series(1, 10000)"},
            {"do": "count", "sql": format!("select {} from generate_series(1, 68)", columns.join(", "))},
        ]),
    );
    let bytes = json!({"error": "too-many-bytes", "what": 4 * 1024 * 1024});
    assert_eq!(done[0], json!({"count": 1}));
    assert_eq!(done[1], bytes);
    assert_eq!(done[2], json!({"count": 10_000}));
    assert_eq!(done[3], bytes);
    assert_eq!(done[4], json!({"count": 68}));
}

#[test]
fn transaction_that_is_left_open_is_undone() {
    let (store, berth) = hosts();
    rows(&berth, "create table t (id int)");
    let left = json!([{"do": "begin"}, {"do": "execute", "in": 0, "sql": "insert into t values (1)"}, {"do": "keep"}]);
    assert_eq!(steps(&berth, &left)[2], "kept");
    let trap = json!([{"do": "begin"}, {"do": "execute", "in": 0, "sql": "insert into t values (1)"}, {"do": "trap"}]);
    assert_eq!(berth.post("/sql/", &trap.to_string()).status, 500);
    becomes(&store, BUSY, 0);
    assert_eq!(rows(&berth, "select count(*) from t"), json!([[{"int64": 0}]]));
    // There may be a few of them at once.
    let many = json!([{"do": "begin"}, {"do": "begin"}, {"do": "begin"}, {"do": "begin"}, {"do": "begin"},
        {"do": "drop", "in": 0}, {"do": "begin"}]);
    let done = steps(&berth, &many);
    assert_eq!(done[4]["error"], "denied", "{done:?}");
    assert_eq!(done[6], json!({"begun": 4}), "{done:?}");
    others_are_unharmed(&berth);
}

/// What a plugin writes into errors and notices stays out of the host's log.
#[test]
fn guest_can_not_write_to_the_hosts_log_through_postgres() {
    let (_store, berth) = hosts();
    rows(
        &berth,
        "create function shout() returns void language plpgsql as $$ begin
            perform set_config('client_min_messages', 'notice', false);
            raise notice 'shouted'; raise warning 'shouted'; raise exception 'shouted'; end $$",
    );
    let answer = one(&berth, "select shout()");
    assert_eq!(
        answer["what"],
        json!({"code": "P0001", "message": "shouted", "constraint": null})
    );
    berth.post("/sql/", "[]");
    let id = berth
        .post("/sql/", "[]")
        .header("x-request-id")
        .unwrap()
        .to_owned();
    berth.request_line(&id);
    let said: Vec<Json> = berth
        .log()
        .into_iter()
        .filter(|e| e.to_string().contains("shouted"))
        .collect();
    assert!(said.is_empty(), "{said:?}");
}

/// A plugin's schema may have the name of the host's login, whose statements would look for functions there first.
#[test]
fn host_finds_no_function_of_a_plugin() {
    let store = Store::server();
    let manifest = fixture(&format!("{:?}", store.login()), "");
    let berth = store.start(&manifest);
    for statement in [
        "create table seen (by text)",
        // It fits what the host asks when it starts better than the server's own, which takes "char" and not text.
        "create function acldefault(text, oid) returns aclitem[] language plpgsql as $$ begin
            insert into seen values (current_user); return pg_catalog.acldefault('d'::\"char\", $2); end $$",
        "select acldefault('d', 10::oid)::text",
    ] {
        rows(&berth, statement);
    }
    let seen = "select count(*) from seen";
    assert_eq!(rows(&berth, seen), json!([[{"int64": 1}]]), "the trap works");
    drop(berth);
    let berth = store.start(&manifest);
    assert_eq!(rows(&berth, seen), json!([[{"int64": 1}]]));
}

/// What a role says of itself is not for good.
#[test]
fn settings_that_a_role_gave_itself_are_gone_at_the_next_start() {
    let store = Store::new();
    let manifest = fixture("\"notes\"", "");
    let berth = store.start(&manifest);
    for statement in [
        "create function say(what text) returns void language plpgsql as $$ begin execute what; end $$",
        "select say('alter role current_user set work_mem = ''3GB''')",
        "select say(format('alter role current_user in database %I set idle_session_timeout = 1', current_database()))",
    ] {
        rows(&berth, statement);
    }
    drop(berth);
    let berth = store.start(&manifest);
    let settings = "select count(*) from pg_db_role_setting s join pg_roles r on r.oid = s.setrole
        where r.rolname = current_user";
    for _ in 0..10 {
        assert_eq!(rows(&berth, settings), json!([[{"int64": 0}]]));
    }
}
