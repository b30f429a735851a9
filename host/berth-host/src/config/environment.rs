//! The environment variables that stand for keys of the manifest.

use std::collections::BTreeMap;

/// Variables whose names begin with `BERTH_`, read once: nothing else of the environment is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// None.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Those of this process. A value that isn't UTF-8 is kept with replacement characters, which no key takes.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .collect()
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        let ours = variables
            .into_iter()
            .filter(|(name, _)| name.starts_with("BERTH_"));
        Self(ours.collect())
    }
}
