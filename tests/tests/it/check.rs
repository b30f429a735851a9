//! The command line: `check`, `routes`, `--help`, exit codes.

use std::process::Output;

use berth_tests::berth::{Manifest, run};
use berth_tests::root;

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
    let manifest = Manifest::new().auth("auth").handler("hello").handler("hello-p3");
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
        out.ends_with("berth.toml: 3 plugins, 15 routes, 0 faults\n"),
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
