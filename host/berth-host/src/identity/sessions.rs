//! Sessions and their refresh tokens.

use std::sync::Arc;

use uuid::Uuid;

use super::{Account, SessionSpec, Unavailable};
use crate::data::DataFolder;
use crate::postgres::Postgres;
use crate::secret::Secret;

/// Who is signed in.
#[derive(Debug)]
pub struct Sessions {
    postgres: Arc<Postgres>,
    key: Secret,
    spec: SessionSpec,
}

impl Sessions {
    pub(super) fn new(postgres: Arc<Postgres>, data: &DataFolder, spec: SessionSpec) -> Self {
        Self {
            postgres,
            key: data.derive("berth refresh tokens v1"),
            spec,
        }
    }

    /// The account behind an open session of `user`, if the session is open, theirs, and they are active.
    ///
    /// # Errors
    /// Postgres can't be reached.
    pub async fn account(&self, _session: Uuid, _user: Uuid) -> Result<Option<Account>, Unavailable> {
        let _ = (&self.postgres, &self.key, self.spec);
        Err(Unavailable)
    }
}
