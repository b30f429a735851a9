//! The log: to standard error, by a thread of its own, so that a slow reader never holds up a request.
//!
//! The buffer is bounded. When a reader is so slow that it overflows, lines are dropped, and how many is said as soon
//! as there is room again. Never logged: passwords, tokens, keys, bodies, query strings.
//!
//! `RUST_LOG` filters. Two rules stand before it, both of which it can overrule by naming the target: a plugin whose `log`
//! setting is `debug` or `trace` is heard without it, and the libraries in [`NOISY`] are not heard beyond `info`.

use std::io::{self, BufWriter, IsTerminal, Write, stderr};
use std::thread;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
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

/// Libraries that at `debug` or `trace` write headers, bodies or the arguments of calls: a general `RUST_LOG=trace` must
/// not bring a caller's token into the log. A prefix covers what begins with it, as `hyper` does `hyper_util`. Every new
/// dependency that logs belongs here.
const NOISY: [&str; 7] = [
    "cranelift",
    "h2",
    "hyper",
    "opentelemetry",
    "rustls",
    "sqlx",
    "wasmtime",
];

/// Messages that a statement may raise at any level: a plugin's words, which are none of the host's log.
const NOTICES: &str = "sqlx::postgres::notice";

/// A log that has been started.
pub(crate) struct Log {
    /// Lines that are still buffered are written when it is dropped.
    _guard: WorkerGuard,
    dropped: ErrorCounter,
}

impl Log {
    /// Reads how many lines were dropped.
    pub(crate) fn dropped(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let dropped = self.dropped.clone();
        move || dropped.dropped_lines() as u64
    }
}

/// Start logging. `guests` is the most talkative level of any plugin.
pub(crate) fn start(format: LogFormat, guests: LevelFilter) -> Log {
    // The thread flushes whenever nothing waits, so a buffer delays no line and saves a write for each under load.
    let output = Batched(BufWriter::with_capacity(BUFFER, stderr()));
    let builder = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(BUFFERED_LINES);
    let (writer, guard) = builder.finish(output);
    let dropped = writer.error_counter();
    let wanted = std::env::var("RUST_LOG")
        .ok()
        .filter(|text| !text.trim().is_empty());
    let filter = EnvFilter::builder().parse(directives(wanted.as_deref(), guests));
    let malformed = filter.as_ref().err().map(ToString::to_string);
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(directives(None, guests)));
    // What a plugin's function lets Postgres say is no matter of this log.
    let filter = match "sqlx::postgres::notice=off".parse() {
        Ok(silence) => filter.add_directive(silence),
        Err(_) => filter,
    };
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
    if let Some(reason) = malformed {
        tracing::warn!(target: "berth", "RUST_LOG can't be understood and is not used: {reason}");
    }
    let counter = dropped.clone();
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
    Log {
        _guard: guard,
        dropped: counter,
    }
}

/// The filter: what `RUST_LOG` wants, or the defaults.
fn directives(wanted: Option<&str>, guests: LevelFilter) -> String {
    let text = levels(wanted, guests);
    match wanted {
        Some(wanted) if wanted.contains(NOTICES) => text,
        _ => format!("{text},{NOTICES}=off"),
    }
}

fn levels(wanted: Option<&str>, guests: LevelFilter) -> String {
    let Some(wanted) = wanted else {
        return match guests > LevelFilter::INFO {
            true => format!("info,berth::guest={guests}"),
            false => "info".to_owned(),
        };
    };
    let parts = || wanted.split(',').map(str::trim);
    // Only a level for everything reaches the libraries; what is named is meant.
    let is_general = |part: &str| part.parse::<LevelFilter>().is_ok_and(|l| l > LevelFilter::INFO);
    if !parts().any(is_general) {
        return wanted.to_owned();
    }
    let mut text = wanted.to_owned();
    for library in NOISY {
        if !parts().any(|part| part.starts_with(library)) {
            text.push_str(&format!(",{library}=info"));
        }
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_rust_log_a_talkative_plugin_is_heard() {
        assert_eq!(levels(None, LevelFilter::INFO), "info");
        assert_eq!(levels(None, LevelFilter::OFF), "info");
        let debug = levels(None, LevelFilter::DEBUG).to_lowercase();
        assert_eq!(debug, "info,berth::guest=debug");
    }

    #[test]
    fn rust_log_alone_decides_what_it_names() {
        for wanted in [
            "warn",
            "off",
            "berth::request=off",
            "info,h2=trace",
            "hyper=debug",
        ] {
            assert_eq!(levels(Some(wanted), LevelFilter::TRACE), wanted);
        }
    }

    #[test]
    fn words_of_statements_are_only_heard_by_their_own_name() {
        for wanted in [None, Some("warn"), Some("trace"), Some("sqlx=trace")] {
            let text = directives(wanted, LevelFilter::INFO);
            assert!(text.ends_with(",sqlx::postgres::notice=off"), "{text}");
            assert!(EnvFilter::builder().parse(&text).is_ok(), "{text}");
        }
        let named = "info,sqlx::postgres::notice=warn";
        assert_eq!(directives(Some(named), LevelFilter::INFO), named);
    }

    #[test]
    fn a_general_level_does_not_reach_the_libraries() {
        for general in ["debug", "TRACE", "berth=warn, trace"] {
            let text = directives(Some(general), LevelFilter::INFO);
            for library in NOISY {
                assert!(text.contains(&format!(",{library}=info")), "{text}");
            }
        }
        let text = directives(Some("trace,h2=trace"), LevelFilter::INFO);
        assert!(text.contains("h2=trace") && !text.contains("h2=info"), "{text}");
        assert!(EnvFilter::builder().parse(&text).is_ok(), "{text}");
    }
}
