//! Plugins for people: a row of a table, or all of one. A member that isn't there is left out.

use serde_json::Value;

use super::event;
use crate::text::{at, columns, duration, plain, short, size, text, time};

/// A table, and below it what needs somebody's attention.
pub(super) fn table(plugins: &[Value]) -> String {
    let rows = plugins.iter().map(|plugin| {
        let (since, by) = current(plugin).map_or_else(Default::default, |version| {
            (time(version, "loadedAt"), text(version, "by"))
        });
        [
            text(plugin, "name"),
            text(plugin, "state"),
            short(plugin, "version"),
            since,
            by,
            plain(at(plugin, "requests.total")),
            plain(at(plugin, "requests.failed")),
            micros(at(plugin, "latency.p99Us")).unwrap_or_default(),
        ]
    });
    let heads = [
        "PLUGIN", "STATE", "VERSION", "SINCE", "BY", "REQUESTS", "FAILED", "P99",
    ];
    let mut out = columns(heads, rows);
    for plugin in plugins {
        let notes = [
            fault(plugin),
            canary(plugin).map(|canary| format!("on trial is {canary}")),
        ];
        for note in notes.into_iter().flatten() {
            out.push_str(&format!("{}: {note}\n", text(plugin, "name")));
        }
    }
    out
}

/// Line by line.
pub(super) fn lines(plugin: &Value) -> String {
    let rows = [
        ("plugin", some(text(plugin, "name"))),
        ("state", some(text(plugin, "state"))),
        ("fault", fault(plugin)),
        ("version", version(plugin)),
        ("signed by", some(text(plugin, "signedBy"))),
        ("kind", some(text(plugin, "kind"))),
        ("policy", some(text(plugin, "policy"))),
        ("component", some(text(plugin, "component"))),
        ("imports", some(text(plugin, "imports"))),
        ("grants", some(text(plugin, "grants"))),
        ("reuse", some(text(plugin, "reuse"))),
        ("limits", limits(at(plugin, "limits"))),
        ("code", bytes(at(plugin, "codeBytes"))),
        ("instances", instances(at(plugin, "instances"))),
        ("draining", draining(plugin)),
        ("requests", requests(at(plugin, "requests"))),
        ("traps", some(plain(at(plugin, "traps")))),
        ("latency", named(at(plugin, "latency"), &LATENCY)),
        ("cpu", named(at(plugin, "cpu"), &CPU)),
        ("memory", named(at(plugin, "memory"), &MEMORY)),
        ("canary", canary(plugin)),
        ("a canary", bounds(at(plugin, "canaryBounds"))),
        ("last event", last_event(plugin)),
    ];
    let mut out: String = rows
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name:10} {}\n", value?)))
        .collect();
    out.push_str(&versions(plugin));
    out
}

type Member = (&'static str, &'static str, fn(&Value) -> Option<String>);
const LATENCY: [Member; 3] = [
    ("p50", "p50Us", micros),
    ("p99", "p99Us", micros),
    ("mean", "meanUs", micros),
];
const CPU: [Member; 2] = [("mean", "meanUs", micros), ("p99", "p99Us", micros)];
const MEMORY: [Member; 2] = [("mean", "meanBytes", bytes), ("most", "maxBytes", bytes)];
const LIMITS: [Member; 4] = [
    ("memory", "memory", bytes),
    ("cpu", "cpuMs", millis),
    ("wall", "wallMs", millis),
    ("concurrency", "concurrency", count),
];

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn named(value: &Value, members: &[Member]) -> Option<String> {
    let parts: Vec<String> = members
        .iter()
        .filter_map(|(name, member, write)| Some(format!("{name} {}", write(value.get(member)?)?)))
        .collect();
    some(parts.join(", "))
}

fn micros(value: &Value) -> Option<String> {
    value.as_f64().map(duration)
}

fn millis(value: &Value) -> Option<String> {
    value.as_f64().map(|ms| duration(ms * 1e3))
}

fn bytes(value: &Value) -> Option<String> {
    value.as_u64().map(size)
}

fn count(value: &Value) -> Option<String> {
    value.as_u64().map(|count| count.to_string())
}

/// The entry of the version that serves.
fn current(plugin: &Value) -> Option<&Value> {
    let versions = plugin.get("versions")?.as_array()?;
    versions
        .iter()
        .find(|version| version.get("current").and_then(Value::as_bool) == Some(true))
}

fn fault(plugin: &Value) -> Option<String> {
    let fault = plugin.get("fault").filter(|fault| fault.is_object())?;
    Some(format!("{} ({})", text(fault, "detail"), text(fault, "code")))
}

fn version(plugin: &Value) -> Option<String> {
    let version = some(short(plugin, "version"))?;
    Some(match current(plugin) {
        Some(current) => format!(
            "{version} since {}, by {}",
            time(current, "loadedAt"),
            text(current, "by")
        ),
        None => version,
    })
}

fn limits(value: &Value) -> Option<String> {
    named(value, &LIMITS)
}

fn instances(value: &Value) -> Option<String> {
    let members: [Member; 3] = [
        ("in flight", "inFlight", count),
        ("queued", "queued", count),
        ("idle", "idle", count),
    ];
    let parts: Vec<String> = members
        .iter()
        .filter_map(|(name, member, write)| Some(format!("{} {name}", write(value.get(member)?)?)))
        .collect();
    some(parts.join(", "))
}

fn draining(plugin: &Value) -> Option<String> {
    match plugin.get("draining")?.as_u64()? {
        0 => None,
        1 => Some("1 older version has requests at hand".to_owned()),
        n => Some(format!("{n} older versions have requests at hand")),
    }
}

fn requests(value: &Value) -> Option<String> {
    let mut parts = vec![count(value.get("total")?)?];
    for (name, member) in [("failed", "failed"), ("unfinished", "unfinished")] {
        if let Some(n) = value.get(member).and_then(count) {
            parts.push(format!("{n} {name}"));
        }
    }
    Some(parts.join(", "))
}

/// `9f8e7d6c5b4a for 10 %: 40 requests, 1 failed, p99 3.1 ms; 1a2b3c4d5e6f: …`
fn canary(plugin: &Value) -> Option<String> {
    let canary = plugin.get("canary").filter(|canary| canary.is_object())?;
    let side = |value: &Value| {
        let mut parts = vec![format!("{} requests", text(value, "requests"))];
        parts.push(format!("{} failed", text(value, "failed")));
        parts.extend(
            value
                .get("p99Us")
                .and_then(micros)
                .map(|p99| format!("p99 {p99}")),
        );
        parts.join(", ")
    };
    let share = match at(canary, "share") {
        Value::Number(percent) => format!("{percent} %"),
        other => plain(other),
    };
    Some(format!(
        "{} for {share}: {}; the current one: {}",
        short(canary, "digest"),
        side(canary),
        side(at(canary, "current"))
    ))
}

/// What ends a trial, as a sentence.
fn bounds(bounds: &Value) -> Option<String> {
    let of = |name: &str| Some(plain(bounds.get(name)?));
    Some(format!(
        "is taken back when, of {} requests or more, {} or more fail and {} points more than of the current version; or when, \
         of {} or more, the p99 is over {} times and {} ms above the current one's; serves everybody after {} requests",
        of("minRequests")?,
        of("minFailures")?,
        of("errorPoints")?,
        of("p99Requests")?,
        of("p99Factor")?,
        of("p99FloorMs")?.trim_end_matches(".0"),
        of("promoteAfter")?,
    ))
}

fn last_event(plugin: &Value) -> Option<String> {
    let event = plugin.get("lastEvent").filter(|event| event.is_object())?;
    Some(format!("{} {}", time(event, "at"), event::sentence(event)))
}

fn versions(plugin: &Value) -> String {
    let Some(versions) = plugin.get("versions").and_then(Value::as_array) else {
        return String::new();
    };
    if versions.is_empty() {
        return String::new();
    }
    let rows = versions.iter().map(|version| {
        let is_current = version.get("current").and_then(Value::as_bool) == Some(true);
        [
            if is_current { "*" } else { "" }.to_owned(),
            short(version, "digest"),
            version.get("size").and_then(bytes).unwrap_or_default(),
            time(version, "loadedAt"),
            text(version, "by"),
        ]
    });
    format!("\n{}", columns(["", "VERSION", "SIZE", "SINCE", "BY"], rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plugin() -> Value {
        json!({
            "name": "hello", "kind": "wasi:http 0.2 handler", "state": "ready", "version": "1a2b3c4d5e6f",
            "digest": "1a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d1234",
            "component": "/srv/hello\u{1b}.wasm", "imports": ["wasi:io", "berth:host/sql"], "grants": ["sql"],
            "policy": null, "reuse": "serial", "signedBy": "RWQf6LRC", "codeBytes": 1_258_291,
            "limits": { "memory": 67_108_864, "cpuMs": 500, "wallMs": 10_000, "concurrency": 64 },
            "instances": { "inFlight": 2, "queued": 0, "idle": 1 }, "draining": 1,
            "versions": [
                { "digest": "1a2b3c4d5e6f7a8b", "size": 4_404_019, "loadedAt": 1_735_689_600_000_u64, "by": "deploy",
                  "current": true },
                { "digest": "9f8e7d6c5b4a7a8b", "size": 900, "loadedAt": 1_735_689_500_000_u64, "by": "file",
                  "current": false },
            ],
            "requests": { "total": 120, "failed": 3, "unfinished": 1 }, "traps": { "cpu": 2, "memory": 1 },
            "latency": { "p50Us": 400, "p99Us": 2_100, "meanUs": 512.5 }, "cpu": { "meanUs": 300, "p99Us": 1_200 },
            "memory": { "meanBytes": 1_048_576, "maxBytes": 3_145_728 },
            "canary": {
                "digest": "77777777777777777777", "share": 10, "requests": 40, "failed": 1, "p99Us": 3_100,
                "current": { "requests": 360, "failed": 2, "p99Us": 2_000 },
            },
            "canaryBounds": {
                "minRequests": 20, "minFailures": 3, "errorPoints": 5.0, "p99Requests": 100, "p99Factor": 2.0,
                "p99FloorMs": 10, "promoteAfter": 500,
            },
            "lastEvent": { "at": 1_735_689_600_000_u64, "kind": "disabled", "plugin": "hello" },
        })
    }

    #[test]
    fn plugin_is_shown_for_people() {
        assert_eq!(
            lines(&plugin()),
            "\
plugin     hello
state      ready
version    1a2b3c4d5e6f since 2025-01-01T00:00:00Z, by deploy
signed by  RWQf6LRC
kind       wasi:http 0.2 handler
component  /srv/hello.wasm
imports    wasi:io, berth:host/sql
grants     sql
reuse      serial
limits     memory 64.0 MiB, cpu 500 ms, wall 10.0 s, concurrency 64
code       1.2 MiB
instances  2 in flight, 0 queued, 1 idle
draining   1 older version has requests at hand
requests   120, 3 failed, 1 unfinished
traps      cpu 2, memory 1
latency    p50 400 us, p99 2.1 ms, mean 512 us
cpu        mean 300 us, p99 1.2 ms
memory     mean 1.0 MiB, most 3.0 MiB
canary     777777777777 for 10 %: 40 requests, 1 failed, p99 3.1 ms; the current one: 360 requests, 2 failed, p99 2.0 ms
a canary   is taken back when, of 20 requests or more, 3 or more fail and 5.0 points more than of the current version; or when, of 100 or more, the p99 is over 2.0 times and 10 ms above the current one's; serves everybody after 500 requests
last event 2025-01-01T00:00:00Z hello: out of service

   VERSION       SIZE     SINCE                 BY
*  1a2b3c4d5e6f  4.2 MiB  2025-01-01T00:00:00Z  deploy
   9f8e7d6c5b4a  900 B    2024-12-31T23:58:20Z  file
"
        );
    }

    #[test]
    fn what_is_missing_is_left_out() {
        let failed = json!({
            "name": "hello", "state": "failed", "version": null, "canary": null, "lastEvent": null, "versions": [],
            "fault": { "code": "not-wasm", "detail": "the file is not WebAssembly" }, "draining": 0, "traps": {},
        });
        assert_eq!(
            lines(&failed),
            "plugin     hello\nstate      failed\nfault      the file is not WebAssembly (not-wasm)\n"
        );
        for odd in [
            json!(null),
            json!(7),
            json!([]),
            json!({ "limits": 7, "versions": [7], "canary": {} }),
        ] {
            assert!(!lines(&odd).contains("null"));
            table(&[odd]);
        }
    }

    #[test]
    fn table_has_a_row_for_each_and_says_what_needs_attention() {
        let failed = json!({
            "name": "broken", "state": "failed", "fault": { "code": "not-wasm", "detail": "no" },
        });
        assert_eq!(
            table(&[plugin(), failed]),
            "\
PLUGIN  STATE   VERSION       SINCE                 BY      REQUESTS  FAILED  P99
hello   ready   1a2b3c4d5e6f  2025-01-01T00:00:00Z  deploy  120       3       2.1 ms
broken  failed
hello: on trial is 777777777777 for 10 %: 40 requests, 1 failed, p99 3.1 ms; the current one: 360 requests, 2 failed, p99 2.0 ms
broken: no (not-wasm)
"
        );
    }
}
