//! A version on trial: what takes it back, what promotes it, and that whoever doesn't try it never sees it.
//!
//! The current version is `hello`, which greets whatever it is asked for. The candidate is a fixture that does what the
//! path says, so that the same request is well answered by one of them and not by the other.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use berth_tests::behind::{Proxy, TRUSTED};
use berth_tests::berth::{Berth, Manifest, eventually, run};
use berth_tests::guest;
use berth_tests::swaps::{Operator, Site, another, built, digest, sha256, until};
use berth_tests::wire::{Connection, Ended, Response, head, is};
use serde_json::Value;

/// The plugin `x`, from a file, on a host that believes a proxy.
pub(crate) fn host(component: &str, more: &str) -> (Berth, Operator) {
    let manifest = Manifest::new().raw(TRUSTED);
    let berth = manifest.handler_file("x", &guest(component), more).start();
    let operator = Operator::of(&berth);
    (berth, operator)
}

/// Begin a trial of a candidate for `x`. The event.
#[track_caller]
pub(crate) fn try_out(operator: &Operator, query: &str, candidate: &[u8]) -> Value {
    let answer = operator.deploy("x", query, &[], candidate);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let event = answer.json();
    assert_eq!(event["kind"], "canary-started", "{event}");
    event
}

/// Whether the current version gave this answer.
pub(crate) fn greets(answer: &Response) -> bool {
    answer.status == 200 && answer.ended == Ended::Whole && answer.text().starts_with("Hello, ")
}

/// Callers of either side, found by asking: those who get the candidate, the others, and how many asked.
pub(crate) fn sides(proxy: &mut Proxy, path: &str, least: usize) -> (Vec<u16>, Vec<u16>) {
    let (mut candidates, mut others) = (Vec::new(), Vec::new());
    for caller in 0..1_000 {
        let answer = proxy.get(caller, path);
        assert_eq!(answer.status, 200, "{path}");
        match greets(&answer) {
            true => others.push(caller),
            false => candidates.push(caller),
        }
        if candidates.len() >= least && others.len() >= least {
            return (candidates, others);
        }
    }
    panic!("all of 1000 callers are on one side");
}

/// Nothing of a candidate is left.
#[track_caller]
pub(crate) fn is_gone(berth: &Berth, operator: &Operator, candidate: &[u8]) {
    let plugin = operator.plugin("x");
    assert!(plugin["canary"].is_null(), "{plugin}");
    berth.metric_becomes("berth_plugin_versions", &["x"], |n| n == 1.0);
    let file = format!(".berth/plugins/x/{}.wasm", sha256(candidate));
    let file = berth.folder().join(file);
    eventually("the candidate's file is gone", || !file.exists());
}

const HEALTHY: &str = "/x/status/200";
const FAILING: &str = "/x/status/500";

#[test]
fn candidate_that_fails_a_fifth_of_its_requests_is_taken_back_within_fifty() {
    let (berth, operator) = host("hello", "");
    let (candidate, before) = (built("fixtures/echo"), operator.last());
    let started = try_out(&operator, "canary=50%25", &candidate);
    assert_eq!(started["share"], "50%");
    assert_eq!(started["from"], digest(&built("hello")));
    assert_eq!(started["to"], digest(&candidate));

    let mut proxy = Proxy::of(berth.address);
    let (candidates, others) = sides(&mut proxy, HEALTHY, 2);
    let (mut tried, mut nth) = (candidates.len(), 0);
    loop {
        nth += 1;
        let path = if nth % 5 == 0 { FAILING } else { HEALTHY };
        let other = proxy.get(others[nth % others.len()], path);
        assert!(greets(&other), "{} {}", other.status, other.text());
        let one = proxy.get(candidates[nth % candidates.len()], path);
        if greets(&one) {
            break;
        }
        tried += 1;
        assert!(tried <= 50, "not taken back after {tried} requests");
    }

    let event = operator.event(before, "x", "canary-failed");
    let reason = event["reason"].as_str().unwrap();
    assert!(
        reason.contains("requests failed (")
            && reason.ends_with("up to 5 percentage points more are allowed"),
        "{reason}"
    );
    assert_eq!(event["by"], "canary");
    assert_eq!(event["from"], digest(&built("hello")));
    assert_eq!(event["to"], digest(&candidate));
    assert_eq!(operator.kinds(before, "x"), ["canary-started", "canary-failed"]);
    for caller in 0..60 {
        assert!(greets(&proxy.get(caller, FAILING)));
    }
    assert_eq!(operator.serves("x"), digest(&built("hello")));
    assert_eq!(
        berth.metric("berth_plugin_swaps_total", &["x", "taken-back"]),
        1.0
    );
    is_gone(&berth, &operator, &candidate);
}

#[test]
fn candidate_for_everybody_is_judged_by_what_the_current_version_did_before() {
    let (berth, operator) = host("hello", "");
    let mut proxy = Proxy::of(berth.address);
    for caller in 0..30 {
        assert!(greets(&proxy.get(caller, HEALTHY)));
    }
    let before = operator.last();
    try_out(&operator, "canary=100%25", &built("fixtures/echo"));
    let mut tried = 0;
    for nth in 1.. {
        let path = if nth % 5 == 0 { FAILING } else { HEALTHY };
        if greets(&proxy.get(nth, path)) {
            break;
        }
        tried += 1;
        assert!(tried <= 50, "not taken back after {tried} requests");
    }
    let event = operator.event(before, "x", "canary-failed");
    let reason = event["reason"].as_str().unwrap();
    assert!(
        reason.contains("is taken for what it was before (0 %)"),
        "{reason}"
    );

    // One that holds.
    let before = operator.last();
    try_out(
        &operator,
        "canary=100%25&promoteAfter=25",
        &built("fixtures/echo"),
    );
    for nth in 0..25 {
        assert!(!greets(&proxy.get(nth, HEALTHY)));
    }
    operator.event(before, "x", "promoted");
    assert_eq!(operator.serves("x"), digest(&built("fixtures/echo")));
}

/// Everybody asks all the time, each from a thread of their own, until there is an event. How many answers the candidate
/// gave, by the judgement of `is_candidate`; those of everybody else must be the current version's.
fn crowd(
    berth: &Berth,
    operator: &Operator,
    (before, kind): (u64, &str),
    path: impl Fn(u64) -> &'static str + Sync,
    is_candidate: impl Fn(&Response) -> bool + Sync,
) -> (Value, u64) {
    let (over, tried) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for caller in 0..32 {
            let (over, tried, path, is_candidate) = (&over, &tried, &path, &is_candidate);
            scope.spawn(move || {
                let mut proxy = Proxy::of(berth.address);
                for nth in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let answer = proxy.get(caller, path(nth));
                    if is_candidate(&answer) {
                        tried.fetch_add(1, Ordering::Relaxed);
                    } else {
                        assert!(greets(&answer), "{} {}", answer.status, answer.text());
                    }
                }
            });
        }
        // However this ends, they must.
        let event =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| operator.event(before, "x", kind)));
        over.store(true, Ordering::Relaxed);
        (event.expect("the event comes"), tried.load(Ordering::Relaxed))
    })
}

#[test]
fn slow_candidate_is_taken_back() {
    let (berth, operator) = host("hello", "");
    let (candidate, before) = (built("fixtures/echo"), operator.last());
    try_out(&operator, "canary=50%25&promoteAfter=1000000", &candidate);
    // A quarter of its requests takes seconds: beyond whatever a busy machine makes of the others.
    let path = |nth| match nth % 4 {
        1 => "/x/sleep/3000",
        _ => HEALTHY,
    };
    let is_candidate = |answer: &Response| answer.text().starts_with("s");
    let (event, tried) = crowd(&berth, &operator, (before, "canary-failed"), path, is_candidate);
    let reason = event["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("the p99 of its ") && reason.contains(", which allows "),
        "{reason}"
    );
    assert!(tried >= 100, "judged after {tried} requests");
    is_gone(&berth, &operator, &candidate);
}

#[test]
fn storm_of_traps_in_a_candidate_is_the_candidates_alone() {
    let manifest = Manifest::new().raw(TRUSTED).handler("hello");
    let berth = manifest.handler_file("x", &guest("hello"), "").start();
    let operator = Operator::of(&berth);
    let (candidate, before) = (built("fixtures/counter"), operator.last());
    try_out(&operator, "canary=50%25", &candidate);
    let trapped = |answer: &Response| answer.code() == "plugin-trap";
    let (event, tried) = crowd(
        &berth,
        &operator,
        (before, "canary-failed"),
        |_| "/x/trap",
        trapped,
    );
    let reason = event["reason"].as_str().unwrap();
    assert!(reason.contains("(100 %)"), "{reason}");
    // Judged at its 20th, with as many in flight as there are callers at the most.
    assert!((20..=52).contains(&tried), "{tried} requests trapped");
    assert_eq!(berth.get("/hello/Ada").text(), "Hello, Ada.\n");
    let traps = berth.metric(
        "berth_plugin_traps_total",
        &["x", &digest(&candidate), "unreachable"],
    );
    // Those that were in flight have trapped as well, after the last one that was waited for.
    assert!(
        (tried as f64..=52.0).contains(&traps),
        "{traps} traps, {tried} answers"
    );
    is_gone(&berth, &operator, &candidate);
}

#[test]
fn candidate_that_holds_is_promoted_and_stays_over_a_restart_until_it_is_rolled_back() {
    let site = Site::new();
    site.put("x.wasm", &built("hello"));
    let manifest = Manifest::new()
        .raw(TRUSTED)
        .handler_file("x", &site.at("x.wasm"), "");
    let berth = site.start(&manifest);
    let (operator, candidate) = (Operator::of(&berth), built("fixtures/echo"));
    let before = operator.last();
    try_out(&operator, "canary=50%25&promoteAfter=40", &candidate);
    let mut proxy = Proxy::of(berth.address);
    let (candidates, others) = sides(&mut proxy, HEALTHY, 1);
    for nth in 0..40 - candidates.len() {
        assert!(greets(&proxy.get(others[0], HEALTHY)), "{nth}");
        assert!(!greets(&proxy.get(candidates[0], HEALTHY)), "{nth}");
    }
    // From its verdict on it is everybody's.
    until(
        || format!("not promoted: {}", operator.plugin("x")),
        || (!greets(&proxy.get(others[0], HEALTHY))).then_some(()),
    );
    let event = operator.event(before, "x", "promoted");
    assert_eq!(
        (event["by"].as_str(), event["to"].as_str()),
        (Some("canary"), Some(&*digest(&candidate)))
    );
    for caller in 0..60 {
        assert!(!greets(&proxy.get(caller, HEALTHY)));
    }
    let versions = operator.plugin("x")["versions"].clone();
    assert_eq!(versions[0]["by"], "canary");
    assert_eq!(versions[0]["current"], true);
    assert_eq!(versions[1]["digest"], sha256(&built("hello")));
    let kept = site.at(&format!(".berth/plugins/x/{}.wasm", sha256(&candidate)));
    assert_eq!(std::fs::read(&kept).unwrap(), candidate);

    let berth = site.restart(berth, &manifest);
    let operator = Operator::of(&berth);
    assert_eq!(operator.serves("x"), digest(&candidate));
    assert_eq!(berth.get(HEALTHY).text(), "status 200\n");
    assert!(
        operator
            .since(0)
            .iter()
            .all(|event| event["kind"] != "canary-withdrawn")
    );
    let back = operator.post("/admin/plugins/x/rollback", &serde_json::json!({}));
    assert_eq!(back.json()["kind"], "rolled-back", "{}", back.text());
    assert!(greets(&berth.get(HEALTHY)));
}

#[test]
fn candidate_has_serial_instances_of_its_own() {
    let (berth, operator) = host("hello", "reuse = \"serial\"");
    let candidate = built("fixtures/counter");
    let idle = |count| _ = berth.metric_becomes("berth_instances_idle", &[], |n| n == count);
    for _ in 0..2 {
        try_out(&operator, "canary=50%25", &candidate);
        let mut proxy = Proxy::of(berth.address);
        let (candidates, others) = sides(&mut proxy, "/x/y", 1);
        for count in candidates.len() + 1..candidates.len() + 6 {
            idle(2.0);
            assert_eq!(proxy.get(candidates[0], "/x/y").text(), format!("{count}\n"));
            assert!(greets(&proxy.get(others[0], "/x/y")));
        }
        let before = operator.last();
        let back = operator.post("/admin/plugins/x/rollback", &serde_json::json!({}));
        assert_eq!(back.json()["kind"], "canary-withdrawn", "{}", back.text());
        assert_eq!(operator.kinds(before, "x"), ["canary-withdrawn"]);
        idle(1.0);
        is_gone(&berth, &operator, &candidate);
        assert!(greets(&proxy.get(candidates[0], "/x/y")));
    }
}

#[test]
fn requests_in_flight_on_a_shared_candidate_end_well_when_it_is_withdrawn() {
    let (berth, operator) = host("hello-p3", "reuse = \"concurrent\"\ngrants = { log = true }");
    let candidate = built("fixtures/counter-p3");
    try_out(&operator, "canary=50%25", &candidate);
    let mut proxy = Proxy::of(berth.address);
    let (candidates, others) = sides(&mut proxy, "/x/y", 1);
    let caller = berth_tests::behind::address(candidates[0]);
    let mut asked: Vec<Connection> = (0..4)
        .map(|n| {
            let id = format!("sleeper-{n}");
            let mut connection = Connection::open(berth.address);
            let headers = [("x-forwarded-for", caller.as_str()), ("x-request-id", &id)];
            connection.send(head("GET", "/x/sleep", &headers, 0));
            berth.logged("that it has begun", |e| {
                e["request_id"] == id && e["message"] == "begun"
            });
            connection
        })
        .collect();
    let back = operator.post("/admin/plugins/x/rollback", &serde_json::json!({}));
    assert_eq!(back.json()["kind"], "canary-withdrawn", "{}", back.text());
    assert!(greets(&proxy.get(candidates[0], "/x/y")));
    assert!(greets(&proxy.get(others[0], "/x/y")));
    let numbers: BTreeSet<String> = asked
        .iter_mut()
        .map(|connection| {
            let answer = connection.response("GET").expect("an answer");
            assert_eq!((answer.status, answer.ended), (200, Ended::Whole));
            answer.text()
        })
        .collect();
    assert_eq!(numbers.len(), 4, "each counted once: {numbers:?}");
    is_gone(&berth, &operator, &candidate);
}

#[test]
fn what_never_reached_a_version_says_nothing_of_it() {
    let (berth, operator) = host("hello", "limits = { concurrency = 1 }");
    try_out(&operator, "canary=50%25", &built("fixtures/echo"));
    let mut proxy = Proxy::of(berth.address);
    let (candidates, _) = sides(&mut proxy, HEALTHY, 1);
    let figure = |of: &str| operator.plugin("x").pointer(of).and_then(Value::as_u64);
    let settled = |wanted: usize| {
        until(
            || format!("{wanted} requests: {}", operator.plugin("x")["canary"]),
            || (figure("/canary/requests") == Some(wanted as u64)).then_some(()),
        );
    };
    settled(candidates.len());
    // One runs, four wait, and everybody else is sent away: which isn't how fast the candidate answers.
    let caller = berth_tests::behind::address(candidates[0]);
    let mut asked: Vec<Connection> = (0..5)
        .map(|_| {
            let mut connection = Connection::open(berth.address);
            let headers = [("x-forwarded-for", caller.as_str())];
            connection.send(head("GET", "/x/sleep/1000", &headers, 0));
            connection
        })
        .collect();
    berth.metric_becomes("berth_plugin_waiting", &["x"], |n| n == 4.0);
    for _ in 0..10 {
        is(&proxy.get(candidates[0], HEALTHY), 429, "plugin-busy");
    }
    for connection in &mut asked {
        assert_eq!(connection.response("GET").expect("an answer").status, 200);
    }
    settled(candidates.len() + 5);
}

/// `berth plugin …` for a running host.
pub(crate) fn plugin(berth: &Berth, arguments: &[&str]) -> String {
    let (data, admin) = (
        berth.folder().join(".berth").display().to_string(),
        berth.admin.to_string(),
    );
    let environment = [("BERTH_DATA_DIR", data.as_str()), ("BERTH_ADMIN_LISTEN", &admin)];
    let out = run(
        Manifest::new().text(),
        &[&["plugin"], arguments].concat(),
        &environment,
    );
    let (said, complained) = (
        String::from_utf8(out.stdout).unwrap(),
        String::from_utf8(out.stderr).unwrap(),
    );
    assert!(out.status.success(), "{arguments:?}: {complained}");
    said
}

#[test]
fn plugin_show_says_how_a_trial_stands_and_what_decides_it() {
    let (berth, operator) = host("hello", "");
    let candidate = guest("fixtures/echo").display().to_string();
    let (hello, echo) = (digest(&built("hello")), digest(&built("fixtures/echo")));
    let said = plugin(
        &berth,
        &[
            "deploy",
            "--canary",
            "50%",
            "--promote-after",
            "700",
            "x",
            &candidate,
        ],
    );
    assert!(
        said.starts_with(&format!("x: {echo} is on trial with 50% of the callers in ")),
        "{said}"
    );
    assert!(said.ends_with(&format!("; {hello} serves on\n")), "{said}");
    let mut proxy = Proxy::of(berth.address);
    let (candidates, others) = sides(&mut proxy, HEALTHY, 2);
    proxy.get(candidates[0], FAILING);
    let (tried, rest) = (candidates.len() as u64 + 1, others.len() as u64);
    until(
        || format!("{tried} and {rest} requests: {}", operator.plugin("x")["canary"]),
        || {
            let canary = operator.plugin("x")["canary"].clone();
            (canary["requests"] == tried && canary["current"]["requests"] == rest).then_some(())
        },
    );
    let shown = plugin(&berth, &["show", "x"]);
    let line = |name: &str| {
        let found = shown.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap_or_else(|| panic!("{name:?} in {shown}")).to_owned()
    };
    let canary = line("canary     ");
    assert!(
        canary.starts_with(&format!("{echo} for 50%: {tried} requests, 1 failed, p99 ")),
        "{canary}"
    );
    assert!(
        canary.contains(&format!("; the current one: {rest} requests, 0 failed, p99 ")),
        "{canary}"
    );
    assert_eq!(
        line("a canary   "),
        "is taken back when, of 20 requests or more, 3 or more fail and 5.0 points more than of the current version; or \
         when, of 100 or more, the p99 is over 2.0 times and 10 ms above the current one's; serves everybody after 700 \
         requests"
    );
    let listed = plugin(&berth, &["list"]);
    assert!(
        listed.contains(&format!("x: on trial is {echo} for 50%: ")),
        "{listed}"
    );
    plugin(&berth, &["promote", "x"]);
    let shown = plugin(&berth, &["show", "x"]);
    assert!(!shown.lines().any(|line| line.starts_with("canary ")), "{shown}");
    assert!(shown.contains("serves everybody after 500 requests"), "{shown}");
}

#[test]
fn share_that_is_none_is_refused_and_so_are_bounds_without_one() {
    let (_berth, operator) = host("hello", "");
    let candidate = another(&built("hello"), 1);
    for query in [
        "canary=0%25",
        "canary=101%25",
        "canary=10",
        "canary=",
        "canary=1e1%25",
    ] {
        let answer = operator.deploy("x", query, &[], &candidate);
        is(&answer, 400, "invalid-request");
        assert!(answer.text().contains("such as 10% or 2.5%"), "{}", answer.text());
    }
    let answer = operator.deploy("x", "promoteAfter=5", &[], &candidate);
    is(&answer, 400, "invalid-request");
    assert_eq!(operator.since(0), [] as [Value; 0]);
    assert_eq!(operator.serves("x"), digest(&built("hello")));
}
