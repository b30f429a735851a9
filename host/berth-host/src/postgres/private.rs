//! The private cluster: a Postgres of berth's own in `<data>/postgres`, from the machine's binaries.
//!
//! Nobody else gets at it: it listens on a Unix socket only, in a folder that belongs to the user it runs as, and every
//! login needs a password, of which there is one, random, in `<data>/postgres.password`. Postgres refuses to run as
//! root, so under root it runs as the user `postgres`.
//!
//! Whoever has the data folder's lock owns the cluster. What an earlier berth left running there is stopped before a new
//! server starts; a server that dies while berth serves is started again; a server of anybody else is never touched.
//!
//! Deliberately absent: upgrades to another major version (a sentence says which commands do it), and tuning beyond
//! `postgresql.conf` in the cluster, which is the operator's; what berth needs is set on the command line and wins.

mod account;
mod binaries;
mod initialise;
mod leftovers;
mod log;
mod server;
mod socket;
mod supervisor;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;

use super::reach::Reach;
use crate::data::{self, DataError, DataFolder};
use crate::secret::Secret;
use account::Account;
use binaries::Binaries;
pub(super) use supervisor::Supervisor;

/// The login that berth uses, which is the cluster's superuser.
const LOGIN: &str = "berth";
/// The database that holds berth's tables and the plugins' schemas.
const DATABASE: &str = "berth";
/// The database that every cluster has, from which ours is made.
const MAINTENANCE: &str = "postgres";
/// Only a part of the socket's name: nothing listens on it.
const PORT: u16 = 5432;
/// Connections beyond those of the pools: the watch task, migrations, Postgres' own reserve, and an operator's `psql`.
const RESERVE: u32 = 15;
/// The name of the file with the superuser's password, beside the cluster.
const PASSWORD_FILE: &str = "postgres.password";

/// Why there is no private cluster.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    /// No programs.
    #[error("{0}")]
    Binaries(String),
    /// The cluster was made by another major version than those that are installed.
    #[error(
        "{} was made by Postgres {cluster}, but this machine has Postgres {found}: `apt-get install postgresql-{cluster}` goes on with it; to move it to Postgres {found}, install that too and follow \"Upgrading the private cluster\" in host/berth-host/README.md, which runs {command}",
        folder.display()
    )]
    Major {
        /// The cluster.
        folder: PathBuf,
        /// The major version that made it.
        cluster: u32,
        /// The newest that is installed.
        found: u32,
        /// The upgrade.
        command: String,
    },
    /// The user that it runs as.
    #[error("{0}")]
    Account(String),
    /// A file or a folder.
    #[error("{}: {what}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's words.
        error: std::io::Error,
    },
    /// A file of secrets.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A cluster without its password.
    #[error(
        "{}: the password of the private Postgres in {} is missing; restore the file from a backup",
        file.display(), folder.display()
    )]
    PasswordLost {
        /// The file.
        file: PathBuf,
        /// The cluster.
        folder: PathBuf,
    },
    /// `initdb` failed.
    #[error("the private Postgres can't be made: {program} says: {said}")]
    Initialise {
        /// Its path.
        program: String,
        /// Its last lines.
        said: String,
    },
    /// Something is there, but no cluster.
    #[error(
        "{}: this is no Postgres cluster (there is no file PG_VERSION), and it is not empty; move it away, or restore the cluster from a backup",
        .0.display()
    )]
    NoCluster(PathBuf),
    /// The server ended before it was ready.
    #[error("the private Postgres in {} does not start: it ended with {status}{}", folder.display(), last_words(said))]
    Died {
        /// The cluster.
        folder: PathBuf,
        /// How.
        status: String,
        /// The last lines of its log.
        said: String,
    },
    /// The server lives but lets nobody in.
    #[error("the private Postgres in {} can't be used: {reason}", folder.display())]
    Unusable {
        /// The cluster.
        folder: PathBuf,
        /// Why.
        reason: String,
    },
    /// Processes of an earlier run that won't go.
    #[error(
        "{}: processes of an earlier Postgres still use this cluster and could not be stopped: {pids}; end them, then start berth again",
        folder.display()
    )]
    Occupied {
        /// The cluster.
        folder: PathBuf,
        /// Their ids.
        pids: String,
    },
}

fn last_words(said: &str) -> String {
    match said {
        "" => "; it said nothing".to_owned(),
        said => format!("; its last words: {said}"),
    }
}

fn io_error(path: &Path, what: &'static str) -> impl FnOnce(std::io::Error) -> PrivateError {
    let path = path.to_owned();
    move |error| PrivateError::Io { path, what, error }
}

/// A whole cluster, with everything that a server of it needs. Whether one runs is the [`Supervisor`]'s to know.
#[derive(Debug)]
pub(super) struct Cluster {
    /// `<data>/postgres`.
    folder: PathBuf,
    /// The folder of the socket.
    socket: PathBuf,
    binaries: Binaries,
    /// Whom it runs as, if not as ourselves.
    account: Option<Account>,
    password: Secret,
    max_connections: u32,
}

impl Cluster {
    /// Find the programs and the cluster; make one if there is none. Connections for pools of `connections` in all.
    async fn prepare(
        data: &DataFolder,
        bin_dir: Option<&Path>,
        connections: u32,
    ) -> Result<Self, PrivateError> {
        let folder = data.path().join("postgres");
        let account = Account::find()?;
        if let Some(account) = &account {
            account.can_reach(data.path())?;
        }
        initialise::sweep(data.path()).await?;
        let existing = initialise::version(&folder)?;
        let binaries = Binaries::find(bin_dir, existing, &folder).await?;
        let file = data.path().join(PASSWORD_FILE);
        let password = if existing.is_some() {
            if !file.exists() {
                return Err(PrivateError::PasswordLost { file, folder });
            }
            data::read(&file)?
        } else {
            let password = data::read_or_create(&file, || data::random().map(|bytes| hex(&bytes)))?;
            initialise::make(&binaries, account.as_ref(), &folder, &password).await?;
            password
        };
        let socket = socket::folder(data.path(), account.as_ref())?;
        Ok(Self {
            folder,
            socket,
            binaries,
            account,
            password,
            max_connections: connections.saturating_add(RESERVE),
        })
    }

    /// How to connect to a database of it.
    fn options(&self, database: &str) -> PgConnectOptions {
        super::connect::own(PgConnectOptions::new_without_pgpass())
            .socket(&self.socket)
            .port(PORT)
            .username(LOGIN)
            .password(self.password.expose_text().unwrap_or_default())
            .database(database)
            .ssl_mode(sqlx::postgres::PgSslMode::Disable)
    }
}

/// The folder of the sockets that lead to this process itself.
///
/// # Errors
/// It can't be made, or is somebody else's.
pub(super) fn relays(data: &DataFolder) -> Result<PathBuf, PrivateError> {
    socket::relays(data.path())
}

/// Start the private cluster, and keep it running until it is told to stop. Also how to connect to it.
///
/// # Errors
/// See [`PrivateError`].
pub(super) async fn start(
    data: &DataFolder,
    bin_dir: Option<&Path>,
    connections: u32,
    reach: &Arc<Reach>,
) -> Result<(Supervisor, PgConnectOptions), PrivateError> {
    let cluster = Cluster::prepare(data, bin_dir, connections).await?;
    let options = cluster.options(DATABASE);
    let supervisor = Supervisor::start(cluster, Arc::clone(reach)).await?;
    Ok((supervisor, options))
}

fn hex(bytes: &[u8]) -> Secret {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    Secret::new(text)
}
