//! `GET /health`: how the host and its plugins are. Takes no instance, so it answers while every worker has a
//! spinning guest.

use http::Response;
use serde::Serialize;

use crate::body::ReplyBody;
use crate::respond::{self, Success, now_ms};
use crate::state::Host;

#[derive(Serialize)]
struct Health<'a> {
    /// `healthy`, or `degraded` when a plugin could not be loaded or Postgres can't be reached.
    status: &'static str,
    version: &'static str,
    /// Seconds since the host was built.
    uptime: f64,
    /// Milliseconds since the Unix epoch.
    timestamp: u64,
    plugins: Vec<PluginHealth<'a>>,
    /// Not there if the manifest needs no database.
    #[serde(skip_serializing_if = "Option::is_none")]
    postgres: Option<PostgresHealth<'a>>,
}

#[derive(Serialize)]
struct PostgresHealth<'a> {
    /// `ready` or `unreachable`, as of the last time it was asked: this report waits for nothing.
    state: &'static str,
    /// `private` or `server`.
    kind: &'static str,
    version: &'a str,
}

#[derive(Serialize)]
struct PluginHealth<'a> {
    name: &'a str,
    /// `ready`, `failed`, or `disabled` by an operator.
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
    let table = host.table.load();
    let serving: Vec<_> = table
        .plugins
        .iter()
        .map(|plugin| (plugin, plugin.serving()))
        .collect();
    let plugins: Vec<PluginHealth<'_>> = serving
        .iter()
        .map(|(plugin, serving)| match &serving.current {
            Ok(version) if serving.disabled => PluginHealth {
                name: &plugin.name,
                state: "disabled",
                kind: Some(version.pre.kind()),
                version: Some(&version.digest),
                code: None,
            },
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
    let postgres = host.services.postgres.as_deref().map(|postgres| PostgresHealth {
        state: if postgres.is_reachable() {
            "ready"
        } else {
            "unreachable"
        },
        kind: postgres.kind(),
        version: postgres.version(),
    });
    let failed = plugins.iter().any(|p| p.code.is_some())
        || postgres
            .as_ref()
            .is_some_and(|postgres| postgres.state != "ready");
    let health = Health {
        status: if failed { "degraded" } else { "healthy" },
        version: env!("CARGO_PKG_VERSION"),
        uptime: host.started.elapsed().as_secs_f64(),
        timestamp: now_ms(),
        plugins,
        postgres,
    };
    // Serialising these types can't fail.
    respond::json(Success::Done, serde_json::to_vec(&health).unwrap_or_default())
}
