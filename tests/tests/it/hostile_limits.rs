//! Guests that take without end: tables, handles, leaks, log lines, time.

use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest, PATIENCE};
use berth_tests::root;
use berth_tests::wire::{Connection, Ended, get, head};
use tempfile::TempDir;

use crate::hostile::{fails, with_hello};

#[test]
fn table_bomb_is_told_apart_from_a_crash() {
    let component = wat::parse_file(root().join("plugins/fixtures/table-bomb/component.wat")).unwrap();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("table-bomb.wasm");
    std::fs::write(&path, component).unwrap();
    let berth = Manifest::new()
        .handler("hello")
        .handler_file("table-bomb", &path, "")
        .start();
    fails(&berth, "/table-bomb/x", 503, "plugin-table", "table");
}

#[test]
fn host_resources_without_end_are_refused() {
    let berth = with_hello("handles", "");
    fails(&berth, "/handles/pollables", 503, "plugin-handles", "handles");
    fails(&berth, "/handles/fields", 503, "plugin-handles", "handles");
}

#[test]
fn host_resources_of_a_03_handler_are_refused_as_well() {
    let berth = with_hello("bad-p3", "");
    fails(&berth, "/bad-p3/fields", 503, "plugin-handles", "handles");
    fails(&berth, "/bad-p3/futures", 503, "plugin-handles", "handles");
}

/// How many calls the leak test makes: a few in the suite, a million with `just soak`.
fn calls() -> usize {
    let given = std::env::var("BERTH_TEST_LEAK_CALLS").ok();
    given.map_or(20_000, |n| n.parse().expect("BERTH_TEST_LEAK_CALLS is a number"))
}

/// Resident memory of a process, in KiB.
fn resident(berth: &Berth) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", berth.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn resource_leak_of_a_reused_instance_stays_bounded() {
    // No line per request: this is about the host's memory, not about the disk.
    let manifest = Manifest::new()
        .handler("hello")
        .handler_with("fixtures/leak", "reuse = \"serial\"\nreuse_count = 1000000")
        .handler_with("fixtures/bad-p3", "reuse = \"serial\"\nreuse_count = 1000000");
    let berth = Berth::start(manifest.text(), &[("RUST_LOG", "warn")]);
    let paths = [
        "/leak/pollables/3",
        "/leak/fields/3",
        "/leak/none/0",
        "/bad-p3/leak/3",
    ];
    let calls = calls();
    let round = |count: usize| {
        std::thread::scope(|scope| {
            for path in paths {
                let mut connection = Connection::open(berth.address);
                let berth = &berth;
                scope.spawn(move || {
                    let request = head("GET", path, &[], 0);
                    for n in 0..count / paths.len() {
                        connection.send(&request);
                        let answer = connection
                            .response("GET")
                            .filter(|a| a.status == 200 && a.ended == Ended::Whole);
                        assert!(
                            answer.is_some(),
                            "{path}, call {n} of this round failed; the log: {:#?}",
                            berth.log()
                        );
                    }
                });
            }
        });
        resident(&berth)
    };
    let started = Instant::now();
    // After the first tenth all that is made once is there.
    let begin = round(calls / 10);
    let middle = round(calls / 10 * 4);
    let end = round(calls / 2);
    println!(
        "resident after {} calls {begin} KiB, after {} calls {middle} KiB, after {calls} calls {end} KiB; {:?}",
        calls / 10,
        calls / 2,
        started.elapsed(),
    );
    // A leak of one byte per call would be 1 MiB in a million; three resources are hundreds of bytes.
    let slack = 8 * 1024;
    assert!(middle < begin + slack, "{begin} KiB grew to {middle} KiB");
    assert!(end < begin + slack, "{begin} KiB grew to {end} KiB");
    assert_eq!(berth.get("/hello/next").status, 200);
}

#[test]
fn instance_that_leaks_memory_is_given_up() {
    let berth = with_hello("leak", "reuse = \"serial\"\nlimits = { memory = \"8MiB\" }");
    // Forty mebibytes in all: an instance that were kept would be refused the ninth.
    for _ in 0..40 {
        assert_eq!(berth.get("/leak/memory/1024").text(), "leaked 1024\n");
    }
    assert_eq!(berth.metric("berth_plugin_traps_total", &["leak", "memory"]), 0.0);
}

#[test]
fn memory_of_an_earlier_request_is_counted_for_the_next_one_of_the_instance() {
    let berth = Manifest::new()
        .handler_with("fixtures/leak", "reuse = \"serial\"")
        .start();
    let of = ["leak"];
    let after = |path: &str, runs: f64| {
        assert_eq!(berth.get(path).status, 200);
        // A run is counted a moment after its answer.
        berth.metric_becomes("berth_plugin_memory_bytes_count", &of, |n| n == runs);
        berth.metric_becomes("berth_instances_idle", &[], |n| n == 1.0);
        berth.metric("berth_plugin_memory_bytes_sum", &of)
    };
    let first = after("/leak/memory/0", 1.0);
    assert!(first >= 65_536.0, "{first} bytes are not a page");
    let grown = after("/leak/memory/1024", 2.0) - first;
    assert!(grown >= first + 1_048_576.0, "{first} bytes grew to {grown}");
    let kept = after("/leak/memory/0", 3.0) - first - grown;
    assert_eq!(kept, grown);
    assert_eq!(berth.metric("berth_plugin_memory_peak_bytes", &of), grown);
}

#[test]
fn instance_that_leaks_a_little_is_used_again_and_then_given_up() {
    for (fixture, path) in [
        ("fixtures/leak", "/leak/fields"),
        ("fixtures/bad-p3", "/bad-p3/leak"),
    ] {
        let berth = Manifest::new()
            .handler_with(fixture, "reuse = \"serial\"")
            .start();
        for (leaked, idle) in [(0, 1.0), (1, 1.0), (1, 1.0), (100, 0.0), (0, 1.0)] {
            let answer = berth.get(&format!("{path}/{leaked}"));
            assert_eq!(answer.status, 200, "{}", answer.text());
            // The guest may be done a moment after its answer.
            let started = Instant::now();
            while berth.metric("berth_instances_idle", &[]) != idle
                || berth.metric("berth_instances_free", &[]) != 256.0 - idle
            {
                assert!(started.elapsed() < PATIENCE, "{path}/{leaked}: not {idle} idle");
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn log_flood_is_bounded_and_its_request_served() {
    let berth = with_hello("log-flood", "limits = { cpu = \"60s\", wall = \"120s\" }");
    for (kind, lines) in [("lines", 1_000_000), ("errors", 10_000)] {
        let answer = berth.get(&format!("/log-flood/{kind}/{lines}"));
        assert_eq!((answer.status, answer.text().as_str()), (200, "wrote\n"));
        let id = answer.header("x-request-id").unwrap();
        berth.request_line(id);
        let lines: Vec<_> = berth
            .log()
            .into_iter()
            .filter(|e| e["target"] == "berth::guest" && e["request_id"] == id)
            .collect();
        assert_eq!(
            lines.len(),
            129,
            "128 lines, and one that says that the rest is dropped"
        );
        let last = lines[128]["message"].as_str().unwrap();
        assert!(last.contains("more than 128 lines"), "{last}");
    }
    assert_eq!(berth.get("/hello/next").text(), "Hello, next.\n");
}

#[test]
fn endless_log_line_is_cut() {
    let berth = with_hello("log-flood", "limits = { cpu = \"60s\", wall = \"120s\" }");
    let answer = berth.get("/log-flood/line/10000000");
    assert_eq!((answer.status, answer.text().as_str()), (200, "wrote\n"));
    let id = answer.header("x-request-id").unwrap();
    let event = berth.logged("the line", |e| {
        e["target"] == "berth::guest" && e["request_id"] == id
    });
    assert_eq!(event["message"].as_str().unwrap().len(), 4096);
    assert_eq!(berth.get("/hello/next").text(), "Hello, next.\n");
}

/// Latencies of one kind of request.
struct Latencies(Vec<Duration>);

impl Latencies {
    /// Ask for as long as told, each on its own connection.
    fn of(berth: &Berth, path: &str, time: Duration) -> Self {
        let (started, mut all) = (Instant::now(), Vec::new());
        while started.elapsed() < time {
            let asked = Instant::now();
            assert_eq!(get(berth.address, path).status, 200);
            all.push(asked.elapsed());
        }
        all.sort();
        Self(all)
    }

    fn at(&self, part: f64) -> Duration {
        self.0[((self.0.len() - 1) as f64 * part) as usize]
    }
}

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (p50, p99, max) = (self.at(0.5), self.at(0.99), self.at(1.0));
        write!(f, "p50 {p50:?}, p99 {p99:?}, max {max:?} of {}", self.0.len())
    }
}

#[test]
fn health_answers_while_256_guests_spin() {
    let manifest = Manifest::new()
        .raw("[limits]\ninstances = 260\n")
        .handler("hello")
        .handler_with(
            "fixtures/spin",
            "limits = { cpu = \"60s\", wall = \"60s\", concurrency = 256 }",
        );
    let berth = manifest.start();
    let time = Duration::from_secs(3);
    let quiet = Latencies::of(&berth, "/health", time / 6);
    let quiet_hello = Latencies::of(&berth, "/hello/x", time / 6);
    let mut spinning = Vec::new();
    for _ in 0..256 {
        let mut connection = Connection::open(berth.address);
        connection.send(head("GET", "/spin/x", &[], 0));
        spinning.push(connection);
    }
    // While they come in, each of them still has the time in which it is nobody's burden; and afterwards.
    let arriving = Latencies::of(&berth, "/health", time);
    while berth.metric("berth_instances_free", &[]) > 4.0 {
        std::thread::yield_now();
    }
    // The middle of three: one hiccup of the machine is not the host's.
    let mut settled: Vec<_> = (0..3).map(|_| Latencies::of(&berth, "/health", time)).collect();
    settled.sort_by_key(|s| s.at(0.99));
    let settled = settled.swap_remove(1);
    let hello = Latencies::of(&berth, "/hello/x", time);
    println!(
        "/health, quiet: {quiet}\n/health, 256 spinners arriving: {arriving}\n/health, 256 spinning: {settled}\n\
         /hello, quiet: {quiet_hello}\n/hello, 256 spinning: {hello}"
    );
    assert_eq!(
        berth.metric("berth_instances_free", &[]),
        4.0,
        "they all spin to the end"
    );
    // The promise is 100 ms. While the spinners come in, only the median is held to it: the clients and the host share
    // a machine.
    assert!(arriving.at(0.5) < Duration::from_millis(100), "{arriving}");
    assert!(settled.at(0.99) <= Duration::from_millis(100), "{settled}");
    // A round of all spinners takes longer than two seconds: a short call doesn't wait for it.
    assert!(hello.at(0.5) < Duration::from_secs(1), "{hello}");
}

#[test]
fn next_tenant_of_a_slot_finds_nothing_of_the_last() {
    // One instance at a time, so that it is the same slot each time.
    let manifest = Manifest::new()
        .raw("[limits]\ninstances = 1\n")
        .handler("fixtures/residue");
    let berth = manifest.start();
    for _ in 0..5 {
        assert_eq!(berth.get("/residue/leave").text(), "left");
        assert_eq!(berth.get("/residue/find").text(), "0");
    }
}
