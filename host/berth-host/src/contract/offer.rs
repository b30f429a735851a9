//! What this host offers and demands: the repository's own `wit/`, embedded.

use std::sync::LazyLock;

use wit_parser::{InterfaceId, Resolve, SourceMap, UnresolvedPackageGroup};

use super::name::InterfaceName;
use crate::config::nearest;

/// A vendored package: its file's name and its text.
macro_rules! wasi {
    ($name:literal) => {
        (
            concat!("wasi-", $name, ".wit"),
            include_str!(concat!("../../../../wit/handler/deps/wasi-", $name, ".wit")),
        )
    };
}

/// The packages, each with its files. Tests compare this list with the folder, and the offer with the linker.
const PACKAGES: &[&[(&str, &str)]] = &[
    &[
        ("log.wit", include_str!("../../../../wit/host/log.wit")),
        (
            "passwords.wit",
            include_str!("../../../../wit/host/passwords.wit"),
        ),
        ("sessions.wit", include_str!("../../../../wit/host/sessions.wit")),
        ("settings.wit", include_str!("../../../../wit/host/settings.wit")),
        ("sql.wit", include_str!("../../../../wit/host/sql.wit")),
        ("tokens.wit", include_str!("../../../../wit/host/tokens.wit")),
        ("worlds.wit", include_str!("../../../../wit/host/worlds.wit")),
    ],
    &[
        ("auth.wit", include_str!("../../../../wit/policy/auth.wit")),
        ("types.wit", include_str!("../../../../wit/policy/types.wit")),
        ("worlds.wit", include_str!("../../../../wit/policy/worlds.wit")),
    ],
    &[wasi!("cli-0.2.12")],
    &[wasi!("clocks-0.2.12")],
    &[wasi!("filesystem-0.2.12")],
    &[wasi!("http-0.2.12")],
    &[wasi!("io-0.2.12")],
    &[wasi!("random-0.2.12")],
    &[wasi!("sockets-0.2.12")],
    &[wasi!("cli-0.3.0")],
    &[wasi!("clocks-0.3.0")],
    &[wasi!("filesystem-0.3.0")],
    &[wasi!("http-0.3.0")],
    &[wasi!("random-0.3.0")],
    &[wasi!("sockets-0.3.0")],
];

/// Interfaces of WASI that are for a component to export; nobody can import them.
const EXPORTS_ONLY: [&str; 3] = ["wasi:cli/run", "wasi:http/incoming-handler", "wasi:http/handler"];

/// One interface of the embedded `wit/`.
pub(super) struct Offered {
    /// Its full name, as in `wasi:io/streams@0.2.12`.
    pub(super) text: String,
    /// The same, taken apart.
    pub(super) name: InterfaceName,
    /// Where it is in [`Offer::resolve`].
    pub(super) id: InterfaceId,
}

/// Everything that a component can import from this host or be asked to export.
pub(super) struct Offer {
    /// The types.
    pub(super) resolve: Resolve,
    interfaces: Vec<Offered>,
}

/// The offer, read when it is first asked for: a host whose components all load never does.
pub(super) fn offer() -> Result<&'static Offer, &'static str> {
    static OFFER: LazyLock<Result<Offer, String>> = LazyLock::new(Offer::read);
    OFFER.as_ref().map_err(String::as_str)
}

impl Offer {
    fn read() -> Result<Self, String> {
        let mut resolve = Resolve::default();
        let groups: Result<Vec<UnresolvedPackageGroup>, String> = PACKAGES
            .iter()
            .map(|files| {
                let mut sources = SourceMap::default();
                for (file, text) in *files {
                    sources.push_str(file, *text);
                }
                sources.parse().map_err(|(_, error)| error.to_string())
            })
            .collect();
        let mut groups = groups?;
        if let Some(last) = groups.pop() {
            resolve
                .push_groups(last, groups)
                .map_err(|error| error.to_string())?;
        }
        let interfaces = resolve
            .interfaces
            .iter()
            .filter_map(|(id, _)| {
                let text = resolve.id_of(id)?;
                let name = InterfaceName::parse(&text);
                Some(Offered { text, name, id })
            })
            .collect();
        Ok(Self { resolve, interfaces })
    }

    /// What a component gets when it imports this name; nothing if it can't.
    pub(super) fn import(&self, name: &InterfaceName) -> Option<&Offered> {
        self.imports().find(|offered| offered.name.fits(name))
    }

    /// Everything that can be imported. `berth:policy` is for exports; its types come with them.
    pub(super) fn imports(&self) -> impl Iterator<Item = &Offered> {
        self.interfaces.iter().filter(|offered| {
            offered.name.package() != "berth:policy" && !EXPORTS_ONLY.contains(&offered.name.path.as_str())
        })
    }

    /// What a component must export under this name.
    pub(super) fn export(&self, name: &InterfaceName) -> Option<&Offered> {
        self.interfaces.iter().find(|offered| offered.name.fits(name))
    }

    /// The versions of an interface that can be imported, by their full names.
    pub(super) fn versions(&self, path: &str) -> Vec<&str> {
        self.imports()
            .filter(|offered| offered.name.path == path)
            .map(|offered| offered.text.as_str())
            .collect()
    }

    /// The interface that was probably meant by a name that isn't offered.
    pub(super) fn nearest(&self, name: &InterfaceName) -> Option<&str> {
        let paths: Vec<&str> = self.imports().map(|o| o.name.path.as_str()).collect();
        let near = nearest(&name.path, &paths)?;
        let same_line = self.imports().filter(|o| o.name.path == near).max_by_key(|o| {
            let minor = |n: &InterfaceName| n.version.as_ref().map(|v| v.minor);
            minor(&o.name) == minor(name)
        });
        same_line.map(|o| o.text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_wit_folder_is_embedded() {
        let embedded: Vec<&str> = PACKAGES.iter().flat_map(|p| p.iter().map(|(f, _)| *f)).collect();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
        let mut found = 0;
        for part in ["host", "policy", "handler/deps"] {
            for entry in std::fs::read_dir(folder.join(part)).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|e| e == "wit") {
                    let name = path.file_name().unwrap().to_string_lossy().into_owned();
                    assert!(embedded.contains(&name.as_str()), "{part}/{name}");
                    found += 1;
                }
            }
        }
        assert_eq!(found, embedded.len());
    }

    #[test]
    fn offer_has_wasi_and_every_capability() {
        let offer = offer().unwrap();
        let ours: BTreeSet<&str> = offer
            .imports()
            .filter(|o| o.name.package() == "berth:host")
            .map(|o| o.name.interface())
            .collect();
        let capabilities = crate::grants::Capability::ALL.map(|c| c.key());
        assert_eq!(ours, capabilities.into_iter().collect());
        assert_eq!(
            offer.versions("wasi:cli/environment"),
            ["wasi:cli/environment@0.2.12", "wasi:cli/environment@0.3.0"]
        );
        assert_eq!(offer.versions("wasi:cli/run"), [""; 0]);
    }

    #[test]
    fn nearest_name_keeps_the_release_line() {
        let near = |name: &str| offer().unwrap().nearest(&InterfaceName::parse(name));
        assert_eq!(near("berth:host/logs@0.1.0"), Some("berth:host/log@0.1.0"));
        assert_eq!(
            near("wasi:cli/enviroment@0.2.0"),
            Some("wasi:cli/environment@0.2.12")
        );
        assert_eq!(
            near("wasi:cli/enviroment@0.3.0"),
            Some("wasi:cli/environment@0.3.0")
        );
        assert_eq!(near("acme:store/shelf@1.0.0"), None);
    }
}
