//! What a component is, by the names of its exports and by what the manifest says it is.

use super::fault::{Fault, FaultKind};
use super::name::InterfaceName;
use crate::runtime::plugin::Policy;

/// What a component can be served as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A typed policy.
    Policy(Policy),
    /// A handler of `wasi:http` 0.2.
    Http02,
    /// A handler of `wasi:http` 0.3.
    Http03,
}

impl Kind {
    /// The export that makes it one, as this host knows it.
    pub(super) const fn export(self) -> &'static str {
        match self {
            Self::Policy(policy) => policy.export(),
            Self::Http02 => "wasi:http/incoming-handler@0.2.12",
            Self::Http03 => "wasi:http/handler@0.3.0",
        }
    }
}

/// What a component is, from the names of its exports and its `policy` in the manifest.
///
/// # Errors
/// It isn't what the manifest says, or nothing that can be served.
pub fn classify(wanted: Option<Policy>, exports: &[String]) -> Result<Kind, Box<Fault>> {
    let names: Vec<InterfaceName> = exports.iter().map(|e| InterfaceName::parse(e)).collect();
    let fits = |kind: Kind| {
        let ours = InterfaceName::parse(kind.export());
        names.iter().any(|name| name.fits(&ours))
    };
    let other_version = |kind: Kind| {
        let ours = InterfaceName::parse(kind.export());
        names.iter().any(|name| name.path == ours.path)
    };
    let list = if exports.is_empty() {
        "nothing".to_owned()
    } else {
        exports.join(", ")
    };
    if let Some(policy) = wanted {
        let kind = Kind::Policy(policy);
        let (key, export) = (policy.key(), policy.export());
        let text = format!(
            "the plugin is the {key} policy, so its component must export {export}; it exports {list}"
        );
        return if fits(kind) {
            Ok(kind)
        } else if other_version(kind) {
            Err(Box::new(Fault {
                host: Some(export.to_owned()),
                ..Fault::new(
                    FaultKind::WrongVersion,
                    format!("{text}; build it against this host's wit/"),
                )
            }))
        } else {
            Err(Box::new(Fault {
                host: Some(export.to_owned()),
                ..Fault::new(FaultKind::WrongWorld, text)
            }))
        };
    }
    if let Some(kind) = [Kind::Http03, Kind::Http02].into_iter().find(|k| fits(*k)) {
        return Ok(kind);
    }
    if let Some(policy) = policy_of(exports) {
        return Err(Box::new(Fault::new(
            FaultKind::WrongWorld,
            format!(
                "the component is an {0} policy; say `policy = \"{0}\"` in its table",
                policy.key()
            ),
        )));
    }
    let other = [Kind::Http03, Kind::Http02].into_iter().any(other_version);
    Err(Box::new(Fault::new(
        if other {
            FaultKind::WrongVersion
        } else {
            FaultKind::WrongWorld
        },
        format!(
            "a handler exports wasi:http/incoming-handler@0.2.x or wasi:http/handler@0.3.x; it exports {list}"
        ),
    )))
}

/// The policy that these exports make, in any version.
pub fn policy_of(exports: &[String]) -> Option<Policy> {
    Policy::ALL.into_iter().find(|policy| {
        let ours = InterfaceName::parse(policy.export());
        exports
            .iter()
            .any(|export| InterfaceName::parse(export).path == ours.path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exports(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn any_patch_of_a_version_is_served() {
        for (name, kind) in [
            ("wasi:http/incoming-handler@0.2.0", Kind::Http02),
            ("wasi:http/incoming-handler@0.2.99", Kind::Http02),
            ("wasi:http/handler@0.3.7", Kind::Http03),
        ] {
            assert_eq!(classify(None, &exports(&[name])), Ok(kind));
        }
        assert_eq!(
            classify(Some(Policy::Auth), &exports(&["berth:policy/auth@0.1.9"])),
            Ok(Kind::Policy(Policy::Auth))
        );
    }

    #[test]
    fn a_policy_without_its_key_is_told_apart_from_a_stranger() {
        let policy = classify(None, &exports(&["berth:policy/auth@0.1.0"])).unwrap_err();
        assert_eq!(
            policy.to_string(),
            "the component is an auth policy; say `policy = \"auth\"` in its table"
        );
        let stranger = classify(None, &exports(&["wasi:cli/run@0.2.6"])).unwrap_err();
        assert_eq!(
            stranger.to_string(),
            "a handler exports wasi:http/incoming-handler@0.2.x or wasi:http/handler@0.3.x; it exports wasi:cli/run@0.2.6"
        );
        assert_eq!(stranger.kind, FaultKind::WrongWorld);
    }

    #[test]
    fn another_version_is_named_as_such() {
        let fault = classify(Some(Policy::Auth), &exports(&["berth:policy/auth@0.9.0"])).unwrap_err();
        assert_eq!(fault.kind, FaultKind::WrongVersion);
        assert_eq!(
            fault.to_string(),
            "the plugin is the auth policy, so its component must export berth:policy/auth@0.1.0; it exports berth:policy/auth@0.9.0; build it against this host's wit/"
        );
        let kind = classify(None, &exports(&["wasi:http/handler@0.4.0"]))
            .unwrap_err()
            .kind;
        assert_eq!(kind, FaultKind::WrongVersion);
        let none = classify(Some(Policy::Auth), &[]).unwrap_err();
        assert_eq!(
            (none.kind, none.to_string().as_str()),
            (
                FaultKind::WrongWorld,
                "the plugin is the auth policy, so its component must export berth:policy/auth@0.1.0; it exports nothing"
            )
        );
    }
}
