//! A database of a test's own.
//!
//! `BERTH_TEST_POSTGRES` is the address of a server with a login that may make logins and databases, as
//! `cargo xtask test` provides it. Each test gets a database and a login that owns it and may make roles, and is no
//! superuser.

use std::path::{Path, PathBuf};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::berth::{Berth, Manifest};

/// A database, and a data folder for the berth that uses it.
#[derive(Debug)]
pub struct Store {
    url: String,
    data: TempDir,
    runtime: Runtime,
    pool: PgPool,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// A fresh one.
    pub fn new() -> Self {
        let server = std::env::var("BERTH_TEST_POSTGRES")
            .expect("BERTH_TEST_POSTGRES, the address of a server for tests; `cargo xtask test` sets it");
        let server: PgConnectOptions = server.parse().expect("the address of a server");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let name = format!("t_{}", Uuid::new_v4().simple());
        let pool = runtime.block_on(async {
            let mut admin = server.connect().await.expect("the server for tests answers");
            for statement in [
                format!("create role {name} login createrole password '{name}'"),
                format!("create database {name} owner {name} template template0 encoding 'UTF8'"),
            ] {
                sqlx::raw_sql(AssertSqlSafe(statement))
                    .execute(&mut admin)
                    .await
                    .expect("the login may make databases");
            }
            admin.close().await.expect("a clean end");
            let own = server.clone().username(&name).password(&name).database(&name);
            PgPoolOptions::new().max_connections(4).connect_lazy_with(own)
        });
        let url = format!(
            "postgres://{name}:{name}@{}:{}/{name}",
            server.get_host(),
            server.get_port()
        );
        Self {
            url,
            data: TempDir::new().expect("a temporary folder"),
            runtime,
            pool,
        }
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
        vec![
            ("BERTH_DATA_DIR", self.data().display().to_string()),
            ("BERTH_POSTGRES_URL", self.url.clone()),
        ]
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

    /// Run something that needs the host's own login to the database.
    pub fn with<T>(&self, work: impl AsyncFnOnce(&PgPool) -> T) -> T {
        self.runtime.block_on(work(&self.pool))
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
                .expect("one value")
        })
    }

    /// Run statements with the host's own login.
    pub fn run(&self, statements: &str) {
        self.with(async |pool| {
            sqlx::raw_sql(AssertSqlSafe(statements.to_owned()))
                .execute(pool)
                .await
                .expect("the statements run");
        });
    }
}
