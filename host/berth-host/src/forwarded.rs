//! Whose request it is when proxies stand in between: `X-Forwarded-For`, read from its right end.
//!
//! Each proxy writes the address that it was called from to the right of what was there, so what an untrusted caller
//! wrote is always to the left of the first address that is no trusted proxy's. That one is the client. What can't be
//! read is nobody's address: the nearest proxy stands for whoever is behind it. `Forwarded` (RFC 7239) is not read,
//! because a proxy that sets one of the two passes the other on as it came.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};

use crate::grants::addresses::Network;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The proxies whose word counts, `http.trusted_proxies`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

impl TrustedProxies {
    /// Those in these blocks.
    pub fn new(networks: Vec<Network>) -> Self {
        Self(networks)
    }

    /// Whether this is one of them.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// The client of a request that a trusted proxy has sent.
    pub fn client(&self, proxy: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut nearest = proxy;
        for value in headers.get_all(FORWARDED_FOR).iter().rev() {
            // As bytes: what a client has written may be no text, and the address to the right of it counts all the same.
            let elements = value.as_bytes().rsplit(|&byte| byte == b',');
            // Empty elements of a list mean nothing (RFC 9110 section 5.6.1.2).
            for element in elements.map(<[u8]>::trim_ascii).filter(|e| !e.is_empty()) {
                match std::str::from_utf8(element).ok().and_then(address) {
                    Some(found) if self.trusts(found) => nearest = found,
                    Some(found) => return found,
                    None => return nearest,
                }
            }
        }
        nearest
    }
}

/// An address, perhaps with a port: some proxies write one.
fn address(element: &str) -> Option<IpAddr> {
    let bare = element
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(element);
    let ip: Option<IpAddr> = bare.parse().ok();
    ip.or_else(|| element.parse::<SocketAddr>().ok().map(|with_port| with_port.ip()))
        .map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn proxies() -> TrustedProxies {
        let network = |ip: &str, prefix| Network::new(ip.parse().unwrap(), prefix).unwrap();
        TrustedProxies::new(vec![network("10.0.0.0", 8), network("::1", 128)])
    }

    fn client(lines: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap());
        }
        proxies()
            .client("10.0.0.1".parse().unwrap(), &headers)
            .to_string()
    }

    #[test]
    fn client_is_the_rightmost_address_that_is_no_proxys() {
        for (lines, expected) in [
            (&[] as &[&str], "10.0.0.1"),
            (&["203.0.113.7"], "203.0.113.7"),
            (&["203.0.113.7, 10.0.0.9"], "203.0.113.7"),
            (&["192.0.2.1, 203.0.113.7,10.0.0.9 , ::1"], "203.0.113.7"),
            (&["192.0.2.1", "203.0.113.7", "10.0.0.9"], "203.0.113.7"),
            (&["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
            (&["2001:db8::7"], "2001:db8::7"),
            (&["[2001:db8::7]"], "2001:db8::7"),
            (&["[2001:db8::7]:443"], "2001:db8::7"),
            (&["203.0.113.7:5555"], "203.0.113.7"),
            (&["::ffff:203.0.113.7"], "203.0.113.7"),
            (&["203.0.113.7,, ,"], "203.0.113.7"),
            (&["naïve, 203.0.113.7"], "203.0.113.7"),
        ] {
            let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
            assert_eq!(client(&lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_nobodys_address() {
        for line in [
            b"unknown".as_slice(),
            b"203.0.113.7, unknown",
            b"203.0.113.7, _hidden, 10.0.0.1",
            b"203.0.113.999",
            b"fe80::1%eth0",
            b"203.0.113.7; DROP TABLE users",
            b"\xff\xfe",
            b"203.0.113.7, \xff",
            b",",
            b"localhost",
        ] {
            assert_eq!(client(&[line]), "10.0.0.1", "{line:?}");
        }
        let long = vec![b'1'; 60_000];
        assert_eq!(client(&[&long]), "10.0.0.1");
        // What is behind a proxy that can't be read is that proxy.
        assert_eq!(client(&[b"203.0.113.7, ???, 10.0.0.5"]), "10.0.0.5");
    }

    proptest! {
        /// Whatever a client writes, the address that the proxy saw stands to the right of it.
        #[test]
        fn client_cannot_hide_behind_what_it_writes(theirs in "\\PC{0,80}|[0-9a-f:., \\[\\]\"]{0,80}", hops in 0_usize..4) {
            let line = format!("{theirs}, 203.0.113.7{}", ", 10.0.0.9".repeat(hops));
            prop_assert_eq!(client(&[line.as_bytes()]), "203.0.113.7");
            let alone = client(&[theirs.as_bytes()]);
            prop_assert!(alone.parse::<IpAddr>().is_ok());
        }
    }

    #[test]
    fn nobody_is_trusted_by_default() {
        assert!(!TrustedProxies::default().trusts("127.0.0.1".parse().unwrap()));
        assert!(proxies().trusts("10.255.0.1".parse().unwrap()));
        assert!(!proxies().trusts("11.0.0.1".parse().unwrap()));
    }
}
