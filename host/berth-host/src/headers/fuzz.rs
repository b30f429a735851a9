//! What is filtered out of headers and trailers, whatever a client names in `Connection`.

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

fn name() -> impl Strategy<Value = HeaderName> {
    prop_oneof![
        4 => proptest::sample::select(vec![
            "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length",
            "content-type", "authorization", "cookie", "proxy-authorization", "proxy-connection", "x-hop", "x-mine",
            "berth-user-id", "berth-user-roles", "berth-", "accept",
        ])
        .prop_map(HeaderName::from_static),
        1 => "[a-z][a-z0-9-]{0,12}".prop_map(|name| HeaderName::from_bytes(name.as_bytes()).unwrap()),
    ]
}

fn value() -> impl Strategy<Value = HeaderValue> {
    let bytes = prop::collection::vec(prop_oneof![32..127_u8, 128..=255_u8, Just(b'\t')], 0..20);
    bytes.prop_map(|bytes| HeaderValue::from_bytes(&bytes).unwrap())
}

/// A value of `Connection`: names in any case with any white space, and rubbish between them.
fn connection() -> impl Strategy<Value = (Vec<HeaderName>, HeaderValue)> {
    let item = (
        name(),
        any::<bool>(),
        "[ \t]{0,2}",
        prop::option::of("[ ,;\u{e9}]{0,3}"),
    );
    prop::collection::vec(item, 0..5).prop_map(|items| {
        let (mut names, mut text) = (Vec::new(), Vec::new());
        for (name, upper, space, rubbish) in items {
            let written = if upper {
                name.as_str().to_uppercase()
            } else {
                name.to_string()
            };
            text.push(format!("{space}{written}{space}"));
            text.extend(rubbish);
            names.push(name);
        }
        (names, HeaderValue::from_bytes(text.join(",").as_bytes()).unwrap())
    })
}

fn map(entries: &[(HeaderName, HeaderValue)]) -> HeaderMap {
    entries.iter().cloned().collect()
}

proptest! {
    #[test]
    fn named_and_own_headers_go_and_all_others_stay(
        entries in prop::collection::vec((name(), value()), 0..20),
        connections in prop::collection::vec(connection(), 0..3),
    ) {
        let mut headers = map(&entries);
        headers.remove(header::CONNECTION);
        for (_, value) in &connections {
            headers.append(header::CONNECTION, value.clone());
        }
        let before = headers.clone();
        strip(&mut headers);
        let named: Vec<&HeaderName> = connections.iter().flat_map(|(names, _)| names).collect();
        for name in before.keys() {
            let goes = is_ours(name) || (named.contains(&name) && !ESSENTIAL.contains(name));
            prop_assert_eq!(headers.contains_key(name), !goes, "{}", name);
            if !goes {
                prop_assert!(headers.get_all(name).iter().eq(before.get_all(name)), "{} as it was", name);
            }
        }
        prop_assert!(headers.keys().all(|name| before.contains_key(name)));
    }

    #[test]
    fn any_connection_header_is_survived(value in value()) {
        let mut headers = HeaderMap::new();
        headers.append(header::CONNECTION, value);
        headers.append(header::HOST, HeaderValue::from_static("a"));
        strip(&mut headers);
        prop_assert!(headers.contains_key(header::HOST));
    }

    #[test]
    fn trailers_lose_what_belongs_to_the_connection_and_to_the_host(
        entries in prop::collection::vec((name(), value()), 0..20),
    ) {
        let before = map(&entries);
        let after = without_forbidden_trailers(Frame::<Bytes>::trailers(before.clone())).into_trailers();
        let after = after.map_err(|_| TestCaseError::fail("trailers stay trailers"))?;
        for name in before.keys() {
            let goes = is_ours(name) || is_forbidden(name) || NO_TRAILERS.contains(name);
            prop_assert_eq!(after.contains_key(name), !goes, "{}", name);
            prop_assert!(goes || after.get_all(name).iter().eq(before.get_all(name)));
        }
        prop_assert!(after.keys().all(|name| before.contains_key(name)));
    }

    #[test]
    fn data_passes_the_filter_of_trailers_untouched(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let after = without_forbidden_trailers(Frame::data(Bytes::from(bytes.clone()))).into_data();
        prop_assert_eq!(after.ok(), Some(Bytes::from(bytes)));
    }

    #[test]
    fn hop_by_hop_headers_are_forbidden_in_any_case(upper in any::<bool>(), name in proptest::sample::select(vec![
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
        "transfer-encoding", "upgrade", "host",
    ])) {
        let written = if upper { name.to_uppercase() } else { name.to_owned() };
        prop_assert!(is_forbidden(&HeaderName::from_bytes(written.as_bytes()).unwrap()));
    }
}
