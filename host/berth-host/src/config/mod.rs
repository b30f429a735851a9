//! The manifest, `berth.toml`: read once, checked whole, turned into a [`HostSpec`].
//!
//! Every fault is found in one run and says where it is, what is wrong and what would be right. An unknown key is a
//! fault too, with the nearest known one: a misspelt limit must not be a missing limit. Every scalar key of a section
//! has an environment variable, `BERTH_<SECTION>_<KEY>`, which wins over the file.

mod environment;
mod plugins;
mod read;
mod tokens;
mod values;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, header};

use crate::cors::{self, Cors, Origins};
use crate::forwarded::TrustedProxies;
use crate::identity::IdentitySpec;
use crate::listen::tls::TlsFiles;
use crate::postgres::{PostgresSpec, password_of};
use crate::route::{AddError, Methods, Router};
use crate::runtime::plugin::{PluginLimits, PluginSpec, Policy};
use crate::runtime::signature::PublicKey;
use crate::serve::REQUEST_ID;
use crate::state::{Access, HostLimits, HostSpec, ReloadSpec, RouteSpec, issues_tokens};
use crate::table::fixed_routes;
use crate::telemetry::TelemetrySpec;
pub use environment::Environment;
pub(crate) use read::nearest;
use read::{Reader, Section, Value};
pub(crate) use values::is_plugin_name;

const MIB: u64 = 1024 * 1024;

/// One fault of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ManifestFault {
    /// The manifest's file.
    pub file: PathBuf,
    /// Where in the file, from 1; not there for a fault of the environment or of what is missing altogether.
    pub line: Option<usize>,
    /// In characters, from 1.
    pub column: Option<usize>,
    /// The key, as in `plugins.auth.policy`; empty for a fault of the syntax.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for ManifestFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        if self.key.is_empty() {
            write!(f, ": {}", self.message)
        } else {
            write!(f, ": {}: {}", self.key, self.message)
        }
    }
}

/// Read and check a manifest.
///
/// # Errors
/// Every fault in it, in the file's order.
pub fn load(file: &Path, env: &Environment) -> Result<HostSpec, Vec<ManifestFault>> {
    parse(file, &read(file)?, env)
}

/// A manifest's text.
///
/// # Errors
/// It can't be read, as the one fault.
pub fn read(file: &Path) -> Result<String, Vec<ManifestFault>> {
    std::fs::read_to_string(file).map_err(|error| {
        let message = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "there is no such file; name the manifest with --config".to_owned()
            }
            std::io::ErrorKind::InvalidData => "it is not UTF-8".to_owned(),
            _ => format!("it can't be read: {error}"),
        };
        vec![ManifestFault {
            file: file.to_owned(),
            line: None,
            column: None,
            key: String::new(),
            message,
        }]
    })
}

/// A fault that shows only when a manifest is put in force, at the place of this key in its text; if the key isn't there,
/// at the place of the table that it would be in.
pub fn fault_at(file: &Path, text: &str, key: &[&str], message: String) -> ManifestFault {
    let position = read::place_of(text, key).map(|at| read::position(text, at));
    ManifestFault {
        file: file.to_owned(),
        line: position.map(|p| p.0),
        column: position.map(|p| p.1),
        key: key.join("."),
        message,
    }
}

/// Check a manifest's text. Relative paths in it are relative to `file`'s folder.
///
/// # Errors
/// Every fault in it, in the file's order.
pub fn parse(file: &Path, text: &str, env: &Environment) -> Result<HostSpec, Vec<ManifestFault>> {
    match parse_anyway(file, text, env) {
        (spec, faults) if faults.is_empty() => Ok(spec),
        (_, faults) => Err(faults),
    }
}

/// Read a manifest and make the best of it, for whoever only looks for the host that serves it: what is faulty is as if it
/// weren't there. Also the faults.
///
/// # Errors
/// It can't be read.
pub fn load_anyway(
    file: &Path,
    env: &Environment,
) -> Result<(HostSpec, Vec<ManifestFault>), Vec<ManifestFault>> {
    Ok(parse_anyway(file, &read(file)?, env))
}

fn parse_anyway(file: &Path, text: &str, env: &Environment) -> (HostSpec, Vec<ManifestFault>) {
    let (document, syntax) = toml::de::DeTable::parse_recoverable(text);
    let reader = Reader::new(file, text, env);
    for error in syntax {
        reader.fault(error.span().map(|s| s.start), "", error.message().to_owned());
    }
    let root = Section::root(&reader, document.get_ref());
    let spec = manifest(&reader, &root);
    root.finish();
    reader.check_environment();
    let mut faults = reader.into_faults();
    // A value that didn't parse is not judged by its meaning as well.
    let broken: Vec<Option<usize>> = faults
        .iter()
        .filter(|f| f.key.is_empty())
        .map(|f| f.line)
        .collect();
    faults.retain(|f| f.key.is_empty() || f.line.is_none() || !broken.contains(&f.line));
    (spec, faults)
}

fn manifest(reader: &Reader<'_>, root: &Section<'_, '_>) -> HostSpec {
    let http = root.section("http");
    let listen_given = http.scalar("listen", values::address);
    let listen = listen_given.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8080)));
    let tls = tls(reader, &http);
    let trusted_proxies = http.list("trusted_proxies", values::network).unwrap_or_default();
    let cors = cors(reader, &http).map(Arc::new);
    let admin_section = root.section("admin");
    let admin_given = admin_section.scalar("listen", values::address_or_off);
    let admin = admin_given.unwrap_or(Some(SocketAddr::from(([127, 0, 0, 1], 8081))));
    let issuing = tokens::tokens(reader, root);
    let passwords = tokens::passwords(root);
    let data_section = root.section("data");
    let data = data_section
        .scalar("dir", values::path)
        .unwrap_or_else(|| ".berth".to_owned());
    data_section.finish();
    let postgres = postgres(reader, root);
    let identity = identity(root);
    // An address that can't be read is not judged by what stands in for it.
    let readable = |section: &Section<'_, '_>, given: bool| given || section.value("listen").is_none();
    if readable(&http, listen_given.is_some()) && readable(&admin_section, admin_given.is_some()) {
        same_address(reader, (&http, listen), (&admin_section, admin));
    }
    let limits = root.section("limits");
    let host_limits = HostLimits {
        // hyper's smallest buffer is 8 KiB.
        header_bytes: http
            .scalar("header_bytes", values::size(8 * 1024, MIB))
            .unwrap_or(64 * 1024) as usize,
        header_time: http
            .scalar("header_time", values::duration)
            .unwrap_or(Duration::from_secs(10)),
        body_bytes: http
            .scalar("body_bytes", values::size(0, 1024 * MIB))
            .unwrap_or(MIB),
        idle_time: http
            .scalar("idle_time", values::duration)
            .unwrap_or(Duration::from_secs(30)),
        connections: http
            .scalar("connections", values::count(1, 1_000_000))
            .unwrap_or(10_000) as usize,
        http2_streams: http
            .scalar("http2_streams", values::count(1, 10_000))
            .unwrap_or(128),
        drain_time: http
            .scalar("drain_time", values::duration)
            .unwrap_or(Duration::from_secs(30)),
        instances: limits.scalar("instances", values::count(1, 4096)).unwrap_or(256),
        memory_budget: limits
            .scalar("total_memory", values::size(MIB, u64::MAX))
            .unwrap_or(4096 * MIB) as usize,
    };
    let defaults = plugin_limits(
        &limits,
        PluginLimits {
            memory: 64 * MIB as usize,
            cpu: Duration::from_millis(500),
            wall: Duration::from_secs(30),
            concurrency: 64,
        },
    );
    http.finish();
    admin_section.finish();
    limits.finish();
    let telemetry = telemetry(root);

    let trusted = trusted(root);
    let plugins = plugins::plugins(reader, root, defaults, &trusted, &reader.resolve(&data));
    let reload = reload(root);
    tokens::one_issuer(reader, &issuing, &plugins);
    let routes = routes(reader, root, &plugins, cors.as_ref());
    HostSpec {
        listen,
        tls,
        tokens: issuing.tokens,
        sessions: issuing.sessions,
        identity,
        trusted_proxies: TrustedProxies::new(trusted_proxies),
        passwords,
        data: reader.resolve(&data),
        postgres,
        admin,
        limits: host_limits,
        plugins,
        routes,
        cors,
        telemetry,
        reload,
        file: reader.file().to_owned(),
    }
}

/// Who may sign components, of plugins that don't say it themselves.
fn trusted(root: &Section<'_, '_>) -> Vec<PublicKey> {
    let section = root.section("signatures");
    let keys = section
        .list("public_keys", values::public_key)
        .unwrap_or_default();
    section.finish();
    keys
}

fn reload(root: &Section<'_, '_>) -> ReloadSpec {
    let section = root.section("reload");
    let defaults = ReloadSpec::default();
    let spec = ReloadSpec {
        watch: section.scalar("watch", values::boolean),
        keep: section
            .scalar("keep", values::count(1, 100))
            .map_or(defaults.keep, |keep| keep as usize),
    };
    section.finish();
    spec
}

fn identity(root: &Section<'_, '_>) -> IdentitySpec {
    let section = root.section("identity");
    let defaults = IdentitySpec::default();
    let spec = IdentitySpec {
        address_rate: section
            .scalar("address_rate", values::rate_or_off)
            .unwrap_or(defaults.address_rate),
        account_rate: section
            .scalar("account_rate", values::rate_or_off)
            .unwrap_or(defaults.account_rate),
        audit_days: section
            .scalar("audit_days", values::count(1, 36_500))
            .unwrap_or(defaults.audit_days),
    };
    section.finish();
    spec
}

fn postgres(reader: &Reader<'_>, root: &Section<'_, '_>) -> PostgresSpec {
    let section = root.section("postgres");
    let fault = |key: &str, message: &str| {
        reader.fault(section.at_of(key), &format!("postgres.{key}"), message.to_owned());
    };
    let url = section.scalar("url", values::postgres_url);
    if let Some(Value::Text(written)) = section.value("url")
        && password_of(&written).is_some()
    {
        fault(
            "url",
            "has a password in it, which is no place for secrets; put the password alone into a file and name it in `password_file`, or the whole address into the environment variable BERTH_POSTGRES_URL",
        );
    }
    let path = |key: &str| {
        section
            .scalar(key, values::path)
            .map(|path| reader.resolve(&path))
    };
    let password_file = path("password_file");
    if password_file.is_some() && url.is_none() && section.value("url").is_none() {
        fault(
            "password_file",
            "means nothing without `url`; add it, or leave this out",
        );
    }
    let defaults = PostgresSpec::default();
    let count =
        |key: &str, least, most, default| section.scalar(key, values::count(least, most)).unwrap_or(default);
    let time = |key: &str, default| section.scalar(key, values::duration).unwrap_or(default);
    let spec = PostgresSpec {
        url,
        password_file,
        bin_dir: path("bin_dir"),
        connections: count("connections", 1, 1_000, defaults.connections),
        idle_connections: count("idle_connections", 0, 1_000, defaults.idle_connections),
        idle_time: time("idle_time", defaults.idle_time),
        acquire_time: time("acquire_time", defaults.acquire_time),
        statement_time: time("statement_time", defaults.statement_time),
        plugin_connections: count("plugin_connections", 1, 100, defaults.plugin_connections),
    };
    section.finish();
    spec
}

/// Two listeners can't have one address; the second one would only find out when it binds.
fn same_address(
    reader: &Reader<'_>,
    (http, listen): (&Section<'_, '_>, SocketAddr),
    (section, admin): (&Section<'_, '_>, Option<SocketAddr>),
) {
    let Some(admin) = admin.filter(|a| a.port() == listen.port() && a.port() != 0) else {
        return;
    };
    // An unspecified IPv6 address takes IPv4 as well.
    let takes = |a: SocketAddr, b: SocketAddr| {
        a.ip() == b.ip() || (a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4()))
    };
    if takes(listen, admin) || takes(admin, listen) {
        reader.fault(
            section.at_of("listen").or_else(|| http.at_of("listen")),
            "admin.listen",
            format!("\"{admin}\" and `http.listen`, \"{listen}\", are the same address; choose another port, or \"off\""),
        );
    }
}

/// Both files or neither.
fn tls(reader: &Reader<'_>, http: &Section<'_, '_>) -> Option<TlsFiles> {
    let certificate = http.scalar("tls_certificate", values::path);
    let key = http.scalar("tls_key", values::path);
    let fault = |given: &str, missing: &str| {
        reader.fault(
            http.at_of(given),
            &format!("http.{given}"),
            format!("means nothing without `{missing}`; add it, or leave this out"),
        );
    };
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(TlsFiles {
            certificate: reader.resolve(&certificate),
            key: reader.resolve(&key),
        }),
        (Some(_), None) if http.value("tls_key").is_none() => {
            fault("tls_certificate", "tls_key");
            None
        }
        (None, Some(_)) if http.value("tls_certificate").is_none() => {
            fault("tls_key", "tls_certificate");
            None
        }
        _ => None,
    }
}

/// The `cors` table of `[http]` or of a route.
fn cors(reader: &Reader<'_>, within: &Section<'_, '_>) -> Option<Cors> {
    within.value("cors")?;
    let section = within.section("cors");
    let fault = |key: &str, message: &str| {
        let at = section.at_of(key).or(section.at());
        reader.fault(at, &format!("{}.{key}", section.path()), message.to_owned());
    };
    let given = section.value("origins").is_some();
    let origins = section.list("origins", values::origin);
    if !given || origins.as_ref().is_some_and(Vec::is_empty) {
        fault(
            "origins",
            "is missing; add who may call, as in [\"https://app.example.com\"], or [\"*\"] for everybody",
        );
    }
    let origins = origins.unwrap_or_default();
    let any = origins.iter().any(|origin| origin == "*");
    let credentials = section.scalar("credentials", values::boolean).unwrap_or(false);
    if any && credentials {
        fault(
            "credentials",
            "can't be had for every origin: any page could call as its visitor; name the origins",
        );
    }
    let headers = section.list("headers", values::header_name);
    let max_age = section
        .scalar("max_age", values::duration)
        .unwrap_or(cors::MAX_AGE);
    section.finish();
    Some(Cors {
        origins: if any { Origins::Any } else { Origins::Only(origins) },
        headers: headers.unwrap_or_else(|| vec![header::AUTHORIZATION, header::CONTENT_TYPE, REQUEST_ID]),
        credentials,
        max_age,
    })
}

fn telemetry(root: &Section<'_, '_>) -> Option<TelemetrySpec> {
    let section = root.section("telemetry");
    let endpoint = section.scalar("otlp", values::collector).flatten();
    let service_name = section.scalar("service_name", values::path);
    let sample = section.scalar("sample", values::percentage);
    section.finish();
    Some(TelemetrySpec {
        endpoint: endpoint?,
        service_name: service_name.unwrap_or_else(|| "berth".to_owned()),
        sample: sample.unwrap_or(1.0),
    })
}

fn plugin_limits(section: &Section<'_, '_>, defaults: PluginLimits) -> PluginLimits {
    PluginLimits {
        memory: section
            .scalar("memory", values::size(MIB, 4096 * MIB))
            .map_or(defaults.memory, |bytes| bytes as usize),
        cpu: section.scalar("cpu", values::duration).unwrap_or(defaults.cpu),
        wall: section.scalar("wall", values::duration).unwrap_or(defaults.wall),
        concurrency: section
            .scalar("concurrency", values::count(1, 100_000))
            .unwrap_or(defaults.concurrency),
    }
}

fn routes(
    reader: &Reader<'_>,
    root: &Section<'_, '_>,
    plugins: &[PluginSpec],
    default_cors: Option<&Arc<Cors>>,
) -> Vec<RouteSpec> {
    let has_auth = plugins.iter().any(|p| p.policy == Some(Policy::Auth));
    let mut taken = Router::new();
    for (path, method) in fixed_routes(has_auth, issues_tokens(plugins)) {
        // The host's own routes are disjoint; a test of this module builds them.
        let _ = taken.add(path, &Methods::Only(vec![method]), (), usize::MAX);
    }
    let mut specs: Vec<RouteSpec> = Vec::new();
    for section in root.tables("routes") {
        let at = section.at();
        let path = section.required("path", "the path that it takes, as in \"/hello/*\"", values::text);
        let plugin = section.required("plugin", "the name of the handler that answers", values::text);
        let access = section.required(
            "access",
            "who may call it: \"public\", \"user\" or \"role:<name>\"",
            values::access,
        );
        let methods = section.list("methods", values::method);
        let methods_faulty = methods.is_none() && section.value("methods").is_some();
        let methods = methods.map_or(Methods::Any, |list: Vec<Method>| Methods::Only(list));
        let fault = |key: &str, message: String| {
            reader.fault(
                section.at_of(key).or(at),
                &format!("{}.{key}", section.path()),
                message,
            );
        };
        if methods == Methods::Only(Vec::new()) {
            fault(
                "methods",
                "the list is empty; leave the key out to take every method".to_owned(),
            );
        }
        if let Methods::Only(list) = &methods
            && let Some(twice) = list
                .iter()
                .enumerate()
                .find_map(|(n, m)| list.iter().take(n).find(|o| *o == m))
        {
            fault("methods", format!("\"{twice}\" is listed twice; once is enough"));
        }
        if let Some(name) = &plugin {
            match plugins.iter().find(|p| p.name == *name) {
                None => {
                    let names: Vec<&str> = plugins.iter().map(|p| p.name.as_str()).collect();
                    fault(
                        "plugin",
                        match nearest(name, &names) {
                            Some(near) => format!("there is no plugin \"{name}\"; did you mean \"{near}\"?"),
                            None => format!("there is no plugin \"{name}\"; add a table [plugins.{name}]"),
                        },
                    );
                }
                Some(PluginSpec {
                    policy: Some(policy), ..
                }) => fault(
                    "plugin",
                    format!(
                        "\"{name}\" is the {} policy, whose routes are fixed; a route leads to a handler",
                        policy.key()
                    ),
                ),
                Some(_) => {}
            }
        }
        if let Some(access) = &access
            && *access != Access::Public
            && !has_auth
        {
            fault(
                "access",
                "nobody can sign in: no plugin has `policy = \"auth\"`".to_owned(),
            );
        }
        // A list that can't be read says nothing about what the route takes.
        if let (Some(path), false) = (&path, methods_faulty) {
            match taken.add(path, &methods, (), specs.len()) {
                Ok(()) => {}
                Err(AddError::Pattern(error)) => fault("path", format!("\"{path}\": {error}")),
                Err(AddError::Taken(usize::MAX)) => {
                    fault(
                        "path",
                        format!("\"{path}\" is the host's own; choose another path"),
                    );
                }
                Err(AddError::Taken(other)) => fault(
                    "path",
                    format!("routes[{other}] takes \"{path}\" already, with a method in common"),
                ),
            }
        }
        let cors = cors(reader, &section)
            .map(Arc::new)
            .or_else(|| default_cors.cloned());
        section.finish();
        specs.push(RouteSpec {
            path: path.unwrap_or_default(),
            plugin: plugin.unwrap_or_default(),
            methods,
            access: access.unwrap_or(Access::User),
            cors,
        });
    }
    specs
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
