//! A changed manifest that is faulty changes nothing and says everything; one that needs a restart says for what.

use std::fs::OpenOptions;
use std::io::Write;

use berth_tests::berth::Manifest;
use berth_tests::guest;
use berth_tests::swaps::{Caller, Site, WATCH, built, digest, greeting, hello};
use berth_tests::wire::is;
use serde_json::{Value, json};

use crate::manifest_reload::{Running, Told};

/// What a manifest of 1 is the line of.
fn line_of(text: &str, part: &str) -> usize {
    let at = text.lines().position(|line| line.contains(part));
    at.unwrap_or_else(|| panic!("{part:?} is in {text}")) + 1
}

fn served() -> Manifest {
    Manifest::new().handler("hello")
}

#[test]
fn every_fault_of_a_manifest_is_told_in_one_event_with_its_line() {
    for told in [Told::Watch, Told::Post, Told::Hangup] {
        let running = Running::start(told, &served());
        let caller = Caller::start(running.berth.address, "/hello/Ada");
        let faulty = served().raw(
            "[plugins.other]\ncomponent = \"other.wasm\"\nlimitz = 1\n\
             [limits]\ncpu = \"soon\"\n\
             [nonsense]\n\
             [[routes]]\npath = \"nowhere\"\nplugin = \"nobody\"\naccess = \"public\"\n",
        );
        let faults = running.refuse(&faulty);
        let text = std::fs::read_to_string(running.site.at("berth.toml")).unwrap();
        for (key, part) in [
            ("plugins.other.limitz", "limitz"),
            ("limits.cpu", "soon"),
            ("nonsense", "[nonsense]"),
            ("routes", "nowhere"),
            ("routes", "nobody"),
        ] {
            let place = format!("berth.toml:{}:", line_of(&text, part));
            let found = faults.iter().find(|fault| fault.contains(&place));
            let found = found.unwrap_or_else(|| panic!("{told:?}: {place} in {faults:#?}"));
            assert!(found.contains(key), "{found}");
        }
        let broken = running.refuse(&served().raw("[plugins.\nx = 1\n"));
        assert!(broken[0].contains("berth.toml:"), "{broken:?}");
        caller.stop().only(&["Hello, Ada.\n"]);
        assert_eq!(running.generation(), 1.0);
    }
}

#[test]
fn every_plugin_that_cannot_be_had_is_told_in_one_event_with_its_line() {
    let site = Site::new();
    site.put("bad.wasm", b"no component");
    let running = Running::start_in(
        &site,
        Told::Post,
        &served().handler_with("fixtures/counter", "reuse = \"serial\""),
    );
    assert_eq!(running.berth.get("/counter/x").text(), "1\n");
    running
        .berth
        .metric_becomes("berth_instances_idle", &[], |n| n == 1.0);
    let faulty = Manifest::new()
        // Another component for one that serves.
        .handler_file("hello", &guest("fixtures/log-handler"), "")
        .handler_with("fixtures/counter", "reuse = \"serial\"")
        .handler_file("missing", &site.at("missing.wasm"), "")
        .handler_file("bad", &site.at("bad.wasm"), "")
        .handler_file("starts-never", &guest("fixtures/spin-start"), "")
        .handler_file("large", &guest("hello"), "limits = { memory = \"512MiB\" }")
        .handler_file(
            "stored",
            &guest("hello"),
            "grants = { sql = [\"stored\"], sessions = true, tokens = true }",
        );
    let faults = running.refuse(&faulty);
    let text = std::fs::read_to_string(site.at("berth.toml")).unwrap();
    let place = |part: &str| format!("berth.toml:{}:", line_of(&text, part));
    let expected = [
        (place("[plugins.hello]"), "plugins.hello: "),
        (place("[plugins.missing]"), "plugins.missing: "),
        (place("[plugins.bad]"), "plugins.bad: "),
        (place("[plugins.starts-never]"), "plugins.starts-never: "),
        (
            place("512MiB"),
            "plugins.large.limits.memory: this host was started with room for 64.0 MiB per instance; restart berth to use it",
        ),
        (
            place("stored\"]"),
            "plugins.stored.grants.sql: this host was started without a database; restart berth to use it",
        ),
        (
            place("stored\"]"),
            "plugins.stored.grants.sessions: this host was started without accounts; restart berth to use it",
        ),
        (
            place("stored\"]"),
            "plugins.stored.grants.tokens: this host was started without keys to sign with; restart berth to use it",
        ),
    ];
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
    for (fault, (place, text)) in faults.iter().zip(&expected) {
        assert!(
            fault.contains(place) && fault.contains(text),
            "{fault}\nis not {place} {text}"
        );
    }
    // Nothing was changed: not what serves, not its instances, not what is counted.
    assert_eq!(running.berth.get("/hello/Ada").text(), "Hello, Ada.\n");
    assert_eq!(running.berth.get("/counter/x").text(), "2\n");
    is(&running.berth.get("/large/Ada"), 404, "not-found");
    let version = |digest: &str| {
        let families = running.berth.metrics();
        families
            .iter()
            .flat_map(|family| &family.samples)
            .any(|sample| sample.label("version") == Some(digest))
    };
    assert!(version(&digest(&built("hello"))));
    assert!(
        !version(&digest(&built("fixtures/log-handler"))),
        "what never served is not counted"
    );
    for plugin in ["hello", "counter"] {
        assert_eq!(running.berth.metric("berth_plugin_versions", &[plugin]), 1.0);
    }
    // Who asked is told the same.
    let answer = running.operator.post("/admin/reload", &json!({}));
    is(&answer, 422, "manifest-refused");
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.starts_with("the changed manifest is faulty, nothing was changed: "),
        "{detail}"
    );
    for name in ["missing", "bad", "large", "stored"] {
        assert!(detail.contains(&format!("plugins.{name}")), "{name} in {detail}");
    }
}

#[test]
fn refused_manifest_is_tried_again_when_its_components_are_there() {
    let site = Site::new();
    let running = Running::start_in(&site, Told::Watch, &served());
    let wanted = served()
        .handler_file("one", &site.at("one.wasm"), "")
        .handler_file("two", &site.at("two.wasm"), "");
    let faults = running.refuse(&wanted);
    assert_eq!(faults.len(), 2, "{faults:?}");
    let before = running.operator.last();
    site.put("one.wasm", &hello(1));
    let event = running.operator.event(before, "", "manifest-refused");
    let left = event["faults"].as_array().unwrap();
    assert!(
        left.len() == 1 && left[0].as_str().unwrap().contains("plugins.two"),
        "{event}"
    );
    is(&running.berth.get("/one/Ada"), 404, "not-found");
    site.put("two.wasm", &hello(2));
    let event = running.operator.event(before, "", "manifest-applied");
    assert_eq!(event["added"], json!(["one", "two"]));
    assert_eq!(running.berth.get("/one/Ada").text(), greeting(1, "Ada"));
    assert_eq!(running.berth.get("/two/Ada").text(), greeting(2, "Ada"));
    // From now on they are followed like any other.
    let before = running.operator.last();
    site.replace("two.wasm", &hello(3));
    running.operator.event(before, "two", "swapped");
    assert_eq!(running.berth.get("/two/Ada").text(), greeting(3, "Ada"));
}

#[test]
fn refused_manifest_that_is_taken_back_is_forgotten() {
    let site = Site::new();
    let running = Running::start_in(&site, Told::Watch, &served());
    let text = std::fs::read_to_string(site.at("berth.toml")).unwrap();
    running.refuse(&served().handler_file("one", &site.at("one.wasm"), ""));
    site.replace("berth.toml", text.as_bytes());
    // Something to wait for: it is read after the manifest is.
    let before = running.operator.last();
    running.operator.post("/admin/reload", &json!({}));
    site.put("one.wasm", &hello(1));
    running.apply(&served().handler("fixtures/echo"));
    let kinds: Vec<Value> = running
        .operator
        .since(before)
        .into_iter()
        .map(|event| event["kind"].clone())
        .collect();
    assert_eq!(kinds, ["manifest-applied"]);
    is(&running.berth.get("/one/Ada"), 404, "not-found");
}

#[test]
fn half_a_manifest_is_never_in_force() {
    let running = Running::start(Told::Watch, &served());
    let caller = Caller::start(running.berth.address, "/hello/Ada");
    // Cut anywhere in the middle it is another manifest, and some of those are good ones.
    let text = Manifest::new()
        .raw(WATCH)
        .handler("fixtures/echo")
        .raw(served().text())
        .text()
        .to_owned();
    let before = running.operator.last();
    let mut file = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(running.site.at("berth.toml"))
        .unwrap();
    for piece in text.as_bytes().chunks(16) {
        file.write_all(piece).unwrap();
        file.flush().unwrap();
    }
    drop(file);
    running.operator.event(before, "", "manifest-applied");
    let kinds: Vec<Value> = running
        .operator
        .since(before)
        .into_iter()
        .map(|event| event["kind"].clone())
        .collect();
    assert_eq!(
        kinds,
        ["manifest-applied"],
        "{:#?}",
        running.operator.since(before)
    );
    caller.stop().only(&["Hello, Ada.\n"]);
    assert_eq!(running.berth.get("/echo/status/200").status, 200);
}

#[test]
fn fault_that_stays_is_told_once_to_the_log_and_another_one_again() {
    let running = Running::start(Told::Watch, &served());
    let before = running.operator.last();
    let faulty = |what: &str| {
        let text = Manifest::new().raw(WATCH).raw(served().text()).raw(what);
        running.site.replace("berth.toml", text.text().as_bytes());
    };
    faulty("[nonsense]");
    running.operator.event(before, "", "manifest-refused");
    faulty("[nonsense]\n# the same fault at the same place");
    faulty("[nonsense]\n[gibberish]");
    let told = || -> Vec<Value> {
        let events = running.operator.since(before).into_iter();
        events
            .filter(|event| event["kind"] == "manifest-refused")
            .collect()
    };
    berth_tests::swaps::until(|| format!("{:#?}", told()), || (told().len() >= 2).then_some(()));
    let told = told();
    assert_eq!(told.len(), 2, "{told:#?}");
    assert_eq!(told[1]["faults"].as_array().unwrap().len(), 2, "{told:#?}");
    running.berth.logged("the fault", |line| {
        line["event"] == "manifest-refused"
            && line["message"]
                .as_str()
                .is_some_and(|message| message.contains("gibberish"))
    });
}

#[test]
fn sections_that_need_a_restart_are_named_once_and_the_rest_takes_effect() {
    let running = Running::start(Told::Post, &served());
    let next = Manifest::new()
        .raw(
            "[http]\nheader_time = \"7s\"\nbody_bytes = \"2MiB\"\n[http.cors]\norigins = [\"https://app.example.com\"]\n\
             [limits]\ninstances = 99\ntotal_memory = \"1GiB\"\nconcurrency = 3\n\
             [postgres]\nconnections = 3\nidle_connections = 2\n\
             [identity]\naudit_days = 3\n\
             [tokens]\naudience = \"others\"\naccess_life = \"1h\"\n\
             [passwords]\nconcurrency = 7\n\
             [telemetry]\notlp = \"http://127.0.0.1:1\"\n\
             [data]\ndir = \"elsewhere\"\n\
             [reload]\nwatch = true\nkeep = 3\n",
        )
        .handler_with("hello", "log = \"trace\"")
        .handler("fixtures/echo");
    let event = running.apply(&next);
    assert_eq!(
        event["needsRestart"],
        json!([
            "http",
            "limits",
            "data",
            "postgres",
            "identity",
            "tokens",
            "passwords",
            "telemetry",
            "reload",
            "plugins.*.log"
        ])
    );
    assert_eq!(
        (&event["added"], &event["changed"]),
        (&json!(["echo"]), &json!(["hello"]))
    );
    assert_eq!(running.berth.get("/echo/status/200").status, 200);
    assert_eq!(running.berth.metric("berth_instances_max", &[]), 256.0);
    let limits = running.operator.plugin("echo")["limits"].clone();
    assert_eq!(
        limits["concurrency"], 3,
        "the defaults of plugins are plugins' limits"
    );
    running.berth.logged("the sections", |line| {
        line["event"] == "manifest-applied"
            && line["needs_restart"]
                .as_str()
                .is_some_and(|names| names.starts_with("http, limits, data, "))
    });
    // They are named until they are what the host was started with.
    let event = running.apply(
        &Manifest::new()
            .raw("[http]\nheader_time = \"7s\"\n")
            .handler("hello"),
    );
    assert_eq!(event["needsRestart"], json!(["http"]));
    let event = running.apply(&served().handler("fixtures/echo"));
    assert!(event["needsRestart"].is_null(), "{event}");
    // How many versions are kept is not among them.
    let event = running.apply(&served().raw("[reload]\nkeep = 1"));
    assert!(event["needsRestart"].is_null(), "{event}");
    for number in 1..=3 {
        assert_eq!(
            running.operator.deploy("hello", "", &[], &hello(number)).status,
            200
        );
    }
    assert_eq!(
        running.operator.plugin("hello")["versions"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn operators_client_says_what_a_manifest_has_changed() {
    let running = Running::start(Told::Post, &served());
    running.apply(
        &served()
            .handler("fixtures/echo")
            .raw("[http]\nheader_time = \"7s\"\n"),
    );
    running.refuse(&served().raw("[nonsense]"));
    let said = crate::canary::plugin(&running.berth, &["events"]);
    let [refused, applied] = said.lines().take(2).collect::<Vec<_>>()[..] else {
        panic!("{said}")
    };
    assert!(
        applied.ends_with("the manifest was applied: added echo; to take effect at the next start: http"),
        "{said}"
    );
    assert!(
        refused.contains("the manifest was refused, and nothing was changed: ")
            && refused.contains("nonsense"),
        "{said}"
    );
}
