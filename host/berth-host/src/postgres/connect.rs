//! The first connection: the address, the password from its file, and whether the login may do what berth needs.

use std::path::Path;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, Row};

use super::{OLDEST, PostgresError, PostgresSpec, fault};
use crate::data::{self, DataError};
use crate::secret::Secret;

/// How long the first connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// What holds for every connection with the host's login, wherever it leads.
///
/// The driver would log every statement, some of which have secrets in them. And no statement finds a function or an
/// operator that somebody has put into `public`, into a schema of the login's name (which may be a
/// plugin's), or into a temporary one, where it would be run as the login. The host's own tables are named with their schema.
pub(super) fn own(options: PgConnectOptions) -> PgConnectOptions {
    options
        .application_name("berth")
        .options([("search_path", "pg_catalog,pg_temp")])
        .disable_statement_logging()
}

/// From the address that the settings give.
pub(super) fn options(spec: &PostgresSpec, url: &Secret) -> Result<PgConnectOptions, PostgresError> {
    let mut options = address(url).map_err(PostgresError::Url)?;
    if let Some(file) = &spec.password_file {
        let password = password(file).map_err(PostgresError::PasswordFile)?;
        options = options.password(password.expose_text().unwrap_or_default());
    }
    Ok(own(options))
}

/// Read an address. What is wrong with it is said without its password.
pub(crate) fn address(url: &Secret) -> Result<PgConnectOptions, String> {
    let text = url.expose_text().ok_or_else(|| "it is not UTF-8".to_owned())?;
    // The driver would log a parameter that it doesn't know, with its value.
    if let Some(unknown) = unknown_parameter(text) {
        return Err(format!("there is no parameter \"{unknown}\""));
    }
    text.parse().map_err(|error: sqlx::Error| without(&error, text))
}

/// The password in its file, as text, without the line end.
pub(crate) fn password(file: &Path) -> Result<Secret, DataError> {
    let password = data::read(file)?;
    let text = password.expose_text().ok_or_else(|| DataError::Damaged {
        path: file.to_owned(),
        what: "is not UTF-8".to_owned(),
    })?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

/// The parameters of an address that mean something; see
/// <https://docs.rs/sqlx/0.9/sqlx/postgres/struct.PgConnectOptions.html>.
const PARAMETERS: [&str; 13] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "statement-cache-capacity",
];

/// The first parameter of an address that means nothing.
fn unknown_parameter(url: &str) -> Option<&str> {
    let query = url.split_once('?')?.1.split('#').next()?;
    let mut keys = query
        .split('&')
        .map(|pair| pair.split('=').next().unwrap_or(pair));
    keys.find(|key| !key.is_empty() && !PARAMETERS.contains(key) && !key.starts_with("options["))
}

/// The parser's words, unless they repeat a part of the address that may be the password.
fn without(error: &sqlx::Error, url: &str) -> String {
    let said = match error {
        sqlx::Error::Configuration(error) => error.to_string(),
        other => other.to_string(),
    };
    let secret = crate::postgres::password_of(url);
    match secret {
        Some(secret) if said.contains(secret) => "it can't be read".to_owned(),
        // The driver has another name for the parameter.
        _ => said
            .trim_start_matches("error with configuration: ")
            .replace("`ssl_mode`", "sslmode"),
    }
}

/// Connect once, with a sentence if that fails; and find out what the server is and what the login may do.
///
/// `logins` says whether berth will make logins, which it does for plugins.
pub(super) async fn first(
    options: &PgConnectOptions,
    logins: bool,
) -> Result<(PgConnection, String), PostgresError> {
    let failed = |reason: String| PostgresError::Connect {
        at: fault::place(options),
        reason,
    };
    let connected = tokio::time::timeout(CONNECT, options.connect()).await;
    let mut connection = connected
        .map_err(|_| failed(format!("no answer within {} s", CONNECT.as_secs())))?
        .map_err(|error| failed(fault::reason(&error, options)))?;
    let found = about(&mut connection).await;
    let server = found.map_err(|error| failed(fault::reason(&error, options)))?;
    match server.wants(logins) {
        None => Ok((connection, server.version)),
        Some(reason) => {
            // It would be dropped otherwise, which the server notes as a fault.
            let _ = connection.close().await;
            Err(failed(reason))
        }
    }
}

#[derive(Debug)]
struct Server {
    version: String,
    version_num: i32,
    standby: bool,
    login: String,
    database: String,
    encoding: String,
    may_create: bool,
    may_make_logins: bool,
    /// A schema of ours that somebody else owns, and who.
    foreign_schema: Option<String>,
    foreign_owner: Option<String>,
}

async fn about(connection: &mut PgConnection) -> Result<Server, sqlx::Error> {
    let row = sqlx::query(
        "select split_part(current_setting('server_version'), ' ', 1) as version,
            current_setting('server_version_num')::int as version_num,
            pg_is_in_recovery() as standby,
            current_user::text as login,
            current_database()::text as database,
            pg_encoding_to_char(d.encoding)::text as encoding,
            has_database_privilege(d.oid, 'CREATE') as may_create,
            (r.rolcreaterole or r.rolsuper) as may_make_logins,
            s.nspname::text as foreign_schema,
            pg_get_userbyid(s.nspowner)::text as foreign_owner
        from pg_database d
        join pg_roles r on r.rolname = current_user
        left join lateral (
            select nspname, nspowner from pg_namespace
            where nspname in ('berth', 'identity') and not pg_has_role(nspowner, 'USAGE')
            order by nspname limit 1
        ) s on true
        where d.datname = current_database()",
    )
    .fetch_one(connection)
    .await?;
    Ok(Server {
        version: row.try_get("version")?,
        version_num: row.try_get("version_num")?,
        standby: row.try_get("standby")?,
        login: row.try_get("login")?,
        database: row.try_get("database")?,
        encoding: row.try_get("encoding")?,
        may_create: row.try_get("may_create")?,
        may_make_logins: row.try_get("may_make_logins")?,
        foreign_schema: row.try_get("foreign_schema")?,
        foreign_owner: row.try_get("foreign_owner")?,
    })
}

impl Server {
    /// What is in the way, with the statement that removes it.
    fn wants(&self, logins: bool) -> Option<String> {
        let Self { login, database, .. } = self;
        if self.version_num / 10_000 < i32::try_from(OLDEST).unwrap_or(i32::MAX) {
            return Some(format!(
                "it is Postgres {}, and berth needs {OLDEST} or newer",
                self.version
            ));
        }
        if self.standby {
            return Some("it is a read-only standby; name the primary server".to_owned());
        }
        if self.encoding != "UTF8" {
            return Some(format!(
                "the database \"{database}\" has the encoding {}, and berth needs UTF8: `CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0`",
                self.encoding
            ));
        }
        if let (Some(schema), Some(owner)) = (&self.foreign_schema, &self.foreign_owner) {
            return Some(format!(
                "the schema \"{schema}\" belongs to the login \"{owner}\", not to \"{login}\": use that login, or as a superuser, `GRANT \"{owner}\" TO \"{login}\"`"
            ));
        }
        if !self.may_create {
            return Some(format!(
                "the login \"{login}\" lacks the privilege CREATE on the database \"{database}\", which berth needs for its schemas: as the database's owner or a superuser, `GRANT CREATE ON DATABASE \"{database}\" TO \"{login}\"`"
            ));
        }
        if logins && !self.may_make_logins {
            return Some(format!(
                "the login \"{login}\" lacks the privilege CREATEROLE, which berth needs to give each plugin a login of its own: as a superuser, `ALTER ROLE \"{login}\" CREATEROLE`"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(password_file: Option<std::path::PathBuf>) -> PostgresSpec {
        PostgresSpec {
            password_file,
            ..PostgresSpec::default()
        }
    }

    #[test]
    fn fault_of_the_address_does_not_say_the_password() {
        for url in [
            "postgres://ada:hunter2@host:99999/app",
            "postgres://ada:hunter2@host/app?sslmode=hunter2",
            "hunter2",
        ] {
            let said = options(&spec(None), &Secret::new(url)).unwrap_err().to_string();
            assert!(!said.contains("ada:hunter2"), "{said}");
            assert!(said.contains("it is like postgres://"), "{said}");
        }
    }

    #[test]
    fn parameter_that_means_nothing_is_refused_without_its_value() {
        let url = Secret::new("postgres://ada@host/app?sslmode=require&passwrd=hunter2");
        let said = options(&spec(None), &url).unwrap_err().to_string();
        assert!(
            said.contains("there is no parameter \"passwrd\"") && !said.contains("hunter2"),
            "{said}"
        );
        assert_eq!(
            unknown_parameter("postgres://host/app?sslmode=verify-full&options[work_mem]=1MB"),
            None
        );
    }

    #[test]
    fn password_comes_from_its_file_without_the_line_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "pass word\n").unwrap();
        let made = options(
            &spec(Some(file.path().to_owned())),
            &Secret::new("postgres://ada@host/app"),
        )
        .unwrap();
        assert_eq!(made.to_url_lossy().password(), Some("pass%20word"));
    }

    fn server() -> Server {
        Server {
            version: "15.18".to_owned(),
            version_num: 150_018,
            standby: false,
            login: "ada".to_owned(),
            database: "app".to_owned(),
            encoding: "UTF8".to_owned(),
            may_create: true,
            may_make_logins: true,
            foreign_schema: None,
            foreign_owner: None,
        }
    }

    #[test]
    fn whatever_is_missing_is_named_with_the_statement_that_gives_it() {
        assert_eq!(server().wants(true), None);
        let no_logins = Server {
            may_make_logins: false,
            ..server()
        };
        assert_eq!(no_logins.wants(false), None, "nobody needs logins");
        for (server, part) in [
            (no_logins, "`ALTER ROLE \"ada\" CREATEROLE`"),
            (
                Server {
                    may_create: false,
                    ..server()
                },
                "`GRANT CREATE ON DATABASE \"app\" TO \"ada\"`",
            ),
            (
                Server {
                    standby: true,
                    ..server()
                },
                "read-only standby",
            ),
            (
                Server {
                    version_num: 130_004,
                    version: "13.4".to_owned(),
                    ..server()
                },
                "it is Postgres 13.4, and berth needs 14",
            ),
            (
                Server {
                    encoding: "SQL_ASCII".to_owned(),
                    ..server()
                },
                "has the encoding SQL_ASCII",
            ),
            (
                Server {
                    foreign_schema: Some("identity".to_owned()),
                    foreign_owner: Some("bob".to_owned()),
                    ..server()
                },
                "`GRANT \"bob\" TO \"ada\"`",
            ),
        ] {
            let said = server.wants(true).unwrap();
            assert!(said.contains(part), "{said}");
        }
    }
}
