//! Single values: from text to a type, or a sentence that says what would be right.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Uri};
use tracing::level_filters::LevelFilter;

use super::read::{Value, nearest};
use crate::grants::addresses::Network;
use crate::grants::hosts::HostEntry;
use crate::identity::limits::Rate;
use crate::postgres::{EXAMPLE, connect};
use crate::runtime::plugin::Policy;
use crate::runtime::reuse::Reuse;
use crate::runtime::signature::PublicKey;
use crate::secret::Secret;
use crate::state::Access;
use crate::tokens::TokenAlgorithm;

/// A value, or what is wrong with it.
pub(super) type Parsed<T> = Result<T, String>;

/// A function from a raw value to a typed one.
pub(super) fn text(value: &Value) -> Parsed<String> {
    match value {
        Value::Text(text) => Ok(text.clone()),
        other => Err(format!("must be a string, not {}", other.kind())),
    }
}

pub(super) fn path(value: &Value) -> Parsed<String> {
    let text = text(value)?;
    if text.is_empty() {
        Err("must not be empty".to_owned())
    } else {
        Ok(text)
    }
}

pub(super) fn public_key(value: &Value) -> Parsed<PublicKey> {
    PublicKey::parse(&text(value)?)
}

pub(super) fn boolean(value: &Value) -> Parsed<bool> {
    match value {
        Value::Boolean(value) => Ok(*value),
        Value::Text(text) if text == "true" => Ok(true),
        Value::Text(text) if text == "false" => Ok(false),
        other => Err(format!("must be true or false, not {}", other.kind())),
    }
}

pub(super) fn address(value: &Value) -> Parsed<SocketAddr> {
    let text = text(value)?;
    text.parse().map_err(|_| {
        format!("{text:?} is not an address with a port, as in \"127.0.0.1:8080\" or \"[::1]:8080\"")
    })
}

pub(super) fn address_or_off(value: &Value) -> Parsed<Option<SocketAddr>> {
    if matches!(value, Value::Text(text) if text == "off") {
        return Ok(None);
    }
    address(value).map(Some).map_err(|e| format!("{e}, nor \"off\""))
}

/// A size in bytes: `"64MiB"`, or a number.
pub(super) fn size(min: u64, max: u64) -> impl Fn(&Value) -> Parsed<u64> {
    move |value| {
        let text = match value {
            Value::Text(text) | Value::Integer(text) => text,
            other => return Err(format!("must be a size as in \"64MiB\", not {}", other.kind())),
        };
        let size: bytesize::ByteSize = text
            .parse()
            .map_err(|_| format!("{text:?} is not a size, as in \"64MiB\" or \"512KiB\""))?;
        within(size.as_u64(), min, max, |n| {
            bytesize::ByteSize(n).display().iec().to_string().replace(' ', "")
        })
    }
}

/// A whole number.
pub(super) fn count(min: u32, max: u32) -> impl Fn(&Value) -> Parsed<u32> {
    move |value| {
        let text = match value {
            Value::Text(text) | Value::Integer(text) => text,
            other => return Err(format!("must be a whole number, not {}", other.kind())),
        };
        let number: i64 = text
            .replace('_', "")
            .parse()
            .map_err(|_| format!("{text:?} is not a whole number"))?;
        let number = u64::try_from(number).map_err(|_| format!("{number} is too little; at least {min}"))?;
        let number = within(number, min.into(), max.into(), |n| n.to_string())?;
        u32::try_from(number).map_err(|_| format!("{number} is too much; at most {max}"))
    }
}

fn within(number: u64, min: u64, max: u64, show: impl Fn(u64) -> String) -> Parsed<u64> {
    if number < min {
        return Err(format!("{} is too little; at least {}", show(number), show(min)));
    }
    if number > max {
        return Err(format!("{} is too much; at most {}", show(number), show(max)));
    }
    Ok(number)
}

/// A time: `"500ms"`, `"10s"`, `"1m 30s"`. More than nothing and at most a day.
pub(super) fn duration(value: &Value) -> Parsed<Duration> {
    let Value::Text(text) = value else {
        return Err(format!(
            "must be a time with its unit as in \"500ms\" or \"10s\", not {}",
            value.kind()
        ));
    };
    let time = humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a time with its unit, as in \"500ms\" or \"10s\""))?;
    if time < Duration::from_millis(1) || time > Duration::from_secs(86_400) {
        return Err(format!("{text:?} is out of bounds; from \"1ms\" to \"1day\""));
    }
    Ok(time)
}

/// So many within a time, as in `"10/5min"`; nothing for `"off"`.
pub(super) fn rate_or_off(value: &Value) -> Parsed<Option<Rate>> {
    let text = text(value)?;
    if text == "off" {
        return Ok(None);
    }
    let wrong =
        || format!("{text:?} is not a number within a time, as in \"60/min\" or \"10/5min\", nor \"off\"");
    let (number, time) = text.split_once('/').ok_or_else(wrong)?;
    let number: u32 = number.trim().parse().map_err(|_| wrong())?;
    let time = time.trim();
    // "60/min" is "60/1min".
    let time = if time.starts_with(|c: char| c.is_ascii_digit()) {
        time.to_owned()
    } else {
        format!("1{time}")
    };
    let per = duration(&Value::Text(time)).map_err(|_| wrong())?;
    let count = NonZeroU32::new(number)
        .filter(|count| count.get() <= 1_000_000)
        .ok_or_else(|| format!("{number} is out of bounds; from 1 to 1000000, or \"off\""))?;
    Ok(Some(Rate { count, per }))
}

/// An address, or a block of addresses.
pub(super) fn network(value: &Value) -> Parsed<Network> {
    let text = text(value)?;
    let wrong = || format!("{text:?} is not an address or a block, as in \"10.0.0.0/8\" or \"::1\"");
    let (base, prefix) = match text.split_once('/') {
        Some((base, prefix)) => (base, Some(prefix)),
        None => (text.as_str(), None),
    };
    let base: IpAddr = base.parse().map_err(|_| wrong())?;
    let whole = if base.is_ipv4() { 32 } else { 128 };
    let prefix: u8 = match prefix {
        Some(prefix) => prefix.parse().map_err(|_| wrong())?,
        None => whole,
    };
    if prefix > whole {
        return Err(format!("{text:?}: the prefix is at most {whole}"));
    }
    Network::new(base, prefix).ok_or_else(|| {
        format!(
            "{text:?} has bits beyond its prefix; did you mean \"{}\"?",
            Network::around(base, prefix)
        )
    })
}

/// How long something is valid, which is counted in whole seconds: at most 400 days, as long as a browser keeps a cookie.
pub(super) fn life(value: &Value) -> Parsed<Duration> {
    let Value::Text(text) = value else {
        return Err(format!(
            "must be a time with its unit as in \"15m\" or \"30days\", not {}",
            value.kind()
        ));
    };
    let time = humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a time with its unit, as in \"15m\" or \"30days\""))?;
    if time < Duration::from_secs(1) || time > Duration::from_secs(400 * 86_400) {
        return Err(format!("{text:?} is out of bounds; from \"1s\" to \"400days\""));
    }
    Ok(time)
}

pub(super) fn token_algorithm(value: &Value) -> Parsed<TokenAlgorithm> {
    let text = text(value)?;
    let known = TokenAlgorithm::ALL.map(TokenAlgorithm::key);
    TokenAlgorithm::ALL
        .into_iter()
        .find(|algorithm| algorithm.key() == text)
        .ok_or_else(|| unknown("algorithm", &text, &known))
}

pub(super) fn policy(value: &Value) -> Parsed<Policy> {
    let text = text(value)?;
    let known = Policy::ALL.map(Policy::key);
    Policy::ALL
        .into_iter()
        .find(|p| p.key() == text)
        .ok_or_else(|| unknown("policy", &text, &known))
}

/// Requests that a reused instance serves unless the manifest says otherwise.
const REUSE_COUNT: u32 = 1_000;
/// Requests that a concurrently used instance serves at once unless the manifest says otherwise.
const REUSE_AT_ONCE: u32 = 16;

pub(super) fn reuse(value: &Value) -> Parsed<Reuse> {
    let text = text(value)?;
    match text.as_str() {
        "none" => Ok(Reuse::None),
        "serial" => Ok(Reuse::Serial {
            count: REUSE_COUNT,
            random: false,
        }),
        "concurrent" => Ok(Reuse::Concurrent {
            count: REUSE_COUNT,
            at_once: REUSE_AT_ONCE,
            random: false,
        }),
        _ => Err(unknown("kind of reuse", &text, &["none", "serial", "concurrent"])),
    }
}

pub(super) fn access(value: &Value) -> Parsed<Access> {
    let text = text(value)?;
    match text.as_str() {
        "public" => Ok(Access::Public),
        "user" => Ok(Access::User),
        _ => match text.strip_prefix("role:") {
            Some(role) if !role.is_empty() => Ok(Access::Role(role.to_owned())),
            _ => Err(format!("{text:?} is not \"public\", \"user\" or \"role:<name>\"")),
        },
    }
}

/// The most talkative level of a guest that is heard.
pub(super) fn level(value: &Value) -> Parsed<LevelFilter> {
    const KNOWN: [(&str, LevelFilter); 6] = [
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
        ("off", LevelFilter::OFF),
    ];
    let text = text(value)?;
    let known = KNOWN.iter().find(|(name, _)| *name == text);
    known
        .map(|(_, level)| *level)
        .ok_or_else(|| unknown("level", &text, &KNOWN.map(|(name, _)| name)))
}

/// A collector's base URL, as the URL that traces are posted to; or none.
pub(super) fn collector(value: &Value) -> Parsed<Option<String>> {
    let text = text(value)?;
    if text == "off" {
        return Ok(None);
    }
    let example = "as in \"http://127.0.0.1:4318\", nor \"off\"";
    let url: Uri = text
        .parse()
        .map_err(|_| format!("{text:?} is not a URL, {example}"))?;
    match (url.scheme_str(), url.authority()) {
        (Some("http"), Some(authority)) if !authority.as_str().contains('@') => {}
        (Some("https"), Some(_)) => {
            return Err(format!(
                "{text:?}: TLS to a collector isn't available; run a collector near this host and name it with http://"
            ));
        }
        (Some("http"), Some(_)) => {
            return Err(
                "has a name or a password in it; put secrets into the environment variable OTEL_EXPORTER_OTLP_HEADERS"
                    .to_owned(),
            );
        }
        _ => return Err(format!("{text:?} is not a URL, {example}")),
    }
    if url.query().is_some() {
        return Err("has a query; the base URL has none".to_owned());
    }
    Ok(Some(format!("{}/v1/traces", text.trim_end_matches('/'))))
}

/// `"100%"`, `"0.5%"`, as a part of one.
pub(super) fn percentage(value: &Value) -> Parsed<f64> {
    let text = text(value)?;
    let number = text.strip_suffix('%').map(str::trim_end);
    match number.and_then(|n| n.parse::<f64>().ok()) {
        Some(n) if (0.0..=100.0).contains(&n) => Ok(n / 100.0),
        _ => Err(format!(
            "{text:?} is not a percentage from \"0%\" to \"100%\", as in \"5%\""
        )),
    }
}

/// The methods of RFC 9110 and RFC 5789, in capitals. A misspelt extension method would never be called.
pub(super) fn method(value: &Value) -> Parsed<Method> {
    const KNOWN: [&str; 8] = [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE",
    ];
    let text = text(value)?;
    let known = KNOWN.iter().find(|k| **k == text);
    known
        .and_then(|k| k.parse().ok())
        .ok_or_else(|| unknown("method", &text, &KNOWN))
}

/// An origin as a browser writes it, or `*`.
pub(super) fn origin(value: &Value) -> Parsed<HeaderValue> {
    let text = text(value)?;
    let wrong = || {
        format!(
            "{text:?} is not an origin: write \"*\", or scheme and host without a path, as in \"https://app.example.com\""
        )
    };
    let plain = text == "*"
        || text.split_once("://").is_some_and(|(scheme, host)| {
            !scheme.is_empty()
                && !host.is_empty()
                && !text.bytes().any(|b| b.is_ascii_uppercase())
                && !host.contains(['/', '?', '#', '@', '*'])
                && host.parse::<http::uri::Authority>().is_ok()
        });
    if plain {
        HeaderValue::from_str(&text).map_err(|_| wrong())
    } else {
        Err(wrong())
    }
}

/// A header's name.
pub(super) fn header_name(value: &Value) -> Parsed<HeaderName> {
    let text = text(value)?;
    text.parse()
        .map_err(|_| format!("{text:?} is not the name of a header, as in \"content-type\""))
}

/// A host that a plugin may call.
pub(super) fn host_entry(value: &Value) -> Parsed<HostEntry> {
    text(value)?.parse()
}

/// The address of a Postgres server. A message never repeats it, as it may have a password in it.
pub(super) fn postgres_url(value: &Value) -> Parsed<Secret> {
    let text = text(value)?;
    let known = ["postgres://", "postgresql://"];
    if !known.iter().any(|scheme| text.starts_with(scheme)) {
        return Err(format!("is no address of a Postgres server, as in \"{EXAMPLE}\""));
    }
    let url = Secret::new(text);
    match connect::address(&url) {
        Ok(_) => Ok(url),
        Err(fault) => Err(format!("{fault}; it is like {EXAMPLE}")),
    }
}

/// The name of a schema that a plugin may be granted.
pub(super) fn schema(value: &Value) -> Parsed<String> {
    let name = text(value)?;
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let goes_on = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !starts || !goes_on || name.len() > 63 {
        return Err(format!(
            "\"{name}\" can't be a schema here: a name has 1 to 63 lower-case letters, digits and \"_\", and begins with no digit"
        ));
    }
    if name.starts_with("pg_")
        || ["berth", "node", "vault", "public", "information_schema"].contains(&name.as_str())
    {
        return Err(format!("\"{name}\" is not for plugins; choose another name"));
    }
    Ok(name)
}

pub(crate) fn is_plugin_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn unknown(what: &str, given: &str, known: &[&str]) -> String {
    match nearest(given, known) {
        Some(near) => format!("{given:?} is not a {what}; did you mean \"{near}\"?"),
        None => format!("{given:?} is not a {what}; there is {}", list(known)),
    }
}

/// `"a", "b" and "c"`.
pub(super) fn list(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|w| format!("\"{w}\"")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => "none".to_owned(),
    }
}
