//! `wasi:http` outgoing requests.
//!
//! A plugin may call the hosts that `grants = { http = […] }` names, and no others; a call that isn't granted fails
//! with `HTTP-request-denied`, an error that the guest can handle, and the log says what would grant it. Redirects are
//! not followed: the guest does that itself, and each request is checked anew. No proxy is used, whatever the
//! environment says.
//!
//! Each plugin has its own pool of connections, since what may be connected to differs. A request belongs to the store
//! that sends it: when the store is dropped, so is the request, and a body that was not finished is aborted.

mod body;
mod client;
mod connect;
mod fault;
mod tls;

use std::sync::{Arc, LazyLock};

use http::{HeaderName, Method, Request, Response};
use wasmtime_wasi_http::{Error, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpHooks};

pub use self::client::Client;
use crate::grants::hosts::{Host, Scheme, Target};
use crate::headers::is_forbidden;
use crate::runtime::instance::Origin;

/// What a guest must not set and never sees.
static FORBIDDEN: LazyLock<ForbiddenHeaderFilter> = LazyLock::new(|| Arc::new(is_forbidden));

/// The hooks of one store.
pub struct Outgoing {
    origin: Arc<Origin>,
}

impl Outgoing {
    /// For this request.
    pub fn new(origin: Arc<Origin>) -> Self {
        Self { origin }
    }
}

type Sent = Result<
    (
        Response<WasiBody>,
        Box<dyn Future<Output = Result<(), Error>> + Send>,
    ),
    Error,
>;

impl WasiHttpHooks for Outgoing {
    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        Arc::clone(&FORBIDDEN)
    }

    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        is_forbidden(name)
    }

    /// The client sets it, from the target that was checked.
    fn set_host_header(&mut self) -> bool {
        false
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let target = match target(&request) {
            Ok(target) => target,
            Err(error) => return Box::new(async { Err(error) }),
        };
        let plugin = &self.origin.plugin;
        match &plugin.outgoing {
            Some(client) if client.grant().allows(&target) => {
                let client = client.clone();
                let origin = Arc::clone(&self.origin);
                Box::new(async move {
                    let response = client.send(origin, target, request, options).await?;
                    Ok((response, Box::new(async { Ok(()) }) as Box<_>))
                })
            }
            _ => {
                denied(&self.origin, &target, &target.entry(), "it is not granted");
                Box::new(async { Err(Error::HttpRequestDenied) })
            }
        }
    }
}

/// Where a request goes, or that it can't go anywhere.
fn target(request: &Request<WasiBody>) -> Result<Target, Error> {
    if *request.method() == Method::CONNECT {
        // A tunnel would carry what nobody checks.
        return Err(Error::HttpRequestMethodInvalid);
    }
    let uri = request.uri();
    let scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        _ => return Err(Error::HttpProtocolError),
    };
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    if authority.as_str().contains('@') {
        // RFC 9110 section 4.2.4: credentials in a URL are as likely a disguise of its host.
        return Err(Error::HttpRequestUriInvalid);
    }
    let port = match (authority.port_u16(), authority.as_str().rsplit_once(':')) {
        (Some(port), _) => port,
        (None, Some((_, rest))) if !rest.ends_with(']') && !rest.is_empty() => {
            return Err(Error::HttpRequestUriInvalid);
        }
        (None, _) => scheme.default_port(),
    };
    let host = Host::parse(authority.host()).ok_or(Error::HttpRequestUriInvalid)?;
    Ok(Target { scheme, host, port })
}

/// Say that a request was refused, and the line of the manifest that would allow it.
fn denied(origin: &Origin, target: &Target, entry: &str, why: &str) {
    if origin.take_line() {
        let plugin = &origin.plugin;
        let grants = plugin.spec.grants.line_with_host(entry);
        tracing::warn!(
            target: "berth::guest",
            plugin = plugin.name,
            request_id = origin.request_id(),
            host = %target.host,
            port = target.port,
            "outgoing HTTP request to {target} refused: {why}; to allow it, write in the manifest: [plugins.{}] {grants}",
            plugin.name,
        );
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};

    use super::*;

    fn parse(method: &str, url: &str) -> Result<String, String> {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = Request::builder().method(method).uri(url).body(body).unwrap();
        target(&request)
            .map(|t| format!("{t} {}", t.port))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn target_is_what_the_url_says_or_an_error() {
        assert_eq!(
            parse("GET", "http://A.example./x").unwrap(),
            "http://a.example 80"
        );
        assert_eq!(
            parse("GET", "https://a.example:444").unwrap(),
            "https://a.example:444 444"
        );
        assert_eq!(
            parse("GET", "https://a.example:").unwrap(),
            "https://a.example 443"
        );
        assert_eq!(parse("GET", "http://[::1]:81/").unwrap(), "http://[::1]:81 81");
        assert_eq!(parse("GET", "http://[::1]/").unwrap(), "http://[::1] 80");
        for url in [
            "http://a.example:99999/",
            "http://good.example@evil.example/",
            "http://user:secret@a.example/",
            "http://2130706433/",
            "http://127.1/",
            "http://0x7f.1/",
        ] {
            assert!(parse("GET", url).is_err(), "{url}");
        }
        assert_eq!(
            parse("CONNECT", "http://a.example/").unwrap_err(),
            "invalid HTTP request method"
        );
    }
}
