//! TLS towards other hosts: rustls with *ring*, and the certificate authorities of the machine.
//!
//! `SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured. The authorities are read once, when the first plugin calls an
//! `https` host; while there are none, each such call fails and they are looked for again.

use std::sync::Arc;

use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::fault::ConnectFault;

/// The process's.
static ROOTS: OnceCell<Arc<RootCertStore>> = OnceCell::const_new();

/// One plugin's settings and sessions.
#[derive(Clone, Default)]
pub(super) struct Tls(Arc<OnceCell<TlsConnector>>);

impl Tls {
    /// What makes connections.
    ///
    /// # Errors
    /// There is no certificate authority.
    pub(super) async fn connector(&self) -> Result<TlsConnector, ConnectFault> {
        self.0
            .get_or_try_init(|| async {
                let roots = ROOTS.get_or_try_init(load).await?;
                connector(Arc::clone(roots))
            })
            .await
            .cloned()
    }
}

fn connector(roots: Arc<RootCertStore>) -> Result<TlsConnector, ConnectFault> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| ConnectFault::NoRoots(format!("TLS can't be set up: {e}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn load() -> Result<Arc<RootCertStore>, ConnectFault> {
    // Some hundred files.
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
        .await
        .map_err(|_| ConnectFault::Stopped)?;
    let mut roots = RootCertStore::empty();
    let (_, unusable) = roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let why = if why.is_empty() {
            String::new()
        } else {
            format!(" ({})", why.join("; "))
        };
        return Err(ConnectFault::NoRoots(format!(
            "there is no certificate authority to verify servers with{why}; install the system's \"ca-certificates\", or name a PEM file in SSL_CERT_FILE"
        )));
    }
    tracing::debug!(
        target: "berth::outgoing",
        roots = roots.len(),
        unusable,
        "certificate authorities are read",
    );
    Ok(Arc::new(roots))
}
