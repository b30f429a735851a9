//! The command line: `check`, `routes`, `--help`, exit codes.

use std::process::Output;

use berth_tests::berth::{Manifest, run};
use berth_tests::components::{self, WRITE, handler, log};
use berth_tests::{guest, root};

fn text(output: &Output) -> (i32, String, String) {
    let utf8 = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        utf8(&output.stdout),
        utf8(&output.stderr),
    )
}

#[test]
fn check_of_a_good_manifest_says_what_everything_is() {
    let manifest = Manifest::new().accounts().handler("hello").handler("hello-p3");
    let (code, out, err) = text(&run(manifest.text(), &["check"], &[]));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("ok      auth: auth policy, version "), "{out}");
    assert!(
        out.contains("ok      hello: wasi:http 0.2 handler, version "),
        "{out}"
    );
    assert!(
        out.contains("ok      hello-p3: wasi:http 0.3 handler (experimental), version "),
        "{out}"
    );
    assert!(
        out.ends_with("berth.toml: 3 plugins, 16 routes, 0 faults\n"),
        "{out}"
    );
}

#[test]
fn check_finds_every_faulty_component() {
    let manifest = Manifest::new()
        .handler("hello")
        .handler("fixtures/log-handler")
        .handler_file("gone", "nowhere.wasm".as_ref(), "");
    let (code, out, _) = text(&run(manifest.text(), &["check"], &[]));
    assert_eq!(code, 64);
    assert!(
        out.contains("faulty  log-handler: it imports \"berth:host/"),
        "{out}"
    );
    assert!(
        out.contains("it imports \"berth:host/log@0.1.0\", which is not granted"),
        "{out}"
    );
    assert!(
        out.contains("faulty  gone: ") && out.contains("there is no such file"),
        "{out}"
    );
    assert!(out.ends_with("2 faults\n"), "{out}");
    let (code, out, _) = text(&run(manifest.text(), &["check", "--json"], &[]));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, json["ok"].as_bool()), (64, Some(false)));
    let codes: Vec<_> = json["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["code"].as_str())
        .collect();
    assert_eq!(codes, [Some("unreadable"), None, Some("not-granted")]);
}

#[test]
fn faulty_manifest_stops_the_start_with_all_its_faults_and_64() {
    let manifest = "[htp]\n[limits]\ncpu = 5\n";
    for command in ["serve", "up", "check", "routes"] {
        let (code, out, err) = text(&run(manifest, &[command], &[]));
        assert_eq!((code, out.as_str()), (64, ""), "{command}");
        assert_eq!(
            err,
            "berth.toml:1:2: htp: there is no such key; did you mean \"http\"?\n\
             berth.toml:3:7: limits.cpu: must be a time with its unit as in \"500ms\" or \"10s\", not an integer\n\
             berth: 2 faults in berth.toml\n",
            "{command}"
        );
    }
    let (code, out, _) = text(&run(manifest, &["check", "--json"], &[]));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, json["manifest"][1]["line"].as_u64()), (64, Some(3)));
}

#[test]
fn address_that_is_taken_is_told_with_the_line_to_change() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let manifest = format!("[http]\nlisten = \"{address}\"\n[admin]\nlisten = \"off\"\n");
    let (code, _, err) = text(&run(&manifest, &["serve"], &[]));
    assert_eq!(code, 1);
    assert!(
        err.contains(&format!(
            "berth: [http] listen = \"{address}\": Address already in use"
        )),
        "{err}"
    );
    assert!(
        err.contains("stop what listens there, or choose another"),
        "{err}"
    );
}

#[test]
fn help_teaches_and_wrong_arguments_are_2() {
    let (code, out, _) = text(&run("", &["--help"], &[]));
    assert_eq!(code, 0);
    for part in ["berth check", "[[routes]]", "BERTH_<SECTION>_<KEY>", "RUST_LOG"] {
        assert!(out.contains(part), "{part} in:\n{out}");
    }
    for command in ["up", "serve", "check", "routes"] {
        let (code, out, _) = text(&run("", &[command, "--help"], &[]));
        assert!(code == 0 && out.contains("--config <FILE>"), "{command}: {out}");
    }
    assert_eq!(text(&run("", &["serve", "--confg", "x"], &[])).0, 2);
}

#[test]
fn bundled_manifest_is_good() {
    let manifest = root().join("plugins/berth.toml");
    let (code, out, err) = text(&run("", &["check", "--config", manifest.to_str().unwrap()], &[]));
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn check_says_what_a_component_is_made_of() {
    let manifest =
        Manifest::new().handler_with("fixtures/log-handler", "grants = { log = true, settings = true }");
    let (code, out, err) = text(&run(manifest.text(), &["check"], &[]));
    assert_eq!((code, err.as_str()), (0, ""));
    let lines: Vec<&str> = out.lines().map(str::trim).collect();
    assert!(
        lines[1].starts_with("file ")
            && lines[1].contains("KiB, machine code ")
            && lines[1].contains("core modules, memory from 1.1 MiB, WASI 0.2."),
        "{out}"
    );
    assert!(
        lines
            .iter()
            .any(|l| l.ends_with("berth:host@0.1.0 (settings, log): granted")),
        "{out}"
    );
    assert!(
        lines
            .iter()
            .any(|l| l.starts_with("imports wasi:") && l.ends_with(": WASI")),
        "{out}"
    );
    // The guests have names.
    assert!(
        out.ends_with("berth.toml: 1 plugin, 2 routes, 0 faults\n"),
        "{out}"
    );
}

#[test]
fn grant_that_nobody_uses_and_missing_names_are_warnings() {
    let imports = format!("{} (core module (memory 1) (func))", log("0.1.0", WRITE));
    let nameless = handler(&imports);
    let manifest =
        Manifest::new().handler_file("x", &nameless.path(), "grants = { log = true, settings = true }");
    let (code, out, err) = text(&run(manifest.text(), &["check"], &[]));
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(
        out.contains("\n        warning 1 of its 2 core modules has no function names, so the backtrace of a trap has none; build with `strip = \"debuginfo\"`, not `strip = true`\n"),
        "{out}"
    );
    assert!(
        out.contains("\n        warning `grants` has `settings`, and the component doesn't import berth:host/settings; take it out\n"),
        "{out}"
    );
    assert!(
        out.ends_with("berth.toml: 1 plugin, 2 routes, 2 warnings, 0 faults\n"),
        "{out}"
    );
    let (_, out, _) = text(&run(manifest.text(), &["check", "--json"], &[]));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    let codes: Vec<_> = json["plugins"][0]["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| w["code"].as_str())
        .collect();
    assert_eq!(
        (json["ok"].as_bool(), codes),
        (Some(true), vec![Some("no-names"), Some("unused-grant")])
    );
}

#[test]
fn component_by_itself_is_checked_without_a_manifest() {
    let path = guest("fixtures/log-handler");
    let path = path.to_str().unwrap();
    let (code, out, err) = text(&run("", &["check", path], &[]));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        out.starts_with("ok      log-handler.wasm: wasi:http 0.2 handler, version "),
        "{out}"
    );
    assert!(
        out.contains("berth:host@0.1.0 (settings, log): needs a grant\n"),
        "{out}"
    );
    assert!(
        out.contains("\n        needs   grants = { settings = true, log = true }\n"),
        "{out}"
    );
    assert!(out.ends_with(&format!("{path}: 0 faults\n")), "{out}");

    let auth = guest("auth");
    let auth = auth.to_str().unwrap();
    for arguments in [&["check", auth] as &[&str], &["check", auth, "--policy", "auth"]] {
        let (code, out, _) = text(&run("", arguments, &[]));
        assert!(
            code == 0 && out.starts_with("ok      auth.wasm: auth policy, version "),
            "{out}"
        );
    }

    let (code, out, _) = text(&run("", &["check", path, "--policy", "auth", "--json"], &[]));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    let plugin = &json["plugins"][0];
    assert_eq!(
        (code, json["ok"].as_bool(), plugin["code"].as_str()),
        (64, Some(false), Some("wrong-world"))
    );
    assert_eq!(plugin["faults"][0]["kind"], "wrong-world");
    assert_eq!(plugin["faults"][0]["host"], "berth:policy/auth@0.1.0");
    assert_eq!(plugin["needs"], serde_json::json!(["settings", "log"]));
    assert!(plugin["bytes"].as_u64().unwrap() > 10_000);
    assert_eq!(plugin["memories"][0]["initial_pages"], 17);
    assert_eq!(plugin["wasi"].as_array().unwrap().len(), 1);

    let (code, out, _) = text(&run("", &["check", "nowhere.wasm"], &[]));
    assert_eq!(
        (code, out.as_str()),
        (
            64,
            "faulty  nowhere.wasm: nowhere.wasm: there is no such file; build the component, or correct `component`\nnowhere.wasm: 1 fault\n"
        )
    );
    // A manifest in its place is meant as one; a policy that doesn't exist is a wrong argument.
    let (code, out, _) = text(&run("", &["check", "berth.toml"], &[]));
    assert_eq!(
        (code, out.as_str()),
        (0, "berth.toml: 0 plugins, 1 route, 0 faults\n")
    );
    assert_eq!(text(&run("", &["check", path, "--policy", "auht"], &[])).0, 2);
    assert_eq!(text(&run("", &["check", "--policy", "auth"], &[])).0, 2);
}

#[test]
fn every_fault_of_a_component_has_a_line_and_a_value() {
    let imports = format!(
        "{}\n{}",
        log("0.1.0", r#"(export "write" (func (param "level" $level)))"#),
        r#"(import "wasi:cli/environment@0.2.99" (instance (export "get-secrets" (func (result string)))))"#
    );
    let component = handler(&imports);
    let manifest = Manifest::new().handler_file("x", &component.path(), "");
    let (code, out, _) = text(&run(manifest.text(), &["check"], &[]));
    assert_eq!(code, 64);
    let told = "faulty  x: it imports \"berth:host/log@0.1.0\", which is not granted; add `log = true` to the plugin's `grants`
        it imports `write` of berth:host/log@0.1.0 as `write: func(level: level)`, but this host offers `write: func(level: level, message: string, fields: list<field>)`; build it against this host's wit/
        it imports `get-secrets` of wasi:cli/environment@0.2.99, which this host's wasi:cli/environment@0.2.12 doesn't have; build it for that version
        file ";
    assert!(out.starts_with(told), "{out}");
    assert!(out.contains("berth:host@0.1.0 (log): not granted\n"), "{out}");
    assert!(out.ends_with(" 1 fault\n"), "{out}");
    let (_, out, _) = text(&run(manifest.text(), &["check", "--json"], &[]));
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    let plugin = &json["plugins"][0];
    assert_eq!(plugin["code"], "not-granted");
    let kinds: Vec<_> = plugin["faults"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["not-granted", "wrong-type", "unknown-function"]);
    assert_eq!(plugin["faults"][0]["grant"], "log");
    assert_eq!(plugin["faults"][1]["component"], "write: func(level: level)");
    let status = |name: &str| {
        let imports = plugin["imports"].as_array().unwrap();
        imports.iter().find(|i| i["name"] == name).unwrap()["status"].clone()
    };
    assert_eq!(status("berth:host/log@0.1.0"), "not-granted");
    assert_eq!(status("wasi:http/types@0.2.6"), "wasi");
}

#[test]
fn component_that_cannot_be_listed_is_a_warning() {
    let odd = handler(r#"(type $t (list u8)) (export "t" (type $t))"#);
    let (code, out, _) = text(&run("", &["check", odd.path().to_str().unwrap()], &[]));
    assert!(
        code == 0 && out.starts_with("ok      built.wasm: wasi:http 0.2 handler"),
        "{out}"
    );
    assert!(
        out.contains("\n        warning its imports and exports can't be listed: component export `t` was not a function or instance\n"),
        "{out}"
    );
}

#[test]
fn misspelt_variable_is_a_fault_of_every_command() {
    let built = components::handler("");
    let manifest = Manifest::new().handler_file("x", &built.path(), "");
    for command in ["serve", "up", "check", "routes"] {
        let (code, _, err) = text(&run(
            manifest.text(),
            &[command],
            &[("BERTH_HTTP_LISEN", "127.0.0.1:0")],
        ));
        assert_eq!(
            (code, err.as_str()),
            (
                64,
                "berth.toml: the environment variable BERTH_HTTP_LISEN: stands for no key; did you mean BERTH_HTTP_LISTEN?\nberth: 1 fault in berth.toml\n"
            ),
            "{command}"
        );
    }
    let strangers = [("BERTH_BIN", "x"), ("BERTH_GUESTS", "x"), ("BERTH_WASMTIME", "x")];
    assert_eq!(text(&run(manifest.text(), &["check"], &strangers)).0, 0);
}

#[test]
fn check_finds_what_would_stop_the_start_and_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let inside = |name: &str| folder.path().join(name);
    let check = |manifest: &str| text(&run(manifest, &["check"], &[]));
    let postgres = |more: &str| format!("[data]\ndir = {:?}\n[postgres]\n{more}\n", inside("data"));
    let (code, _, err) = check(&postgres("url = \"postgres://ada@db.test/app?sslmode=foo\""));
    assert_eq!(code, 64);
    assert!(
        err.contains("berth.toml:4:7: postgres.url: unknown value \"foo\" for sslmode"),
        "{err}"
    );
    let with_password = postgres(&format!(
        "url = \"postgres://ada@db.test/app\"\npassword_file = {:?}",
        inside("password")
    ));
    let (code, _, err) = check(&with_password);
    assert_eq!(code, 64);
    assert!(
        err.contains("postgres.password_file: ") && err.contains("No such file or directory"),
        "{err}"
    );
    std::fs::write(inside("password"), "x").unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(inside("password"), private).unwrap();
    let (code, out, err) = check(&with_password);
    assert_eq!(code, 0, "{out}{err}");
    assert!(!inside("data").exists(), "nothing was made");
    std::fs::write(inside("data"), "").unwrap();
    let (code, _, err) = check(&with_password);
    assert_eq!(code, 64);
    assert!(
        err.contains("data.dir: ") && err.contains("set data.dir or BERTH_DATA_DIR"),
        "{err}"
    );
}
