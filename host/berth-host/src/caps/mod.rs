//! What a guest gets from the host: one module per interface, named as in WIT.
//!
//! Adding one is described in ARCHITECTURE.md, "Adding a capability".

pub mod log;
pub mod outgoing;
pub mod passwords;
pub mod sessions;
pub mod settings;
pub mod sql;
pub mod stdio;
pub mod tokens;

/// Generated from `wit/host`.
#[allow(missing_docs, reason = "generated from WIT, which has the docs")]
pub mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/host",
        world: "imports",
        imports: {
            // Needs the store, to know whose call it is.
            "berth:host/log.write": trappable | store,
            // These wait for something outside the guest.
            "berth:host/passwords": async | trappable,
            "berth:host/sessions": async | trappable,
            "berth:host/sql": async | trappable,
            default: trappable,
        },
        with: { "berth:host/sql.transaction": crate::caps::sql::Transaction },
    });
}
