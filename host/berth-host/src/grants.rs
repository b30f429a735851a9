//! What a plugin may use. The manifest asks, this file decides; it is pure and knows no linker.

use std::fmt;

use self::folders::FolderGrant;
use self::hosts::HttpGrant;

pub mod addresses;
pub mod folders;
pub mod hosts;

/// One interface of `berth:host`, granted on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// `berth:host/settings`.
    Settings,
    /// `berth:host/log`.
    Log,
    /// `berth:host/sql`, in the schemas of [`Grants::schemas`].
    Sql,
    /// `berth:host/passwords`.
    Passwords,
    /// `berth:host/tokens`.
    Tokens,
    /// `berth:host/sessions`.
    Sessions,
}

impl Capability {
    /// Every capability.
    pub const ALL: [Self; 6] = [
        Self::Settings,
        Self::Log,
        Self::Sql,
        Self::Passwords,
        Self::Tokens,
        Self::Sessions,
    ];

    /// The key in `grants = { … }`, which is the WIT interface's name.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Log => "log",
            Self::Sql => "sql",
            Self::Passwords => "passwords",
            Self::Tokens => "tokens",
            Self::Sessions => "sessions",
        }
    }

    /// Whether a call may wait for something outside the process. A guest that waits in such a call holds its store.
    pub const fn waits(self) -> bool {
        match self {
            Self::Settings | Self::Log | Self::Tokens => false,
            Self::Sql | Self::Passwords | Self::Sessions => true,
        }
    }

    /// The line that grants it, as an example.
    pub const fn example(self) -> &'static str {
        match self {
            Self::Settings => "settings = true",
            Self::Log => "log = true",
            Self::Sql => "sql = [\"<schema>\"]",
            Self::Passwords => "passwords = true",
            Self::Tokens => "tokens = true",
            Self::Sessions => "sessions = true",
        }
    }

    /// The capability behind an import such as `berth:host/log@0.1.0`.
    pub fn of_import(name: &str) -> Option<Self> {
        let interface = name.strip_prefix("berth:host/")?;
        let interface = interface.split('@').next().unwrap_or(interface);
        Self::ALL.into_iter().find(|c| c.key() == interface)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

/// What a plugin may use. Nothing unless the manifest says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    capabilities: Vec<Capability>,
    schemas: Vec<String>,
    http: HttpGrant,
    folders: Vec<FolderGrant>,
}

impl Grants {
    /// The key of [`Grants::http`] in `grants = { … }`.
    pub const HTTP: &str = "http";
    /// The key of [`Grants::folders`].
    pub const FOLDERS: &str = "folders";

    /// These and no others.
    pub fn new(mut capabilities: Vec<Capability>) -> Self {
        capabilities.sort_unstable();
        capabilities.dedup();
        Self {
            capabilities,
            ..Self::default()
        }
    }

    /// The same with `sql` in these schemas.
    pub fn with_schemas(mut self, schemas: Vec<String>) -> Self {
        if !schemas.is_empty() && !self.has(Capability::Sql) {
            self.capabilities.push(Capability::Sql);
            self.capabilities.sort_unstable();
        }
        Self { schemas, ..self }
    }

    /// The same with hosts that may be called.
    pub fn with_http(self, http: HttpGrant) -> Self {
        Self { http, ..self }
    }

    /// The same with folders that may be seen.
    pub fn with_folders(self, folders: Vec<FolderGrant>) -> Self {
        Self { folders, ..self }
    }

    /// The keys of all that is granted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.capabilities.iter().map(|it| it.key().to_owned()).collect();
        let more = [
            (Self::HTTP, self.http.is_empty()),
            (Self::FOLDERS, self.folders.is_empty()),
        ];
        names.extend(
            more.iter()
                .filter(|(_, none)| !none)
                .map(|(name, _)| (*name).to_owned()),
        );
        names
    }

    /// Whether one is granted.
    pub fn has(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    /// Every one that is granted.
    pub fn iter(&self) -> impl Iterator<Item = Capability> + '_ {
        self.capabilities.iter().copied()
    }

    /// The schemas of `sql`, in the order of the search path.
    pub fn schemas(&self) -> &[String] {
        &self.schemas
    }

    /// The hosts that may be called.
    pub fn http(&self) -> &HttpGrant {
        &self.http
    }

    /// The folders that may be seen, in the order of the guest's paths.
    pub fn folders(&self) -> &[FolderGrant] {
        &self.folders
    }

    /// The manifest's line that would grant what is granted now, and one more host.
    pub fn line_with_host(&self, entry: &str) -> String {
        let mut parts: Vec<String> = self
            .iter()
            .map(|capability| match capability {
                Capability::Sql => format!("sql = {:?}", self.schemas),
                other => other.example().to_owned(),
            })
            .collect();
        let hosts: Vec<String> = self
            .http
            .entries()
            .map(ToString::to_string)
            .chain([entry.to_owned()])
            .map(|host| format!("\"{host}\""))
            .collect();
        parts.push(format!("{} = [{}]", Self::HTTP, hosts.join(", ")));
        if !self.folders.is_empty() {
            let folders: Vec<String> = self.folders.iter().map(ToString::to_string).collect();
            parts.push(format!("{} = {{ {} }}", Self::FOLDERS, folders.join(", ")));
        }
        format!("grants = {{ {} }}", parts.join(", "))
    }

    /// Of these imports, the ones that would need a grant that isn't there.
    pub fn missing<'a>(&self, imports: impl IntoIterator<Item = &'a str>) -> Vec<Missing> {
        imports
            .into_iter()
            .filter(|name| name.starts_with("berth:host/"))
            .filter_map(|name| match Capability::of_import(name) {
                Some(capability) if self.has(capability) => None,
                capability => Some(Missing {
                    import: name.to_owned(),
                    capability,
                }),
            })
            .collect()
    }
}

/// An import without a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// As the component names it.
    pub import: String,
    /// What would have to be granted; nothing if this host has no such interface.
    pub capability: Option<Capability>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.capability {
            Some(capability) => write!(
                f,
                "it imports \"{}\", which is not granted; add `{}` to the plugin's `grants`",
                self.import,
                capability.example()
            ),
            None => write!(f, "it imports \"{}\", which this host doesn't have", self.import),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_granted_by_default() {
        let missing = Grants::default().missing(["berth:host/log@0.1.0", "wasi:http/types@0.2.0"]);
        assert_eq!(missing.len(), 1);
        assert_eq!(
            missing[0].to_string(),
            "it imports \"berth:host/log@0.1.0\", which is not granted; add `log = true` to the plugin's `grants`"
        );
    }

    #[test]
    fn line_of_a_denial_keeps_what_is_granted() {
        let http = HttpGrant::new(vec!["a.example".parse().unwrap()]);
        let grants = Grants::new(vec![Capability::Log]).with_http(http);
        assert_eq!(
            grants.line_with_host("b.example:81"),
            r#"grants = { log = true, http = ["a.example", "b.example:81"] }"#
        );
        let folder = |guest, path: &str, write| FolderGrant::new(guest, path, path.into(), write).unwrap();
        let grants = grants.with_folders(vec![folder("/a", "data", false), folder("/b", "cache", true)]);
        assert_eq!(
            grants.line_with_host("b.example"),
            r#"grants = { log = true, http = ["a.example", "b.example"], folders = { "/a" = "data", "/b" = { path = "cache", write = true } } }"#
        );
        assert_eq!(
            Grants::default().line_with_host("[::1]"),
            r#"grants = { http = ["[::1]"] }"#
        );
    }

    #[test]
    fn a_grant_covers_its_own_interface_only() {
        let grants = Grants::new(vec![Capability::Log]);
        let missing = grants.missing([
            "berth:host/log@0.1.0",
            "berth:host/settings@0.1.0",
            "berth:host/teapot@0.1.0",
        ]);
        assert_eq!(
            missing.iter().map(|m| m.capability).collect::<Vec<_>>(),
            [Some(Capability::Settings), None]
        );
    }
}
