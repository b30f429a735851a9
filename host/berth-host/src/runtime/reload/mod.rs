//! Changing what a plugin is, or what the manifest says, while the host serves.

pub mod canary;
pub mod kept;
pub mod watch;
