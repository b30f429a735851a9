//! The compile cache end to end: what is used is what berth wrote for this component and this engine; whatever else lies
//! there costs one compilation and a warning, and never an answer.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use berth_tests::berth::{Berth, Manifest, command};
use berth_tests::swaps::{Operator, Site, WATCH, greeting, hello};
use serde_json::Value;

use crate::swap_files::with_permissions;
use crate::swap_served::FILE;

fn home() -> (Site, Manifest) {
    let site = Site::new();
    site.put(FILE, &hello(1));
    let manifest = Manifest::new()
        .raw(WATCH)
        .handler_file("hello", &site.at(FILE), "");
    (site, manifest)
}

/// It serves version 1; whether its machine code came from the cache.
#[track_caller]
fn cached(berth: &Berth) -> bool {
    assert_eq!(berth.get("/hello/Ada").text(), greeting(1, "Ada"));
    let line = berth.logged("the plugin", |line| {
        line["target"] == "berth::plugin" && line["message"] == "loaded"
    });
    line["cached"].as_bool().unwrap()
}

fn warnings(berth: &Berth) -> Vec<String> {
    let lines = berth.log().into_iter();
    lines
        .filter(|line| line["level"] == "WARN")
        .map(|line| line["message"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// The one entry.
fn entry(site: &Site) -> PathBuf {
    let entries: Vec<_> = fs::read_dir(site.at(".berth/cache"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].clone()
}

#[test]
fn second_start_compiles_nothing() {
    let (site, manifest) = home();
    let berth = site.start(&manifest);
    assert!(!cached(&berth));
    let berth = site.restart(berth, &manifest);
    assert!(cached(&berth));
    assert_eq!(warnings(&berth), [""; 0]);
}

/// Going back to a version that was compiled before.
#[test]
fn swap_to_a_known_version_compiles_nothing() {
    let (site, manifest) = home();
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    let steps = |bytes: &[u8]| -> Value {
        let before = operator.last();
        site.replace(FILE, bytes);
        operator.event(before, "hello", "swapped")["steps"].clone()
    };
    assert_eq!(steps(&hello(2))["cached"], false);
    assert_eq!(steps(&hello(1))["cached"], true);
    assert_eq!(steps(&hello(2))["cached"], true);
}

/// What may become of a file, and what is said of it.
#[test]
fn entry_that_is_not_what_it_should_be_is_compiled_again_and_told() {
    let (site, manifest) = home();
    // Of another component, so a true one in the wrong place.
    let foreign = {
        let (other, manifest) = home();
        other.put(FILE, &hello(2));
        other.start(&manifest.clone().raw("")).stop();
        let berth = other.start(&Manifest::new().handler_file("hello", &other.at(FILE), ""));
        berth.stop();
        fs::read(entry(&other)).unwrap()
    };
    site.start(&manifest).stop();
    let entry = entry(&site);
    let whole = fs::read(&entry).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let damages = [
        ("one bit of the code", flipped(whole.len() / 2)),
        ("one bit of the head", flipped(20)),
        ("the last byte is missing", whole[..whole.len() - 1].to_vec()),
        ("half of it is missing", whole[..whole.len() / 2].to_vec()),
        ("one byte more", [&whole[..], b"x"].concat()),
        ("nothing in it", Vec::new()),
        ("something else", b"#!/bin/sh\n".to_vec()),
        ("of another component", foreign),
    ];
    for (what, bytes) in damages {
        fs::write(&entry, &bytes).unwrap();
        let berth = site.start(&manifest);
        assert!(!cached(&berth), "{what}");
        let warnings = warnings(&berth);
        assert_eq!(warnings.len(), 1, "{what}: {warnings:?}");
        assert!(
            warnings[0].contains("machine code that was kept is not used")
                && warnings[0].contains(entry.to_str().unwrap()),
            "{what}: {warnings:?}"
        );
        let berth = site.restart(berth, &manifest);
        assert!(cached(&berth), "{what}: it was mended");
        berth.stop();
    }
}

/// It would be executed with all rights of the host.
#[test]
fn entry_or_folder_that_others_may_write_is_not_used() {
    let (site, manifest) = home();
    site.start(&manifest).stop();
    let allow = |path: PathBuf, mode: u32| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();

    allow(entry(&site), 0o666);
    let berth = site.start(&manifest);
    assert!(!cached(&berth));
    assert!(
        warnings(&berth)[0].contains("others may write it (mode 666)"),
        "{:?}",
        warnings(&berth)
    );
    let berth = site.restart(berth, &manifest);
    assert!(cached(&berth));
    berth.stop();

    allow(site.at(".berth/cache"), 0o777);
    for _ in 0..2 {
        let berth = site.start(&manifest);
        assert!(!cached(&berth));
        let warnings = warnings(&berth);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].contains("components are compiled at every start")
                && warnings[0].contains("others may write to the compile cache (mode 777)"),
            "{warnings:?}"
        );
        berth.stop();
    }
}

#[test]
fn folders_that_cannot_be_written_cost_a_warning_and_compilations() {
    for (folder, says) in [
        (".berth", "nothing is kept between two starts"),
        (".berth/cache", "compiled components can't be kept"),
        (".berth/plugins", "a restart or a rollback may not find"),
    ] {
        let (site, manifest) = home();
        fs::create_dir_all(site.at(folder)).unwrap();
        fs::set_permissions(site.at(folder), Permissions::from_mode(0o555)).unwrap();
        let start = || site.start_by(with_permissions(), &manifest);
        let berth = start();
        assert!(!cached(&berth), "{folder}");
        berth.logged("that it can't be written", |line| {
            let message = line["message"].as_str().unwrap_or_default();
            line["level"] == "WARN" && message.contains(says) && message.contains(folder)
        });
        assert_eq!(berth.get("/health").json()["status"], "healthy");
        berth.stop();
        let berth = start();
        assert_eq!(cached(&berth), folder == ".berth/plugins", "{folder}");
        // Files are followed all the same.
        site.replace(FILE, &hello(2));
        berth.logged("the swap", |line| line["event"] == "swapped");
        assert_eq!(berth.get("/hello/Ada").text(), greeting(2, "Ada"));
    }
}

#[test]
fn data_folder_that_another_berth_uses_is_left_to_it() {
    let (site, manifest) = home();
    let first = site.start(&manifest);
    let (other, manifest) = home();
    let mut program: Command = command();
    program.env("BERTH_DATA_DIR", site.at(".berth"));
    let second = other.start_by(program, &manifest);
    assert!(!cached(&second));
    let warnings = warnings(&second);
    assert!(
        warnings[0].contains("nothing is kept between two starts")
            && warnings[0].contains(&first.pid().to_string()),
        "{warnings:?}"
    );
    other.replace(FILE, &hello(2));
    second.logged("the swap", |line| line["event"] == "swapped");
    assert_eq!(second.get("/hello/Ada").text(), greeting(2, "Ada"));
    assert_eq!(first.get("/hello/Ada").text(), greeting(1, "Ada"));
}
