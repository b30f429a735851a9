//! Components that can't be served: the host starts, their routes answer 503, the reason is named where operators look.

use std::path::Path;

use berth_tests::berth::{Berth, Manifest};
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
