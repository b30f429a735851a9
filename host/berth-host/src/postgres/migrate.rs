//! The host's own tables: `migrations/NNNN_name.sql`, embedded, run in order under an advisory lock.

use sqlx::PgPool;
use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

/// Every migration: its number, its name, its text.
const MIGRATIONS: &[(i64, &str, &str)] = &[(
    1,
    "identity",
    include_str!("../../../../migrations/0001_identity.sql"),
)];

/// Why the tables are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The driver's words.
    #[error("the tables can't be brought up to date: {0}")]
    Failed(#[from] sqlx::migrate::MigrateError),
}

/// Bring the tables up to date.
///
/// # Errors
/// See [`MigrateError`].
pub async fn run(pool: &PgPool) -> Result<(), MigrateError> {
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
    migrator.dangerous_set_table_name("berth.migrations");
    migrator.run(pool).await?;
    Ok(())
}
