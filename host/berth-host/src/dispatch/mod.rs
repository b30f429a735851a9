//! Calling what a route leads to. One module per kind of target; each makes an instance, calls it within its limits,
//! and gives back an answer or a typed error.

pub mod auth;
pub mod auth_json;
pub mod concurrent;
pub mod http;

use std::sync::Arc;

use ::http::Response;

use crate::body::ReplyBody;
use crate::error::{Error, Fault, Trap};
use crate::gate::Admitted;
use crate::health;
use crate::runtime::instance::Origin;
use crate::runtime::plugin::Plugin;
use crate::serve::Record;
use crate::state::Host;

/// What answers a route.
#[derive(Debug)]
pub enum Target {
    /// The host's own health report.
    Health,
    /// A function of the `auth` policy.
    Auth(Arc<Plugin>, auth::AuthOp),
    /// A `wasi:http` handler.
    Http(Arc<Plugin>),
}

/// Answer an admitted request.
///
/// # Errors
/// Whatever keeps the target from an answer.
pub async fn call(
    host: &Arc<Host>,
    record: &mut Record,
    admitted: Admitted,
) -> Result<Response<ReplyBody>, Error> {
    match admitted {
        Admitted::Health => Ok(health::report(host)),
        Admitted::Auth(call) => auth::call(host, record, call).await,
        Admitted::Http(call) => http::call(host, record, call).await,
        Admitted::Shared(call) => concurrent::call(host, record, call).await,
    }
}

/// Say once, in the log and the metrics, that a guest ended badly.
fn report(origin: &Origin, error: &Error) {
    let plugin = &origin.plugin;
    let (plugin_name, version, request_id) = (&plugin.name, &origin.version.digest, origin.request_id());
    match error {
        Error::Guest(Fault { trap, cause }) => {
            plugin.metrics.trap(*trap);
            if !trap.is_blameless() {
                let trap = trap.label();
                tracing::error!(
                    target: "berth::plugin",
                    plugin = plugin_name, version, request_id, trap,
                    "a guest failed: {cause}",
                );
            }
        }
        Error::Internal(cause) => {
            tracing::error!(
                target: "berth::plugin",
                plugin = plugin_name, version, request_id,
                "the host failed a guest: {cause}",
            );
        }
        _ => {}
    }
}

/// The fault of a guest that let the wall time pass.
fn too_late(what: &str, after: std::time::Duration) -> Fault {
    Fault::new(Trap::Wall, format!("{what} after {} ms", after.as_millis()))
}
