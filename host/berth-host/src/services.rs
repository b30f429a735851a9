//! What the host has beside its plugins and routes: keys, the database, the identity store. Started before the plugins
//! are loaded, stopped after the last request.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::admin::AdminToken;
use crate::data::{DataError, DataFolder};
use crate::identity::Identity;
use crate::identity::audit::Audit;
use crate::passwords::Hasher;
use crate::postgres::{Postgres, PostgresError};
use crate::state::HostSpec;
use crate::tokens::Verifier;
use crate::tokens::issue::Issuer;
use crate::tokens::ring::Ring;

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
    /// Signs tokens, if a plugin may have them signed.
    pub issuer: Option<Arc<Issuer>>,
    /// Hashes passwords.
    pub passwords: Hasher,
    /// What goes on beside the requests. Ends when this is dropped.
    _tasks: JoinSet<()>,
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
            Some(data) if needs.postgres => Some(Arc::new(Postgres::start(&spec.postgres, data).await?)),
            _ => None,
        };
        let mut tasks = JoinSet::new();
        let (mut tokens, mut issuer) = (tokens, None);
        if let (Some(data), true) = (&data, needs.ring) {
            let ring = Ring::open(data.path(), spec.tokens.algorithm, spec.sessions.access_life)?;
            let ring = Arc::new(ring);
            tasks.spawn(Arc::clone(&ring).follow());
            tokens = Some(Verifier::of_ring(&spec.tokens, Arc::clone(&ring)));
            issuer = Some(Arc::new(Issuer::new(&spec.tokens, ring)));
        }
        let identity = match (&data, &postgres, &issuer) {
            (Some(data), Some(postgres), Some(issuer)) if needs.identity => {
                let (postgres, issuer) = (Arc::clone(postgres), Arc::clone(issuer));
                Some(Arc::new(Identity::new(postgres, data, spec.sessions, issuer)))
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
        if let Some(identity) = identity.clone() {
            tasks.spawn(async move { identity.sessions.sweep().await });
        }
        Ok(Self {
            data,
            postgres,
            identity,
            audit,
            admin,
            tokens,
            issuer,
            passwords: Hasher::new(spec.passwords),
            _tasks: tasks,
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
