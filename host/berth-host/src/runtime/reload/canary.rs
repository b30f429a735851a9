//! A share of a plugin's callers tries another version: who, for how long, and what decides.

/// How a candidate does.
#[derive(Debug)]
pub struct Trial {}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What was served before.
    Current,
    /// What is on trial.
    Candidate,
}

/// A request's part in a trial.
#[derive(Clone, Debug)]
pub struct Part {
    /// The trial.
    pub trial: std::sync::Arc<Trial>,
    /// The version that answers it.
    pub side: Side,
}

impl Trial {
    /// Whether a caller gets the candidate.
    pub fn takes(&self, _caller: &str) -> bool {
        false
    }

    /// A request has ended.
    pub fn count(&self, _side: Side, _failed: bool, _took: std::time::Duration) {}
}
