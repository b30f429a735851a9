//! Greets whoever the last segment of the path names, over `wasi:http` 0.2.
//!
//! The smallest useful plugin, and the one to copy for a new one.

use wstd::http::{Body, Error, Request, Response};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let greeting = greeting(request.uri().path());
    Ok(Response::builder()
        .header("content-type", "text/plain")
        .body(greeting.into())?)
}

/// `/hello/Ada` greets Ada; `/hello` and `/hello/` greet nobody in particular.
fn greeting(path: &str) -> String {
    match path.rsplit('/').next() {
        None | Some("" | "hello") => "Hello from a WebAssembly component.\n".to_owned(),
        Some(name) => format!("Hello, {name}.\n"),
    }
}
