//! From a component's bytes to its imports and exports as WIT.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wit_component::DecodedWasm;
use wit_parser::{InterfaceId, Resolve, WorldItem, WorldKey};

/// A component's world.
pub(super) struct Component {
    /// Its types.
    pub(super) resolve: Resolve,
    /// Its imports, in its order.
    pub(super) imports: Vec<Item>,
    /// Its exports, in its order.
    pub(super) exports: Vec<Item>,
}

/// One import or export.
pub(super) struct Item {
    /// Its name.
    pub(super) name: String,
    /// What it is, if it is an interface; else it is a function by itself.
    pub(super) interface: Option<InterfaceId>,
}

/// Decode a component that wasmtime has compiled: it bounds how deep types are nested, which this relies on.
///
/// # Errors
/// It has parts that WIT has no words for, such as an exported core module.
pub(super) fn decode(bytes: &[u8]) -> Result<Component, String> {
    // The decoder is made for toolchains and asserts what no toolchain breaks. A stranger's component may.
    let decoded = catch_unwind(AssertUnwindSafe(|| wit_component::decode(bytes)))
        .map_err(|_| "its types can't be decoded".to_owned())?
        .map_err(|error| format!("{error:#}"))?;
    let DecodedWasm::Component(resolve, world) = decoded else {
        return Err("it is a WIT package, not a component".to_owned());
    };
    let Some(world) = resolve.worlds.get(world) else {
        return Err("it has no world".to_owned());
    };
    let items = |items: &wit_parser::IndexMap<WorldKey, WorldItem>| -> Vec<Item> {
        items
            .iter()
            .filter_map(|(key, item)| {
                let interface = match item {
                    WorldItem::Interface { id, .. } => Some(*id),
                    WorldItem::Function(_) => None,
                    // A type by itself needs nothing.
                    WorldItem::Type { .. } => return None,
                };
                Some(Item {
                    name: resolve.name_world_key(key),
                    interface,
                })
            })
            .collect()
    };
    let (imports, exports) = (items(&world.imports), items(&world.exports));
    Ok(Component {
        resolve,
        imports,
        exports,
    })
}
