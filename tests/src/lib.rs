//! What the integration tests share: the real `berth` binary, real components, real sockets.
//!
//! Nothing here is a stand-in. A test writes a manifest, starts `berth` on free ports, and talks to it over TCP with a
//! client that shows what was on the wire. Run them with `cargo xtask test`, which builds the binary and the guests
//! first.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this crate is the tests: whatever is not as expected must stop them"
)]

pub mod accounts;
pub mod behind;
pub mod berth;
pub mod collector;
pub mod components;
pub mod http2;
pub mod load;
pub mod prometheus;
pub mod sessions;
pub mod store;
pub mod swaps;
pub mod upstream;
pub mod wire;

use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}

/// A built component: `guest("hello")`, or `guest("fixtures/spin")`.
///
/// # Panics
/// It isn't built; the message says which command does.
pub fn guest(name: &str) -> PathBuf {
    let folder =
        std::env::var_os("BERTH_GUESTS").map_or_else(|| root().join("target/plugins"), PathBuf::from);
    let path = folder.join(name).with_extension("wasm");
    if !path.exists() {
        panic!("{} is missing; run `cargo xtask guests`", path.display());
    }
    path
}

/// A program that `cargo xtask test` provides: `BERTH_BIN`, `BERTH_WASMTIME`.
///
/// # Panics
/// It isn't there; the message says which command provides it.
pub fn program(variable: &str, fallback: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(|| root().join(fallback), PathBuf::from);
    if !path.exists() {
        panic!(
            "{} is missing ({variable}); run `cargo xtask test`",
            path.display()
        );
    }
    path
}
