//! Signatures of components, as minisign makes them.
