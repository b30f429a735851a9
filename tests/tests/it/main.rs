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
mod canary;
mod canary_callers;
mod canary_ends;
mod caps;
mod cases;
mod check;
mod concurrent;
mod cors;
mod crowd;
mod docs;
mod drain;
mod edge;
mod folders;
mod fuzz_wire;
mod gigabyte;
mod hostile;
mod hostile_limits;
mod hostile_responses;
mod http2;
mod load_faults;
mod manifest;
mod manifest_refused;
mod manifest_reload;
mod metrics;
mod outgoing;
mod outgoing_faults;
mod outgoing_tls;
mod plugin_command;
mod policy;
mod private_postgres;
mod reuse;
mod routing;
mod same_as_serve;
mod server_postgres;
mod store_admin;
mod store_audit;
mod store_auth;
mod store_crash;
mod store_limits;
mod store_login_paths;
mod store_manifest_reload;
mod store_notes;
mod store_parity;
mod store_postgres;
mod store_secrets;
mod store_sessions;
mod store_sql;
mod store_sql_hostile;
mod store_sql_values;
mod store_swap_times;
mod store_tokens;
mod store_user_command;
mod structure;
mod swap_cache;
mod swap_editors;
mod swap_files;
mod swap_load;
mod swap_operator;
mod swap_restart;
mod swap_served;
mod swap_signed;
mod swap_start;
mod swap_times;
mod swap_urgent;
mod telemetry;
mod tls;
mod wire_rules;
