//! What the host has beside its plugins and routes: keys, the database, the identity store. Started before the plugins
//! are loaded, stopped after the last request.

use std::sync::Arc;

use crate::admin::AdminToken;
use crate::data::{DataError, DataFolder};
use crate::identity::Identity;
use crate::identity::audit::Audit;
use crate::passwords::Hasher;
use crate::postgres::{Postgres, PostgresError};
use crate::state::HostSpec;
use crate::tokens::Verifier;

/// All of it. What a manifest doesn't need isn't there.
#[derive(Debug, Default)]
pub struct Services {
    /// The data folder, if anything keeps something in it.
    pub data: Option<Arc<DataFolder>>,
    /// The database, if a plugin needs one or the manifest names one.
    pub postgres: Option<Arc<Postgres>>,
    /// The identity store, if a plugin may open sessions.
    pub identity: Option<Arc<Identity>>,
    /// The record of attempts, beside the identity store.
    pub audit: Option<Arc<Audit>>,
    /// What an operator shows to the admin API, if there is anything to ask for.
    pub admin: Option<AdminToken>,
    /// Knows valid tokens. Nobody's is without it.
    pub tokens: Option<Verifier>,
    /// Hashes passwords.
    pub passwords: Hasher,
}

/// Why the host can't have what its manifest asks for.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The data folder.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The database.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
}

impl Services {
    /// Start what a manifest needs. `tokens` is what its key file made.
    ///
    /// # Errors
    /// The first one that can't be had.
    pub async fn start(spec: &HostSpec, tokens: Option<Verifier>) -> Result<Self, ServiceError> {
        let needs = spec.needs();
        let data = match needs.data {
            true => Some(Arc::new(DataFolder::open(&spec.data)?)),
            false => None,
        };
        let postgres = match &data {
            Some(data) if needs.postgres => Some(Arc::new(
                Postgres::start(&spec.postgres, data, needs.logins).await?,
            )),
            _ => None,
        };
        let identity = match (&data, &postgres) {
            (Some(data), Some(postgres)) if needs.identity => {
                Some(Arc::new(Identity::new(Arc::clone(postgres), data, spec.sessions)))
            }
            _ => None,
        };
        let audit = identity
            .as_ref()
            .map(|it| Arc::new(Audit::start(Arc::clone(&it.postgres), spec.identity.audit_days)));
        let admin = match &data {
            Some(data) if spec.admin.is_some() => Some(AdminToken::open(data)?),
            _ => None,
        };
        Ok(Self {
            data,
            postgres,
            identity,
            audit,
            admin,
            tokens,
            passwords: Hasher::default(),
        })
    }

    /// Stop what was started.
    pub async fn stop(&self) {
        // Before the connections that it needs.
        if let Some(audit) = &self.audit {
            audit.stop().await;
        }
        if let Some(postgres) = &self.postgres {
            postgres.stop().await;
        }
    }
}
