//! Which of the watched files may have changed, and when they have come to rest.
