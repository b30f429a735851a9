//! What a component may import.
//!
//! WASI is linked for everybody, because every toolchain imports it; what it gives is decided per store. A
//! `berth:host` interface is linked only when the manifest grants it. Interfaces are matched by name and compatible
//! version, as wasmtime does it: 0.2.x by any 0.2.y, 0.1.x by any 0.1.y.

use wasmtime::Engine;
use wasmtime::component::Linker;

use super::instance::Ctx;
use crate::caps;
use crate::grants::{Capability, Grants};

/// A linker with WASI 0.2 and 0.3 and nothing of `berth:host`.
pub fn linker(engine: &Engine) -> wasmtime::Result<Linker<Ctx>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// The same with what is granted.
pub fn granted(base: &Linker<Ctx>, grants: &Grants) -> wasmtime::Result<Linker<Ctx>> {
    let mut linker = base.clone();
    for capability in grants.iter() {
        match capability {
            Capability::Settings => caps::settings::add_to_linker(&mut linker)?,
            Capability::Log => caps::log::add_to_linker(&mut linker)?,
            Capability::Sql => caps::sql::add_to_linker(&mut linker)?,
            Capability::Passwords => caps::passwords::add_to_linker(&mut linker)?,
            Capability::Tokens => caps::tokens::add_to_linker(&mut linker)?,
            Capability::Sessions => caps::sessions::add_to_linker(&mut linker)?,
        }
    }
    Ok(linker)
}
