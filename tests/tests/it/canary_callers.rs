//! Who tries a candidate: a share of the callers, always the same ones, for as long as the trial runs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use berth_tests::behind::{Proxy, TRUSTED};
use berth_tests::berth::{Berth, Manifest};
use berth_tests::guest;
use berth_tests::swaps::{Caller, Operator, another, built, digest, hello, until};
use berth_tests::wire::{Connection, get, head};
use serde_json::json;

use crate::callers::{key_file, now, token_until};
use crate::canary::{greets, host, sides, try_out};

/// More requests than a test makes.
const OPEN: &str = "promoteAfter=1000000";

#[test]
fn no_caller_changes_sides_and_the_share_is_what_was_asked_for() {
    const CALLERS: u16 = 400;
    let (berth, operator) = host("hello", "");
    let share = |operator: &Operator| {
        try_out(operator, &format!("canary=30%25&{OPEN}"), &built("fixtures/echo"));
        let mut known = BTreeMap::new();
        for round in 0..3u16 {
            // On another connection each time, in another order, with more than one caller on each.
            let mut proxies = [0, 1, 2].map(|_| Proxy::of(berth.address));
            for nth in 0..CALLERS {
                let caller = (nth * 7 + round * 31) % CALLERS;
                let proxy = &mut proxies[usize::from(nth) % 3];
                let is_candidate = !greets(&proxy.get(caller, "/x/status/200"));
                let before = *known.entry(caller).or_insert(is_candidate);
                assert_eq!(before, is_candidate, "caller {caller} in round {round}");
            }
        }
        let on = known.values().filter(|on| **on).count();
        // 120, give or take five times the deviation of that many throws, which is 9.2.
        assert!((74..=166).contains(&on), "{on} of {CALLERS} got the candidate");
        known
    };
    let one = share(&operator);
    // Another trial has other callers: nobody is always the first to try.
    operator.post("/admin/plugins/x/rollback", &json!({}));
    let other = share(&operator);
    assert_ne!(one, other);
    let moved = one.iter().filter(|(caller, on)| other[*caller] != **on).count();
    assert!(moved > 80, "{moved} of {CALLERS} are on another side");
}

#[test]
fn caller_without_a_proxy_is_one_address_on_all_connections() {
    let (berth, operator) = host("hello", "");
    for _ in 0..3 {
        try_out(
            &operator,
            &format!("canary=50%25&{OPEN}"),
            &built("fixtures/echo"),
        );
        let mine = greets(&get(berth.address, "/x/status/200"));
        let mut kept = Connection::open(berth.address);
        for _ in 0..20 {
            kept.send(head("GET", "/x/status/200", &[], 0));
            assert_eq!(
                greets(&kept.response("GET").unwrap()),
                mine,
                "on a connection that is kept"
            );
            assert_eq!(greets(&get(berth.address, "/x/status/200")), mine, "on a new one");
        }
        operator.post("/admin/plugins/x/rollback", &json!({}));
    }
}

/// A handler for signed-in callers, and an `auth` policy.
fn signed_in() -> (Berth, Operator) {
    let key = key_file();
    let path = key.path().display().to_string();
    let component = guest("hello");
    let manifest = Manifest::new().raw(TRUSTED).auth("fixtures/auth-static").raw(&format!(
        "[plugins.x]\ncomponent = {component:?}\n[[routes]]\npath = \"/x/*\"\nplugin = \"x\"\naccess = \"user\"\n"
    ));
    let berth = Berth::start(manifest.text(), &[("BERTH_TOKENS_HS256_KEY_FILE", &path)]);
    let operator = Operator::of(&berth);
    (berth, operator)
}

#[test]
fn signed_in_callers_are_known_by_their_account_wherever_they_are() {
    let (berth, operator) = signed_in();
    try_out(
        &operator,
        &format!("canary=50%25&{OPEN}"),
        &built("fixtures/echo"),
    );
    let mut proxy = Proxy::of(berth.address);
    let mut on = 0;
    for account in 0..40 {
        let bearer = format!("Bearer {}", token_until(&format!("u-{account}"), now() + 600));
        let headers = [("authorization", bearer.as_str())];
        let mut got = Vec::new();
        for address in [1, 2, 1, 3] {
            let answer = proxy.ask(address, "GET", "/x/status/200", &headers, b"");
            assert_eq!(answer.status, 200, "{}", answer.text());
            got.push(greets(&answer));
        }
        assert!(got.iter().all(|one| *one == got[0]), "account {account}: {got:?}");
        on += u32::from(!got[0]);
    }
    // 20, give or take five times 3.2.
    assert!((4..=36).contains(&on), "{on} of 40");
}

#[test]
fn caller_gets_one_version_of_an_auth_policy_for_all_of_its_functions() {
    let (berth, operator) = signed_in();
    let current = built("fixtures/auth-static");
    let candidate = another(&current, 1);
    let answer = operator.deploy("auth", &format!("canary=50%25&{OPEN}"), &[], &candidate);
    assert_eq!(answer.json()["kind"], "canary-started", "{}", answer.text());
    let figures = || {
        let canary = operator.plugin("auth")["canary"].clone();
        [&canary["requests"], &canary["current"]["requests"]].map(|n| n.as_u64().unwrap())
    };
    let mut proxy = Proxy::of(berth.address);
    let mut seen = [0, 0];
    for caller in 0..24 {
        let before = figures();
        let json = [("content-type", "application/json")];
        let credentials = br#"{"email":"ada@example.com","password":"correct horse"}"#;
        let login = proxy.ask(caller, "POST", "/api/v1/auth/login", &json, credentials);
        assert_eq!(login.status, 200, "{}", login.text());
        let token = br#"{"token":"t"}"#;
        let verified = proxy.ask(caller, "POST", "/api/v1/auth/verify-email", &json, token);
        assert_eq!(verified.status, 200, "{}", verified.text());
        // `authenticate` is asked for the handler's caller, and for `me`.
        let bearer = format!("Bearer {}", token_until(&format!("u-{caller}"), now() + 600));
        let headers = [("authorization", bearer.as_str())];
        for path in ["/x/Ada", "/api/v1/me"] {
            let answer = proxy.ask(caller, "GET", path, &headers, b"");
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        }
        let after = until(
            || format!("five more than {before:?}: {:?}", figures()),
            || Some(figures()).filter(|now| now.iter().sum::<u64>() == before.iter().sum::<u64>() + 5),
        );
        let line = berth.request_line(login.header("x-request-id").unwrap());
        let side = usize::from(line["version"] == digest(&current));
        assert!(side == 1 || line["version"] == digest(&candidate), "{line}");
        let mut expected = before;
        expected[side] += 5;
        assert_eq!(after, expected, "caller {caller}");
        seen[side] += 1;
    }
    assert!(seen.iter().all(|n| *n > 0), "{seen:?}");
}

/// Many callers who ask all the time, each on a connection of their own, until told to stop: which side each answer came
/// from, in order.
fn all_the_time<T>(
    address: SocketAddr,
    path: &'static str,
    meanwhile: impl FnOnce() -> T,
) -> (Vec<Vec<bool>>, T) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking: Vec<_> = (0..8)
            .map(|caller| {
                let over = &over;
                scope.spawn(move || {
                    let mut proxy = Proxy::of(address);
                    let mut got = Vec::new();
                    loop {
                        // Once more after it is over, so that everybody has seen the end.
                        let last = over.load(Ordering::Relaxed);
                        let answer = proxy.get(caller, path);
                        assert_eq!(answer.status, 200, "{}", answer.text());
                        got.push(!greets(&answer));
                        if last {
                            return got;
                        }
                    }
                })
            })
            .collect();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        over.store(true, Ordering::Relaxed);
        let got = asking
            .into_iter()
            .map(|one| one.join().expect("a caller that ends"))
            .collect();
        (got, done.expect("what is done meanwhile"))
    })
}

#[test]
fn nobody_goes_back_and_forth_when_a_trial_ends() {
    let (berth, operator) = host("hello", "");
    let (echo, greeting) = (built("fixtures/echo"), built("hello"));
    for round in 0..6 {
        let steady = Caller::start(berth.address, "/health");
        try_out(&operator, &format!("canary=50%25&{OPEN}"), &echo);
        let mut proxy = Proxy::of(berth.address);
        let (candidates, others) = sides(&mut proxy, "/x/status/200", 1);
        let (got, ()) = all_the_time(berth.address, "/x/status/200", || {
            steady.asks(20);
            let action = if round % 2 == 0 { "promote" } else { "rollback" };
            let answer = operator.post(&format!("/admin/plugins/x/{action}"), &json!({}));
            assert_eq!(answer.status, 200, "{}", answer.text());
            steady.asks(20);
        });
        // Whoever had the side that stays has seen nothing else.
        let stays = round % 2 == 0;
        for (caller, got) in got.iter().enumerate() {
            let turn = got.iter().position(|side| *side == stays);
            let turn = turn.unwrap_or_else(|| panic!("caller {caller} is left behind: {got:?}"));
            assert!(
                got[turn..].iter().all(|side| *side == stays),
                "caller {caller}: {got:?}"
            );
            assert!(got[..turn].iter().all(|side| *side != stays));
            let caller = caller as u16;
            if (candidates.contains(&caller) && stays) || (others.contains(&caller) && !stays) {
                assert_eq!(turn, 0, "caller {caller} has seen the other version: {got:?}");
            }
        }
        steady.stop();
        if stays {
            assert_eq!(operator.deploy("x", "", &[], &greeting).status, 200);
        }
    }
}

#[test]
fn trial_of_one_plugin_is_nothing_to_another() {
    let manifest = Manifest::new()
        .raw(TRUSTED)
        .handler("hello")
        .handler_file("x", &guest("hello"), "");
    let berth = manifest.start();
    let operator = Operator::of(&berth);
    try_out(&operator, &format!("canary=100%25&{OPEN}"), &hello(1));
    assert_eq!(berth.get("/x/Ada").text(), "V0001, Ada.\n");
    assert_eq!(berth.get("/hello/Ada").text(), "Hello, Ada.\n");
    assert!(operator.plugin("hello")["canary"].is_null());
}
