//! The host's own tables: `migrations/NNNN_name.sql`, embedded, run in order under an advisory lock, each in a
//! transaction of its own. Hosts that start at once wait for each other.

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Connection, PgConnection, SqlSafeStr};

/// Every migration: its number, its name, its text.
const MIGRATIONS: &[(i64, &str, &str)] = &[(
    1,
    "identity",
    include_str!("../../../../migrations/0001_identity.sql"),
)];
/// Where it is kept which of them were run.
const TABLE: &str = "berth.migrations";
/// How long another host's migrations, or a lock on a table, are waited for. No notices about what is there already.
const SESSION: &str = "set lock_timeout = '60s'; set client_min_messages = 'error'";

/// Why the tables are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A newer berth was here.
    #[error(
        "the database is newer than this berth: it is at migration {database}, this berth knows {ours}; start the newer berth, or restore the database from before the upgrade"
    )]
    Newer {
        /// The database's number.
        database: i64,
        /// The newest that this binary has.
        ours: i64,
    },
    /// A released file was edited.
    #[error(
        "migration {0} was run on this database with another text than this berth has for it; a released migration is never edited: use the berth that made this database, or restore the file"
    )]
    Edited(i64),
    /// Somebody holds a lock.
    #[error(
        "the tables can't be brought up to date: another host, or another session, holds a lock for more than a minute; end it and start again ({0})"
    )]
    Locked(String),
    /// The driver's words.
    #[error("the tables can't be brought up to date: {0}")]
    Failed(sqlx::migrate::MigrateError),
}

/// Bring the tables up to date.
///
/// # Errors
/// See [`MigrateError`]. What a migration had begun is undone.
pub async fn run(mut connection: PgConnection) -> Result<(), MigrateError> {
    let migrations = MIGRATIONS.iter().map(|&(number, name, text)| {
        Migration::new(
            number,
            name.into(),
            MigrationType::Simple,
            text.into_sql_str(),
            false,
        )
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.create_schema("berth");
    migrator.dangerous_set_table_name(TABLE);
    // The lock belongs to the session, and goes with it however this ends.
    let ran = match sqlx::raw_sql(SESSION).execute(&mut connection).await {
        Ok(_) => migrator.run_direct(None, &mut connection, false).await,
        Err(error) => Err(error.into()),
    };
    let ran = match ran {
        Ok(()) => Ok(()),
        Err(error) => Err(explain(error, &mut connection).await),
    };
    if let Err(error) = connection.close().await {
        tracing::debug!(target: "berth::postgres", %error, "the connection of the migrations was not closed in order");
    }
    ran
}

async fn explain(error: sqlx::migrate::MigrateError, connection: &mut PgConnection) -> MigrateError {
    use sqlx::migrate::MigrateError as Theirs;
    match error {
        Theirs::VersionMissing(number) => {
            let newest = sqlx::query_scalar("select max(version) from berth.migrations")
                .fetch_one(connection)
                .await;
            MigrateError::Newer {
                database: newest.unwrap_or(number),
                ours: MIGRATIONS.iter().map(|(number, ..)| *number).max().unwrap_or(0),
            }
        }
        Theirs::VersionMismatch(number) => MigrateError::Edited(number),
        Theirs::Execute(ref theirs) | Theirs::ExecuteMigration(ref theirs, _) if is_lock_timeout(theirs) => {
            MigrateError::Locked(theirs.to_string())
        }
        other => MigrateError::Failed(other),
    }
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.code().as_deref() == Some("55P03"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that nobody lists would never run.
    #[test]
    fn list_is_the_folder() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "README.md")
            .collect();
        files.sort();
        let listed: Vec<String> = MIGRATIONS
            .iter()
            .map(|(number, name, _)| format!("{number:04}_{name}.sql"))
            .collect();
        assert_eq!(files, listed);
        for (n, (number, name, text)) in MIGRATIONS.iter().enumerate() {
            assert_eq!(*number, n as i64 + 1, "no number is left out");
            let file = std::fs::read_to_string(format!("{folder}/{number:04}_{name}.sql")).unwrap();
            assert_eq!(file, *text, "{name}");
        }
    }
}
