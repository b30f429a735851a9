//! An event, and a line of a plugin's log, in a sentence.
//!
//! The API may grow: a kind that isn't known is shown with what it has.

use serde_json::Value;

use crate::client::Refusal;
use crate::text::{at, clean, duration, exact_time, plain, short, size, text, time, visible};

/// The parts of a swap, in their order, and the members that say how long each took.
const STEPS: [(&str, &str); 6] = [
    ("read", "readUs"),
    ("verify", "verifyUs"),
    ("compile", "compileUs"),
    ("link", "linkUs"),
    ("probe", "probeUs"),
    ("switch", "switchUs"),
];

/// A name, a member, and how its number is written.
type Measure = (&'static str, &'static str, fn(f64) -> String);
/// What is compared of two versions.
const USAGE: [Measure; 6] = [
    ("p50", "p50Us", duration),
    ("p99", "p99Us", duration),
    ("cpu mean", "cpuMeanUs", duration),
    ("cpu p99", "cpuP99Us", duration),
    ("memory mean", "memoryMeanBytes", bytes),
    ("memory most", "memoryMaxBytes", bytes),
];

/// A line of a list.
pub(super) fn line(event: &Value) -> String {
    let kind = text(event, "kind");
    let by = text(event, "by");
    let line = format!("{}  {kind:16}  {by:8}  {}", time(event, "at"), sentence(event));
    format!("{}\n", line.trim_end())
}

/// What happened.
pub(super) fn sentence(event: &Value) -> String {
    let (from, to) = (short(event, "from"), short(event, "to"));
    let took = took(event);
    let said = match text(event, "kind").as_str() {
        "swapped" if from == to => unchanged(&to),
        "unchanged" => unchanged(&to),
        "swapped" => format!("{}{took}", change(&from, &to)),
        "rolled-back" if from.is_empty() => format!("back to {to}{took}"),
        "rolled-back" => format!("back from {from} to {to}{took}"),
        "refused" => refused(event, &from, &to),
        "canary-started" => match text(event, "share") {
            share if share.is_empty() => format!("{to} is on trial{took}{}", serves_on(&from)),
            share => format!(
                "{to} is on trial with {share} of the callers{took}{}",
                serves_on(&from)
            ),
        },
        "canary-withdrawn" => format!("{to} is withdrawn{}{}", serves_on(&from), because(event)),
        "canary-failed" => format!(
            "the trial of {to} has ended{}{}",
            serves_on(&from),
            because(event)
        ),
        "promoted" => format!("{to} has passed its trial{}{took}", instead(&from)),
        "disabled" => format!("out of service{}", because(event)),
        "enabled" if to.is_empty() => format!("in service again{}", because(event)),
        "enabled" => format!("in service again with {to}{took}"),
        "measured" => measured(event, &from, &to),
        "manifest-applied" => format!("the manifest was applied{}", parts(event)),
        "manifest-refused" => match text(event, "faults") {
            faults if faults.is_empty() => format!("the manifest was refused{}", because(event)),
            _ => format!(
                "the manifest was refused, and nothing was changed: {}",
                list(event, "faults", "; ")
            ),
        },
        other => {
            let versions = match (from.is_empty(), to.is_empty()) {
                (true, true) => String::new(),
                _ => format!(" {}", change(&from, &to)),
            };
            format!("{other}{versions}{took}{}", because(event))
        }
    };
    match text(event, "plugin") {
        plugin if plugin.is_empty() => said,
        plugin => format!("{plugin}: {said}"),
    }
}

fn change(from: &str, to: &str) -> String {
    match from.is_empty() {
        true => format!("{to} serves"),
        false => format!("{from} → {to}"),
    }
}

fn unchanged(version: &str) -> String {
    match version.is_empty() {
        true => "nothing has changed".to_owned(),
        false => format!("{version} serves already; nothing has changed"),
    }
}

fn list(event: &Value, member: &str, between: &str) -> String {
    let entries = event.get(member).and_then(Value::as_array);
    let entries: Vec<String> = entries.into_iter().flatten().map(plain).collect();
    entries.join(between)
}

/// What a manifest has changed.
fn parts(event: &Value) -> String {
    let named = |member: &str, word: &str| match list(event, member, ", ") {
        names if names.is_empty() => None,
        names => Some(format!("{word} {names}")),
    };
    let parts: Vec<String> = [
        ("added", "added"),
        ("changed", "changed"),
        ("removed", "removed"),
        ("needsRestart", "to take effect at the next start:"),
    ]
    .into_iter()
    .filter_map(|(member, word)| named(member, word))
    .collect();
    match parts.is_empty() {
        true => because(event),
        false => format!(": {}", parts.join("; ")),
    }
}

fn serves_on(version: &str) -> String {
    match version.is_empty() {
        true => String::new(),
        false => format!("; {version} serves on"),
    }
}

fn instead(version: &str) -> String {
    match version.is_empty() {
        true => " and serves all".to_owned(),
        false => format!(" and serves instead of {version}"),
    }
}

fn because(event: &Value) -> String {
    match text(event, "reason") {
        reason if reason.is_empty() => String::new(),
        reason => format!(": {reason}"),
    }
}

fn refused(event: &Value, from: &str, to: &str) -> String {
    let what = match to.is_empty() {
        true => "a version is refused".to_owned(),
        false => format!("{to} is refused"),
    };
    let code = match text(event, "code") {
        code if code.is_empty() => String::new(),
        code => format!(" ({code})"),
    };
    let reasons = Refusal::of(event.clone()).map_or_else(Vec::new, |refusal| refusal.reasons());
    let why = match reasons.is_empty() {
        true => because(event),
        false => format!(": {}", reasons.join("; ")),
    };
    format!("{what}{code}{}{why}", serves_on(from))
}

/// ` in 61 ms (read 1, compile 48, …)`, in milliseconds.
fn took(event: &Value) -> String {
    let Some(steps) = event.get("steps").filter(|steps| steps.is_object()) else {
        return String::new();
    };
    let is_cached = steps.get("cached").and_then(Value::as_bool) == Some(true);
    let parts: Vec<String> = STEPS
        .iter()
        .filter_map(|(name, member)| {
            let us = steps.get(*member)?.as_f64()?;
            // Nothing was asked to be signed.
            if us == 0.0 && *name == "verify" {
                return None;
            }
            let name = match *name {
                "compile" if is_cached => "cache",
                name => name,
            };
            Some(format!("{name} {:.0}", us / 1e3))
        })
        .collect();
    let total = match steps.get("totalUs").and_then(Value::as_f64) {
        Some(us) => format!(" in {}", duration(us)),
        None => String::new(),
    };
    match parts.is_empty() {
        true => total,
        false => format!("{total} ({})", parts.join(", ")),
    }
}

/// What one version took, against the one before.
fn measured(event: &Value, from: &str, to: &str) -> String {
    let (before, after) = (at(event, "before"), at(event, "after"));
    let number = |usage: &Value, member: &str| usage.get(member).and_then(Value::as_f64);
    let parts: Vec<String> = USAGE
        .iter()
        .filter_map(
            |(name, member, write)| match (number(before, member), number(after, member)) {
                (Some(before), Some(after)) => Some(format!("{name} {} → {}", write(before), write(after))),
                (None, Some(after)) => Some(format!("{name} {}", write(after))),
                _ => None,
            },
        )
        .collect();
    let requests = [before, after].map(|usage| text(usage, "requests"));
    let over = match requests.each_ref().map(String::as_str) {
        ["", ""] => String::new(),
        ["", after] => format!(" over {after} requests"),
        [before, after] => format!(" over {before} and {after} requests"),
    };
    format!(
        "{} measured{over}: {}",
        change(from, to).replace(" serves", ""),
        parts.join(", ")
    )
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a mean of bytes; what is no size is shown as none"
)]
fn bytes(number: f64) -> String {
    size(number.max(0.0) as u64)
}

/// A line of a plugin's log. What the guest wrote stays on it, and is all there.
pub(super) fn log_line(line: &Value) -> String {
    let level = text(line, "level").to_uppercase();
    let source = text(line, "source");
    let message = line.get("message").and_then(Value::as_str).unwrap_or_default();
    let origin: Vec<String> = [short(line, "version"), text(line, "requestId")]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect();
    let origin = match origin.is_empty() {
        true => String::new(),
        false => format!("  [{}]", origin.join(" ")),
    };
    let at = exact_time(line, "at");
    format!("{at}  {level:5}  {source:6}  {}{origin}\n", visible(message))
}

/// Why a component isn't served, and what is instead; several lines.
pub(super) fn refusal(plugin: &str, serving: &Value, refusal: &Refusal) -> String {
    let version = short(serving, "version");
    let instead = match text(serving, "state").as_str() {
        "disabled" => "the plugin stays out of service".to_owned(),
        _ if version.is_empty() => "its routes answer 503 as before".to_owned(),
        _ => format!("{version} serves on"),
    };
    let reasons = refusal.reasons().join("\n  ");
    format!(
        "{}: the component is refused ({}); {instead}\n  {reasons}",
        clean(plugin),
        refusal.code
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const OLD: &str = "1a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d1234";
    const NEW: &str = "9f8e7d6c5b4a7a8b9c0d1a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d1234";

    #[test]
    fn swap_is_one_sentence_with_its_parts() {
        let mut event = json!({
            "seq": 7, "at": 1_735_689_600_000_u64, "kind": "swapped", "plugin": "hello", "by": "deploy",
            "from": OLD, "to": NEW, "size": 1000,
            "steps": {
                "readUs": 900, "verifyUs": 0, "compileUs": 48_100, "cached": false, "linkUs": 5_900,
                "probeUs": 2_100, "switchUs": 12, "totalUs": 61_100,
            },
        });
        assert_eq!(
            sentence(&event),
            "hello: 1a2b3c4d5e6f → 9f8e7d6c5b4a in 61 ms (read 1, compile 48, link 6, probe 2, switch 0)"
        );
        assert_eq!(
            line(&event),
            "2025-01-01T00:00:00Z  swapped           deploy    hello: 1a2b3c4d5e6f → 9f8e7d6c5b4a in 61 ms \
             (read 1, compile 48, link 6, probe 2, switch 0)\n"
        );
        event["steps"] = json!({ "verifyUs": 1_000, "compileUs": 2_000, "cached": true, "totalUs": 4_300 });
        event["from"] = json!(null);
        assert_eq!(
            sentence(&event),
            "hello: 9f8e7d6c5b4a serves in 4.3 ms (verify 1, cache 2)"
        );
        event["from"] = json!(NEW);
        assert_eq!(
            sentence(&event),
            "hello: 9f8e7d6c5b4a serves already; nothing has changed"
        );
    }

    #[test]
    fn every_kind_has_its_sentence() {
        let versions = json!({ "plugin": "hello", "from": OLD, "to": NEW });
        for (kind, more, expected) in [
            (
                "rolled-back",
                json!({}),
                "hello: back from 1a2b3c4d5e6f to 9f8e7d6c5b4a",
            ),
            (
                "refused",
                json!({ "code": "not-granted", "reason": "no", "faults": ["a", { "message": "b" }, 7] }),
                "hello: 9f8e7d6c5b4a is refused (not-granted); 1a2b3c4d5e6f serves on: a; b",
            ),
            (
                "refused",
                json!({ "to": null, "from": null, "reason": "no" }),
                "hello: a version is refused: no",
            ),
            (
                "canary-started",
                json!({}),
                "hello: 9f8e7d6c5b4a is on trial; 1a2b3c4d5e6f serves on",
            ),
            (
                "canary-started",
                json!({ "share": "10%" }),
                "hello: 9f8e7d6c5b4a is on trial with 10% of the callers; 1a2b3c4d5e6f serves on",
            ),
            (
                "canary-withdrawn",
                json!({ "reason": "the manifest has changed" }),
                "hello: 9f8e7d6c5b4a is withdrawn; 1a2b3c4d5e6f serves on: the manifest has changed",
            ),
            (
                "unchanged",
                json!({ "from": null }),
                "hello: 9f8e7d6c5b4a serves already; nothing has changed",
            ),
            (
                "canary-failed",
                json!({ "reason": "7 of 40 failed" }),
                "hello: the trial of 9f8e7d6c5b4a has ended; 1a2b3c4d5e6f serves on: 7 of 40 failed",
            ),
            (
                "promoted",
                json!({}),
                "hello: 9f8e7d6c5b4a has passed its trial and serves instead of 1a2b3c4d5e6f",
            ),
            ("disabled", json!({}), "hello: out of service"),
            ("enabled", json!({}), "hello: in service again with 9f8e7d6c5b4a"),
            (
                "measured",
                json!({
                    "before": { "requests": 500, "p99Us": 2_100, "memoryMaxBytes": 1_048_576 },
                    "after": { "requests": 480, "p99Us": 1_900.4, "memoryMaxBytes": 2_097_152, "p50Us": 35 },
                }),
                "hello: 1a2b3c4d5e6f → 9f8e7d6c5b4a measured over 500 and 480 requests: p50 35 us, \
                 p99 2.1 ms → 1.9 ms, memory most 1.0 MiB → 2.0 MiB",
            ),
            (
                "manifest-applied",
                json!({ "plugin": null, "reason": "2 routes more" }),
                "the manifest was applied: 2 routes more",
            ),
            (
                "manifest-applied",
                json!({ "plugin": null, "added": ["a", "b"], "removed": ["c"], "needsRestart": ["http", "data"] }),
                "the manifest was applied: added a, b; removed c; to take effect at the next start: http, data",
            ),
            (
                "manifest-refused",
                json!({ "plugin": null, "faults": ["berth.toml:1:2: x: no", "berth.toml:3:4: y: no"] }),
                "the manifest was refused, and nothing was changed: berth.toml:1:2: x: no; berth.toml:3:4: y: no",
            ),
            (
                "moved-house",
                json!({ "reason": "x" }),
                "hello: moved-house 1a2b3c4d5e6f → 9f8e7d6c5b4a: x",
            ),
        ] {
            let mut event = versions.clone();
            let members = event.as_object_mut().unwrap();
            members.insert("kind".to_owned(), json!(kind));
            members.extend(more.as_object().unwrap().clone());
            assert_eq!(sentence(&event), expected);
        }
        assert_eq!(sentence(&json!({})), "");
        assert_eq!(sentence(&json!(7)), "");
    }

    #[test]
    fn refusal_says_what_serves_on() {
        let problem = json!({
            "code": "not-granted", "detail": "it doesn't fit", "errors": [{ "pointer": "/", "detail": "add sql\u{1b}" }],
        });
        let refused = Refusal::of(problem).unwrap();
        let serving = json!({ "state": "ready", "version": "1a2b3c4d5e6f" });
        assert_eq!(
            refusal("hello", &serving, &refused),
            "hello: the component is refused (not-granted); 1a2b3c4d5e6f serves on\n  add sql"
        );
        let failed = json!({ "state": "failed", "version": null });
        assert!(refusal("hello", &failed, &refused).contains("; its routes answer 503 as before\n"));
        let disabled = json!({ "state": "disabled", "version": "1a2b3c4d5e6f" });
        assert!(refusal("hello", &disabled, &refused).contains("; the plugin stays out of service\n"));
        for other in [json!({}), json!([]), json!({ "code": 7 }), json!({ "code": "" })] {
            assert!(Refusal::of(other).is_none());
        }
    }

    #[test]
    fn log_line_of_a_hostile_guest_stays_on_its_line() {
        let line = json!({
            "at": 1_735_689_600_007_u64, "level": "warn", "source": "guest", "version": OLD,
            "requestId": "0192", "message": "a\n\u{1b}[31mb\tc\u{202e}\n",
        });
        assert_eq!(
            log_line(&line),
            "2025-01-01T00:00:00.007Z  WARN   guest   a\\n\\u{1b}[31mb\tc\\u{202e}  [1a2b3c4d5e6f 0192]\n"
        );
        let bare = json!({ "at": 0, "level": "info", "source": "host", "message": "loaded" });
        assert_eq!(
            log_line(&bare),
            "1970-01-01T00:00:00.000Z  INFO   host    loaded\n"
        );
    }
}
