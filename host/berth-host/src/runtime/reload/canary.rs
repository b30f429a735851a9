//! A share of a plugin's callers tries another version: who, for how long, and what decides.
