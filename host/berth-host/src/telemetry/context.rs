//! W3C Trace Context, level 1: <https://www.w3.org/TR/trace-context-1/>.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// Names the trace and the caller's span.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What vendors keep with a trace. Means nothing without a valid `traceparent`.
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes of `tracestate` that are kept; the standard asks for no more than this.
const MAX_STATE: usize = 512;

/// The caller's span, if it names exactly one and names it well.
pub(super) fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    let mut given = headers.get_all(TRACEPARENT).iter();
    let (Some(only), None) = (given.next(), given.next()) else {
        return None;
    };
    let (trace, span, flags) = parse(only.as_bytes())?;
    Some(SpanContext::new(trace, span, flags, true, state(headers)))
}

/// `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, all in lower case; a later version may go on after a dash.
fn parse(value: &[u8]) -> Option<(TraceId, SpanId, TraceFlags)> {
    let value = std::str::from_utf8(value).ok()?;
    let (head, rest) = value.split_at_checked(55)?;
    let mut parts = head.split('-');
    let mut hex = |digits: usize| {
        let part = parts.next()?;
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (part.len() == digits && part.bytes().all(is_hex)).then_some(part)
    };
    let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    let ends_well = match version {
        "ff" => false,
        "00" => rest.is_empty(),
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    let trace = TraceId::from_hex(trace).ok()?;
    let span = SpanId::from_hex(span).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    (ends_well && trace != TraceId::INVALID && span != SpanId::INVALID).then_some((trace, span, flags))
}

/// The lists of all `tracestate` headers; an unusable one is none.
fn state(headers: &HeaderMap) -> TraceState {
    let lists: Vec<&str> = headers
        .get_all(TRACESTATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let list = lists.join(",");
    if list.is_empty() || list.len() > MAX_STATE {
        return TraceState::NONE;
    }
    list.parse().unwrap_or(TraceState::NONE)
}

/// A span as a `traceparent`.
pub(super) fn traceparent(span: &SpanContext) -> Option<HeaderValue> {
    let flags = span.trace_flags() & TraceFlags::SAMPLED;
    let text = format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), flags.to_u8());
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(list: &[(HeaderName, &str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            })
    }

    #[test]
    fn a_good_parent_is_taken_and_written_as_it_was() {
        let found = parent(&headers(&[
            (TRACEPARENT, GOOD),
            (TRACESTATE, "a=1"),
            (TRACESTATE, "b=2"),
        ]))
        .unwrap();
        assert!(found.is_remote() && found.is_sampled());
        assert_eq!(found.trace_state().header(), "a=1,b=2");
        assert_eq!(traceparent(&found).unwrap(), GOOD);
        let unsampled = GOOD.replace("-01", "-00");
        let found = parent(&headers(&[(TRACEPARENT, &unsampled)])).unwrap();
        assert!(!found.is_sampled());
        assert_eq!(traceparent(&found).unwrap(), unsampled.as_str());
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for later in [
            GOOD.replacen("00", "01", 1),
            GOOD.replacen("00", "cc", 1) + "-what-will-be",
        ] {
            assert!(parse(later.as_bytes()).is_some(), "{later}");
        }
    }

    #[test]
    fn a_malformed_parent_is_none() {
        let bad = [
            String::new(),
            "00".to_owned(),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            GOOD.replacen("00", "0", 1),
            format!("{GOOD}-"),
            format!("{GOOD}-x"),
            GOOD.replacen("00", "01", 1) + "x",
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GOOD.replace("4bf9", "+bf9"),
            GOOD.replace("-01", "-0"),
            GOOD.replace('-', "_"),
            format!(" {GOOD}"),
            "é".repeat(40),
        ];
        for value in bad {
            assert!(parse(value.as_bytes()).is_none(), "{value:?}");
        }
        assert!(parent(&headers(&[(TRACEPARENT, GOOD), (TRACEPARENT, GOOD)])).is_none());
    }

    #[test]
    fn an_unusable_state_does_not_cost_the_parent() {
        for state in ["no equals sign", &"a=1,".repeat(400)] {
            let found = parent(&headers(&[(TRACEPARENT, GOOD), (TRACESTATE, state)])).unwrap();
            assert_eq!(found.trace_state().header(), "", "{state}");
        }
    }
}
