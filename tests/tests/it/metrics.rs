//! `/metrics`: well-formed, documented, and true.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use berth_tests::berth::{Berth, Manifest};
use berth_tests::prometheus::Family;
use berth_tests::root;
use berth_tests::store::Store;
use berth_tests::wire::{Connection, Ended, get, head, request};

pub(crate) fn label_names(family: &Family) -> BTreeSet<BTreeSet<&str>> {
    family
        .samples
        .iter()
        .map(|s| {
            s.labels
                .iter()
                .map(|(n, _)| n.as_str())
                .filter(|n| *n != "le")
                .collect()
        })
        .collect()
}

/// The rows of the table in the README: name, type, labels, meaning.
pub(crate) fn documented() -> BTreeMap<String, [String; 3]> {
    let readme = std::fs::read_to_string(root().join("host/berth-host/README.md")).unwrap();
    let rows = readme
        .lines()
        .skip_while(|l| *l != "| metric | type | labels | meaning |")
        .skip(2)
        .take_while(|l| l.starts_with("| "));
    rows.map(|row| {
        let cells: Vec<String> = row
            .trim_matches('|')
            .split(" | ")
            .map(|c| c.trim().to_owned())
            .collect();
        let [name, kind, labels, meaning] = <[String; 4]>::try_from(cells).unwrap();
        let labels = labels.replace('`', "");
        (name.trim_matches('`').to_owned(), [kind, labels, meaning])
    })
    .collect()
}

#[test]
fn metrics_are_well_formed_and_exactly_the_documented_ones() {
    let collector = "[telemetry]\notlp = \"http://127.0.0.1:9\"\n";
    let store = Store::server();
    let manifest = Manifest::new()
        .raw(collector)
        .handler_with("fixtures/echo", "grants = { sql = [\"notes\"] }")
        .handler_file("gone", "nowhere.wasm".as_ref(), "");
    let berth = store.start(&manifest);
    assert_eq!(berth.get("/echo/status/200").status, 200);
    let answer = get(berth.admin, "/metrics");
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let families = berth.metrics();
    let documented = documented();
    let names: BTreeSet<&str> = families.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, documented.keys().map(String::as_str).collect());
    for family in &families {
        let [kind, labels, meaning] = &documented[&family.name];
        assert_eq!((&family.kind, &family.help), (kind, meaning), "{}", family.name);
        // Only of plugins that may use it; `store_sql` looks at these.
        if family.name.starts_with("berth_plugin_sql_") {
            continue;
        }
        let labels: BTreeSet<&str> = labels.split(", ").filter(|l| !l.is_empty()).collect();
        assert_eq!(
            label_names(family),
            [labels].into_iter().collect(),
            "{}: every series has exactly the documented labels",
            family.name
        );
    }
}

#[test]
fn request_is_counted_with_its_plugin_and_version() {
    let berth = Manifest::new().handler("fixtures/echo").start();
    let answer = request(berth.address, "POST", "/echo/x", &[], b"twelve bytes");
    assert_eq!((answer.status, answer.text().as_str()), (200, "twelve bytes"));
    assert_eq!(berth.get("/echo/status/404").status, 404);
    let line = berth.request_line(berth.get("/echo/status/503").header("x-request-id").unwrap());
    let version = line["version"].as_str().unwrap();

    for class in ["2xx", "4xx", "5xx"] {
        let labels = ["echo", version, class];
        berth.metric_becomes("berth_plugin_requests_total", &labels, |n| n == 1.0);
    }
    let labels = ["echo", version];
    assert_eq!(berth.metric("berth_plugin_loaded", &labels), 1.0);
    for (histogram, least) in [
        ("berth_plugin_request_duration_seconds", 1e-6),
        ("berth_plugin_cpu_seconds", 1e-6),
        ("berth_plugin_queue_seconds", 0.0),
    ] {
        let count = format!("{histogram}_count");
        berth.metric_becomes(&count, &labels, |n| n == 3.0);
        let sum = berth.metric(&format!("{histogram}_sum"), &labels);
        assert!((least..10.0).contains(&sum), "{histogram}: {sum}");
    }
    assert_eq!(berth.metric("berth_plugin_request_bytes_total", &labels), 12.0);
    let bodies = "twelve bytes".len() + "status 404\n".len() + "status 503\n".len();
    assert_eq!(
        berth.metric("berth_plugin_response_bytes_total", &labels),
        bodies as f64
    );
    // What no plugin answers is the host's own.
    assert_eq!(berth.get("/nothing").status, 404);
    berth.metric_becomes("berth_http_requests_total", &["4xx"], |n| n == 2.0);
    assert_eq!(berth.metric("berth_plugin_requests_total", &["echo", "4xx"]), 1.0);
}

#[test]
fn cpu_time_after_the_answer_is_in_the_metrics() {
    let berth = Manifest::new().handler("fixtures/counter").start();
    let answer = berth.get("/counter/burn");
    let line = berth.request_line(answer.header("x-request-id").unwrap());
    let at_the_answer = line["cpu_us"].as_u64().unwrap() as f64 / 1e6;
    let of = ["counter"];
    berth.metric_becomes("berth_plugin_cpu_seconds_count", &of, |n| n == 1.0);
    let cpu = berth.metric("berth_plugin_cpu_seconds_sum", &of);
    // It works for a tenth of a second by the clock, in which others may have the core.
    assert!(
        (0.02..0.6).contains(&cpu) && cpu > at_the_answer,
        "{cpu} s, {line}"
    );
}

#[test]
fn running_waiting_and_refused_requests_are_seen() {
    let berth = Manifest::new()
        .handler_with("fixtures/echo", "limits = { concurrency = 1, wall = \"2s\" }")
        .start();
    let mut held: Vec<Connection> = (0..6).map(|_| Connection::open(berth.address)).collect();
    for (n, connection) in held.iter_mut().enumerate() {
        connection.send(head("GET", "/echo/sleep/1500", &[], 0));
        // One runs, four wait, the sixth is sent away.
        match n {
            0 => berth.metric_becomes("berth_plugin_running", &["echo"], |v| v == 1.0),
            5 => berth.metric_becomes("berth_plugin_refused_total", &["echo", "plugin-busy"], |v| {
                v == 1.0
            }),
            n => berth.metric_becomes("berth_plugin_waiting", &["echo"], |v| v == n as f64),
        };
    }
    assert_eq!(berth.metric("berth_plugin_running_max", &["echo"]), 1.0);
    assert_eq!(berth.metric("berth_instances_live", &[]), 1.0);
    assert_eq!(berth.metric("berth_pool_used", &["component-instances"]), 1.0);
    assert!(berth.metric("berth_connections_open", &["http"]) >= 6.0);
    let statuses: Vec<u16> = held
        .iter_mut()
        .map(|c| c.response("GET").unwrap().status)
        .collect();
    let of = |status: u16| statuses.iter().filter(|s| **s == status).count();
    assert_eq!((of(429), of(200) + of(503)), (1, 5), "{statuses:?}");
    assert!(
        of(503) > 0,
        "the last of the queue waits longer than its wall time"
    );
    let refused = berth.metric("berth_plugin_refused_total", &["echo", "host-busy"]);
    assert_eq!(refused, of(503) as f64);
    // All of them waited, and those that did so in vain for as long as they could.
    assert_eq!(berth.metric("berth_plugin_queue_seconds_count", &["echo"]), 6.0);
    let waited = berth.metric("berth_plugin_queue_seconds_sum", &["echo"]);
    assert!(waited > 2.0 * of(503) as f64, "{waited} s");
    drop(held);
    berth.metric_becomes("berth_connections_open", &["http"], |n| n == 0.0);
    assert_eq!(berth.metric("berth_connections_accepted_total", &["http"]), 6.0);
}

#[test]
fn plugin_that_is_not_there_has_an_empty_version() {
    let berth = Manifest::new()
        .handler_file("gone", "nowhere.wasm".as_ref(), "")
        .start();
    assert_eq!(berth.get("/gone/x").status, 503);
    let refused = ["gone", "plugin-unavailable"];
    berth.metric_becomes("berth_plugin_refused_total", &refused, |n| n == 1.0);
    berth.metric_becomes("berth_plugin_requests_total", &["gone", "", "5xx"], |n| n == 1.0);
    assert_eq!(berth.metric("berth_plugin_loaded", &["gone", ""]), 0.0);
}

#[test]
fn answer_that_is_cut_off_is_unfinished() {
    let berth = Manifest::new().handler("fixtures/trap-after-head").start();
    assert_eq!(berth.get("/trap-after-head/x").ended, Ended::Cut);
    let plugin = ["trap-after-head"];
    berth.metric_becomes("berth_plugin_requests_unfinished_total", &plugin, |n| n == 1.0);
    berth.metric_becomes("berth_http_requests_unfinished_total", &[], |n| n == 1.0);
    assert_eq!(
        berth.metric("berth_plugin_requests_total", &["trap-after-head", "2xx"]),
        0.0
    );
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["trap-after-head", "unreachable"]),
        1.0
    );
}

#[test]
fn suppressed_lines_of_a_guest_are_counted() {
    let berth = Manifest::new()
        .handler_with("fixtures/log-handler", "grants = { log = true, settings = true }")
        .start();
    assert_eq!(berth.get("/log-handler/flood").status, 200);
    let plugin = ["log-handler"];
    let suppressed = berth.metric("berth_plugin_log_lines_suppressed_total", &plugin);
    assert_eq!(suppressed, 1000.0 - 128.0);
}

#[test]
fn process_and_build_are_described() {
    let berth = Berth::start("", &[]);
    assert_eq!(
        berth.metric("berth_build_info", &[env!("CARGO_PKG_VERSION")]),
        1.0
    );
    let pid = berth.pid();
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as f64;
    // The scrape itself has a connection.
    let open = berth.metric("process_open_fds", &[]);
    assert!((fds - 2.0..=fds + 3.0).contains(&open), "{open} of {fds}");
    assert!(berth.metric("process_max_fds", &[]) >= open);
    assert!(berth.metric("process_resident_memory_bytes", &[]) > 1e6);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let started = berth.metric("process_start_time_seconds", &[]);
    assert!((now - started).abs() < 60.0, "{started} and now {now}");
    let cpu = berth.metric("process_cpu_seconds_total", &[]);
    assert!(cpu < 60.0, "{cpu}");
}

#[test]
fn log_lines_that_nobody_reads_are_dropped_and_counted() {
    let manifest =
        Manifest::new().handler_with("fixtures/log-handler", "grants = { log = true, settings = true }");
    let berth = Berth::start_unread(manifest.text());
    assert_eq!(berth.metric("berth_log_lines_dropped_total", &[]), 0.0);
    // 128 lines each, for a buffer of 8192 and a pipe.
    for _ in 0..100 {
        assert_eq!(berth.get("/log-handler/flood").status, 200);
    }
    berth.metric_becomes("berth_log_lines_dropped_total", &[], |n| n > 0.0);
}

#[test]
fn connections_that_cannot_be_accepted_are_counted_and_got_over() {
    let berth = Berth::start("", &[]);
    let limit = berth.metric("process_open_fds", &[]) + 8.0;
    let (pid, limit) = (berth.pid().to_string(), format!("--nofile={limit}"));
    let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    assert!(status.unwrap().success());
    // The kernel takes them all; the host can't.
    let held: Vec<Connection> = (0..32).map(|_| Connection::open(berth.address)).collect();
    berth.logged("that connections can't be accepted", |e| {
        e["message"]
            .as_str()
            .is_some_and(|m| m.starts_with("a connection can't be accepted"))
    });
    drop(held);
    assert_eq!(berth.get("/health").status, 200);
    assert!(berth.metric("berth_connections_accept_errors_total", &["http"]) > 0.0);
}
