//! The tables of `[plugins]`.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use tracing::level_filters::LevelFilter;

use super::read::{Reader, Section, Value, nearest};
use super::{plugin_limits, values};
use crate::caps::settings::Settings;
use crate::grants::folders::FolderGrant;
use crate::grants::hosts::HttpGrant;
use crate::grants::{Capability, Grants};
use crate::postgres::roles::is_host_schema;
use crate::runtime::plugin::{PluginLimits, PluginSpec, Policy};
use crate::runtime::reuse::Reuse;
use crate::runtime::signature::PublicKey;

/// Every table of `[plugins]`. `trusted` may sign the components of those that name no keys of their own.
pub(super) fn plugins(
    reader: &Reader<'_>,
    root: &Section<'_, '_>,
    defaults: PluginLimits,
    trusted: &[PublicKey],
    data: &Path,
) -> Vec<PluginSpec> {
    let mut specs = Vec::new();
    let mut policies: Vec<(Policy, String)> = Vec::new();
    let table = root.section("plugins");
    for (name, at) in table.keys() {
        let section = table.section(&name);
        let key = section.path().to_owned();
        if !values::is_plugin_name(&name) {
            reader.fault(
                Some(at),
                &key,
                "a plugin's name has 1 to 64 lower-case letters, digits and \"-\", as in \"my-handler\""
                    .to_owned(),
            );
        }
        let component = section.required("component", "the path of the plugin's .wasm file", values::path);
        let policy = section.scalar("policy", values::policy);
        if let Some(policy) = policy {
            match policies.iter().find(|(p, _)| *p == policy) {
                Some((_, other)) => reader.fault(
                    Some(at),
                    &format!("{key}.policy"),
                    format!(
                        "\"{other}\" is the {} policy already, and there is one of each",
                        policy.key()
                    ),
                ),
                None => policies.push((policy, name.clone())),
            }
        }
        let reuse = reuse(reader, &section);
        let log = section.scalar("log", values::level).unwrap_or(LevelFilter::INFO);
        let grants = grants(reader, &section, data);
        one_owner(reader, &section, &grants, &specs);
        let limits_section = section.section("limits");
        let limits = plugin_limits(&limits_section, defaults);
        limits_section.finish();
        let settings = settings(reader, &section);
        let keys = section.list("public_keys", values::public_key);
        section.finish();
        specs.push(PluginSpec {
            name,
            component: reader.resolve(&component.unwrap_or_default()),
            policy,
            grants,
            limits,
            reuse,
            settings,
            log,
            public_keys: keys.unwrap_or_else(|| trusted.to_vec()),
        });
    }
    specs
}

fn reuse(reader: &Reader<'_>, plugin: &Section<'_, '_>) -> Reuse {
    let wanted = plugin.scalar("reuse", values::reuse).unwrap_or(Reuse::None);
    let given_count = plugin.scalar("reuse_count", values::count(1, 1_000_000));
    let given_at_once = plugin.scalar("reuse_concurrency", values::count(1, 1_000));
    let useless = |key: &str, without: &str| {
        let message = format!("means nothing without `reuse = {without}`; add it, or leave this out");
        reader.fault(plugin.at_of(key), &format!("{}.{key}", plugin.path()), message);
    };
    if wanted == Reuse::None && given_count.is_some() {
        useless("reuse_count", "\"serial\"");
    }
    match wanted {
        Reuse::Concurrent {
            count,
            at_once,
            random,
        } => Reuse::Concurrent {
            count: given_count.unwrap_or(count),
            at_once: given_at_once.unwrap_or(at_once),
            random,
        },
        other if given_at_once.is_some() => {
            useless("reuse_concurrency", "\"concurrent\"");
            other
        }
        Reuse::Serial { count, random } => Reuse::Serial {
            count: given_count.unwrap_or(count),
            random,
        },
        Reuse::None => Reuse::None,
    }
}

fn grants(reader: &Reader<'_>, plugin: &Section<'_, '_>, data: &Path) -> Grants {
    let section = plugin.section("grants");
    let mut http = HttpGrant::default();
    let mut granted_folders = Vec::new();
    let mut capabilities = Vec::new();
    let mut schemas = Vec::new();
    for (key, at) in section.keys() {
        if key == Capability::Sql.key() {
            schemas = granted_schemas(reader, &section, &key);
        } else if key == Grants::HTTP {
            http = hosts(reader, &section, &key);
        } else if key == Grants::FOLDERS {
            granted_folders = folders(reader, &section.section(&key), data);
        } else if let Some(capability) = Capability::ALL.into_iter().find(|c| c.key() == key) {
            if section.scalar(&key, values::boolean) == Some(true) {
                capabilities.push(capability);
            }
        } else {
            let mut known = Capability::ALL.map(Capability::key).to_vec();
            known.extend([Grants::HTTP, Grants::FOLDERS]);
            let hint = nearest(&key, &known).map(|k| format!("did you mean \"{k}\"?"));
            let hint = hint.unwrap_or_else(|| format!("there is {}", values::list(&known)));
            reader.fault(
                Some(at),
                &format!("{}.{key}", section.path()),
                format!("there is no such grant; {hint}"),
            );
        }
    }
    Grants::new(capabilities)
        .with_schemas(schemas)
        .with_http(http)
        .with_folders(granted_folders)
}

/// A schema of a plugin's own is one plugin's.
fn one_owner(reader: &Reader<'_>, plugin: &Section<'_, '_>, grants: &Grants, others: &[PluginSpec]) {
    let section = plugin.section("grants");
    let own = grants.schemas().iter().filter(|schema| !is_host_schema(schema));
    for schema in own {
        let other = others
            .iter()
            .find(|other| other.grants.schemas().contains(schema));
        if let Some(other) = other {
            reader.fault(
                section.at_of(Capability::Sql.key()),
                &format!("{}.{}", section.path(), Capability::Sql.key()),
                format!(
                    "the schema \"{schema}\" is the plugin \"{}\"'s already; choose another name, or make the two plugins one",
                    other.name
                ),
            );
        }
    }
}

/// The schemas of `sql`.
fn granted_schemas(reader: &Reader<'_>, grants: &Section<'_, '_>, key: &str) -> Vec<String> {
    let fault = |message: String| {
        reader.fault(grants.at_of(key), &format!("{}.{key}", grants.path()), message);
        Vec::new()
    };
    match grants.value(key) {
        Some(Value::Array) => {}
        other => {
            return fault(format!(
                "must be a list of the schemas that the plugin may use, as in [\"notes\"], not {}",
                other.map_or("nothing", |value| value.kind())
            ));
        }
    }
    match grants.list(key, values::schema) {
        Some(schemas) if schemas.is_empty() => {
            fault("the list is empty; leave the key out to allow no schema".to_owned())
        }
        schemas => schemas.unwrap_or_default(),
    }
}

fn hosts(reader: &Reader<'_>, grants: &Section<'_, '_>, key: &str) -> HttpGrant {
    let fault = |message: String| {
        reader.fault(grants.at_of(key), &format!("{}.{key}", grants.path()), message);
        HttpGrant::default()
    };
    match grants.value(key) {
        Some(Value::Array) => {}
        Some(other) => {
            return fault(format!(
                "must be a list of the hosts that the plugin may call, as in [\"api.example.com\"], not {}",
                other.kind()
            ));
        }
        None => return HttpGrant::default(),
    }
    match grants.list(key, values::host_entry) {
        Some(entries) if entries.is_empty() => {
            fault("the list is empty; leave the key out to allow no host".to_owned())
        }
        entries => HttpGrant::new(entries.unwrap_or_default()),
    }
}

fn folders(reader: &Reader<'_>, section: &Section<'_, '_>, data: &Path) -> Vec<FolderGrant> {
    let mut granted = Vec::new();
    for (guest, at) in section.keys() {
        let (path, write) = match section.value(&guest) {
            Some(Value::Table) => {
                let folder = section.section(&guest);
                let path = folder.required("path", "the folder's path on this machine", values::path);
                let write = folder.scalar("write", values::boolean);
                folder.finish();
                (path, write.unwrap_or(false))
            }
            Some(Value::Text(_)) => (section.scalar(&guest, values::path), false),
            _ => {
                reader.fault(
                    section.at_of(&guest),
                    &format!("{}.{guest}", section.path()),
                    "must be the folder's path on this machine, or { path = \"…\", write = true }".to_owned(),
                );
                continue;
            }
        };
        let path = path.unwrap_or_default();
        match FolderGrant::new(&guest, &path, reader.resolve(&path), write) {
            Ok(folder) if !path.is_empty() && overlap(folder.host(), data) => reader.fault(
                Some(at),
                &format!("{}.{guest}", section.path()),
                format!(
                    "the folder holds berth's own data folder, {}, or is within it: its keys and machine code are no plugin's; grant another one",
                    data.display()
                ),
            ),
            Ok(folder) => granted.push(folder),
            Err(message) => reader.fault(Some(at), &format!("{}.{guest}", section.path()), message),
        }
    }
    granted
}

/// Whether one of two folders holds the other, wherever links lead. What isn't there yet is taken by its name.
fn overlap(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| {
        let there = path
            .ancestors()
            .find_map(|at| Some((at, at.canonicalize().ok()?)));
        let (at, mut real) = there.unwrap_or((Path::new(""), std::env::current_dir().unwrap_or_default()));
        for part in path.strip_prefix(at).unwrap_or(path).components() {
            match part {
                Component::ParentDir => _ = real.pop(),
                Component::CurDir => {}
                part => real.push(part),
            }
        }
        real
    };
    let (one, other) = (place(one), place(other));
    one.starts_with(&other) || other.starts_with(&one)
}

fn settings(reader: &Reader<'_>, plugin: &Section<'_, '_>) -> Settings {
    let section = plugin.section("settings");
    let mut settings = BTreeMap::new();
    for (key, at) in section.keys() {
        match section.value(&key) {
            Some(Value::Text(text) | Value::Integer(text) | Value::Other(text)) => {
                settings.insert(key, text);
            }
            Some(Value::Boolean(value)) => {
                settings.insert(key, value.to_string());
            }
            _ => reader.fault(
                Some(at),
                &format!("{}.{key}", section.path()),
                "a setting is a string, a number or a boolean".to_owned(),
            ),
        }
    }
    settings
}
