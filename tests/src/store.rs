//! A database of a test's own, in one of two ways.
//!
//! `BERTH_TEST_STORE=server`, the default: a database on a server that runs already, whose address is in
//! `BERTH_TEST_POSTGRES`, with a login that may make logins and databases, as `cargo xtask test` provides it. Each test
//! gets a login that owns its database and may make roles, and is no superuser. It is there before berth starts, without
//! berth's tables.
//!
//! `BERTH_TEST_STORE=private`: berth runs its private cluster in the test's data folder. The database is there once berth
//! was started, for as long as it runs.
//!
//! `cargo xtask test` runs the modules whose names begin with `store_` in both ways.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::berth::{Berth, Manifest, PATIENCE};

/// A database, and a data folder for the berth that uses it.
#[derive(Debug)]
pub struct Store {
    data: TempDir,
    runtime: Runtime,
    server: Option<Server>,
    pool: OnceLock<PgPool>,
}

/// A database on a server that runs already.
#[derive(Debug)]
struct Server {
    url: String,
    login: String,
    password: String,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// A fresh one, as `BERTH_TEST_STORE` says.
    pub fn new() -> Self {
        match std::env::var("BERTH_TEST_STORE").as_deref() {
            Ok("private") => Self::private(),
            Ok("server") | Err(_) => Self::server(),
            Ok(other) => panic!("BERTH_TEST_STORE is \"server\" or \"private\", not {other:?}"),
        }
    }

    /// A data folder in which berth makes a private cluster.
    pub fn private() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        // The private Postgres runs as a user of its own when berth is root.
        let passable = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(folder.path(), passable).expect("permissions can be set");
        Self {
            data: folder,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime"),
            server: None,
            pool: OnceLock::new(),
        }
    }

    /// A database on the server for tests.
    pub fn server() -> Self {
        let mut store = Self::private();
        let name = format!("t_{}", Uuid::new_v4().simple());
        let password = format!("p_{}", Uuid::new_v4().simple());
        store.admin(&[
            format!("create role {name} login createrole password '{password}'"),
            // Who makes a database for somebody else must be able to act for them.
            format!("grant {name} to current_user"),
            format!("create database {name} owner {name} template template0 encoding 'UTF8'"),
        ]);
        store.server = Some(Server {
            url: server_url(Some((&name, &password)), &name),
            login: name,
            password,
        });
        store
    }

    /// Whether berth runs its own Postgres here.
    pub fn is_private(&self) -> bool {
        self.server.is_none()
    }

    /// Run statements with the login of `BERTH_TEST_POSTGRES`.
    pub fn admin(&self, statements: &[String]) {
        let options: PgConnectOptions = server_address().parse().expect("the address of a server");
        self.runtime.block_on(async {
            let mut admin = options.connect().await.expect("the server for tests answers");
            for statement in statements {
                sqlx::raw_sql(AssertSqlSafe(statement.clone()))
                    .execute(&mut admin)
                    .await
                    .unwrap_or_else(|error| panic!("{statement}: {error}"));
            }
            admin.close().await.expect("a clean end");
        });
    }

    /// Start a host that uses it.
    pub fn start(&self, manifest: &Manifest) -> Berth {
        self.start_with(manifest, &[])
    }

    /// The same with more environment.
    pub fn start_with(&self, manifest: &Manifest, environment: &[(&str, &str)]) -> Berth {
        let mut all = self.environment();
        all.extend(environment.iter().map(|&(name, value)| (name, value.to_owned())));
        let all: Vec<(&str, &str)> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Berth::start(manifest.text(), &all)
    }

    /// What tells a host to use it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let mut environment = vec![("BERTH_DATA_DIR", self.data().display().to_string())];
        if let Some(server) = &self.server {
            environment.push(("BERTH_POSTGRES_URL", server.url.clone()));
        }
        environment
    }

    /// The address with its password, on a server that runs already.
    pub fn url(&self) -> &str {
        let server = self.server.as_ref().expect("a private cluster has no address");
        &server.url
    }

    /// The login that berth uses.
    pub fn login(&self) -> &str {
        self.server.as_ref().map_or("berth", |server| &server.login)
    }

    /// The password of that login. In a private cluster only once berth was started.
    pub fn password(&self) -> String {
        match &self.server {
            Some(server) => server.password.clone(),
            None => {
                let file = self.data().join("postgres.password");
                let text = std::fs::read_to_string(&file)
                    .unwrap_or_else(|e| panic!("{}: {e}; was berth started?", file.display()));
                text.trim().to_owned()
            }
        }
    }

    /// What the server keeps of the passwords of the plugins' roles in this database. Only a superuser may see them, as
    /// berth's login is in a private cluster.
    pub fn verifiers(&self) -> Vec<String> {
        assert!(
            self.is_private(),
            "the logins of the server for tests are no superusers"
        );
        self.with(async |pool| {
            sqlx::query_scalar(
                "select rolpassword from pg_catalog.pg_authid where rolname like 'berth\\_%' and rolpassword is not null",
            )
            .fetch_all(pool)
            .await
            .expect("a superuser may see them")
        })
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.data.path().join("data")
    }

    /// What an operator shows to the admin API of a host that uses it.
    pub fn admin_token(&self) -> String {
        let file = self.data().join("admin.token");
        let text = std::fs::read_to_string(file).expect("a host has made the token");
        text.trim().to_owned()
    }

    /// A folder that is gone after the test.
    pub fn folder(&self) -> &Path {
        self.data.path()
    }

    /// Run something that needs the host's own login to the database. In a private cluster only while berth runs.
    pub fn with<T>(&self, work: impl AsyncFnOnce(&PgPool) -> T) -> T {
        self.runtime.block_on(async {
            let pool = self.pool.get_or_init(|| {
                // A connection may have been cut by a test; the pool asks before it gives one out.
                PgPoolOptions::new()
                    .max_connections(4)
                    .connect_lazy_with(self.options())
            });
            work(pool).await
        })
    }

    fn options(&self) -> PgConnectOptions {
        match &self.server {
            Some(server) => server.url.parse().expect("an address"),
            None => PgConnectOptions::new_without_pgpass()
                .socket(self.data().join("socket"))
                .port(5432)
                .username("berth")
                .password(&self.password())
                .database("berth")
                .ssl_mode(PgSslMode::Disable),
        }
    }

    /// One value from the database: `one::<i64>("select count(*) from identity.users")`.
    pub fn one<T>(&self, statement: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        self.with(async |pool| {
            sqlx::query_scalar(AssertSqlSafe(statement.to_owned()))
                .fetch_one(pool)
                .await
                .unwrap_or_else(|error| panic!("{statement}: {error}"))
        })
    }

    /// Wait for a number in the database.
    #[track_caller]
    pub fn becomes(&self, statement: &str, wanted: i64) {
        let started = Instant::now();
        loop {
            let found = self.one::<i64>(statement);
            if found == wanted {
                return;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{statement} stays at {found} instead of {wanted}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Run statements with the host's own login.
    pub fn run(&self, statements: &str) {
        self.with(async |pool| {
            sqlx::raw_sql(AssertSqlSafe(statements.to_owned()))
                .execute(pool)
                .await
                .unwrap_or_else(|error| panic!("{statements}: {error}"));
        });
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Fields go in order, and a runtime that is gone can't close a pool's connections.
        if let Some(pool) = self.pool.take() {
            self.runtime.block_on(async {
                // A server that is gone already closes nothing.
                let _ = tokio::time::timeout(Duration::from_secs(1), pool.close()).await;
            });
        }
        match &self.server {
            // A test that fails has killed its berth; the server is for tests, and what is left there harms nobody.
            Some(server) if !std::thread::panicking() => {
                let name = &server.login;
                self.admin(&[format!("drop database if exists {name} with (force)")]);
            }
            Some(_) => {}
            None => self.stop_private(),
        }
    }
}

impl Store {
    /// The server of the private cluster, if it runs.
    pub fn postmaster(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.data().join("postgres/postmaster.pid")).ok()?;
        let pid: u32 = text.lines().next()?.trim().parse().ok()?;
        Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
    }

    /// Tests end by killing berth, which leaves its Postgres behind.
    fn stop_private(&self) {
        let started = Instant::now();
        while let Some(pid) = self.postmaster() {
            if started.elapsed() > PATIENCE {
                eprintln!("the private Postgres {pid} of a test did not stop");
                return;
            }
            // Again and again: a berth that still runs starts another.
            let _ = Command::new("kill")
                .args(["-s", "QUIT", &pid.to_string()])
                .status();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn server_address() -> String {
    std::env::var("BERTH_TEST_POSTGRES")
        .expect("BERTH_TEST_POSTGRES, the address of a server for tests; `cargo xtask test` sets it")
}

/// The address of the server for tests with another login and database, and everything else as it is given.
pub fn server_url(login: Option<(&str, &str)>, database: &str) -> String {
    let given = server_address();
    let options: PgConnectOptions = given.parse().expect("the address of a server");
    let query = given.split_once('?').map(|(_, query)| format!("?{query}"));
    let login = login.map(|(name, password)| format!("{name}:{password}@"));
    format!(
        "postgres://{}{}:{}/{database}{}",
        login.unwrap_or_default(),
        options.get_host(),
        options.get_port(),
        query.unwrap_or_default()
    )
}
