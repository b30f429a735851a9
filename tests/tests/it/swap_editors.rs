//! However a file is saved it is one swap, to what was saved last; and what changes nothing is none.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant, SystemTime};

use berth_tests::swaps::{Site, digest, greeting, hello};

use crate::swap_served::{FILE, Served};

/// Saves the component; `true` if it is sure that it did it as it should.
type Save = fn(&Site, &[u8]) -> bool;

/// Three saves in this way, each of which is one swap.
#[track_caller]
fn is_one_swap(save: Save) {
    let served = Served::start();
    for number in 2..5 {
        let before = served.operator.last();
        let is_sure = save(&served.site, &hello(number));
        let wanted = digest(&hello(number));
        berth_tests::swaps::until(
            || format!("{wanted} serves: {:#?}", served.operator.since(before)),
            || (served.operator.serves("hello") == wanted).then_some(()),
        );
        served.caller.sees(&greeting(number, "Ada"));
        served.settle();
        let kinds = served.operator.kinds(before, "hello");
        assert!(kinds.ends_with(&["swapped".to_owned()]), "{kinds:?}");
        if is_sure {
            assert_eq!(kinds, ["swapped"], "{:#?}", served.operator.since(before));
        }
    }
    served.over(&[1, 2, 3, 4]);
}

#[test]
fn file_written_in_place_is_one_swap() {
    is_one_swap(|site, bytes| {
        site.put(FILE, bytes);
        true
    });
}

#[test]
fn file_renamed_over_is_one_swap() {
    is_one_swap(|site, bytes| {
        site.replace(FILE, bytes);
        true
    });
}

/// As `cargo`, `gcc` and careful editors do.
#[test]
fn file_written_beside_synced_and_renamed_is_one_swap() {
    is_one_swap(|site, bytes| {
        let spare = site.at(".hello.wasm.Xy12Z");
        let mut file = File::create_new(&spare).unwrap();
        file.write_all(bytes).unwrap();
        file.sync_all().unwrap();
        drop(file);
        fs::rename(&spare, site.at(FILE)).unwrap();
        File::open(site.at("")).unwrap().sync_all().unwrap();
        true
    });
}

/// As vim with `backupcopy=no`: for a moment the file isn't there.
#[test]
fn file_moved_to_a_backup_and_written_anew_is_one_swap() {
    is_one_swap(|site, bytes| {
        let started = Instant::now();
        fs::rename(site.at(FILE), site.at("hello.wasm~")).unwrap();
        site.put(FILE, bytes);
        fs::set_permissions(site.at(FILE), Permissions::from_mode(0o644)).unwrap();
        fs::remove_file(site.at("hello.wasm~")).unwrap();
        is_quick(started)
    });
}

/// As builds do that clean up first.
#[test]
fn file_deleted_and_made_again_is_one_swap() {
    is_one_swap(|site, bytes| {
        let started = Instant::now();
        fs::remove_file(site.at(FILE)).unwrap();
        site.put(FILE, bytes);
        is_quick(started)
    });
}

/// Who finds no file waits half a second before saying so; a test that is held up for longer proves nothing.
fn is_quick(started: Instant) -> bool {
    started.elapsed() < Duration::from_millis(400)
}

#[test]
fn file_saved_twice_is_one_swap_to_the_second() {
    is_one_swap(|site, bytes| {
        let other = hello(9000);
        // Nobody reads a file that was changed within a tick of the clock, 12 ms. A test that is held up proves nothing,
        // so it tries again: both are whole files, and either is a swap then.
        (0..50).any(|_| {
            site.put(FILE, &other);
            let written = Instant::now();
            site.put(FILE, bytes);
            written.elapsed() < Duration::from_millis(10)
        })
    });
}

#[test]
fn what_leaves_the_bytes_as_they_are_is_no_swap_and_no_event() {
    let served = Served::start();
    let (site, path) = (&served.site, served.site.at(FILE));
    let same = hello(1);
    let unchanging: [(&str, &dyn Fn()); 8] = [
        ("touched", &|| {
            let file = File::options().append(true).open(&path).unwrap();
            file.set_modified(SystemTime::now()).unwrap();
        }),
        ("made older", &|| {
            let file = File::options().append(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }),
        ("opened for writing and closed", &|| {
            drop(File::options().append(true).open(&path).unwrap());
        }),
        ("other permissions", &|| {
            fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        }),
        ("another name for it", &|| {
            fs::hard_link(&path, site.at("link.wasm")).unwrap();
        }),
        ("the same bytes in place", &|| site.put(FILE, &same)),
        ("the same bytes in another file", &|| site.replace(FILE, &same)),
        ("gone and there again", &|| {
            fs::rename(&path, site.at("aside")).unwrap();
            fs::rename(site.at("aside"), &path).unwrap();
        }),
    ];
    for (what, act) in unchanging {
        act();
        served.settle();
        assert_eq!(served.kinds(), [""; 0], "{what}");
    }
    assert_eq!(
        served.berth.metric("berth_plugin_swaps_total", &["hello"]),
        0.0,
        "the metrics agree"
    );
    served.recovers();
    served.over(&[1, 2]);
}

#[test]
fn manifest_with_the_same_words_is_no_event() {
    let served = Served::start();
    let text = fs::read(served.site.at("berth.toml")).unwrap();
    served.site.put("berth.toml", &text);
    served.site.replace("berth.toml", &text);
    served
        .site
        .put("berth.toml", &[&text[..], b"\n# a comment\n"].concat());
    served.settle();
    let of_manifest = |event: &&serde_json::Value| event["plugin"].is_null();
    let events = served.operator.since(served.before);
    assert_eq!(events.iter().filter(of_manifest).count(), 0, "{events:#?}");
    served.over(&[1]);
}
