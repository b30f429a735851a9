//! Signals, and the way from the first of them to the end.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use berth_host::listen::Shutdown;
use berth_host::runtime::reload::Change;
use berth_host::state::Host;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

/// How long a stop waits for the last spans to be delivered.
const FLUSH: Duration = Duration::from_secs(1);
/// How long it waits for a change that is being made: most of one is compiling, a Python component in 2 s.
const CHANGE: Duration = Duration::from_secs(5);

/// The signals that ask for a stop. Caught from when this is made.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn hook() -> Result<Self, String> {
        let hook = |kind| signal(kind).map_err(|error| format!("signals can't be handled: {error}"));
        Ok(Self {
            interrupt: hook(SignalKind::interrupt())?,
            terminate: hook(SignalKind::terminate())?,
        })
    }

    /// Wait for one, and give its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Read the manifest again at every SIGHUP, as daemons do.
pub(crate) async fn reload_on_hangup(host: Arc<Host>) {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => {
            return tracing::warn!(target: "berth", "SIGHUP can't be handled, and stops this process: {error}");
        }
    };
    while hangups.recv().await.is_some() {
        // What comes of it is an event.
        let _ = host.reload.ask(Change::Manifest).await;
    }
}

/// Why a stop was not clean.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// A second signal came.
    Twice,
    /// So many connections were cut after so long.
    Cut(usize, Duration),
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Twice => f.write_str("stopped at once by a second signal"),
            Self::Cut(cut, after) => write!(
                f,
                "{cut} connections were still busy after {} s and were cut",
                after.as_secs()
            ),
        }
    }
}

/// Wait for a signal, let the requests at hand end, and bring the last spans away.
pub(crate) async fn wait(host: &Host, shutdown: &Shutdown, mut signals: Signals) -> Result<(), Stopped> {
    let name = signals.next().await;
    let patience = host.limits.drain_time;
    tracing::info!(target: "berth", signal = name, "stopping: requests at hand have {} s; a second signal stops at once", patience.as_secs());
    let stopped = tokio::select! {
        cut = shutdown.drain(host, patience) => match cut {
            0 => Ok(()),
            cut => Err(Stopped::Cut(cut, patience)),
        },
        _ = signals.next() => Err(Stopped::Twice),
    };
    if let Some(telemetry) = &host.telemetry {
        // Nobody who asked twice waits for spans.
        let at_once = matches!(stopped, Err(Stopped::Twice));
        telemetry.stop(if at_once { Duration::ZERO } else { FLUSH }).await;
    }
    stopped
}

/// Wait until no change is made any more, so that the next start knows what served last.
pub(crate) async fn finish(changes: JoinHandle<()>) {
    if tokio::time::timeout(CHANGE, changes).await.is_err() {
        tracing::warn!(target: "berth", "stopped in the middle of a change, after {} s: the next start may not know of it", CHANGE.as_secs());
    }
}
