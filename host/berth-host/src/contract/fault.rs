//! One way in which a component doesn't fit this host, as a value and as a sentence.

use std::fmt;

use serde::Serialize;

/// What kind of fault it is. Its name is stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The component doesn't export what the manifest says it is.
    WrongWorld,
    /// It exports that in a version that this host doesn't serve.
    WrongVersion,
    /// It imports an interface that isn't granted.
    NotGranted,
    /// It imports an interface that this host doesn't have.
    UnknownInterface,
    /// It imports an interface in a version that this host doesn't have.
    UnknownVersion,
    /// It imports a function or a resource that the interface of this host doesn't have.
    UnknownFunction,
    /// Its export lacks a function that this host calls.
    MissingFunction,
    /// A function has another type.
    WrongType,
    /// It doesn't fit, and this host can't say where.
    Other,
}

impl FaultKind {
    /// The code of a plugin with such a fault: the first check that fails gives it.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::WrongWorld => "wrong-world",
            Self::WrongVersion => "wrong-version",
            Self::NotGranted => "not-granted",
            Self::UnknownInterface
            | Self::UnknownVersion
            | Self::UnknownFunction
            | Self::MissingFunction
            | Self::WrongType
            | Self::Other => "mismatch",
        }
    }
}

/// One fault. What doesn't apply is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What kind it is.
    pub kind: FaultKind,
    /// The interface, as the component names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The functions, as in `write` or `input-stream.read`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<String>,
    /// The signature or the type that the component has, in WIT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// The signature or the type that this host has, in WIT; or the nearest thing that it offers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Where the types differ, one part each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
    /// The key that `grants` lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
    /// All of this as one sentence, with what to do.
    pub message: String,
}

impl Fault {
    /// A fault with nothing but a sentence.
    pub(crate) fn new(kind: FaultKind, message: String) -> Self {
        Self {
            kind,
            interface: None,
            functions: Vec::new(),
            component: None,
            host: None,
            differences: Vec::new(),
            grant: None,
            message,
        }
    }

    /// The same about an interface.
    pub(super) fn of(kind: FaultKind, interface: &str, message: String) -> Self {
        Self {
            interface: Some(interface.to_owned()),
            ..Self::new(kind, message)
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Every fault of one component; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Those that were explained, or `otherwise` if none were, of which there is one at least.
    pub(crate) fn new(explained: Vec<Fault>, otherwise: Vec<Fault>) -> Self {
        Self(if explained.is_empty() {
            otherwise
        } else {
            explained
        })
    }

    /// All of them, in the order of the checks.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }

    /// The stable name of the most basic one: a component of the wrong world is that, whatever it imports.
    pub fn code(&self) -> &'static str {
        let order = ["wrong-world", "wrong-version", "not-granted"];
        order
            .into_iter()
            .find(|code| self.0.iter().any(|fault| fault.kind.code() == *code))
            .unwrap_or("mismatch")
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            f.write_str(if index > 0 { "; " } else { "" })?;
            fault.fmt(f)?;
        }
        Ok(())
    }
}
