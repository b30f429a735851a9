//! Greets whoever the last segment of the path names, over `wasi:http` 0.3.
//!
//! The same plugin as `hello`, for the asynchronous generation of WASI.

use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Request, Response};
use wasip3::http_compat::{http_from_wasi_request, http_into_wasi_response};

wasip3::http::service::export!(Hello);

struct Hello;

impl Guest for Hello {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let request = http_from_wasi_request(request)?;
        let mut response = http::Response::new(greeting(request.uri().path()));
        response
            .headers_mut()
            .insert("content-type", http::HeaderValue::from_static("text/plain"));
        http_into_wasi_response(response)
    }
}

/// `/hello-p3/Ada` greets Ada; `/hello-p3` and `/hello-p3/` greet nobody in particular.
fn greeting(path: &str) -> String {
    match path.rsplit('/').next() {
        None | Some("" | "hello-p3") => "Hello from a WebAssembly component.\n".to_owned(),
        Some(name) => format!("Hello, {name}.\n"),
    }
}
