//! berth, from outside: a manifest, a process, sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this crate is the tests: whatever is not as expected must stop them"
)]

mod body;
mod callers;
mod caps;
mod check;
mod concurrent;
mod cors;
mod docs;
mod drain;
mod hostile;
mod hostile_limits;
mod hostile_responses;
mod http2;
mod load_faults;
mod manifest;
mod metrics;
mod policy;
mod reuse;
mod routing;
mod same_as_serve;
mod structure;
mod telemetry;
mod tls;
mod wire_rules;
