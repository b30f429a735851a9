//! The log: to standard error, by a thread of its own, so that a slow reader never holds up a request.
//!
//! The buffer is bounded. When a reader is so slow that it overflows, lines are dropped, and how many is said as soon
//! as there is room again. Never logged: passwords, tokens, keys, bodies, query strings.

use std::io::{self, BufWriter, IsTerminal, Write, stderr};
use std::thread;
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::UtcTime;

use crate::args::LogFormat;

/// Lines that may wait for a slow reader.
const BUFFERED_LINES: usize = 8 * 1024;
/// Bytes that are written in one go under load.
const BUFFER: usize = 64 * 1024;
/// How long lines are gathered after a write.
const GATHER: Duration = Duration::from_millis(1);
/// How often dropped lines are looked for.
const REPORT: Duration = Duration::from_secs(5);

/// Start logging. Lines that are still buffered are written when the guard is dropped.
pub(crate) fn start(format: LogFormat) -> WorkerGuard {
    // The thread flushes whenever nothing waits, so a buffer delays no line and saves a write for each under load.
    let output = Batched(BufWriter::with_capacity(BUFFER, stderr()));
    let builder = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(BUFFERED_LINES);
    let (writer, guard) = builder.finish(output);
    let dropped = writer.error_counter();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = stderr().is_terminal();
    let text = match format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_timer(UtcTime::rfc_3339());
    if text {
        builder
            .with_ansi(terminal && std::env::var_os("NO_COLOR").is_none())
            .init();
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .init();
    }
    // A thread that lives as long as the process; it has nothing to give back.
    thread::spawn(move || {
        let mut known = 0;
        loop {
            thread::sleep(REPORT);
            let now = dropped.dropped_lines();
            if now > known {
                tracing::warn!(target: "berth", lines = now - known, "log lines were dropped: standard error is read too slowly");
                known = now;
            }
        }
    });
    guard
}

/// A writer whose thread rests a moment after each flush. Meanwhile lines gather, and writing them down wakes nobody:
/// waking the thread and switching to it for every single line costs a fifth of a typed call on two cores.
struct Batched<W>(W);

impl<W: Write> Write for Batched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        thread::sleep(GATHER);
        Ok(())
    }
}
