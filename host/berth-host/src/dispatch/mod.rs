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
use crate::runtime::instance::Origin;
use crate::runtime::journal::{Line, Writer};
use crate::runtime::limits::Meter;
use crate::runtime::plugin::{Plugin, Version};
use crate::runtime::streak::LOOP;
use crate::serve::Record;
use crate::state::Host;
use crate::telemetry::GuestSpan;
use crate::tokens::{Verifier, jwks};
use crate::{health, respond};

/// What answers a route.
#[derive(Debug)]
pub enum Target {
    /// The host's own health report.
    Health,
    /// The public keys of tokens.
    Jwks,
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
        Admitted::Jwks => jwks(host),
        Admitted::Auth(call) => auth::call(host, record, call).await,
        Admitted::Http(call) => http::call(host, record, call).await,
        Admitted::Shared(call) => concurrent::call(host, record, call).await,
    }
}

fn jwks(host: &Host) -> Result<Response<ReplyBody>, Error> {
    let ring = host.services.tokens.as_ref().and_then(Verifier::ring);
    let ring =
        ring.ok_or_else(|| Error::Internal("there is a route to keys that aren't there".to_owned()))?;
    Ok(respond::public(jwks::CONTENT_TYPE, ring.jwks(), jwks::MAX_AGE))
}

/// What a guest's run costs, told to the metrics and the trace when the run is over, however it ends: CPU time that it
/// takes, and memory that it makes its own, after the answer count too. Requests that share an instance have none: nobody can
/// say whose its time and its memory are.
struct Bill {
    version: Arc<Version>,
    meter: Arc<Meter>,
    span: Option<Box<GuestSpan>>,
}

impl Bill {
    /// For a run that is about to begin. The guest's span is `record`'s.
    fn open(record: &Record, version: &Arc<Version>, meter: &Arc<Meter>) -> Self {
        Self {
            version: Arc::clone(version),
            meter: Arc::clone(meter),
            span: record.guest_span(),
        }
    }

    /// The run has ended by itself.
    fn close<T>(mut self, result: &Result<T, Error>) {
        if let Some(span) = self.span.take() {
            span.end(self.meter.spent(), Some(result.as_ref().map(|_| ())));
        }
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        let cpu = self.meter.spent();
        self.version.metrics.ran(cpu, self.meter.memory());
        if let Some(span) = self.span.take() {
            span.end(cpu, None);
        }
    }
}

/// Say once, in the log and the metrics, that a guest ended badly.
fn report(origin: &Origin, error: &Error) {
    let plugin = &origin.plugin;
    let (plugin_name, version, request_id) = (&plugin.name, &origin.version.digest, origin.request_id());
    match error {
        // What is nobody's fault is counted by the request's record.
        Error::Guest(Fault { trap, cause }) if !trap.is_blameless() => {
            origin.version.metrics.trap(*trap);
            let trap = trap.label();
            tracing::error!(
                target: "berth::plugin",
                plugin = plugin_name, version, request_id, trap,
                "a guest failed: {cause}",
            );
            let line = Line::new(
                tracing::Level::ERROR,
                Writer::Host,
                format!("a guest failed ({trap}): {cause}"),
            );
            plugin.ledger.journal.write(line.of(version, request_id));
            failed(origin);
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

/// A run of a version went well; say so when that ends a loop.
fn went_well(origin: &Origin) {
    if origin.version.streak.went_well() {
        tracing::info!(
            target: "berth::plugin",
            plugin = origin.plugin.name,
            version = origin.version.digest,
            "the plugin works again",
        );
    }
}

/// Count a failure of a version, and say when it is one of many in a row.
pub(crate) fn failed(origin: &Origin) {
    if origin.version.streak.failed() {
        tracing::error!(
            target: "berth::plugin",
            plugin = origin.plugin.name,
            version = origin.version.digest,
            code = "crash-loop",
            "the plugin has failed {LOOP} times in a row",
        );
    }
}

/// The fault of a guest that let the wall time pass.
fn too_late(what: &str, after: std::time::Duration) -> Fault {
    Fault::new(Trap::Wall, format!("{what} after {} ms", after.as_millis()))
}
