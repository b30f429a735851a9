//! Notes of signed-in users, in Postgres: an example of `sql` and of `berth-user-id`.
//!
//! | Request               | Answer                                                    |
//! |-----------------------|-----------------------------------------------------------|
//! | `GET /notes/`         | the caller's notes, the newest 100                        |
//! | `POST /notes/`        | stores the body, `{"text": "…"}`, and answers the note    |
//! | `DELETE /notes/{id}`  | deletes one of the caller's notes; 404 if there is none   |
//!
//! Its routes have `access = "user"`, so that the host sets `berth-user-id` and nobody else can. The grant is
//! `sql = ["notes"]`: the schema is the plugin's own, and the table is made when it isn't there yet.

use serde_json::{Value as Json, json};
use wstd::http::{Body, Error, Method, Request, Response, StatusCode};

use crate::berth::host::sql::{self, Error as SqlError, Value};

wit_bindgen::generate!({ path: "../../wit/host", world: "imports" });

const TABLE: &str = "create table if not exists notes (
    id bigint generated always as identity primary key,
    owner uuid not null,
    text text not null check (char_length(text) between 1 and 10000),
    created_at timestamptz not null default now()
)";
/// The SQLSTATE of a table that isn't there.
const UNDEFINED_TABLE: &str = "42P01";
/// The SQLSTATE of a value that a `check` refuses.
const CHECK_VIOLATION: &str = "23514";
/// The columns of a note, as `note` reads them.
const NOTE: &str = "id, text, (extract(epoch from created_at) * 1000)::bigint";

#[wstd::http_server]
async fn main(mut request: Request<Body>) -> Result<Response<Body>, Error> {
    let Some(owner) = request.headers().get("berth-user-id") else {
        return Ok(problem(StatusCode::UNAUTHORIZED, "nobody is signed in"));
    };
    let owner = Value::Uuid(owner.to_str()?.to_owned());
    let id = request
        .uri()
        .path()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let answer = match *request.method() {
        Method::GET => list(owner),
        Method::POST => {
            let body = request.body_mut().contents().await?;
            match serde_json::from_slice::<Json>(body) {
                Ok(Json::Object(note)) => match note.get("text").and_then(Json::as_str) {
                    Some(text) => add(owner, text),
                    None => return Ok(problem(StatusCode::BAD_REQUEST, "there is no \"text\"")),
                },
                _ => return Ok(problem(StatusCode::BAD_REQUEST, "the body is no JSON object")),
            }
        }
        Method::DELETE => match id.parse() {
            Ok(id) => remove(owner, id),
            Err(_) => return Ok(problem(StatusCode::NOT_FOUND, "there is no such note")),
        },
        _ => return Ok(problem(StatusCode::METHOD_NOT_ALLOWED, "GET, POST or DELETE")),
    };
    Ok(match answer {
        Ok(Some(json)) => respond(StatusCode::OK, &json),
        Ok(None) => problem(StatusCode::NOT_FOUND, "there is no such note"),
        Err(SqlError::Database(error)) if error.code == CHECK_VIOLATION => {
            problem(StatusCode::BAD_REQUEST, "a note has 1 to 10000 characters")
        }
        Err(SqlError::Unavailable | SqlError::PoolTimeout | SqlError::Timeout) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, "try again in a moment")
        }
        Err(error) => {
            eprintln!("{error:?}");
            problem(StatusCode::INTERNAL_SERVER_ERROR, "it did not work")
        }
    })
}

fn list(owner: Value) -> Result<Option<Json>, SqlError> {
    let rows = query(
        &format!("select {NOTE} from notes where owner = $1 order by id desc limit 100"),
        &[owner],
    )?;
    Ok(Some(
        json!({"notes": rows.iter().map(|row| note(row)).collect::<Vec<_>>()}),
    ))
}

fn add(owner: Value, text: &str) -> Result<Option<Json>, SqlError> {
    let rows = query(
        &format!("insert into notes (owner, text) values ($1, $2) returning {NOTE}"),
        &[owner, Value::Text(text.to_owned())],
    )?;
    Ok(rows.first().map(|row| note(row)))
}

fn remove(owner: Value, id: i64) -> Result<Option<Json>, SqlError> {
    let rows = query(
        &format!("delete from notes where owner = $1 and id = $2 returning {NOTE}"),
        &[owner, Value::Int64(id)],
    )?;
    Ok(rows.first().map(|row| note(row)))
}

/// Run a statement; make the table first if it isn't there.
fn query(statement: &str, parameters: &[Value]) -> Result<Vec<Vec<Value>>, SqlError> {
    match sql::query(statement, parameters) {
        Err(SqlError::Database(error)) if error.code == UNDEFINED_TABLE => {
            sql::execute(TABLE, &[])?;
            sql::query(statement, parameters)
        }
        done => done,
    }
    .map(|rows| rows.rows)
}

fn note(row: &[Value]) -> Json {
    match row {
        [Value::Int64(id), Value::Text(text), Value::Int64(created_at)] => {
            json!({"id": id, "text": text, "createdAt": created_at})
        }
        _ => Json::Null,
    }
}

fn problem(status: StatusCode, detail: &str) -> Response<Body> {
    respond(status, &json!({"status": status.as_u16(), "detail": detail}))
}

fn respond(status: StatusCode, json: &Json) -> Response<Body> {
    let mut response = Response::new(format!("{json}\n").into());
    *response.status_mut() = status;
    let kind = wstd::http::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", kind);
    response
}
