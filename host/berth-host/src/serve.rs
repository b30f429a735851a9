//! One request, from its head to its log line.
//!
//! [`request`] can't fail: it gives the request its id, its record and, at the end, an answer. `handle` is the
//! list of steps and may use `?`.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, Version as HttpVersion, header};
use hyper::body::{Body, Incoming};
use uuid::Uuid;

use crate::body::ReplyBody;
use crate::error::{Error, Fault, Trap};
use crate::metrics::{Refusal, VersionMetrics};
use crate::route::Found;
use crate::runtime::limits::Meter;
use crate::runtime::plugin::{Plugin, Version};
use crate::runtime::reload::canary::Part;
use crate::state::Host;
use crate::table::Route;
use crate::telemetry::{GuestSpan, RequestSpan, Summary};
use crate::{cors, dispatch, gate, respond};

/// The header that carries a request's id, both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is taken from a client, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// What a connection knows.
#[derive(Debug)]
pub struct Peer {
    address: IpAddr,
    ip: String,
    /// A trusted proxy, which says whose a request is.
    proxy: bool,
    secure: bool,
    host: Arc<Host>,
}

impl Peer {
    /// The other end of a connection; `secure` with TLS.
    pub fn new(address: SocketAddr, secure: bool, host: Arc<Host>) -> Self {
        let address = address.ip().to_canonical();
        Self {
            address,
            ip: address.to_string(),
            proxy: host.trusted_proxies.trusts(address),
            secure,
            host,
        }
    }
}

/// Answer one request, whatever happens.
///
/// # Errors
/// Never; the type is what hyper wants.
pub async fn request(
    host: Arc<Host>,
    peer: Arc<Peer>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Infallible> {
    let mut record = Record::begin(peer, &request);
    let id = record.id.clone();
    // Kept only where somebody may ask.
    let origin = host
        .table
        .load()
        .has_cors
        .then(|| request.headers().get(header::ORIGIN).cloned())
        .flatten();
    let mut response = match handle(&host, &mut record, request).await {
        Ok(response) => response,
        Err(error) => {
            let answer = respond::answer(&error);
            record.failed(&error, &answer);
            respond::problem(&answer, &id)
        }
    };
    record.answered = record.begun.map(|begun| begun.elapsed());
    if let Some(cors) = record.route.as_ref().and_then(|route| route.cors.as_ref()) {
        cors.write(origin.as_ref(), response.headers_mut());
    }
    response.headers_mut().insert(REQUEST_ID, id);
    record.status = response.status().as_u16();
    if let Some(mut record) = response.body_mut().attach(record) {
        record.bytes = response.body().size_hint().exact().unwrap_or(0);
        record.done = true;
    }
    Ok(response)
}

async fn handle(
    host: &Arc<Host>,
    record: &mut Record,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Error> {
    check_head(&request, host.limits.header_bytes)?;
    let uri = request.uri().clone();
    if let Some((origin, method)) = cors::preflight(request.method(), request.headers())
        && let Found::Route { target: route, .. } = host.table.load().router.find(&method, uri.path())
        && let Some(cors) = &route.cors
    {
        let answer = respond::preflight(cors, origin, &method);
        record.route = Some(route);
        return Ok(answer);
    }
    // For the look alone: the next generation may come at any time, and what is found is a copy.
    let found = host.table.load().router.find(request.method(), uri.path());
    let (route, params) = match found {
        Found::Route { target, params } => (target, params),
        Found::Options { allow } => return Ok(respond::options(&allow)),
        Found::WrongMethod { allow } => return Err(Error::MethodNotAllowed { allow }),
        Found::Nothing => return Err(Error::NotFound),
        Found::Malformed(what) => return Err(Error::InvalidPath(what)),
    };
    record.route = Some(Arc::clone(&route));
    let admitted = gate::admit(host, record, &route, params, request).await?;
    dispatch::call(host, record, admitted).await
}

/// The head's size, and RFC 9112 section 3.2: exactly one Host in HTTP/1.1.
///
/// hyper's own limit is on its buffer, which may take up to twice as much in one read.
fn check_head(request: &Request<Incoming>, limit: usize) -> Result<(), Error> {
    let target = request.uri().path_and_query().map_or(0, |p| p.as_str().len());
    let fields: usize = request
        .headers()
        .iter()
        .map(|(n, v)| n.as_str().len() + v.len() + 4)
        .sum();
    if target + fields > limit {
        return Err(Error::HeadTooLarge { limit });
    }
    // In an absolute target (RFC 9112 section 3.2.2) or `:authority`; RFC 9110 section 4.2.4 for user information.
    if request
        .uri()
        .authority()
        .is_some_and(|a| a.as_str().contains('@'))
    {
        return Err(Error::InvalidHead("its target has user information"));
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() {
        return Err(Error::InvalidHead("it has more than one Host header"));
    }
    match first {
        // In HTTP/2 `:authority` stands for it, and wins over it (RFC 9113 section 8.3.1).
        _ if request.version() == HttpVersion::HTTP_2 => match request.uri().authority() {
            Some(_) => Ok(()),
            None if first.is_some_and(|host| is_host(host.as_bytes())) => Ok(()),
            None => Err(Error::InvalidHead(
                "it has neither an :authority nor a Host header",
            )),
        },
        None if request.version() == HttpVersion::HTTP_11 => Err(Error::InvalidHead("it has no Host header")),
        // An authority without user information; an empty Host is for targets without one, which no route is.
        Some(host) if !is_host(host.as_bytes()) => Err(Error::InvalidHead("its Host header is not a host")),
        _ => Ok(()),
    }
}

fn is_host(value: &[u8]) -> bool {
    !value.contains(&b'@') && Authority::try_from(value).is_ok()
}

/// All that the log line of a request says. The line is written when the record is dropped, which is when the last
/// byte of the answer is out, or when the client left.
#[derive(Debug)]
pub struct Record {
    id: HeaderValue,
    peer: Arc<Peer>,
    method: Method,
    uri: Uri,
    started: Instant,
    route: Option<Arc<Route>>,
    plugin: Option<Arc<Plugin>>,
    version: Option<Arc<Version>>,
    meter: Option<Arc<Meter>>,
    queued: Duration,
    status: u16,
    code: Option<std::borrow::Cow<'static, str>>,
    trap: Option<Trap>,
    bytes: u64,
    /// The answer's end is known, good or bad.
    done: bool,
    /// The answer was cut off.
    cut: bool,
    /// Only where traces are exported.
    span: Option<Box<RequestSpan>>,
    /// Who it is, where a trusted proxy says it.
    client: Option<(IpAddr, String)>,
    /// The trial of a version that it is a part of.
    part: Option<Part>,
    /// Since when it had all that its call needs, if it is a part of one.
    begun: Option<Instant>,
    /// From then to the head of the answer: what a client and the queue can't make longer.
    answered: Option<Duration>,
}

impl Record {
    fn begin(peer: Arc<Peer>, request: &Request<Incoming>) -> Self {
        let telemetry = peer.host.telemetry.as_ref();
        Self {
            id: request_id(request.headers().get(REQUEST_ID)),
            span: telemetry.map(|t| Box::new(t.begin(request, peer.secure))),
            client: peer.proxy.then(|| {
                let client = peer.host.trusted_proxies.client(peer.address, request.headers());
                (client, client.to_string())
            }),
            peer,
            method: request.method().clone(),
            uri: request.uri().clone(),
            started: Instant::now(),
            route: None,
            plugin: None,
            version: None,
            meter: None,
            queued: Duration::ZERO,
            status: 0,
            code: None,
            trap: None,
            bytes: 0,
            done: false,
            cut: false,
            part: None,
            begun: None,
            answered: None,
        }
    }

    /// The request's id.
    pub fn id(&self) -> &HeaderValue {
        &self.id
    }

    /// The same as text; an id is visible ASCII.
    pub fn id_text(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    /// The client's address, without a port.
    pub fn client_ip(&self) -> &str {
        self.client.as_ref().map_or(&self.peer.ip, |(_, text)| text)
    }

    /// The same as an address.
    pub fn client(&self) -> IpAddr {
        self.client
            .as_ref()
            .map_or(self.peer.address, |(address, _)| *address)
    }

    /// Whether the request came through TLS.
    pub fn is_secure(&self) -> bool {
        self.peer.secure
    }

    /// Which plugin answers; no version if it could not be loaded.
    pub fn goes_to(&mut self, plugin: &Arc<Plugin>, version: Option<&Arc<Version>>) {
        self.plugin = Some(Arc::clone(plugin));
        self.version = version.cloned();
    }

    /// It counts in a trial.
    pub fn takes_part(&mut self, part: Option<Part>) {
        self.part = part;
    }

    /// It has a place, and the guest is called next.
    pub fn begins(&mut self) {
        self.begun = self.part.is_some().then(Instant::now);
    }

    /// The span of a guest's run for it, where traces are exported.
    pub fn guest_span(&self) -> Option<Box<GuestSpan>> {
        let (telemetry, span) = (self.peer.host.telemetry.as_ref()?, self.span.as_ref()?);
        let (plugin, version) = (self.plugin.as_ref()?, self.version.as_ref()?);
        let guest = telemetry.guest(span, &plugin.name, &version.digest);
        Some(Box::new(guest))
    }

    /// The counters of what answers it, if that is a plugin.
    fn metrics(&self) -> Option<&VersionMetrics> {
        match (&self.plugin, &self.version) {
            (_, Some(version)) => Some(&version.metrics),
            (Some(plugin), None) => Some(&plugin.ledger.metrics.unloaded),
            (None, None) => None,
        }
    }

    /// It waited this long for an instance, whether it got one or not.
    pub fn waited(&mut self, time: Duration) {
        self.queued += time;
    }

    /// A guest runs for it.
    pub fn runs(&mut self, meter: &Arc<Meter>) {
        self.meter = Some(Arc::clone(meter));
    }

    fn failed(&mut self, error: &Error, answer: &respond::Answer) {
        self.code = Some(answer.code.clone());
        if let Error::Guest(fault) = error {
            self.trap = Some(fault.trap);
            if let (true, Some(metrics)) = (fault.trap.is_blameless(), self.metrics()) {
                metrics.trap(fault.trap);
            }
        }
        // What was sent away before it reached the version says nothing of it.
        if !matches!(error, Error::Guest(_) | Error::Problem(_) | Error::Internal(_)) {
            self.part = None;
        }
        if let (Some(plugin), Some(refusal)) = (&self.plugin, Refusal::of(error)) {
            plugin.ledger.metrics.refused(refusal);
        }
    }

    /// Bytes of a streaming body went out.
    pub fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// A streaming body was cut off. `untold` if nobody has said so yet: the body itself was at fault.
    pub fn cut(&mut self, fault: &Fault, untold: bool) {
        // What is nobody's fault is counted by the record alone.
        if (untold || fault.trap.is_blameless())
            && let Some(metrics) = self.metrics()
        {
            metrics.trap(fault.trap);
        }
        if untold && !fault.trap.is_blameless() {
            tracing::error!(
                target: "berth::plugin",
                plugin = self.plugin.as_ref().map(|p| p.name.as_str()),
                version = self.version.as_ref().map(|v| v.digest.as_str()),
                request_id = self.id_text(),
                trap = fault.trap.label(),
                "a guest failed: {}",
                fault.cause,
            );
        }
        self.code = Some(respond::log_code(fault.trap).into());
        self.trap = Some(fault.trap);
        self.done = true;
        self.cut = true;
    }

    /// A streaming body is complete.
    pub fn complete(&mut self) {
        self.done = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let cpu = self.meter.as_ref().map(|m| m.spent()).unwrap_or_default();
        // The future or the body was dropped before its end: nobody is there to read it, or the host had to stop.
        let lost = (!self.done).then(|| match self.peer.host.cutting.load(Ordering::Relaxed) {
            true => Trap::Draining,
            false => Trap::ClientGone,
        });
        if let Some(trap) = lost {
            self.code = Some(respond::log_code(trap).into());
            self.trap = Some(trap);
        }
        self.count(took, lost);
        let trace_id = self.span.as_ref().map(|span| span.trace_id());
        if let Some(span) = self.span.take() {
            span.end(&self.summary(cpu));
        }
        tracing::info!(
            target: "berth::request",
            id = self.id_text(),
            method = self.method.as_str(),
            path = self.uri.path(),
            route = self.route.as_ref().map(|r| r.pattern.as_str()),
            status = (self.status != 0).then_some(self.status),
            code = self.code.as_deref(),
            trap = self.trap.map(Trap::label),
            plugin = self.plugin.as_ref().map(|p| p.name.as_str()),
            version = self.version.as_ref().map(|v| v.digest.as_str()),
            duration_us = micros(took),
            cpu_us = micros(cpu),
            queue_us = micros(self.queued),
            bytes = self.bytes,
            client = self.client_ip(),
            trace_id = trace_id.as_deref(),
        );
    }
}

impl Record {
    fn count(&self, took: Duration, lost: Option<Trap>) {
        let host = &self.peer.host.metrics;
        let whole = lost.is_none() && !self.cut;
        if whole {
            host.answered(self.status);
        } else {
            host.unfinished();
        }
        if let Some(part) = &self.part {
            // A client that leaves says nothing of the version.
            let blameless = lost.is_some() || self.trap.is_some_and(Trap::is_blameless);
            if !blameless {
                let took = self.answered.unwrap_or(took);
                part.trial.count(part.side, self.cut || self.status >= 500, took);
            }
        }
        if let Some(metrics) = self.metrics() {
            if whole {
                metrics.answered(self.status, took);
            } else {
                metrics.unfinished();
            }
            // The trap of a guest that failed halfway was counted where it was found.
            if let Some(trap) = lost {
                metrics.trap(trap);
            }
            metrics.sent(self.bytes);
        }
    }

    fn summary(&self, cpu: Duration) -> Summary<'_> {
        Summary {
            method: &self.method,
            path: self.uri.path(),
            id: self.id_text(),
            client: self.client_ip(),
            route: self.route.as_ref().map(|r| r.pattern.as_str()),
            status: self.status,
            code: self.code.as_deref(),
            trap: self.trap,
            plugin: self.plugin.as_ref().map(|p| p.name.as_str()),
            version: self.version.as_ref().map(|v| v.digest.as_str()),
            cpu,
            queued: self.queued,
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The client's own id if it is usable, else a UUIDv7.
pub(crate) fn request_id(given: Option<&HeaderValue>) -> HeaderValue {
    if let Some(id) = given {
        let bytes = id.as_bytes();
        if (1..=MAX_REQUEST_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic) {
            return id.clone();
        }
    }
    let mut text = String::with_capacity(36);
    // Writing into a String can't fail, and hexadecimal digits are a valid header value.
    let _ = write!(text, "{}", Uuid::now_v7().hyphenated());
    HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static("none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(given: &[u8]) -> String {
        let value = HeaderValue::from_bytes(given).unwrap();
        request_id(Some(&value)).to_str().unwrap().to_owned()
    }

    #[test]
    fn a_usable_id_of_the_client_is_kept() {
        assert_eq!(id_of(b"abc-123"), "abc-123");
        assert_eq!(id_of(&[b'x'; 128]), "x".repeat(128));
    }

    #[test]
    fn an_unusable_id_is_replaced() {
        for bad in [
            b"".as_slice(),
            &[b'x'; 129],
            b"two words",
            "naïve".as_bytes(),
            b"tab\there",
        ] {
            let id = id_of(bad);
            assert_eq!(Uuid::parse_str(&id).unwrap().get_version_num(), 7, "{bad:?}");
        }
        assert_eq!(
            Uuid::parse_str(request_id(None).to_str().unwrap())
                .unwrap()
                .get_version_num(),
            7
        );
    }
}
