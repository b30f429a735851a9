//! Calls over TLS: certificates that are right, wrong or can't be verified, and HTTP/2 where the server has it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use berth_tests::berth::{Berth, Manifest};
use berth_tests::upstream::Upstream;
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::outgoing::{OK, fetch};

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server with a certificate for these names, which answers with the version of HTTP that it was asked in.
struct TlsServer {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

fn serve(issuer: &Issuer, names: &[&str], protocols: &[&str]) -> TlsServer {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let certificate = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, issuer)
        .unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let is_2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let words = format!("{:?} {}\n", request.version(), request.uri().path());
                    Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(words))))
                });
                // A client that goes away is none of its business.
                let _ = if is_2 {
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                } else {
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                };
            });
        }
    });
    TlsServer {
        address,
        accepted,
        _runtime: runtime,
    }
}

impl TlsServer {
    fn url(&self, host: &str) -> String {
        format!("https://{host}:{}/x", self.address.port())
    }
}

/// A host that trusts one authority, or what a file that isn't there holds.
fn berth(port: u16, trusted: Option<&Issuer>) -> (Berth, TempDir) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("authorities.pem");
    if let Some(issuer) = trusted {
        std::fs::write(&file, issuer.pem()).unwrap();
    }
    let grants = format!("grants = {{ http = [\"localhost:{port}\", \"127.0.0.1:{port}\"] }}");
    let manifest = Manifest::new()
        .handler_with("fixtures/fetch", &grants)
        .handler_with("fixtures/fetch-p3", &grants);
    let berth = Berth::start(
        manifest.text(),
        &[
            ("SSL_CERT_FILE", file.to_str().unwrap()),
            // Otherwise the machine's own are read as well.
            ("SSL_CERT_DIR", folder.path().to_str().unwrap()),
        ],
    );
    (berth, folder)
}

#[test]
fn server_with_a_trusted_certificate_is_called() {
    let issuer = authority();
    let server = serve(&issuer, &["localhost", "127.0.0.1"], &["http/1.1"]);
    let (berth, _folder) = berth(server.address.port(), Some(&issuer));
    for plugin in ["fetch", "fetch-p3"] {
        for host in ["localhost", "127.0.0.1"] {
            let answer = fetch(&berth, plugin, &server.url(host), &[]);
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (200, "HTTP/1.1 /x\n"),
                "{plugin} {host}"
            );
        }
    }
}

#[test]
fn server_with_http_2_gets_it_on_one_connection() {
    let issuer = authority();
    let server = serve(&issuer, &["localhost"], &["h2", "http/1.1"]);
    let (berth, _folder) = berth(server.address.port(), Some(&issuer));
    for _ in 0..5 {
        let answer = fetch(&berth, "fetch", &server.url("localhost"), &[]);
        assert_eq!(answer.text(), "HTTP/2.0 /x\n");
    }
    let together = fetch(&berth, "fetch", &server.url("localhost"), &[("x-parallel", "20")]);
    assert_eq!(together.text(), "200\n".repeat(20));
    assert_eq!(server.accepted.load(Ordering::SeqCst), 1);
}

#[test]
fn wrong_certificates_are_told_apart_from_other_faults() {
    let trusted = authority();
    let stranger = serve(&authority(), &["localhost"], &["http/1.1"]);
    let (first, _folder) = berth(stranger.address.port(), Some(&trusted));
    let answer = fetch(&first, "fetch", &stranger.url("localhost"), &[]);
    assert_eq!(
        answer.text().trim(),
        "TlsCertificateError",
        "an authority that isn't trusted"
    );

    let misnamed = serve(&trusted, &["other.example"], &["http/1.1"]);
    let (second, _folder) = berth(misnamed.address.port(), Some(&trusted));
    for plugin in ["fetch", "fetch-p3"] {
        let answer = fetch(&second, plugin, &misnamed.url("localhost"), &[]);
        assert_eq!(
            answer.text().trim(),
            "TlsCertificateError",
            "a name that isn't in it"
        );
    }

    let plain = Upstream::answering(OK);
    let (third, _folder) = berth(plain.port(), Some(&trusted));
    let url = format!("https://localhost:{}/", plain.port());
    let answer = fetch(&third, "fetch", &url, &[("x-connect-ms", "500")]);
    // A server that waits for the end of a head says nothing to a handshake.
    assert_eq!(answer.text().trim(), "ConnectionTimeout");
    let ssh = Upstream::start(|mut peer| {
        peer.send("SSH-2.0-OpenSSH_9.9\r\n");
        peer.closed();
    });
    let (fourth, _folder) = berth(ssh.port(), Some(&trusted));
    let url = format!("https://localhost:{}/", ssh.port());
    assert_eq!(
        fetch(&fourth, "fetch", &url, &[]).text().trim(),
        "TlsProtocolError"
    );
}

#[test]
fn machine_without_authorities_says_what_is_missing() {
    let issuer = authority();
    let server = serve(&issuer, &["localhost"], &["http/1.1"]);
    let (berth, folder) = berth(server.address.port(), None);
    let answer = fetch(&berth, "fetch", &server.url("localhost"), &[]);
    assert_eq!(answer.text().trim(), "ConfigurationError");
    berth.logged("what is missing", |e| {
        e["message"]
            .as_str()
            .is_some_and(|m| m.contains("there is no certificate authority") && m.contains("SSL_CERT_FILE"))
    });
    // They are looked for again, so nothing has to be restarted.
    std::fs::write(folder.path().join("authorities.pem"), issuer.pem()).unwrap();
    assert_eq!(fetch(&berth, "fetch", &server.url("localhost"), &[]).status, 200);
}
