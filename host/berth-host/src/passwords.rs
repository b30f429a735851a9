//! Hashing of passwords, off the async threads and behind a bounded queue.

/// Hashes passwords.
#[derive(Debug, Default)]
pub struct Hasher {}
