//! From finished spans to a collector.
//!
//! The SDK's thread takes batches from its queue and waits for each; the request itself is sent on the host's runtime.
//! The bound of the queue is kept here and not by the SDK, which doesn't tell what it drops.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry::Context;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Spans that may wait for the collector; what comes on top is dropped.
const QUEUE: usize = 4_096;
/// Spans that are sent in one go.
const BATCH: usize = 512;
/// How long a span waits at most to be sent.
const DELAY: Duration = Duration::from_secs(1);
/// How long one batch may take, with all its attempts.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Bytes of a collector's answer that are read.
const MAX_ANSWER: usize = 64 * 1024;
/// How often at most the log says that the collector can't be reached.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// How the export goes.
#[derive(Debug)]
pub(super) struct Delivery {
    endpoint: String,
    /// Spans that the collector took.
    pub(super) exported: AtomicU64,
    /// Spans that could not be brought to it.
    pub(super) failed: AtomicU64,
    /// Spans that found the queue full.
    pub(super) dropped: AtomicU64,
    waiting: AtomicUsize,
    /// Why the last attempt failed, and when that was last said.
    trouble: Mutex<(Option<String>, Option<Instant>)>,
}

impl Delivery {
    pub(super) fn new(endpoint: String) -> Self {
        Self {
            endpoint,
            exported: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            trouble: Mutex::default(),
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn attempt_failed(&self, cause: String) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).0 = Some(cause);
    }

    fn batch_ended(&self, spans: u64, result: &OTelSdkResult) {
        let Err(error) = result else {
            self.exported.fetch_add(spans, Ordering::Relaxed);
            return;
        };
        let lost = self.failed.fetch_add(spans, Ordering::Relaxed) + spans;
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.1.is_none_or(|said| said.elapsed() >= WARN_EVERY) {
            trouble.1 = Some(Instant::now());
            let cause = trouble.0.take().unwrap_or_else(|| error.to_string());
            tracing::warn!(
                target: "berth::telemetry",
                endpoint = self.endpoint,
                spans_lost = lost,
                "traces can't be delivered: {cause}",
            );
        }
    }
}

/// The queue of finished spans, and behind it the thread that sends them on this runtime.
pub(super) fn queue(handle: Handle, delivery: &Arc<Delivery>) -> Result<Queue, ExporterBuildError> {
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(DELAY)
        .build();
    Ok(Queue {
        inner: BatchSpanProcessor::new(exporter(handle, delivery)?, config),
        delivery: Arc::clone(delivery),
    })
}

/// The SDK's queue, with a count of what does not get into it.
#[derive(Debug)]
pub(super) struct Queue {
    inner: BatchSpanProcessor,
    delivery: Arc<Delivery>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.delivery.waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE {
            self.delivery.waiting.fetch_sub(1, Ordering::Relaxed);
            self.delivery.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.inner.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

fn exporter(handle: Handle, delivery: &Arc<Delivery>) -> Result<Exporter, ExporterBuildError> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(ATTEMPT));
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_max_idle_per_host(1)
        .build(connector);
    let collector = Collector {
        client,
        handle,
        delivery: Arc::clone(delivery),
    };
    let inner = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(collector)
        .with_endpoint(delivery.endpoint())
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(PATIENCE)
        .build()?;
    Ok(Exporter {
        inner,
        delivery: Arc::clone(delivery),
    })
}

/// The OTLP exporter, with an account of what became of the spans.
#[derive(Debug)]
struct Exporter {
    inner: opentelemetry_otlp::SpanExporter,
    delivery: Arc<Delivery>,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.delivery.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        let spans = batch.len() as u64;
        let result = self.inner.export(batch).await;
        self.delivery.batch_ended(spans, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Sends one request at a time to the collector.
struct Collector {
    client: Client<HttpConnector, Full<Bytes>>,
    handle: Handle,
    delivery: Arc<Delivery>,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

#[wasmtime_wasi::async_trait]
impl HttpClient for Collector {
    /// Called on the SDK's thread, which has no reactor.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let attempt = async move {
            let answer = client.request(request.map(Full::new)).await?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        };
        // The timer is made on the runtime: there is none here.
        let sent = self.handle.spawn(async { timeout(ATTEMPT, attempt).await }).await;
        let result = match sent {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(format!("no answer within {} s", ATTEMPT.as_secs()).into()),
            // The runtime stops.
            Err(error) => Err(error.into()),
        };
        match &result {
            Ok(response) if response.status().is_success() => {}
            Ok(response) => self
                .delivery
                .attempt_failed(format!("the collector answered {}", response.status())),
            Err(error) => self.delivery.attempt_failed(chain(error.as_ref())),
        }
        result
    }
}

/// An error with its causes, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
