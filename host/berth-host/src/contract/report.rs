//! What can be said of a component that compiles: for `berth check`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::check::needs_nothing;
use super::decode::{Component, Item, decode};
use super::name::InterfaceName;
use super::offer::offer;
use super::shape::{Shape, shape};
use crate::grants::{Capability, Grants};

/// With which a component calls other hosts, in WASI 0.2 and 0.3.
const OUTGOING: &[&str] = &["wasi:http/outgoing-handler", "wasi:http/client"];
/// With which it finds its folders, in WASI 0.2 and 0.3.
const FOLDERS: &[&str] = &["wasi:filesystem/preopens"];

/// One import and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Import {
    /// As the component names it.
    pub name: String,
    /// Whether it gets it.
    pub status: Status,
}

/// What becomes of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The manifest grants it.
    Granted,
    /// The manifest doesn't grant it.
    NotGranted,
    /// There is no manifest; one would have to grant it.
    NeedsGrant,
    /// Everybody gets it.
    Wasi,
    /// It has only types, so nobody has to provide it.
    TypesOnly,
    /// This host doesn't have it.
    Unknown,
}

impl Status {
    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::NotGranted => "not granted",
            Self::NeedsGrant => "needs a grant",
            Self::Wasi => "WASI",
            Self::TypesOnly => "types only",
            Self::Unknown => "unknown to this host",
        }
    }
}

/// Something that works, but perhaps not as meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// Its stable name.
    pub code: &'static str,
    /// What it is, and what to do.
    pub message: String,
}

/// What a component is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The file's size.
    pub bytes: usize,
    /// Its core modules and memories.
    #[serde(flatten)]
    pub shape: Shape,
    /// Its imports, in its order.
    pub imports: Vec<Import>,
    /// The names of its exports.
    pub exports: Vec<String>,
    /// The versions of WASI that it imports or exports.
    pub wasi: BTreeSet<String>,
    /// The keys that its `grants` need.
    pub needs: Vec<&'static str>,
    /// What may not be as meant.
    pub warnings: Vec<Warning>,
}

/// Report on a component that wasmtime has compiled. `grants` are the manifest's, if there is one.
pub fn report(bytes: &[u8], grants: Option<&Grants>) -> Report {
    let mut warnings = Vec::new();
    let decoded = decode(bytes).map_err(|error| {
        warnings.push(Warning {
            code: "not-decoded",
            message: format!("its imports and exports can't be listed: {error}"),
        });
    });
    let shape = shape(bytes).unwrap_or_default();
    if shape.nameless > 0 {
        warnings.push(Warning {
            code: "no-names",
            message: format!(
                "{} of its {} core modules {} no function names, so the backtrace of a trap has none; build with `strip = \"debuginfo\"`, not `strip = true`",
                shape.nameless,
                shape.modules,
                if shape.nameless == 1 { "has" } else { "have" },
            ),
        });
    }
    let mut report = Report {
        bytes: bytes.len(),
        shape,
        imports: Vec::new(),
        exports: Vec::new(),
        wasi: BTreeSet::new(),
        needs: Vec::new(),
        warnings,
    };
    if let Ok(component) = decoded {
        describe(&mut report, &component, grants);
    }
    report
}

fn describe(report: &mut Report, component: &Component, grants: Option<&Grants>) {
    for item in &component.imports {
        report.imports.push(Import {
            name: item.name.clone(),
            status: status(component, item, grants),
        });
    }
    report.exports = component.exports.iter().map(|e| e.name.clone()).collect();
    let names = component.imports.iter().chain(&component.exports);
    report.wasi = names
        .map(|item| InterfaceName::parse(&item.name))
        .filter(|name| name.path.starts_with("wasi:"))
        .filter_map(|name| Some(name.version?.to_string()))
        .collect();
    let imported: Vec<Capability> = component
        .imports
        .iter()
        .filter_map(|item| Capability::of_import(&item.name))
        .collect();
    report.needs = Capability::ALL
        .into_iter()
        .filter(|c| imported.contains(c))
        .map(Capability::key)
        .collect();
    let Some(grants) = grants else {
        return;
    };
    let unused = grants.iter().filter(|c| !imported.contains(c));
    report
        .warnings
        .extend(unused.map(|capability| unused_grant(capability.key(), &format!("berth:host/{capability}"))));
    let imports = |paths: &[&str]| {
        component.imports.iter().any(|item| {
            let path = InterfaceName::parse(&item.name).path;
            paths.contains(&path.as_str())
        })
    };
    for (key, granted, paths) in [
        (Grants::HTTP, !grants.http().is_empty(), OUTGOING),
        (Grants::FOLDERS, !grants.folders().is_empty(), FOLDERS),
    ] {
        if granted && !imports(paths) {
            report.warnings.push(unused_grant(key, &paths.join(" or ")));
        }
    }
}

fn unused_grant(key: &str, interface: &str) -> Warning {
    Warning {
        code: "unused-grant",
        message: format!("`grants` has `{key}`, and the component doesn't import {interface}; take it out"),
    }
}

fn status(component: &Component, item: &Item, grants: Option<&Grants>) -> Status {
    let name = InterfaceName::parse(&item.name);
    let offered = offer().is_ok_and(|offer| offer.import(&name).is_some());
    let interface = item.interface.and_then(|id| component.resolve.interfaces.get(id));
    match Capability::of_import(&item.name) {
        Some(capability) if offered => match grants {
            Some(grants) if grants.has(capability) => Status::Granted,
            Some(_) => Status::NotGranted,
            None => Status::NeedsGrant,
        },
        _ if offered => Status::Wasi,
        _ if interface.is_some_and(|i| needs_nothing(&component.resolve, i)) => Status::TypesOnly,
        _ => Status::Unknown,
    }
}

impl Report {
    /// The imports for people: those of one package and version on one line, as in
    /// `wasi:cli@0.2.6 (environment, stderr)`.
    pub fn packages(&self) -> Vec<(String, Status)> {
        let mut order = Vec::new();
        let mut packages: BTreeMap<(String, &str), Vec<String>> = BTreeMap::new();
        for import in &self.imports {
            let name = InterfaceName::parse(&import.name);
            let version = name
                .version
                .as_ref()
                .map_or_else(String::new, |v| format!("@{v}"));
            let key = (format!("{}{version}", name.package()), import.status.text());
            if !packages.contains_key(&key) {
                order.push((key.clone(), import.status));
            }
            packages.entry(key).or_default().push(name.interface().to_owned());
        }
        order
            .into_iter()
            .map(|(key, status)| {
                let interfaces = packages.get(&key).map(|i| i.join(", ")).unwrap_or_default();
                (format!("{} ({interfaces})", key.0), status)
            })
            .collect()
    }
}
