//! TLS at the edge: both protocols, reload, files that can't be used, clients that never speak.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use berth_tests::berth::{self, Berth, Manifest};
use berth_tests::http2::{self, block_on};
use berth_tests::wire;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

/// A self-signed certificate for `berth.test`, written to two files of a folder.
fn certificate(folder: &Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["berth.test".to_owned()]).unwrap();
    std::fs::write(folder.join("key.pem"), signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("cert.pem"), cert.pem()).unwrap();
    cert.der().clone()
}

fn start(folder: &Path, environment: &[(&str, &str)]) -> Berth {
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let manifest = Manifest::new()
        .handler("hello")
        .handler("fixtures/echo")
        .handler("fixtures/echo-p3");
    let text = format!(
        "[http]\ntls_certificate = {certificate:?}\ntls_key = {key:?}\n{}",
        manifest.text()
    );
    Berth::start(&text, environment)
}

async fn client(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("berth.test").unwrap(), stream)
        .await
}

async fn http1(stream: &mut TlsStream<TcpStream>, path: &str) -> String {
    let head = wire::head("GET", path, &[("connection", "close")], 0);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn both_protocols_are_served_by_alpn_and_the_guest_sees_https() {
    let folder = tempfile::TempDir::new().unwrap();
    let trusted = certificate(folder.path());
    let berth = start(folder.path(), &[]);
    block_on(async {
        for alpn in [&["http/1.1"][..], &[]] {
            let mut stream = client(berth.address, &trusted, alpn).await.unwrap();
            let answer = http1(&mut stream, "/hello/x").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        }
        let stream = client(berth.address, &trusted, &["h2", "http/1.1"])
            .await
            .unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let client = http2::handshake(stream).await;
        for plugin in ["echo", "echo-p3"] {
            let answer = http2::get(&client, &format!("https://berth.test/{plugin}/scheme")).await;
            assert_eq!(answer.text(), "https\n", "{plugin}");
        }
    });
    let plain = Manifest::new()
        .handler("fixtures/echo")
        .handler("fixtures/echo-p3")
        .start();
    for plugin in ["echo", "echo-p3"] {
        assert_eq!(
            plain.get(&format!("/{plugin}/scheme")).text(),
            "http\n",
            "{plugin}"
        );
    }
}

#[test]
fn changed_certificate_is_taken_and_a_broken_one_is_not() {
    let folder = tempfile::TempDir::new().unwrap();
    let first = certificate(folder.path());
    let berth = start(folder.path(), &[]);
    block_on(async {
        assert!(client(berth.address, &first, &[]).await.is_ok());
    });
    // Half-written: the old one stays.
    std::fs::write(
        folder.path().join("cert.pem"),
        "-----BEGIN CERTIFICATE-----\nMIIB",
    )
    .unwrap();
    let event = berth.logged("that the broken file isn't used", |e| {
        e["level"] == "ERROR" && e["message"].as_str().is_some_and(|m| m.contains("cert.pem"))
    });
    assert_eq!(
        event["message"],
        format!(
            "the changed TLS files are not used, the old certificate stays: {}: it is not valid PEM: a section has no end; perhaps it is cut off",
            folder.path().join("cert.pem").display()
        )
    );
    block_on(async {
        assert!(client(berth.address, &first, &[]).await.is_ok());
    });
    let second = certificate(folder.path());
    berth.logged("that the new certificate was read", |e| {
        e["message"] == "the TLS certificate was read again"
    });
    block_on(async {
        assert!(client(berth.address, &second, &[]).await.is_ok());
        assert!(client(berth.address, &first, &[]).await.is_err());
    });
}

#[test]
fn client_that_never_speaks_is_cut_off_and_holds_up_nobody() {
    let folder = tempfile::TempDir::new().unwrap();
    let trusted = certificate(folder.path());
    let berth = start(folder.path(), &[("BERTH_HTTP_HEADER_TIME", "500ms")]);
    let mut silent: Vec<wire::Connection> = (0..50).map(|_| wire::Connection::open(berth.address)).collect();
    let mut plain = wire::Connection::open(berth.address);
    plain.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    block_on(async {
        let mut stream = client(berth.address, &trusted, &[]).await.unwrap();
        assert!(http1(&mut stream, "/hello/x").await.starts_with("HTTP/1.1 200"));
    });
    for connection in &mut silent {
        assert!(connection.rest().is_empty(), "closed without a byte");
    }
    // An alert (content type 21) and the end, not an answer in clear text.
    assert!(plain.rest().first().is_none_or(|first| *first == 21));
}

#[test]
fn files_that_cannot_be_used_stop_the_start_with_a_sentence() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    certificate(folder.path());
    std::fs::rename(path("key.pem"), path("other.pem")).unwrap();
    certificate(folder.path());
    std::fs::write(path("empty.pem"), "").unwrap();
    let said = |certificate: &str, key: &str| {
        let manifest = format!(
            "[http]\ntls_certificate = {:?}\ntls_key = {:?}\n",
            path(certificate),
            path(key)
        );
        let check = berth::run(&manifest, &["check"], &[]);
        let serve = berth::run(&manifest, &["serve"], &[]);
        assert_eq!((check.status.code(), serve.status.code()), (Some(64), Some(64)));
        let sentence = String::from_utf8_lossy(&serve.stderr).trim().to_owned();
        let sentence = sentence.strip_prefix("berth: ").unwrap().to_owned();
        assert!(
            String::from_utf8_lossy(&check.stderr).contains(&sentence),
            "check says the same as serve"
        );
        sentence.replace(&format!("{}/", folder.path().display()), "")
    };
    assert_eq!(
        said("none.pem", "key.pem"),
        "none.pem: it can't be read: there is no such file"
    );
    assert_eq!(
        said("empty.pem", "key.pem"),
        "empty.pem: there is no certificate in it; it must be PEM, as in \"-----BEGIN CERTIFICATE-----\""
    );
    assert_eq!(
        said("cert.pem", "cert.pem"),
        "cert.pem: there is no private key in it; it must be PEM, as in \"-----BEGIN PRIVATE KEY-----\""
    );
    assert_eq!(
        said("cert.pem", "other.pem"),
        "the certificate in cert.pem and the key in other.pem can't be used: the key belongs to another certificate"
    );
}

#[test]
fn openssl_speaks_with_it() {
    let folder = tempfile::TempDir::new().unwrap();
    certificate(folder.path());
    let berth = start(folder.path(), &[]);
    let out = Command::new("curl")
        .args(["--silent", "--show-error", "--http2", "--cacert"])
        .arg(folder.path().join("cert.pem"))
        .args([
            "--resolve",
            &format!("berth.test:{}:127.0.0.1", berth.address.port()),
        ])
        .args(["--write-out", " %{http_version}"])
        .arg(format!("https://berth.test:{}/hello/x", berth.address.port()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        said.ends_with(" 2"),
        "{said} {}",
        String::from_utf8_lossy(&out.stderr)
    );
}
