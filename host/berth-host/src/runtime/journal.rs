//! The last lines of a plugin: what its guests wrote and what became of them, for `berth plugin logs`.
//!
//! The log is the record; this is a look at its end, without a file to search. Bounded in lines and bytes. Only lines that
//! are written to the log anyway come here, so a filter that silences a plugin there silences it here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::Serialize;
use tokio::sync::broadcast;

use crate::respond::now_ms;

/// Lines that are kept.
const LINES: usize = 500;
/// Bytes of messages that are kept.
const BYTES: usize = 256 * 1024;
/// Lines that somebody who follows may be behind; then some are left out for them.
const BEHIND: usize = 1_000;

/// Who wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writer {
    /// The guest, with `berth:host/log` or to its standard output.
    Guest,
    /// The host, about the guest.
    Host,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Milliseconds since the Unix epoch.
    pub at: u64,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: &'static str,
    /// Who wrote it.
    pub source: Writer,
    /// The version's digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// What it says.
    pub message: String,
}

impl Line {
    /// A line of now.
    pub fn new(level: tracing::Level, source: Writer, message: String) -> Self {
        Self {
            at: now_ms(),
            level: match level {
                tracing::Level::ERROR => "error",
                tracing::Level::WARN => "warn",
                tracing::Level::INFO => "info",
                tracing::Level::DEBUG => "debug",
                tracing::Level::TRACE => "trace",
            },
            source,
            version: None,
            request_id: None,
            message,
        }
    }

    /// The same of a request to a version.
    #[must_use]
    pub fn of(mut self, version: &str, request_id: &str) -> Self {
        self.version = Some(version.to_owned());
        self.request_id = (!request_id.is_empty()).then(|| request_id.to_owned());
        self
    }
}

/// The last lines.
#[derive(Debug, Default)]
pub struct Journal {
    kept: Mutex<(VecDeque<Arc<Line>>, usize)>,
    /// Made when somebody follows for the first time: it has room for all of [`BEHIND`] from the beginning.
    live: OnceLock<broadcast::Sender<Arc<Line>>>,
}

impl Journal {
    /// One more.
    pub fn write(&self, line: Line) {
        let line = Arc::new(line);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.1 += line.message.len();
        kept.0.push_back(Arc::clone(&line));
        while kept.0.len() > LINES || kept.1 > BYTES {
            let Some(oldest) = kept.0.pop_front() else { break };
            kept.1 = kept.1.saturating_sub(oldest.message.len());
        }
        // Sent while locked, so that whoever follows gets every line once. Nobody may be there to hear it.
        if let Some(live) = self.live.get() {
            let _ = live.send(line);
        }
    }

    /// The last ones, oldest first, and what comes after them.
    pub fn follow(&self, last: usize) -> (Vec<Arc<Line>>, broadcast::Receiver<Arc<Line>>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = kept.0.len().saturating_sub(last);
        (
            kept.0.iter().skip(skipped).cloned().collect(),
            self.live.get_or_init(|| broadcast::channel(BEHIND).0).subscribe(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: String) -> Line {
        Line::new(tracing::Level::INFO, Writer::Guest, message)
    }

    #[test]
    fn lines_are_bounded_in_number_and_bytes() {
        let journal = Journal::default();
        for n in 0..LINES + 10 {
            journal.write(line(n.to_string()));
        }
        let (lines, _) = journal.follow(usize::MAX);
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines.first().unwrap().message, "10");
        for _ in 0..10 {
            journal.write(line("x".repeat(BYTES / 4)));
        }
        assert_eq!(journal.follow(usize::MAX).0.len(), 4);
    }

    #[test]
    fn who_follows_gets_every_line_once() {
        let journal = Journal::default();
        journal.write(line("before".into()));
        let (lines, mut live) = journal.follow(10);
        journal.write(line("after".into()));
        assert_eq!(lines.len(), 1);
        assert_eq!(live.try_recv().unwrap().message, "after");
        assert!(live.try_recv().is_err());
        assert_eq!(journal.follow(1).0.first().unwrap().message, "after");
    }
}
