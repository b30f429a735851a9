//! Cross-origin requests from browsers (the Fetch standard, <https://fetch.spec.whatwg.org/#http-cors-protocol>).
//!
//! Off unless the manifest names origins. The host answers preflights, so no guest runs for them, and writes the
//! headers of every other answer, errors included: what a guest says of origins itself is replaced.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::serve::REQUEST_ID;

/// How long a browser may remember a preflight's answer unless the manifest says otherwise.
pub const MAX_AGE: Duration = Duration::from_secs(600);

/// Who may call from another origin, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// Which origins may.
    pub origins: Origins,
    /// Request headers that they may send beyond the ones that every page may.
    pub headers: Vec<HeaderName>,
    /// Whether cookies and the like may be sent.
    pub credentials: bool,
    /// How long a browser may remember this.
    pub max_age: Duration,
}

/// Which origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Every one.
    Any,
    /// These, as a browser writes them: `https://app.example.com`.
    Only(Vec<HeaderValue>),
}

impl Cors {
    /// The value of `Access-Control-Allow-Origin` for an origin, if it may.
    fn allow(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match &self.origins {
            Origins::Any => Some(HeaderValue::from_static("*")),
            Origins::Only(list) => list.contains(origin).then(|| origin.clone()),
        }
    }

    /// Write the headers of an answer to a request with this `Origin`, or without one.
    pub fn write(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        for name in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            headers.remove(name);
        }
        if self.origins != Origins::Any {
            // Also without an origin, or a cache would give one origin's answer to another.
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        let Some(allowed) = origin.and_then(|origin| self.allow(origin)) else {
            return;
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_name(REQUEST_ID));
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    /// Write the headers of the answer to a preflight, beside those of [`Cors::write`]. An origin that may not gets
    /// none of them.
    pub fn write_preflight(&self, origin: &HeaderValue, method: &Method, headers: &mut HeaderMap) {
        if self.allow(origin).is_none() {
            return;
        }
        if let Ok(method) = HeaderValue::from_str(method.as_str()) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method);
        }
        let names: Vec<&str> = self.headers.iter().map(HeaderName::as_str).collect();
        if let Ok(names) = HeaderValue::try_from(names.join(", "))
            && !names.is_empty()
        {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age.as_secs()));
    }
}

/// Of a preflight: the origin that asks, and the method that it asks for.
pub fn preflight<'h>(method: &Method, headers: &'h HeaderMap) -> Option<(&'h HeaderValue, Method)> {
    if method != Method::OPTIONS {
        return None;
    }
    let wanted = headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    Some((headers.get(ORIGIN)?, Method::from_bytes(wanted.as_bytes()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: Origins, credentials: bool) -> Cors {
        Cors {
            origins,
            headers: vec![http::header::CONTENT_TYPE, http::header::AUTHORIZATION],
            credentials,
            max_age: MAX_AGE,
        }
    }

    fn app() -> HeaderValue {
        HeaderValue::from_static("https://app.example.com")
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn only_listed_origins_are_allowed_and_caches_are_told() {
        let cors = cors(Origins::Only(vec![app()]), true);
        let written = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            headers.insert(VARY, HeaderValue::from_static("accept"));
            cors.write(origin.map(HeaderValue::from_static).as_ref(), &mut headers);
            lines(&headers)
        };
        assert_eq!(
            written(Some("https://app.example.com")),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-origin: https://app.example.com",
                "access-control-expose-headers: x-request-id",
                "vary: accept",
                "vary: origin",
            ]
        );
        for other in [
            None,
            Some("https://app.example.com.evil.test"),
            Some("http://app.example.com"),
            Some("https://app.example.com:8443"),
            Some("null"),
        ] {
            assert_eq!(written(other), ["vary: accept", "vary: origin"], "{other:?}");
        }
    }

    #[test]
    fn any_origin_needs_no_vary() {
        let mut headers = HeaderMap::new();
        cors(Origins::Any, false).write(Some(&app()), &mut headers);
        assert_eq!(
            lines(&headers),
            [
                "access-control-allow-origin: *",
                "access-control-expose-headers: x-request-id"
            ]
        );
    }

    #[test]
    fn preflight_says_what_may_be_sent() {
        let cors = cors(Origins::Only(vec![app()]), false);
        let mut headers = HeaderMap::new();
        cors.write_preflight(&app(), &Method::PUT, &mut headers);
        assert_eq!(
            lines(&headers),
            [
                "access-control-allow-headers: content-type, authorization",
                "access-control-allow-methods: PUT",
                "access-control-max-age: 600",
            ]
        );
        let mut headers = HeaderMap::new();
        cors.write_preflight(
            &HeaderValue::from_static("https://else"),
            &Method::PUT,
            &mut headers,
        );
        assert!(headers.is_empty());
    }
}
