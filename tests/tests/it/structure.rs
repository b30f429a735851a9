//! Promises about the repository itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_tests::root;

/// Every file that git tracks.
fn tracked() -> Vec<PathBuf> {
    let out = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "git ls-files");
    let text = String::from_utf8(out.stdout).unwrap();
    let files: Vec<PathBuf> = text
        .split('\0')
        .filter(|f| !f.is_empty())
        .map(PathBuf::from)
        .collect();
    assert!(files.len() > 50, "the whole repository, not {}", files.len());
    files
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn sources() -> Vec<(PathBuf, String)> {
    let rust = tracked()
        .into_iter()
        .filter(|f| f.extension().is_some_and(|e| e == "rs"));
    rust.filter(|f| root().join(f).is_file())
        .map(|f| (f.clone(), read(&f)))
        .collect()
}

#[test]
fn visible_top_level_is_fixed() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "host",
        "plugins",
        "wit",
        "migrations",
        "tests",
        "justfile",
        "README.md",
    ];
    let found: BTreeSet<String> = tracked()
        .iter()
        .filter_map(|f| {
            f.components()
                .next()
                .map(|c| c.as_os_str().to_string_lossy().into_owned())
        })
        .filter(|name| !name.starts_with('.'))
        .collect();
    assert_eq!(found, allowed.map(str::to_owned).into_iter().collect());
}

#[test]
fn files_stay_readable() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|(file, text)| (text.lines().count(), file))
        .filter(|(lines, _)| *lines > 800)
        .collect();
    assert!(long.is_empty(), "over 800 lines: {long:?}");
}

#[test]
fn ci_and_readme_name_the_same_test_command() {
    let command = "cargo xtask test";
    assert_eq!(
        read(".ci/run")
            .lines()
            .rfind(|l| !l.trim().is_empty())
            .map(str::trim),
        Some(command)
    );
    assert!(read("README.md").contains(command));
    assert!(read("README.md").contains("cargo xtask up"));
}

/// One place makes statuses, so that one table can pin them.
#[test]
fn only_respond_turns_errors_into_statuses() {
    let named: Vec<_> = sources()
        .into_iter()
        .filter(|(file, _)| file.starts_with("host/berth-host/src") || file.starts_with("host/berth/src"))
        .filter(|(file, _)| !file.starts_with("host/berth-host/src/respond") && !file.ends_with("respond.rs"))
        .filter(|(_, text)| text.contains("StatusCode") || text.contains("from_u16("))
        .map(|(file, _)| file)
        .collect();
    assert!(named.is_empty(), "these name a status: {named:?}");
}

/// What a guest gets is decided from the manifest alone, without the engine.
#[test]
fn grants_are_decided_by_pure_files() {
    let pure: Vec<_> = sources()
        .into_iter()
        .filter(|(file, _)| file.starts_with("host/berth-host/src/grants") || file.ends_with("src/grants.rs"))
        .collect();
    assert!(pure.len() >= 3, "{pure:?}");
    for (file, text) in pure {
        for name in ["wasmtime", "tokio", "std::fs", "std::env"] {
            assert!(!text.contains(name), "{} names {name}", file.display());
        }
    }
}

/// What doesn't fit is explained from bytes alone: no engine, no file, no network.
#[test]
fn contract_is_pure() {
    let files: Vec<_> = sources()
        .into_iter()
        .filter(|(file, _)| file.starts_with("host/berth-host/src/contract"))
        .collect();
    assert!(files.len() >= 10, "{files:?}");
    for (file, text) in files {
        let code = text.split("#[cfg(test)]").next().unwrap();
        for name in ["wasmtime::", "tokio", "std::fs", "std::env", "std::net"] {
            assert!(
                file.ends_with("tests.rs") || !code.contains(name),
                "{} names {name}",
                file.display()
            );
        }
    }
}

#[test]
fn every_fixture_is_used_by_a_test() {
    let tests: String = sources()
        .into_iter()
        .filter(|(f, _)| f.starts_with("tests/tests"))
        .map(|(_, text)| text)
        .collect();
    let fixtures: BTreeSet<String> = tracked()
        .iter()
        .filter_map(|f| f.strip_prefix("plugins/fixtures").ok()?.components().next())
        .map(|c| c.as_os_str().to_string_lossy().into_owned())
        .collect();
    assert!(fixtures.len() >= 15, "{fixtures:?}");
    for fixture in fixtures {
        let used = tests.contains(&format!("with_hello(\"{fixture}\""))
            || tests.contains(&format!("fixtures/{fixture}\""))
            || tests.contains(&format!("fixtures/{fixture}/"));
        assert!(used, "no test uses plugins/fixtures/{fixture}");
    }
}

#[test]
fn every_item_of_the_wit_has_a_doc_comment() {
    let files: Vec<_> = tracked()
        .into_iter()
        .filter(|f| {
            f.extension().is_some_and(|e| e == "wit") && !f.components().any(|c| c.as_os_str() == "deps")
        })
        .collect();
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let text = read(&file);
        let mut before = "";
        for line in text.lines().map(str::trim) {
            let is_item = [
                "interface ",
                "world ",
                "record ",
                "variant ",
                "enum ",
                "resource ",
                "flags ",
            ]
            .iter()
            .any(|k| line.starts_with(k))
                || line.contains(": func(")
                || (line.ends_with(',') && !line.starts_with("///") && !line.contains('{'));
            assert!(
                !is_item || before.starts_with("///"),
                "{}: {line:?} has no doc comment",
                file.display()
            );
            before = line;
        }
    }
}

/// The vendored WASI interfaces are the ones that the host's own bindings were made from.
#[test]
fn vendored_wasi_is_the_hosts_own() {
    let out = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        // Without this, packages of other platforms would have to be there as well.
        .args([
            "--filter-platform",
            &format!("{}-unknown-linux-gnu", std::env::consts::ARCH),
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages
        .iter()
        .find(|p| p["name"] == "wasmtime-wasi-http")
        .unwrap();
    let folder = Path::new(package["manifest_path"].as_str().unwrap())
        .parent()
        .unwrap()
        .to_owned();
    let mut compared = 0;
    for (theirs, version) in [("wit/deps", "0.2.12"), ("src/p3/wit/deps", "0.3.0")] {
        for entry in std::fs::read_dir(folder.join(theirs)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let ours = read(format!("wit/handler/deps/wasi-{name}-{version}.wit"));
            assert!(
                std::fs::read_to_string(&path).unwrap() == ours,
                "wasi:{name}@{version} has drifted from {}",
                path.display()
            );
            compared += 1;
        }
    }
    let vendored = tracked()
        .iter()
        .filter(|f| f.starts_with("wit/handler/deps") && f.extension().is_some())
        .count();
    assert_eq!(
        compared, vendored,
        "no file is vendored that the host doesn't have"
    );
}
