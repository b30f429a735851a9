//! Why a call of another host failed, in the words of `wasi:http`.

use std::error::Error as StdError;
use std::io::{self, ErrorKind};
use std::net::IpAddr;

use tokio_rustls::rustls;
use wasmtime_wasi_http::Error;

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectFault {
    /// The name has addresses, and the grant admits none of them; this is the first.
    #[error("the name resolves to {0}, which is not a public address")]
    Refused(IpAddr),
    /// The name can't be resolved.
    #[error("the name can't be resolved: {0}")]
    Dns(io::Error),
    /// The name has no address.
    #[error("the name has no address")]
    NoAddress,
    /// The resolver didn't answer in time.
    #[error("the name was not resolved in time")]
    DnsTimeout,
    /// No address could be connected to; this is what the last one said.
    #[error("no connection: {0}")]
    Tcp(io::Error),
    /// Nobody answered in time.
    #[error("no connection in time")]
    Timeout,
    /// The plugin has as many connections as it may.
    #[error("the plugin has all the connections that it may have")]
    Limit,
    /// The TLS handshake failed.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// There is nothing to verify certificates with. Carries why.
    #[error("{0}")]
    NoRoots(String),
    /// Not a target at all; the checks before this one refuse it.
    #[error("the URL has no host")]
    NoHost,
    /// The host stops.
    #[error("the host stops")]
    Stopped,
}

impl ConnectFault {
    /// As a guest sees it.
    fn code(&self) -> Error {
        match self {
            Self::Refused(_) => Error::HttpRequestDenied,
            // getaddrinfo doesn't say which code the server gave; these are wasmtime's words.
            Self::Dns(_) | Self::NoAddress => Error::DnsError {
                rcode: Some("address not available".to_owned()),
                info_code: None,
            },
            Self::DnsTimeout => Error::DnsTimeout,
            Self::Tcp(error) => match error.kind() {
                ErrorKind::ConnectionRefused => Error::ConnectionRefused,
                ErrorKind::TimedOut => Error::ConnectionTimeout,
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Error::DestinationIpUnroutable,
                ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => Error::ConnectionTerminated,
                _ => Error::DestinationUnavailable,
            },
            Self::Timeout => Error::ConnectionTimeout,
            Self::Limit => Error::ConnectionLimitReached,
            Self::Tls(error) => tls(error),
            Self::NoRoots(_) => Error::ConfigurationError,
            Self::NoHost => Error::HttpRequestUriInvalid,
            Self::Stopped => Error::ConnectionTerminated,
        }
    }
}

fn tls(error: &io::Error) -> Error {
    match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Error::TlsCertificateError
        }
        Some(rustls::Error::AlertReceived(alert)) => Error::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: Some(format!("{alert:?}")),
        },
        _ => Error::TlsProtocolError,
    }
}

/// The connector's fault behind an error of the client, if it was one.
pub(super) fn connect_fault<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e ConnectFault> {
    find(error)
}

/// No response head came.
pub(super) fn before_head(error: &(dyn StdError + 'static)) -> Error {
    if let Some(fault) = connect_fault(error) {
        return fault.code();
    }
    if let Some(hyper) = find::<hyper::Error>(error) {
        if hyper.is_parse_too_large() {
            return Error::HttpResponseHeaderSectionSize(None);
        }
        if hyper.is_parse() {
            return Error::HttpProtocolError;
        }
        if hyper.is_timeout() {
            return Error::ConnectionReadTimeout;
        }
        if hyper.is_incomplete_message() || hyper.is_canceled() || hyper.is_closed() {
            return Error::ConnectionTerminated;
        }
    }
    if find::<io::Error>(error).is_some() {
        return Error::ConnectionTerminated;
    }
    Error::HttpProtocolError
}

/// A response's body broke off.
pub(super) fn in_body(error: &hyper::Error) -> Error {
    if error.is_timeout() {
        return Error::ConnectionReadTimeout;
    }
    if error.is_parse_too_large() {
        return Error::HttpResponseTrailerSectionSize(None);
    }
    if error.is_parse() {
        return Error::HttpProtocolError;
    }
    Error::HttpResponseIncomplete
}

/// The first error of a type in a chain.
fn find<'e, E: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// A chain of errors on one line, for the log.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError};

    use super::*;

    #[test]
    fn every_fault_of_a_connection_has_its_code() {
        let tcp = |kind| ConnectFault::Tcp(io::Error::from(kind));
        let tls = |error| ConnectFault::Tls(io::Error::other(error));
        let table = [
            (
                ConnectFault::Refused([127, 0, 0, 1].into()),
                "HTTP request denied",
            ),
            (
                ConnectFault::Dns(io::Error::other("no")),
                "DNS error: rcode address not available",
            ),
            (ConnectFault::NoAddress, "DNS error: rcode address not available"),
            (ConnectFault::DnsTimeout, "DNS lookup timed out"),
            (tcp(ErrorKind::ConnectionRefused), "connection refused"),
            (tcp(ErrorKind::TimedOut), "connection timeout"),
            (
                tcp(ErrorKind::NetworkUnreachable),
                "destination IP address is unroutable",
            ),
            (tcp(ErrorKind::ConnectionReset), "connection terminated"),
            (tcp(ErrorKind::AddrInUse), "destination unavailable"),
            (ConnectFault::Timeout, "connection timeout"),
            (ConnectFault::Limit, "connection limit reached"),
            (
                tls(rustls::Error::InvalidCertificate(CertificateError::Expired)),
                "TLS certificate error",
            ),
            (
                tls(rustls::Error::AlertReceived(AlertDescription::HandshakeFailure)),
                "TLS alert received: alert id 40: HandshakeFailure",
            ),
            (tls(rustls::Error::DecryptError), "TLS protocol error"),
            (
                ConnectFault::Tls(io::Error::from(ErrorKind::UnexpectedEof)),
                "TLS protocol error",
            ),
            (ConnectFault::NoRoots(String::new()), "configuration error"),
            (ConnectFault::NoHost, "invalid HTTP request URI"),
            (ConnectFault::Stopped, "connection terminated"),
        ];
        for (fault, code) in table {
            assert_eq!(fault.code().to_string(), code, "{fault:?}");
        }
    }
}
