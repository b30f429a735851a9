//! Starting with many plugins: what it takes when their machine code is in the cache, and what a plugin costs that nobody
//! asks.

use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest};
use berth_tests::swaps::{Site, another, built};
use serde_json::Value;

/// What every plugin here is made from: a handler that answers how often its instance was asked, which is once.
const COMPONENT: &str = "fixtures/counter";

/// A site with so many different components, and a manifest of so many plugins that take turns in having them.
fn plugins(site: &Site, components: u32, plugins: u32) -> Manifest {
    let component = built(COMPONENT);
    for number in 0..components {
        site.put(&format!("c{number}.wasm"), &another(&component, number));
    }
    (0..plugins).fold(Manifest::new(), |manifest, number| {
        let file = site.at(&format!("c{}.wasm", number % components));
        manifest.handler_file(&format!("p{number}"), &file, "")
    })
}

fn start(site: &Site, manifest: &Manifest) -> (Berth, Duration) {
    let started = Instant::now();
    let berth = site.start(manifest);
    (berth, started.elapsed())
}

/// The line of every plugin that was loaded.
fn loaded(berth: &Berth, plugins: u32) -> Vec<Value> {
    // The log has a thread of its own, which may be behind a host that serves already. This line comes after theirs.
    berth.logged("that it is ready", |line| {
        line["message"] == "instance pool ready"
    });
    let mut lines = berth.log();
    lines.retain(|line| line["target"] == "berth::plugin" && line["message"] == "loaded");
    assert_eq!(lines.len(), plugins as usize);
    lines
}

fn each_answers_once(berth: &Berth, plugins: u32) {
    for number in 0..plugins {
        let answer = berth.get(&format!("/p{number}/x"));
        assert_eq!((answer.status, answer.text().as_str()), (200, "1\n"), "p{number}");
    }
}

/// How long the start took, and what of it the plugins were.
fn report(what: &str, took: Duration, lines: &[Value]) {
    let sum = |step: &str| -> Duration {
        let steps = lines.iter().map(|line| line[step].as_u64().expect(step));
        Duration::from_micros(steps.sum())
    };
    let parts = [
        ("read and hash", sum("read_us")),
        ("machine code", sum("compile_us")),
        ("check and link", sum("link_us")),
    ];
    let all: Duration = parts.iter().map(|(_, time)| *time).sum();
    let parts: Vec<String> = parts
        .iter()
        .map(|(name, time)| format!("{name} {time:.1?}"))
        .collect();
    println!(
        "{what}, {} plugins: {took:.1?} from the command to ready; {}; everything else {:.1?}",
        lines.len(),
        parts.join(", "),
        took.saturating_sub(all)
    );
}

#[test]
fn hundred_plugins_are_compiled_once_and_start_from_the_cache_afterwards() {
    const PLUGINS: u32 = 100;
    let site = Site::new();
    let manifest = plugins(&site, PLUGINS, PLUGINS);
    let (berth, cold) = start(&site, &manifest);
    let lines = loaded(&berth, PLUGINS);
    assert!(lines.iter().all(|line| line["cached"] == false), "{lines:#?}");
    report("first start", cold, &lines);
    each_answers_once(&berth, PLUGINS);
    berth.stop();

    let (berth, warm) = start(&site, &manifest);
    let lines = loaded(&berth, PLUGINS);
    assert!(lines.iter().all(|line| line["cached"] == true), "{lines:#?}");
    report("start from the cache", warm, &lines);
    each_answers_once(&berth, PLUGINS);
    assert!(warm * 3 < cold, "{warm:?} is not much less than {cold:?}");
}

/// Memory of a process in KiB: resident, its share of it, and what of that no file holds.
#[derive(Clone, Copy, Debug)]
struct Memory {
    rss: u64,
    pss: u64,
    anonymous: u64,
}

impl Memory {
    fn of(berth: &Berth) -> Self {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", berth.pid())).unwrap();
        let field = |name: &str| {
            let line = rollup.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_whitespace().nth(1));
            value
                .unwrap_or_else(|| panic!("{name} in {rollup}"))
                .parse()
                .unwrap()
        };
        Self {
            rss: field("Rss:"),
            pss: field("Pss:"),
            anonymous: field("Anonymous:"),
        }
    }
}

#[test]
fn five_hundred_idle_plugins_have_no_instance_and_little_more_than_their_code() {
    const COMPONENTS: u32 = 20;
    const PLUGINS: u32 = 500;
    let site = Site::new();
    let few = plugins(&site, COMPONENTS, COMPONENTS);
    let many = plugins(&site, COMPONENTS, PLUGINS);
    let (berth, _) = start(&site, &few);
    let berth = site.restart(berth, &few);
    loaded(&berth, COMPONENTS);
    let base = Memory::of(&berth);
    berth.stop();

    let (berth, took) = start(&site, &many);
    let lines = loaded(&berth, PLUGINS);
    assert!(lines.iter().all(|line| line["cached"] == true));
    report("start from the cache", took, &lines);
    let idle = Memory::of(&berth);
    let each = |of: fn(&Memory) -> u64| (of(&idle) - of(&base)) / u64::from(PLUGINS - COMPONENTS);
    let entry_kib = largest_entry(&site) / 1024;
    println!(
        "a plugin that nobody asks: {} KiB resident, {} KiB of the process's share, {} KiB in no file; its machine code has {entry_kib} KiB",
        each(|memory| memory.rss),
        each(|memory| memory.pss),
        each(|memory| memory.anonymous),
    );
    // What else there is of it are its types and links, some 150 KiB. The bytes of its component don't stay.
    assert!(
        each(|memory| memory.rss) < entry_kib + 256,
        "{base:?} became {idle:?}"
    );

    // No slot of the pool has ever been used: one that was keeps some of its pages.
    let pages = |berth: &Berth| berth.metric("berth_pool_resident_bytes", &["memories"]);
    assert_eq!(
        (berth.metric("berth_instances_live", &[]), pages(&berth)),
        (0.0, 0.0)
    );
    each_answers_once(&berth, PLUGINS);
    assert!(pages(&berth) > 0.0);
    println!(
        "when each has answered once: {:?}, before {idle:?}",
        Memory::of(&berth)
    );
}

/// The largest entry of the compile cache, in bytes.
fn largest_entry(site: &Site) -> u64 {
    let entries = std::fs::read_dir(site.at(".berth/cache")).expect("the cache");
    let sizes = entries.map(|entry| entry.unwrap().metadata().unwrap().len());
    sizes.max().expect("an entry")
}
