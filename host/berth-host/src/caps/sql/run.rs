//! One statement on one connection.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use sqlx::postgres::{PgArguments, PgColumn, PgRow, PgTypeInfo};
use sqlx::{Arguments, AssertSqlSafe, Column as _, Either, Encode, Executor, Row, SqlSafeStr, Statement};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::errors::{Failed, Left};
use super::lexer::{self, Kind, MAX_STATEMENT};
use super::pool::Connection;
use super::values::{self, Parameter, oid};
use crate::caps::bindings::berth::host::sql::{Column, Error, Other, Rows, Value};

/// Rows of a result.
pub(super) const MAX_ROWS: u32 = 10_000;
/// Bytes of a result, and of all parameters as they go to the server. A result's values count as they come from there, or
/// as they are told to the guest where that is more: eight bytes of a `numeric` may be 131072 digits.
pub(super) const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Parameters of a statement.
const MAX_PARAMETERS: usize = 1_000;
/// Bytes that a row and each of its values take beside what they are (protocol, chapter 55.7).
const ROW: usize = 7;
const VALUE: usize = 4;
/// Statements above this size, in bytes, are not kept prepared.
const MAX_KEPT: usize = 8 * 1024;

/// A statement that may be sent.
#[derive(Debug)]
pub(super) struct Ask {
    text: String,
    parameters: Vec<Parameter>,
    kind: Kind,
    rows: bool,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) rows: Rows,
    pub(super) touched: u64,
}

impl Ask {
    /// Check and encode. `rows` says whether the result is wanted.
    ///
    /// # Errors
    /// It can't be sent, or isn't for plugins.
    pub(super) fn new(statement: String, parameters: Vec<Value>, rows: bool) -> Result<Self, Error> {
        if statement.len() > MAX_STATEMENT {
            return Err(Error::Invalid(format!(
                "the statement has {} bytes, and there may be {MAX_STATEMENT}; what varies belongs into parameters",
                statement.len()
            )));
        }
        if statement.contains('\0') {
            return Err(Error::Invalid("the statement has a NUL character".to_owned()));
        }
        if parameters.len() > MAX_PARAMETERS {
            return Err(Error::Invalid(format!(
                "there are {} parameters, and there may be {MAX_PARAMETERS}; send an array and use `unnest`",
                parameters.len()
            )));
        }
        let kind = lexer::check(&statement).map_err(Error::Denied)?;
        let mut bytes = 0;
        let mut encoded = Vec::with_capacity(parameters.len());
        for (at, value) in parameters.into_iter().enumerate() {
            let parameter =
                Parameter::new(value).map_err(|what| Error::Invalid(format!("${}: {what}", at + 1)))?;
            bytes += parameter.len();
            if bytes > MAX_BYTES {
                return Err(Error::TooManyBytes(MAX_BYTES as u64));
            }
            encoded.push(parameter);
        }
        // What a connection has prepared is known by its text. The same text with other types is another statement.
        let mut text = statement;
        for (at, parameter) in encoded.iter().enumerate() {
            // Writing into a String can't fail.
            let _ = write!(text, "{}{}", if at == 0 { "\n-- " } else { "," }, parameter.oid);
        }
        Ok(Self {
            text,
            parameters: encoded,
            kind,
            rows,
        })
    }

    fn arguments(&self) -> Result<PgArguments, Failed> {
        let mut arguments = PgArguments::default();
        for parameter in &self.parameters {
            arguments.add(parameter).map_err(|error| Failed {
                error: Error::Invalid(error.to_string()),
                left: Left::Usable,
            })?;
        }
        Ok(arguments)
    }
}

/// Run it.
pub(super) async fn run(connection: &mut Connection, ask: &Ask) -> Result<Answer, Failed> {
    let answer = fetch(connection, ask).await;
    if ask.kind == Kind::Definition {
        connection.pool().redefined();
    }
    if ask.kind == Kind::Definition || ask.text.len() > MAX_KEPT {
        connection.forget().await?;
    }
    answer
}

/// A column before its type has a name.
struct Described {
    name: String,
    oid: u32,
}

impl Described {
    fn of(column: &PgColumn) -> Self {
        Self {
            name: column.name().to_owned(),
            oid: column.type_info().oid().map_or(0, |oid| oid.0),
        }
    }
}

async fn fetch(connection: &mut Connection, ask: &Ask) -> Result<Answer, Failed> {
    let arguments = ask.arguments()?;
    let driver = connection.driver().ok_or_else(Failed::gone)?;
    let query = sqlx::query_with(AssertSqlSafe(ask.text.clone()), arguments);
    let mut columns: Option<Vec<Described>> = None;
    let mut rows = Vec::new();
    let (mut bytes, mut touched) = (0, 0);
    {
        let mut stream = driver.fetch_many(query);
        while let Some(next) = stream.try_next().await? {
            let row = match next {
                Either::Left(result) => {
                    touched += result.rows_affected();
                    continue;
                }
                Either::Right(row) => row,
            };
            bytes += size(&row)?;
            if bytes > MAX_BYTES {
                return Err(Failed::too_much(Error::TooManyBytes(MAX_BYTES as u64)));
            }
            // What isn't wanted is sent all the same, and counts.
            if !ask.rows {
                continue;
            }
            if rows.len() >= MAX_ROWS as usize {
                return Err(Failed::too_much(Error::TooManyRows(MAX_ROWS)));
            }
            let columns = columns.get_or_insert_with(|| row.columns().iter().map(Described::of).collect());
            rows.push(decoded(&row, columns)?);
        }
    }
    let mut rows = Rows {
        columns: vec![],
        rows,
    };
    if ask.rows {
        let columns = match columns {
            Some(columns) => columns,
            None => describe(connection, ask).await?,
        };
        name(connection, columns, &mut rows).await?;
    }
    Ok(Answer { rows, touched })
}

/// What a row takes.
fn size(row: &PgRow) -> Result<usize, Failed> {
    (0..row.len()).try_fold(ROW, |sum, at| {
        let value = row.try_get_raw(at)?;
        let oid = row.column(at).type_info().oid().map_or(0, |oid| oid.0);
        // An error is a NULL.
        Ok(sum + VALUE + value.as_bytes().map_or(0, |bytes| values::size(oid, bytes)))
    })
}

fn decoded(row: &PgRow, columns: &[Described]) -> Result<Vec<Value>, Failed> {
    let mut values = Vec::with_capacity(columns.len());
    for (at, column) in columns.iter().enumerate() {
        let raw = row.try_get_raw(at)?;
        values.push(match raw.as_bytes() {
            Ok(bytes) => values::decode(column.oid, bytes).unwrap_or_else(|| {
                Value::Other(Other {
                    type_name: String::new(),
                    bytes: bytes.to_vec(),
                })
            }),
            Err(_) => Value::Null,
        });
    }
    Ok(values)
}

/// The columns of a result without rows. The connection knows them from preparing the statement.
async fn describe(connection: &mut Connection, ask: &Ask) -> Result<Vec<Described>, Failed> {
    let types: Vec<PgTypeInfo> = ask.parameters.iter().filter_map(Encode::produces).collect();
    let driver = connection.driver().ok_or_else(Failed::gone)?;
    let text = AssertSqlSafe(ask.text.clone()).into_sql_str();
    let statement = driver.prepare_with(text, &types).await?;
    Ok(statement.columns().iter().map(Described::of).collect())
}

/// Give every column and every value without a case its type's name.
async fn name(connection: &mut Connection, columns: Vec<Described>, rows: &mut Rows) -> Result<(), Failed> {
    let known = |connection: &Connection, oid: u32| match oid::name(oid) {
        Some(name) => Some(Arc::from(name)),
        None => connection.pool().name(oid),
    };
    let unknown: Vec<String> = columns
        .iter()
        .filter(|column| known(connection, column.oid).is_none())
        .map(|column| column.oid.to_string())
        .collect();
    if !unknown.is_empty() {
        let statement = format!("{NAMES} ({})", unknown.join(", "));
        let driver = connection.driver().ok_or_else(Failed::gone)?;
        let named = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_all(driver).await?;
        for row in named {
            let (number, name): (String, String) = (row.try_get_unchecked(0)?, row.try_get_unchecked(1)?);
            connection
                .pool()
                .remember(number.parse().unwrap_or(0), &Arc::from(name));
        }
    }
    rows.columns = columns
        .into_iter()
        .map(|column| Column {
            type_name: known(connection, column.oid)
                .map_or_else(|| column.oid.to_string(), |name| name.to_string()),
            name: column.name,
        })
        .collect();
    for row in &mut rows.rows {
        for (value, column) in row.iter_mut().zip(&rows.columns) {
            if let Value::Other(other) = value {
                other.type_name.clone_from(&column.type_name);
            }
        }
    }
    Ok(())
}

/// The names of types by their numbers, as text: an array's is its element's with `[]`.
const NAMES: &str = "SELECT t.oid::pg_catalog.text, \
    CASE n.nspname WHEN 'pg_catalog' THEN e.typname \
        ELSE pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(e.typname) END || CASE WHEN e.oid = t.oid THEN '' ELSE '[]' END \
    FROM pg_catalog.pg_type t \
    JOIN pg_catalog.pg_type e ON e.oid = CASE WHEN t.typcategory = 'A' AND t.typelem <> 0 THEN t.typelem ELSE t.oid END \
    JOIN pg_catalog.pg_namespace n ON n.oid = e.typnamespace WHERE t.oid IN";

/// How an attempt at something ended, from outside.
pub(super) enum End<T> {
    /// By itself.
    Done(Result<T, Failed>),
    /// Its time was over.
    Late,
    /// Nobody waits for it any more.
    Deserted,
}

/// Try something for as long as a statement may take and somebody waits for it.
pub(super) async fn attended<T, R>(
    work: impl Future<Output = Result<T, Failed>>,
    reply: &mut oneshot::Sender<R>,
    time: Duration,
) -> End<T> {
    tokio::select! {
        biased;
        done = work => End::Done(done),
        () = reply.closed() => End::Deserted,
        () = sleep(time) => End::Late,
    }
}
