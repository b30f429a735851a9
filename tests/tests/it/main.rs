//! berth, from outside: a manifest, a process, sockets.

mod body;
mod caps;
mod check;
mod docs;
mod drain;
mod hostile;
mod load_faults;
mod manifest;
mod policy;
mod routing;
mod same_as_serve;
mod structure;
mod wire_rules;
