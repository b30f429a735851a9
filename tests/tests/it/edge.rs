//! Attacks on the edge, each bounded in time and count: other clients hardly notice.
//!
//! Every attack is measured against the same host just before it, in the same way, so that the machine doesn't matter.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest};
use berth_tests::http2::{self, encode, get_block, header_block, kind};
use berth_tests::load::{self, Client, Times};
use rcgen::generate_simple_self_signed;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const WHILE: Duration = Duration::from_secs(1);
const CONNECTIONS: usize = 8;
const FACTOR: f64 = 3.0;
/// Below this the scheduler of a busy machine is measured, and not the host.
const NOISE: Duration = Duration::from_millis(5);

fn host() -> Berth {
    let manifest = Manifest::new().handler("hello").auth("fixtures/auth-static");
    Berth::start(manifest.text(), &[("RUST_LOG", "error")])
}

/// Compare the p99 of ordinary clients with and without an attack. The attack ends when it is dropped.
fn compare<A, F>(name: &str, berth: &Berth, attack: A)
where
    A: Fn(SocketAddr) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    compare_under(name, berth, attack, || {});
}

/// The same, where `under_way` waits until the attack is at its height. It is asked again at the end.
fn compare_under<A, F>(name: &str, berth: &Berth, attack: A, under_way: impl Fn())
where
    A: Fn(SocketAddr) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let address = berth.address;
    let measure = || load::steadily(address, "/hello/x", CONNECTIONS, WHILE);
    load::run(async {
        let _warm = measure().await;
        let mut ratios = Vec::new();
        // The middle of three: one hiccup of the machine is no attack.
        for _ in 0..3 {
            let before = measure().await;
            let attacking = tokio::spawn(attack(address));
            under_way();
            let during = measure().await;
            under_way();
            attacking.abort();
            println!("{name}: before {before}; during {during}");
            ratios.push(ratio(&before, &during));
            if ratios.iter().filter(|r| **r <= FACTOR).count() == 2 {
                break;
            }
        }
        ratios.sort_by(f64::total_cmp);
        assert!(
            ratios[ratios.len() / 2] <= FACTOR,
            "{name}: p99 {ratios:.1?} times as long"
        );
    });
    assert_eq!(berth.get("/hello/x").status, 200);
}

fn ratio(before: &Times, during: &Times) -> f64 {
    let [before, during] = [before, during].map(|times| times.percentile(0.99).max(NOISE));
    during.as_secs_f64() / before.as_secs_f64()
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address)
        .await
        .expect("the host accepts connections")
}

/// So many connections, each with something sent, held open.
async fn hold(address: SocketAddr, count: usize, first: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = connect(address).await;
        // The host may have cut it already, which is its right.
        let _ = stream.write_all(first).await;
        held.push(stream);
    }
    held
}

/// A byte on each, four times a second.
async fn drip(mut held: Vec<TcpStream>) {
    loop {
        for stream in &mut held {
            let _ = stream.write_all(b"x").await;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[test]
fn slow_heads() {
    compare("500 slow heads", &host(), |address| async move {
        drip(
            hold(
                address,
                500,
                b"GET /hello/x HTTP/1.1\r\nhost: berth.test\r\nx-slow: ",
            )
            .await,
        )
        .await;
    });
}

#[test]
fn slow_bodies() {
    let head = "POST /api/v1/auth/login HTTP/1.1\r\nhost: berth.test\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n{";
    compare("500 slow bodies", &host(), move |address| async move {
        drip(hold(address, 500, head.as_bytes()).await).await;
    });
}

#[test]
fn idle_connections() {
    let berth = host();
    let attack = |address| async move {
        let _held = hold(address, 5_000, b"").await;
        std::future::pending().await
    };
    compare_under("5000 idle connections", &berth, attack, || {
        berth.metric_becomes("berth_connections_open", &["http"], |open| open >= 4_000.0);
    });
}

#[test]
fn http2_rapid_resets() {
    compare("HTTP/2 rapid resets", &host(), |address| async move {
        let block = get_block("/hello/x");
        let mut burst = http2::PREFACE.to_vec();
        burst.extend(encode(kind::SETTINGS, 0, 0, b""));
        for n in 0..500u32 {
            burst.extend(encode(kind::HEADERS, 5, 2 * n + 1, &block));
            burst.extend(encode(kind::RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes()));
        }
        loop {
            let mut stream = connect(address).await;
            let _ = stream.write_all(&burst).await;
            // Until the host has had enough.
            let _ = stream.read_to_end(&mut Vec::new()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn http2_header_floods() {
    compare("HTTP/2 header floods", &host(), |address| async move {
        let mut flood = http2::PREFACE.to_vec();
        flood.extend(encode(kind::SETTINGS, 0, 0, b""));
        flood.extend(encode(kind::HEADERS, 1, 1, &get_block("/hello/x")));
        let more = header_block(&[("x-more", &"y".repeat(16_000))]);
        for _ in 0..50 {
            flood.extend(encode(kind::CONTINUATION, 0, 1, &more));
        }
        loop {
            let mut stream = connect(address).await;
            let _ = stream.write_all(&flood).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn tls_clients_that_never_speak() {
    let folder = tempfile::TempDir::new().unwrap();
    let pair = generate_simple_self_signed(vec!["berth.test".to_owned()]).unwrap();
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let certificate = write("cert.pem", pair.cert.pem());
    let key = write("key.pem", pair.signing_key.serialize_pem());
    let silent = [&b""[..], &b"\x16\x03\x01"[..]];
    // Ordinary clients of the same host: over TLS, one handshake each.
    let manifest = Manifest::new().handler("hello");
    let text = format!(
        "[http]\ntls_certificate = {certificate:?}\ntls_key = {key:?}\n{}",
        manifest.text()
    );
    let berth = Berth::start(&text, &[("RUST_LOG", "error")]);
    let measure = |_: usize| handshakes(&certificate, berth.address, 20);
    let mut ratios = Vec::new();
    for n in 0..3 {
        let before = measure(n);
        let during = load::run(async {
            let _held = (
                hold(berth.address, 500, silent[0]).await,
                hold(berth.address, 500, silent[1]).await,
            );
            let address = berth.address;
            let certificate = certificate.clone();
            tokio::task::spawn_blocking(move || handshakes(&certificate, address, 20))
                .await
                .unwrap()
        });
        println!("1000 silent TLS clients: before {before}; during {during}");
        ratios.push(ratio(&before, &during));
    }
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[1] <= FACTOR, "{ratios:?}");
}

/// So many handshakes with a request each, one after another.
fn handshakes(certificate: &Path, address: SocketAddr, count: usize) -> Times {
    let times = (0..count).map(|_| {
        let started = Instant::now();
        let out = std::process::Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--output",
                "/dev/null",
                "--write-out",
                "%{http_code}",
            ])
            .arg("--cacert")
            .arg(certificate)
            .args(["--resolve", &format!("berth.test:{}:127.0.0.1", address.port())])
            .arg(format!("https://berth.test:{}/hello/x", address.port()))
            .output()
            .unwrap();
        assert_eq!(out.stdout, b"200", "{}", String::from_utf8_lossy(&out.stderr));
        started.elapsed()
    });
    Times::of(times.collect())
}

#[test]
fn want_of_file_descriptors_ends_no_connection_and_is_survived() {
    let manifest = Manifest::new().handler("hello");
    let berth = Berth::start_limited(manifest.text(), &[], "ulimit -n 100");
    load::run(async {
        let mut good = Client::open(berth.address).await;
        let _warm = one_after_another(&mut good).await;
        let mut ratios = Vec::new();
        for _ in 0..3 {
            let before = one_after_another(&mut good).await;
            let errors = berth.metric("berth_connections_accept_errors_total", &["http"]);
            let held = hold(berth.address, 300, b"").await;
            let descriptors = format!("/proc/{}/fd", berth.pid());
            while std::fs::read_dir(&descriptors).unwrap().count() < 100 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let during = one_after_another(&mut good).await;
            println!("without descriptors: before {before}; during {during}");
            ratios.push(ratio(&before, &during));
            drop(held);
            // Somebody else is accepted again.
            let mut next = Client::open(berth.address).await;
            assert_eq!(next.get("/hello/x").await.0, 200);
            let now = berth.metric("berth_connections_accept_errors_total", &["http"]);
            assert!(now > errors, "there was no want of descriptors");
            // Those in the kernel's queue are let in and found closed.
            berth.metric_becomes("berth_connections_open", &["http"], |open| open <= 2.0);
        }
        ratios.sort_by(f64::total_cmp);
        assert!(ratios[1] <= FACTOR, "p99 {ratios:.1?} times as long");
        let event = |e: &serde_json::Value| {
            e["target"] == "berth::listen"
                && e["message"]
                    .as_str()
                    .is_some_and(|m| m.contains("can't be accepted"))
        };
        let said = berth.logged("that there are no more", event);
        assert_eq!(said["level"], "WARN");
    });
}

/// So many requests on one connection.
async fn one_after_another(client: &mut Client) -> Times {
    let mut times = Vec::new();
    for _ in 0..200 {
        let (status, _, time) = client.get("/hello/x").await;
        assert_eq!(status, 200);
        times.push(time);
    }
    Times::of(times)
}
