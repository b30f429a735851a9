//! `wasi:http` outgoing requests: refused, as an error that the guest can handle.
//!
//! Nothing can be granted yet; the interface is linked because toolchains import it whether a guest uses it or not.

use std::sync::{Arc, LazyLock};

use http::{HeaderName, Request, Response};
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpHooks,
};

use crate::runtime::instance::Origin;

/// What a guest must not set and never sees: hop-by-hop headers (RFC 9110 section 7.6.1), framing, and what the
/// connection says itself.
static FORBIDDEN: LazyLock<ForbiddenHeaderFilter> = LazyLock::new(|| Arc::new(is_forbidden));

/// Whether a header belongs to the connection and not to the message.
pub fn is_forbidden(name: &HeaderName) -> bool {
    DEFAULT_FORBIDDEN_HEADERS.contains(name) || *name == http::header::TE
}

/// Whether a header speaks for the host: a client can't send it, a guest sees only the host's own.
pub fn is_ours(name: &HeaderName) -> bool {
    name.as_str().starts_with("berth-")
}

/// The hooks of one store.
pub struct Outgoing {
    origin: Arc<Origin>,
}

impl Outgoing {
    /// For this request.
    pub fn new(origin: Arc<Origin>) -> Self {
        Self { origin }
    }
}

type Sent = Result<
    (
        Response<WasiBody>,
        Box<dyn Future<Output = Result<(), Error>> + Send>,
    ),
    Error,
>;

impl WasiHttpHooks for Outgoing {
    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        Arc::clone(&FORBIDDEN)
    }

    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        is_forbidden(name)
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        if self.origin.take_line() {
            tracing::warn!(
                target: "berth::guest",
                plugin = self.origin.plugin.name,
                request_id = self.origin.request_id(),
                host = request.uri().host(),
                "outgoing HTTP request refused: nothing is granted",
            );
        }
        Box::new(async { Err(Error::HttpRequestDenied) })
    }
}
