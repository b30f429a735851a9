//! The routing table, with the plugins behind it: one generation, built whole, never changed.
//!
//! A changed manifest makes the next generation, which takes the place of this one in one step. A request finds its route
//! in one generation and keeps what it needs of it; plugins that didn't change are the same in both.

use std::sync::Arc;

use http::Method;

use crate::cors::Cors;
use crate::dispatch::Target;
use crate::dispatch::auth::AUTH_ROUTES;
use crate::route::{Methods, Router};
use crate::runtime::plugin::{Plugin, Policy};
use crate::state::{Access, BuildError, HostSpec};
use crate::tokens::jwks;

/// One generation.
#[derive(Debug)]
pub struct Table {
    /// Counted from 1.
    pub generation: u64,
    /// Every plugin, loaded or not, in the manifest's order.
    pub plugins: Vec<Arc<Plugin>>,
    /// The routes.
    pub router: Router<Arc<Route>>,
    /// Whether any route may be called from another origin.
    pub has_cors: bool,
}

impl Table {
    /// The routes of a manifest to these plugins.
    ///
    /// # Errors
    /// Two routes take the same requests; `berth check` finds these first.
    pub fn new(generation: u64, spec: &HostSpec, plugins: Vec<Arc<Plugin>>) -> Result<Self, BuildError> {
        let auth = plugins
            .iter()
            .find(|plugin| plugin.spec.policy == Some(Policy::Auth));
        let router = router(spec, &plugins, auth)?;
        Ok(Self {
            generation,
            router,
            has_cors: spec.cors.is_some() || spec.routes.iter().any(|route| route.cors.is_some()),
            plugins,
        })
    }

    /// A plugin by its name.
    pub fn plugin(&self, name: &str) -> Option<&Arc<Plugin>> {
        self.plugins.iter().find(|plugin| plugin.name == name)
    }
}

/// A place in the routing table.
#[derive(Debug)]
pub struct Route {
    /// Its pattern, for log lines and metrics.
    pub pattern: String,
    /// Who may call it.
    pub access: Access,
    /// Which other origins may.
    pub cors: Option<Arc<Cors>>,
    /// What answers.
    pub target: Target,
    /// Who says who a caller is, where one is needed and there is such a policy.
    pub auth: Option<Arc<Plugin>>,
}

/// One row of the route reference.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RouteRow {
    /// `GET`, `GET, POST`, or `any`.
    pub methods: String,
    /// The pattern.
    pub path: String,
    /// What answers: `host`, or a plugin's name.
    pub served_by: String,
    /// `public`, `user` or `role:<name>`.
    pub access: String,
}

fn router(
    spec: &HostSpec,
    plugins: &[Arc<Plugin>],
    auth: Option<&Arc<Plugin>>,
) -> Result<Router<Arc<Route>>, BuildError> {
    let mut router = Router::new();
    let mut add =
        |path: &str, methods: &Methods, access: Access, cors: &Option<Arc<Cors>>, target: Target| {
            let route = Arc::new(Route {
                pattern: path.to_owned(),
                auth: (access != Access::Public).then(|| auth.cloned()).flatten(),
                access,
                cors: cors.clone(),
                target,
            });
            router
                .add(path, methods, route, 0)
                .map_err(|error| BuildError::Route {
                    path: path.to_owned(),
                    error,
                })
        };
    add(
        "/health",
        &Methods::Only(vec![Method::GET]),
        Access::Public,
        &spec.cors,
        Target::Health,
    )?;
    if spec.needs().ring {
        add(
            jwks::PATH,
            &Methods::Only(vec![Method::GET]),
            Access::Public,
            &spec.cors,
            Target::Jwks,
        )?;
    }
    if let Some(auth) = auth {
        for route in AUTH_ROUTES {
            let access = if route.op.needs_caller() {
                Access::User
            } else {
                Access::Public
            };
            let methods = Methods::Only(vec![route.method.clone()]);
            add(
                route.path,
                &methods,
                access,
                &spec.cors,
                Target::Auth(Arc::clone(auth), route.op),
            )?;
        }
    }
    for route in &spec.routes {
        let plugin = plugins.iter().find(|p| p.name == route.plugin);
        if let Some(plugin) = plugin {
            add(
                &route.path,
                &route.methods,
                route.access.clone(),
                &route.cors,
                Target::Http(Arc::clone(plugin)),
            )?;
        }
    }
    Ok(router)
}

/// The route reference of a manifest, host and policy routes first.
pub fn route_table(spec: &HostSpec) -> Vec<RouteRow> {
    let row = |methods: String, path: &str, served_by: &str, access: &Access| RouteRow {
        methods,
        path: path.to_owned(),
        served_by: served_by.to_owned(),
        access: match access {
            Access::Public => "public".to_owned(),
            Access::User => "user".to_owned(),
            Access::Role(role) => format!("role:{role}"),
        },
    };
    let mut rows = vec![row("GET".to_owned(), "/health", "host", &Access::Public)];
    if spec.needs().ring {
        rows.push(row("GET".to_owned(), jwks::PATH, "host", &Access::Public));
    }
    if let Some(auth) = spec.plugins.iter().find(|p| p.policy == Some(Policy::Auth)) {
        rows.extend(AUTH_ROUTES.iter().map(|route| {
            let access = if route.op.needs_caller() {
                Access::User
            } else {
                Access::Public
            };
            row(route.method.to_string(), route.path, &auth.name, &access)
        }));
    }
    rows.extend(spec.routes.iter().map(|route| {
        let methods = match &route.methods {
            Methods::Any => "any".to_owned(),
            Methods::Only(list) => list
                .iter()
                .map(http::Method::as_str)
                .collect::<Vec<_>>()
                .join(", "),
        };
        row(methods, &route.path, &route.plugin, &route.access)
    }));
    rows
}

/// The paths that the host and its policies take, which no manifest route may.
pub fn fixed_routes(has_auth: bool, has_ring: bool) -> Vec<(&'static str, http::Method)> {
    let auth = AUTH_ROUTES
        .iter()
        .filter(|_| has_auth)
        .map(|r| (r.path, r.method.clone()));
    let keys = has_ring.then_some((jwks::PATH, http::Method::GET));
    std::iter::once(("/health", http::Method::GET))
        .chain(keys)
        .chain(auth)
        .collect()
}
