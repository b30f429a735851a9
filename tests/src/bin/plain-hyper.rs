//! The baseline of `cargo xtask bench`: what hyper alone does with the same two requests.
//!
//! `plain-hyper ADDR` serves HTTP/1.1 on every core. `POST /api/v1/auth/verify-email` does what berth's typed
//! route has to do around the component: collect the body, decode the JSON, encode a user of the same size.
//! Any other `GET` answers the text of the hello handlers.
//!
//! With the address of a database in `PLAIN_HYPER_DATABASE`, `POST /sql/bench` asks it for the row that the sql fixture
//! asks for, through a pool of sqlx with the prepared statement that it keeps per connection.
//!
//! Deliberately absent, so that the baseline is as fast as hyper can be and berth's ratio is never flattered:
//! timeouts, limits, request ids, logging, shutdown.

use std::convert::Infallible;
use std::process::ExitCode;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::net::{TcpListener, TcpStream};

#[tokio::main]
async fn main() -> ExitCode {
    let Some(address) = std::env::args()
        .nth(1)
        .filter(|argument| !argument.starts_with('-'))
    else {
        eprintln!(
            "plain-hyper serves the two bench requests with nothing but hyper.\n\n\
             Usage: plain-hyper ADDR    for example: plain-hyper 127.0.0.1:8090"
        );
        return ExitCode::from(64);
    };
    let database = match std::env::var("PLAIN_HYPER_DATABASE").ok() {
        None => None,
        // As many connections as berth gives a plugin.
        Some(url) => match PgPoolOptions::new()
            .max_connections(8)
            .test_before_acquire(false)
            .connect(&url)
            .await
        {
            Ok(pool) => Some(pool),
            Err(error) => {
                eprintln!("plain-hyper can't use its database: {error}.");
                return ExitCode::FAILURE;
            }
        },
    };
    match TcpListener::bind(&address).await {
        Ok(listener) => serve(&listener, database).await,
        Err(error) => {
            eprintln!(
                "plain-hyper can't listen on {address}: {error}. Give a free address, like 127.0.0.1:8090."
            );
            ExitCode::FAILURE
        }
    }
}

async fn serve(listener: &TcpListener, database: Option<PgPool>) -> ExitCode {
    match listener.local_addr() {
        Ok(address) => println!("listening on {address}"),
        Err(error) => eprintln!("The address that plain-hyper listens on can't be read: {error}."),
    }
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, database.clone()));
            }
            Err(error) => {
                eprintln!("plain-hyper can't accept a connection: {error}. Raise the limit on open files.");
                return ExitCode::FAILURE;
            }
        }
    }
}

async fn connection(stream: TcpStream, database: Option<PgPool>) {
    // Both can fail only because the client has gone, which ends the connection anyway.
    stream.set_nodelay(true).ok();
    http1::Builder::new()
        .serve_connection(
            TokioIo::new(stream),
            service_fn(|request| answer(request, database.as_ref())),
        )
        .await
        .ok();
}

async fn answer(
    request: Request<Incoming>,
    database: Option<&PgPool>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let response = match (request.method(), request.uri().path()) {
        (&Method::POST, "/api/v1/auth/verify-email") => verify_email(request.into_body()).await,
        (&Method::POST, "/sql/bench") => sql(request.into_body(), database).await,
        (&Method::GET, _) => reply(
            StatusCode::OK,
            "text/plain",
            Bytes::from_static(b"Hello, world.\n"),
        ),
        _ => refuse(
            StatusCode::NOT_FOUND,
            "There is only GET, and POST /api/v1/auth/verify-email.\n",
        ),
    };
    Ok(response)
}

async fn sql(body: Incoming, database: Option<&PgPool>) -> Response<Full<Bytes>> {
    if body.collect().await.is_err() {
        return refuse(StatusCode::BAD_REQUEST, "The body ended early.\n");
    }
    let Some(pool) = database else {
        return refuse(StatusCode::NOT_FOUND, "PLAIN_HYPER_DATABASE isn't set.\n");
    };
    let row = sqlx::query_scalar::<_, String>("select text from bench.rows where id = $1")
        .bind(1_i64)
        .fetch_one(pool)
        .await;
    match row {
        Ok(text) => reply(StatusCode::OK, "text/plain", Bytes::from(text)),
        Err(_) => refuse(StatusCode::SERVICE_UNAVAILABLE, "The database has no answer.\n"),
    }
}

async fn verify_email(body: Incoming) -> Response<Full<Bytes>> {
    let Ok(body) = body.collect().await else {
        return refuse(StatusCode::BAD_REQUEST, "The body ended early.\n");
    };
    let Ok(asked) = serde_json::from_slice::<VerifyEmail>(&body.to_bytes()) else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "The body must be JSON with a string `token`.\n",
        );
    };
    if asked.token.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "`token` must not be empty.\n");
    }
    match serde_json::to_vec(&user()) {
        Ok(json) => reply(StatusCode::OK, "application/json", Bytes::from(json)),
        Err(_) => refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The user could not be written as JSON.\n",
        ),
    }
}

#[derive(serde::Deserialize)]
struct VerifyEmail {
    token: String,
}

/// The account in berth's wire format, with owned fields and the values of the `auth-static` fixture, which the typed route answers.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct User {
    id: String,
    email: String,
    email_verified: bool,
    name: String,
    roles: Vec<String>,
    created_at: u64,
    updated_at: u64,
    mfa_enabled: bool,
    active: bool,
}

fn user() -> User {
    User {
        id: "01920000-0000-7000-8000-000000000001".to_owned(),
        email: "ada@example.com".to_owned(),
        email_verified: true,
        name: "Ada Lovelace".to_owned(),
        roles: vec!["user".to_owned()],
        created_at: 1_735_689_600_000,
        updated_at: 1_735_689_600_000,
        mfa_enabled: false,
        active: true,
    }
}

fn refuse(status: StatusCode, sentence: &'static str) -> Response<Full<Bytes>> {
    reply(status, "text/plain", Bytes::from_static(sentence.as_bytes()))
}

fn reply(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
