//! The `auth` policy: which routes it has, and one call of one of its functions.

use std::sync::Arc;

use http::{Method, Response};
use tokio::time::timeout;
use uuid::Uuid;

use super::auth_json::{Input, Output};
use super::{Bill, report, too_late, went_well};
use crate::admit::Admission;
use crate::body::ReplyBody;
use crate::error::{Error, FieldError, PolicyProblem};
use crate::gate::AuthCall;
use crate::identity::audit::{Entry, Pending};
use crate::identity::users::{MAX_ROLE, MAX_ROLES, is_role};
use crate::respond::{self, Success};
use crate::runtime::instance::{Ctx, Exports, Instance, Origin};
use crate::runtime::limits::Meter;
use crate::runtime::plugin::{Plugin, Version};
use crate::runtime::trap;
use crate::runtime::turns::metered;
use crate::serve::Record;
use crate::state::Host;
use bindings::AuthPolicy;
use bindings::berth::policy::types::{Principal, Problem, RequestInfo};
use bindings::exports::berth::policy::auth::Claims;
use wasmtime::Store;

/// Generated from `wit/policy`.
#[allow(missing_docs, reason = "generated from WIT, which has the docs")]
pub mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/policy",
        world: "auth-policy",
        imports: { default: trappable },
        exports: { default: async },
        require_store_data_send: true,
        with: { "berth:host": crate::caps::bindings::berth::host },
    });
}

/// One function of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthOp {
    /// `register`
    Register,
    /// `login`
    Login,
    /// `refresh`
    Refresh,
    /// `logout`
    Logout,
    /// `me`
    Me,
    /// `change-password`
    ChangePassword,
    /// `verify-email`
    VerifyEmail,
    /// `sessions`
    Sessions,
    /// `revoke`
    Revoke,
}

impl AuthOp {
    /// Whether somebody must be signed in.
    pub const fn needs_caller(self) -> bool {
        !matches!(
            self,
            Self::Register | Self::Login | Self::Refresh | Self::VerifyEmail
        )
    }

    /// What it is called in the audit; nothing for what only reads.
    const fn action(self) -> Option<&'static str> {
        match self {
            Self::Register => Some("register"),
            Self::Login => Some("login"),
            Self::Refresh => Some("refresh"),
            Self::Logout => Some("logout"),
            Self::ChangePassword => Some("change-password"),
            Self::VerifyEmail => Some("verify-email"),
            Self::Revoke => Some("revoke"),
            Self::Me | Self::Sessions => None,
        }
    }

    /// Whether a JSON body is read.
    pub const fn has_body(self) -> bool {
        matches!(
            self,
            Self::Register | Self::Login | Self::Refresh | Self::VerifyEmail | Self::ChangePassword
        )
    }
}

/// One route of the policy.
#[derive(Debug)]
pub struct AuthRoute {
    /// Its method.
    pub method: Method,
    /// Its pattern.
    pub path: &'static str,
    /// What it calls.
    pub op: AuthOp,
}

/// Every route of the policy. `signup`, `/api/v1/auth/me` and `/api/v1/auth/profile` are the names that existing
/// clients use.
pub const AUTH_ROUTES: &[AuthRoute] = &[
    AuthRoute {
        method: Method::POST,
        path: "/api/v1/auth/register",
        op: AuthOp::Register,
    },
    AuthRoute {
        method: Method::POST,
        path: "/api/v1/auth/signup",
        op: AuthOp::Register,
    },
    AuthRoute {
        method: Method::POST,
        path: "/api/v1/auth/login",
        op: AuthOp::Login,
    },
    AuthRoute {
        method: Method::POST,
        path: "/api/v1/auth/refresh",
        op: AuthOp::Refresh,
    },
    AuthRoute {
        method: Method::POST,
        path: "/api/v1/auth/logout",
        op: AuthOp::Logout,
    },
    AuthRoute {
        method: Method::POST,
        path: "/api/v1/auth/verify-email",
        op: AuthOp::VerifyEmail,
    },
    AuthRoute {
        method: Method::GET,
        path: "/api/v1/me",
        op: AuthOp::Me,
    },
    AuthRoute {
        method: Method::GET,
        path: "/api/v1/auth/me",
        op: AuthOp::Me,
    },
    AuthRoute {
        method: Method::GET,
        path: "/api/v1/auth/profile",
        op: AuthOp::Me,
    },
    AuthRoute {
        method: Method::PATCH,
        path: "/api/v1/me/password",
        op: AuthOp::ChangePassword,
    },
    AuthRoute {
        method: Method::GET,
        path: "/api/v1/auth/sessions",
        op: AuthOp::Sessions,
    },
    AuthRoute {
        method: Method::DELETE,
        path: "/api/v1/auth/sessions/{id}",
        op: AuthOp::Revoke,
    },
];

/// Call the policy.
///
/// # Errors
/// The policy's own refusal, or its failure.
pub async fn call(
    host: &Arc<Host>,
    record: &mut Record,
    call: AuthCall,
) -> Result<Response<ReplyBody>, Error> {
    let AuthCall {
        plugin,
        version,
        op,
        input,
        caller,
        info,
        admission,
    } = call;
    let meter = Arc::new(Meter::new(
        plugin.spec.limits.cpu,
        Arc::clone(&host.runtime.turns),
    ));
    record.runs(&meter);
    let bill = Bill::open(record, &version, &meter);
    let origin = Arc::new(Origin::new(
        plugin,
        version,
        record.id().clone(),
        record.client(),
        record.is_secure(),
    ));
    let pending = begin(host, record, &origin, op, &input, caller.as_ref());
    let answered = perform(host, &origin, &meter, bill, admission, async |instance| {
        invoke(instance, &origin.version, op, info, caller, input).await
    });
    let answered = match answered.await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(problem)) => Err(Error::Problem(refusal(problem))),
        Err(error) => Err(error),
    };
    if let Some(pending) = pending {
        match &answered {
            Ok(output) => {
                let user = output.user();
                let id = user.and_then(|user| Uuid::try_parse(&user.id).ok());
                pending.ended("ok".into(), id, user.map(|user| user.email.clone()));
            }
            Err(error) => pending.ended(respond::answer(error).code, None, None),
        }
    }
    encode(op, &answered?)
}

/// The row of the audit, where there is one.
fn begin<'h>(
    host: &'h Host,
    record: &Record,
    origin: &Origin,
    op: AuthOp,
    input: &Input,
    caller: Option<&Principal>,
) -> Option<Pending<'h>> {
    let (audit, action) = (host.services.audit.as_ref()?, op.action()?);
    let account = match input {
        Input::Registration(it) => Some(it.email.clone()),
        Input::Credentials(it) => Some(it.email.clone()),
        _ => caller.map(|caller| caller.email.clone()),
    };
    let entry = Entry {
        action,
        user: caller.and_then(|caller| Uuid::try_parse(&caller.user_id).ok()),
        account,
        actor: caller.map(|caller| caller.user_id.clone()),
        client_ip: record.client_ip().to_owned(),
        request_id: record.id_text().to_owned(),
        plugin: Some(origin.plugin.name.clone()),
        digest: Some(origin.version.digest.clone()),
        ..Entry::default()
    };
    Some(Pending::new(audit, entry))
}

/// Who shows a valid token.
#[derive(Debug)]
pub struct Bearer {
    /// What it says.
    pub claims: Claims,
    /// The host issued it: what the policy makes of it must be the same user in the same session.
    pub ours: bool,
}

/// Ask the policy who the bearer of a valid token is.
///
/// # Errors
/// The policy's own refusal; [`Error::AuthUnavailable`] if it fails, or says something that can't be passed on.
pub async fn authenticate(
    host: &Arc<Host>,
    record: &Record,
    plugin: &Arc<Plugin>,
    version: &Arc<Version>,
    admission: Admission,
    info: RequestInfo,
    Bearer { claims, ours }: Bearer,
) -> Result<Principal, Error> {
    let meter = Arc::new(Meter::new(
        plugin.spec.limits.cpu,
        Arc::clone(&host.runtime.turns),
    ));
    let origin = Arc::new(Origin::new(
        Arc::clone(plugin),
        Arc::clone(version),
        record.id().clone(),
        record.client(),
        record.is_secure(),
    ));
    let bill = Bill::open(record, version, &meter);
    let answered = perform(host, &origin, &meter, bill, admission, async |instance| {
        let (store, policy) = ready(instance, version).await?;
        policy
            .berth_policy_auth()
            .call_authenticate(store, &info, &claims)
            .await
    });
    let answered = answered.await;
    match &answered {
        Ok(_) => _ = version.callers.went_well(),
        Err(_) => _ = version.callers.failed(),
    }
    match answered {
        Ok(Ok(principal)) if ours && !is_same(&principal, &claims) => {
            tracing::error!(
                target: "berth::plugin",
                plugin = plugin.name,
                version = version.digest,
                request_id = record.id_text(),
                "the auth policy made somebody else of a token's bearer: user-id and session-id must be those of the claims",
            );
            Err(Error::AuthUnavailable)
        }
        Ok(Ok(principal)) if is_usable(&principal) => Ok(principal),
        Ok(Ok(_)) => {
            tracing::error!(
                target: "berth::plugin",
                plugin = plugin.name,
                version = version.digest,
                request_id = record.id_text(),
                "the auth policy gave a principal that can't be passed on: ids are 1 to {MAX_ID} visible ASCII characters, roles 1 to {MAX_ROLE} letters, digits and \"._:-\", at most {MAX_ROLES}",
            );
            Err(Error::AuthUnavailable)
        }
        Ok(Err(problem)) => Err(Error::Problem(refusal(problem))),
        // Reported already.
        Err(_) => Err(Error::AuthUnavailable),
    }
}

/// The longest id and e-mail address of a principal, in bytes.
const MAX_ID: usize = 320;

fn is_same(principal: &Principal, claims: &Claims) -> bool {
    principal.user_id == claims.subject && principal.session_id == claims.session_id
}

/// Ids and roles become headers of the request; a comma stands between two roles.
fn is_usable(principal: &Principal) -> bool {
    let id = |text: &str| (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    id(&principal.user_id)
        && id(&principal.session_id)
        && principal.email.len() <= MAX_ID
        && principal.roles.len() <= MAX_ROLES
        && principal.roles.iter().all(|role| is_role(role))
}

/// One call within the plugin's limits. An instance that answered goes back to its shelf; one that failed is dropped,
/// and the failure reported.
async fn perform<T>(
    host: &Host,
    origin: &Arc<Origin>,
    meter: &Arc<Meter>,
    bill: Bill,
    admission: Admission,
    call: impl AsyncFnOnce(&mut Instance) -> wasmtime::Result<T>,
) -> Result<T, Error> {
    let wall = origin.plugin.spec.limits.wall;
    let mut instance = Instance::obtain(&host.runtime, Arc::clone(origin), meter, admission);
    let error = match timeout(wall, metered(meter, call(&mut instance))).await {
        Ok(Ok(answer)) => {
            went_well(origin);
            bill.close(&Ok(()));
            instance.release(&origin.version, &host.instances);
            return Ok(answer);
        }
        Ok(Err(error)) => trap::classify(&error, meter),
        Err(_) => Error::Guest(too_late("the policy had not answered", wall)),
    };
    report(origin, &error);
    let result = Err(error);
    bill.close(&result);
    result
}

/// The instance, started.
async fn ready<'i>(
    instance: &'i mut Instance,
    version: &Version,
) -> wasmtime::Result<(&'i mut Store<Ctx>, &'i AuthPolicy)> {
    instance.start(&version.pre).await?;
    match instance {
        Instance {
            store,
            exports: Some(Exports::Auth(policy)),
            ..
        } => Ok((store, policy)),
        _ => Err(wasmtime::Error::msg(
            "the auth route leads to a plugin that is no auth policy",
        )),
    }
}

async fn invoke(
    instance: &mut Instance,
    version: &Version,
    op: AuthOp,
    info: RequestInfo,
    caller: Option<Principal>,
    input: Input,
) -> wasmtime::Result<Result<Output, Problem>> {
    let (store, policy) = ready(instance, version).await?;
    let auth = policy.berth_policy_auth();
    let caller = caller.as_ref();
    Ok(match (op, input, caller) {
        (AuthOp::Register, Input::Registration(it), _) => {
            auth.call_register(store, &info, &it).await?.map(Output::Session)
        }
        (AuthOp::Login, Input::Credentials(it), _) => {
            auth.call_login(store, &info, &it).await?.map(Output::Session)
        }
        (AuthOp::Refresh, Input::Token(it), _) => {
            auth.call_refresh(store, &info, &it).await?.map(Output::Session)
        }
        (AuthOp::VerifyEmail, Input::Token(it), _) => {
            auth.call_verify_email(store, &info, &it).await?.map(Output::User)
        }
        (AuthOp::Logout, _, Some(who)) => auth
            .call_logout(store, &info, who)
            .await?
            .map(|()| Output::LoggedOut),
        (AuthOp::Me, _, Some(who)) => auth.call_me(store, &info, who).await?.map(Output::User),
        (AuthOp::ChangePassword, Input::PasswordChange(it), Some(who)) => auth
            .call_change_password(store, &info, who, &it)
            .await?
            .map(|()| Output::PasswordChanged),
        (AuthOp::Sessions, _, Some(who)) => {
            auth.call_sessions(store, &info, who).await?.map(Output::Sessions)
        }
        (AuthOp::Revoke, Input::Id(id), Some(who)) => auth
            .call_revoke(store, &info, who, &id)
            .await?
            .map(|()| Output::Revoked(id)),
        // The gate decodes what the operation takes and lets nobody through without a caller.
        _ => return Err(wasmtime::Error::msg("an auth call without its input or caller")),
    })
}

fn encode(op: AuthOp, output: &Output) -> Result<Response<ReplyBody>, Error> {
    let success = if op == AuthOp::Register {
        Success::Created
    } else {
        Success::Done
    };
    let body = output
        .to_json()
        .map_err(|e| Error::Internal(format!("an answer could not be encoded: {e}")))?;
    Ok(respond::json(success, body))
}

fn refusal(problem: Problem) -> PolicyProblem {
    PolicyProblem {
        status: problem.status,
        code: problem.code,
        detail: problem.detail,
        retry_after: problem.retry_after,
        fields: problem
            .fields
            .into_iter()
            .map(|f| FieldError {
                pointer: f.pointer,
                detail: f.detail,
            })
            .collect(),
    }
}
