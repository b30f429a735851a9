//! What the driver's errors mean, in one sentence. Never with the password, which no error of the driver or the server
//! has in it, nor the address as it was given.

use std::io;

use sqlx::postgres::{PgConnectOptions, PgDatabaseError};

/// Where the server is, for messages.
pub(super) fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or(options.get_username());
    match options.get_socket() {
        Some(socket) => format!("{}:{}/{database}", socket.display(), options.get_port()),
        None => format!("{}:{}/{database}", options.get_host(), options.get_port()),
    }
}

/// Why there is no connection, and what to do.
pub(super) fn reason(error: &sqlx::Error, options: &PgConnectOptions) -> String {
    match error {
        // The handshake fails as unusable data.
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            tls_reason(&error.to_string(), options)
        }
        sqlx::Error::Io(error) => io_reason(error, options),
        sqlx::Error::Tls(error) => tls_reason(&error.to_string(), options),
        sqlx::Error::Database(error) => match error.try_downcast_ref::<PgDatabaseError>() {
            Some(error) => server_reason(error.code(), error.message(), options),
            None => error.message().to_owned(),
        },
        sqlx::Error::PoolTimedOut => "no connection became free in time".to_owned(),
        other => other.to_string(),
    }
}

fn tls_reason(said: &str, options: &PgConnectOptions) -> String {
    if said.contains("server does not support TLS") {
        return format!(
            "it doesn't speak TLS, which sslmode asks for ({said}): turn TLS on in the server, or on the same machine, add sslmode=disable to the address"
        );
    }
    format!(
        "TLS fails: {said}; the server's certificate must be for {} and signed by sslrootcert, or by an authority that this machine trusts",
        options.get_host()
    )
}

fn io_reason(error: &io::Error, options: &PgConnectOptions) -> String {
    match error.kind() {
        // The private server has a socket, and nobody can do anything about it.
        io::ErrorKind::ConnectionRefused if options.get_socket().is_some() => {
            "nothing listens there".to_owned()
        }
        io::ErrorKind::ConnectionRefused => {
            "nothing listens there: start the server, or check host and port in the address".to_owned()
        }
        io::ErrorKind::NotFound => "there is no such socket".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            format!("there is no way to that host ({error})")
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            format!("the connection was closed ({error})")
        }
        _ => error.to_string(),
    }
}

/// By SQLSTATE; see <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn server_reason(code: &str, said: &str, options: &PgConnectOptions) -> String {
    let login = options.get_username();
    let database = options.get_database().unwrap_or(login);
    match code {
        "28P01" => format!("the password of the login \"{login}\" is wrong, or there is no such login"),
        "28000" if said.contains("no encryption") || said.contains("SSL off") => format!(
            "it refuses the login \"{login}\" without TLS: add sslmode=verify-full to the address, or allow it in the server's pg_hba.conf ({said})"
        ),
        "28000" => format!(
            "it refuses the login \"{login}\" ({said}): check the login's name in the address, or allow it in the server's pg_hba.conf"
        ),
        "3D000" => format!(
            "there is no database \"{database}\": as a superuser, `CREATE DATABASE \"{database}\" OWNER \"{login}\"`"
        ),
        "42501" => format!(
            "the login \"{login}\" lacks a privilege ({said}): as a superuser, `GRANT ALL ON DATABASE \"{database}\" TO \"{login}\"`"
        ),
        "53300" => format!(
            "it has no connection left ({said}): raise its max_connections, or lower postgres.connections"
        ),
        _ => said.to_owned(),
    }
}

/// Whether this is the error of a server that will be ready in a moment.
pub(super) fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::UnexpectedEof
        ),
        sqlx::Error::Database(error) => error.code().as_deref() == Some("57P03"),
        _ => false,
    }
}

/// Whether an error says that the connection is gone, rather than that a statement was wrong.
pub(super) fn is_loss(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            true
        }
        // Connection exceptions; the server stops, crashes or starts, or the session was idle for too long.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            code.starts_with("08") || ["57P01", "57P02", "57P03", "57P05"].contains(&&*code)
        }),
        _ => false,
    }
}

/// Whether an error passes by itself: the connection is gone, or the server is full or was told to cancel.
pub(super) fn is_passing(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    is_loss(error) || code.is_some_and(|code| code.starts_with("53") || code.starts_with("57"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("db.example.com")
            .port(5433)
            .username("ada")
            .password("hunter2")
            .database("app")
    }

    #[test]
    fn every_reason_is_a_sentence_without_the_password() {
        let options = options();
        for (code, said, part) in [
            (
                "28P01",
                "password authentication failed for user \"ada\"",
                "the password of the login \"ada\" is wrong",
            ),
            (
                "28000",
                "no pg_hba.conf entry for host \"1.2.3.4\", user \"ada\", database \"app\", no encryption",
                "sslmode=verify-full",
            ),
            (
                "28000",
                "role \"ada\" is not permitted to log in",
                "it refuses the login \"ada\"",
            ),
            (
                "3D000",
                "database \"app\" does not exist",
                "`CREATE DATABASE \"app\" OWNER \"ada\"`",
            ),
            (
                "42501",
                "permission denied for database \"app\"",
                "`GRANT ALL ON DATABASE \"app\" TO \"ada\"`",
            ),
            (
                "53300",
                "sorry, too many clients already",
                "raise its max_connections",
            ),
            ("XX000", "something else", "something else"),
        ] {
            let sentence = server_reason(code, said, &options);
            assert!(
                sentence.contains(part) && !sentence.contains("hunter2"),
                "{sentence}"
            );
        }
        for (kind, part) in [
            (
                io::ErrorKind::ConnectionRefused,
                "start the server, or check host and port",
            ),
            (io::ErrorKind::NotFound, "no such socket"),
            (io::ErrorKind::NetworkUnreachable, "no way to that host"),
        ] {
            let sentence = reason(&sqlx::Error::Io(kind.into()), &options);
            assert!(sentence.contains(part), "{sentence}");
        }
        assert_eq!(place(&options), "db.example.com:5433/app");
        assert_eq!(place(&options.socket("/run/pg")), "/run/pg:5433/app");
    }

    #[test]
    fn loss_is_told_from_a_wrong_statement() {
        assert!(is_loss(&sqlx::Error::Io(io::ErrorKind::BrokenPipe.into())));
        assert!(!is_loss(&sqlx::Error::RowNotFound));
        assert!(!is_loss(&sqlx::Error::PoolTimedOut));
        assert!(is_passing(&sqlx::Error::Io(io::ErrorKind::BrokenPipe.into())));
        assert!(!is_passing(&sqlx::Error::RowNotFound));
        assert!(is_starting(&sqlx::Error::Io(io::ErrorKind::NotFound.into())));
        assert!(!is_starting(&sqlx::Error::PoolTimedOut));
    }
}
