//! While a component is compiled that takes long, an operator can go back to an earlier version, and switch plugins off.

use std::thread;
use std::time::Duration;

use berth_tests::berth::{Berth, Manifest, eventually};
use berth_tests::swaps::{Operator, Site, WATCH, built, compiled_for, digest, greeting, hello, slow, until};
use berth_tests::wire::is;
use serde_json::json;

/// So many that the compiler, which has as many threads as the machine has cores, is busy for some seconds.
fn functions() -> usize {
    5_000 * thread::available_parallelism().map_or(2, usize::from).min(16)
}

/// Two plugins that have had versions 1 and 2, and who deploys.
struct Case {
    site: Site,
    berth: Berth,
    operator: Operator,
}

impl Case {
    fn start(more: &str) -> Self {
        let site = Site::new();
        site.put("one.wasm", &hello(1));
        site.put("two.wasm", &hello(1));
        let berth = site.start(&Self::manifest(&site, more, ""));
        let operator = Operator::of(&berth);
        for plugin in ["one", "two"] {
            let answer = operator.deploy(plugin, "", &[], &hello(2));
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        let case = Self {
            site,
            berth,
            operator,
        };
        case.serves("one", 2);
        case.serves("two", 2);
        case
    }

    fn manifest(site: &Site, more: &str, of_two: &str) -> Manifest {
        Manifest::new()
            .raw(more)
            .handler_file("one", &site.at("one.wasm"), "")
            .handler_file("two", &site.at("two.wasm"), of_two)
    }

    #[track_caller]
    fn serves(&self, plugin: &str, version: u32) {
        let answer = self.berth.get(&format!("/{plugin}/Ada"));
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, greeting(version, "Ada").as_str())
        );
    }

    /// Wait until something is compiled that was not yet when this much had been.
    fn compiles(&self, before: Duration) {
        eventually("it is compiled", || {
            compiled_for(&self.berth) > before + Duration::from_millis(100)
        });
    }

    #[track_caller]
    fn does(&self, plugin: &str, what: &str) {
        let answer = self
            .operator
            .post(&format!("/admin/plugins/{plugin}/{what}"), &json!({}));
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    }
}

#[test]
fn nothing_urgent_waits_for_a_compiler_and_a_rollback_ends_the_deploy_before_it() {
    let case = Case::start("");
    let component = slow(&hello(3), functions());
    let before = (case.operator.last(), compiled_for(&case.berth));
    let deploying = {
        let (operator, component) = (case.operator.clone(), component.clone());
        thread::spawn(move || operator.deploy("one", "", &[], &component))
    };
    case.compiles(before.1);
    // Another plugin.
    case.does("two", "disable");
    is(&case.berth.get("/two/Ada"), 503, "plugin-disabled");
    case.does("two", "enable");
    case.serves("two", 2);
    case.does("two", "rollback");
    case.serves("two", 1);
    // The same.
    case.does("one", "disable");
    is(&case.berth.get("/one/Ada"), 503, "plugin-disabled");
    case.does("one", "enable");
    case.does("one", "rollback");
    case.serves("one", 1);
    assert!(
        !deploying.is_finished(),
        "all of that was done while it was compiled"
    );
    let answer = deploying.join().unwrap();
    is(&answer, 409, "conflict");
    assert!(
        answer.text().contains("before this version was ready the plugin"),
        "{}",
        answer.text()
    );
    case.serves("one", 1);
    assert_eq!(
        case.operator.kinds(before.0, "one"),
        ["disabled", "enabled", "rolled-back"]
    );
    // It comes from the cache now.
    let answer = case.operator.deploy("one", "", &[], &component);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["steps"]["cached"], true);
    case.serves("one", 3);
}

#[test]
fn rollback_while_the_file_is_compiled_holds_until_the_file_is_another_one() {
    let case = Case::start(WATCH);
    let before = (case.operator.last(), compiled_for(&case.berth));
    case.site.replace("one.wasm", &slow(&hello(3), functions()));
    case.compiles(before.1);
    case.does("one", "rollback");
    case.serves("one", 1);
    // Changes are made one after another, so when this one is, the file's turn is over.
    let answer = case.operator.deploy("two", "", &[], &hello(4));
    assert_eq!(answer.status, 200, "{}", answer.text());
    case.serves("one", 1);
    assert_eq!(case.operator.kinds(before.0, "one"), ["rolled-back"]);
    case.site.replace("one.wasm", &hello(5));
    case.operator.event(before.0, "one", "swapped");
    case.serves("one", 5);
}

#[test]
fn what_is_done_while_a_manifest_is_applied_counts() {
    let case = Case::start("");
    case.site.put("three.wasm", &slow(&hello(3), functions()));
    let before = (case.operator.last(), compiled_for(&case.berth));
    // It adds a plugin that takes long, and changes another one.
    let next = Case::manifest(&case.site, "", "limits = { wall = \"7s\" }").handler_file(
        "three",
        &case.site.at("three.wasm"),
        "",
    );
    case.site.replace("berth.toml", next.text().as_bytes());
    let applying = {
        let operator = case.operator.clone();
        thread::spawn(move || operator.post("/admin/reload", &json!({})))
    };
    case.compiles(before.1);
    case.does("two", "rollback");
    case.serves("two", 1);
    case.does("two", "disable");
    case.does("one", "disable");
    assert!(
        !applying.is_finished(),
        "all of that was done while it was compiled"
    );
    let answer = applying.join().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["added"], json!(["three"]));
    case.serves("three", 3);
    is(&case.berth.get("/two/Ada"), 503, "plugin-disabled");
    case.does("two", "enable");
    case.serves("two", 1);
    is(&case.berth.get("/one/Ada"), 503, "plugin-disabled");
    assert_eq!(case.operator.serves("two"), digest(&hello(1)));
    assert_eq!(case.operator.plugin("two")["limits"]["wallMs"], 7_000);
}

#[test]
fn what_a_trial_decides_while_a_newer_file_is_compiled_is_not_served_in_its_place() {
    let case = Case::start(WATCH);
    let answer = case
        .operator
        .deploy("one", "canary=100%25&promoteAfter=20", &[], &hello(3));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let before = (case.operator.last(), compiled_for(&case.berth));
    let file = slow(&hello(4), functions());
    case.site.replace("one.wasm", &file);
    case.compiles(before.1);
    // More than it needs.
    for _ in 0..40 {
        case.serves("one", 3);
    }
    let promoted = case.operator.event(before.0, "one", "promoted");
    let swapped = case.operator.event(before.0, "one", "swapped");
    assert!(promoted["seq"].as_u64() < swapped["seq"].as_u64(), "{swapped:#}");
    assert_eq!(swapped["to"], digest(&file), "{swapped:#}");
    case.serves("one", 4);
    assert_eq!(case.operator.kinds(before.0, "one"), ["promoted", "swapped"]);
}

#[test]
fn candidate_that_fails_is_taken_back_while_another_component_is_compiled() {
    let case = Case::start("");
    let answer = case
        .operator
        .deploy("two", "canary=100%25", &[], &built("fixtures/trap-before-head"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let before = (case.operator.last(), compiled_for(&case.berth));
    let deploying = {
        let (operator, component) = (case.operator.clone(), slow(&hello(3), functions()));
        thread::spawn(move || operator.deploy("one", "", &[], &component))
    };
    case.compiles(before.1);
    until(
        || format!("{:#?}", case.operator.plugin("two")),
        || (case.berth.get("/two/Ada").status == 200).then_some(()),
    );
    case.serves("two", 2);
    let event = case.operator.event(before.0, "two", "canary-failed");
    assert_eq!(event["from"], digest(&hello(2)), "{event:#}");
    assert!(!deploying.is_finished(), "that was decided while it was compiled");
    let answer = deploying.join().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    case.serves("one", 3);
}
