//! Components that can't be served: the host starts, their routes answer 503, the reason is named where operators look.

use std::path::Path;
use std::process::Command;

use berth_tests::berth::{Berth, Manifest, run};
use berth_tests::components::{self, WRITE, handler, handler_of, log, log_with};
use berth_tests::{guest, root};
use tempfile::TempDir;

/// Start with a bad component beside a good one. The bad one is refused by `code` and a sentence with `says`.
#[track_caller]
fn refused(manifest: Manifest, name: &str, path: &str, code: &str, says: &[&str]) -> Berth {
    let berth = manifest.handler("hello").start();
    let answer = berth.get(path);
    let answer = if answer.status == 405 {
        berth.post(path, "{}")
    } else {
        answer
    };
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "plugin-unavailable"),
        "{}",
        answer.text()
    );
    let event = berth.logged("the refusal", |e| e["plugin"] == name && e["code"] == code);
    let message = event["message"].as_str().unwrap();
    for part in says {
        assert!(message.contains(part), "{message:?} says {part:?}");
    }
    let health = berth.get("/health");
    assert_eq!(
        (health.status, health.json()["status"].as_str()),
        (200, Some("degraded"))
    );
    let plugins = health.json()["plugins"].clone();
    let plugin = plugins
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["name"] == name)
        .unwrap()
        .clone();
    assert_eq!(
        (plugin["state"].as_str(), plugin["code"].as_str()),
        (Some("failed"), Some(code))
    );
    assert_eq!(berth.get("/hello/next").text(), "Hello, next.\n");
    berth
}

fn file(bytes: &[u8]) -> (TempDir, std::path::PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("bad.wasm");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn bad(path: &Path) -> Manifest {
    Manifest::new().handler_file("bad", path, "")
}

/// A pipe would be waited for, and a device has no end.
#[test]
fn component_that_is_no_file_is_refused_and_holds_up_nothing() {
    let folder = TempDir::new().unwrap();
    let pipe = folder.path().join("pipe.wasm");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    for (path, says) in [
        (pipe.as_path(), "this is a pipe, not a file; name a regular file"),
        (Path::new("/dev/zero"), "this is a device, not a file"),
        (folder.path(), "this is a folder, not a file"),
    ] {
        refused(bad(path), "bad", "/bad/x", "unreadable", &[says]);
        let checked = run(bad(path).text(), &["check"], &[]);
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(!checked.status.success() && text.contains(says), "{text}");
    }
}

#[test]
fn ungranted_import_names_the_grant() {
    refused(
        Manifest::new().handler("fixtures/log-handler"),
        "log-handler",
        "/log-handler/x",
        "not-granted",
        &[
            "it imports \"berth:host/log@0.1.0\", which is not granted; add `log = true` to the plugin's `grants`",
            "it imports \"berth:host/settings@0.1.0\", which is not granted; add `settings = true`",
        ],
    );
}

#[test]
fn wrong_version_of_a_policy_names_both() {
    refused(
        Manifest::new().auth("fixtures/auth-wrong-version"),
        "auth",
        "/api/v1/auth/login",
        "wrong-version",
        &[
            "must export berth:policy/auth@0.1.0",
            "it exports berth:policy/auth@0.9.0",
        ],
    );
}

#[test]
fn handler_where_a_policy_should_be_says_what_it_exports() {
    refused(
        Manifest::new().auth("fixtures/echo"),
        "auth",
        "/api/v1/auth/login",
        "wrong-world",
        &["must export berth:policy/auth@0.1.0; it exports wasi:http/incoming-handler@0.2"],
    );
}

#[test]
fn policy_where_a_handler_should_be_says_the_missing_line() {
    refused(
        Manifest::new().handler("fixtures/auth-static"),
        "auth-static",
        "/auth-static/x",
        "wrong-world",
        &["say `policy = \"auth\"` in its table"],
    );
}

#[test]
fn core_module_says_how_to_make_a_component() {
    let module = wat::parse_file(root().join("plugins/fixtures/core-module/module.wat")).unwrap();
    let (_folder, path) = file(&module);
    refused(
        bad(&path),
        "bad",
        "/bad/x",
        "core-module",
        &["core module, not a component", "wasm32-wasip2"],
    );
}

#[test]
fn module_for_preview_1_says_how_to_adapt_it() {
    let text = r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32))))"#;
    let (_folder, path) = file(&wat::parse_str(text).unwrap());
    refused(
        bad(&path),
        "bad",
        "/bad/x",
        "core-module",
        &[
            "the file is a core module for WASI preview 1 (wasm32-wasip1), not a component; build it for wasm32-wasip2, or wrap it with `wasm-tools component new --adapt`",
        ],
    );
}

#[test]
fn missing_feature_and_a_large_instance_are_told_apart_from_damage() {
    let threads = components::build("(component (core module (memory 1 1 shared)))");
    refused(
        bad(&threads.path()),
        "bad",
        "/bad/x",
        "needs-feature",
        &[
            "the component needs a feature of WebAssembly that this host doesn't have: threads must be enabled for shared memories (at offset 0x15); build it without",
        ],
    );
    let five = "(core instance (instantiate $m))".repeat(5);
    let memories = components::build(&format!("(component (core module $m (memory 1)) {five})"));
    refused(
        bad(&memories.path()),
        "bad",
        "/bad/x",
        "oversized",
        &["an instance of the component would be too large: it has 5 memories, and 4 are allowed"],
    );
    // Another plugin may have 64 MiB, so the pools have room; this one may not.
    let large = components::handler("(core module $large (memory 17)) (core instance (instantiate $large))");
    refused(
        Manifest::new().handler_file("bad", &large.path(), "limits = { memory = \"1MiB\" }"),
        "bad",
        "/bad/x",
        "oversized",
        &[
            "an instance of the component would be too large: its memory begins with 1.1 MiB, and `limits.memory` allows 1.0 MiB; raise that, or build with a smaller memory",
        ],
    );
}

#[test]
fn truncated_file_is_told_as_damaged() {
    let whole = std::fs::read(guest("hello")).unwrap();
    let (_folder, path) = file(&whole[..whole.len() / 2]);
    refused(
        bad(&path),
        "bad",
        "/bad/x",
        "malformed",
        &["damaged component, perhaps cut off"],
    );
}

#[test]
fn file_that_is_no_wasm_says_what_it_begins_with() {
    let (_folder, path) = file(b"#!/bin/sh\necho hello\n");
    refused(
        bad(&path),
        "bad",
        "/bad/x",
        "not-wasm",
        &["not WebAssembly: it begins with \"#!/bin/s\""],
    );
}

#[test]
fn empty_and_missing_files_are_told_apart() {
    let (_folder, path) = file(b"");
    refused(bad(&path), "bad", "/bad/x", "not-wasm", &["not WebAssembly"]);
    refused(
        bad(Path::new("nowhere.wasm")),
        "bad",
        "/bad/x",
        "unreadable",
        &["nowhere.wasm: there is no such file"],
    );
}

#[test]
fn broken_auth_policy_fails_closed() {
    let manifest = Manifest::new()
        .auth("fixtures/auth-wrong-version")
        .raw("[limits]\n")
        .handler("hello")
        .raw(
            "[[routes]]\npath = \"/private\"\nplugin = \"hello\"\naccess = \"user\"\n\
         [[routes]]\npath = \"/admins\"\nplugin = \"hello\"\naccess = \"role:admin\"\n",
        );
    let berth = manifest.start();
    for path in ["/private", "/admins", "/api/v1/me"] {
        let answer = berth.get(path);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (503, "auth-unavailable"),
            "{path}"
        );
        assert_eq!(answer.header("retry-after"), Some("5"));
    }
}

/// A handler with `log = true` is refused with exactly this.
#[track_caller]
fn unfit(component: &components::Built, grants: &str, code: &str, message: &str) {
    let manifest = Manifest::new().handler_file("bad", &component.path(), grants);
    let message = format!("can't be loaded, its routes answer 503: {message}");
    let berth = refused(manifest, "bad", "/bad/x", code, &[]);
    let event = berth.logged("the refusal", |e| e["plugin"] == "bad" && e["code"] == code);
    assert_eq!(event["message"].as_str(), Some(message.as_str()));
}

const LOG: &str = "grants = { log = true }";

#[test]
fn function_of_another_type_shows_both_signatures() {
    let write = r#"(export "write" (func (param "level" $level) (param "message" string)))"#;
    unfit(
        &handler(&log("0.1.0", write)),
        LOG,
        "mismatch",
        "it imports `write` of berth:host/log@0.1.0 as `write: func(level: level, message: string)`, but this host offers `write: func(level: level, message: string, fields: list<field>)`; build it against this host's wit/",
    );
}

#[test]
fn record_with_another_field_shows_both_records() {
    unfit(
        &handler(&log_with("0.1.0", r#"(field "name" string)"#, WRITE)),
        LOG,
        "mismatch",
        "it imports `write` of berth:host/log@0.1.0 with `record field { name: string }`, but this host offers it with `record field { name: string, value: string }`: of the component's `field`, it has no field `value`; build it against this host's wit/",
    );
}

#[test]
fn function_that_is_missing_names_the_nearest() {
    unfit(
        &handler(&log("0.1.0", r#"(export "wriet" (func))"#)),
        LOG,
        "mismatch",
        "it imports `wriet` of berth:host/log@0.1.0, which this host doesn't have; did you mean `write`?",
    );
}

#[test]
fn newer_patch_with_known_functions_loads() {
    let component = handler_of("0.2.99", &log("0.1.9", WRITE));
    let manifest = Manifest::new().handler_file("new", &component.path(), LOG);
    let berth = manifest.start();
    let plugins = berth.get("/health").json()["plugins"].clone();
    assert_eq!(
        (plugins[0]["state"].as_str(), plugins[0]["kind"].as_str()),
        (Some("ready"), Some("wasi:http 0.2 handler"))
    );
}

#[test]
fn newer_patch_with_an_unknown_function_is_one_sentence() {
    let import =
        r#"(import "wasi:cli/environment@0.2.99" (instance (export "get-secrets" (func (result string)))))"#;
    unfit(
        &handler(import),
        "",
        "mismatch",
        "it imports `get-secrets` of wasi:cli/environment@0.2.99, which this host's wasi:cli/environment@0.2.12 doesn't have; build it for that version",
    );
    let import =
        r#"(import "wasi:cli/environment@0.3.2" (instance (export "get-secrets" (func (result string)))))"#;
    unfit(
        &handler(import),
        "",
        "mismatch",
        "it imports `get-secrets` of wasi:cli/environment@0.3.2, which this host's wasi:cli/environment@0.3.0 doesn't have; build it for that version",
    );
}

#[test]
fn unknown_interface_and_version_name_what_there_is() {
    unfit(
        &handler(r#"(import "berth:host/logs@0.1.0" (instance (export "f" (func))))"#),
        LOG,
        "mismatch",
        "it imports \"berth:host/logs@0.1.0\", which this host doesn't have; did you mean \"berth:host/log@0.1.0\"?",
    );
    unfit(
        &handler(&log("0.9.0", WRITE)),
        LOG,
        "mismatch",
        "it imports \"berth:host/log@0.9.0\", but this host offers berth:host/log@0.1.0; build it for that version",
    );
}

#[test]
fn function_outside_any_interface_is_told() {
    unfit(
        &handler(r#"(import "f" (func))"#),
        "",
        "mismatch",
        "it imports \"f\" outside any interface, which no host gives; import it from an interface of this host's wit/",
    );
}

/// WIT has no words for a type that is exported by itself; wasmtime doesn't mind it.
#[test]
fn component_that_is_no_wit_is_told_by_its_names() {
    let odd = format!(
        r#"{} (type $t (list u8)) (export "t" (type $t))"#,
        log("0.1.0", WRITE)
    );
    unfit(
        &handler(&odd),
        "",
        "not-granted",
        "it imports \"berth:host/log@0.1.0\", which is not granted; add `log = true` to the plugin's `grants`",
    );
    let odd = handler(&odd);
    let berth = Manifest::new().handler_file("odd", &odd.path(), LOG).start();
    assert_eq!(berth.get("/health").json()["status"], "healthy");
}

#[test]
fn all_faults_of_a_component_are_told_at_once() {
    let imports = format!(
        "{}\n{}",
        log("0.1.0", r#"(export "write" (func (param "level" $level)))"#),
        r#"(import "acme:store/shelf@1.0.0" (instance (export "f" (func))))"#
    );
    unfit(
        &handler(&imports),
        "",
        "not-granted",
        "it imports \"berth:host/log@0.1.0\", which is not granted; add `log = true` to the plugin's `grants`; \
         it imports `write` of berth:host/log@0.1.0 as `write: func(level: level)`, but this host offers `write: func(level: level, message: string, fields: list<field>)`; build it against this host's wit/; \
         it imports \"acme:store/shelf@1.0.0\", which this host doesn't have; a component may import WASI 0.2, WASI 0.3 and what `grants` gives",
    );
}
