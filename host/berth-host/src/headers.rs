//! Headers that belong to a connection or to the host, and so never pass through it: in requests and responses, heads
//! and trailers, from clients, guests and the servers that guests call.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use http_body::Frame;
use wasmtime_wasi_http::DEFAULT_FORBIDDEN_HEADERS;

/// Whether a header belongs to the connection and not to the message: hop-by-hop headers (RFC 9110 section 7.6.1),
/// framing, and what the connection says itself.
pub fn is_forbidden(name: &HeaderName) -> bool {
    DEFAULT_FORBIDDEN_HEADERS.contains(name) || *name == header::TE
}

/// Whether a header speaks for the host: a client can't send it, a guest sees only the host's own. With an underscore as
/// well, because gateways such as CGI (RFC 3875 section 4.1.18) make no difference between the two.
pub fn is_ours(name: &HeaderName) -> bool {
    matches!(
        name.as_str().as_bytes(),
        [b'b', b'e', b'r', b't', b'h', b'-' | b'_', ..]
    )
}

/// What a trailer can't be beyond what a header can't be (RFC 9110 section 6.5.1): it would change how the message is
/// framed, routed, decoded or authorised after that was decided.
const NO_TRAILERS: [HeaderName; 10] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::MAX_FORWARDS,
    header::SET_COOKIE,
    header::TRAILER,
];

/// Headers of the message that nobody can take away by naming them in `Connection`.
const ESSENTIAL: [HeaderName; 6] = [
    header::CONNECTION,
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::TRANSFER_ENCODING,
    header::AUTHORIZATION,
];

/// Drop the headers that `Connection` names, which are the connection's (RFC 9110 section 7.6.1), and `berth-*`. The
/// fixed ones of [`is_forbidden`] are dropped where a guest's header map is made.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        // By bytes: one name that isn't text must not hide the others.
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !ESSENTIAL.contains(name))
        .collect();
    let ours: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name)).cloned().collect();
    for name in named.into_iter().chain(ours) {
        headers.remove(name);
    }
}

/// The same and the fixed ones, where no guest's header map is made.
pub fn strip_all(headers: &mut HeaderMap) {
    strip(headers);
    let fixed: Vec<HeaderName> = headers.keys().filter(|n| is_forbidden(n)).cloned().collect();
    for name in fixed {
        headers.remove(name);
    }
}

/// A trailer is a header that comes late: what can't be in the head can't be here, and some more.
pub fn without_forbidden_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            let hidden =
                |name: &&HeaderName| is_forbidden(name) || is_ours(name) || NO_TRAILERS.contains(name);
            let names: Vec<HeaderName> = trailers.keys().filter(hidden).cloned().collect();
            names.into_iter().for_each(|name| drop(trailers.remove(name)));
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(n, v)| (HeaderName::from_static(n), http::HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn connection_takes_away_what_it_names_but_nothing_essential() {
        let mut headers = map(&[
            ("connection", "x-hop, content-length"),
            ("x-hop", "1"),
            ("content-length", "3"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("berth-user-id", "1"),
            ("x-own", "1"),
        ]);
        strip_all(&mut headers);
        assert_eq!(headers, map(&[("content-length", "3"), ("x-own", "1")]));
    }

    #[test]
    fn trailers_cannot_change_what_was_decided() {
        let frame = Frame::trailers(map(&[
            ("transfer-encoding", "chunked"),
            ("host", "evil"),
            ("content-length", "0"),
            ("authorization", "x"),
            ("berth-user-id", "1"),
            ("x-checksum", "1"),
        ]));
        let left = without_forbidden_trailers(frame).into_trailers().unwrap();
        assert_eq!(left, map(&[("x-checksum", "1")]));
    }
}
