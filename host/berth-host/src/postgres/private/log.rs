//! The server's log, line by line into ours. Its last lines are kept, for the sentence that says why it ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Lines that are kept.
const KEPT: usize = 6;
/// Bytes of a line that are read; the rest of it is dropped.
const LINE: usize = 2 * 1024;

/// The last lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    /// On one line.
    pub(super) fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }

    fn add(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }
}

/// Read a server's standard error to its end.
pub(super) async fn follow(mut stream: impl AsyncRead + Unpin, tail: Tail) {
    let mut buffer = [0; 4096];
    let mut line = Vec::new();
    loop {
        // An error is the end as well: there is nothing more to read, and the server's end is seen elsewhere.
        let n = stream.read(&mut buffer).await.unwrap_or(0);
        for byte in buffer.iter().take(n) {
            match byte {
                b'\n' => {
                    say(&line, &tail);
                    line.clear();
                }
                byte if line.len() < LINE => line.push(*byte),
                _ => {}
            }
        }
        if n == 0 {
            return say(&line, &tail);
        }
    }
}

fn say(line: &[u8], tail: &Tail) {
    let text = String::from_utf8_lossy(line);
    let text = text.trim();
    if text.is_empty() {
        return;
    }
    tail.add(text);
    if is_trouble(text) {
        tracing::warn!(target: "berth::postgres", "{text}");
    } else {
        tracing::debug!(target: "berth::postgres", "{text}");
    }
}

/// Lines begin with their level, such as `LOG:  ` or `FATAL:  `. Clients that come while the server starts or stops are
/// told so, and that is no trouble.
fn is_trouble(line: &str) -> bool {
    let (level, text) = line.split_once(':').unwrap_or(("", line));
    let passing = text.trim_start().starts_with("the database system is ")
        || text.contains("terminating connection due to administrator command");
    matches!(level, "WARNING" | "ERROR" | "FATAL" | "PANIC") && !passing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn last_lines_are_kept_and_long_ones_cut() {
        let tail = Tail::default();
        let text: String = (0..10).map(|n| format!("LOG:  line {n}\n")).collect();
        follow((text + &"x".repeat(10_000)).as_bytes(), tail.clone()).await;
        let kept = tail.text();
        assert!(kept.starts_with("LOG:  line 5; LOG:  line 6; "), "{kept}");
        assert!(
            kept.ends_with(&"x".repeat(LINE)) && !kept.contains(&"x".repeat(LINE + 1)),
            "{kept}"
        );
    }

    #[test]
    fn trouble_is_told_from_routine() {
        assert!(is_trouble("FATAL:  could not create lock file"));
        assert!(is_trouble("PANIC:  could not write to file"));
        assert!(!is_trouble(
            "LOG:  database system is ready to accept connections"
        ));
        assert!(!is_trouble("FATAL:  the database system is starting up"));
        assert!(!is_trouble("\tcontinued"));
    }
}
