//! How long it takes from a save to the first answer by the new version, and where that time goes. Nothing here passes or
//! fails by how long it is: the figures are printed, and what must be so of any figure is tested.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest, PATIENCE};
use berth_tests::load::Times;
use berth_tests::swaps::{Operator, Site, WATCH, compiled_for, digest, greeting, hello};
use berth_tests::wire::{Connection, head};
use serde_json::Value;

/// The steps that a swap's event tells of, and what is left: noticing that the file is another one and has come to rest,
/// and the way of a request.
const PARTS: [&str; 6] = ["readUs", "verifyUs", "compileUs", "linkUs", "probeUs", "switchUs"];

/// Save components one after another, as editors do, in place. `answered` asks once: whether that was answered by this
/// version.
pub(crate) fn save_each(
    (berth, operator): (&Berth, &Operator),
    (plugin, file): (&str, &Path),
    versions: &[Vec<u8>],
    mut answered: impl FnMut(usize) -> bool,
) {
    let mut wholes = Vec::new();
    let mut parts: [Vec<Duration>; PARTS.len()] = Default::default();
    let (mut rest, mut cpu) = (Vec::new(), Vec::new());
    for (number, component) in versions.iter().enumerate() {
        let before = operator.last();
        let from = operator.serves(plugin);
        let cpu_before = compiled_for(berth);
        let started = Instant::now();
        std::fs::write(file, component).unwrap();
        while !answered(number) {
            assert!(started.elapsed() < PATIENCE, "{:#?}", operator.since(before));
            thread::sleep(Duration::from_millis(1));
        }
        let whole = started.elapsed();
        let event = operator.event(before, plugin, "swapped");
        assert_eq!(
            (event["from"].as_str(), event["to"].as_str()),
            (Some(&*from), Some(&*digest(component))),
            "{event:#}"
        );
        assert_eq!(event["size"], component.len(), "{event:#}");
        assert_eq!(operator.kinds(before, plugin), ["swapped"]);
        let us = |name: &str| Duration::from_micros(event["steps"][name].as_u64().unwrap());
        let total = us("totalUs");
        let sum: Duration = PARTS.map(us).iter().sum();
        // Each is cut off to whole microseconds.
        assert!(
            sum <= total && total <= sum + Duration::from_micros(6),
            "{event:#}"
        );
        assert!(total <= whole, "{total:?} of {whole:?}: {event:#}");
        assert_eq!(event["steps"]["cached"], Value::Bool(false), "{event:#}");
        wholes.push(whole);
        rest.push(whole - total);
        cpu.push(compiled_for(berth) - cpu_before);
        PARTS
            .iter()
            .zip(&mut parts)
            .for_each(|(name, times)| times.push(us(name)));
    }
    let line = |name: &str, times: Vec<Duration>| {
        let times = Times::of(times);
        let [median, p95, most] = [0.5, 0.95, 1.0].map(|share| times.percentile(share).as_secs_f64() * 1e3);
        println!("  {name:<10} median {median:7.1} ms, p95 {p95:7.1} ms, most {most:7.1} ms");
    };
    println!(
        "{plugin}: {} saves of {} bytes",
        versions.len(),
        versions[0].len()
    );
    line("served", wholes);
    for (name, times) in PARTS.iter().zip(parts) {
        line(name.trim_end_matches("Us"), times);
    }
    line("the rest", rest);
    // On a busy machine the compiling threads, which are nice ones, wait for the others: this is what they need together.
    line("cpu", cpu);
}

#[test]
fn save_to_served_of_hello() {
    let site = Site::new();
    site.put("hello.wasm", &hello(0));
    let file = site.at("hello.wasm");
    let berth = site.start(&Manifest::new().raw(WATCH).handler_file("hello", &file, ""));
    let operator = Operator::of(&berth);
    let versions: Vec<_> = (1..=50).map(hello).collect();
    let mut connection = Connection::open(berth.address);
    save_each((&berth, &operator), ("hello", &file), &versions, |number| {
        connection.send(head("GET", "/hello/Ada", &[], 0));
        let answer = connection.response("GET").unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.text() == greeting(number as u32 + 1, "Ada")
    });
}
