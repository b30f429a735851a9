//! `GET /health`: how the host and its plugins are. Takes no instance, so it answers while every worker has a
//! spinning guest.

use http::Response;
use serde::Serialize;

use crate::body::ReplyBody;
use crate::respond::{self, Success, now_ms};
use crate::state::Host;

#[derive(Serialize)]
struct Health<'a> {
    /// `healthy`, or `degraded` when a plugin could not be loaded.
    status: &'static str,
    version: &'static str,
    /// Seconds since the host was built.
    uptime: f64,
    /// Milliseconds since the Unix epoch.
    timestamp: u64,
    plugins: Vec<PluginHealth<'a>>,
}

#[derive(Serialize)]
struct PluginHealth<'a> {
    name: &'a str,
    /// `ready` or `failed`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    /// Why it failed, as a stable name; the sentence is in the log and in `berth check`.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

/// The report.
pub fn report(host: &Host) -> Response<ReplyBody> {
    let plugins: Vec<PluginHealth<'_>> = host
        .plugins
        .iter()
        .map(|plugin| match &plugin.current {
            Ok(version) => PluginHealth {
                name: &plugin.name,
                state: "ready",
                kind: Some(version.pre.kind()),
                version: Some(&version.digest),
                code: None,
            },
            Err(fault) => PluginHealth {
                name: &plugin.name,
                state: "failed",
                kind: None,
                version: None,
                code: Some(fault.code()),
            },
        })
        .collect();
    let failed = plugins.iter().any(|p| p.code.is_some());
    let health = Health {
        status: if failed { "degraded" } else { "healthy" },
        version: env!("CARGO_PKG_VERSION"),
        uptime: host.started.elapsed().as_secs_f64(),
        timestamp: now_ms(),
        plugins,
    };
    // Serialising these types can't fail.
    respond::json(Success::Done, serde_json::to_vec(&health).unwrap_or_default())
}
