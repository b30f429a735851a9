//! The admin API: what an operator asks of a running host, on the admin address. `berth plugin` and `berth user` are its
//! clients.
//!
//! `/metrics` and `/health` are for everybody who reaches the address. All else needs the token of the data folder's
//! file `admin.token`, which is made at the first start and is readable by its owner alone: whoever may read it could
//! read the database's keys as well.

mod live;
pub mod plugins;
mod query;
mod users;

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;

use crate::body::ReplyBody;
use crate::data::{self, DataError, DataFolder};
use crate::error::Error;
use crate::gate::bearer;
use crate::metrics;
use crate::secret::Secret;
use crate::serve::{REQUEST_ID, request_id};
use crate::state::Host;
use crate::{health, respond};

/// The file of the token, in the data folder.
pub const TOKEN_FILE: &str = "admin.token";

/// What an operator shows.
#[derive(Debug)]
pub struct AdminToken(Secret);

impl AdminToken {
    /// From the data folder; made if it isn't there.
    ///
    /// # Errors
    /// The file can't be read or made, others may read it, or it is empty.
    pub fn open(folder: &DataFolder) -> Result<Self, DataError> {
        let path = folder.path().join(TOKEN_FILE);
        let text = data::read_or_create(&path, || {
            let mut line = URL_SAFE_NO_PAD.encode(data::random()?);
            line.push('\n');
            Ok(Secret::new(line))
        })?;
        // As an editor may have left it.
        let token = text.expose().trim_ascii();
        if token.is_empty() {
            return Err(DataError::Damaged {
                path,
                what: "is empty; delete it, and the next start makes another".to_owned(),
            });
        }
        Ok(Self(Secret::new(token)))
    }

    /// Whether it is this one, in a time that says nothing of how much of it is right.
    fn is(&self, given: &str) -> bool {
        self.0.expose().ct_eq(given.as_bytes()).into()
    }
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Metrics,
    Health,
    Users(users::Call),
    Plugins(plugins::Call),
}

/// Answer an operator, whatever happens.
pub async fn answer(
    host: Arc<Host>,
    peer: SocketAddr,
    request: Request<Incoming>,
    stop: CancellationToken,
) -> Response<ReplyBody> {
    let id = request_id(request.headers().get(REQUEST_ID));
    let mut response = match handle(&host, peer, &id, request, stop).await {
        Ok(response) => response,
        Err(error) => {
            if let Error::Internal(cause) = &error {
                tracing::error!(target: "berth::admin", request_id = id.to_str().unwrap_or_default(), "{cause}");
            }
            respond::problem(&respond::answer(&error), &id)
        }
    };
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

async fn handle(
    host: &Arc<Host>,
    peer: SocketAddr,
    id: &HeaderValue,
    request: Request<Incoming>,
    stop: CancellationToken,
) -> Result<Response<ReplyBody>, Error> {
    match find(request.method(), request.uri().path())? {
        Target::Metrics => metrics_text(Arc::clone(host)).await,
        Target::Health => Ok(health::report(host)),
        Target::Plugins(call) => {
            permit(host, &request)?;
            plugins::call(host, call, request, stop).await
        }
        Target::Users(call) => {
            let Some(identity) = &host.services.identity else {
                return Err(Error::NoAccounts);
            };
            permit(host, &request)?;
            let operator = users::Operator {
                audit: host.services.audit.as_ref(),
                client_ip: peer.ip().to_canonical().to_string(),
                request_id: id.to_str().unwrap_or_default().to_owned(),
            };
            users::call(identity, &operator, call, request, &host.limits).await
        }
    }
}

/// The token, or nothing.
fn permit(host: &Host, request: &Request<Incoming>) -> Result<(), Error> {
    let mut given = request.headers().get_all(header::AUTHORIZATION).iter();
    let only = match (given.next(), given.next()) {
        (Some(value), None) => bearer(value.as_bytes()),
        _ => None,
    };
    match (&host.services.admin, only) {
        (Some(token), Some(given)) if token.is(given) => Ok(()),
        _ => Err(Error::AdminToken),
    }
}

fn find(method: &Method, path: &str) -> Result<Target, Error> {
    match path {
        "/metrics" => return Ok(Target::Metrics),
        "/health" => return Ok(Target::Health),
        "/admin/audit" => return users::Call::audit(method).map(Target::Users),
        _ => {}
    }
    if let Some(call) = plugins::Call::of_host(method, path) {
        return call.map(Target::Plugins);
    }
    let (is_plugin, rest) = match (
        path.strip_prefix("/admin/plugins"),
        path.strip_prefix("/admin/users"),
    ) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return Err(Error::NotFound),
    };
    let mut segments = rest.split('/');
    // Before the first slash: "/admin/usersx" is another path.
    if segments.next() != Some("") {
        return Err(Error::NotFound);
    }
    let who = segments.next().map(decode).transpose()?;
    let action = segments.next();
    if segments.next().is_some() || who.as_deref() == Some("") {
        return Err(Error::NotFound);
    }
    match is_plugin {
        true => plugins::Call::find(method, who, action).map(Target::Plugins),
        false => users::Call::find(method, who, action).map(Target::Users),
    }
}

fn decode(segment: &str) -> Result<String, Error> {
    let text = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| Error::InvalidPath("the path has an escape that is not UTF-8"))?;
    match text.contains('\0') {
        true => Err(Error::InvalidPath("the path has a NUL character")),
        false => Ok(text.into_owned()),
    }
}

/// Rendered apart from the requests: it asks the kernel, and may have thousands of lines.
async fn metrics_text(host: Arc<Host>) -> Result<Response<ReplyBody>, Error> {
    match tokio::task::spawn_blocking(move || metrics::render(&host)).await {
        Ok(text) => Ok(respond::text(metrics::CONTENT_TYPE, text)),
        Err(error) => Err(Error::Internal(format!(
            "the metrics could not be rendered: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataFolder;

    #[test]
    fn token_is_made_once_and_compared_whole() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataFolder::open(folder.path()).unwrap();
        let token = AdminToken::open(&data).unwrap();
        let text = std::fs::read_to_string(folder.path().join(TOKEN_FILE)).unwrap();
        let text = text.trim();
        assert_eq!(text.len(), 43, "256 bits");
        assert!(token.is(text) && AdminToken::open(&data).unwrap().is(text));
        for wrong in ["", "x", &text[1..], &format!("{text}x"), &text.to_lowercase()] {
            assert!(!token.is(wrong), "{wrong}");
        }
        assert_eq!(format!("{token:?}"), "AdminToken(Secret(..))");
        std::fs::write(folder.path().join(TOKEN_FILE), " \n").unwrap();
        let error = AdminToken::open(&data).unwrap_err().to_string();
        assert!(error.contains("is empty; delete it"), "{error}");
    }

    #[test]
    fn paths_lead_where_they_say() {
        let find = |method: &str, path: &str| super::find(&method.parse().unwrap(), path);
        assert!(matches!(find("GET", "/metrics"), Ok(Target::Metrics)));
        assert!(matches!(
            find("GET", "/admin/users"),
            Ok(Target::Users(users::Call::List))
        ));
        assert!(matches!(
            find("GET", "/admin/users/ada%40example.com"),
            Ok(Target::Users(users::Call::Show(who))) if who == "ada@example.com"
        ));
        assert!(matches!(
            find("DELETE", "/admin/users/x"),
            Ok(Target::Users(users::Call::Delete(_)))
        ));
        for path in [
            "/",
            "/admin",
            "/admin/usersx",
            "/admin/users/",
            "/admin/users//roles",
            "/admin/users/x/y",
            "/admin/users/x/roles/y",
        ] {
            assert!(matches!(find("GET", path), Err(Error::NotFound)), "{path}");
        }
        for (method, path, allow) in [
            ("POST", "/admin/users", "GET"),
            ("DELETE", "/admin/audit", "GET"),
            ("PUT", "/admin/users/x", "DELETE, GET"),
            ("GET", "/admin/users/x/roles", "POST"),
        ] {
            assert!(
                matches!(find(method, path), Err(Error::MethodNotAllowed { allow: a }) if a == allow),
                "{method} {path}"
            );
        }
        for path in ["/admin/users/%ff", "/admin/users/a%00b"] {
            assert!(matches!(find("GET", path), Err(Error::InvalidPath(_))), "{path}");
        }
    }
}
