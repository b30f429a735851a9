//! The versions of every plugin that are kept on disk.
