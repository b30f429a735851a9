//! What the host has beside its plugins and routes: keys, the database, the identity store. Started before the plugins
//! are loaded, stopped after the last request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
use crate::runtime::cache::Cache;
use crate::runtime::plugin::PluginSpec;
use crate::runtime::reload::kept::{Kept, State};
use crate::state::HostSpec;
use crate::tokens::Verifier;
use crate::tokens::issue::Issuer;
use crate::tokens::ring::Ring;

/// All of it. What a manifest doesn't need isn't there.
#[derive(Debug, Default)]
pub struct Services {
    /// The data folder, if anything keeps something in it.
    pub data: Option<Arc<DataFolder>>,
    /// The versions of plugins that are kept, if there is a data folder.
    pub kept: Option<Arc<Kept>>,
    /// The database, if a plugin needs one or the manifest names one.
    pub postgres: Option<Arc<Postgres>>,
    /// The roles and connections of every plugin that may use `sql`.
    pub sql: Mutex<Pools>,
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

/// The connections of one plugin.
#[derive(Clone, Debug)]
pub struct PluginPool {
    plugin: String,
    /// The schemas that its role may use.
    schemas: Vec<String>,
    pool: Arc<sql::Pool>,
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
        let data = match DataFolder::open(&spec.data) {
            Ok(data) => Some(Arc::new(data)),
            Err(error) if needs.data => return Err(error.into()),
            Err(error) => {
                tracing::warn!(
                    target: "berth",
                    "nothing is kept between two starts, and `berth plugin` can't ask this host: {error}",
                );
                None
            }
        };
        let kept = data.as_ref().and_then(|data| kept(data));
        let postgres = match &data {
            Some(data) if needs.postgres => Some(Arc::new(
                Postgres::start(&spec.postgres, data, needs.logins).await?,
            )),
            _ => None,
        };
        let sql = match (&data, &postgres) {
            (Some(data), Some(postgres)) => pools(spec, Roles::of(spec, &[]), postgres, data, &[]).await?,
            _ => Pools::default(),
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
            kept,
            postgres,
            sql: Mutex::new(sql),
            identity,
            audit,
            admin,
            tokens,
            issuer,
            passwords: Hasher::new(spec.passwords),
            _tasks: tasks,
        })
    }

    /// Machine code on disk, if there is a data folder.
    pub fn cache(&self) -> Option<Cache> {
        let folder = self.data.as_ref()?.path().join("cache");
        match Cache::open(&folder) {
            Ok(cache) => Some(cache),
            Err(error) => {
                tracing::warn!(target: "berth", "components are compiled at every start: {error}");
                None
            }
        }
    }

    /// What is kept of a plugin. Nothing is known of one whose state can't be read, and that is said.
    pub fn state_of(&self, plugin: &str) -> State {
        let state = self.kept.as_ref().map(|kept| kept.state(plugin));
        state.unwrap_or(Ok(State::default())).unwrap_or_else(|error| {
            tracing::warn!(target: "berth::swap", plugin, "{error}");
            State::default()
        })
    }

    /// A plugin's connections, if it may have any.
    pub fn sql_of(&self, plugin: &str) -> Option<Arc<sql::Pool>> {
        let pools = self.pools();
        let found = pools.pools.iter().find(|it| it.plugin == plugin)?;
        Some(Arc::clone(&found.pool))
    }

    fn pools(&self) -> MutexGuard<'_, Pools> {
        // Replaced whole, so nothing in it is half done.
        self.sql.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Give the plugins of a manifest their roles and connections; those that want the same as before keep theirs. What
    /// `leaving`, plugins of earlier manifests, may do is not taken back: their requests in flight still do it. Ask again
    /// without them when they are gone.
    ///
    /// # Errors
    /// A role that can't be had. Then nobody has other connections; asked for what was before, the roles are that again.
    pub async fn follow(&self, spec: &HostSpec, leaving: &[&PluginSpec]) -> Result<(), ServiceError> {
        let (Some(data), Some(postgres)) = (&self.data, &self.postgres) else {
            return Ok(());
        };
        let (known, wanted) = (self.pools().clone(), Roles::of(spec, leaving));
        if known.roles.as_ref() == Some(&wanted) {
            return Ok(());
        }
        // Until it is done, nobody knows what the database has.
        self.pools().roles = None;
        let next = pools(spec, wanted, postgres, data, &known.pools).await?;
        *self.pools() = next;
        Ok(())
    }

    /// Stop what was started.
    pub async fn stop(&self) {
        // Before the connections that it needs.
        if let Some(audit) = &self.audit {
            audit.stop().await;
        }
        self.pools().pools.iter().for_each(|it| it.pool.close());
        if let Some(postgres) = &self.postgres {
            postgres.stop().await;
        }
    }
}

fn kept(data: &DataFolder) -> Option<Arc<Kept>> {
    match Kept::open(&data.path().join("plugins")) {
        Ok(kept) => Some(Arc::new(kept)),
        Err(error) => {
            tracing::warn!(target: "berth", "no versions of plugins are kept: {error}");
            None
        }
    }
}

/// The roles of plugins, and what connects as them.
#[derive(Clone, Debug, Default)]
pub struct Pools {
    /// As the database has them; nothing if that isn't known.
    roles: Option<Roles>,
    pools: Vec<PluginPool>,
}

/// The plugins that may use `sql`, each with its schemas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Roles(Vec<(String, Vec<String>)>);

impl Roles {
    /// Of a manifest, and of plugins of earlier ones: what these have more, unless it is another plugin's now.
    fn of(spec: &HostSpec, leaving: &[&PluginSpec]) -> Self {
        let mut roles: Vec<(String, Vec<String>)> = with_sql(&spec.plugins)
            .map(|plugin| (plugin.name.clone(), plugin.grants.schemas().to_vec()))
            .collect();
        let is_taken = |plugin: &str, schema: &String| {
            !roles::is_host_schema(schema)
                && with_sql(&spec.plugins)
                    .any(|other| other.name != plugin && other.grants.schemas().contains(schema))
        };
        for plugin in with_sql(leaving.iter().copied()) {
            let mut schemas = plugin.grants.schemas().to_vec();
            schemas.retain(|schema| !is_taken(&plugin.name, schema));
            match roles.iter_mut().find(|(name, _)| *name == plugin.name) {
                Some((_, known)) => {
                    schemas.retain(|schema| !known.contains(schema));
                    known.append(&mut schemas);
                }
                None => roles.push((plugin.name.clone(), schemas)),
            }
        }
        Self(roles)
    }

    fn wanted(&self) -> Vec<Wanted<'_>> {
        let wanted = self.0.iter().map(|(plugin, schemas)| Wanted { plugin, schemas });
        wanted.collect()
    }
}

fn with_sql<'a>(plugins: impl IntoIterator<Item = &'a PluginSpec>) -> impl Iterator<Item = &'a PluginSpec> {
    let plugins = plugins.into_iter();
    plugins.filter(|plugin| plugin.grants.has(Capability::Sql))
}

/// Every role, and what connects as those of the manifest's plugins; from `known` where it is there already.
async fn pools(
    spec: &HostSpec,
    roles: Roles,
    postgres: &Arc<Postgres>,
    data: &DataFolder,
    known: &[PluginPool],
) -> Result<Pools, RoleError> {
    let logins = roles::prepare(postgres, data, &roles.wanted()).await?;
    let mut pools = Vec::new();
    if roles.0.is_empty() {
        return Ok(Pools {
            roles: Some(roles),
            pools,
        });
    }
    let sockets = crate::postgres::relays(data).map_err(RoleError::Sockets)?;
    // In the manifest's order, which is also that of the first roles.
    for (plugin, login) in with_sql(&spec.plugins).zip(logins) {
        let schemas = plugin.grants.schemas();
        let same = known
            .iter()
            .find(|it| it.plugin == plugin.name && it.schemas == schemas);
        if let Some(same) = same {
            pools.push(same.clone());
            continue;
        }
        let role = login.get_username().to_owned();
        let pool = sql::Pool::new(&plugin.name, login, schemas, postgres, &sockets, sql::IDLE);
        let pool = Arc::new(pool);
        pool.probe().await.map_err(|error| RoleError::Login {
            plugin: plugin.name.clone(),
            role,
            reason: error.to_string(),
        })?;
        pools.push(PluginPool {
            plugin: plugin.name.clone(),
            schemas: schemas.to_vec(),
            pool,
        });
    }
    Ok(Pools {
        roles: Some(roles),
        pools,
    })
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
            sql: Mutex::new(Pools {
                pools: vec![PluginPool {
                    plugin: "notes".to_owned(),
                    schemas: Vec::new(),
                    pool: Arc::new(pool),
                }],
                ..Pools::default()
            }),
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
        for it in &services.pools().pools {
            shown += &format!("{it:?}");
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
