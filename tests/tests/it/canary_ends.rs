//! What ends a trial before its candidate is judged: operators, files, the manifest, a restart.

use berth_tests::behind::{Proxy, TRUSTED};
use berth_tests::berth::{Berth, Manifest, eventually};
use berth_tests::guest;
use berth_tests::swaps::{Operator, Site, WATCH, built, digest, hello, sha256, until};
use berth_tests::wire::is;
use serde_json::{Value, json};

use crate::canary::{greets, host, is_gone, sides, try_out};

const ASK: &str = "/x/status/200";
const HALF: &str = "canary=50%25";

fn act(operator: &Operator, action: &str) -> Value {
    let answer = operator.post(&format!("/admin/plugins/x/{action}"), &json!({}));
    assert_eq!(answer.status, 200, "{action}: {}", answer.text());
    answer.json()
}

/// The plugin `x` from a file of the site, followed.
fn followed(site: &Site, more: &str) -> (Berth, Operator, Manifest) {
    site.put("x.wasm", &built("hello"));
    let manifest = Manifest::new()
        .raw(WATCH)
        .raw(TRUSTED)
        .handler_file("x", &site.at("x.wasm"), more);
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    (berth, operator, manifest)
}

#[test]
fn operator_promotes() {
    let (berth, operator) = host("hello", "");
    let (candidate, before) = (built("fixtures/echo"), operator.last());
    try_out(&operator, HALF, &candidate);
    let event = act(&operator, "promote");
    assert_eq!(
        (&event["kind"], &event["by"]),
        (&json!("promoted"), &json!("deploy"))
    );
    assert_eq!(event["from"], digest(&built("hello")));
    assert_eq!(event["to"], digest(&candidate));
    assert_eq!(operator.kinds(before, "x"), ["canary-started", "promoted"]);
    let mut proxy = Proxy::of(berth.address);
    for caller in 0..20 {
        assert!(!greets(&proxy.get(caller, ASK)));
    }
    assert!(operator.plugin("x")["canary"].is_null());
    assert_eq!(act(&operator, "rollback")["kind"], "rolled-back");
    assert!(greets(&berth.get(ASK)));
}

#[test]
fn operator_takes_a_candidate_back_before_an_earlier_version() {
    let (berth, operator) = host("hello", "");
    assert_eq!(operator.deploy("x", "", &[], &hello(1)).status, 200);
    try_out(&operator, HALF, &hello(2));
    let event = act(&operator, "rollback");
    assert_eq!(event["kind"], "canary-withdrawn");
    assert_eq!(event["to"], digest(&hello(2)));
    assert_eq!(event["reason"], "an operator took it back");
    assert_eq!(berth.get("/x/Ada").text(), "V0001, Ada.\n");
    is_gone(&berth, &operator, &hello(2));
    assert_eq!(act(&operator, "rollback")["kind"], "rolled-back");
    assert_eq!(berth.get("/x/Ada").text(), "Hello, Ada.\n");
    // To a version by its name, whatever is tried meanwhile.
    try_out(&operator, HALF, &hello(3));
    let before = operator.last();
    let to = json!({ "to": &sha256(&hello(1))[..8] });
    assert_eq!(operator.post("/admin/plugins/x/rollback", &to).status, 200);
    assert_eq!(operator.kinds(before, "x"), ["canary-withdrawn", "rolled-back"]);
    assert_eq!(berth.get("/x/Ada").text(), "V0001, Ada.\n");
}

#[test]
fn nothing_to_promote_and_nothing_to_compare_with_are_conflicts() {
    let manifest = Manifest::new().raw(TRUSTED);
    let site = Site::new();
    let berth = site.start(&manifest.handler_file("x", &site.at("missing.wasm"), ""));
    let operator = Operator::of(&berth);
    let none = operator.post("/admin/plugins/x/promote", &json!({}));
    is(&none, 409, "conflict");
    assert_eq!(
        none.json()["detail"],
        "the plugin \"x\" has no candidate; deploy one with --canary"
    );
    let before = operator.last();
    let refused = operator.deploy("x", HALF, &[], &built("hello"));
    is(&refused, 409, "conflict");
    assert_eq!(
        refused.json()["detail"],
        "the plugin \"x\" serves nothing that a candidate could be compared with; deploy it without a canary"
    );
    assert_eq!(operator.kinds(before, "x"), [] as [String; 0]);
    is(&berth.get(ASK), 503, "plugin-unavailable");
    assert!(
        !site
            .at(&format!(".berth/plugins/x/{}.wasm", sha256(&built("hello"))))
            .exists()
    );
    assert_eq!(operator.deploy("x", "", &[], &built("hello")).status, 200);
    assert!(greets(&berth.get(ASK)));
}

#[test]
fn another_deploy_withdraws_the_candidate() {
    let (berth, operator) = host("hello", "");
    let mut proxy = Proxy::of(berth.address);
    for (query, component, kinds) in [
        ("", hello(1), vec!["canary-withdrawn", "swapped"]),
        (HALF, hello(2), vec!["canary-withdrawn", "canary-started"]),
        // What serves already.
        ("", hello(1), vec!["canary-withdrawn"]),
    ] {
        if operator.plugin("x")["canary"].is_null() {
            try_out(&operator, HALF, &built("fixtures/echo"));
        }
        let before = operator.last();
        assert_eq!(operator.deploy("x", query, &[], &component).status, 200);
        assert_eq!(operator.kinds(before, "x"), kinds);
        let withdrawn = operator.event(before, "x", "canary-withdrawn");
        assert!(
            withdrawn["reason"]
                .as_str()
                .is_some_and(|reason| reason.ends_with("was deployed")
                    || reason == "the current version was deployed again"),
            "{withdrawn}"
        );
        for caller in 0..20 {
            assert!(proxy.get(caller, ASK).text().ends_with(", 200.\n"));
        }
    }
    assert_eq!(operator.serves("x"), digest(&hello(1)));
    is_gone(&berth, &operator, &hello(2));
    is_gone(&berth, &operator, &built("fixtures/echo"));
}

#[test]
fn candidate_that_does_not_load_leaves_the_one_before_it_on_trial() {
    let (berth, operator) = host("hello", "");
    try_out(&operator, HALF, &built("fixtures/echo"));
    let mut proxy = Proxy::of(berth.address);
    let (candidates, others) = sides(&mut proxy, ASK, 1);
    let refused = operator.deploy("x", HALF, &[], b"no component");
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert!(!greets(&proxy.get(candidates[0], ASK)));
    assert!(greets(&proxy.get(others[0], ASK)));
    assert_eq!(
        operator.plugin("x")["canary"]["digest"],
        digest(&built("fixtures/echo"))
    );
    assert_eq!(berth.metric("berth_plugin_versions", &["x"]), 2.0);
}

#[test]
fn changed_file_wins_over_a_candidate() {
    let site = Site::new();
    let (berth, operator, _) = followed(&site, "");
    let candidate = built("fixtures/echo");
    try_out(&operator, HALF, &candidate);
    let before = operator.last();
    site.replace("x.wasm", &hello(7));
    let swapped = operator.event(before, "x", "swapped");
    assert_eq!(swapped["by"], "file");
    assert_eq!(operator.kinds(before, "x"), ["canary-withdrawn", "swapped"]);
    let withdrawn = operator.event(before, "x", "canary-withdrawn");
    assert_eq!(withdrawn["reason"], "the plugin's file has changed");
    let mut proxy = Proxy::of(berth.address);
    for caller in 0..20 {
        assert_eq!(proxy.get(caller, "/x/Ada").text(), "V0007, Ada.\n");
    }
    is_gone(&berth, &operator, &candidate);

    // Also if it becomes what is tried.
    try_out(&operator, HALF, &candidate);
    let before = operator.last();
    site.replace("x.wasm", &candidate);
    operator.event(before, "x", "swapped");
    assert_eq!(operator.kinds(before, "x"), ["canary-withdrawn", "swapped"]);
    assert_eq!(operator.serves("x"), digest(&candidate));
    let kept = site.at(&format!(".berth/plugins/x/{}.wasm", sha256(&candidate)));
    eventually("what serves is kept", || kept.exists());
}

#[test]
fn faulty_file_and_a_touch_are_nothing_to_a_trial() {
    let site = Site::new();
    let (berth, operator, _) = followed(&site, "");
    try_out(&operator, HALF, &built("fixtures/echo"));
    let mut proxy = Proxy::of(berth.address);
    let (candidates, others) = sides(&mut proxy, ASK, 1);
    let before = operator.last();
    site.replace("x.wasm", &built("hello"));
    site.replace("x.wasm", b"no component");
    operator.event(before, "x", "refused");
    assert_eq!(operator.kinds(before, "x"), ["refused"]);
    assert!(!greets(&proxy.get(candidates[0], ASK)));
    assert!(greets(&proxy.get(others[0], ASK)));
}

#[test]
fn manifest_that_changes_the_plugin_withdraws_its_candidate_and_any_other_does_not() {
    let site = Site::new();
    let (berth, operator, manifest) = followed(&site, "");
    try_out(&operator, HALF, &built("fixtures/echo"));
    let mut proxy = Proxy::of(berth.address);
    let (candidates, others) = sides(&mut proxy, ASK, 3);
    let before = operator.last();
    site.replace("berth.toml", manifest.clone().handler("hello").text().as_bytes());
    let applied = operator.event(before, "", "manifest-applied");
    assert_eq!(applied["added"], json!(["hello"]));
    assert_eq!(operator.kinds(before, "x"), [] as [String; 0]);
    for caller in &candidates {
        assert!(!greets(&proxy.get(*caller, ASK)));
    }
    for caller in &others {
        assert!(greets(&proxy.get(*caller, ASK)));
    }
    let asked = 2 * (candidates.len() + others.len()) as u64;
    until(
        || format!("all {asked} count: {}", operator.plugin("x")["canary"]),
        || {
            let canary = operator.plugin("x")["canary"].clone();
            let sides = [&canary["requests"], &canary["current"]["requests"]];
            let sum: u64 = sides.iter().filter_map(|n| n.as_u64()).sum();
            (sum == asked).then_some(())
        },
    );

    let before = operator.last();
    let text = manifest
        .text()
        .replace("[[routes]]", "limits = { concurrency = 9 }\n[[routes]]");
    site.replace("berth.toml", text.as_bytes());
    let applied = operator.event(before, "", "manifest-applied");
    assert_eq!(
        (&applied["changed"], &applied["removed"]),
        (&json!(["x"]), &json!(["hello"]))
    );
    let withdrawn = operator.event(before, "x", "canary-withdrawn");
    assert_eq!(withdrawn["reason"], "the manifest has changed");
    for caller in candidates {
        assert!(greets(&proxy.get(caller, ASK)));
    }
    is_gone(&berth, &operator, &built("fixtures/echo"));
}

#[test]
fn plugin_that_is_switched_off_and_on_goes_on_with_its_trial() {
    let (berth, operator) = host("hello", "");
    try_out(&operator, HALF, &built("fixtures/echo"));
    let mut proxy = Proxy::of(berth.address);
    let (candidates, others) = sides(&mut proxy, ASK, 2);
    let count = (candidates.len() + others.len()) as u64;
    act(&operator, "disable");
    for caller in candidates.iter().chain(&others) {
        is(&proxy.get(*caller, ASK), 503, "plugin-disabled");
    }
    assert_eq!(operator.plugin("x")["state"], "disabled");
    act(&operator, "enable");
    for caller in &candidates {
        assert!(!greets(&proxy.get(*caller, ASK)));
    }
    for caller in &others {
        assert!(greets(&proxy.get(*caller, ASK)));
    }
    let canary = || operator.plugin("x")["canary"].clone();
    let sides =
        |canary: &Value| [&canary["requests"], &canary["current"]["requests"]].map(|n| n.as_u64().unwrap());
    until(
        || format!("{count} requests twice: {}", canary()),
        || (sides(&canary()).iter().sum::<u64>() == 2 * count).then_some(()),
    );
    assert_eq!(canary()["failed"], 0, "who was sent away has not failed");
    // What is promoted while it is off is there when it is on again.
    act(&operator, "disable");
    act(&operator, "promote");
    is(&proxy.get(candidates[0], ASK), 503, "plugin-disabled");
    act(&operator, "enable");
    assert!(!greets(&proxy.get(others[0], ASK)));
}

#[test]
fn trial_does_not_outlive_a_restart_and_that_is_said() {
    let site = Site::new();
    site.put("x.wasm", &built("hello"));
    let manifest = Manifest::new()
        .raw(TRUSTED)
        .handler_file("x", &site.at("x.wasm"), "");
    let candidate = built("fixtures/echo");
    let kept = site.at(&format!(".berth/plugins/x/{}.wasm", sha256(&candidate)));
    let mut berth = site.start(&manifest);
    for is_clean in [true, false] {
        let operator = Operator::of(&berth);
        try_out(&operator, HALF, &candidate);
        assert!(kept.exists());
        sides(&mut Proxy::of(berth.address), ASK, 1);
        match is_clean {
            true => berth.stop(),
            // As the kernel would.
            false => drop(berth),
        }
        berth = site.start(&manifest);
        let operator = Operator::of(&berth);
        let event = operator.event(0, "x", "canary-withdrawn");
        assert_eq!(event["to"], digest(&candidate));
        assert_eq!(event["from"], digest(&built("hello")));
        assert_eq!(
            event["reason"],
            "berth was started again, and a trial doesn't outlive that"
        );
        let mut proxy = Proxy::of(berth.address);
        for caller in 0..20 {
            assert!(greets(&proxy.get(caller, ASK)));
        }
        is_gone(&berth, &operator, &candidate);
    }
    // It is said once.
    let berth = site.restart(berth, &manifest);
    let operator = Operator::of(&berth);
    assert_eq!(operator.serves("x"), digest(&built("hello")));
    try_out(&operator, HALF, &candidate);
    act(&operator, "promote");
    assert_eq!(operator.kinds(0, "x"), ["canary-started", "promoted"]);
    let berth = site.restart(berth, &manifest);
    let operator = Operator::of(&berth);
    assert_eq!(operator.serves("x"), digest(&candidate));
    assert_eq!(berth.get(ASK).text(), "status 200\n");
    assert_eq!(operator.kinds(0, "x"), [] as [String; 0]);
}

#[test]
fn candidate_takes_its_own_grants_from_the_manifest_like_any_version() {
    let manifest = Manifest::new()
        .raw(TRUSTED)
        .handler_file("x", &guest("hello"), "");
    let berth = manifest.start();
    let operator = Operator::of(&berth);
    let before = operator.last();
    // It asks for `log`, which isn't granted.
    let refused = operator.deploy("x", HALF, &[], &built("fixtures/log-handler"));
    assert_eq!(refused.status, 422, "{}", refused.text());
    assert_eq!(operator.kinds(before, "x"), ["refused"]);
    assert!(operator.plugin("x")["canary"].is_null());
    assert!(greets(&berth.get(ASK)));
}
