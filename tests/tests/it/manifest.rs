//! Manifest keys that change what a running host does. The messages of faulty ones are pinned in the unit tests of
//! `berth_host::config`; here it is that the keys work.

use berth_tests::berth::{Berth, Manifest};

#[test]
fn every_documented_key_is_taken() {
    let manifest = Manifest::new()
        .raw(
            "[http]\nlisten = \"127.0.0.1:0\"\nheader_bytes = \"64KiB\"\nheader_time = \"10s\"\nbody_bytes = \"1MiB\"\n\
             idle_time = \"30s\"\nconnections = 10_000\ndrain_time = \"30s\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n\
             [limits]\ninstances = 32\ntotal_memory = \"1GiB\"\nmemory = \"32MiB\"\ncpu = \"500ms\"\nwall = \"30s\"\nconcurrency = 16\n",
        )
        .handler_with(
            "hello",
            "reuse = \"none\"\ngrants = { log = true, settings = false }\n\
             limits = { memory = \"64MiB\", cpu = \"1s\", wall = \"10s\", concurrency = 8 }\nsettings = { a = \"b\", n = 1.5, t = true }",
        );
    let berth = manifest.start();
    assert_eq!(berth.get("/hello/x").status, 200);
    assert_eq!(berth.metric("berth_instances_max", &[]), 32.0);
}

#[test]
fn cpu_limit_counts_computing_and_not_waiting() {
    let berth = Manifest::new()
        .handler_with("fixtures/echo", "limits = { cpu = \"250ms\" }")
        .start();
    assert_eq!(berth.get("/echo/burn/50").status, 200);
    assert_eq!(berth.get("/echo/burn/2000").code(), "plugin-cpu");
    assert_eq!(berth.get("/echo/sleep/600").status, 200);
}

#[test]
fn hog_that_stays_below_its_limit_is_served() {
    // Over the free ticks, so that it queues for a hog permit again and again, beside others that do the same.
    let berth = Manifest::new()
        .handler_with("fixtures/echo", "limits = { cpu = \"5s\" }")
        .start();
    let address = berth.address;
    std::thread::scope(|scope| {
        let hogs: Vec<_> = (0..6)
            .map(|_| scope.spawn(move || berth_tests::wire::get(address, "/echo/burn/150").status))
            .collect();
        for hog in hogs {
            assert_eq!(hog.join().unwrap(), 200);
        }
    });
}

#[test]
fn environment_wins_over_the_file_in_a_running_host() {
    let manifest = Manifest::new().raw("[limits]\ninstances = 8\n").handler("hello");
    let berth = Berth::start(manifest.text(), &[("BERTH_LIMITS_INSTANCES", "4")]);
    assert_eq!(berth.metric("berth_instances_max", &[]), 4.0);
}

#[test]
fn instances_are_shared_fairly_when_they_run_out() {
    let manifest = Manifest::new()
        .raw("[limits]\ninstances = 2\n")
        .handler("fixtures/echo");
    let berth = manifest.start();
    let address = berth.address;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..20)
            .map(|_| scope.spawn(move || berth_tests::wire::get(address, "/echo/sleep/20").status))
            .collect();
        for one in all {
            assert_eq!(one.join().unwrap(), 200, "whoever waits is served");
        }
    });
    assert_eq!(berth.metric("berth_instances_free", &[]), 2.0);
}
