//! Counters, and how they are written in the Prometheus text format (version 0.0.4,
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Trap;
use crate::state::Host;

/// The content type of [`render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The counters of one plugin. Each is one relaxed atomic addition on the request path.
#[derive(Debug, Default)]
pub struct PluginMetrics {
    by_class: [AtomicU64; STATUS_CLASSES.len()],
    traps: [AtomicU64; Trap::ALL.len()],
    cpu_nanos: AtomicU64,
    duration_nanos: AtomicU64,
    queue_nanos: AtomicU64,
}

impl PluginMetrics {
    /// Count one request that got an answer.
    pub fn request(&self, status: u16, duration: Duration, cpu: Duration, queued: Duration) {
        let class = usize::from(status / 100).saturating_sub(1);
        if let Some(counter) = self.by_class.get(class) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        add(&self.duration_nanos, duration);
        add(&self.cpu_nanos, cpu);
        add(&self.queue_nanos, queued);
    }

    /// Count one guest's end.
    pub fn trap(&self, trap: Trap) {
        let at = Trap::ALL.iter().position(|t| *t == trap);
        if let Some(counter) = at.and_then(|at| self.traps.get(at)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn add(counter: &AtomicU64, duration: Duration) {
    if !duration.is_zero() {
        counter.fetch_add(
            u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }
}

/// Everything, as text.
pub fn render(host: &Host) -> String {
    let mut out = String::with_capacity(4096);
    gauge(
        &mut out,
        "berth_instances_max",
        "Instances that may live at once.",
        host.runtime.settings().instances,
    );
    gauge(
        &mut out,
        "berth_instances_free",
        "Instances that could be made now.",
        host.instances.free(),
    );
    gauge(
        &mut out,
        "berth_guest_memory_bytes",
        "Linear memory of all guests.",
        host.runtime.budget.used(),
    );

    gauge(
        &mut out,
        "berth_instances_idle",
        "Instances that wait for their plugin's next request.",
        host.versions()
            .map(|version| version.shelf.len() + version.workers.idle())
            .sum::<usize>(),
    );

    let per_plugin =
        |out: &mut String, name: &str, help: &str, lines: &dyn Fn(&mut String, &str, &PluginMetrics)| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
            for plugin in &host.plugins {
                lines(out, &plugin.name, &plugin.metrics);
            }
        };
    per_plugin(
        &mut out,
        "berth_plugin_requests_total",
        "Requests answered, by class of status.",
        &|out, plugin, m| {
            for (class, counter) in STATUS_CLASSES.iter().zip(&m.by_class) {
                let n = counter.load(Ordering::Relaxed);
                if n > 0 || *class == "2xx" {
                    let _ = writeln!(
                        out,
                        "berth_plugin_requests_total{{plugin=\"{plugin}\",status=\"{class}\"}} {n}"
                    );
                }
            }
        },
    );
    per_plugin(
        &mut out,
        "berth_plugin_traps_total",
        "Guests that ended without a usable result, by kind.",
        &|out, plugin, m| {
            for (trap, counter) in Trap::ALL.iter().zip(&m.traps) {
                let n = counter.load(Ordering::Relaxed);
                let _ = writeln!(
                    out,
                    "berth_plugin_traps_total{{plugin=\"{plugin}\",trap=\"{}\"}} {n}",
                    trap.label()
                );
            }
        },
    );
    let seconds = |out: &mut String, name: &str, help: &str, of: &dyn Fn(&PluginMetrics) -> u64| {
        per_plugin(out, name, help, &|out, plugin, m| {
            let _ = writeln!(out, "{name}{{plugin=\"{plugin}\"}} {}", of(m) as f64 / 1e9);
        });
    };
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    seconds(
        &mut out,
        "berth_plugin_cpu_seconds_total",
        "Guest CPU time.",
        &|m| load(&m.cpu_nanos),
    );
    seconds(
        &mut out,
        "berth_plugin_duration_seconds_total",
        "Time from request to last byte.",
        &|m| load(&m.duration_nanos),
    );
    seconds(
        &mut out,
        "berth_plugin_queue_seconds_total",
        "Time spent waiting for an instance.",
        &|m| load(&m.queue_nanos),
    );
    out
}

fn gauge(out: &mut String, name: &str, help: &str, value: impl std::fmt::Display) {
    // Writing into a String can't fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
}
