//! The files beside the manifest that hold secrets: read once at the start, so that a fault stops it with a sentence.

use std::sync::Arc;

use crate::data::{self, DataError};
use crate::listen::tls::{Tls, TlsError};
use crate::postgres::connect;
use crate::state::HostSpec;
use crate::tokens::{KeyError, Verifier};

/// What was read.
#[derive(Debug, Default)]
pub struct Files {
    /// TLS for callers, if the manifest asks for it.
    pub tls: Option<Arc<Tls>>,
    /// Knows valid tokens, if the manifest names a key.
    pub tokens: Option<Verifier>,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Certificate or key of TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The key of tokens.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The password of Postgres.
    #[error(transparent)]
    Password(DataError),
    /// The data folder.
    #[error(transparent)]
    Data(DataError),
}

impl FileError {
    /// The key of the manifest that names the file.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Tls(_) => "http.tls_certificate",
            Self::Key(_) => "tokens.hs256_key_file",
            Self::Password(_) => "postgres.password_file",
            Self::Data(_) => "data.dir",
        }
    }
}

impl Files {
    /// Read all that a manifest names.
    ///
    /// # Errors
    /// The first file that can't be used.
    pub fn load(spec: &HostSpec) -> Result<Self, FileError> {
        Ok(Self {
            tls: spec.tls.clone().map(Tls::new).transpose()?.map(Arc::new),
            tokens: Verifier::load(&spec.tokens)?,
        })
    }

    /// Look at what only a start opens, and make nothing: the password of Postgres, and the data folder if it is there.
    ///
    /// # Errors
    /// The first that would stop the start.
    pub fn look(spec: &HostSpec) -> Result<(), FileError> {
        if let (Some(_), Some(file)) = (&spec.postgres.url, &spec.postgres.password_file) {
            connect::password(file).map_err(FileError::Password)?;
        }
        if spec.needs().data {
            data::look(&spec.data).map_err(FileError::Data)?;
        }
        Ok(())
    }
}
