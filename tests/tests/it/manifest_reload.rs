//! The manifest changes while the host serves: one new generation of plugins and routes, or none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use berth_tests::berth::{Berth, Manifest, command, eventually};
use berth_tests::guest;
use berth_tests::swaps::{Caller, Operator, Site, WATCH, digest, greeting, hello, until};
use berth_tests::wire::{Connection, Response, head, is, request, request_as};
use serde_json::{Value, json};

use crate::callers::{key_file, now, token_until};

/// How a host is told that its manifest is another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Told {
    Watch,
    Post,
    Hangup,
}

/// A host at a site, by the manifest of the moment.
pub(crate) struct Running {
    pub(crate) site: Site,
    pub(crate) berth: Berth,
    pub(crate) operator: Operator,
    told: Told,
}

impl Running {
    pub(crate) fn start(told: Told, manifest: &Manifest) -> Self {
        Self::start_in(&Site::new(), told, manifest)
    }

    pub(crate) fn start_in(site: &Site, told: Told, manifest: &Manifest) -> Self {
        Self::start_by(site, told, manifest, &[])
    }

    fn start_by(site: &Site, told: Told, manifest: &Manifest, environment: &[(&str, &str)]) -> Self {
        let mut program = command();
        program.envs(environment.iter().copied());
        let berth = site.start_by(program, &watched(told, manifest));
        Self {
            site: site.clone(),
            operator: Operator::of(&berth),
            berth,
            told,
        }
    }

    /// Another manifest. The number of the event before it.
    fn write(&self, manifest: &Manifest) -> u64 {
        let before = self.operator.last();
        self.site
            .replace("berth.toml", watched(self.told, manifest).text().as_bytes());
        match self.told {
            Told::Watch => {}
            Told::Post => _ = self.operator.post("/admin/reload", &json!({})),
            Told::Hangup => self.berth.signal("HUP"),
        }
        before
    }

    /// Another manifest, which must come into force.
    #[track_caller]
    pub(crate) fn apply(&self, manifest: &Manifest) -> Value {
        let generation = self.generation();
        let before = self.write(manifest);
        let event = self.operator.event(before, "", "manifest-applied");
        assert_eq!(self.generation(), generation + 1.0);
        event
    }

    /// Another manifest, which must be refused.
    #[track_caller]
    pub(crate) fn refuse(&self, manifest: &Manifest) -> Vec<String> {
        let generation = self.generation();
        let before = self.write(manifest);
        let event = self.operator.event(before, "", "manifest-refused");
        assert_eq!(self.generation(), generation);
        faults(&event)
    }

    pub(crate) fn generation(&self) -> f64 {
        self.berth.metric("berth_manifest_generation", &[])
    }

    fn get(&self, path: &str) -> Response {
        self.berth.get(path)
    }
}

fn watched(told: Told, manifest: &Manifest) -> Manifest {
    let watch = if told == Told::Watch { WATCH } else { "" };
    Manifest::new().raw(watch).raw(manifest.text())
}

fn faults(event: &Value) -> Vec<String> {
    let faults = event["faults"].as_array().cloned().unwrap_or_default();
    faults
        .iter()
        .map(|fault| fault.as_str().unwrap_or_default().to_owned())
        .collect()
}

/// A plugin without a route.
fn bare(name: &str, component: &std::path::Path) -> String {
    format!("[plugins.{name}]\ncomponent = {component:?}\n")
}

fn route(path: &str, plugin: &str) -> String {
    format!("[[routes]]\npath = \"{path}\"\nplugin = \"{plugin}\"\naccess = \"public\"\n")
}

/// Ask two paths in turns, on one connection, until told to stop: each answer, in order.
fn in_turns<T>(berth: &Berth, paths: [&'static str; 2], meanwhile: impl FnOnce() -> T) -> (Vec<String>, T) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut connection = Connection::open(berth.address);
            let mut seen = Vec::new();
            while !over.load(Ordering::Relaxed) {
                for path in paths {
                    connection.send(head("GET", path, &[], 0));
                    let answer = connection.response("GET").expect("an answer");
                    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
                    seen.push(answer.text());
                }
            }
            seen
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        over.store(true, Ordering::Relaxed);
        let seen = asking.join().expect("the caller ends");
        (seen, done.expect("what is done meanwhile"))
    })
}

#[test]
fn plugins_and_routes_change_in_one_step_however_the_host_is_told() {
    for told in [Told::Watch, Told::Post, Told::Hangup] {
        let site = Site::new();
        for number in 1..=3 {
            site.put(&format!("{number}.wasm"), &hello(number));
        }
        let steady = || Manifest::new().handler_file("steady", &guest("hello"), "");
        let one = steady()
            .raw(&bare("old", &site.at("1.wasm")))
            .raw(&bare("same", &site.at("3.wasm")))
            .raw(&route("/first/*", "old"))
            .raw(&route("/second/*", "old"))
            .raw(&route("/same/*", "same"));
        let two = steady()
            .raw(&bare("new", &site.at("2.wasm")))
            .raw(&bare("same", &site.at("2.wasm")))
            .raw(&route("/first/*", "new"))
            .raw(&route("/second/*", "same"))
            .raw(&route("/third/*", "new"));
        let running = Running::start_in(&site, told, &one);
        let caller = Caller::start(running.berth.address, "/steady/Ada");
        let (seen, event) = in_turns(&running.berth, ["/first/Ada", "/second/Ada"], || {
            caller.asks(20);
            let event = running.apply(&two);
            caller.asks(20);
            event
        });
        assert_eq!(event["added"], json!(["new"]), "{told:?}");
        assert_eq!(event["changed"], json!(["same"]));
        assert_eq!(event["removed"], json!(["old"]));
        assert!(event["needsRestart"].is_null(), "{event}");
        // All the old, then all the new: whoever has seen one part of the new generation sees the others.
        let turn = seen.iter().position(|text| *text == greeting(2, "Ada"));
        let turn = turn.unwrap_or_else(|| panic!("{told:?}: never the new one: {seen:?}"));
        assert!(
            turn > 0 && seen[..turn].iter().all(|text| *text == greeting(1, "Ada")),
            "{seen:?}"
        );
        assert!(
            seen[turn..].iter().all(|text| *text == greeting(2, "Ada")),
            "{seen:?}"
        );
        caller.stop().only(&["Hello, Ada.\n"]);
        assert_eq!(running.get("/third/Ada").text(), greeting(2, "Ada"));
        is(&running.get("/same/Ada"), 404, "not-found");
        // What was changed has another component now, which is a swap.
        let swapped = running.operator.event(0, "same", "swapped");
        assert_eq!(swapped["by"], "manifest");
        assert_eq!(
            (&swapped["from"], &swapped["to"]),
            (&json!(digest(&hello(3))), &json!(digest(&hello(2))))
        );
        let names: Vec<String> = running.operator.get("/admin/plugins")["plugins"]
            .as_array()
            .unwrap()
            .iter()
            .map(|plugin| plugin["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["new", "same", "steady"], "by name");
        is(
            &running.operator.ask("GET", "/admin/plugins/old", &[], b""),
            404,
            "plugin-not-found",
        );
    }
}

#[test]
fn unchanged_plugins_keep_their_instances_whatever_happens_around_them() {
    let counter = |more: &str| Manifest::new().handler_with("fixtures/counter", more);
    let running = Running::start(Told::Post, &counter("reuse = \"serial\""));
    let mut count = 0;
    let mut counts = |path: &str| {
        running
            .berth
            .metric_becomes("berth_instances_idle", &[], |n| n == f64::from(count.min(1)));
        count += 1;
        assert_eq!(running.get(path).text(), format!("{count}\n"));
    };
    counts("/counter/x");
    running.apply(&counter("reuse = \"serial\"").handler("hello"));
    counts("/counter/x");
    running.apply(&counter("reuse = \"serial\"").raw(&route("/more/*", "counter")));
    counts("/counter/x");
    counts("/more/x");
    running.refuse(&counter("reuse = \"serial\"").raw("[plugins.counter.nothing]"));
    counts("/counter/x");
    // The same in other words is the same.
    let before = running.operator.last();
    let answer = {
        let text = counter("reuse = 'serial' # as before").raw(&route("/more/*", "counter"));
        running.site.replace("berth.toml", text.text().as_bytes());
        running.operator.post("/admin/reload", &json!({}))
    };
    assert_eq!(answer.json()["kind"], "unchanged", "{}", answer.text());
    assert_eq!(running.operator.since(before), [] as [Value; 0]);
    counts("/more/x");
    // A change of its own is another plugin.
    running.apply(&counter("reuse = \"serial\"\nlimits = { concurrency = 5 }"));
    assert_eq!(running.get("/counter/x").text(), "1\n");
}

#[test]
fn settings_limits_grants_reuse_access_and_origins_take_effect() {
    let key = key_file();
    let path = key.path().display().to_string();
    let plugin = |more: &str, of_route: &str| {
        let component = guest("fixtures/log-handler");
        Manifest::new().auth("fixtures/auth-static").raw(&format!(
            "[plugins.p]\ncomponent = {component:?}\n{more}\n[[routes]]\npath = \"/p/*\"\nplugin = \"p\"\n{of_route}\n"
        ))
    };
    let public = "access = \"public\"";
    let grants = "grants = { log = true, settings = true }";
    let (site, environment) = (Site::new(), [("BERTH_TOKENS_HS256_KEY_FILE", path.as_str())]);
    let running = Running::start_by(&site, Told::Post, &plugin(grants, public), &environment);
    assert_eq!(running.get("/p/x").text(), "unset");
    let applied = |more: &str, of_route: &str| {
        let event = running.apply(&plugin(more, of_route));
        assert!(event["needsRestart"].is_null(), "{event}");
    };
    applied(&format!("{grants}\nsettings = {{ greeting = \"ahoy\" }}"), public);
    assert_eq!(running.get("/p/x").text(), "ahoy");

    // A grant less, and it doesn't fit any more.
    let faults = running.refuse(&plugin("grants = { settings = true }", public));
    assert!(faults.len() == 1 && faults[0].contains("log"), "{faults:?}");
    assert_eq!(running.get("/p/x").text(), "ahoy");

    applied(grants, "access = \"role:admin\"");
    is(&running.get("/p/x"), 401, "unauthorized");
    let ask = |subject: &str| {
        let token = token_until(subject, now() + 60);
        request_as(running.berth.address, &token, "GET", "/p/x", &[], b"")
    };
    is(&ask("u-1"), 403, "forbidden");
    assert_eq!(ask("admin").status, 200);
    applied(grants, "access = \"user\"");
    assert_eq!(ask("u-1").status, 200);

    let origin = [("origin", "https://app.example.com")];
    let allowed = || {
        let answer = request(running.berth.address, "GET", "/p/x", &origin, b"");
        answer.header("access-control-allow-origin").map(str::to_owned)
    };
    applied(grants, public);
    assert_eq!(allowed(), None);
    applied(
        grants,
        "access = \"public\"\ncors = { origins = [\"https://app.example.com\"] }",
    );
    assert_eq!(allowed().as_deref(), Some("https://app.example.com"));
    applied(grants, "access = \"public\"\nmethods = [\"POST\"]");
    assert_eq!(allowed(), None);
    is(&running.get("/p/x"), 405, "method-not-allowed");

    let echo = |limits: &str| Manifest::new().handler_with("fixtures/echo", limits);
    running.apply(&echo("limits = { cpu = \"100ms\" }"));
    is(&running.get("/echo/burn/2000"), 503, "plugin-cpu");
    running.apply(&echo("limits = { cpu = \"20s\" }"));
    assert_eq!(running.get("/echo/burn/300").status, 200);
    running.apply(&echo("limits = { cpu = \"20s\", wall = \"200ms\" }"));
    is(&running.get("/echo/sleep/20000"), 504, "plugin-timeout");

    let counter = |reuse: &str| Manifest::new().handler_with("fixtures/counter", reuse);
    running.apply(&counter(""));
    assert_eq!([1, 2].map(|_| running.get("/counter/x").text()), ["1\n", "1\n"]);
    running.apply(&counter("reuse = \"serial\""));
    assert_eq!(running.get("/counter/x").text(), "1\n");
    running
        .berth
        .metric_becomes("berth_instances_idle", &[], |n| n == 1.0);
    assert_eq!(running.get("/counter/x").text(), "2\n");
    // The defaults of all plugins are their limits as well.
    let event = running.apply(&echo("").raw("[limits]\ncpu = \"60ms\"\n"));
    assert!(event["needsRestart"].is_null(), "{event}");
    is(&running.get("/echo/burn/2000"), 503, "plugin-cpu");
}

#[test]
fn auth_policy_comes_and_goes() {
    let key = key_file();
    let path = key.path().display().to_string();
    let private = || {
        let component = guest("hello");
        Manifest::new().raw(&format!(
            "[plugins.x]\ncomponent = {component:?}\n[[routes]]\npath = \"/x/*\"\nplugin = \"x\"\naccess = \"user\"\n"
        ))
    };
    let environment = [("BERTH_TOKENS_HS256_KEY_FILE", path.as_str())];
    let site = Site::new();
    let running = Running::start_by(
        &site,
        Told::Post,
        &private().auth("fixtures/auth-static"),
        &environment,
    );
    let ask = |path: &str| {
        request_as(
            running.berth.address,
            &token_until("u-1", now() + 60),
            "GET",
            path,
            &[],
            b"",
        )
    };
    assert_eq!(ask("/x/Ada").status, 200);
    assert_eq!(ask("/api/v1/me").status, 200);
    running.apply(&Manifest::new().handler("hello"));
    is(&ask("/x/Ada"), 404, "not-found");
    is(&ask("/api/v1/me"), 404, "not-found");
    running.apply(&private().auth_with("fixtures/auth-static", "limits = { concurrency = 3 }"));
    assert_eq!(ask("/x/Ada").status, 200);
    assert_eq!(ask("/api/v1/me").status, 200);
    // One that changes takes the routes of others along, which ask the new one.
    let event = running.apply(&private().auth_with("fixtures/auth-static", "limits = { concurrency = 4 }"));
    assert_eq!(event["changed"], json!(["auth"]));
    assert_eq!(ask("/x/Ada").status, 200);
    let traps = |n: f64| {
        _ = running
            .berth
            .metric_becomes("berth_plugin_versions", &["auth"], |versions| versions == n)
    };
    traps(1.0);
}

#[test]
fn requests_in_flight_on_a_removed_plugin_end_well() {
    let running = Running::start(
        Told::Post,
        &Manifest::new().handler("hello").handler("fixtures/echo"),
    );
    let mut slow = Connection::open(running.berth.address);
    slow.send(head("GET", "/echo/sleep/1500", &[], 0));
    let mut body = Connection::open(running.berth.address);
    body.send(head("POST", "/echo/x", &[], 10));
    body.send("12345");
    running
        .berth
        .metric_becomes("berth_plugin_running", &["echo"], |n| n == 2.0);
    let event = running.apply(&Manifest::new().handler("hello"));
    assert_eq!(event["removed"], json!(["echo"]));
    is(&running.get("/echo/status/200"), 404, "not-found");
    body.send("67890");
    let answer = body.response("POST").expect("an answer");
    assert!(
        answer.status == 200 && answer.text().ends_with("1234567890"),
        "{}",
        answer.text()
    );
    let answer = slow.response("GET").expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (200, "slept 1500\n"));
    running
        .berth
        .metric_becomes("berth_instances_free", &[], |n| n == 256.0);
    // It comes back as if it had never been there.
    running.apply(&Manifest::new().handler("hello").handler("fixtures/echo"));
    assert_eq!(running.get("/echo/status/200").status, 200);
}

#[test]
fn what_an_operator_chose_outlives_a_change_of_the_manifest() {
    let site = Site::new();
    site.put("x.wasm", &hello(1));
    let x = |more: &str| Manifest::new().handler_file("x", &site.at("x.wasm"), more);
    let running = Running::start_in(&site, Told::Post, &x(""));
    assert_eq!(running.operator.deploy("x", "", &[], &hello(2)).status, 200);
    running.apply(&x("limits = { concurrency = 7 }"));
    assert_eq!(running.get("/x/Ada").text(), greeting(2, "Ada"));
    running.operator.post("/admin/plugins/x/disable", &json!({}));
    running.apply(&x("limits = { concurrency = 8 }"));
    is(&running.get("/x/Ada"), 503, "plugin-disabled");
    // Away and back, it is still off.
    running.apply(&Manifest::new().handler("hello"));
    running.apply(&x(""));
    is(&running.get("/x/Ada"), 503, "plugin-disabled");
    running.operator.post("/admin/plugins/x/enable", &json!({}));
    assert_eq!(running.get("/x/Ada").text(), greeting(2, "Ada"));
    // Another file is another act.
    site.put("y.wasm", &hello(3));
    running.apply(&Manifest::new().handler_file("x", &site.at("y.wasm"), ""));
    assert_eq!(running.get("/x/Ada").text(), greeting(3, "Ada"));
    let back = running.operator.post("/admin/plugins/x/rollback", &json!({}));
    assert_eq!(back.json()["to"], digest(&hello(2)), "{}", back.text());
    let versions = running.operator.plugin("x")["versions"].clone();
    assert_eq!(versions[1]["by"], "manifest", "{versions}");
}

#[test]
fn component_somewhere_else_must_be_good_though_an_old_version_is_kept() {
    let site = Site::new();
    site.put("x.wasm", &hello(1));
    site.put("bad.wasm", b"no component");
    let running = Running::start_in(
        &site,
        Told::Post,
        &Manifest::new().handler_file("x", &site.at("x.wasm"), ""),
    );
    let faults = running.refuse(&Manifest::new().handler_file("x", &site.at("bad.wasm"), ""));
    assert!(
        faults.len() == 1 && faults[0].contains("plugins.x: "),
        "{faults:?}"
    );
    assert_eq!(running.get("/x/Ada").text(), greeting(1, "Ada"));
    // What has become bad where it was doesn't keep the rest of the manifest out.
    site.put("x.wasm", b"no component");
    let event =
        running.apply(&Manifest::new().handler_file("x", &site.at("x.wasm"), "limits = { concurrency = 2 }"));
    assert_eq!(event["changed"], json!(["x"]));
    assert_eq!(running.get("/x/Ada").text(), greeting(1, "Ada"));
    assert_eq!(running.operator.serves("x"), digest(&hello(1)));
}

#[test]
fn changes_that_come_before_the_host_can_look_are_seen() {
    let site = Site::new();
    site.put("x.wasm", &hello(1));
    let manifest = |n: u32| {
        let x = Manifest::new().handler_file("x", &site.at("x.wasm"), "");
        x.raw(&route(&format!("/n{n}/*"), "x"))
    };
    let running = Running::start_in(&site, Told::Watch, &manifest(0));
    for n in 1..=30 {
        site.replace("berth.toml", watched(Told::Watch, &manifest(n)).text().as_bytes());
    }
    until(
        || format!("the last one is not in force: {:#?}", running.operator.since(0)),
        || (running.get("/n30/Ada").status == 200).then_some(()),
    );
    is(&running.get("/n29/Ada"), 404, "not-found");
}

#[test]
fn hundred_reloads_under_load_fail_nobody_and_leave_nothing_behind() {
    let manifest = |n: u32| {
        Manifest::new()
            .handler("hello")
            .handler_with(
                "fixtures/counter",
                &format!("reuse = \"serial\"\nlimits = {{ concurrency = {} }}", 10 + n % 2),
            )
            .handler_file(&format!("extra-{}", n % 3), &guest("hello"), "")
    };
    let running = Running::start(Told::Post, &manifest(0));
    let callers =
        ["/hello/Ada", "/counter/x", "/health"].map(|path| Caller::start(running.berth.address, path));
    let resident = || running.berth.metric("process_resident_memory_bytes", &[]);
    let mut sizes = Vec::new();
    for n in 1..=100u32 {
        running.apply(&manifest(n));
        if n % 25 == 0 {
            for plugin in ["hello", "counter", &format!("extra-{}", n % 3)] {
                running
                    .berth
                    .metric_becomes("berth_plugin_versions", &[plugin], |n| n == 1.0);
            }
            sizes.push(resident());
        }
    }
    for caller in callers {
        caller.asks(5);
        let seen = caller.stop();
        assert!(seen.faults.is_empty(), "{:?}", seen.faults);
    }
    assert_eq!(running.generation(), 101.0);
    let [first, .., last] = sizes[..] else {
        panic!("{sizes:?}")
    };
    assert!(last < first * 1.1 + 16.0 * 1048576.0, "{sizes:?}");
}

#[test]
fn hangup_right_after_the_start_is_a_reload_like_any_other() {
    for _ in 0..5 {
        let mut running = Running::start(Told::Hangup, &Manifest::new().handler("hello"));
        for _ in 0..20 {
            running.berth.signal("HUP");
        }
        running.apply(&Manifest::new().handler("hello").handler("fixtures/echo"));
        assert_eq!(running.get("/echo/status/200").status, 200);
        running.berth.signal("TERM");
        assert!(running.berth.wait().success());
    }
}

#[test]
fn variables_of_the_environment_still_win() {
    let echo = |limits: &str| {
        let echo = Manifest::new().handler("fixtures/echo");
        Manifest::new().raw(limits).raw(echo.text())
    };
    let (site, environment) = (Site::new(), [("BERTH_LIMITS_CPU", "100ms")]);
    let running = Running::start_by(&site, Told::Post, &echo(""), &environment);
    is(&running.get("/echo/burn/2000"), 503, "plugin-cpu");
    // The variable stands in its place, so nothing has changed.
    running
        .site
        .replace("berth.toml", echo("[limits]\ncpu = \"20s\"\n").text().as_bytes());
    let answer = running.operator.post("/admin/reload", &json!({}));
    assert_eq!(answer.json()["kind"], "unchanged", "{}", answer.text());
    is(&running.get("/echo/burn/2000"), 503, "plugin-cpu");
    let event = running.apply(&echo("[limits]\ncpu = \"20s\"\nconcurrency = 5\n"));
    assert_eq!(event["changed"], json!(["echo"]));
    is(&running.get("/echo/burn/2000"), 503, "plugin-cpu");
    // One of a section that is read at the start only, too.
    let event = running.apply(&echo(
        "[http]\nlisten = \"127.0.0.1:1\"\n[limits]\nconcurrency = 6\n",
    ));
    assert!(
        event["needsRestart"].is_null(),
        "the address is the variable's: {event}"
    );
}

#[test]
fn manifest_is_followed_however_an_editor_saves_it() {
    let site = Site::new();
    site.put("x.wasm", &hello(1));
    let manifest = |n: usize| {
        let x = Manifest::new().handler_file("x", &site.at("x.wasm"), "");
        watched(Told::Watch, &x.raw(&route(&format!("/n{n}/*"), "x")))
            .text()
            .to_owned()
    };
    let running = Running::start_in(
        &site,
        Told::Watch,
        &Manifest::new().handler_file("x", &site.at("x.wasm"), ""),
    );
    let path = site.at("berth.toml");
    type Style<'a> = (&'a str, &'a dyn Fn(&str));
    let styles: [Style<'_>; 6] = [
        ("in place", &|text| std::fs::write(&path, text).unwrap()),
        ("by rename", &|text| site.replace("berth.toml", text.as_bytes())),
        ("deleted and made again", &|text| {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, text).unwrap();
        }),
        ("the old one moved aside first", &|text| {
            std::fs::rename(&path, site.at("berth.toml~")).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::remove_file(site.at("berth.toml~")).unwrap();
        }),
        ("through a link", &|text| {
            std::fs::write(site.at("elsewhere.toml"), text).unwrap();
            let _ = std::fs::remove_file(site.at("link.toml"));
            std::os::unix::fs::symlink(site.at("elsewhere.toml"), site.at("link.toml")).unwrap();
            std::fs::rename(site.at("link.toml"), &path).unwrap();
        }),
        ("where a link leads to", &|text| {
            std::fs::write(site.at("elsewhere.toml"), text).unwrap()
        }),
    ];
    let caller = Caller::start(running.berth.address, "/x/Ada");
    for (n, (style, save)) in styles.iter().enumerate() {
        let before = running.operator.last();
        save(&manifest(n));
        running.operator.event(before, "", "manifest-applied");
        assert_eq!(
            running.get(&format!("/n{n}/Ada")).text(),
            greeting(1, "Ada"),
            "{style}"
        );
    }
    caller.stop().only(&[&greeting(1, "Ada")]);
}

#[test]
fn manifest_that_is_gone_changes_nothing() {
    let running = Running::start(Told::Watch, &Manifest::new().handler("hello"));
    let text = std::fs::read_to_string(running.site.at("berth.toml")).unwrap();
    let before = running.operator.last();
    std::fs::remove_file(running.site.at("berth.toml")).unwrap();
    let event = running.operator.event(before, "", "manifest-refused");
    let faults = faults(&event);
    assert!(
        faults.len() == 1 && faults[0].contains("there is no such file"),
        "{faults:?}"
    );
    assert_eq!(running.get("/hello/Ada").status, 200);
    let more = Manifest::new().raw(&text).handler("fixtures/echo");
    running.site.put("berth.toml", more.text().as_bytes());
    running.operator.event(before, "", "manifest-applied");
    assert_eq!(running.get("/echo/status/200").status, 200);
    eventually("it is in force", || running.generation() == 2.0);
}
