//! Granted folders: what a guest may do in them, and that there is no way out.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use berth_tests::berth::{Berth, Manifest, run};
use berth_tests::guest;
use berth_tests::wire::{Response, request};
use tempfile::TempDir;

const SECRET: &str = "the secret";

/// A host whose guest sees `/data` to read and `/cache` to write; and a file beside both that it must never see.
struct Folders {
    berth: Berth,
    folder: TempDir,
}

impl Folders {
    fn new(more: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("data/below")).unwrap();
        fs::create_dir(at("cache")).unwrap();
        fs::write(at("data/a.txt"), "granted").unwrap();
        fs::write(at("secret.txt"), SECRET).unwrap();
        let lines = format!(
            "grants = {{ folders = {{ \"/data\" = {:?}, \"/cache\" = {{ path = {:?}, write = true }} }} }}\n{more}",
            at("data"),
            at("cache")
        );
        let berth = Manifest::new().handler_with("fixtures/files", &lines).start();
        Self { berth, folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn call(&self, op: &str, folder: &str, path: &str, more: &[(&str, &str)]) -> Response {
        call(&self.berth, op, folder, path, more)
    }

    fn says(&self, op: &str, folder: &str, path: &str, target: &str) -> String {
        self.call(op, folder, path, &[("x-target", target)]).text()
    }
}

fn call(berth: &Berth, op: &str, folder: &str, path: &str, more: &[(&str, &str)]) -> Response {
    let mut headers = vec![("x-op", op), ("x-folder", folder), ("x-path", path)];
    headers.extend(more);
    request(berth.address, "GET", "/files/x", &headers, b"")
}

#[test]
fn granted_folders_are_there_and_others_are_not() {
    let folders = Folders::new("");
    assert_eq!(folders.says("folders", "", "", ""), "/cache /data");
    assert_eq!(folders.says("read", "/data", "a.txt", ""), "granted");
    assert_eq!(folders.says("read-std", "", "/data/a.txt", ""), "granted");
    assert_eq!(folders.says("write", "/cache", "new.txt", ""), "ok");
    assert_eq!(
        fs::read_to_string(folders.at("cache/new.txt")).unwrap(),
        "written"
    );
    assert_eq!(folders.says("read", "/cache", "new.txt", ""), "written");
    for path in ["/etc/passwd", "/secret.txt", "/"] {
        let said = folders.says("read-std", "", path, "");
        assert!(
            !said.contains("root:") && !said.contains(SECRET),
            "{path}: {said}"
        );
    }
}

#[test]
fn nothing_is_there_unless_it_is_granted() {
    let berth = Manifest::new().handler("fixtures/files").start();
    assert_eq!(call(&berth, "folders", "", "", &[]).text(), "");
    assert_eq!(
        call(&berth, "read", "/", "etc/passwd", &[]).text(),
        "no such folder"
    );
    let said = call(&berth, "read-std", "", "/etc/passwd", &[]).text();
    assert!(!said.contains("root:"), "{said}");
}

/// What a folder holds, with the times of its files.
fn snapshot(folder: &Path) -> Vec<(PathBuf, Vec<u8>, std::time::SystemTime)> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let modified = fs::symlink_metadata(&path).unwrap().modified().unwrap();
            let bytes = fs::read(&path).unwrap_or_default();
            (path, bytes, modified)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn folder_to_read_cannot_be_changed_in_any_way() {
    let folders = Folders::new("");
    let before = snapshot(&folders.at("data"));
    for (op, path, target) in [
        ("write", "a.txt", ""),
        ("write", "new.txt", ""),
        ("truncate", "a.txt", ""),
        ("mkdir", "new", ""),
        ("remove", "a.txt", ""),
        ("rename", "a.txt", "b.txt"),
        ("symlink", "link", "a.txt"),
        ("link", "a.txt", "b.txt"),
        ("touch", "a.txt", ""),
    ] {
        let said = folders.says(op, "/data", path, target);
        assert!(
            ["not-permitted", "read-only", "access"].contains(&said.as_str()),
            "{op} {path}: {said}"
        );
    }
    assert_eq!(snapshot(&folders.at("data")), before);
}

#[test]
fn path_cannot_leave_its_folder() {
    let folders = Folders::new("");
    for folder in ["/data", "/cache"] {
        for path in [
            "../secret.txt",
            "../../../../../../etc/passwd",
            "/etc/passwd",
            "//etc/passwd",
            "below/../../secret.txt",
            "./../secret.txt",
            "..",
            "/",
        ] {
            for op in ["read", "stat", "truncate"] {
                let said = folders.says(op, folder, path, "");
                assert!(
                    ["not-permitted", "no-entry", "access"].contains(&said.as_str()),
                    "{op} {folder} {path}: {said}"
                );
            }
        }
    }
    for (op, path, target) in [
        ("write", "../new.txt", ""),
        ("mkdir", "../new", ""),
        ("remove", "../secret.txt", ""),
        ("rename", "../secret.txt", "got.txt"),
        ("link", "../secret.txt", "got.txt"),
    ] {
        assert_eq!(folders.says(op, "/cache", path, target), "not-permitted", "{op}");
    }
    assert_eq!(folders.says("write", "/cache", "own.txt", ""), "ok");
    assert_eq!(
        folders.says("rename", "/cache", "own.txt", "../out.txt"),
        "not-permitted"
    );
    assert_eq!(
        folders.says("link", "/cache", "own.txt", "../out.txt"),
        "not-permitted"
    );
    let mut names: Vec<_> = fs::read_dir(folders.folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["cache", "data", "secret.txt"]);
    assert_eq!(fs::read_to_string(folders.at("secret.txt")).unwrap(), SECRET);
}

#[test]
fn symbolic_link_that_leads_out_is_refused_and_one_within_is_followed() {
    let folders = Folders::new("");
    symlink("../secret.txt", folders.at("data/relative")).unwrap();
    symlink(folders.at("secret.txt"), folders.at("data/absolute")).unwrap();
    symlink("..", folders.at("data/up")).unwrap();
    symlink("a.txt", folders.at("data/within")).unwrap();
    symlink("loop", folders.at("data/loop")).unwrap();
    for path in ["relative", "absolute", "up/secret.txt"] {
        for op in ["read", "stat", "truncate"] {
            assert_eq!(
                folders.says(op, "/data", path, ""),
                "not-permitted",
                "{op} {path}"
            );
        }
    }
    assert_eq!(folders.says("read", "/data", "loop", ""), "loop");
    assert_eq!(folders.says("read", "/data", "within", ""), "granted");
    // Made by the guest itself.
    for (name, target) in [
        ("one", "../secret.txt"),
        ("two", "/etc/passwd"),
        ("three", "../../../../../../etc/passwd"),
    ] {
        // Whether it may be made is a detail; that it can't be followed is not.
        let made = folders.says("symlink", "/cache", name, target);
        let said = folders.says("read", "/cache", name, "");
        assert!(
            ["not-permitted", "no-entry"].contains(&said.as_str()),
            "{target}: {said}"
        );
        if made == "ok" {
            assert_eq!(
                folders.says("write", "/cache", name, ""),
                "not-permitted",
                "{target}"
            );
        }
    }
    assert_eq!(fs::read_to_string(folders.at("secret.txt")).unwrap(), SECRET);
}

/// What a path means changes while guests use it: between the check and the opening, if there were such a gap.
#[test]
fn link_that_is_swapped_in_meanwhile_leads_nowhere() {
    let folders = Folders::new("limits = { cpu = \"30s\", wall = \"60s\" }");
    fs::create_dir(folders.at("cache/folder")).unwrap();
    fs::write(folders.at("cache/folder/secret.txt"), "harmless").unwrap();
    fs::write(folders.at("cache/file"), "harmless").unwrap();
    symlink("..", folders.at("cache/out")).unwrap();
    symlink("../secret.txt", folders.at("cache/out.txt")).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let swap = |a: &str, b: &str| {
                // Three renames: each name is one thing or the other, or not there for a moment.
                let (a, b, spare) = (folders.at(a), folders.at(b), folders.at("cache/spare"));
                fs::rename(&a, &spare).unwrap();
                fs::rename(&b, &a).unwrap();
                fs::rename(&spare, &b).unwrap();
            };
            while !over.load(Ordering::Relaxed) {
                swap("cache/folder", "cache/out");
                swap("cache/file", "cache/out.txt");
            }
        });
        let mut seen = String::new();
        for _ in 0..5 {
            for path in ["folder/secret.txt", "file"] {
                let answer = folders.call("read-often", "/cache", path, &[("x-times", "500")]);
                assert_eq!(answer.status, 200, "{}", answer.text());
                seen.push_str(&answer.text());
                seen.push(' ');
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(!seen.contains(SECRET), "{seen}");
        assert!(
            seen.contains("harmless") && seen.contains("not-permitted"),
            "both states were met: {seen}"
        );
    });
}

#[test]
fn guest_that_writes_without_end_is_ended_by_its_limits() {
    let folders = Folders::new("limits = { wall = \"300ms\" }");
    let answer = folders.call("flood", "/cache", "flood", &[]);
    assert!(
        ["plugin-timeout", "plugin-cpu"].contains(&answer.code().as_str()),
        "{}",
        answer.text()
    );
    while folders.berth.metric("berth_instances_free", &[]) < 256.0 {
        std::thread::yield_now();
    }
    assert_eq!(folders.says("read", "/data", "a.txt", ""), "granted");
}

#[test]
fn guest_cannot_hold_more_files_than_the_host_can_spare() {
    let folders = Folders::new("");
    let answer = folders.call("open-many", "/data", "a.txt", &[]);
    assert_eq!(answer.code(), "plugin-handles", "{}", answer.text());
    let pid = folders.berth.pid();
    while fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() > 100 {
        std::thread::yield_now();
    }
}

#[test]
fn folder_that_cannot_be_opened_is_told_by_check_and_takes_out_the_plugin_only() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let manifest = |hello: bool| {
        let grants = format!("grants = {{ folders = {{ \"/a\" = \"nowhere\", \"/b\" = {file:?} }} }}");
        let manifest = Manifest::new().handler_file("files", &guest("fixtures/files"), &grants);
        if hello {
            manifest.handler("hello")
        } else {
            manifest
        }
    };
    let out = run(manifest(false).text(), &["check"], &[]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(!out.status.success(), "{text}");
    for words in [
        "the folder for \"/a\", ",
        "nowhere: there is no such folder; make it, or correct `folders`",
        "the folder for \"/b\", ",
        "it is not a folder; name the folder that the file is in",
    ] {
        assert!(text.contains(words), "{words:?} in {text}");
    }
    let berth = manifest(true).start();
    let answer = berth.get("/files/x");
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "plugin-unavailable")
    );
    assert_eq!(berth.get("/hello/next").status, 200);
}
