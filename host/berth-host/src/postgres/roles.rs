//! A login of its own for every plugin that may use `sql`, and what it may do.
//!
//! The host makes the roles when it starts, from the manifest, and takes back what is no longer granted. A role is named
//! `berth_<number of the database>_<plugin>`; its password is derived from the data folder's key and reaches the server
//! only as a SCRAM verifier. It owns its plugin's schemas, and has of the host's what `HOST_SCHEMAS` says.
//!
//! A role that the manifest no longer knows can't log in any more. It keeps its tables; they are nobody else's until
//! somebody says so with `reassign owned by "berth_…" to …`.
//!
//! Deliberately absent: a shared login with `SET ROLE`, which any statement could undo.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

use super::{Postgres, PrivateError};
use crate::data::DataFolder;
use crate::secret::Secret;

/// The longest name in Postgres, in bytes (`NAMEDATALEN` less one).
const MAX_NAME: usize = 63;
/// Hexadecimal digits of a hash at the end of a name that had to be cut.
const CUT: usize = 12;
/// Iterations of PBKDF2, as in Postgres. The password is 256 random bits: more would protect nothing.
const ITERATIONS: u32 = 4096;

/// A host schema that may be granted, and what a plugin gets of each of its tables.
struct HostSchema {
    name: &'static str,
    grants: &'static [&'static str],
}

/// The schemas of the host's own tables that a plugin may be granted.
const HOST_SCHEMAS: &[HostSchema] = &[HostSchema {
    name: "identity",
    grants: &[
        "select on identity.users",
        "insert (id, email, email_canonical, email_verified, password_hash, name) on identity.users",
        "update (email, email_canonical, email_verified, password_hash, name, updated_at) on identity.users",
    ],
}];

/// Whether a schema is the host's: granted in parts, and to more than one plugin.
pub fn is_host_schema(name: &str) -> bool {
    HOST_SCHEMAS.iter().any(|schema| schema.name == name)
}

/// A plugin that may use `sql`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The plugin.
    pub plugin: &'a str,
    /// Its schemas.
    pub schemas: &'a [String],
}

/// Why the roles are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// The host's login may not do it.
    #[error("the login {login:?} can't make the plugins' roles: {what}")]
    Privilege {
        /// The host's login.
        login: String,
        /// What it lacks, and the statement that gives it.
        what: String,
    },
    /// A schema of somebody else.
    #[error(
        "plugins.{plugin}.grants.sql: the schema {schema:?} belongs to {owner:?}; choose another name, or give it to the plugin with: {remedy}"
    )]
    Foreign {
        /// The plugin.
        plugin: String,
        /// The schema.
        schema: String,
        /// Whose it is.
        owner: String,
        /// The statement.
        remedy: String,
    },
    /// The new role can't log in.
    #[error(
        "the role {role:?} of the plugin {plugin:?} can't log in: {reason}; pg_hba.conf must let it use this database with scram-sha-256"
    )]
    Login {
        /// The plugin.
        plugin: String,
        /// Its role.
        role: String,
        /// The driver's words.
        reason: String,
    },
    /// The folder of the sockets by which they connect.
    #[error(transparent)]
    Sockets(PrivateError),
    /// Anything else.
    #[error("the plugins' roles can't be made: {0}")]
    Failed(#[from] sqlx::Error),
}

/// The name of a plugin's role in a database.
pub fn role_name(database: u32, plugin: &str) -> String {
    let name = format!("berth_{database}_{plugin}");
    if name.len() <= MAX_NAME {
        return name;
    }
    let hash: String = Sha256::digest(plugin)
        .iter()
        .take(CUT / 2)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let kept = name.get(..name.floor_char_boundary(MAX_NAME - CUT - 1));
    format!("{}-{hash}", kept.unwrap_or_default())
}

fn password(data: &DataFolder, role: &str) -> Secret {
    let key = data.derive(&format!("berth postgres role {role}"));
    Secret::new(STANDARD.encode(key.expose()))
}

/// What Postgres keeps of a password (RFC 5802, 7677). The salt is derived as well, so that it stays the same.
fn verifier(data: &DataFolder, role: &str) -> Secret {
    let salt = data.derive(&format!("berth postgres salt {role}"));
    let salt = salt.expose().get(..16).unwrap_or_default();
    scram(password(data, role).expose(), salt)
}

fn scram(password: &[u8], salt: &[u8]) -> Secret {
    let mut block = salt.to_vec();
    block.extend(1u32.to_be_bytes());
    // PBKDF2 with one block.
    let mut last = hmac(password, &block);
    let mut salted = last;
    for _ in 1..ITERATIONS {
        last = hmac(password, &last);
        salted.iter_mut().zip(last).for_each(|(sum, byte)| *sum ^= byte);
    }
    let stored = Sha256::digest(hmac(&salted, b"Client Key"));
    let server = hmac(&salted, b"Server Key");
    Secret::new(format!(
        "SCRAM-SHA-256${ITERATIONS}:{}${}:{}",
        STANDARD.encode(salt),
        STANDARD.encode(stored),
        STANDARD.encode(server)
    ))
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    // HMAC takes keys of every length (RFC 2104), the only thing that could fail.
    Hmac::<Sha256>::new_from_slice(key).map_or([0; 32], |mut mac| {
        mac.update(message);
        mac.finalize().into_bytes().into()
    })
}

/// What is known of the server and the host's login.
struct Facts {
    database: u32,
    database_name: String,
    login: String,
    superuser: bool,
    version: i32,
}

/// Make every role, with what it may do, and take back what nobody is granted any more. Gives each plugin's way to log in,
/// in the order of `wanted`.
///
/// # Errors
/// See [`RoleError`].
pub async fn prepare(
    postgres: &Postgres,
    data: &DataFolder,
    wanted: &[Wanted<'_>],
) -> Result<Vec<PgConnectOptions>, RoleError> {
    let pool: &PgPool = postgres.pool();
    let mut transaction = pool.begin().await?;
    let facts = facts(&mut transaction).await?;
    let roles: Vec<String> = wanted
        .iter()
        .map(|w| role_name(facts.database, w.plugin))
        .collect();
    if !wanted.is_empty() {
        database(&mut transaction, &facts).await?;
    }
    for (wanted, role) in wanted.iter().zip(&roles) {
        let limit = postgres.spec().plugin_connections.saturating_mul(2);
        make(&mut transaction, &facts, role, &verifier(data, role), limit).await?;
        grant(&mut transaction, &facts, wanted, role).await?;
    }
    retire(&mut transaction, &facts, &roles).await?;
    transaction.commit().await?;
    Ok(roles
        .iter()
        .map(|role| {
            let password = password(data, role);
            let options = postgres.options().clone().username(role);
            options.password(password.expose_text().unwrap_or_default())
        })
        .collect())
}

async fn facts(connection: &mut PgConnection) -> Result<Facts, RoleError> {
    // One host at a time. A lock on a table of ours, because everybody may take the advisory ones.
    run(connection, "set local lock_timeout = '60s'").await?;
    run(
        connection,
        "lock table berth.migrations in share row exclusive mode",
    )
    .await?;
    let row = sqlx::query(
        "select d.oid::int8, d.datname::text, current_user::text, r.rolsuper,
            current_setting('server_version_num')::int4
         from pg_database d, pg_roles r where d.datname = current_database() and r.rolname = current_user",
    )
    .fetch_one(connection)
    .await?;
    let database: i64 = row.try_get(0)?;
    Ok(Facts {
        database: u32::try_from(database).unwrap_or_default(),
        database_name: row.try_get(1)?,
        login: row.try_get(2)?,
        superuser: row.try_get(3)?,
        version: row.try_get(4)?,
    })
}

/// What everybody may do in a database unless somebody says otherwise, and no plugin needs.
async fn database(connection: &mut PgConnection, facts: &Facts) -> Result<(), RoleError> {
    let database = quoted(&facts.database_name);
    // Where the login doesn't own the database this is a warning of the server, and changes nothing.
    run(
        connection,
        &format!("revoke connect, temporary on database {database} from public"),
    )
    .await?;
    let row = sqlx::query(
        "select
            exists (select from pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
                where d.datname = current_database() and a.grantee = 0 and a.privilege_type = 'TEMPORARY'),
            exists (select from pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
                where n.nspname = 'public' and a.grantee = 0 and a.privilege_type = 'CREATE')",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (temporary, mut public): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    if public {
        run(connection, "savepoint public").await?;
        match run(connection, "revoke create on schema public from public").await {
            Ok(()) => public = false,
            Err(_) => run(connection, "rollback to public").await?,
        }
    }
    if temporary || public {
        tracing::warn!(
            target: "berth::sql",
            "every login, plugins among them, may make {} in the database {database}, which {} doesn't own; to end that, run as its owner: revoke temporary on database {database} from public; revoke create on schema public from public",
            if public { "tables" } else { "temporary tables" },
            quoted(&facts.login),
        );
    }
    if facts.superuser {
        // Large objects are in no schema, and messages in the log of changes only fill the disk. Only a superuser can close
        // these doors.
        let functions = sqlx::query_scalar::<_, String>(
            "select p.oid::regprocedure::text from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
             where p.pronamespace = 'pg_catalog'::regnamespace and a.grantee = 0
                and (p.proname like 'lo\\_%' or p.proname in ('loread', 'lowrite', 'pg_logical_emit_message'))",
        )
        .fetch_all(&mut *connection)
        .await?;
        if !functions.is_empty() {
            let list = functions.join(", ");
            run(
                connection,
                &format!("revoke execute on function {list} from public"),
            )
            .await?;
        }
    }
    Ok(())
}

async fn make(
    connection: &mut PgConnection,
    facts: &Facts,
    role: &str,
    verifier: &Secret,
    limit: u32,
) -> Result<(), RoleError> {
    let name = quoted(role);
    let existing =
        sqlx::query("select rolsuper or rolbypassrls or rolreplication or rolcreaterole or rolcreatedb from pg_roles where rolname = $1")
            .bind(role)
            .fetch_optional(&mut *connection)
            .await?;
    let verb = match &existing {
        Some(row) if row.try_get::<bool, _>(0)? => {
            return Err(RoleError::Privilege {
                login: facts.login.clone(),
                what: format!(
                    "somebody has given the role {name} more than a plugin may have; run, as a superuser: alter role {name} nosuperuser nobypassrls noreplication nocreaterole nocreatedb"
                ),
            });
        }
        Some(_) => "alter",
        None => "create",
    };
    let verifier = verifier.expose_text().unwrap_or_default();
    // Everything else is no by default, and may only be spoken of by who has it. The verifier has no quote in it.
    run(
        connection,
        &format!("{verb} role {name} login noinherit connection limit {limit} password '{verifier}'"),
    )
    .await
    .map_err(|error| refused(facts, error, &format!("it may not {verb} the role {name}")))?;
    // A role may change its own settings for all times, and with the wrong ones nobody could use it.
    let database = quoted(&facts.database_name);
    run(
        connection,
        &format!("alter role {name} reset all; alter role {name} in database {database} reset all"),
    )
    .await
    .map_err(|error| refused(facts, error, &format!("it may not alter the role {name}")))?;
    if !facts.superuser {
        // So that it may end the role's statements, and make schemas for it.
        let options = match facts.version >= 160_000 {
            true => " with inherit true, set true",
            false => "",
        };
        run(
            connection,
            &format!("grant {name} to {}{options}", quoted(&facts.login)),
        )
        .await
        .map_err(|error| refused(facts, error, &format!("it may not join the role {name}")))?;
        let usable: bool = sqlx::query_scalar("select pg_has_role($1, 'USAGE')")
            .bind(role)
            .fetch_one(&mut *connection)
            .await?;
        if !usable {
            return Err(RoleError::Privilege {
                login: facts.login.clone(),
                what: format!(
                    "it doesn't inherit what its roles may; run, as a superuser: alter role {} inherit",
                    quoted(&facts.login)
                ),
            });
        }
    }
    run(
        connection,
        &format!(
            "grant connect on database {} to {name}",
            quoted(&facts.database_name)
        ),
    )
    .await
    .map_err(RoleError::from)
}

async fn grant(
    connection: &mut PgConnection,
    facts: &Facts,
    wanted: &Wanted<'_>,
    role: &str,
) -> Result<(), RoleError> {
    let name = quoted(role);
    for schema in HOST_SCHEMAS {
        take_back(connection, schema, &name).await?;
        if wanted.schemas.iter().any(|s| s == schema.name) {
            run(
                connection,
                &format!("grant usage on schema {} to {name}", schema.name),
            )
            .await?;
            for grant in schema.grants {
                run(connection, &format!("grant {grant} to {name}")).await?;
            }
        }
    }
    for schema in wanted.schemas.iter().filter(|s| !is_host_schema(s)) {
        own(connection, facts, wanted.plugin, role, schema).await?;
    }
    // What it owned and isn't granted any more. Its tables stay its own, and out of its reach.
    let owned = sqlx::query_scalar::<_, String>(
        "select n.nspname::text from pg_namespace n join pg_roles r on r.oid = n.nspowner
         where r.rolname = $1 and n.nspname::text <> all ($2)",
    )
    .bind(role)
    .bind(wanted.schemas)
    .fetch_all(&mut *connection)
    .await?;
    for schema in owned {
        disown(connection, facts, &schema).await?;
    }
    Ok(())
}

/// Make a schema the plugin's own.
async fn own(
    connection: &mut PgConnection,
    facts: &Facts,
    plugin: &str,
    role: &str,
    schema: &str,
) -> Result<(), RoleError> {
    let (name, quoted_schema) = (quoted(role), quoted(schema));
    let owner: Option<String> =
        sqlx::query_scalar("select pg_get_userbyid(nspowner)::text from pg_namespace where nspname = $1")
            .bind(schema)
            .fetch_optional(&mut *connection)
            .await?;
    match owner {
        None => {
            run(
                connection,
                &format!("create schema {quoted_schema} authorization {name}"),
            )
            .await?;
        }
        Some(owner) if owner == role => {}
        Some(owner) => {
            let others: bool = sqlx::query_scalar(
                "select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where n.nspname = $1 and pg_get_userbyid(c.relowner) <> $2)",
            )
            .bind(schema)
            .bind(role)
            .fetch_one(&mut *connection)
            .await?;
            if others || owner != facts.login {
                return Err(RoleError::Foreign {
                    plugin: plugin.to_owned(),
                    schema: schema.to_owned(),
                    remedy: match owner.starts_with("berth_") {
                        true => format!("reassign owned by {} to {name}", quoted(&owner)),
                        false => format!(
                            "alter schema {quoted_schema} owner to {name}, and the same for its tables"
                        ),
                    },
                    owner,
                });
            }
            run(
                connection,
                &format!("alter schema {quoted_schema} owner to {name}"),
            )
            .await?;
        }
    }
    Ok(())
}

async fn disown(connection: &mut PgConnection, facts: &Facts, schema: &str) -> Result<(), sqlx::Error> {
    run(
        connection,
        &format!(
            "alter schema {} owner to {}",
            quoted(schema),
            quoted(&facts.login)
        ),
    )
    .await
}

async fn take_back(
    connection: &mut PgConnection,
    schema: &HostSchema,
    role: &str,
) -> Result<(), sqlx::Error> {
    run(
        connection,
        &format!(
            "revoke all on all tables in schema {0} from {role}; revoke all on schema {0} from {role}",
            schema.name
        ),
    )
    .await
}

/// Roles of plugins that the manifest doesn't know any more, or not with `sql`.
async fn retire(connection: &mut PgConnection, facts: &Facts, roles: &[String]) -> Result<(), RoleError> {
    let old = sqlx::query_scalar::<_, String>(
        "select rolname::text from pg_roles where rolcanlogin and starts_with(rolname::text, $1) and rolname::text <> all ($2)",
    )
    .bind(format!("berth_{}_", facts.database))
    .bind(roles)
    .fetch_all(&mut *connection)
    .await?;
    for role in old {
        let name = quoted(&role);
        for schema in HOST_SCHEMAS {
            take_back(connection, schema, &name).await?;
        }
        run(connection, &format!("alter role {name} nologin"))
            .await
            .map_err(|error| refused(facts, error, &format!("it may not alter the role {name}")))?;
        tracing::info!(
            target: "berth::sql",
            role,
            "no plugin has this role any more: it can't log in, and keeps its tables",
        );
    }
    Ok(())
}

/// A privilege that is missing is a sentence.
fn refused(facts: &Facts, error: sqlx::Error, what: &str) -> RoleError {
    let code = error.as_database_error().and_then(|e| e.code());
    match code.as_deref() {
        Some("42501") => RoleError::Privilege {
            login: facts.login.clone(),
            what: format!(
                "{what}, which another login has made; run, as a superuser: grant that role to {} with admin option",
                quoted(&facts.login)
            ),
        },
        _ => RoleError::Failed(error),
    }
}

async fn run(connection: &mut PgConnection, statement: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
        .execute(connection)
        .await?;
    Ok(())
}

/// As an identifier.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        assert_eq!(role_name(16384, "notes"), "berth_16384_notes");
        let (one, other) = ("a".repeat(63), "a".repeat(64));
        let (one, other) = (role_name(u32::MAX, &one), role_name(u32::MAX, &other));
        assert!(one.len() <= MAX_NAME && other.len() <= MAX_NAME, "{one} {other}");
        assert_ne!(one, other);
    }

    /// The example of RFC 7677, section 3.
    #[test]
    fn verifier_is_the_one_of_the_rfc() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = scram(b"pencil", &salt);
        assert_eq!(
            verifier.expose_text().unwrap(),
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
    }
}
