//! How often somebody may try, and whose address counts.

use berth_tests::berth::{Berth, Manifest};
use berth_tests::wire::{Response, request};

const JSON: (&str, &str) = ("content-type", "application/json");

fn start(manifest: &str, rates: [&str; 2]) -> Berth {
    let text = format!(
        "{manifest}\n{}",
        Manifest::new().auth("fixtures/auth-static").text()
    );
    let [address, account] = rates;
    Berth::start(
        &text,
        &[
            ("BERTH_IDENTITY_ADDRESS_RATE", address),
            ("BERTH_IDENTITY_ACCOUNT_RATE", account),
        ],
    )
}

fn post(berth: &Berth, path: &str, from: &str, body: &str) -> Response {
    let headers = [JSON, ("x-forwarded-for", from)];
    request(
        berth.address,
        "POST",
        &format!("/api/v1/auth/{path}"),
        &headers,
        body.as_bytes(),
    )
}

fn login(berth: &Berth, from: &str, email: &str) -> Response {
    post(
        berth,
        "login",
        from,
        &format!(r#"{{"email":"{email}","password":"x"}}"#),
    )
}

const TRUSTED: &str = "[http]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]";

#[test]
fn account_is_limited_from_one_address_and_its_owner_gets_in_from_elsewhere() {
    let berth = start(TRUSTED, ["off", "3/hour"]);
    for email in ["ada@example.com", "Ada@Example.com", "ADA@EXAMPLE.COM"] {
        assert_eq!(login(&berth, "203.0.113.7", email).status, 200);
    }
    let refused = login(&berth, "203.0.113.7", "ada@example.com");
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "too-many-requests")
    );
    assert_eq!(refused.json()["errorCode"], "TOO_MANY_REQUESTS");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=1200).contains(&wait), "{wait}");
    // Registering counts as well: whoever guesses could use either.
    let body = r#"{"email":"ada@example.com","password":"a rare password"}"#;
    assert_eq!(post(&berth, "register", "203.0.113.7", body).status, 429);
    assert_eq!(login(&berth, "203.0.113.7", "bob@example.com").status, 200);
    assert_eq!(login(&berth, "203.0.113.8", "ada@example.com").status, 200);
    // The policy was not asked, and the operator sees how many were sent away.
    let refused = berth.metric("berth_plugin_refused_total", &["auth", "too-many-requests"]);
    assert_eq!(refused, 2.0);
}

#[test]
fn address_is_limited_over_every_public_operation() {
    let berth = start(TRUSTED, ["4/hour", "off"]);
    let from = "2001:db8::1";
    assert_eq!(login(&berth, from, "a@example.com").status, 200);
    let body = r#"{"email":"b@example.com","password":"a rare password"}"#;
    assert_eq!(post(&berth, "signup", from, body).status, 201);
    assert_eq!(
        post(&berth, "refresh", from, r#"{"refreshToken":"r"}"#).status,
        200
    );
    assert_eq!(post(&berth, "verify-email", from, r#"{"token":"t"}"#).status, 200);
    for (path, body) in [
        ("login", r#"{"email":"c@example.com","password":"x"}"#),
        ("register", body),
        ("refresh", r#"{"refreshToken":"r"}"#),
        ("verify-email", r#"{"token":"t"}"#),
    ] {
        // Another address of the same customer.
        let answer = post(&berth, path, "2001:db8::ffff", body);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (429, "too-many-requests"),
            "{path}"
        );
    }
    // What can't be read is no attempt.
    assert_eq!(post(&berth, "login", from, "{").status, 400);
    assert_eq!(login(&berth, "2001:db8:0:1::1", "a@example.com").status, 200);
    assert_eq!(berth.get("/health").status, 200);
}

#[test]
fn who_is_not_trusted_cannot_choose_an_address() {
    let berth = start("", ["off", "2/hour"]);
    for from in ["203.0.113.1", "203.0.113.2"] {
        assert_eq!(login(&berth, from, "ada@example.com").status, 200);
    }
    let refused = login(&berth, "203.0.113.3", "ada@example.com");
    assert_eq!(refused.status, 429);
    let id = refused.header("x-request-id").unwrap();
    assert_eq!(berth.request_line(id)["client"], "127.0.0.1");
}

#[test]
fn client_is_the_rightmost_address_that_no_trusted_proxy_has() {
    let berth = start(TRUSTED, ["off", "off"]);
    for (forwarded, client) in [
        ("203.0.113.7", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7, 10.9.9.9", "203.0.113.7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("unknown", "127.0.0.1"),
        ("203.0.113.7, nonsense", "127.0.0.1"),
        ("203.0.113.7, nonsense, 10.0.0.1", "10.0.0.1"),
        (",,,", "127.0.0.1"),
    ] {
        let answer = login(&berth, forwarded, "ada@example.com");
        assert_eq!(answer.status, 200, "{forwarded}");
        let id = answer.header("x-request-id").unwrap();
        assert_eq!(berth.request_line(id)["client"], client, "{forwarded}");
    }
    let long = vec!["10.0.0.1"; 6000].join(",");
    assert_eq!(login(&berth, &long, "ada@example.com").status, 200);
}

#[test]
fn flood_from_many_addresses_is_sent_away_and_the_host_serves_on() {
    let berth = start(TRUSTED, ["1/hour", "1/hour"]);
    std::thread::scope(|scope| {
        for part in 0..4 {
            let berth = &berth;
            scope.spawn(move || {
                for n in 0..250 {
                    let from = format!("11.{part}.0.{n}");
                    assert_eq!(login(berth, &from, "ada@example.com").status, 200);
                    assert_eq!(login(berth, &from, "eve@example.com").status, 429);
                }
            });
        }
    });
    assert_eq!(
        berth.metric("berth_plugin_refused_total", &["auth", "too-many-requests"]),
        1000.0
    );
    assert_eq!(berth.get("/health").status, 200);
}
