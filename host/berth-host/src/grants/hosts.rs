//! `grants = { http = […] }`: which hosts a plugin may call.
//!
//! A call is checked twice. By its target, before a name is resolved ([`HttpGrant::allows`]): what isn't written
//! isn't allowed. And by each address that the name resolves to ([`HttpGrant::admits`]): an address that is not the
//! public internet's is refused unless an entry names that address, so that a granted name can't be pointed inwards.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::addresses::{Network, is_global};

/// The longest host name, in bytes (RFC 1035).
const MAX_NAME: usize = 253;
/// The longest label of a name, in bytes.
const MAX_LABEL: usize = 63;

/// The schemes of `wasi:http`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// The port of a URL without one.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A host as a URL names it, normalised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name in lower case, without the root's dot.
    Name(String),
    /// An address. IPv4-mapped IPv6 is IPv4 here.
    Ip(IpAddr),
}

impl Host {
    /// The host of a URL, an IPv6 address in brackets. Nothing if no entry could ever name it: a name of other
    /// characters, or one that a resolver would take for an IPv4 address in a short or hexadecimal spelling.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            return inner.parse().ok().map(|ip: IpAddr| Self::Ip(ip.to_canonical()));
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self::Ip(ip.to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        (is_name(&name) && !is_number(&name)).then_some(Self::Name(name))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
        }
    }
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// With or without TLS.
    pub scheme: Scheme,
    /// The host.
    pub host: Host,
    /// The port, the scheme's own if the URL has none.
    pub port: u16,
}

impl Target {
    /// The entry that would allow this target.
    pub fn entry(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The entry that would admit an address for this target.
    pub fn entry_for(&self, ip: IpAddr) -> String {
        match &self.host {
            Host::Name(name) if name == LOCALHOST && ip.is_loopback() => self.entry(),
            _ => format!("{}:{}", Host::Ip(ip.to_canonical()), self.port),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}", self.entry())
    }
}

const LOCALHOST: &str = "localhost";

/// One entry of `grants.http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostEntry {
    /// As in the manifest.
    text: String,
    scheme: Option<Scheme>,
    port: Option<u16>,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// `api.example.com`.
    Name(String),
    /// `*.example.com`, without the star: `.example.com`.
    Below(String),
    /// `*`.
    AnyName,
    /// `10.0.0.0/8`, or one address.
    Network(Network),
}

impl HostEntry {
    /// Whether it allows a target. An entry without a port means the scheme's own.
    fn allows(&self, target: &Target) -> bool {
        let port = self.port.unwrap_or(target.scheme.default_port());
        port == target.port
            && self.scheme.is_none_or(|s| s == target.scheme)
            && match (&self.what, &target.host) {
                (What::Name(granted), Host::Name(name)) => granted == name,
                (What::Below(suffix), Host::Name(name)) => {
                    name.len() > suffix.len() && name.ends_with(suffix.as_str())
                }
                (What::AnyName, Host::Name(_)) => true,
                (What::Network(network), Host::Ip(ip)) => network.contains(*ip),
                _ => false,
            }
    }

    /// Whether it admits an address behind a name that is allowed. The name's own entry has said which port; so an
    /// entry without one admits the address for any.
    fn admits(&self, target: &Target, ip: IpAddr) -> bool {
        match (&self.what, &target.host) {
            (What::Network(network), _) => {
                network.contains(ip)
                    && self.port.is_none_or(|p| p == target.port)
                    && self.scheme.is_none_or(|s| s == target.scheme)
            }
            (What::Name(granted), Host::Name(_)) => {
                granted == LOCALHOST && ip.is_loopback() && self.allows(target)
            }
            _ => false,
        }
    }
}

impl fmt::Display for HostEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for HostEntry {
    type Err = String;

    /// `host`, `host:port`, `*.host`, `*`, an address or a block of addresses, each with or without a scheme. The
    /// error says what would be right.
    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            None => (None, text),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Some(Scheme::Http), rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Some(Scheme::Https), rest),
            Some((scheme, _)) => {
                return Err(format!(
                    "{scheme:?} is not a scheme; there is \"http\" and \"https\""
                ));
            }
        };
        let (host, port) = split_port(rest);
        let port = match port {
            None => None,
            Some(port) => Some(port.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(|| {
                format!(
                    "{port:?} is not a port; it is a number from 1 to 65535, as in \"api.example.com:8443\""
                )
            })?),
        };
        Ok(Self {
            text: text.to_ascii_lowercase(),
            scheme,
            port,
            what: what(host)?,
        })
    }
}

/// The host and what follows its last colon. A bare IPv6 address or block has no port; in brackets it may.
fn split_port(text: &str) -> (&str, Option<&str>) {
    if let Some(rest) = text.strip_prefix('[')
        && let Some((inner, after)) = rest.split_once(']')
    {
        return match after {
            "" => (inner, None),
            // Without its colon it is no port, and is told so.
            _ => (inner, Some(after.strip_prefix(':').unwrap_or(after))),
        };
    }
    let address = text.split('/').next().unwrap_or(text);
    if address.matches(':').count() > 1 {
        return (text, None);
    }
    match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    }
}

fn what(host: &str) -> Result<What, String> {
    if let Some((base, prefix)) = host.split_once('/') {
        return network(base, prefix);
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        return Ok(What::Network(Network::around(ip, 128)));
    }
    if host == "*" {
        return Ok(What::AnyName);
    }
    let lower = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let (name, below) = match lower.strip_prefix("*.") {
        Some(name) => (name, true),
        None => (lower.as_str(), false),
    };
    if name.contains('*') {
        return Err(format!(
            "{host:?}: \"*\" stands alone, or for the first part of a name, as in \"*.example.com\""
        ));
    }
    if !name.is_ascii() {
        return Err(format!(
            "{host:?} is not in ASCII; write the name's \"xn--\" form"
        ));
    }
    if is_name(name) && is_number(name) {
        return Err(format!(
            "{host:?} is not an IPv4 address; write its four numbers, as in \"10.0.0.1\""
        ));
    }
    if !is_name(name) {
        return Err(format!(
            "{host:?} is not a host, as in \"api.example.com\", \"*.example.com\", \"api.example.com:8443\" or \"10.0.0.0/8\""
        ));
    }
    Ok(if below {
        What::Below(format!(".{name}"))
    } else {
        What::Name(name.to_owned())
    })
}

fn network(base: &str, prefix: &str) -> Result<What, String> {
    let Ok(ip) = base.parse::<IpAddr>() else {
        return Err(format!(
            "a path can't be granted; write the host alone, as in {base:?}"
        ));
    };
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    let prefix = prefix
        .parse::<u8>()
        .ok()
        .filter(|p| *p <= longest)
        .ok_or_else(|| {
            format!("{prefix:?} is not the length of a prefix; it is a number from 0 to {longest}")
        })?;
    if ip.to_canonical() != ip {
        return Err(format!(
            "{base:?} is an IPv4 address in IPv6; write the IPv4 block"
        ));
    }
    Network::new(ip, prefix).map(What::Network).ok_or_else(|| {
        let right = Network::around(ip, prefix);
        format!("\"{base}/{prefix}\" has bits beyond its prefix; the block is \"{right}\"")
    })
}

/// Letters, digits, "-" and "_" in labels of a lawful length.
fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.split('.').all(|label| {
            (1..=MAX_LABEL).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

/// Whether a resolver may take a name for an IPv4 address: `127.1`, `0x7f000001`, `2130706433`. No top-level domain
/// is a number.
fn is_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let hex = last.strip_prefix("0x");
    (!last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()))
        || hex.is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Every entry of a plugin. Empty unless the manifest says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpGrant(Vec<HostEntry>);

impl HttpGrant {
    /// These and no others.
    pub fn new(entries: Vec<HostEntry>) -> Self {
        Self(entries)
    }

    /// Whether nothing is granted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries, in the manifest's order.
    pub fn entries(&self) -> impl Iterator<Item = &HostEntry> {
        self.0.iter()
    }

    /// The first check: whether a target may be called at all.
    pub fn allows(&self, target: &Target) -> bool {
        self.0.iter().any(|entry| entry.allows(target))
    }

    /// The second check: whether an allowed target may be called at this address.
    pub fn admits(&self, target: &Target, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        match &target.host {
            Host::Ip(named) => *named == ip && self.allows(target),
            Host::Name(_) => is_global(ip) || self.0.iter().any(|entry| entry.admits(target, ip)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(entries: &[&str]) -> HttpGrant {
        HttpGrant::new(entries.iter().map(|e| e.parse().unwrap()).collect())
    }

    fn target(url: &str) -> Target {
        let uri: http::Uri = url.parse().unwrap();
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            _ => Scheme::Https,
        };
        Target {
            scheme,
            host: Host::parse(uri.host().unwrap()).unwrap(),
            port: uri.port_u16().unwrap_or(scheme.default_port()),
        }
    }

    #[test]
    fn entries_allow_what_they_say_and_nothing_else() {
        // Entry, allowed, refused.
        let table: &[(&str, &[&str], &[&str])] = &[
            (
                "api.example.com",
                &[
                    "https://api.example.com/x",
                    "http://api.example.com",
                    "https://API.Example.com.",
                    "https://api.example.com:443",
                    "http://api.example.com:80",
                ],
                &[
                    "https://api.example.com:8443",
                    "https://api.example.com:80",
                    "https://xapi.example.com",
                    "https://api.example.com.evil.test",
                    "https://example.com",
                    "https://a.api.example.com",
                    "https://evil.test/api.example.com",
                ],
            ),
            (
                "*.example.com",
                &["https://a.example.com", "http://a.b.example.com"],
                &[
                    "https://example.com",
                    "https://aexample.com",
                    "https://a.example.com:8443",
                    "https://a.example.com.evil.test",
                ],
            ),
            (
                "api.internal:8443",
                &["https://api.internal:8443", "http://api.internal:8443"],
                &["https://api.internal", "http://api.internal"],
            ),
            (
                "https://only-tls.example",
                &["https://only-tls.example"],
                &["http://only-tls.example", "http://only-tls.example:443"],
            ),
            (
                "http://plain.example",
                &["http://plain.example"],
                &["https://plain.example"],
            ),
            (
                "10.0.0.0/8",
                &[
                    "http://10.1.2.3",
                    "https://10.255.255.255",
                    "http://[::ffff:10.1.2.3]",
                ],
                &[
                    "http://10.1.2.3:8080",
                    "http://11.0.0.1",
                    "http://name.example",
                    "http://[fd00::1]",
                ],
            ),
            ("10.0.0.0/8:8080", &["http://10.1.2.3:8080"], &["http://10.1.2.3"]),
            (
                "127.0.0.1:9000",
                &["http://127.0.0.1:9000"],
                &[
                    "http://127.0.0.1",
                    "http://127.0.0.2:9000",
                    "http://localhost:9000",
                ],
            ),
            (
                "[::1]:9000",
                &["http://[::1]:9000"],
                &["http://[::1]", "http://[::2]:9000"],
            ),
            ("fd00::/8", &["http://[fd00::1]"], &["http://[fe00::1]"]),
            ("[fd00::/8]:81", &["http://[fd00::1]:81"], &["http://[fd00::1]"]),
            ("::1", &["http://[::1]"], &["http://[::1]:9000"]),
            (
                "localhost:9000",
                &["http://localhost:9000"],
                &[
                    "http://localhost",
                    "http://127.0.0.1:9000",
                    "http://a.localhost:9000",
                ],
            ),
            (
                "*",
                &["https://anything.example", "http://localhost"],
                &[
                    "http://127.0.0.1",
                    "http://[::1]",
                    "https://anything.example:8443",
                ],
            ),
        ];
        for (entry, allowed, refused) in table {
            let grant = grant(&[entry]);
            for url in *allowed {
                assert!(grant.allows(&target(url)), "{entry} allows {url}");
            }
            for url in *refused {
                assert!(!grant.allows(&target(url)), "{entry} refuses {url}");
            }
        }
        assert!(!HttpGrant::default().allows(&target("https://example.com")));
    }

    #[test]
    fn an_address_that_is_not_public_needs_an_entry_of_its_own() {
        // Entries, target, address, admitted.
        let table: &[(&[&str], &str, &str, bool)] = &[
            (&["a.example"], "https://a.example", "93.184.216.34", true),
            (&["a.example"], "https://a.example", "127.0.0.1", false),
            (&["a.example"], "https://a.example", "::ffff:127.0.0.1", false),
            (&["a.example"], "https://a.example", "169.254.169.254", false),
            (
                &["a.example", "10.0.0.0/8"],
                "https://a.example",
                "10.1.2.3",
                true,
            ),
            (
                &["a.example", "10.0.0.0/8"],
                "https://a.example",
                "::ffff:10.1.2.3",
                true,
            ),
            (
                &["a.example", "10.0.0.0/8"],
                "https://a.example",
                "192.168.0.1",
                false,
            ),
            (
                &["a.example:8443", "10.0.0.0/8"],
                "https://a.example:8443",
                "10.1.2.3",
                true,
            ),
            (
                &["a.example:8443", "10.0.0.0/8:80"],
                "https://a.example:8443",
                "10.1.2.3",
                false,
            ),
            (
                &["a.example", "http://10.0.0.0/8"],
                "https://a.example",
                "10.1.2.3",
                false,
            ),
            (&["localhost:9000"], "http://localhost:9000", "127.0.0.1", true),
            (&["localhost:9000"], "http://localhost:9000", "::1", true),
            (&["localhost:9000"], "http://localhost:9000", "10.0.0.1", false),
            (
                &["localhost:9000", "a.example:9000"],
                "http://a.example:9000",
                "127.0.0.1",
                false,
            ),
            (&["*"], "http://localhost", "127.0.0.1", false),
            (&["127.0.0.1"], "http://127.0.0.1", "127.0.0.1", true),
            (&["127.0.0.1"], "http://127.0.0.1", "127.0.0.2", false),
        ];
        for (entries, url, ip, admitted) in table {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(
                grant(entries).admits(&target(url), ip),
                *admitted,
                "{entries:?} {url} {ip}"
            );
        }
    }

    #[test]
    fn other_spellings_of_an_ipv4_address_are_no_names() {
        for text in [
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.0.0.1",
            "0177.0.0.1",
            "1.2.3.4.5",
            "a.0x1",
        ] {
            assert_eq!(Host::parse(text), None, "{text}");
        }
        for text in ["", ".", "a..b", "a b", "a%20b", "[::1", "é.example", "a@b"] {
            assert_eq!(Host::parse(text), None, "{text}");
        }
        assert_eq!(
            Host::parse("[::ffff:127.0.0.1]").unwrap().to_string(),
            "127.0.0.1"
        );
        assert_eq!(Host::parse("0xyz.example").unwrap().to_string(), "0xyz.example");
    }

    #[test]
    fn entry_of_a_denial_would_allow_it() {
        for url in [
            "https://api.example.com",
            "http://a_b.example:81",
            "http://127.0.0.1:9000",
            "http://[::1]",
            "https://[::1]:1",
        ] {
            let target = target(url);
            let entry = target.entry();
            assert!(grant(&[&entry]).allows(&target), "{entry} for {url}");
        }
        for (url, ip) in [
            ("https://a.example:8443", "fd00::1"),
            ("http://localhost:81", "127.0.0.1"),
            ("http://a.example", "::ffff:10.0.0.1"),
        ] {
            let target = target(url);
            let entry = target.entry_for(ip.parse().unwrap());
            assert!(
                grant(&[&entry]).admits(&target, ip.parse().unwrap()),
                "{entry} for {url}"
            );
        }
    }
}
