//! TLS at the edge: certificate and key from files, read again when they change.
//!
//! Handshakes happen in the connection's own task, within the time that a request's head may take, so a client that
//! connects and says nothing holds up nobody. TLS 1.2 and 1.3, with rustls's own choice of ciphers; HTTP/2 and
//! HTTP/1.1 are offered by ALPN (RFC 7301).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_util::sync::CancellationToken;

/// How often the files are looked at. Certificate tools replace them days before the old ones expire.
const LOOK: Duration = Duration::from_secs(2);

/// Where certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM: the host's certificate first, then the intermediate ones.
    pub certificate: PathBuf,
    /// PEM: the private key, in PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// Time of change and size of both files, where they are there.
type Stamps = [Option<(SystemTime, u64)>; 2];

/// Why TLS can't be served. Its text names the file and what to do; never a byte of the key.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{}: it can't be read: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// A file isn't what it should be.
    #[error("{}: there is no {wanted} in it; it must be PEM, as in \"-----BEGIN {label}-----\"", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        wanted: &'static str,
        /// What PEM calls that.
        label: &'static str,
    },
    /// A file is damaged PEM.
    #[error("{}: it is not valid PEM: {reason}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The two don't go together, or rustls can't use them.
    #[error("the certificate in {} and the key in {} can't be used: {reason}", certificate.display(), key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// rustls's words.
        reason: String,
    },
}

impl TlsFiles {
    /// Read both and make sure that they go together.
    ///
    /// # Errors
    /// Everything that [`TlsError`] names.
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(|e| fault(&self.certificate, "certificate", "CERTIFICATE", e))?;
        if certificates.is_empty() {
            return Err(TlsError::Empty {
                path: self.certificate.clone(),
                wanted: "certificate",
                label: "CERTIFICATE",
            });
        }
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|e| fault(&self.key, "private key", "PRIVATE KEY", e))?;
        let unusable = |e: rustls::Error| TlsError::Unusable {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            reason: match e {
                rustls::Error::InconsistentKeys(_) => "the key belongs to another certificate".to_owned(),
                other => other.to_string(),
            },
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// What changes when a file is replaced, written or linked elsewhere.
    fn stamps(&self) -> Stamps {
        [&self.certificate, &self.key].map(|path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.modified().ok()?, found.len()))
        })
    }
}

fn fault(path: &Path, wanted: &'static str, label: &'static str, error: pem::Error) -> TlsError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(e) if e.kind() == std::io::ErrorKind::NotFound => TlsError::Unreadable {
            path,
            reason: "there is no such file".to_owned(),
        },
        pem::Error::Io(e) => TlsError::Unreadable {
            path,
            reason: e.to_string(),
        },
        pem::Error::NoItemsFound => TlsError::Empty { path, wanted, label },
        // The other messages quote the file, which may be a key.
        pem::Error::MissingSectionEnd { .. } => TlsError::Pem {
            path,
            reason: "a section has no end; perhaps it is cut off",
        },
        pem::Error::IllegalSectionStart { .. } => TlsError::Pem {
            path,
            reason: "a section begins wrongly",
        },
        _ => TlsError::Pem {
            path,
            reason: "a section can't be decoded",
        },
    }
}

/// What handshakes use now.
pub struct Tls {
    files: TlsFiles,
    /// From before the files were read, so that no change is missed.
    read: Stamps,
    current: ArcSwap<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Read the files for the first time.
    ///
    /// # Errors
    /// See [`TlsFiles::load`].
    pub fn new(files: TlsFiles) -> Result<Self, TlsError> {
        let read = files.stamps();
        let current = ArcSwap::new(files.load()?);
        Ok(Self { files, read, current })
    }

    /// For one handshake.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }

    /// Read the files again whenever they change, until told to stop. Files that can't be used are said once and
    /// change nothing: the old certificate stays.
    pub(super) async fn follow(&self, stop: CancellationToken) {
        let mut seen = self.read;
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let files = self.files.clone();
            // Two small files, but a file system can hang.
            let looked = tokio::task::spawn_blocking(move || {
                let stamps = files.stamps();
                (stamps, (stamps != seen).then(|| files.load()))
            });
            let Ok((stamps, Some(loaded))) = looked.await else {
                continue;
            };
            seen = stamps;
            match loaded {
                Ok(config) => {
                    self.current.store(config);
                    tracing::info!(target: "berth::listen", certificate = %self.files.certificate.display(), "the TLS certificate was read again");
                }
                Err(error) => {
                    tracing::error!(target: "berth::listen", "the changed TLS files are not used, the old certificate stays: {error}");
                }
            }
        }
    }
}
