//! Traces, by OTLP over HTTP, when the manifest says where to (`[telemetry]`).
//!
//! A request has one server span, and below it one span for the guest's run; names and attributes follow the semantic
//! conventions for HTTP (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>). The caller's `traceparent` is
//! the parent, and the guest gets one that names its own run, so that its spans join. Query strings, headers and bodies
//! are deliberately absent.
//!
//! Spans go through a bounded queue to a thread of their own: a collector that is slow or gone costs spans,
//! never a request. Without the setting a request pays one branch.

mod context;
mod export;
mod span;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;

use export::Delivery;
pub use span::{GuestSpan, RequestSpan, Summary};

/// What the manifest says of traces.
#[derive(Clone, Debug, PartialEq)]
pub struct TelemetrySpec {
    /// The URL that batches are posted to, `/v1/traces` included.
    pub endpoint: String,
    /// `service.name`.
    pub service_name: String,
    /// Which part of the requests without a parent is traced, from 0 to 1.
    pub sample: f64,
}

/// Traces can't be exported at all.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The setting.
    #[error("{0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Not called from the runtime that serves.
    #[error("{0}")]
    Runtime(#[from] tokio::runtime::TryCurrentError),
}

/// Makes the spans of a host.
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    delivery: Arc<Delivery>,
}

impl Telemetry {
    /// Start exporting. What is sent is sent on the current runtime.
    ///
    /// # Errors
    /// See [`TelemetryError`]. A collector that isn't there is none.
    pub fn start(spec: &TelemetrySpec) -> Result<Self, TelemetryError> {
        let delivery = Arc::new(Delivery::new(spec.endpoint.clone()));
        let queue = export::queue(Handle::try_current()?, &delivery)?;
        let resource = Resource::builder()
            .with_service_name(spec.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(queue)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                spec.sample,
            ))))
            .with_resource(resource)
            .build();
        Ok(Self {
            tracer: provider.tracer("berth"),
            provider,
            delivery,
        })
    }

    /// Send what is left, within `patience`, and nothing from now on.
    pub async fn stop(&self, patience: Duration) {
        let provider = self.provider.clone();
        // It waits for the exporter's thread.
        let stopped = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(patience)).await;
        if !patience.is_zero() && !matches!(stopped, Ok(Ok(()))) {
            tracing::warn!(
                target: "berth::telemetry",
                endpoint = self.delivery.endpoint(),
                "the last spans could not be delivered within {} ms", patience.as_millis(),
            );
        }
    }

    /// How many spans the collector took (`exported`), could not be brought to it (`failed`), or found the queue full
    /// (`dropped`).
    pub fn spans(&self) -> [(&'static str, u64); 3] {
        let delivery = &self.delivery;
        [
            ("exported", &delivery.exported),
            ("failed", &delivery.failed),
            ("dropped", &delivery.dropped),
        ]
        .map(|(result, counter)| (result, counter.load(Ordering::Relaxed)))
    }
}
