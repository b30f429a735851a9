//! Interface names, `namespace:package/interface@version`, and which of them fit each other.

use semver::Version;

/// The name of an interface, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InterfaceName {
    /// Without its version, as in `berth:host/log`.
    pub(super) path: String,
    /// Its package's version, if it has one.
    pub(super) version: Option<Version>,
}

impl InterfaceName {
    /// Anything can be taken apart; what has no readable version is all path.
    pub(super) fn parse(text: &str) -> Self {
        let versioned = text
            .split_once('@')
            .and_then(|(path, version)| Some((path, Version::parse(version).ok()?)));
        match versioned {
            Some((path, version)) => Self {
                path: path.to_owned(),
                version: Some(version),
            },
            None => Self {
                path: text.to_owned(),
                version: None,
            },
        }
    }

    /// Whether wasmtime links one for the other: the same version, or the same release line.
    pub(super) fn fits(&self, other: &Self) -> bool {
        self.path == other.path
            && match (&self.version, &other.version) {
                (Some(ours), Some(theirs)) => {
                    ours == theirs || line(ours).is_some_and(|l| line(theirs) == Some(l))
                }
                (None, None) => true,
                _ => false,
            }
    }

    /// `berth:host`, the package without its version.
    pub(super) fn package(&self) -> &str {
        self.path
            .split_once('/')
            .map_or(&self.path, |(package, _)| package)
    }

    /// `log`, the interface alone.
    pub(super) fn interface(&self) -> &str {
        self.path
            .split_once('/')
            .map_or(&self.path, |(_, interface)| interface)
    }
}

/// The release line within which versions fit each other: 1.x, or 0.2.x. A prerelease and 0.0.x fit nothing else.
fn line(version: &Version) -> Option<(u64, u64)> {
    match version {
        v if !v.pre.is_empty() => None,
        v if v.major > 0 => Some((v.major, 0)),
        v if v.minor > 0 => Some((0, v.minor)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_fit_within_a_release_line() {
        let fits = |a: &str, b: &str| InterfaceName::parse(a).fits(&InterfaceName::parse(b));
        assert!(fits("a:b/c@0.2.0", "a:b/c@0.2.12"));
        assert!(fits("a:b/c@0.2.99", "a:b/c@0.2.12"));
        assert!(fits("a:b/c@1.0.0", "a:b/c@1.7.3"));
        assert!(fits("a:b/c", "a:b/c"));
        assert!(!fits("a:b/c@0.2.0", "a:b/d@0.2.0"));
        assert!(!fits("a:b/c@0.2.0", "a:b/c@0.3.0"));
        assert!(!fits("a:b/c@0.0.1", "a:b/c@0.0.2"));
        assert!(!fits("a:b/c@0.3.0-rc-1", "a:b/c@0.3.0"));
        assert!(fits("a:b/c@0.3.0-rc-1", "a:b/c@0.3.0-rc-1"));
        assert!(!fits("a:b/c", "a:b/c@0.1.0"));
    }

    #[test]
    fn names_are_taken_apart() {
        let name = InterfaceName::parse("wasi:http/types@0.2.6");
        assert_eq!((name.package(), name.interface()), ("wasi:http", "types"));
        assert_eq!(InterfaceName::parse("plain").version, None);
        assert_eq!(InterfaceName::parse("a:b/c@x").path, "a:b/c@x");
    }
}
