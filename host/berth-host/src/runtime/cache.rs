//! The compile cache: machine code on disk, by content and engine.
