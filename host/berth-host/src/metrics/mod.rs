//! What operators read at `/metrics`.
//!
//! One table, [`METRICS`], declares every metric: its name, type, help and labels, and where its values come from. The
//! text of `/metrics` is made from it, and the table in this crate's README is compared with it. A request pays for its
//! counters with relaxed atomic additions, and nothing else: everything is summed up and written down when somebody
//! asks.
//!
//! What belongs to a component is kept with its version, so that two versions of a plugin can be told apart; its series
//! end with it. Deliberately absent: labels that a stranger chooses (paths, addresses, methods), and routes.

mod counters;
mod histogram;
mod process;
mod table;
mod text;

pub use counters::{
    HostMetrics, Listener, ListenerMetrics, Open, PluginMetrics, Refusal, SqlMetrics, SwapMetrics,
    VersionMetrics,
};
pub use histogram::{Histogram, Snapshot};
pub use table::{METRICS, Scrape};
pub use text::{Family, Kind, Metric};

use crate::state::Host;

/// The content type of [`render`]: the Prometheus text format,
/// <https://prometheus.io/docs/instrumenting/exposition_formats/>.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything, as text. Reads `/proc`, so it blocks for as long as the kernel takes.
pub fn render(host: &Host) -> String {
    let scrape = Scrape::new(host);
    let mut out = String::with_capacity(16 * 1024);
    for metric in METRICS {
        metric.write(&scrape, &mut out);
    }
    out
}

#[cfg(test)]
mod tests;
