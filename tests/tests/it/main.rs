//! berth, from outside: a manifest, a process, sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this crate is the tests: whatever is not as expected must stop them"
)]

mod body;
mod caps;
mod check;
mod docs;
mod drain;
mod folders;
mod hostile;
mod load_faults;
mod manifest;
mod outgoing;
mod outgoing_faults;
mod outgoing_tls;
mod policy;
mod reuse;
mod routing;
mod same_as_serve;
mod structure;
mod wire_rules;
