//! A Postgres that somebody else runs: how it is reached, what a login must be able to do, and what is said otherwise.

use std::fs::File;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use berth_tests::berth::{Manifest, PATIENCE, command, eventually};
use berth_tests::store::{Store, server_url};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

fn needs_sql() -> Manifest {
    Manifest::new().handler_with("hello", "grants = { sql = [\"notes\"] }")
}

/// `berth serve` to its end.
fn serve(store: &Store, manifest: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("berth.toml");
    std::fs::write(&config, manifest).unwrap();
    let errors = folder.path().join("errors");
    let mut berth = command()
        .args(["serve", "--config"])
        .arg(config)
        .env("BERTH_HTTP_LISTEN", "127.0.0.1:0")
        .env("BERTH_ADMIN_LISTEN", "127.0.0.1:0")
        .env("BERTH_DATA_DIR", store.data())
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .stderr(File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(&errors).unwrap();
    let started = Instant::now();
    loop {
        if let Some(status) = berth.try_wait().unwrap() {
            return (status.code(), said());
        }
        if started.elapsed() > PATIENCE {
            berth.kill().unwrap();
            berth.wait().unwrap();
            panic!("it serves, or waits: {}", said());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// A host that must not start with this address: the sentence, which has no password in it.
fn refusal(store: &Store, url: &str) -> String {
    let (code, said) = serve(
        store,
        needs_sql().text(),
        &[("BERTH_POSTGRES_URL", url), ("RUST_LOG", "trace")],
    );
    assert_eq!(code, Some(1), "{said}");
    let options: PgConnectOptions = url.parse().unwrap();
    let password = sqlx::ConnectOptions::to_url_lossy(&options)
        .password()
        .unwrap_or("none at all")
        .to_owned();
    assert!(!said.contains(&password), "{said}");
    let sentence = said.lines().find(|line| line.starts_with("berth: "));
    let sentence = sentence
        .unwrap_or_else(|| panic!("no sentence in {said}"))
        .to_owned();
    let place = format!(
        "Postgres at {}:{}/{} can't be used: ",
        options.get_host(),
        options.get_port(),
        options.get_database().unwrap()
    );
    assert!(sentence.contains(&place), "{place} in {sentence}");
    sentence
}

#[test]
fn every_way_of_no_connection_is_its_own_sentence() {
    let store = Store::server();
    let login = store.login();
    let said = refusal(&store, &server_url(Some((login, "hunter2-wrong")), login));
    assert!(
        said.contains(&format!("the password of the login \"{login}\" is wrong")),
        "{said}"
    );
    let said = refusal(
        &store,
        &server_url(Some((login, &store.password())), "no_such_database"),
    );
    assert!(
        said.contains("there is no database \"no_such_database\""),
        "{said}"
    );
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let said = refusal(
        &store,
        &format!("postgres://{login}:hunter2-there@127.0.0.1:{free}/app"),
    );
    assert!(said.contains("nothing listens there"), "{said}");
    let said = refusal(
        &store,
        "postgres://ada:hunter2-there@no-such-host.invalid:5432/app",
    );
    assert!(said.contains("lookup"), "{said}");
}

/// Needs a server that speaks TLS, which `cargo xtask test` provides.
#[test]
fn tls_is_verified_and_the_server_may_insist_on_it() {
    let store = Store::server();
    let options: PgConnectOptions = store.url().parse().unwrap();
    assert!(
        matches!(options.get_ssl_mode(), PgSslMode::VerifyFull),
        "BERTH_TEST_POSTGRES has no sslmode=verify-full; `cargo xtask test` sets it"
    );
    let berth = store.start(&needs_sql());
    assert_eq!(berth.get("/health").json()["postgres"]["kind"], "server");
    let ssl = format!(
        "select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) where usename = '{}'",
        store.login()
    );
    assert!(store.one::<bool>(&ssl));
    drop(berth);
    let plain = store.url().replace("verify-full", "disable");
    let said = refusal(&store, &plain);
    assert!(said.contains("without TLS: add sslmode=verify-full"), "{said}");
    // The certificate is for 127.0.0.1.
    let said = refusal(&store, &store.url().replace("@127.0.0.1:", "@127.0.0.2:"));
    assert!(
        said.contains("TLS fails: ") && said.contains("must be for 127.0.0.2"),
        "{said}"
    );
    // An authority that isn't named is not trusted.
    let (unnamed, _) = store.url().split_once("&sslrootcert=").unwrap();
    let said = refusal(&store, unnamed);
    assert!(
        said.contains("TLS fails: ") && said.contains("signed by sslrootcert"),
        "{said}"
    );
}

#[test]
fn privilege_that_is_missing_is_named_with_the_statement_that_gives_it() {
    let store = Store::server();
    let login = store.login();
    store.admin(&[format!("alter role {login} nocreaterole")]);
    let said = refusal(&store, store.url());
    assert!(
        said.contains(&format!("`ALTER ROLE \"{login}\" CREATEROLE`")),
        "{said}"
    );
    // Nobody has a login of their own here, so none is made.
    let nobody = Manifest::new().handler("hello");
    drop(store.start(&nobody));
    store.admin(&[format!("alter role {login} createrole")]);

    let guest = format!("{login}_guest");
    store.admin(&[format!("create role {guest} login createrole password '{guest}'")]);
    let url = server_url(Some((&guest, &guest)), login);
    let said = refusal(&store, &url);
    assert!(
        said.contains("the schema \"berth\" belongs to the login")
            && said.contains(&format!("`GRANT \"{login}\" TO \"{guest}\"`")),
        "{said}"
    );
    store.run("drop schema berth, identity cascade");
    let said = refusal(&store, &url);
    assert!(
        said.contains(&format!("`GRANT CREATE ON DATABASE \"{login}\" TO \"{guest}\"`")),
        "{said}"
    );
    // What the sentence says is enough.
    store.run(&format!("grant create on database {login} to {guest}"));
    let (_, berth) = (
        &store,
        store.start_with(&needs_sql(), &[("BERTH_POSTGRES_URL", &url)]),
    );
    assert_eq!(berth.get("/health").json()["status"], "healthy");
}

#[test]
fn two_hosts_that_start_at_once_share_a_fresh_database() {
    let store = Store::server();
    // Hosts on one database share their keys.
    let folders: Vec<_> = (0..4).map(|n| store.folder().join(format!("data-{n}"))).collect();
    for folder in &folders {
        std::fs::create_dir(folder).unwrap();
        let key = folder.join("master.key");
        std::fs::write(&key, [7; 32]).unwrap();
        std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    std::thread::scope(|threads| {
        let starts: Vec<_> = folders
            .iter()
            .map(|folder| {
                threads
                    .spawn(|| store.start_with(&needs_sql(), &[("BERTH_DATA_DIR", folder.to_str().unwrap())]))
            })
            .collect();
        let berths: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
        for berth in &berths {
            assert_eq!(berth.get("/health").json()["status"], "healthy");
        }
    });
    let migrations = std::fs::read_dir(berth_tests::root().join("migrations")).unwrap();
    let files = migrations
        .filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "sql"))
        .count();
    assert_eq!(
        store.one::<i64>("select count(*) from berth.migrations where success"),
        files as i64
    );
}

#[test]
fn password_comes_from_the_environment_or_a_file_and_never_from_the_manifest() {
    let store = Store::server();
    let login = store.login();
    let table = |url: &str, more: &str| format!("{}[postgres]\nurl = {url:?}\n{more}\n", needs_sql().text());
    let (code, said) = serve(
        &store,
        &table("postgres://ada:hunter2@db.example.com/app", ""),
        &[],
    );
    assert_eq!(code, Some(64), "{said}");
    assert!(
        said.contains("postgres.url: has a password in it") && said.contains("BERTH_POSTGRES_URL"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");

    let file = store.folder().join("password");
    std::fs::write(&file, format!("{}\n", store.password())).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let without = store
        .url()
        .replacen(&format!("{login}:{}@", store.password()), &format!("{login}@"), 1);
    let manifest = Manifest::new().raw(&table(
        &without,
        &format!("password_file = {:?}", file.to_str().unwrap()),
    ));
    let data = store.data();
    let berth =
        berth_tests::berth::Berth::start(manifest.text(), &[("BERTH_DATA_DIR", data.to_str().unwrap())]);
    assert_eq!(berth.get("/health").json()["status"], "healthy");
    drop(berth);

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let (code, said) = serve(&store, manifest.text(), &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("postgres.password_file: ") && said.contains("others may read this file"),
        "{said}"
    );
}

#[test]
fn no_password_gets_into_the_log() {
    let store = Store::server();
    let password = "hunter2-in-no-log";
    store.admin(&[format!("alter role {} password '{password}'", store.login())]);
    let url = server_url(Some((store.login(), password)), store.login());
    let berth = store.start_with(
        &needs_sql(),
        &[("BERTH_POSTGRES_URL", &url), ("RUST_LOG", "trace,sqlx=trace")],
    );
    assert_eq!(berth.get("/health").json()["status"], "healthy");
    berth.logged("that it is ready", |e| e["message"] == "instance pool ready");
    for event in berth.log() {
        assert!(!event.to_string().contains(password), "{event}");
    }
}

/// Passes connections on, until it is told to cut them and to let nobody in.
struct Proxy {
    address: SocketAddr,
    to: SocketAddr,
    open: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Proxy {
    fn new(to: SocketAddr) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let proxy = Self {
            address,
            to,
            open: Arc::default(),
        };
        proxy.restore();
        proxy
    }

    fn restore(&self) {
        let listener = TcpListener::bind(self.address).unwrap();
        *self.open.lock().unwrap() = Some(Vec::new());
        let (to, open) = (self.to, Arc::clone(&self.open));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(to).unwrap());
                let mut open = open.lock().unwrap();
                // Cut meanwhile: the listener goes too.
                let Some(open) = open.as_mut() else { return };
                for (from, into) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    std::thread::spawn(move || {
                        // However it ends, the other side shall know.
                        let _ = io::copy(&mut from, &mut into);
                        let _ = into.shutdown(Shutdown::Both);
                    });
                }
                open.extend([client, server]);
            }
        });
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().take().into_iter().flatten() {
            // One whose other end is closed already is cut as well.
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the listener, which sees that it is to go.
        drop(TcpStream::connect(self.address));
        eventually("nobody listens", || TcpStream::connect(self.address).is_err());
    }
}

#[test]
fn server_that_goes_away_is_noticed_and_found_again() {
    let store = Store::server();
    let options: PgConnectOptions = store.url().parse().unwrap();
    let server: SocketAddr = format!("{}:{}", options.get_host(), options.get_port())
        .parse()
        .unwrap();
    let proxy = Proxy::new(server);
    let url = store
        .url()
        .replace(&server.to_string(), &proxy.address.to_string());
    let berth = store.start_with(&needs_sql(), &[("BERTH_POSTGRES_URL", &url)]);
    let state = || {
        let health = berth.get("/health").json();
        (
            health["status"].as_str().unwrap().to_owned(),
            health["postgres"]["state"].as_str().unwrap().to_owned(),
        )
    };
    for _ in 0..2 {
        assert_eq!(state(), ("healthy".to_owned(), "ready".to_owned()));
        proxy.cut();
        eventually("degraded", || {
            state() == ("degraded".to_owned(), "unreachable".to_owned())
        });
        assert_eq!(berth.metric("berth_postgres_reachable", &[]), 0.0);
        proxy.restore();
        eventually("healthy", || state().0 == "healthy");
    }
    let lost = berth.logged("the loss", |e| e["message"] == "Postgres can't be reached");
    assert!(lost["reason"].is_string(), "{lost}");
}

#[test]
fn host_with_another_key_is_refused() {
    let store = Store::server();
    drop(store.start(&needs_sql()));
    let elsewhere = store.folder().join("elsewhere");
    let environment = store.environment();
    let out = command()
        .args(["serve", "--config"])
        .arg({
            let file = store.folder().join("berth.toml");
            std::fs::write(&file, needs_sql().text()).unwrap();
            file
        })
        .envs(environment)
        .env("BERTH_DATA_DIR", &elsewhere)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success());
    assert!(
        said.contains("belongs to a berth with another master.key than the one in")
            && said.contains("give every host on it the same master.key and tokens.json"),
        "{said}"
    );
    // With the same key, or after the mark is gone, it is let in.
    std::fs::copy(store.data().join("master.key"), elsewhere.join("master.key")).unwrap();
    drop(store.start_with(&needs_sql(), &[("BERTH_DATA_DIR", elsewhere.to_str().unwrap())]));
    store.run("delete from berth.host_key");
    let third = store.folder().join("third");
    drop(store.start_with(&needs_sql(), &[("BERTH_DATA_DIR", third.to_str().unwrap())]));
}

/// Everybody may take an advisory lock; none of them keeps a host from its start.
#[test]
fn advisory_locks_of_others_do_not_hold_up_a_start() {
    let store = Store::server();
    drop(store.start(&needs_sql()));
    store.with(async |pool| {
        let mut holder = pool.acquire().await.unwrap();
        sqlx::query("select pg_advisory_lock(7090199032658816876)")
            .execute(&mut *holder)
            .await
            .unwrap();
        let berth = store.environment();
        let berth: Vec<(&str, &str)> = berth
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        drop(berth_tests::berth::Berth::start(needs_sql().text(), &berth));
    });
}
