//! A stranger who tries to log in learns nothing: whatever is wrong, it is the same answer after the same work.

use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest};
use berth_tests::load::Times;
use berth_tests::store::Store;
use berth_tests::wire::Response;
use serde_json::{Value, json};

const PASSWORD: &str = "correct horse battery";
/// Of each path.
const SAMPLES: usize = 200;

fn login(berth: &Berth, email: &str, password: &str) -> Response {
    let body = json!({ "email": email, "password": password }).to_string();
    berth.post("/api/v1/auth/login", &body)
}

/// All that differs between two answers by right: the time, and the request's id.
fn bytes(answer: &Response) -> String {
    let mut json = answer.json();
    let members = json.as_object_mut().unwrap();
    for name in ["timestamp", "requestId"] {
        assert!(members.remove(name).is_some_and(|v| v != Value::Null));
    }
    let mut headers: Vec<String> = answer
        .headers
        .iter()
        .filter(|(name, _)| !["date", "x-request-id"].contains(&name.to_ascii_lowercase().as_str()))
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    headers.sort();
    format!("{} {headers:?} {json}", answer.status)
}

#[test]
fn failing_logins_are_one_hash_and_the_same_bytes_each() {
    let store = Store::new();
    let berth = store.start(&Manifest::new().accounts());
    let register = |email: &str| {
        let body = json!({ "email": email, "password": PASSWORD }).to_string();
        assert_eq!(berth.post("/api/v1/auth/register", &body).status, 201);
    };
    [
        "known@example.com",
        "inactive@example.com",
        "elsewhere@example.com",
        "imported@example.com",
    ]
    .into_iter()
    .for_each(register);
    store.run("update identity.users set active = false where email = 'inactive@example.com'");
    store.run("update identity.users set password_hash = null where email = 'elsewhere@example.com'");
    // Of the system that accounts may come from, with another password.
    store.run(
        "update identity.users set password_hash = '$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga'
         where email = 'imported@example.com'",
    );
    let long = "x".repeat(1024);
    // Those that a stranger could tell apart by the time; the rest is looked at less often.
    let paths = [
        ("unknown e-mail", "nobody@example.com", PASSWORD),
        ("wrong password", "known@example.com", "wrong horse battery"),
        ("empty password", "known@example.com", ""),
        ("no password set", "elsewhere@example.com", PASSWORD),
    ];
    let more = [
        ("empty password, unknown", "nobody@example.com", ""),
        ("long password", "known@example.com", long.as_str()),
        ("no password set, empty", "elsewhere@example.com", ""),
        ("deactivated", "inactive@example.com", PASSWORD),
        // Its hash takes its own time, until its owner signs in once and has another.
        ("bcrypt", "imported@example.com", PASSWORD),
    ];
    let hashes = || berth.metric("berth_password_hashes_total", &[]);
    let expected = bytes(&login(&berth, "nobody@example.com", "whatever it is"));
    assert!(expected.starts_with("401 "), "{expected}");
    assert!(expected.contains("invalid email or password"), "{expected}");

    let before = hashes();
    for (name, email, password) in more {
        assert_eq!(bytes(&login(&berth, email, password)), expected, "{name}");
    }
    assert_eq!(hashes() - before, more.len() as f64, "one hash each");

    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); paths.len()];
    let before = hashes();
    // In turns, so that a machine that is slow for a while is slow for all.
    for _ in 0..SAMPLES {
        for ((name, email, password), times) in paths.iter().zip(&mut times) {
            let started = Instant::now();
            let answer = login(&berth, email, password);
            times.push(started.elapsed());
            assert_eq!(bytes(&answer), expected, "{name}");
        }
    }
    let asked = (SAMPLES * paths.len()) as f64;
    assert_eq!(hashes() - before, asked, "one hash each");
    let times: Vec<Times> = times.into_iter().map(Times::of).collect();
    for ((name, ..), times) in paths.iter().zip(&times) {
        println!(
            "{name:<24} {} samples: p50 {:?}, p90 {:?}, p99 {:?}",
            times.len(),
            times.percentile(0.5),
            times.percentile(0.9),
            times.percentile(0.99)
        );
    } // No promise about a machine's times, but none of them may stand out.
    let medians = || times.iter().map(|times| times.percentile(0.5));
    let (least, most) = (medians().min().unwrap(), medians().max().unwrap());
    assert!(most < least * 3 / 2, "{least:?} to {most:?}");
}
