//! A thousand swaps while two hundred requests are in flight: no caller notices anything but another version, and nothing
//! is left of the versions that went.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest, eventually};
use berth_tests::load::{self, Client};
use berth_tests::swaps::{Operator, Site, altered, another, built, digest, greeting, hello, until};
use berth_tests::wire::{Connection, Ended};
use serde_json::Value;
use tokio::task::JoinSet;

/// Of one plugin, which has 200 requests in flight, between its two versions.
const SWAPS: usize = 1_000;
/// After so many of these one of the other plugins is swapped as well; they take turns.
const OTHER: usize = 5;
/// After so many of them the process is looked at, each time; before the first time every pool and cache has been filled.
const SETTLED: usize = 200;
/// Clients that always have a request in flight: those of a fresh and of a reused instance, whose guest waits in a host
/// call, and those whose request takes as long as several swaps.
const FRESH: usize = 180;
const LONG: usize = 20;
const REUSED: usize = 40;
const STREAMS: usize = 20;
/// Clients that ask for something quick, with a pause.
const QUICK: usize = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// What is swapped: a plugin, and its two versions.
struct Swapped {
    name: &'static str,
    versions: [Vec<u8>; 2],
    made: AtomicUsize,
}

impl Swapped {
    fn new(name: &'static str, versions: [Vec<u8>; 2]) -> Self {
        let made = AtomicUsize::new(0);
        Self { name, versions, made }
    }
}

/// What a client was told.
struct Answer {
    plugin: &'static str,
    id: String,
    status: u16,
    body: String,
}

/// What the process has.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    resident_kib: usize,
    mappings: usize,
    descriptors: usize,
    threads: usize,
}

impl Footprint {
    fn of(berth: &Berth) -> Self {
        let proc = format!("/proc/{}", berth.pid());
        let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
        let field = |name: &str| -> usize {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let maps = std::fs::read_to_string(format!("{proc}/maps")).unwrap();
        Self {
            resident_kib: field("VmRSS:"),
            threads: field("Threads:"),
            mappings: maps.lines().count(),
            descriptors: std::fs::read_dir(format!("{proc}/fd")).unwrap().count(),
        }
    }
}

#[test]
fn thousand_swaps_under_200_requests_lose_none_and_leave_nothing() {
    let slept = |word: &str| altered(&built("fixtures/echo"), "slept ", word);
    let fresh = |slept_word, one, two| altered(&altered(&slept(slept_word), "one\n", one), "two\n", two);
    let hello_p3 = |word: &str| altered(&built("hello-p3"), "Hello, ", word);
    let streams = built("fixtures/echo-p3");
    let plugins = [
        Swapped::new(
            "fresh",
            [
                fresh("slept ", "one\n", "two\n"),
                fresh("SLEPT ", "ONE\n", "TWO\n"),
            ],
        ),
        Swapped::new("reused", [slept("slept "), slept("SLEPT ")]),
        Swapped::new("streams", [another(&streams, 1), another(&streams, 2)]),
        Swapped::new("quick", [hello(1), hello(2)]),
        Swapped::new("shared", [hello_p3("V0001, "), hello_p3("V0002, ")]),
    ];
    let site = Site::new();
    let mut manifest = Manifest::new();
    for plugin in &plugins {
        let file = format!("{}.wasm", plugin.name);
        site.put(&file, &plugin.versions[0]);
        let reuse = match plugin.name {
            "reused" => "reuse = \"serial\"",
            "streams" | "shared" => "reuse = \"concurrent\"",
            _ => "",
        };
        // A machine that has other things to do must not make a slow request a failed one.
        let more = format!("limits = {{ concurrency = 256, cpu = \"10s\", wall = \"60s\" }}\n{reuse}");
        manifest = manifest.handler_file(plugin.name, &site.at(&file), &more);
    }
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    // Both versions of each are in the cache, and every image and slot has been used, before anything is compared.
    for round in [1, 0] {
        for plugin in &plugins {
            deploy(&operator, plugin, round);
            assert_eq!(berth.get(&format!("/{}/x", plugin.name)).status, 200);
            plugin.made.store(0, Ordering::Relaxed);
        }
    }
    let made_before = swaps_made(&berth, &plugins);
    let idle = Footprint::of(&berth);

    let over = Arc::new(AtomicBool::new(false));
    let (answers, footprints, most_alive, took) = thread::scope(|scope| {
        let clients = scope.spawn(|| load::run(clients(berth.address, Arc::clone(&over))));
        let streams: Vec<_> = (0..STREAMS)
            .map(|client| {
                scope.spawn({
                    let (plugin, over) = (&plugins[2], &over);
                    move || stream(berth.address, plugin, client, over)
                })
            })
            .collect();
        // Until everybody has a request in flight.
        eventually(
            "200 requests of the one plugin are in flight, and the others'",
            || {
                let running = |plugin: &str| berth.metric("berth_plugin_running", &[plugin]);
                running("fresh") >= (FRESH + LONG) as f64
                    && running("reused") + running("streams") >= (REUSED + STREAMS) as f64
            },
        );
        let started = Instant::now();
        let (mut footprints, mut most_alive) = (Vec::new(), 0.0_f64);
        for swap in 0..SWAPS {
            deploy_other(&operator, &plugins[0]);
            if swap % OTHER == 0 {
                deploy_other(&operator, &plugins[1 + swap / OTHER % (plugins.len() - 1)]);
            }
            if (swap + 1) % SETTLED == 0 {
                footprints.push(Footprint::of(&berth));
            }
            if swap % 50 == 2 {
                most_alive = most_alive.max(berth.metric("berth_plugin_versions", &["fresh"]));
            }
        }
        let took = started.elapsed();
        over.store(true, Ordering::Relaxed);
        let mut answers = clients.join().expect("the clients end");
        for stream in streams {
            answers.extend(stream.join().expect("a stream ends"));
        }
        (answers, footprints, most_alive, took)
    });

    let made = swaps_made(&berth, &plugins) - made_before;
    assert_eq!(made, (SWAPS + SWAPS / OTHER) as f64);
    assert_eq!(plugins[0].made.load(Ordering::Relaxed), SWAPS);
    every_answer_is_of_one_version(&berth, &plugins, &answers);
    assert!(most_alive > 1.0, "no request outlived its version");

    for plugin in &plugins {
        berth.metric_becomes("berth_plugin_versions", &[plugin.name], |alive| alive == 1.0);
    }
    println!(
        "{SWAPS} swaps of one plugin, {made} of all, in {took:.1?}, {} answers, at most {most_alive} versions of the one\n\
         idle {idle:?}\n{footprints:#?}",
        answers.len()
    );
    until(
        || {
            format!(
                "more is open than {}: {:#?}",
                idle.descriptors,
                descriptors(&berth)
            )
        },
        || (Footprint::of(&berth).descriptors <= idle.descriptors).then_some(()),
    );
    // Threads that wait for the disk end when they had nothing to do for ten seconds.
    eventually("no thread is left", || {
        Footprint::of(&berth).threads <= idle.threads
    });
    let after = Footprint::of(&berth);
    println!("idle again {after:?}");
    let (settled, loaded) = (footprints[0], footprints[footprints.len() - 1]);
    // A version's machine code alone is half a MiB, so versions that stay would be 480 MiB. What may differ is how full the
    // allocator's pages are, and how far the list of the last 512 events was filled: 32 KiB for each swap would be seen.
    let grown = loaded.resident_kib.saturating_sub(settled.resident_kib);
    assert!(grown < (SWAPS - SETTLED) * 32, "{settled:?} became {loaded:?}");
    // A version has about a dozen mappings, the slots of the pool a few each.
    let mapped = loaded.mappings.saturating_sub(settled.mappings);
    assert!(mapped < (SWAPS - SETTLED) / 2, "{settled:?} became {loaded:?}");
}

/// What a process has open.
fn descriptors(berth: &Berth) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", berth.pid())).unwrap();
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .collect()
}

/// Deploy the version that isn't served.
fn deploy_other(operator: &Operator, plugin: &Swapped) {
    deploy(operator, plugin, 1 + plugin.made.load(Ordering::Relaxed));
}

/// Deploy the version of this round; it must be a swap.
fn deploy(operator: &Operator, plugin: &Swapped, round: usize) {
    let answer = operator.deploy(plugin.name, "", &[], &plugin.versions[round % 2]);
    let event = answer.json();
    assert_eq!(
        (answer.status, &event["kind"]),
        (200, &Value::from("swapped")),
        "{event}"
    );
    assert_eq!(event["to"], digest(&plugin.versions[round % 2]));
    assert_eq!(event["from"], digest(&plugin.versions[(round + 1) % 2]));
    plugin.made.fetch_add(1, Ordering::Relaxed);
}

fn swaps_made(berth: &Berth, plugins: &[Swapped]) -> f64 {
    let made = |plugin: &Swapped| berth.metric("berth_plugin_swaps_total", &[plugin.name, "made"]);
    plugins.iter().map(made).sum()
}

/// Everybody who asks over and over, until it is over.
async fn clients(address: SocketAddr, over: Arc<AtomicBool>) -> Vec<Answer> {
    let kinds = [
        ("fresh", "/fresh/sleep/150", FRESH, Duration::ZERO),
        ("fresh", "/fresh/slow/500", LONG, Duration::ZERO),
        ("reused", "/reused/sleep/150", REUSED, Duration::ZERO),
        ("quick", "/quick/Ada", QUICK, PAUSE),
        ("shared", "/shared/Ada", QUICK, PAUSE),
    ];
    let mut asking = JoinSet::new();
    for (plugin, path, count, pause) in kinds {
        for client in 0..count {
            let over = Arc::clone(&over);
            asking.spawn(async move {
                let mut connection = Client::open(address).await;
                let mut answers = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let id = format!("{}-{client}-{}", path.replace('/', "."), answers.len());
                    let (status, body) = connection.ask(path, &id).await;
                    answers.push(Answer {
                        plugin,
                        id,
                        status,
                        body,
                    });
                    tokio::time::sleep(pause).await;
                }
                answers
            });
        }
    }
    asking.join_all().await.into_iter().flatten().collect()
}

/// Requests to a shared instance whose body begins before a swap of the plugin and ends after it.
fn stream(address: SocketAddr, plugin: &Swapped, client: usize, over: &AtomicBool) -> Vec<Answer> {
    let mut answers = Vec::new();
    let mut connection = Connection::open(address);
    while !over.load(Ordering::Relaxed) {
        let id = format!("stream-{client}-{}", answers.len());
        connection.send(format!(
            "PUT /streams/x HTTP/1.1\r\nhost: berth.test\r\nx-request-id: {id}\r\ntransfer-encoding: chunked\r\n\r\n\
             7\r\nbefore \r\n"
        ));
        while !String::from_utf8_lossy(connection.pending()).contains("before ") {
            assert!(connection.fill(), "closed in the middle of {id}");
        }
        let made = plugin.made.load(Ordering::Relaxed);
        while plugin.made.load(Ordering::Relaxed) == made && !over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        connection.send("5\r\nafter\r\n0\r\n\r\n");
        let answer = connection.response("PUT").expect("an answer");
        assert_eq!(answer.ended, Ended::Whole, "{id}");
        answers.push(Answer {
            plugin: plugin.name,
            id,
            status: answer.status,
            body: answer.text(),
        });
    }
    answers
}

/// No request failed; each got the whole answer of one version, which is the one in its log line; and the metrics counted
/// just those.
fn every_answer_is_of_one_version(berth: &Berth, plugins: &[Swapped], answers: &[Answer]) {
    let mut counted: BTreeMap<(&str, String), usize> = BTreeMap::new();
    let lines = request_lines(berth, answers.len());
    for Answer {
        plugin,
        id,
        status,
        body,
    } in answers
    {
        assert_eq!(*status, 200, "{id}: {body}");
        let line = lines
            .get(id.as_str())
            .unwrap_or_else(|| panic!("{id} is not logged"));
        assert_eq!(
            (&line["status"], &line["plugin"]),
            (&Value::from(200), &Value::from(*plugin))
        );
        let versions = &plugins.iter().find(|it| it.name == *plugin).unwrap().versions;
        let digests = [digest(&versions[0]), digest(&versions[1])];
        let version = digests.iter().position(|digest| line["version"] == **digest);
        let version = version.unwrap_or_else(|| panic!("{id}: {line}"));
        let says: [&str; 2] = match *plugin {
            "fresh" | "reused" if id.contains("sleep") => ["slept 150\n", "SLEPT 150\n"],
            "fresh" => ["one\ntwo\n", "ONE\nTWO\n"],
            "streams" => ["before after"; 2],
            _ => [&greeting(1, "Ada"), &greeting(2, "Ada")],
        };
        assert_eq!(body, says[version], "{id}: {line}");
        *counted.entry((plugin, digests[version].clone())).or_default() += 1;
    }
    for plugin in plugins {
        for version in &plugin.versions {
            let of = digest(version);
            let answered = counted.get(&(plugin.name, of.clone())).copied().unwrap_or(0);
            assert!(answered > 0, "{} {of} served nobody", plugin.name);
            // One was asked for before the others, when everything was used once.
            let metric = berth.metric("berth_plugin_requests_total", &[plugin.name, &of, "2xx"]);
            assert_eq!(metric, (answered + 1) as f64, "{} {of}", plugin.name);
        }
    }
    assert_eq!(berth.metric("berth_http_requests_unfinished_total", &[]), 0.0);
}

/// The line of every request, by its id. Lines come a moment after their answers.
fn request_lines(berth: &Berth, wanted: usize) -> HashMap<String, Value> {
    let mut lines = HashMap::new();
    eventually("every request is logged", || {
        berth.metric("berth_log_lines_dropped_total", &[]) == 0.0
            && std::fs::read_to_string(berth.log_file())
                .unwrap()
                .matches("\"target\":\"berth::request\"")
                .count()
                >= wanted + 10
    });
    for line in berth.log() {
        if line["target"] == "berth::request" {
            lines.insert(line["id"].as_str().unwrap().to_owned(), line);
        }
    }
    lines
}
