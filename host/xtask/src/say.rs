//! What the person at the terminal sees: one line per step, with its time.
//!
//! All of it goes to stderr, so that stdout stays for results (`bench --json`). Colours appear on a terminal
//! only, and never with `NO_COLOR`.

use std::io::IsTerminal as _;
use std::time::Instant;

const GREEN: &str = "\x1b[1;32m";
const YELLOW: &str = "\x1b[1;33m";
const RED: &str = "\x1b[1;31m";
const RESET: &str = "\x1b[0m";

/// A step is done: `guests: 18 components up to date (0.4 s)`.
pub(crate) fn done(step: &str, outcome: &str, since: Instant) {
    eprintln!(
        "{}: {outcome} ({:.1} s)",
        coloured(step, GREEN),
        since.elapsed().as_secs_f64()
    );
}

/// A step has failed, and others follow it all the same.
pub(crate) fn failed(step: &str, since: Instant) {
    eprintln!(
        "{}: failed ({:.1} s)",
        coloured(step, RED),
        since.elapsed().as_secs_f64()
    );
}

/// Something is about to happen that takes a while or changes the machine.
pub(crate) fn note(step: &str, text: &str) {
    eprintln!("{}: {text}", coloured(step, YELLOW));
}

/// The command stops.
pub(crate) fn error(sentence: &str) {
    eprintln!("{}: {sentence}", coloured("error", RED));
}

/// `1 component`, `2 components`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

fn coloured(text: &str, colour: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain || !std::io::stderr().is_terminal() {
        text.to_owned()
    } else {
        format!("{colour}{text}{RESET}")
    }
}
