//! Every metric.

use std::sync::Arc;

use wasmtime::PoolingAllocatorMetrics;

use super::counters::{Listener, VersionMetrics};
use super::process::Process;
use super::text::{Family, Kind, Metric};
use crate::caps::sql::Pool;
use crate::postgres::Postgres;
use crate::runtime::engine::PoolSizes;
use crate::runtime::plugin::Plugin;
use crate::state::Host;
use crate::table::Table;

/// What one answer of `/metrics` is made from.
pub struct Scrape<'a> {
    host: &'a Host,
    table: Arc<Table>,
    versions: Vec<(usize, String, Arc<VersionMetrics>)>,
    process: Process,
    pool: Option<PoolingAllocatorMetrics>,
    sizes: PoolSizes,
}

impl std::fmt::Debug for Scrape<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrape")
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

impl<'a> Scrape<'a> {
    /// Look at the process and the pools now.
    pub fn new(host: &'a Host) -> Self {
        let table = host.table.load_full();
        let versions = table.plugins.iter().enumerate().flat_map(|(at, plugin)| {
            let counted = plugin.ledger.counted();
            counted
                .into_iter()
                .map(move |(digest, metrics)| (at, digest, metrics))
        });
        Self {
            host,
            versions: versions.collect(),
            table,
            process: Process::read(),
            pool: host.runtime.engine.pooling_allocator_metrics(),
            sizes: host.runtime.pool_sizes(),
        }
    }

    fn plugins(&self) -> impl Iterator<Item = &Plugin> {
        self.table.plugins.iter().map(AsRef::as_ref)
    }

    fn postgres(&self) -> Option<&Postgres> {
        self.host.services.postgres.as_deref()
    }

    /// The connections of every plugin that may use `sql`.
    fn sql(&self) -> impl Iterator<Item = (&str, &Pool)> {
        self.plugins()
            .filter_map(|plugin| Some((plugin.name.as_str(), plugin.sql.as_deref()?)))
    }

    /// Each plugin's name with its latest versions, and their counters; the version is "" where none has been loaded, or
    /// requests came while none was.
    fn versions(&self) -> impl Iterator<Item = ([&str; 2], &VersionMetrics)> {
        self.table.plugins.iter().enumerate().flat_map(|(at, plugin)| {
            let name = plugin.name.as_str();
            let counted = self.versions.iter().filter(move |(of, ..)| *of == at);
            let counted =
                counted.map(move |(_, digest, metrics)| ([name, digest.as_str()], metrics.as_ref()));
            let unloaded = &plugin.ledger.metrics.unloaded;
            let has_unloaded = plugin.current().is_none() || unloaded.requests().any(|(_, n)| n > 0);
            counted.chain(has_unloaded.then_some(([name, ""], unloaded)))
        })
    }
}

const PLUGIN: &[&str] = &["plugin"];
const VERSION: &[&str] = &["plugin", "version"];
const LISTENERS: [(Listener, &str); 2] = [(Listener::Http, "http"), (Listener::Admin, "admin")];

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Scrape<'_>, &mut Family<'_>),
) -> Metric {
    Metric {
        name,
        kind,
        help,
        labels,
        read,
    }
}

/// Every metric, in the order of `/metrics`. The README of this crate documents them; a test compares the two.
pub const METRICS: &[Metric] = &[
    metric(
        "berth_build_info",
        Kind::Gauge,
        &["version"],
        "Always 1; the version of berth.",
        |_, f| f.value(&[env!("CARGO_PKG_VERSION")], 1),
    ),
    metric(
        "berth_http_requests_total",
        Kind::Counter,
        &["status"],
        "Requests of callers that were answered to the last byte, by class of status.",
        |s, f| {
            let requests = s.host.metrics.requests();
            requests.for_each(|(class, n)| f.value(&[class], n));
        },
    ),
    metric(
        "berth_http_requests_unfinished_total",
        Kind::Counter,
        &[],
        "Requests whose answer did not get to its end: the caller left, the guest failed halfway, or the host had to stop.",
        |s, f| f.value(&[], s.host.metrics.requests_unfinished()),
    ),
    metric(
        "berth_manifest_generation",
        Kind::Gauge,
        &[],
        "How often the manifest has come into force: 1 since the start, and one more for each change.",
        |s, f| f.value(&[], s.table.generation),
    ),
    metric(
        "berth_connections_open",
        Kind::Gauge,
        &["listener"],
        "Connections that are open.",
        |s, f| {
            for (listener, label) in LISTENERS {
                f.value(&[label], s.host.metrics.listener(listener).counts().1);
            }
        },
    ),
    metric(
        "berth_connections_max",
        Kind::Gauge,
        &["listener"],
        "Connections that may be open at once; more wait in the kernel.",
        |s, f| {
            f.value(&["http"], s.host.limits.connections);
            f.value(&["admin"], crate::listen::ADMIN_CONNECTIONS);
        },
    ),
    metric(
        "berth_connections_accepted_total",
        Kind::Counter,
        &["listener"],
        "Connections that were accepted.",
        |s, f| {
            for (listener, label) in LISTENERS {
                f.value(&[label], s.host.metrics.listener(listener).counts().0);
            }
        },
    ),
    metric(
        "berth_connections_accept_errors_total",
        Kind::Counter,
        &["listener"],
        "Times that accepting failed for want of file descriptors or memory.",
        |s, f| {
            for (listener, label) in LISTENERS {
                f.value(&[label], s.host.metrics.listener(listener).counts().2);
            }
        },
    ),
    metric(
        "berth_instances_max",
        Kind::Gauge,
        &[],
        "Instances that may live at once.",
        |s, f| f.value(&[], s.host.runtime.settings().instances),
    ),
    metric(
        "berth_instances_live",
        Kind::Gauge,
        &[],
        "Instances that live, idle ones included.",
        |s, f| f.value(&[], s.host.instances.live()),
    ),
    metric(
        "berth_instances_idle",
        Kind::Gauge,
        &[],
        "Instances that wait for their plugin's next request.",
        |s, f| {
            f.value(
                &[],
                s.host
                    .versions()
                    .iter()
                    .map(|v| v.shelf.len() + v.workers.idle())
                    .sum::<usize>(),
            )
        },
    ),
    metric(
        "berth_instances_free",
        Kind::Gauge,
        &[],
        "Instances that could be made now.",
        |s, f| f.value(&[], s.host.instances.free()),
    ),
    metric(
        "berth_instances_waiting",
        Kind::Gauge,
        &[],
        "Requests that wait for the right to make an instance, over all plugins.",
        |s, f| f.value(&[], s.host.instances.waiting()),
    ),
    metric(
        "berth_guest_memory_bytes",
        Kind::Gauge,
        &[],
        "Linear memory of all guests.",
        |s, f| f.value(&[], s.host.runtime.budget.used()),
    ),
    metric(
        "berth_guest_memory_max_bytes",
        Kind::Gauge,
        &[],
        "Linear memory that all guests may have together.",
        |s, f| f.value(&[], s.host.runtime.budget.limit()),
    ),
    metric(
        "berth_pool_used",
        Kind::Gauge,
        &["resource"],
        "Slots of the instance pool that are in use.",
        |s, f| {
            if let Some(pool) = &s.pool {
                f.value(&["component-instances"], pool.component_instances());
                f.value(&["core-instances"], pool.core_instances());
                f.value(&["memories"], pool.memories());
                f.value(&["tables"], pool.tables());
                f.value(&["stacks"], pool.stacks());
            }
        },
    ),
    metric(
        "berth_pool_max",
        Kind::Gauge,
        &["resource"],
        "Slots of the instance pool.",
        |s, f| {
            let sizes = &s.sizes;
            f.value(&["component-instances"], sizes.component_instances);
            f.value(&["core-instances"], sizes.core_instances);
            f.value(&["memories"], sizes.memories);
            f.value(&["tables"], sizes.tables);
            f.value(&["stacks"], sizes.stacks);
        },
    ),
    metric(
        "berth_pool_resident_bytes",
        Kind::Gauge,
        &["resource"],
        "Memory that unused slots of the instance pool keep, ready for their next tenant.",
        |s, f| {
            if let Some(pool) = &s.pool {
                f.value(&["memories"], pool.unused_memory_bytes_resident());
                f.value(&["tables"], pool.unused_table_bytes_resident());
                f.value(&["stacks"], pool.unused_stack_bytes_resident().unwrap_or(0));
            }
        },
    ),
    metric(
        "berth_log_lines_dropped_total",
        Kind::Counter,
        &[],
        "Log lines that were lost because standard error is read too slowly.",
        |s, f| f.value(&[], s.host.metrics.log_lines_dropped()),
    ),
    metric(
        "berth_audit_dropped_total",
        Kind::Counter,
        &[],
        "Rows of the audit that were lost, because Postgres was away for too long or refused them.",
        |s, f| {
            let audit = s.host.services.audit.as_ref();
            f.value(&[], audit.map_or(0, |audit| audit.dropped()));
        },
    ),
    metric(
        "berth_trace_spans_total",
        Kind::Counter,
        &["result"],
        "Spans that the collector took (`exported`), could not be brought to it (`failed`), or found the queue full (`dropped`); only with `telemetry.otlp`.",
        |s, f| {
            if let Some(telemetry) = &s.host.telemetry {
                for (result, n) in telemetry.spans() {
                    f.value(&[result], n);
                }
            }
        },
    ),
    metric(
        "berth_postgres_reachable",
        Kind::Gauge,
        &[],
        "1 while Postgres answers, 0 while it does not; only with a database, as all that begin with `berth_postgres`.",
        |s, f| {
            s.postgres()
                .iter()
                .for_each(|p| f.value(&[], u8::from(p.is_reachable())))
        },
    ),
    metric(
        "berth_postgres_connections_open",
        Kind::Gauge,
        &[],
        "The host's own connections to Postgres that are open; plugins have others.",
        |s, f| s.postgres().iter().for_each(|p| f.value(&[], p.numbers().open)),
    ),
    metric(
        "berth_postgres_connections_idle",
        Kind::Gauge,
        &[],
        "Of these, the ones that nobody uses.",
        |s, f| s.postgres().iter().for_each(|p| f.value(&[], p.numbers().idle)),
    ),
    metric(
        "berth_postgres_connections_max",
        Kind::Gauge,
        &[],
        "How many there may be (`postgres.connections`).",
        |s, f| s.postgres().iter().for_each(|p| f.value(&[], p.numbers().max)),
    ),
    metric(
        "berth_postgres_restarts_total",
        Kind::Counter,
        &[],
        "How often the private Postgres ended by itself and was started again.",
        |s, f| s.postgres().iter().for_each(|p| f.value(&[], p.restarts())),
    ),
    metric(
        "berth_password_hashes_total",
        Kind::Counter,
        &["algorithm"],
        "Passwords that were hashed, to store or to compare; one that is compared with nothing counts as `argon2`.",
        |s, f| {
            for (algorithm, n) in s.host.services.passwords.hashes() {
                f.value(&[algorithm], n);
            }
        },
    ),
    metric(
        "berth_password_hashes_waiting",
        Kind::Gauge,
        &[],
        "Passwords that wait to be hashed.",
        |s, f| f.value(&[], s.host.services.passwords.waiting()),
    ),
    metric(
        "berth_password_hashes_refused_total",
        Kind::Counter,
        &[],
        "Passwords that were not hashed because too many waited.",
        |s, f| f.value(&[], s.host.services.passwords.refused()),
    ),
    metric(
        "berth_plugin_loaded",
        Kind::Gauge,
        VERSION,
        "1 for the version that a plugin serves; 0, with an empty version, when none could be loaded.",
        |s, f| {
            for (labels, _) in s.versions() {
                f.value(&labels, u8::from(!labels[1].is_empty()));
            }
        },
    ),
    metric(
        "berth_plugin_requests_total",
        Kind::Counter,
        &["plugin", "version", "status"],
        "Requests that were answered to the last byte, by class of status.",
        |s, f| {
            for ([plugin, version], metrics) in s.versions() {
                let requests = metrics.requests();
                requests.for_each(|(class, n)| f.value(&[plugin, version, class], n));
            }
        },
    ),
    metric(
        "berth_plugin_requests_unfinished_total",
        Kind::Counter,
        VERSION,
        "Requests whose answer did not get to its end; `berth_plugin_traps_total` says why.",
        |s, f| {
            for (labels, metrics) in s.versions() {
                f.value(&labels, metrics.requests_unfinished());
            }
        },
    ),
    metric(
        "berth_plugin_request_duration_seconds",
        Kind::Histogram,
        VERSION,
        "From a request's head to the last byte of its answer, for the requests that were answered.",
        |s, f| {
            for (labels, metrics) in s.versions() {
                f.histogram(&labels, &metrics.duration);
            }
        },
    ),
    metric(
        "berth_plugin_cpu_seconds",
        Kind::Histogram,
        VERSION,
        "Guest CPU time of a run, start functions and work after the response included; counted when the run is over.",
        |s, f| {
            for (labels, metrics) in s.versions() {
                f.histogram(&labels, &metrics.cpu);
            }
        },
    ),
    metric(
        "berth_plugin_memory_bytes",
        Kind::Summary,
        VERSION,
        "Linear memory of the instance at the end of a run, over all runs; none of plugins whose instances serve several requests at once.",
        |s, f| {
            for (labels, metrics) in s.versions() {
                let (bytes, runs) = metrics.memory();
                f.summary(&labels, bytes, runs);
            }
        },
    ),
    metric(
        "berth_plugin_memory_peak_bytes",
        Kind::Gauge,
        VERSION,
        "The most linear memory that the instance of a run had.",
        |s, f| {
            for (labels, metrics) in s.versions() {
                f.value(&labels, metrics.memory_most());
            }
        },
    ),
    metric(
        "berth_plugin_queue_seconds",
        Kind::Histogram,
        VERSION,
        "How long a request waited for an instance, whether it got one or not.",
        |s, f| {
            for (labels, metrics) in s.versions() {
                f.histogram(&labels, &metrics.queue);
            }
        },
    ),
    metric(
        "berth_plugin_traps_total",
        Kind::Counter,
        &["plugin", "version", "trap"],
        "Runs that ended without a usable result, by kind.",
        |s, f| {
            for ([plugin, version], metrics) in s.versions() {
                let traps = metrics.traps();
                traps.for_each(|(trap, n)| f.value(&[plugin, version, trap], n));
            }
        },
    ),
    metric(
        "berth_plugin_request_bytes_total",
        Kind::Counter,
        VERSION,
        "Bytes of request bodies that were read for the guest.",
        |s, f| {
            for (labels, metrics) in s.versions() {
                f.value(&labels, metrics.bytes().0);
            }
        },
    ),
    metric(
        "berth_plugin_response_bytes_total",
        Kind::Counter,
        VERSION,
        "Bytes of response bodies, counted when the response has ended.",
        |s, f| {
            for (labels, metrics) in s.versions() {
                f.value(&labels, metrics.bytes().1);
            }
        },
    ),
    metric(
        "berth_plugin_running",
        Kind::Gauge,
        PLUGIN,
        "Requests that have a place among the plugin's own.",
        |s, f| {
            for plugin in s.plugins() {
                f.value(&[&plugin.name], plugin.slots.running());
            }
        },
    ),
    metric(
        "berth_plugin_running_max",
        Kind::Gauge,
        PLUGIN,
        "Places of the plugin (`limits.concurrency`).",
        |s, f| {
            for plugin in s.plugins() {
                f.value(&[&plugin.name], plugin.spec.limits.concurrency);
            }
        },
    ),
    metric(
        "berth_plugin_waiting",
        Kind::Gauge,
        PLUGIN,
        "Requests that wait for a place among the plugin's own.",
        |s, f| {
            for plugin in s.plugins() {
                f.value(&[&plugin.name], plugin.slots.waiting());
            }
        },
    ),
    metric(
        "berth_plugin_refused_total",
        Kind::Counter,
        &["plugin", "code"],
        "Requests that were sent away without a run, by the code of the answer.",
        |s, f| {
            for plugin in s.plugins() {
                let refusals = plugin.ledger.metrics.refusals();
                refusals.for_each(|(code, n)| f.value(&[&plugin.name, code], n));
            }
        },
    ),
    metric(
        "berth_plugin_swaps_total",
        Kind::Counter,
        &["plugin", "result"],
        "Versions that came to serve everybody (`made`), could not be served (`refused`), or were candidates and worse than they may be (`taken-back`).",
        |s, f| {
            for plugin in s.plugins() {
                let swaps = plugin.ledger.swaps.each();
                swaps
                    .into_iter()
                    .for_each(|(result, n)| f.value(&[&plugin.name, result], n));
            }
        },
    ),
    metric(
        "berth_plugin_versions",
        Kind::Gauge,
        PLUGIN,
        "Versions in memory: the current one, a candidate, and those whose last requests have not ended.",
        |s, f| {
            for plugin in s.plugins() {
                f.value(&[&plugin.name], plugin.ledger.alive());
            }
        },
    ),
    metric(
        "berth_plugin_log_lines_suppressed_total",
        Kind::Counter,
        PLUGIN,
        "Lines that the guest wrote and the log did not take, because their request had written too many.",
        |s, f| {
            for plugin in s.plugins() {
                f.value(&[&plugin.name], plugin.ledger.metrics.lines_suppressed());
            }
        },
    ),
    metric(
        "berth_plugin_sql_calls_total",
        Kind::Counter,
        &["plugin", "result"],
        "Calls of `sql`, by `ok` or the name of the error in WIT; only of plugins that may use it.",
        |s, f| {
            for (plugin, sql) in s.sql() {
                let calls = sql.metrics.calls();
                calls.for_each(|(result, n)| f.value(&[plugin, result], n));
            }
        },
    ),
    metric(
        "berth_plugin_sql_seconds",
        Kind::Histogram,
        PLUGIN,
        "How long calls of `sql` took, the wait for a connection included.",
        |s, f| {
            for (plugin, sql) in s.sql() {
                f.histogram(&[plugin], &sql.metrics.duration);
            }
        },
    ),
    metric(
        "berth_plugin_sql_cancelled_total",
        Kind::Counter,
        PLUGIN,
        "Connections that were ended on the server, because their statement was late, gave too much, or nobody waited for it.",
        |s, f| {
            for (plugin, sql) in s.sql() {
                f.value(&[plugin], sql.metrics.cancelled_total());
            }
        },
    ),
    metric(
        "berth_plugin_sql_connections",
        Kind::Gauge,
        PLUGIN,
        "Connections to Postgres that are open as the plugin's role, idle ones included.",
        |s, f| {
            for (plugin, sql) in s.sql() {
                f.value(&[plugin], sql.metrics.open());
            }
        },
    ),
    metric(
        "process_cpu_seconds_total",
        Kind::Counter,
        &[],
        "CPU time of the process, user and system.",
        |s, f| s.process.cpu_seconds.iter().for_each(|v| f.value(&[], v)),
    ),
    metric(
        "process_resident_memory_bytes",
        Kind::Gauge,
        &[],
        "Memory of the process that is in RAM.",
        |s, f| s.process.resident_bytes.iter().for_each(|v| f.value(&[], v)),
    ),
    metric(
        "process_virtual_memory_bytes",
        Kind::Gauge,
        &[],
        "Address space of the process; most of it is reserved for the instance pool and never used.",
        |s, f| s.process.virtual_bytes.iter().for_each(|v| f.value(&[], v)),
    ),
    metric(
        "process_threads",
        Kind::Gauge,
        &[],
        "Threads of the process.",
        |s, f| s.process.threads.iter().for_each(|v| f.value(&[], v)),
    ),
    metric(
        "process_open_fds",
        Kind::Gauge,
        &[],
        "File descriptors that are open.",
        |s, f| s.process.open_fds.iter().for_each(|v| f.value(&[], v)),
    ),
    metric(
        "process_max_fds",
        Kind::Gauge,
        &[],
        "File descriptors that may be open.",
        |s, f| s.process.max_fds.iter().for_each(|v| f.value(&[], v)),
    ),
    metric(
        "process_start_time_seconds",
        Kind::Gauge,
        &[],
        "When the process was started, in seconds since the Unix epoch.",
        |s, f| s.process.start_seconds.iter().for_each(|v| f.value(&[], v)),
    ),
];
