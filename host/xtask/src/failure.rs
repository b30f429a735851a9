//! The one error type: a sentence for the person at the terminal, and the exit code.
//!
//! Nothing here is ever handled by kind. Every failure ends the program, so a sentence (what happened, to what,
//! what to do) is worth more than a variant.

/// Why the command stops.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    sentence: String,
    exit: u8,
}

/// The arguments make no sense (`EX_USAGE` in sysexits.h); berth uses the same code.
const USAGE: u8 = 64;

impl Failure {
    /// Something did not work.
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self {
            sentence: sentence.into(),
            exit: 1,
        }
    }

    /// The arguments make no sense.
    pub(crate) fn usage(sentence: impl Into<String>) -> Self {
        Self {
            sentence: sentence.into(),
            exit: USAGE,
        }
    }

    /// A program that we ran for its result has failed; its exit code becomes ours.
    pub(crate) fn passed_on(sentence: impl Into<String>, exit: u8) -> Self {
        Self {
            sentence: sentence.into(),
            exit: exit.max(1),
        }
    }

    pub(crate) fn sentence(&self) -> &str {
        &self.sentence
    }

    pub(crate) fn exit(&self) -> u8 {
        self.exit
    }
}

/// Turns an I/O error into a sentence: `context` says what was tried and on what, `advice` what to do now.
pub(crate) fn io(context: impl AsRef<str>, advice: &str) -> impl FnOnce(std::io::Error) -> Failure {
    move |error| Failure::new(format!("{}: {error}. {advice}", context.as_ref()))
}
