//! `berth:host/settings`: plain settings from the manifest.
//!
//! A plugin can read its own table and nothing else. It can't list keys, see another plugin's, or see a secret:
//! secrets have no place in the manifest.

use std::collections::BTreeMap;

use wasmtime::component::{HasData, Linker};

use super::bindings::berth::host::settings;
use crate::runtime::instance::Ctx;

/// The settings of one plugin, by key.
pub type Settings = BTreeMap<String, String>;

/// What the functions of this interface see of a store.
struct SettingsView<'a> {
    settings: &'a Settings,
}

impl settings::Host for SettingsView<'_> {
    fn get(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        Ok(self.settings.get(&key).cloned())
    }
}

struct HasSettings;

impl HasData for HasSettings {
    type Data<'a> = SettingsView<'a>;
}

/// Link the interface.
///
/// # Errors
/// It is linked already.
pub fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    settings::add_to_linker::<_, HasSettings>(linker, |ctx: &mut Ctx| SettingsView {
        settings: &ctx.origin().plugin.spec.settings,
    })
}
