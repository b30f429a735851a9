//! The Wasm side: one engine, plugins that are loaded once, an instance per request.
//!
//! - [`engine`]: the engine, its pools, the ticker.
//! - [`plugin`]: a plugin, and the versions of it.
//! - [`load`]: from a component's bytes to something that can be instantiated, or a sentence that says why not.
//! - [`compile`]: the threads that compile.
//! - `cpu`: CPU time of a thread.
//! - [`journal`]: the last lines of a plugin.
//! - [`cache`]: machine code on disk.
//! - [`signature`]: who has signed a component.
//! - [`reload`]: other versions, and another manifest, while the host serves.
//! - [`load_fault`]: why a component can't be served.
//! - [`link`]: what a component may import.
//! - [`instance`]: what one store holds.
//! - [`reuse`]: instances that serve more than one request.
//! - [`concurrent`]: instances that serve several requests at once.
//! - [`limits`]: CPU time, memory.
//! - [`streak`]: failures in a row.
//! - [`trap`]: from wasmtime's errors to [`crate::error::Trap`].
//! - [`turns`]: who may run guest code when many want to.

pub mod cache;
pub mod compile;
pub mod concurrent;
mod cpu;
pub mod engine;
mod folders;
pub mod instance;
pub mod journal;
pub mod limits;
pub mod link;
pub mod load;
pub mod load_fault;
pub mod plugin;
pub mod reload;
pub mod reuse;
pub mod signature;
pub mod streak;
pub mod trap;
pub mod turns;
