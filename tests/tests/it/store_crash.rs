//! Postgres or berth die in the middle of their work: nothing that was promised is lost, nothing is there twice, and
//! what can't be answered says when to try again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use berth_tests::berth::{Manifest, PATIENCE};
use berth_tests::store::Store;
use berth_tests::wire::{Connection, Ended, Response, head};
use serde_json::json;

/// Clients at once.
const CLIENTS: usize = 8;

/// Ask once, on a connection of its own; nothing if the other end is gone.
fn ask(address: SocketAddr, path: &str, body: &str) -> Option<Response> {
    let mut connection = Connection::try_open(address)?;
    let request = head("POST", path, &[("content-type", "application/json")], body.len());
    connection.send(request + body);
    connection
        .response("POST")
        .filter(|answer| answer.ended == Ended::Whole)
}

fn registration(email: &str) -> String {
    json!({ "email": email, "password": "correct horse battery" }).to_string()
}

fn kill_outright(pid: u32) {
    let killed = Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
}

#[test]
fn kill_of_berth_during_500_registrations_loses_none_that_was_confirmed() {
    const WANTED: usize = 500;
    let store = Store::private();
    let manifest = Manifest::new().accounts();
    let berth = store.start(&manifest);
    let address = berth.address;
    let confirmed = Mutex::new(BTreeSet::new());
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let email = format!("user-{number}@example.com");
                    if number >= WANTED {
                        return;
                    }
                    // Killed in between: whoever has no answer doesn't know.
                    let Some(answer) = ask(address, "/api/v1/auth/register", &registration(&email)) else {
                        return;
                    };
                    assert_eq!(answer.status, 201, "{}", answer.text());
                    confirmed.lock().unwrap().insert(email);
                }
            });
        }
        let started = Instant::now();
        while confirmed.lock().unwrap().len() < WANTED / 4 {
            assert!(started.elapsed() < PATIENCE * 2, "no progress");
            thread::sleep(Duration::from_millis(2));
        }
        kill_outright(berth.pid());
    });
    drop(berth);

    let confirmed = confirmed.into_inner().unwrap();
    assert!(
        confirmed.len() < WANTED,
        "it was killed too late to show anything"
    );
    let berth = store.start(&manifest);
    let users = store.one::<i64>("select count(*) from identity.users") as usize;
    let distinct = store.one::<i64>("select count(distinct email_canonical) from identity.users") as usize;
    assert_eq!(users, distinct);
    assert!(
        (confirmed.len()..=confirmed.len() + CLIENTS).contains(&users),
        "{} were confirmed, {users} are there",
        confirmed.len()
    );
    println!(
        "{} confirmed before the kill, {users} there after it",
        confirmed.len()
    );
    for email in &confirmed {
        let there: i64 = store.one(&format!(
            "select count(*) from identity.users where email_canonical = '{email}'"
        ));
        assert_eq!(there, 1, "{email}");
        // And a second registration is told so.
        if email.ends_with("0@example.com") {
            assert_eq!(
                berth.post("/api/v1/auth/register", &registration(email)).status,
                409
            );
        }
    }
}

#[test]
fn postgres_killed_under_load_is_503_until_it_is_back_and_nobody_is_there_twice() {
    let store = Store::private();
    let berth = store.start(&Manifest::new().accounts());
    let address = berth.address;
    let (done, next) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (created, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let until = |what: &str, reached: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !reached() {
            assert!(started.elapsed() < PATIENCE, "not reached: {what}");
            thread::sleep(Duration::from_millis(2));
        }
    };
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let email = format!("user-{}@example.com", next.fetch_add(1, Ordering::Relaxed));
                    loop {
                        let answer = ask(address, "/api/v1/auth/register", &registration(&email)).unwrap();
                        match answer.status {
                            201 => _ = created.fetch_add(1, Ordering::Relaxed),
                            // Confirmed by nobody, but done before the connection broke.
                            409 => {}
                            503 => {
                                let after = answer.header("retry-after").expect("a time to wait");
                                assert!(
                                    after.parse::<u32>().is_ok_and(|s| (1..=60).contains(&s)),
                                    "{after}"
                                );
                                assert_eq!(answer.code(), "database-unavailable", "{}", answer.text());
                                refused.fetch_add(1, Ordering::Relaxed);
                                thread::sleep(Duration::from_millis(20));
                                continue;
                            }
                            other => panic!("{other}: {}", answer.text()),
                        }
                        break;
                    }
                }
            });
        }
        for round in 1..=2 {
            let before = created.load(Ordering::Relaxed);
            until("registrations", &|| created.load(Ordering::Relaxed) > before + 10);
            let refused_before = refused.load(Ordering::Relaxed);
            kill_outright(store.postmaster().expect("a server runs"));
            until("refusals", &|| refused.load(Ordering::Relaxed) > refused_before);
            let before = created.load(Ordering::Relaxed);
            until("recovery", &|| created.load(Ordering::Relaxed) > before + 10);
            println!(
                "round {round}: {} refused in all",
                refused.load(Ordering::Relaxed)
            );
        }
        done.store(true, Ordering::Relaxed);
    });
    let users = store.one::<i64>("select count(*) from identity.users") as usize;
    let tried = next.load(Ordering::Relaxed);
    assert_eq!(users, tried, "everybody who tried long enough is there once");
    assert_eq!(berth.get("/health").json()["status"], "healthy");
}
