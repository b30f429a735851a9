//! Guests that call other hosts: what they may call, and what is on the wire.

use std::sync::{Arc, Mutex};

use berth_tests::berth::{Berth, Manifest};
use berth_tests::upstream::Upstream;
use berth_tests::wire::{Response, request};

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n";

/// A host with the `fetch` fixtures, which may call these.
pub(crate) fn berth(hosts: &[String], more: &str) -> Berth {
    let grants = if hosts.is_empty() {
        String::new()
    } else {
        format!("grants = {{ http = {hosts:?} }}\n")
    };
    with_lines(&format!("{grants}{more}"))
}

fn with_lines(lines: &str) -> Berth {
    Manifest::new()
        .handler_with("fixtures/fetch", lines)
        .handler_with("fixtures/fetch-p3", lines)
        .start()
}

/// `GET` through a fixture.
pub(crate) fn fetch(berth: &Berth, plugin: &str, url: &str, more: &[(&str, &str)]) -> Response {
    let mut headers = vec![("x-url", url)];
    headers.extend(more);
    request(berth.address, "GET", &format!("/{plugin}/x"), &headers, b"")
}

/// The log line of a denial: the line of the manifest that it gives for a plugin.
fn line_of_denial(berth: &Berth, plugin: &str) -> String {
    let event = berth.logged("the denial", |e| {
        e["target"] == "berth::guest"
            && e["plugin"] == plugin
            && e["message"].as_str().is_some_and(|m| m.contains("refused"))
    });
    let message = event["message"].as_str().unwrap();
    assert_eq!(event["level"], "WARN");
    let (_, line) = message
        .split_once(&format!("[plugins.{plugin}] "))
        .unwrap_or_else(|| panic!("no line in {message:?}"));
    line.to_owned()
}

#[test]
fn granted_host_is_called_by_both_generations() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let upstream = Upstream::start(move |mut peer| {
        while let Some(head) = peer.head() {
            seen.lock().unwrap().push(head);
            peer.send("HTTP/1.1 203 Odd\r\ncontent-length: 3\r\nx-own: 1\r\n\r\nok\n");
        }
    });
    let berth = berth(&[format!("127.0.0.1:{}", upstream.port())], "");
    for plugin in ["fetch", "fetch-p3"] {
        let answer = fetch(&berth, plugin, &upstream.url("/a/b?c=d"), &[]);
        assert_eq!((answer.status, answer.text().as_str()), (203, "ok\n"), "{plugin}");
        let head = heads.lock().unwrap().pop().unwrap();
        assert!(head.starts_with("GET /a/b?c=d HTTP/1.1\r\n"), "{head}");
        let host = format!("\r\nhost: {}\r\n", upstream.address);
        assert_eq!(
            head.to_ascii_lowercase().matches("\r\nhost:").count(),
            1,
            "{head}"
        );
        assert!(head.contains(&host), "{head}");
    }
    let log = berth.log();
    assert!(
        !log.iter().any(|e| e["level"] == "WARN" || e["level"] == "ERROR"),
        "nothing to complain about: {log:?}"
    );
}

#[test]
fn host_that_is_not_granted_is_denied_and_the_log_has_the_line_that_grants_it() {
    for (granted, kept) in [
        (vec![], ""),
        (
            vec!["api.example.com".to_owned(), "127.0.0.1".to_owned()],
            "\"api.example.com\", \"127.0.0.1\", ",
        ),
    ] {
        for plugin in ["fetch", "fetch-p3"] {
            let upstream = Upstream::answering(OK);
            let url = upstream.url("/");
            let closed = berth(&granted, "");
            let answer = fetch(&closed, plugin, &url, &[]);
            assert_eq!(
                (answer.status, answer.text().trim()),
                (502, "HttpRequestDenied"),
                "{granted:?}"
            );
            assert_eq!(upstream.accepted(), 0, "nobody was called");
            let line = line_of_denial(&closed, plugin);
            assert_eq!(
                line,
                format!("grants = {{ http = [{kept}\"{}\"] }}", upstream.address)
            );
            drop(closed);
            let open = Manifest::new()
                .handler_with(&format!("fixtures/{plugin}"), &line)
                .start();
            assert_eq!(fetch(&open, plugin, &url, &[]).text(), "ok\n", "{line}");
        }
    }
}

#[test]
fn granted_name_that_leads_inwards_is_refused_without_an_entry_for_the_address() {
    let upstream = Upstream::answering(OK);
    // Any name is granted; this one resolves to a loopback address on every machine.
    let any = format!("*:{}", upstream.port());
    let url = format!("http://localhost:{}/", upstream.port());
    let closed = berth(std::slice::from_ref(&any), "");
    for plugin in ["fetch", "fetch-p3"] {
        assert_eq!(
            fetch(&closed, plugin, &url, &[]).text().trim(),
            "HttpRequestDenied"
        );
    }
    let line = line_of_denial(&closed, "fetch");
    assert_eq!(upstream.accepted(), 0, "nobody was called");
    let open = with_lines(&line);
    assert_eq!(fetch(&open, "fetch", &url, &[]).text(), "ok\n", "{line}");
    for address in ["127.0.0.0/8", "127.0.0.1"] {
        let open = berth(&[any.clone(), address.to_owned()], "");
        assert_eq!(fetch(&open, "fetch", &url, &[]).text(), "ok\n", "{address}");
    }
    let open = berth(&[format!("localhost:{}", upstream.port())], "");
    assert_eq!(fetch(&open, "fetch", &url, &[]).text(), "ok\n");
}

#[test]
fn disguised_address_is_refused() {
    let upstream = Upstream::answering(OK);
    let port = upstream.port();
    let berth = berth(&[format!("*:{port}"), format!("good.example:{port}")], "");
    for (authority, code) in [
        (format!("127.0.0.1:{port}"), "HttpRequestDenied"),
        (format!("[::ffff:127.0.0.1]:{port}"), "HttpRequestDenied"),
        (format!("[::1]:{port}"), "HttpRequestDenied"),
        (format!("2130706433:{port}"), "HttpRequestUriInvalid"),
        (format!("127.1:{port}"), "HttpRequestUriInvalid"),
        (format!("0x7f000001:{port}"), "HttpRequestUriInvalid"),
        (format!("good.example@127.0.0.1:{port}"), "HttpRequestUriInvalid"),
    ] {
        let answer = fetch(&berth, "fetch", &format!("http://{authority}/"), &[]);
        assert_eq!(answer.text().trim(), code, "{authority}");
    }
    assert_eq!(upstream.accepted(), 0, "nobody was called");
}

#[test]
fn redirect_is_the_guests_to_follow_and_each_step_is_checked() {
    let private = Upstream::answering(OK);
    let redirect = format!(
        "HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n",
        private.url("/secret")
    );
    let public = Upstream::answering(redirect);
    let berth = berth(&[format!("127.0.0.1:{}", public.port())], "");
    let answer = fetch(&berth, "fetch", &public.url("/"), &[]);
    assert_eq!(answer.status, 302);
    let location = answer.header("location").unwrap();
    assert_eq!(location, private.url("/secret"));
    assert_eq!(
        fetch(&berth, "fetch", location, &[]).text().trim(),
        "HttpRequestDenied"
    );
    assert_eq!(private.accepted(), 0);
}

#[test]
fn two_thousand_calls_in_a_row_use_a_handful_of_connections() {
    let upstream = Upstream::answering(OK);
    let url = upstream.url("/");
    let berth = berth(
        &[format!("127.0.0.1:{}", upstream.port())],
        "limits = { cpu = \"10s\" }",
    );
    for _ in 0..10 {
        let answer = fetch(&berth, "fetch", &url, &[("x-times", "200")]);
        assert_eq!(answer.text(), "200 calls\n");
    }
    let accepted = upstream.accepted();
    assert!(accepted <= 8, "{accepted} connections for 2000 calls");
}

#[test]
fn plugins_do_not_share_connections() {
    let upstream = Upstream::answering(OK);
    let grants = format!("grants = {{ http = [\"127.0.0.1:{}\"] }}", upstream.port());
    let component = berth_tests::guest("fixtures/fetch");
    let berth = Manifest::new()
        .handler_file("one", &component, &grants)
        .handler_file("two", &component, &grants)
        .start();
    for expected in [1, 2, 2, 2] {
        let plugin = if expected == 1 { "one" } else { "two" };
        assert_eq!(fetch(&berth, plugin, &upstream.url("/"), &[]).status, 200);
        assert_eq!(upstream.accepted(), expected);
    }
}

#[test]
fn headers_of_connections_and_of_the_host_stay_where_they_are() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let upstream = Upstream::start(move |mut peer| {
        while let Some(head) = peer.head() {
            seen.lock().unwrap().push(head);
            peer.send(
                "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
                 upgrade: h2c\r\nberth-user-id: 1\r\nproxy-authenticate: Basic\r\nset-cookie: a=1\r\n\
                 set-cookie: b=2\r\nx-own: 1\r\ncontent-length: 3\r\n\r\nok\n",
            );
        }
    });
    let berth = berth(&[format!("127.0.0.1:{}", upstream.port())], "");
    // The fixture forwards the list of headers that it was called with.
    let answer = fetch(
        &berth,
        "fetch",
        &upstream.url("/"),
        &[
            ("connection", "keep-alive, x-mine"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic x"),
            ("berth-user-id", "1"),
            ("authorization", "Bearer its-own"),
        ],
    );
    let head = heads.lock().unwrap().pop().unwrap().to_ascii_lowercase();
    let names: Vec<&str> = head
        .lines()
        .skip(1)
        .filter_map(|l| l.split_once(':'))
        .map(|(name, _)| name)
        .collect();
    for hidden in [
        "connection",
        "x-mine",
        "keep-alive",
        "te",
        "upgrade",
        "proxy-authorization",
        "transfer-encoding",
    ] {
        assert!(!names.contains(&hidden), "{hidden} in {head}");
    }
    assert!(!names.iter().any(|n| n.starts_with("berth-")), "{head}");
    assert!(head.contains("authorization: bearer its-own"), "{head}");
    for hidden in [
        "x-hop",
        "keep-alive",
        "upgrade",
        "berth-user-id",
        "proxy-authenticate",
    ] {
        assert_eq!(answer.header(hidden), None, "{:?}", answer.headers);
    }
    let cookies = answer.headers.iter().filter(|(n, _)| n == "set-cookie").count();
    assert_eq!((answer.header("x-own"), cookies), (Some("1"), 2));
}

#[test]
fn trailers_pass_but_for_those_that_would_change_the_message() {
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&bodies);
    let upstream = Upstream::start(move |mut peer| {
        while let Some(head) = peer.head() {
            seen.lock().unwrap().push(peer.body(&head));
            peer.send(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\nx-sum: 7\r\n\
                 content-length: 0\r\nhost: evil\r\nset-cookie: a=1\r\nberth-user-id: 1\r\n\r\n",
            );
        }
    });
    let berth = berth(&[format!("127.0.0.1:{}", upstream.port())], "");
    let url = upstream.url("/");
    let send = |trailers: &str| {
        let headers = [
            ("x-url", url.as_str()),
            ("x-chunked", "1"),
            ("trailer", "x-sum, authorization, content-length"),
            ("x-trailers", trailers),
        ];
        // Of a body without a length hyper sends none with GET, and this client a length with POST.
        request(berth.address, "DELETE", "/fetch/x", &headers, b"")
    };
    let answer = send("x-sum=7,authorization=x,content-length=3,berth-user-id=1");
    assert_eq!(answer.text(), "ok\ntrailer x-sum: 7\n");
    let (body, whole) = bodies.lock().unwrap().pop().unwrap();
    let body = String::from_utf8_lossy(&body).to_ascii_lowercase();
    assert!(whole);
    assert!(body.contains("x-sum: 7"), "{body:?}");
    for hidden in ["authorization", "content-length", "berth-"] {
        assert!(!body.contains(hidden), "{hidden} in {body:?}");
    }
    for forbidden in ["transfer-encoding=chunked", "connection=close", "host=evil"] {
        assert_eq!(send(forbidden).text().trim(), "Forbidden", "{forbidden}");
    }
}

#[test]
fn block_of_addresses_is_granted_as_a_whole() {
    let upstream = Upstream::answering(OK);
    let berth = berth(&[format!("127.0.0.0/8:{}", upstream.port())], "");
    assert_eq!(fetch(&berth, "fetch", &upstream.url("/"), &[]).status, 200);
    let other = format!("http://128.0.0.1:{}/", upstream.port());
    assert_eq!(
        fetch(&berth, "fetch", &other, &[]).text().trim(),
        "HttpRequestDenied"
    );
}

#[test]
fn each_call_is_logged_for_whoever_asks_without_its_path() {
    let upstream = Upstream::answering(OK);
    let manifest = Manifest::new().handler_with(
        "fixtures/fetch",
        &format!("grants = {{ http = [\"127.0.0.1:{}\"] }}", upstream.port()),
    );
    let berth = Berth::start(manifest.text(), &[("RUST_LOG", "info,berth::outgoing=debug")]);
    fetch(&berth, "fetch", &upstream.url("/path?token=secret"), &[]);
    let event = berth.logged("the call", |e| e["target"] == "berth::outgoing");
    assert_eq!(
        (&event["method"], &event["status"]),
        (&"GET".into(), &200.into()),
        "{event}"
    );
    assert!(!event.to_string().contains("secret"), "{event}");
}
