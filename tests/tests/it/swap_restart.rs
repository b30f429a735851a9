//! What serves after a restart: the last act wins, an operator's or that of whoever changed the file; and what can't be
//! served replaces nothing that could.

use std::fs;
use std::os::unix::fs::MetadataExt;

use berth_tests::berth::{Berth, Manifest};
use berth_tests::components::handler_at_start;
use berth_tests::swaps::{Operator, Site, WATCH, digest, greeting, hello, sha256, until};
use berth_tests::wire::is;
use serde_json::{Value, json};

use crate::swap_served::FILE;

/// A folder with the plugin `hello` at its version 1, and a manifest for it.
fn home(more: &str) -> (Site, Manifest) {
    let site = Site::new();
    site.put(FILE, &hello(1));
    let manifest = Manifest::new()
        .raw(more)
        .handler_file("hello", &site.at(FILE), "");
    (site, manifest)
}

#[track_caller]
fn serves(berth: &Berth, number: u32) {
    let answer = berth.get("/hello/Ada");
    assert_eq!(
        (answer.status, answer.text()),
        (200, greeting(number, "Ada")),
        "version {number}"
    );
    assert_eq!(berth.get("/health").json()["status"], "healthy");
}

#[track_caller]
fn deploys(operator: &Operator, number: u32) {
    let answer = operator.deploy("hello", "", &[], &hello(number));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let event = answer.json();
    assert_eq!(
        (&event["kind"], &event["by"], &event["to"]),
        (
            &json!("swapped"),
            &json!("deploy"),
            &json!(digest(&hello(number)))
        ),
        "{event:#}"
    );
}

/// What the last start said of the plugin at this level.
fn said(site: &Site, level: &str) -> Vec<Value> {
    let mut lines = site.log();
    lines.retain(|line| line["plugin"] == "hello" && line["level"] == level);
    lines
}

/// One line at this level, with these words, and none that is worse.
#[track_caller]
fn said_once(site: &Site, level: &str, words: &[&str]) -> Value {
    // The log has a thread of its own.
    until(
        || format!("nothing is said: {:#?}", site.log()),
        || (!said(site, level).is_empty()).then_some(()),
    );
    let lines = said(site, level);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    let message = lines[0]["message"].as_str().unwrap();
    for part in words {
        assert!(message.contains(part), "{message:?} says {part:?}");
    }
    if level == "WARN" {
        assert_eq!(said(site, "ERROR"), [Value::Null; 0]);
    }
    lines[0].clone()
}

/// A start with a file that can't be served: what served last serves, and the fault is one event and one line, and no
/// more until the end.
#[track_caller]
fn serves_what_served_last(site: &Site, manifest: &Manifest, number: u32, (code, says): (&str, &str)) {
    let berth = site.start(manifest);
    serves(&berth, number);
    let operator = Operator::of(&berth);
    let event = operator.event(0, "hello", "refused");
    assert_eq!(
        (&event["code"], &event["from"]),
        (&json!(code), &json!(digest(&hello(number)))),
        "{event:#}"
    );
    assert_eq!(operator.plugin("hello")["lastEvent"]["seq"], event["seq"]);
    berth.logged("that it is a kept version", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["plugin"] == "hello"
            && message.contains("a kept version is served: ")
            && message.contains("served last")
    });
    berth.stop();
    said_once(site, "ERROR", &[says, "serves on"]);
    assert_eq!(said(site, "WARN"), [Value::Null; 0]);
}

#[track_caller]
fn nothing_was_wrong(site: &Site) {
    for level in ["WARN", "ERROR"] {
        assert_eq!(said(site, level), [Value::Null; 0]);
    }
}

#[test]
fn deployed_version_serves_on_as_long_as_the_file_is_the_same() {
    let (site, manifest) = home("");
    let berth = site.start(&manifest);
    serves(&berth, 1);
    deploys(&Operator::of(&berth), 2);
    serves(&berth, 2);
    let berth = site.restart(berth, &manifest);
    serves(&berth, 2);
    berth.logged("why it isn't the file", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        line["plugin"] == "hello"
            && message.contains("an operator chose it, and the file has not changed since")
    });
    nothing_was_wrong(&site);
    // Another inode and another time, the same bytes.
    let file = fs::metadata(site.at(FILE)).unwrap();
    site.replace(FILE, &hello(1));
    assert_ne!(fs::metadata(site.at(FILE)).unwrap().ino(), file.ino());
    let berth = site.restart(berth, &manifest);
    serves(&berth, 2);
    // Until the file does change.
    let operator = Operator::of(&berth);
    assert_eq!(operator.serves("hello"), digest(&hello(2)));
    berth.stop();
    site.replace(FILE, &hello(3));
    let berth = site.start(&manifest);
    serves(&berth, 3);
    nothing_was_wrong(&site);
}

/// Whoever was told that it is done has it, also if the host is killed the moment after.
#[test]
fn deploy_that_was_answered_survives_a_kill() {
    let (site, manifest) = home("");
    let mut berth = site.start(&manifest);
    deploys(&Operator::of(&berth), 2);
    berth.signal("KILL");
    berth.wait();
    let berth = site.start(&manifest);
    serves(&berth, 2);
    nothing_was_wrong(&site);
}

#[test]
fn file_that_was_changed_while_the_host_was_down_serves() {
    let (site, manifest) = home("");
    let berth = site.start(&manifest);
    deploys(&Operator::of(&berth), 2);
    berth.stop();
    site.replace(FILE, &hello(3));
    let berth = site.start(&manifest);
    serves(&berth, 3);
    // The choice has ended: it doesn't come back with the old file.
    berth.stop();
    site.replace(FILE, &hello(1));
    let berth = site.start(&manifest);
    serves(&berth, 1);
    nothing_was_wrong(&site);
}

/// A file that is saved after a deploy wins over it at once, and over a restart.
#[test]
fn file_that_is_saved_after_a_deploy_serves() {
    let (site, manifest) = home(WATCH);
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    deploys(&operator, 2);
    let before = operator.last();
    site.replace(FILE, &hello(3));
    operator.event(before, "hello", "swapped");
    serves(&berth, 3);
    let berth = site.restart(berth, &manifest);
    serves(&berth, 3);
}

/// It was broken while nobody looked. Whether files are watched makes no difference.
#[test]
fn file_that_is_broken_at_a_start_does_not_replace_what_served_last() {
    for more in ["", WATCH] {
        let (site, manifest) = home(more);
        site.start(&manifest).stop();
        site.replace(FILE, b"no component");
        let not_wasm = ("not-wasm", "is not WebAssembly");
        serves_what_served_last(&site, &manifest, 1, not_wasm);
        // Once more, as long as it is broken.
        serves_what_served_last(&site, &manifest, 1, not_wasm);
        site.replace(FILE, &hello(2));
        let berth = site.start(&manifest);
        serves(&berth, 2);
        berth.stop();
        nothing_was_wrong(&site);
    }
}

#[test]
fn file_that_is_gone_at_a_start_does_not_replace_what_served_last() {
    let (site, manifest) = home(WATCH);
    site.start(&manifest).stop();
    fs::remove_file(site.at(FILE)).unwrap();
    let missing = ("unreadable", "there is no such file; build the component");
    serves_what_served_last(&site, &manifest, 1, missing);
    let berth = site.start(&manifest);
    site.put(FILE, &hello(2));
    Operator::of(&berth).event(0, "hello", "swapped");
    serves(&berth, 2);
}

/// It compiles and fits, and no instance of it can be made.
#[test]
fn file_that_cannot_be_started_does_not_replace_what_served_last() {
    let (site, manifest) = home("");
    site.start(&manifest).stop();
    site.replace(FILE, &handler_at_start("unreachable"));
    let trap = ("start-failed", "can't be started (unreachable)");
    serves_what_served_last(&site, &manifest, 1, trap);
    serves_what_served_last(&site, &manifest, 1, trap);
}

/// What an operator chose is what served last.
#[test]
fn deployed_version_serves_on_when_the_file_is_broken() {
    let (site, manifest) = home("");
    let berth = site.start(&manifest);
    deploys(&Operator::of(&berth), 2);
    berth.stop();
    site.replace(FILE, b"no component");
    serves_what_served_last(&site, &manifest, 2, ("not-wasm", "is not WebAssembly"));
}

#[test]
fn plugin_without_anything_that_can_be_served_recovers_with_its_file() {
    let (site, manifest) = home(WATCH);
    site.replace(FILE, b"no component");
    let berth = site.start(&manifest);
    is(&berth.get("/hello/Ada"), 503, "plugin-unavailable");
    said_once(
        &site,
        "ERROR",
        &["can't be loaded, its routes answer 503", "is not WebAssembly"],
    );
    let operator = Operator::of(&berth);
    assert_eq!(operator.health("hello")["code"], "not-wasm");
    site.replace(FILE, b"still no component");
    let event = operator.event(0, "hello", "refused");
    assert!(event["from"].is_null(), "{event:#}");
    assert_eq!(
        event["to"],
        digest(b"still no component"),
        "what was told at the start is not told again"
    );
    site.replace(FILE, &hello(1));
    let event = operator.event(0, "hello", "swapped");
    assert!(event["from"].is_null(), "{event:#}");
    serves(&berth, 1);
}

#[test]
fn damaged_kept_version_is_told_and_the_file_serves() {
    let (site, manifest) = home("");
    let kept = site.at(&format!(".berth/plugins/hello/{}.wasm", sha256(&hello(2))));
    let damages: [(&str, &dyn Fn()); 3] = [
        ("another one", &|| fs::write(&kept, hello(3)).unwrap()),
        ("cut off", &|| {
            let file = fs::File::options().write(true).open(&kept).unwrap();
            file.set_len(1000).unwrap();
        }),
        ("gone", &|| fs::remove_file(&kept).unwrap()),
    ];
    for (what, damage) in damages {
        let berth = site.start(&manifest);
        deploys(&Operator::of(&berth), 2);
        berth.stop();
        damage();
        let berth = site.start(&manifest);
        serves(&berth, 1);
        let line = said_once(
            &site,
            "WARN",
            &["is kept and can't be served, so the file is", "deploy"],
        );
        let message = line["message"].as_str().unwrap();
        assert!(message.contains(&digest(&hello(2))), "{what}: {message}");
        // It is told once: the file was chosen by that.
        let berth = site.restart(berth, &manifest);
        serves(&berth, 1);
        nothing_was_wrong(&site);
        berth.stop();
    }
}

#[test]
fn damaged_state_is_told_and_the_file_serves() {
    let (site, manifest) = home("");
    let berth = site.start(&manifest);
    deploys(&Operator::of(&berth), 2);
    berth.stop();
    site.put(".berth/plugins/hello/state.json", b"{\"format\": 1, \"vers");
    let berth = site.start(&manifest);
    serves(&berth, 1);
    let warnings = said(&site, "WARN");
    assert!(!warnings.is_empty());
    for line in &warnings {
        let message = line["message"].as_str().unwrap();
        assert!(message.contains("its file is served"), "{message}");
    }
    let berth = site.restart(berth, &manifest);
    serves(&berth, 1);
    nothing_was_wrong(&site);
}

#[test]
fn plugin_that_was_switched_off_stays_off() {
    let (site, manifest) = home(WATCH);
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    assert_eq!(
        operator.post("/admin/plugins/hello/disable", &json!({})).status,
        200
    );
    is(&berth.get("/hello/Ada"), 503, "plugin-disabled");
    let berth = site.restart(berth, &manifest);
    is(&berth.get("/hello/Ada"), 503, "plugin-disabled");
    let operator = Operator::of(&berth);
    assert_eq!(operator.health("hello")["state"], "disabled");
    // Another version doesn't switch it on.
    site.replace(FILE, &hello(2));
    operator.event(0, "hello", "swapped");
    is(&berth.get("/hello/Ada"), 503, "plugin-disabled");
    let berth = site.restart(berth, &manifest);
    is(&berth.get("/hello/Ada"), 503, "plugin-disabled");
    let operator = Operator::of(&berth);
    assert_eq!(
        operator.post("/admin/plugins/hello/enable", &json!({})).status,
        200
    );
    serves(&berth, 2);
    let berth = site.restart(berth, &manifest);
    serves(&berth, 2);
}

#[test]
fn rollback_survives_and_can_be_undone_after_a_restart() {
    let (site, manifest) = home(WATCH);
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    site.replace(FILE, &hello(2));
    operator.event(0, "hello", "swapped");
    let roll_back = |operator: &Operator, body: Value| {
        let answer = operator.post("/admin/plugins/hello/rollback", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["kind"], "rolled-back", "{}", answer.text());
    };
    roll_back(&operator, json!({}));
    serves(&berth, 1);
    let berth = site.restart(berth, &manifest);
    serves(&berth, 1);
    nothing_was_wrong(&site);
    roll_back(&Operator::of(&berth), json!({ "to": &digest(&hello(2))[..6] }));
    serves(&berth, 2);
    let berth = site.restart(berth, &manifest);
    serves(&berth, 2);
    // The file is still the one that it was, and the next one counts.
    site.replace(FILE, &hello(3));
    Operator::of(&berth).event(0, "hello", "swapped");
    serves(&berth, 3);
}

/// What a host began to serve with is kept even if its file is another one before all of that is written.
#[test]
fn version_that_is_replaced_right_after_the_first_start_can_be_gone_back_to() {
    const PLUGINS: usize = 60;
    let site = Site::new();
    let file = |number: usize| format!("c{number}.wasm");
    let manifest = (0..PLUGINS).fold(Manifest::new().raw(WATCH), |manifest, number| {
        site.put(&file(number), &hello(1));
        manifest.handler_file(&format!("p{number}"), &site.at(&file(number)), "")
    });
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    let last = PLUGINS - 1;
    site.replace(&file(last), &hello(2));
    let plugin = format!("p{last}");
    operator.event(0, &plugin, "swapped");
    let answer = operator.post(&format!("/admin/plugins/{plugin}/rollback"), &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["to"], digest(&hello(1)), "{}", answer.text());
    assert_eq!(berth.get(&format!("/{plugin}/Ada")).text(), greeting(1, "Ada"));
}

/// Versions that were saved are there for a rollback after a restart as well, as many as `keep` says.
#[test]
fn versions_are_kept_over_a_restart_as_many_as_the_manifest_says() {
    let (site, manifest) = home("[reload]\nwatch = true\nkeep = 2");
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    for number in 2..5 {
        let before = operator.last();
        site.replace(FILE, &hello(number));
        operator.event(before, "hello", "swapped");
    }
    let berth = site.restart(berth, &manifest);
    let operator = Operator::of(&berth);
    let versions = operator.plugin("hello")["versions"].clone();
    let digests: Vec<&str> = versions
        .as_array()
        .unwrap()
        .iter()
        .map(|version| version["digest"].as_str().unwrap())
        .collect();
    let wanted: Vec<String> = [4, 3, 2].map(|number| sha256(&hello(number))).to_vec();
    assert_eq!(digests, wanted);
    let answer = operator.post(
        "/admin/plugins/hello/rollback",
        &json!({ "to": sha256(&hello(1)) }),
    );
    assert_eq!(answer.status, 409, "{}", answer.text());
    serves(&berth, 4);
    let answer = operator.post(
        "/admin/plugins/hello/rollback",
        &json!({ "to": sha256(&hello(2)) }),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    serves(&berth, 2);
}
