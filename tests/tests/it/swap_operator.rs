//! What an operator sees of swaps: events as they come, what two versions cost, the lines of a plugin; and what nobody sees
//! without the token.

use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest, command, eventually};
use berth_tests::swaps::{Operator, Site, another, built, digest, greeting, hello};
use berth_tests::wire::{Connection, is, request};

fn site(number: u32) -> (Site, Manifest) {
    let site = Site::new();
    site.put("hello.wasm", &hello(number));
    let manifest = Manifest::new().handler_file("hello", &site.at("hello.wasm"), "");
    (site, manifest)
}

#[test]
fn events_are_told_as_they_come_and_a_stop_ends_the_stream() {
    let (site, manifest) = site(1);
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    let mut live = operator.follow("/admin/events?plugin=hello");
    let mut other = operator.follow("/admin/events?plugin=other");
    assert_eq!(operator.deploy("hello", "", &[], &hello(2)).status, 200);
    let swapped = live.hears().unwrap();
    assert_eq!(swapped.name, "swapped");
    assert_eq!(swapped.number, swapped.data["seq"].as_u64());
    assert_eq!(swapped.data["from"], digest(&hello(1)));
    assert_eq!(swapped.data["to"], digest(&hello(2)));
    let steps = &swapped.data["steps"];
    let part = |name: &str| steps[name].as_u64().unwrap();
    let parts = ["readUs", "verifyUs", "compileUs", "linkUs", "probeUs", "switchUs"].map(part);
    // Each is rounded down by itself.
    assert!((part("totalUs") - parts.iter().sum::<u64>()) <= 6, "{steps}");
    assert!(part("compileUs") > 0 && part("probeUs") > 0, "{steps}");
    assert_eq!(operator.deploy("hello", "", &[], b"\0asm").status, 422);
    let refused = live.hears().unwrap();
    assert_eq!(refused.name, "refused");
    assert_eq!(refused.data["from"], digest(&hello(2)));
    // Those of what nobody asked about are the others'.
    let stopping = Instant::now();
    berth.stop();
    assert!(
        stopping.elapsed() < Duration::from_secs(20),
        "who follows holds up no stop"
    );
    assert_eq!(live.hears(), None);
    assert_eq!(other.hears(), None);
}

#[test]
fn both_versions_of_a_swap_are_compared_when_both_have_served() {
    let (site, manifest) = site(1);
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    for _ in 0..7 {
        assert_eq!(berth.get("/hello/Ada").text(), greeting(1, "Ada"));
    }
    let deployed = operator.deploy("hello", "", &[], &hello(2)).json();
    let seq = deployed["seq"].as_u64().unwrap();
    for _ in 0..20 {
        assert_eq!(berth.get("/hello/Ada").text(), greeting(2, "Ada"));
    }
    let measured = operator.event(seq, "hello", "measured");
    for (side, version, least) in [("before", 1, 7), ("after", 2, 20)] {
        let usage = &measured[side];
        let of = |name: &str| usage[name].as_u64().unwrap();
        assert_eq!(usage["digest"], digest(&hello(version)), "{usage}");
        assert!(of("requests") >= least, "{usage}");
        assert!(
            of("cpuMeanUs") > 0 && of("cpuP99Us") >= of("cpuMeanUs") / 2,
            "{usage}"
        );
        assert!(of("p99Us") >= of("p50Us") && of("p50Us") > 0, "{usage}");
        // A page of Wasm at the least, and not more than it may have.
        assert!((65_536..=67_108_864).contains(&of("memoryMeanBytes")), "{usage}");
        assert!(of("memoryMaxBytes") >= of("memoryMeanBytes"), "{usage}");
    }
    // The swap that it belongs to is shown with it.
    let last = &operator.plugin("hello")["lastEvent"];
    assert_eq!(last["kind"], "swapped");
    assert_eq!(
        (&last["before"], &last["after"]),
        (&measured["before"], &measured["after"])
    );
}

#[test]
fn nothing_is_told_or_changed_without_the_token() {
    let (site, manifest) = site(1);
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    let paths = [
        ("GET", "/admin/plugins"),
        ("GET", "/admin/plugins/hello"),
        ("GET", "/admin/plugins/none"),
        ("GET", "/admin/plugins/hello/logs"),
        ("POST", "/admin/plugins/hello/deploy"),
        ("POST", "/admin/plugins/hello/rollback"),
        ("POST", "/admin/plugins/hello/promote"),
        ("POST", "/admin/plugins/hello/disable"),
        ("POST", "/admin/plugins/hello/enable"),
        ("POST", "/admin/reload"),
        ("GET", "/admin/events"),
    ];
    for (method, path) in paths {
        for token in [None, Some("Bearer x"), Some("Basic x"), Some("Bearer ")] {
            let mut headers = vec![("content-type", "application/wasm")];
            headers.extend(token.map(|token| ("authorization", token)));
            let answer = request(berth.admin, method, path, &headers, &hello(2));
            is(&answer, 401, "unauthorized");
        }
    }
    assert_eq!(operator.since(0), Vec::<serde_json::Value>::new());
    assert_eq!(operator.serves("hello"), digest(&hello(1)));
    assert_eq!(berth.get("/hello/Ada").text(), greeting(1, "Ada"));
}

/// As an operator calls the program.
fn says(berth: &Berth, arguments: &[&str]) -> String {
    let out = command()
        .args(arguments)
        .current_dir(berth.folder())
        .env("BERTH_ADMIN_LISTEN", berth.admin.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{arguments:?}: {said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    said
}

#[test]
fn lines_of_a_plugin_are_shown_with_their_version_and_request() {
    let site = Site::new();
    let file = site.at("log.wasm");
    std::fs::write(&file, built("fixtures/log-handler")).unwrap();
    let grants = "grants = { log = true, settings = true }";
    let berth = site.start(&Manifest::new().handler_file("log", &file, grants));
    let answer = request(berth.address, "GET", "/log/x", &[("x-request-id", "of-ada")], b"");
    assert_eq!(answer.status, 200);
    let said = says(&berth, &["plugin", "logs", "log"]);
    assert!(
        said.contains("a request was handled path=/log/x line=1") && said.contains("of-ada"),
        "{said}"
    );
    let mut live = Operator::of(&berth).follow("/admin/plugins/log/logs?limit=0");
    assert_eq!(berth.get("/log/y").status, 200);
    let line = live.hears().unwrap();
    assert_eq!(line.name, "info");
    assert_eq!(line.data["source"], "guest");
    assert_eq!(line.data["version"], digest(&built("fixtures/log-handler")));
    assert!(
        line.data["message"].as_str().unwrap().contains("/log/y"),
        "{line:?}"
    );
}

/// A swap that nobody would notice has been made while the manifest on the disk is faulty: the operator still finds the
/// host.
#[test]
fn operator_finds_the_host_though_its_manifest_has_become_faulty() {
    let (site, manifest) = site(1);
    let berth = site.start(&manifest.raw("[reload]\nwatch = true"));
    let operator = Operator::of(&berth);
    site.replace("berth.toml", b"[nonsense]\n");
    operator.event(0, "", "manifest-refused");
    let said = says(&berth, &["plugin", "events"]);
    assert!(said.contains("nonsense"), "{said}");
    eventually("the host serves what it did", || {
        berth.get("/hello/Ada").text() == greeting(1, "Ada")
    });
}

/// Not even who has the token can have more held in memory.
#[test]
fn component_that_is_sent_is_refused_before_it_is_read_when_it_says_that_it_is_too_large() {
    let (site, manifest) = site(1);
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    let token = std::fs::read_to_string(berth.folder().join(".berth/admin.token")).unwrap();
    let mut connection = Connection::open(berth.admin);
    connection.send(format!(
        "POST /admin/plugins/hello/deploy HTTP/1.1\r\nhost: berth.test\r\nauthorization: Bearer {}\r\n\
         content-type: application/wasm\r\ncontent-length: {}\r\n\r\n",
        token.trim(),
        128 * 1024 * 1024 + 1
    ));
    is(&connection.response("POST").unwrap(), 413, "body-too-large");
    is(
        &operator.ask("POST", "/admin/plugins/hello/deploy", &[], b"x"),
        400,
        "invalid-request",
    );
    let again = another(&hello(1), 7);
    assert_eq!(operator.deploy("hello", "", &[], &again).status, 200);
    assert_eq!(operator.serves("hello"), digest(&again));
}
