//! Stopping: nothing at hand is lost, idle connections don't hold it up.

use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest};
use berth_tests::wire::{Connection, head};

fn sleepers(environment: &[(&str, &str)]) -> Berth {
    let manifest = Manifest::new().handler_with("fixtures/echo", "limits = { concurrency = 128 }");
    Berth::start(manifest.text(), environment)
}

fn running(berth: &Berth) -> f64 {
    256.0 - berth.metric("berth_instances_free", &[])
}

#[test]
fn sigterm_during_100_requests_loses_none_and_closes_idle_connections() {
    let mut berth = sleepers(&[]);
    let mut idle: Vec<Connection> = (0..100)
        .map(|_| {
            let mut connection = Connection::open(berth.address);
            connection.send(head("GET", "/health", &[], 0));
            assert_eq!(connection.response("GET").unwrap().status, 200);
            connection
        })
        .collect();
    let mut busy: Vec<Connection> = (0..100).map(|_| Connection::open(berth.address)).collect();
    for connection in &mut busy {
        connection.send(head("GET", "/echo/sleep/1500", &[], 0));
    }
    while running(&berth) < 100.0 {
        std::thread::yield_now();
    }
    let stopped = Instant::now();
    berth.signal("TERM");
    for connection in &mut idle {
        assert!(connection.rest().is_empty());
    }
    assert!(
        stopped.elapsed() < Duration::from_millis(1300),
        "idle connections are closed at once"
    );
    for connection in &mut busy {
        assert_eq!(connection.response("GET").unwrap().status, 200);
    }
    assert_eq!(berth.wait().code(), Some(0));
    assert!(
        std::net::TcpStream::connect(berth.address).is_err(),
        "nobody listens any more"
    );
}

#[test]
fn request_over_the_drain_time_is_cut_and_the_exit_says_so() {
    let mut berth = sleepers(&[("BERTH_HTTP_DRAIN_TIME", "300ms")]);
    let mut connection = Connection::open(berth.address);
    connection.send(head("GET", "/echo/sleep/20000", &[], 0));
    while running(&berth) < 1.0 {
        std::thread::yield_now();
    }
    berth.signal("TERM");
    assert!(connection.response("GET").is_none());
    assert_eq!(berth.wait().code(), Some(1));
}

#[test]
fn second_signal_stops_at_once() {
    let mut berth = sleepers(&[]);
    let mut connection = Connection::open(berth.address);
    connection.send(head("GET", "/echo/sleep/20000", &[], 0));
    while running(&berth) < 1.0 {
        std::thread::yield_now();
    }
    let started = Instant::now();
    berth.signal("INT");
    berth.logged("that it is stopping", |e| e["signal"] == "SIGINT");
    berth.signal("INT");
    assert_eq!(berth.wait().code(), Some(1));
    assert!(started.elapsed() < Duration::from_secs(10));
}
