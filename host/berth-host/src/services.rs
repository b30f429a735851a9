//! What the host has beside its plugins and routes: keys, the database, the identity store. Started before the plugins
//! are loaded, stopped after the last request.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::admin::AdminToken;
use crate::caps::sql;
use crate::data::{DataError, DataFolder};
use crate::grants::Capability;
use crate::identity::Identity;
use crate::identity::audit::Audit;
use crate::passwords::Hasher;
use crate::postgres::roles::{self, RoleError, Wanted};
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
    /// The connections of every plugin that may use `sql`, by its name.
    pub sql: Vec<(String, Arc<sql::Pool>)>,
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
    /// The plugins' roles.
    #[error(transparent)]
    Roles(#[from] RoleError),
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
        let sql = match (&data, &postgres) {
            (Some(data), Some(postgres)) => pools(spec, postgres, data).await?,
            _ => Vec::new(),
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
            sql,
            identity,
            audit,
            admin,
            tokens,
            issuer,
            passwords: Hasher::new(spec.passwords),
            _tasks: tasks,
        })
    }

    /// A plugin's connections, if it may have any.
    pub fn sql_of(&self, plugin: &str) -> Option<Arc<sql::Pool>> {
        let (_, pool) = self.sql.iter().find(|(name, _)| name == plugin)?;
        Some(Arc::clone(pool))
    }

    /// Stop what was started.
    pub async fn stop(&self) {
        // Before the connections that it needs.
        if let Some(audit) = &self.audit {
            audit.stop().await;
        }
        self.sql.iter().for_each(|(_, pool)| pool.close());
        if let Some(postgres) = &self.postgres {
            postgres.stop().await;
        }
    }
}

/// Every plugin's role, and what connects as it.
async fn pools(
    spec: &HostSpec,
    postgres: &Arc<Postgres>,
    data: &DataFolder,
) -> Result<Vec<(String, Arc<sql::Pool>)>, RoleError> {
    let wanted: Vec<Wanted<'_>> = spec
        .plugins
        .iter()
        .filter(|plugin| plugin.grants.has(Capability::Sql))
        .map(|plugin| Wanted {
            plugin: &plugin.name,
            schemas: plugin.grants.schemas(),
        })
        .collect();
    let logins = roles::prepare(postgres, data, &wanted).await?;
    let mut pools = Vec::with_capacity(wanted.len());
    if wanted.is_empty() {
        return Ok(pools);
    }
    let sockets = crate::postgres::relays(data).map_err(RoleError::Sockets)?;
    for (wanted, login) in wanted.iter().zip(logins) {
        let role = login.get_username().to_owned();
        let pool = sql::Pool::new(
            wanted.plugin,
            login,
            wanted.schemas,
            postgres,
            &sockets,
            sql::IDLE,
        );
        let pool = Arc::new(pool);
        pool.probe().await.map_err(|error| RoleError::Login {
            plugin: wanted.plugin.to_owned(),
            role,
            reason: error.to_string(),
        })?;
        pools.push((wanted.plugin.to_owned(), pool));
    }
    Ok(pools)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    use super::*;
    use crate::config;

    /// A secret as text and in every form in which `Debug` could show it.
    fn forms(secret: &[u8]) -> Vec<String> {
        let mut forms = vec![
            STANDARD.encode(secret),
            URL_SAFE_NO_PAD.encode(secret),
            secret.iter().map(|byte| format!("{byte:02x}")).collect(),
            secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", "),
        ];
        forms.extend(std::str::from_utf8(secret).map(str::to_owned));
        forms
    }

    #[tokio::test]
    async fn debug_shows_no_secret() {
        const PASSWORD: &str = "zzHunter2-Wombats";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let url = format!("postgres://ada:{PASSWORD}@db.test/app");
        let environment = [
            ("BERTH_POSTGRES_URL".to_owned(), url),
            ("BERTH_DATA_DIR".to_owned(), path.display().to_string()),
        ];
        let spec = config::parse(Path::new("berth.toml"), "", &environment.into_iter().collect()).unwrap();

        let data = Arc::new(DataFolder::open(&path).unwrap());
        let ring =
            Arc::new(Ring::open(data.path(), spec.tokens.algorithm, spec.sessions.access_life).unwrap());
        let issuer = Arc::new(Issuer::new(&spec.tokens, Arc::clone(&ring)));
        let postgres = Arc::new(Postgres::untried(
            &spec.postgres,
            spec.postgres.url.as_ref().unwrap(),
        ));
        let identity = Arc::new(Identity::new(
            Arc::clone(&postgres),
            &data,
            spec.sessions,
            Arc::clone(&issuer),
        ));
        let pool = sql::Pool::new(
            "notes",
            postgres.options().clone(),
            &[],
            &postgres,
            &path,
            sql::IDLE,
        );
        let services = Services {
            admin: Some(AdminToken::open(&data).unwrap()),
            data: Some(data),
            postgres: Some(postgres),
            sql: vec![("notes".to_owned(), Arc::new(pool))],
            identity: Some(identity),
            tokens: Some(Verifier::of_ring(&spec.tokens, ring)),
            issuer: Some(issuer),
            ..Services::default()
        };

        let file = |name: &str| std::fs::read(path.join(name)).unwrap();
        let stored: serde_json::Value = serde_json::from_slice(&file("tokens.json")).unwrap();
        let key = stored["keys"][0]["secret"].as_str().unwrap();
        let derived = services.data.as_ref().unwrap().derive("anything");
        let secrets = [
            PASSWORD.as_bytes().to_vec(),
            file("master.key"),
            file("admin.token").trim_ascii().to_vec(),
            key.as_bytes().to_vec(),
            URL_SAFE_NO_PAD.decode(key).unwrap(),
        ];
        let mut shown = format!("{spec:?} {spec:#?} {services:?} {services:#?} {derived:?}");
        for (_, pool) in &services.sql {
            shown += &format!("{pool:?}");
        }
        for part in [
            "Services", "HostSpec", "Postgres", "Sessions", "Ring", "Issuer", "Pool",
        ] {
            assert!(shown.contains(part), "{part} is in {shown}");
        }
        for form in secrets.iter().flat_map(|secret| forms(secret)) {
            assert!(!shown.contains(&form), "{form} is in {shown}");
        }
    }
}
