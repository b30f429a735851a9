//! `/admin/plugins` and `/admin/events`: what is served, what becomes of it, and how it is changed. `berth plugin` is the
//! client.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::live::{self, Sendable};
use super::query;
use crate::body::ReplyBody;
use crate::error::{Error, FieldError};
use crate::gate::read_json;
use crate::respond::{self, Success};
use crate::runtime::journal::Line;
use crate::runtime::load::MAX_COMPONENT;
use crate::runtime::plugin::{Plugin, Serving, Version};
use crate::runtime::reload::Change;
use crate::runtime::reload::canary::{Bounds, Counts, Share, SideReport};
use crate::runtime::reload::events::{Event, Kind, Usage};
use crate::runtime::reload::kept::State;
use crate::runtime::reuse::Reuse;
use crate::runtime::signature::MAX_SIGNATURE;
use crate::state::{Host, HostLimits};

/// The header with the signature of a component that is sent: the text of its `.minisig` file in base64.
pub const SIGNATURE: &str = "berth-signature";
/// Events or lines that are given if nobody says how many.
const PAGE: usize = 100;
/// The most of them.
const MAX_PAGE: u64 = 500;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    List,
    Show(String),
    Logs(String),
    Deploy(String),
    RollBack(String),
    Promote(String),
    SetDisabled(String, bool),
    Events,
    Reload,
}

impl Call {
    /// `/admin/plugins`, and below.
    pub(super) fn find(method: &Method, name: Option<String>, action: Option<&str>) -> Result<Self, Error> {
        let only = |allowed: Method, call: Self| match *method == allowed {
            true => Ok(call),
            false => Err(Error::MethodNotAllowed {
                allow: allowed.to_string(),
            }),
        };
        match (name, action) {
            (None, _) => only(Method::GET, Self::List),
            (Some(name), None) => only(Method::GET, Self::Show(name)),
            (Some(name), Some("logs")) => only(Method::GET, Self::Logs(name)),
            (Some(name), Some("deploy")) => only(Method::POST, Self::Deploy(name)),
            (Some(name), Some("rollback")) => only(Method::POST, Self::RollBack(name)),
            (Some(name), Some("promote")) => only(Method::POST, Self::Promote(name)),
            (Some(name), Some("disable")) => only(Method::POST, Self::SetDisabled(name, true)),
            (Some(name), Some("enable")) => only(Method::POST, Self::SetDisabled(name, false)),
            (Some(_), Some(_)) => Err(Error::NotFound),
        }
    }

    /// `/admin/events` and `/admin/reload`.
    pub(super) fn of_host(method: &Method, path: &str) -> Option<Result<Self, Error>> {
        let (allowed, call) = match path {
            "/admin/events" => (Method::GET, Self::Events),
            "/admin/reload" => (Method::POST, Self::Reload),
            _ => return None,
        };
        Some(match *method == allowed {
            true => Ok(call),
            false => Err(Error::MethodNotAllowed {
                allow: allowed.to_string(),
            }),
        })
    }
}

pub(super) async fn call(
    host: &Arc<Host>,
    call: Call,
    request: Request<Incoming>,
    stop: CancellationToken,
) -> Result<Response<ReplyBody>, Error> {
    let change = match call {
        Call::List => {
            let table = host.table.load_full();
            let plugins = table
                .plugins
                .iter()
                .map(|plugin| PluginJson::of(host, plugin))
                .collect();
            return json(&PluginsJson { plugins });
        }
        Call::Show(name) => return json(&PluginJson::of(host, plugin(host, &name)?.as_ref())),
        Call::Logs(name) => return logs(plugin(host, &name)?.as_ref(), &request, stop),
        Call::Events => return events(host, &request, stop),
        Call::Deploy(name) => {
            // Before the upload, which is long.
            plugin(host, &name)?;
            deploy(name, request, &host.limits).await?
        }
        Call::RollBack(plugin) => Change::RollBack {
            to: Target::decode(&read_json(request, &host.limits).await?)?,
            plugin,
        },
        Call::Promote(plugin) => Change::Promote { plugin },
        Call::SetDisabled(plugin, disabled) => Change::SetDisabled { plugin, disabled },
        Call::Reload => Change::Manifest,
    };
    json(&*host.reload.ask(change).await?)
}

fn plugin(host: &Host, name: &str) -> Result<Arc<Plugin>, Error> {
    let found = host.table.load().plugin(name).cloned();
    found.ok_or_else(|| Error::NoPlugin {
        name: name.to_owned(),
    })
}

fn json(value: &impl Serialize) -> Result<Response<ReplyBody>, Error> {
    let body = serde_json::to_vec(value)
        .map_err(|error| Error::Internal(format!("an answer could not be encoded: {error}")))?;
    Ok(respond::json(Success::Done, body))
}

/// Whether the client wants a stream.
fn is_live(request: &Request<Incoming>) -> bool {
    let accept = request.headers().get_all(header::ACCEPT).iter();
    accept
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("text/event-stream"))
}

impl Sendable for Event {
    fn name(&self) -> &str {
        self.kind.key()
    }

    fn number(&self) -> Option<u64> {
        Some(self.seq)
    }
}

impl Sendable for Line {
    fn name(&self) -> &str {
        self.level
    }

    fn number(&self) -> Option<u64> {
        None
    }
}

fn events(
    host: &Host,
    request: &Request<Incoming>,
    stop: CancellationToken,
) -> Result<Response<ReplyBody>, Error> {
    let (mut of, mut limit) = (None, None);
    for (name, value) in query::pairs(request.uri().query())? {
        match name.as_str() {
            "plugin" => of = Some(value).filter(|value| !value.is_empty()),
            "limit" => limit = Some(query::number("limit", &value, 0, MAX_PAGE)? as usize),
            _ => {
                return Err(Error::InvalidParameter(
                    "there is plugin and limit, and nothing else".to_owned(),
                ));
            }
        }
    }
    if !is_live(request) {
        let events = host.events.last(of.as_deref(), limit.unwrap_or(PAGE));
        return json(&EventsJson {
            events: events.iter().map(AsRef::as_ref).collect(),
        });
    }
    // Only what is to come, unless more is asked for.
    let live = host.events.follow();
    let mut before = host.events.last(of.as_deref(), limit.unwrap_or(0));
    before.reverse();
    let last = before.last().map_or(0, |event| event.seq);
    let wanted = move |event: &Event| {
        event.seq > last && of.as_ref().is_none_or(|of| event.plugin.as_ref() == Some(of))
    };
    Ok(respond::live(live::stream(before, live, wanted, stop)))
}

fn logs(
    plugin: &Plugin,
    request: &Request<Incoming>,
    stop: CancellationToken,
) -> Result<Response<ReplyBody>, Error> {
    let mut limit = PAGE;
    for (name, value) in query::pairs(request.uri().query())? {
        match name.as_str() {
            "limit" => limit = query::number("limit", &value, 0, MAX_PAGE)? as usize,
            _ => {
                return Err(Error::InvalidParameter(
                    "there is limit, and nothing else".to_owned(),
                ));
            }
        }
    }
    let (lines, live) = plugin.ledger.journal.follow(limit);
    if is_live(request) {
        return Ok(respond::live(live::stream(lines, live, |_| true, stop)));
    }
    json(&LinesJson {
        lines: lines.iter().map(AsRef::as_ref).collect(),
    })
}

/// A component that is sent, and what is to become of it.
async fn deploy(plugin: String, request: Request<Incoming>, limits: &HostLimits) -> Result<Change, Error> {
    let (mut share, mut bounds) = (None, Bounds::default());
    for (name, value) in query::pairs(request.uri().query())? {
        match name.as_str() {
            "canary" => {
                let parsed = value.parse::<Share>();
                share = Some(parsed.map_err(|error| Error::InvalidParameter(format!("canary: {error}")))?);
            }
            "promoteAfter" => bounds.promote_after = query::number("promoteAfter", &value, 1, 1_000_000_000)?,
            _ => {
                return Err(Error::InvalidParameter(
                    "there is canary and promoteAfter, and nothing else".to_owned(),
                ));
            }
        }
    }
    if share.is_none() && bounds != Bounds::default() {
        return Err(Error::InvalidParameter(
            "promoteAfter means nothing without canary".to_owned(),
        ));
    }
    let signature = match request.headers().get(SIGNATURE) {
        None => None,
        Some(value) => {
            let bytes = STANDARD
                .decode(value.as_bytes())
                .ok()
                .filter(|bytes| bytes.len() as u64 <= MAX_SIGNATURE);
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
            Some(text.ok_or(Error::InvalidHead("berth-signature is not the base64 of a text"))?)
        }
    };
    Ok(Change::Deploy {
        plugin,
        bytes: read_component(request, limits).await?,
        signature,
        canary: share.map(|share| (share, bounds)),
    })
}

/// Read a component whole: what it says it is first, then its declared size, then no more than the limit.
async fn read_component(request: Request<Incoming>, limits: &HostLimits) -> Result<Vec<u8>, Error> {
    let given = request.headers().get(header::CONTENT_TYPE);
    let is_wasm = given.is_some_and(|kind| {
        kind.as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/wasm")
    });
    if !is_wasm {
        return Err(Error::InvalidHead(
            "a component is sent as Content-Type: application/wasm",
        ));
    }
    let mut body = request.into_body();
    let limit = MAX_COMPONENT;
    let declared = body.size_hint();
    if declared.lower() > limit {
        return Err(Error::BodyTooLarge { limit });
    }
    let mut bytes = Vec::with_capacity(declared.exact().unwrap_or(0) as usize);
    while let Some(frame) = timeout(limits.idle_time, body.frame())
        .await
        .map_err(|_| Error::BodyTimeout {
            after: limits.idle_time,
        })?
    {
        let Ok(data) = frame.map_err(|_| Error::BodyBroken)?.into_data() else {
            continue;
        };
        if (bytes.len() + data.len()) as u64 > limit {
            return Err(Error::BodyTooLarge { limit });
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// The body of a rollback.
#[derive(Debug, Deserialize)]
struct Target {
    #[serde(default)]
    to: Option<String>,
}

impl Target {
    fn decode(body: &[u8]) -> Result<Option<String>, Error> {
        let target: Self = serde_json::from_slice(body).map_err(|error| {
            Error::Json(vec![FieldError {
                pointer: String::new(),
                detail: format!("it is not {{to}}: {error}"),
            }])
        })?;
        Ok(target.to.filter(|to| !to.is_empty()))
    }
}

#[derive(Serialize)]
struct PluginsJson {
    plugins: Vec<PluginJson>,
}

#[derive(Serialize)]
struct EventsJson<'a> {
    events: Vec<&'a Event>,
}

#[derive(Serialize)]
struct LinesJson<'a> {
    lines: Vec<&'a Line>,
}

/// A plugin as an operator sees it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PluginJson {
    name: String,
    /// `ready`, `failed`, or `disabled`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<FaultJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    /// Where its file is.
    component: String,
    /// Bytes of the component.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<usize>,
    /// Bytes of its machine code.
    #[serde(skip_serializing_if = "Option::is_none")]
    code_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_by: Option<String>,
    imports: Vec<String>,
    grants: Vec<String>,
    reuse: &'static str,
    limits: LimitsJson,
    instances: InstancesJson,
    /// Versions whose last requests have not ended yet.
    draining: usize,
    versions: Vec<KeptJson>,
    requests: RequestsJson,
    traps: serde_json::Map<String, serde_json::Value>,
    latency: LatencyJson,
    cpu: CpuJson,
    memory: MemoryJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    canary: Option<CanaryJson>,
    /// What decides a trial: the one that runs, or the next one.
    canary_bounds: Bounds,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_event: Option<Event>,
}

#[derive(Serialize)]
struct FaultJson {
    code: &'static str,
    detail: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LimitsJson {
    memory: usize,
    cpu_ms: u64,
    wall_ms: u64,
    concurrency: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InstancesJson {
    in_flight: usize,
    queued: u32,
    idle: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeptJson {
    digest: String,
    size: u64,
    loaded_at: u64,
    by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_by: Option<String>,
    current: bool,
}

#[derive(Serialize)]
struct RequestsJson {
    total: u64,
    failed: u64,
    unfinished: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LatencyJson {
    p50_us: u64,
    p99_us: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuJson {
    mean_us: u64,
    p99_us: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemoryJson {
    mean_bytes: u64,
    max_bytes: u64,
}

#[derive(Serialize)]
struct CanaryJson {
    digest: String,
    share: Share,
    #[serde(flatten)]
    candidate: SideReport,
    current: SideReport,
    /// What the current version did before.
    known: Counts,
}

impl PluginJson {
    fn of(host: &Host, plugin: &Plugin) -> Self {
        let serving = plugin.serving();
        let current = serving.current.as_ref().ok();
        let state = host.services.state_of(&plugin.name);
        let usage = current.map(|version| Usage::of(&version.digest, &version.metrics));
        let limits = plugin.spec.limits;
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let usage = |read: fn(&Usage) -> u64| usage.as_ref().map_or(0, read);
        Self {
            name: plugin.name.clone(),
            state: state_of(&serving),
            fault: serving.current.as_ref().err().map(|fault| FaultJson {
                code: fault.code(),
                detail: fault.to_string(),
            }),
            kind: current.map(|version| version.pre.kind()),
            policy: plugin.spec.policy.map(crate::runtime::plugin::Policy::key),
            version: current.map(|version| version.digest.clone()),
            digest: current.map(|version| version.sha256.clone()),
            component: plugin.spec.component.display().to_string(),
            size: current.map(|version| version.size),
            code_bytes: current.map(|version| version.pre.code_bytes()),
            signed_by: current.and_then(|version| version.signed_by.clone()),
            imports: current.map(|version| version.imports.clone()).unwrap_or_default(),
            grants: plugin.spec.grants.names(),
            reuse: match plugin.spec.reuse {
                Reuse::None => "none",
                Reuse::Serial { .. } => "serial",
                Reuse::Concurrent { .. } => "concurrent",
            },
            limits: LimitsJson {
                memory: limits.memory,
                cpu_ms: ms(limits.cpu),
                wall_ms: ms(limits.wall),
                concurrency: limits.concurrency,
            },
            instances: InstancesJson {
                in_flight: plugin.slots.running(),
                queued: plugin.slots.waiting(),
                idle: serving.versions().map(idle).sum(),
            },
            draining: plugin.ledger.alive().saturating_sub(serving.versions().count()),
            versions: kept(&state, current),
            requests: RequestsJson {
                total: current.map_or(0, |version| version.metrics.requests_answered()),
                failed: current.map_or(0, |version| version.metrics.requests_failed()),
                unfinished: current.map_or(0, |version| version.metrics.requests_unfinished()),
            },
            traps: current
                .into_iter()
                .flat_map(|version| version.metrics.traps())
                .filter(|(_, n)| *n > 0)
                .map(|(label, n)| (label.to_owned(), n.into()))
                .collect(),
            latency: LatencyJson {
                p50_us: usage(|it| it.p50_us),
                p99_us: usage(|it| it.p99_us),
            },
            cpu: CpuJson {
                mean_us: usage(|it| it.cpu_mean_us),
                p99_us: usage(|it| it.cpu_p99_us),
            },
            memory: MemoryJson {
                mean_bytes: usage(|it| it.memory_mean_bytes),
                max_bytes: usage(|it| it.memory_max_bytes),
            },
            canary: serving.canary.as_ref().map(|canary| {
                let report = canary.trial.report();
                CanaryJson {
                    digest: canary.version.digest.clone(),
                    share: report.share,
                    candidate: report.candidate,
                    current: report.current,
                    known: report.known,
                }
            }),
            canary_bounds: serving
                .canary
                .as_ref()
                .map_or_else(Bounds::default, |canary| canary.trial.report().bounds),
            last_event: last_event(host, plugin),
        }
    }
}

fn state_of(serving: &Serving) -> &'static str {
    match &serving.current {
        _ if serving.disabled => "disabled",
        Ok(_) => "ready",
        Err(_) => "failed",
    }
}

fn idle(version: &Arc<Version>) -> usize {
    version.shelf.len() + version.workers.idle()
}

fn kept(state: &State, current: Option<&Arc<Version>>) -> Vec<KeptJson> {
    let versions = state.versions.iter().map(|kept| KeptJson {
        current: current.is_some_and(|current| current.sha256 == kept.digest),
        digest: kept.digest.clone(),
        size: kept.size,
        loaded_at: kept.loaded_at,
        by: kept.by.key(),
        signed_by: kept.signed_by.clone(),
    });
    versions.collect()
}

/// The comparison of two versions belongs to its swap.
fn last_event(host: &Host, plugin: &Plugin) -> Option<Event> {
    let last = host.events.last(Some(&plugin.name), 2);
    match last.as_slice() {
        [measured, swap] if measured.kind == Kind::Measured => Some(Event {
            before: measured.before.clone(),
            after: measured.after.clone(),
            ..swap.as_ref().clone()
        }),
        [event, ..] => Some(event.as_ref().clone()),
        [] => None,
    }
}
