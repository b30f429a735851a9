//! The private cluster: what it survives, and what it refuses with which sentence.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use berth_tests::berth::{Berth, Manifest, PATIENCE, command, eventually, refused_start};
use berth_tests::store::Store;
use berth_tests::wire::request;

fn needs_sql() -> Manifest {
    Manifest::new().handler_with("hello", "grants = { sql = [\"notes\"] }")
}

fn kill(signal: &str, pid: u32) {
    let sent = Command::new("kill")
        .args(["-s", signal, &pid.to_string()])
        .status()
        .unwrap();
    assert!(sent.success(), "kill -s {signal} {pid}");
}

fn gone(pid: u32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_err()
}

/// A host that must not start: what it says, and its exit code.
fn refusal(data: &Path, environment: &[(&str, &str)]) -> String {
    let mut all = vec![("BERTH_DATA_DIR", data.to_str().unwrap())];
    all.extend(environment);
    let said = refused_start(needs_sql().text(), &all);
    let sentence = said.lines().find(|line| line.starts_with("berth: "));
    sentence
        .unwrap_or_else(|| panic!("no sentence in {said}"))
        .to_owned()
}

/// A cluster that was made, used and stopped.
fn stopped() -> Store {
    let store = Store::private();
    let mut berth = store.start(&needs_sql());
    store.run("create table public.kept (n int); insert into public.kept values (7)");
    berth.signal("TERM");
    assert_eq!(berth.wait().code(), Some(0));
    assert!(store.postmaster().is_none(), "Postgres stopped with berth");
    store
}

fn starts_again(store: &Store) -> Berth {
    let berth = store.start(&needs_sql());
    assert_eq!(store.one::<i32>("select n from public.kept"), 7);
    assert_eq!(berth.get("/health").json()["status"], "healthy");
    berth
}

#[test]
fn nobody_else_gets_at_it() {
    let store = Store::private();
    let berth = store.start(&needs_sql());
    for (name, mode) in [
        ("postgres", 0o700),
        ("postgres.password", 0o600),
        ("socket", 0o700),
    ] {
        let found = std::fs::metadata(store.data().join(name)).unwrap().mode() & 0o777;
        assert_eq!(found, mode, "{name}");
    }
    assert_eq!(store.one::<String>("show listen_addresses"), "");
    assert_eq!(store.one::<String>("show data_checksums"), "on");
    assert_eq!(store.one::<String>("show server_encoding"), "UTF8");
    assert_eq!(store.one::<String>("show fsync"), "on");
    assert_eq!(
        store
            .one::<String>("select rolpassword from pg_authid where rolname = 'berth'")
            .get(..13),
        Some("SCRAM-SHA-256")
    );
    let postmaster = store.postmaster().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{postmaster}/stat")).unwrap();
    let group = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(2)
        .unwrap()
        .to_owned();
    assert_eq!(
        group,
        postmaster.to_string(),
        "Ctrl-C in a terminal reaches berth alone"
    );
    // Its command line and its environment are for everybody or its own user to read.
    let password = std::fs::read(store.data().join("postgres.password")).unwrap();
    assert_eq!(password.len(), 64);
    for file in ["cmdline", "environ"] {
        let bytes = std::fs::read(format!("/proc/{postmaster}/{file}")).unwrap();
        assert!(
            !bytes.windows(password.len()).any(|part| part == password),
            "{file}"
        );
        assert!(!bytes.windows(6).any(|part| part == b"BERTH_"), "{file}");
    }
    // Nor does it run as root.
    if rustix_is_root() {
        let owner = std::fs::metadata(format!("/proc/{postmaster}")).unwrap().uid();
        assert_ne!(owner, 0);
        let status = std::fs::read_to_string(format!("/proc/{postmaster}/status")).unwrap();
        let groups = status
            .lines()
            .find_map(|line| line.strip_prefix("Groups:"))
            .unwrap();
        assert_eq!(groups.trim(), "", "no group of root's");
    }
    drop(berth);
}

fn rustix_is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn server_that_is_killed_under_load_comes_back_and_loses_nothing() {
    let store = Store::private();
    let berth = store.start(&needs_sql());
    store.run("create table public.kept (n int)");
    let before = store.postmaster().unwrap();
    let stop = AtomicBool::new(false);
    let (acknowledged, slowest) = std::thread::scope(|threads| {
        let writer = threads.spawn(|| {
            store.with(async |pool| {
                let mut acknowledged = 0_i64;
                while !stop.load(Ordering::Relaxed) {
                    let done = sqlx::query("insert into public.kept values (1)")
                        .execute(pool)
                        .await;
                    acknowledged += i64::from(done.is_ok());
                }
                acknowledged
            })
        });
        let asker = threads.spawn(|| {
            let mut slowest = std::time::Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                assert_eq!(berth.get("/health").status, 200);
                slowest = slowest.max(asked.elapsed());
            }
            slowest
        });
        kill("KILL", before);
        berth.logged("the loss", |e| e["message"] == "Postgres can't be reached");
        eventually("it runs again", || {
            let health = berth.get("/health").json();
            health["status"] == "healthy" && store.postmaster().is_some_and(|pid| pid != before)
        });
        stop.store(true, Ordering::Relaxed);
        (writer.join().unwrap(), asker.join().unwrap())
    });
    println!("{acknowledged} rows were acknowledged; the slowest /health took {slowest:?}");
    assert!(store.one::<i64>("select count(*) from public.kept") >= acknowledged);
    // Counted when it has answered, which somebody else may see first.
    berth.metric_becomes("berth_postgres_restarts_total", &[], |restarts| restarts == 1.0);
    berth.logged("the recovery", |e| {
        e["message"] == "Postgres can be reached again"
    });
    let end = berth.logged("how it ended", |e| {
        e["message"] == "the private Postgres has ended and is started again"
    });
    assert!(end["status"].as_str().unwrap().contains("signal: 9"), "{end}");
}

/// A server that can't start again is tried with growing pauses; meanwhile `/health` says so and answers.
#[test]
fn health_is_degraded_while_it_cannot_start() {
    let store = stopped();
    let berth = starts_again(&store);
    let control = store.data().join("postgres/global/pg_control");
    let hidden = control.with_extension("hidden");
    std::fs::rename(&control, &hidden).unwrap();
    kill("KILL", store.postmaster().unwrap());
    eventually("degraded", || {
        let health = berth.get("/health").json();
        health["status"] == "degraded" && health["postgres"]["state"] == "unreachable"
    });
    assert_eq!(berth.metric("berth_postgres_reachable", &[]), 0.0);
    let again = berth.logged("the first failure", |e| {
        e["message"]
            .as_str()
            .is_some_and(|m| m.starts_with("the private Postgres can't be started again"))
    });
    assert!(
        again["message"].as_str().unwrap().contains("pg_control"),
        "its last words: {again}"
    );
    let first = again["next_try_ms"].as_u64().unwrap();
    berth.logged("a longer pause", |e| {
        e["next_try_ms"].as_u64().is_some_and(|pause| pause > first)
    });
    std::fs::rename(&hidden, &control).unwrap();
    eventually("healthy", || berth.get("/health").json()["status"] == "healthy");
    assert_eq!(store.one::<i32>("select n from public.kept"), 7);
}

/// The processes of a private cluster, which stand still until this is dropped.
struct Still(Vec<u32>);

impl Still {
    fn of(store: &Store) -> Self {
        let postmaster = store.postmaster().unwrap();
        let of_it = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            (pid == postmaster || parent == postmaster).then_some(pid)
        };
        // First the one that would make more.
        kill("STOP", postmaster);
        let mut still = Self(vec![postmaster]);
        for entry in std::fs::read_dir("/proc").unwrap() {
            let name = entry.unwrap().file_name();
            let pid = name.to_str().and_then(|name| name.parse().ok());
            if let Some(pid) = pid.and_then(of_it).filter(|pid| *pid != postmaster) {
                kill("STOP", pid);
                still.0.push(pid);
            }
        }
        still
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        for pid in &self.0 {
            // One that was told to go as well is gone with the first.
            let _ = Command::new("kill")
                .args(["-s", "CONT", &pid.to_string()])
                .status();
        }
    }
}

#[test]
fn operator_does_not_wait_for_a_server_that_is_known_to_be_gone() {
    let store = Store::private();
    let manifest = Manifest::new().auth_with("fixtures/auth-static", "grants = { sessions = true }");
    // Longer than a client of the tests waits: whoever waits for a connection fails.
    let patience = PATIENCE * 2;
    let time = format!("{}s", patience.as_secs());
    let berth = store.start_with(&manifest, &[("BERTH_POSTGRES_ACQUIRE_TIME", &time)]);
    let bearer = format!("Bearer {}", store.admin_token());
    let ask = |path: &str| request(berth.admin, "GET", path, &[("authorization", &bearer)], b"");
    assert_eq!(ask("/admin/users").status, 200);
    let still = Still::of(&store);
    eventually("unreachable", || {
        berth.get("/health").json()["postgres"]["state"] == "unreachable"
    });
    for path in ["/admin/users", "/admin/users/ada%40example.com", "/admin/audit"] {
        let started = Instant::now();
        let answer = ask(path);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (503, "database-unavailable"),
            "{path}"
        );
        assert!(started.elapsed() < patience / 10, "{path}");
    }
    drop(still);
    eventually("it goes on", || ask("/admin/users").status == 200);
}

#[test]
fn what_a_killed_host_left_running_is_replaced() {
    let store = stopped();
    let mut berth = starts_again(&store);
    let left = store.postmaster().unwrap();
    berth.signal("KILL");
    berth.wait();
    assert!(!gone(left), "Postgres outlives a berth that is killed");
    let berth = starts_again(&store);
    assert!(gone(left));
    berth.logged("that it was found", |e| {
        e["message"]
            .as_str()
            .is_some_and(|m| m.starts_with("a Postgres of an earlier run"))
    });
}

/// Both are killed, and a backend is still busy: no new server could start beside it.
#[test]
fn backend_that_outlives_its_server_is_ended() {
    let store = stopped();
    let mut berth = starts_again(&store);
    let postmaster = store.postmaster().unwrap();
    std::thread::scope(|threads| {
        let busy = threads.spawn(|| {
            store.with(async |pool| {
                // Computes without ever looking whether its server lives.
                sqlx::query("select count(*) from generate_series(1, 100000000000)")
                    .execute(pool)
                    .await
                    .is_err()
            })
        });
        let found = || {
            store.one::<Option<i32>>(
                "select max(pid) from pg_stat_activity
                 where state = 'active' and query like '%generate_series%' and pid <> pg_backend_pid()",
            )
        };
        eventually("the backend is busy", || found().is_some());
        let backend = u32::try_from(found().unwrap()).unwrap();
        berth.signal("KILL");
        berth.wait();
        kill("KILL", postmaster);
        eventually("the server is gone", || gone(postmaster));
        assert!(!gone(backend), "a backend that computes doesn't notice");
        let berth = store.start(&needs_sql());
        assert!(gone(backend));
        assert_eq!(berth.get("/health").json()["status"], "healthy");
        assert!(busy.join().unwrap(), "its statement failed");
        drop(berth);
    });
}

#[test]
fn stale_files_that_name_a_living_process_do_not_hold_it_up() {
    let store = stopped();
    let ourselves = std::process::id();
    let text = format!(
        "{ourselves}\n{}\n1\n5432\n",
        store.data().join("postgres").display()
    );
    std::fs::write(store.data().join("postgres/postmaster.pid"), &text).unwrap();
    std::fs::write(store.data().join("socket/.s.PGSQL.5432.lock"), &text).unwrap();
    std::fs::write(store.data().join("socket/.s.PGSQL.5432"), "").unwrap();
    starts_again(&store);
}

#[test]
fn cluster_that_was_not_finished_is_made_anew() {
    let store = Store::private();
    let data = store.data();
    let folder = store.folder().join("manifest");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("berth.toml"), needs_sql().text()).unwrap();
    let mut berth = command()
        .args(["serve", "--config"])
        .arg(folder.join("berth.toml"))
        .env("BERTH_HTTP_LISTEN", "127.0.0.1:0")
        .env("BERTH_ADMIN_LISTEN", "127.0.0.1:0")
        .env("BERTH_DATA_DIR", &data)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let unfinished = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&data).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().path());
        names
            .filter(|path| path.to_string_lossy().contains("postgres.new-"))
            .collect()
    };
    eventually("initdb is at work", || {
        unfinished()
            .iter()
            .any(|folder| folder.join("cluster/base").exists())
    });
    berth.kill().unwrap();
    berth.wait().unwrap();
    assert!(!data.join("postgres").exists() && !unfinished().is_empty());
    let berth = store.start(&needs_sql());
    assert_eq!(berth.get("/health").json()["status"], "healthy");
    assert!(unfinished().is_empty());
}

/// Stopped while it is still starting: nothing stays behind, and it is no failure.
#[test]
fn stop_during_the_first_start_leaves_nothing_running() {
    let store = Store::private();
    let folder = store.folder().join("manifest");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("berth.toml"), needs_sql().text()).unwrap();
    let mut berth = command()
        .args(["serve", "--config"])
        .arg(folder.join("berth.toml"))
        .env("BERTH_HTTP_LISTEN", "127.0.0.1:0")
        .env("BERTH_ADMIN_LISTEN", "127.0.0.1:0")
        .env("BERTH_DATA_DIR", store.data())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it has begun", || store.data().join("postgres.password").exists());
    kill("TERM", berth.id());
    assert_eq!(berth.wait().unwrap().code(), Some(0));
    eventually("nothing runs there", || store.postmaster().is_none());
    assert_eq!(store.start(&needs_sql()).get("/health").status, 200);
}

#[test]
fn other_major_version_is_refused_with_the_commands_that_help() {
    let store = stopped();
    std::fs::write(store.data().join("postgres/PG_VERSION"), "14\n").unwrap();
    let said = refusal(&store.data(), &[]);
    assert!(
        said.contains("postgres was made by Postgres 14, but this machine has Postgres 1"),
        "{said}"
    );
    assert!(
        said.contains("`apt-get install postgresql-14`") && said.contains("`pg_upgrade -b "),
        "{said}"
    );
}

#[test]
fn machine_without_postgres_is_told_what_to_install() {
    let store = Store::private();
    let empty = store.folder().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let said = refusal(
        &store.data(),
        &[("BERTH_POSTGRES_BIN_DIR", empty.to_str().unwrap())],
    );
    assert!(
        said.contains("there are no programs `initdb` and `postgres`"),
        "{said}"
    );
    assert!(!store.data().join("postgres").exists());
}

#[test]
fn folder_that_the_server_cannot_pass_is_named() {
    if !rustix_is_root() {
        // Then Postgres runs as ourselves, who made the folder.
        return;
    }
    let store = Store::private();
    let closed = store.folder().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let said = refusal(&closed.join("data"), &[]);
    assert!(
        said.contains(&format!("run `chmod o+x {}`", closed.display())),
        "{said}"
    );
    assert!(said.contains("BERTH_DATA_DIR"), "{said}");
}

#[test]
fn data_folder_with_a_long_path_works() {
    let store = Store::private();
    let long = store.folder().join("x".repeat(100)).join("a,b \"c\"");
    std::fs::create_dir_all(&long).unwrap();
    let berth = Berth::start(
        needs_sql().text(),
        &[("BERTH_DATA_DIR", long.to_str().unwrap()), ("RUST_LOG", "debug")],
    );
    assert_eq!(berth.get("/health").json()["status"], "healthy");
    let place = berth.logged("where the socket is", |e| {
        e["message"]
            .as_str()
            .is_some_and(|m| m.contains("too long for a socket"))
    });
    let folder = PathBuf::from(place["folder"].as_str().unwrap());
    assert!(folder.join(".s.PGSQL.5432").exists());
    stop(berth);
    std::fs::remove_dir_all(folder).unwrap();
}

fn stop(mut berth: Berth) {
    berth.signal("TERM");
    assert_eq!(berth.wait().code(), Some(0));
}

#[test]
fn second_host_on_a_data_folder_is_refused_and_the_first_goes_on() {
    let store = stopped();
    let berth = starts_again(&store);
    let said = refusal(&store.data(), &[]);
    assert!(
        said.contains(&format!("another berth (process {})", berth.pid())),
        "{said}"
    );
    assert_eq!(store.one::<i32>("select n from public.kept"), 7);
}

#[test]
fn password_that_is_lost_or_that_others_may_read_is_a_sentence() {
    let store = stopped();
    let file = store.data().join("postgres.password");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refusal(&store.data(), &[]).contains("others may read this file"));
    std::fs::remove_file(&file).unwrap();
    let said = refusal(&store.data(), &[]);
    assert!(
        said.contains("the password of the private Postgres") && said.contains("is missing"),
        "{said}"
    );
}

#[test]
fn folder_that_is_no_cluster_is_left_alone() {
    let store = Store::private();
    let notes = store.data().join("postgres/notes");
    std::fs::create_dir_all(notes.parent().unwrap()).unwrap();
    std::fs::set_permissions(store.data(), std::fs::Permissions::from_mode(0o711)).unwrap();
    std::fs::write(&notes, "mine").unwrap();
    assert!(refusal(&store.data(), &[]).contains("this is no Postgres cluster"));
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "mine");
}

#[test]
fn server_that_does_not_start_has_its_last_words_repeated() {
    let store = stopped();
    let config = store.data().join("postgres/postgresql.conf");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + "\nno_such_setting = on\n").unwrap();
    let said = refusal(&store.data(), &[]);
    assert!(
        said.contains("does not start") && said.contains("no_such_setting"),
        "{said}"
    );
}

#[test]
fn no_password_gets_into_the_log() {
    let store = Store::private();
    let berth = store.start_with(&needs_sql(), &[("RUST_LOG", "trace")]);
    kill("KILL", store.postmaster().unwrap());
    berth.logged("the recovery", |e| {
        e["message"] == "Postgres can be reached again"
    });
    let password = std::fs::read_to_string(store.data().join("postgres.password")).unwrap();
    let log = berth.log();
    assert!(log.len() > 10, "{log:?}");
    for event in log {
        assert!(!event.to_string().contains(&password), "{event}");
    }
}
