//! What a request needs before anything is instantiated for it: a caller who may, a body within bounds, a plugin
//! that is loaded, and a place to run in.
//!
//! The body of a typed route is read before the place is taken, so that a slow upload holds no instance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{Request, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;
use uuid::Uuid;

use crate::admit::{Admission, Place};
use crate::dispatch::Target;
use crate::dispatch::auth::bindings::berth::policy::types::{Principal, RequestInfo, User};
use crate::dispatch::auth::bindings::exports::berth::policy::auth::Claims;
use crate::dispatch::auth::{self, AuthOp, Bearer};
use crate::dispatch::auth_json::Input;
use crate::dispatch::concurrent::SharedCall;
use crate::error::Error;
use crate::identity::{Identity, Unavailable};
use crate::respond::now_ms;
use crate::runtime::plugin::{Plugin, Version};
use crate::runtime::reload::canary::{Part, Side};
use crate::runtime::reuse::Reuse;
use crate::serve::Record;
use crate::state::{Access, Host, HostLimits};
use crate::table::Route;
use crate::tokens::TokenFault;

/// A request that may go on, with all that its call needs.
#[derive(Debug)]
pub enum Admitted {
    /// To the health report.
    Health,
    /// To the public keys.
    Jwks,
    /// To the `auth` policy.
    Auth(AuthCall),
    /// To a handler.
    Http(HttpCall),
    /// To a handler whose instances serve several requests at once.
    Shared(SharedCall),
}

/// A call of the `auth` policy.
#[derive(Debug)]
pub struct AuthCall {
    /// The policy.
    pub plugin: Arc<Plugin>,
    /// Its version.
    pub version: Arc<Version>,
    /// Which function.
    pub op: AuthOp,
    /// The decoded body, or the path's parameter.
    pub input: Input,
    /// Who calls, where that is needed.
    pub caller: Option<Principal>,
    /// What the policy is told of the request.
    pub info: RequestInfo,
    /// The place to run in.
    pub admission: Admission,
}

/// A call of a handler.
#[derive(Debug)]
pub struct HttpCall {
    /// The handler.
    pub plugin: Arc<Plugin>,
    /// Its version.
    pub version: Arc<Version>,
    /// As it came.
    pub request: Request<Incoming>,
    /// Who calls, where that is needed.
    pub caller: Option<Principal>,
    /// The place to run in.
    pub admission: Admission,
}

/// Let a request in, or say why not.
///
/// # Errors
/// No caller, a wrong or too large body, a plugin that isn't there, or no place.
pub async fn admit(
    host: &Arc<Host>,
    record: &mut Record,
    route: &Route,
    params: Vec<std::borrow::Cow<'_, str>>,
    request: Request<Incoming>,
) -> Result<Admitted, Error> {
    let caller = caller(host, record, route, &request).await?;
    match &route.target {
        Target::Health => Ok(Admitted::Health),
        Target::Jwks => Ok(Admitted::Jwks),
        Target::Http(plugin) => {
            let version = ready(plugin, record, caller.as_ref())?;
            if matches!(plugin.spec.reuse, Reuse::Concurrent { .. }) {
                let place = waited(
                    record,
                    &version,
                    plugin.slots.enter(plugin.spec.limits.wall),
                    Place::queued,
                )
                .await?;
                return Ok(Admitted::Shared(SharedCall {
                    plugin: Arc::clone(plugin),
                    version,
                    request,
                    caller,
                    place,
                }));
            }
            let admission = place(host, record, plugin, &version).await?;
            Ok(Admitted::Http(HttpCall {
                plugin: Arc::clone(plugin),
                version,
                request,
                caller,
                admission,
            }))
        }
        Target::Auth(plugin, op) => {
            // By address alone: the policy is asked before anybody knows who it is, and one caller gets one version.
            let version = ready(plugin, record, None)?;
            let info = info(record, &request);
            let input = if op.has_body() {
                let body = read_json(request, &host.limits).await?;
                version.metrics.received(body.len());
                Input::decode(*op, &body).map_err(Error::Json)?
            } else {
                params
                    .into_iter()
                    .next()
                    .map_or(Input::Nothing, |id| Input::Id(id.into_owned()))
            };
            attempt(host, record, &input, caller.as_ref())?;
            let admission = place(host, record, plugin, &version).await?;
            Ok(Admitted::Auth(AuthCall {
                plugin: Arc::clone(plugin),
                version,
                op: *op,
                input,
                caller,
                info,
                admission,
            }))
        }
    }
}

/// Somebody tries something that is limited: whatever carries a password or a token in its body.
fn attempt(host: &Host, record: &Record, input: &Input, caller: Option<&Principal>) -> Result<(), Error> {
    let account = match input {
        Input::Registration(it) => Some(it.email.as_str()),
        Input::Credentials(it) => Some(it.email.as_str()),
        Input::PasswordChange(_) => caller.map(|caller| caller.user_id.as_str()),
        Input::Token(_) => None,
        Input::Id(_) | Input::Nothing => return Ok(()),
    };
    host.attempts
        .admit(record.client(), account)
        .map_err(|wait| Error::TooManyAttempts { wait })
}

/// A place in the plugin's share, then an instance: an idle one, or the right to make one.
async fn place(
    host: &Host,
    record: &mut Record,
    plugin: &Plugin,
    version: &Version,
) -> Result<Admission, Error> {
    waited(
        record,
        version,
        find_place(host, plugin, version),
        Admission::queued,
    )
    .await
}

/// Note how long a request waited for a place, whether it got one or not.
async fn waited<T>(
    record: &mut Record,
    version: &Version,
    place: impl Future<Output = Result<T, Error>>,
    queued: impl Fn(&T) -> Duration,
) -> Result<T, Error> {
    let started = Instant::now();
    let place = place.await;
    // A place that was free has cost nothing; whoever is sent away has waited all the same.
    let time = place.as_ref().map_or_else(|_| started.elapsed(), queued);
    record.waited(time);
    version.metrics.queued(time);
    place
}

async fn find_place(host: &Host, plugin: &Plugin, version: &Version) -> Result<Admission, Error> {
    let mut place = plugin.slots.enter(plugin.spec.limits.wall).await?;
    if let Some(instance) = version.shelf.take() {
        return Ok(Admission::Idle { instance, place });
    }
    let started = Instant::now();
    let instance = host
        .instances
        .take(plugin.spec.limits.wall, || host.give_up_idle())
        .await?;
    place.waited(started.elapsed());
    Ok(Admission::Fresh { place, instance })
}

/// The version that answers a request, told to its record.
fn ready(
    plugin: &Arc<Plugin>,
    record: &mut Record,
    caller: Option<&Principal>,
) -> Result<Arc<Version>, Error> {
    match version(plugin, record, caller) {
        Ok((version, part)) => {
            record.goes_to(plugin, Some(&version));
            record.takes_part(part);
            Ok(version)
        }
        Err(error) => {
            record.goes_to(plugin, None);
            Err(error)
        }
    }
}

/// The version that answers a caller, and the trial that it is a part of: in a trial, a caller gets the same one every
/// time. Signed-in callers are known by their account, others by their address.
fn version(
    plugin: &Plugin,
    record: &Record,
    caller: Option<&Principal>,
) -> Result<(Arc<Version>, Option<Part>), Error> {
    let serving = plugin.serving();
    if serving.disabled {
        return Err(Error::PluginDisabled {
            plugin: plugin.name.clone(),
        });
    }
    let Ok(current) = &serving.current else {
        return Err(Error::PluginUnavailable {
            plugin: plugin.name.clone(),
        });
    };
    let Some(canary) = &serving.canary else {
        return Ok((Arc::clone(current), None));
    };
    let key = caller.map_or_else(|| record.client_ip(), |caller| caller.user_id.as_str());
    let (version, side) = match canary.trial.takes(key) {
        true => (&canary.version, Side::Candidate),
        false => (current, Side::Current),
    };
    let trial = Arc::clone(&canary.trial);
    Ok((Arc::clone(version), Some(Part { trial, side })))
}

/// Who calls: a token that the host finds valid, and a principal that the policy makes of its claims. Fails closed:
/// without a working `auth` policy nobody is anybody (503).
async fn caller(
    host: &Arc<Host>,
    record: &mut Record,
    route: &Route,
    request: &Request<Incoming>,
) -> Result<Option<Principal>, Error> {
    let role = match &route.access {
        Access::Public => return Ok(None),
        Access::User => None,
        Access::Role(role) => Some(role),
    };
    let plugin = route.auth.as_ref().ok_or(Error::AuthUnavailable)?;
    let chosen = version(plugin, record, None).map_err(|_| Error::AuthUnavailable)?;
    let (version, part) = (&chosen.0, &chosen.1);
    let mut given = request.headers().get_all(header::AUTHORIZATION).iter();
    let Some(first) = given.next() else {
        return Err(Error::Unauthenticated { token_given: false });
    };
    // Two of them: nobody can say whose the request is.
    let only = given.next().is_none().then_some(first);
    let token = only.and_then(|value| bearer(value.as_bytes()));
    let (Some(token), Some(verifier)) = (token, &host.services.tokens) else {
        return Err(Error::Unauthenticated { token_given: true });
    };
    let mut claims = verifier.verify(token).map_err(|fault| match fault {
        TokenFault::Invalid => Error::Unauthenticated { token_given: true },
        TokenFault::Expired => Error::TokenExpired,
    })?;
    // A policy that fails again and again gets a pause, which costs the database nothing.
    if version.callers.pauses() {
        return Err(Error::AuthUnavailable);
    }
    let ours = verifier.ring().is_some();
    if let (true, Some(identity)) = (ours, &host.services.identity) {
        claims.account = Some(account(identity, &claims).await?);
    }
    // Given back before the request's own place is asked for, so that the two can't wait for each other.
    let admission = place(host, record, plugin, version).await?;
    let started = Instant::now();
    let answered = auth::authenticate(
        host,
        record,
        plugin,
        version,
        admission,
        info(record, request),
        Bearer { claims, ours },
    )
    .await;
    if let Some(part) = part {
        let failed = matches!(answered, Err(Error::AuthUnavailable));
        part.trial.count(part.side, failed, started.elapsed());
    }
    let principal = answered?;
    match role {
        Some(role) if !principal.roles.contains(role) => Err(Error::Forbidden { role: role.clone() }),
        _ => Ok(Some(principal)),
    }
}

/// The account of a token's bearer, if the session is open, theirs, and they are active. What is no id of ours is
/// nobody's, like any token that isn't valid.
async fn account(identity: &Identity, claims: &Claims) -> Result<User, Error> {
    let nobody = Error::Unauthenticated { token_given: true };
    let id = |text: &str| Uuid::try_parse(text).ok();
    let (Some(session), Some(user)) = (id(&claims.session_id), id(&claims.subject)) else {
        return Err(nobody);
    };
    let account = identity.sessions.account(session, user).await;
    let account = account.map_err(|Unavailable| Error::DatabaseUnavailable)?;
    let account = account.ok_or(nobody)?;
    Ok(User {
        id: account.id.to_string(),
        email: account.email,
        email_verified: account.email_verified,
        name: account.name,
        roles: account.roles,
        created_at: account.created_at,
        updated_at: account.updated_at,
        mfa_enabled: account.mfa_enabled,
        active: account.active,
    })
}

/// The token of `Authorization: Bearer` (RFC 6750 section 2.1).
pub(crate) fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn info(record: &Record, request: &Request<Incoming>) -> RequestInfo {
    RequestInfo {
        request_id: record.id_text().to_owned(),
        client_ip: record.client_ip().to_owned(),
        user_agent: text(request, header::USER_AGENT),
        received_at: now_ms(),
    }
}

fn text(request: &Request<Incoming>, name: header::HeaderName) -> Option<String> {
    request.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// Read a JSON body whole: what it says it is first, then its declared size, then no more than the limit.
pub(crate) async fn read_json(request: Request<Incoming>, limits: &HostLimits) -> Result<Bytes, Error> {
    let given = request.headers().get(header::CONTENT_TYPE);
    if !given.is_some_and(|v| is_json(v.as_bytes())) {
        let given = given.map(|v| String::from_utf8_lossy(v.as_bytes()).chars().take(100).collect());
        return Err(Error::MediaType { given });
    }
    let mut body = request.into_body();
    let limit = limits.body_bytes;
    if body.size_hint().lower() > limit {
        return Err(Error::BodyTooLarge { limit });
    }
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    let mut size = 0u64;
    loop {
        let frame = timeout(limits.idle_time, body.frame())
            .await
            .map_err(|_| Error::BodyTimeout {
                after: limits.idle_time,
            })?;
        let Some(frame) = frame else { break };
        let Ok(data) = frame.map_err(|_| Error::BodyBroken)?.into_data() else {
            continue;
        };
        size = size.saturating_add(data.len() as u64);
        if size > limit {
            return Err(Error::BodyTooLarge { limit });
        }
        // Most bodies come in one piece and are not copied.
        if first.is_empty() {
            first = data;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&first);
            }
            more.extend_from_slice(&data);
        }
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}

/// `application/json`, in any case, with or without parameters.
fn is_json(value: &[u8]) -> bool {
    let kind = value.split(|&b| b == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_recognised_by_its_type_alone() {
        for yes in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            " application/json ;x",
        ] {
            assert!(is_json(yes.as_bytes()), "{yes}");
        }
        for no in [
            "",
            "text/json",
            "application/jsonx",
            "application/x-www-form-urlencoded",
            "text/plain",
        ] {
            assert!(!is_json(no.as_bytes()), "{no}");
        }
    }
}
