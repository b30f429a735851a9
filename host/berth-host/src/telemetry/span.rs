//! The spans of one request.

use std::time::Duration;

use http::{HeaderMap, Method, Request, Version, header};
use opentelemetry::trace::{Span, SpanContext, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};

use super::{Telemetry, context};
use crate::error::{Error, Trap};

/// The longest text of a caller that is put into a span, in bytes.
const MAX_TEXT: usize = 1_024;

/// What a request's span says when it ends.
#[derive(Debug)]
pub struct Summary<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// Its path, without the query.
    pub path: &'a str,
    /// Its id.
    pub id: &'a str,
    /// The caller's address.
    pub client: &'a str,
    /// The pattern that took it.
    pub route: Option<&'a str>,
    /// The answer's status; 0 if there was none.
    pub status: u16,
    /// The code of an error.
    pub code: Option<&'a str>,
    /// How the run ended, if not well.
    pub trap: Option<Trap>,
    /// The plugin that answered.
    pub plugin: Option<&'a str>,
    /// Its version.
    pub version: Option<&'a str>,
    /// Guest CPU time up to the end of the answer.
    pub cpu: Duration,
    /// How long it waited for an instance.
    pub queued: Duration,
}

/// The server span of one request.
#[derive(Debug)]
pub struct RequestSpan {
    span: SdkSpan,
    /// Whether the caller's `tracestate` belongs to this trace.
    has_parent: bool,
}

impl Telemetry {
    /// A request has come.
    pub fn begin<B>(&self, request: &Request<B>, secure: bool) -> RequestSpan {
        let parent = context::parent(request.headers());
        let has_parent = parent.is_some();
        let builder = self.tracer.span_builder("HTTP").with_kind(SpanKind::Server);
        let around = parent.map_or_else(Context::new, |p| Context::new().with_remote_span_context(p));
        let mut span = self.tracer.build_with_context(builder, &around);
        if span.is_recording() {
            describe(&mut span, request, secure);
        }
        RequestSpan { span, has_parent }
    }

    /// A guest begins to work for a request.
    pub fn guest(&self, request: &RequestSpan, plugin: &str, version: &str) -> GuestSpan {
        GuestSpan::begin(&self.tracer, request, plugin, version)
    }
}

/// What only the head of the request knows.
fn describe<B>(span: &mut SdkSpan, request: &Request<B>, secure: bool) {
    let headers = request.headers();
    let authority = match request.uri().authority() {
        Some(authority) => Some(authority.clone()),
        None => headers
            .get(header::HOST)
            .and_then(|host| host.as_bytes().try_into().ok()),
    };
    if let Some(authority) = authority {
        span.set_attribute(KeyValue::new("server.address", bounded(authority.host())));
        if let Some(port) = authority.port_u16() {
            span.set_attribute(KeyValue::new("server.port", i64::from(port)));
        }
    }
    let scheme = if secure { "https" } else { "http" };
    span.set_attribute(KeyValue::new("url.scheme", scheme.to_owned()));
    if let Some(agent) = headers.get(header::USER_AGENT).and_then(|a| a.to_str().ok()) {
        span.set_attribute(KeyValue::new("user_agent.original", bounded(agent)));
    }
    let protocol = match request.version() {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    span.set_attribute(KeyValue::new("network.protocol.version", protocol));
}

impl RequestSpan {
    /// The trace's id, as in log lines.
    pub fn trace_id(&self) -> String {
        self.span.span_context().trace_id().to_string()
    }

    /// The request is over.
    pub fn end(mut self, summary: &Summary<'_>) {
        if self.span.is_recording() {
            self.fill(summary);
        }
        self.span.end();
    }

    fn fill(&mut self, summary: &Summary<'_>) {
        let span = &mut self.span;
        let (method, original) = known(summary.method);
        // Low cardinality, whatever strangers ask for: the pattern, not the path.
        let verb = if original.is_none() { method } else { "HTTP" };
        span.update_name(match summary.route {
            Some(route) => format!("{verb} {route}"),
            None => verb.to_owned(),
        });
        let mut set = |key: &'static str, value: opentelemetry::Value| {
            span.set_attribute(KeyValue::new(key, value));
        };
        set("http.request.method", method.into());
        if let Some(original) = original {
            set("http.request.method_original", bounded(original).into());
        }
        set("url.path", bounded(summary.path).into());
        set("client.address", summary.client.to_owned().into());
        set("berth.request_id", summary.id.to_owned().into());
        if let Some(route) = summary.route {
            set("http.route", route.to_owned().into());
        }
        if summary.status != 0 {
            set("http.response.status_code", i64::from(summary.status).into());
        }
        if let Some(plugin) = summary.plugin {
            set("berth.plugin", plugin.to_owned().into());
            set("berth.cpu_ms", millis(summary.cpu).into());
            set("berth.queue_ms", millis(summary.queued).into());
        }
        if let Some(version) = summary.version {
            set("berth.version", version.to_owned().into());
        }
        if let Some(trap) = summary.trap {
            set("berth.trap", trap.label().into());
        }
        // 4xx is the caller's fault, and a caller that leaves is nobody's.
        let failed = summary.status >= 500 || summary.trap.is_some_and(|trap| !trap.is_blameless());
        if failed {
            let code = summary
                .code
                .map_or_else(|| summary.status.to_string(), str::to_owned);
            set("error.type", code.into());
            span.set_status(Status::error(""));
        }
    }
}

/// The span of a guest's run for a request.
#[derive(Debug)]
pub struct GuestSpan {
    span: SdkSpan,
    has_parent: bool,
}

impl GuestSpan {
    fn begin(tracer: &SdkTracer, request: &RequestSpan, plugin: &str, version: &str) -> Self {
        let server: &SpanContext = request.span.span_context();
        let builder = tracer
            .span_builder(format!("plugin {plugin}"))
            .with_kind(SpanKind::Internal);
        let around = Context::new().with_remote_span_context(server.clone());
        let mut span = tracer.build_with_context(builder, &around);
        if span.is_recording() {
            span.set_attribute(KeyValue::new("berth.plugin", plugin.to_owned()));
            span.set_attribute(KeyValue::new("berth.version", version.to_owned()));
        }
        Self {
            span,
            has_parent: request.has_parent,
        }
    }

    /// Let the guest's own spans be children of this one.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Some(value) = context::traceparent(self.span.span_context()) {
            headers.insert(context::TRACEPARENT, value);
            if !self.has_parent {
                headers.remove(context::TRACESTATE);
            }
        }
    }

    /// The run is over: by itself, with what came of it, or because the host dropped it.
    pub fn end(mut self, cpu: Duration, outcome: Option<Result<(), &Error>>) {
        let span = &mut self.span;
        if span.is_recording() {
            span.set_attribute(KeyValue::new("berth.cpu_ms", millis(cpu)));
            match outcome {
                Some(Ok(())) => {}
                Some(Err(Error::Guest(fault))) => {
                    span.set_attribute(KeyValue::new("berth.trap", fault.trap.label()));
                    span.set_attribute(KeyValue::new("error.type", fault.trap.label()));
                    span.set_status(Status::error(""));
                }
                Some(Err(_)) => span.set_status(Status::error("")),
                None => span.set_attribute(KeyValue::new("berth.dropped", true)),
            }
        }
        span.end();
    }
}

/// A method of RFC 9110 or RFC 5789, or `_OTHER` with the original.
fn known(method: &Method) -> (&'static str, Option<&str>) {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE",
    ];
    match KNOWN.into_iter().find(|known| *known == method.as_str()) {
        Some(known) => (known, None),
        None => ("_OTHER", Some(method.as_str())),
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn bounded(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_TEXT);
    text.get(..end).unwrap_or_default().to_owned()
}
