//! Two thousand requests at once: everybody is served when there is room to wait, exactly the excess is sent away when
//! there isn't, and nothing is left behind.

use std::collections::BTreeMap;

use berth_tests::berth::{Berth, Manifest};
use berth_tests::load;

const CROWD: usize = 2_000;

/// Resident memory, in bytes.
fn resident(berth: &Berth) -> f64 {
    berth.metric("process_resident_memory_bytes", &[])
}

fn all_free(berth: &Berth, total: f64) {
    while berth.metric("berth_instances_free", &[]) < total {
        std::thread::yield_now();
    }
}

#[test]
fn crowd_with_room_to_wait_is_served_to_the_last_and_leaves_no_memory_behind() {
    let manifest = Manifest::new()
        .raw("[limits]\ninstances = 200\n")
        .handler_with("fixtures/echo", "limits = { concurrency = 2000 }");
    let berth = Berth::start(manifest.text(), &[("RUST_LOG", "warn")]);
    // Every slot of the pool is used once: what it keeps is there from then on.
    let warm = load::run(load::at_once(berth.address, "/echo/sleep/200", CROWD));
    assert_eq!(warm, BTreeMap::from([((200, false), CROWD)]));
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let answers = load::run(load::at_once(berth.address, "/echo/status/200", CROWD));
        assert_eq!(answers, BTreeMap::from([((200, false), CROWD)]));
        all_free(&berth, 200.0);
        sizes.push(resident(&berth));
    }
    println!(
        "resident after each crowd: {:?} MiB",
        sizes.iter().map(|s| s / 1048576.0).collect::<Vec<_>>()
    );
    let (base, last) = (sizes[0], sizes[3]);
    assert!(
        last < base * 1.1 + 16.0 * 1048576.0,
        "{base} bytes grew to {last}"
    );
}

#[test]
fn exactly_the_excess_over_cap_and_queue_is_sent_away() {
    let manifest = Manifest::new().handler("fixtures/echo");
    let berth = Berth::start(manifest.text(), &[("RUST_LOG", "warn")]);
    let answers = load::run(load::at_once(berth.address, "/echo/sleep/3000", CROWD));
    // 64 run and 256 wait; each of the others is told when to come again.
    assert_eq!(
        answers,
        BTreeMap::from([((200, false), 320), ((429, true), CROWD - 320)])
    );
    all_free(&berth, 256.0);
    let refused = berth.metric("berth_plugin_refused_total", &["echo", "plugin-busy"]);
    assert_eq!(refused, (CROWD - 320) as f64);
}

#[test]
fn place_that_was_just_given_back_has_a_free_slot_behind_it() {
    // As many slots as places: whoever gets a place a moment before its slot is free would find none.
    for reuse in ["", "reuse = \"serial\"\nreuse_count = 1"] {
        let more = format!("limits = {{ concurrency = 2000 }}\n{reuse}");
        let manifest = Manifest::new()
            .raw("[limits]\ninstances = 1\n")
            .handler_with("hello", &more);
        let berth = Berth::start(manifest.text(), &[("RUST_LOG", "warn")]);
        for _ in 0..10 {
            let answers = load::run(load::at_once(berth.address, "/hello/x", 300));
            assert_eq!(answers, BTreeMap::from([((200, false), 300)]));
        }
    }
}
