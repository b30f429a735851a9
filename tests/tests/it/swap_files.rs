//! Whatever becomes of a component's file, the version that serves serves on: the fault is told once, and the next good
//! file replaces it. Somebody asks all the time and notices nothing.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_tests::berth::{Manifest, command, eventually};
use berth_tests::components::handler_at_start;
use berth_tests::root;
use berth_tests::swaps::{Operator, Site, WATCH, another, built, digest, greeting, hello};
use berth_tests::wire::{Connection, head, is};

use crate::swap_served::{FILE, Served};

/// A fault of the file from its beginning to its end: told once, and once only while nothing else is done to the file, and
/// forgotten with the next good one.
#[track_caller]
fn refused_once(served: Served, code: &str, says: &[&str], spoil: impl Fn(&Site)) {
    spoil(&served.site);
    let event = served.refuses(code, says);
    let path = served.site.at(FILE);
    if let Ok(true) = fs::symlink_metadata(&path).map(|about| about.is_file()) {
        let size = fs::metadata(&path).unwrap().len();
        assert!(event["size"].is_null() || event["size"] == size, "{event:#}");
        // Not a new fault, only a reason to look.
        let file = File::options().append(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::now()).unwrap();
    }
    served.settle();
    assert_eq!(served.kinds(), ["refused"]);
    if path.is_dir() {
        fs::remove_dir_all(&path).unwrap();
    }
    served.recovers();
    assert_eq!(served.kinds(), ["refused", "swapped"]);
    served.over(&[1, 2]);
}

/// The same by a file with these bytes, both renamed over the old one and written in its place.
#[track_caller]
fn bytes_are_refused(bytes: &[u8], code: &str, says: &[&str]) {
    refused_once(Served::start(), code, says, |site| site.replace(FILE, bytes));
    refused_once(Served::start(), code, says, |site| site.put(FILE, bytes));
}

#[test]
fn truncated_component_is_refused() {
    let whole = hello(2);
    bytes_are_refused(
        &whole[..whole.len() / 2],
        "malformed",
        &["damaged component, perhaps cut off", "build it again"],
    );
}

#[test]
fn file_that_is_no_wasm_is_refused() {
    bytes_are_refused(
        b"#!/bin/sh\n",
        "not-wasm",
        &["is not WebAssembly: it begins with \"#!/bin/s\""],
    );
}

#[test]
fn empty_file_is_refused() {
    bytes_are_refused(b"", "not-wasm", &["is not WebAssembly: it begins with \"\""]);
}

#[test]
fn core_module_is_refused() {
    let module = wat::parse_file(root().join("plugins/fixtures/core-module/module.wat")).unwrap();
    bytes_are_refused(&module, "core-module", &["core module, not a component"]);
}

#[test]
fn policy_in_the_place_of_a_handler_is_refused() {
    bytes_are_refused(
        &built("fixtures/auth-static"),
        "wrong-world",
        &["say `policy = \"auth\"` in its table"],
    );
}

#[test]
fn handler_in_the_place_of_a_policy_is_refused() {
    let site = Site::new();
    let good = built("fixtures/auth-static");
    site.put("auth.wasm", &good);
    let manifest = Manifest::new().raw(WATCH).raw(&format!(
        "[plugins.auth]\ncomponent = {:?}\npolicy = \"auth\"",
        site.at("auth.wasm")
    ));
    let berth = site.start(&manifest);
    let operator = Operator::of(&berth);
    let login = || {
        let answer = berth.post(
            "/api/v1/auth/login",
            r#"{"email":"ada@example.com","password":"correct horse"}"#,
        );
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    login();
    site.replace("auth.wasm", &built("fixtures/echo"));
    let event = operator.event(0, "auth", "refused");
    assert_eq!(event["code"], "wrong-world", "{event:#}");
    assert!(
        event["reason"]
            .as_str()
            .unwrap()
            .contains("must export berth:policy/auth@0.1.0; it exports wasi:http/incoming-handler@0.2")
    );
    assert_eq!(operator.serves("auth"), digest(&good));
    login();
    site.replace("auth.wasm", &another(&good, 2));
    operator.event(0, "auth", "swapped");
    assert_eq!(operator.serves("auth"), digest(&another(&good, 2)));
    login();
    assert_eq!(operator.kinds(0, "auth"), ["refused", "swapped"]);
}

#[test]
fn import_that_is_not_granted_is_refused() {
    bytes_are_refused(
        &built("fixtures/log-handler"),
        "not-granted",
        &["it imports \"berth:host/log@0.1.0\", which is not granted; add `log = true`"],
    );
}

#[test]
fn component_that_traps_when_it_is_started_is_refused() {
    bytes_are_refused(
        &handler_at_start("unreachable"),
        "start-failed",
        &[
            "an instance of the component can't be started (unreachable): wasm `unreachable` instruction executed, in ",
            "start",
        ],
    );
}

#[test]
fn component_that_loops_when_it_is_started_is_refused() {
    let limited = || Served::start_by(Site::new(), command(), "limits = { cpu = \"200ms\" }");
    refused_once(
        limited(),
        "start-failed",
        &["can't be started (cpu): it has used the 200 ms of `limits.cpu`, in spin_start.wasm!_initialize"],
        |site| site.replace(FILE, &built("fixtures/spin-start")),
    );
}

#[test]
fn component_that_begins_too_large_is_refused() {
    let limited = Served::start_by(Site::new(), command(), "limits = { memory = \"4MiB\" }");
    let large = handler_at_start(
        "(drop (memory.grow (i32.const 100))) (if (i32.lt_u (memory.size) (i32.const 100)) (then unreachable))",
    );
    refused_once(
        limited,
        "start-failed",
        &["can't be started (memory): it needs more than the 4.0 MiB of `limits.memory`"],
        |site| {
            site.replace(FILE, &large);
        },
    );
}

#[test]
fn file_of_200_mb_is_refused_by_its_size() {
    const SIZE: u64 = 200 << 20;
    let served = Served::start();
    let pid = served.berth.pid();
    let peak = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .unwrap()
            << 10
    };
    let before = peak();
    let spare = served.site.at("large");
    File::create(&spare).unwrap().set_len(SIZE).unwrap();
    fs::rename(spare, served.site.at(FILE)).unwrap();
    served.refuses(
        "too-large",
        &["the file has 209715200 bytes; at most 134217728 are read"],
    );
    assert!(peak() < before + SIZE / 2, "not a byte of it is read");
    served.settle();
    assert_eq!(served.kinds(), ["refused"]);
    served.recovers();
    served.over(&[1, 2]);
}

/// To root nothing is forbidden, unless it gives up the right to that.
pub(crate) fn with_permissions() -> Command {
    let berth = command();
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return berth;
    }
    let mut limited = Command::new("setpriv");
    limited
        .arg("--bounding-set=-dac_override,-dac_read_search")
        .arg(berth.get_program());
    for (name, value) in berth.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

#[test]
fn file_that_may_not_be_read_is_refused() {
    let served = Served::start_by(Site::new(), with_permissions(), "");
    refused_once(
        served,
        "unreadable",
        &[
            "the file may not be read",
            "let the user that berth runs as read it",
        ],
        |site| {
            let spare = site.at("spare");
            fs::write(&spare, hello(2)).unwrap();
            fs::set_permissions(&spare, Permissions::from_mode(0o200)).unwrap();
            fs::rename(spare, site.at(FILE)).unwrap();
        },
    );
}

/// The bytes are those that serve, but a restart could not read them.
#[test]
fn served_file_that_may_not_be_read_any_more_is_told() {
    let served = Served::start_by(Site::new(), with_permissions(), "");
    refused_once(served, "unreadable", &["the file may not be read"], |site| {
        fs::set_permissions(site.at(FILE), Permissions::from_mode(0o200)).unwrap();
    });
}

#[test]
fn folder_in_its_place_is_refused() {
    let says = "this is a folder, not a file; name a regular file";
    refused_once(Served::start(), "unreadable", &[says], |site| {
        fs::remove_file(site.at(FILE)).unwrap();
        fs::create_dir(site.at(FILE)).unwrap();
    });
}

#[test]
fn pipe_in_its_place_is_refused() {
    let says = "this is a pipe, not a file; name a regular file";
    refused_once(Served::start(), "unreadable", &[says], |site| {
        let made = Command::new("mkfifo").arg(site.at("pipe")).status().unwrap();
        assert!(made.success());
        fs::rename(site.at("pipe"), site.at(FILE)).unwrap();
    });
}

#[test]
fn link_to_a_device_without_an_end_is_refused() {
    let says = "this is a device, not a file; name a regular file";
    refused_once(Served::start(), "unreadable", &[says], |site| {
        symlink("/dev/zero", site.at("link")).unwrap();
        fs::rename(site.at("link"), site.at(FILE)).unwrap();
    });
}

#[test]
fn deleted_file_is_told_and_serves_on() {
    let says = "there is no such file; build the component, or correct `component`";
    refused_once(Served::start(), "unreadable", &[says], |site| {
        fs::remove_file(site.at(FILE)).unwrap();
    });
}

#[test]
fn link_that_leads_nowhere_is_refused() {
    refused_once(
        Served::start(),
        "unreadable",
        &["there is no such file"],
        |site| {
            symlink("nowhere.wasm", site.at("link")).unwrap();
            fs::rename(site.at("link"), site.at(FILE)).unwrap();
        },
    );
}

/// Each fault is told, and each once: also one that was there before.
#[test]
fn every_other_fault_is_told_and_a_good_version_in_between_forgets_it() {
    let served = Served::start();
    let faulty = [&b"first"[..], b"second", b"first"];
    for (bytes, told) in faulty.iter().zip(1..) {
        served.site.replace(FILE, bytes);
        berth_tests::swaps::until(
            || format!("fault {told} is told: {:?}", served.kinds()),
            || (served.kinds().len() == told).then_some(()),
        );
    }
    served.recovers();
    let before = served.operator.last();
    served.site.replace(FILE, b"first");
    let event = served.operator.event(before, "hello", "refused");
    assert_eq!(event["from"], digest(&hello(2)), "{event:#}");
    served.settle();
    assert_eq!(
        served.kinds(),
        ["refused", "refused", "refused", "swapped", "refused"]
    );
    served.over(&[1, 2]);
}

#[test]
fn file_that_becomes_again_what_serves_is_no_news() {
    let served = Served::start();
    served.site.replace(FILE, b"no component");
    served.refuses("not-wasm", &[]);
    served.site.replace(FILE, &hello(1));
    served.settle();
    assert_eq!(served.kinds(), ["refused"]);
    served.recovers();
    served.over(&[1, 2]);
}

/// A slow writer, which is what a linker or a copy over a network is: the file is read when it is whole.
#[test]
fn half_written_component_is_never_loaded_and_the_whole_one_once() {
    const PIECES: usize = 40;
    let served = Served::start();
    let whole = hello(2);
    let mut file = File::create(served.site.at(FILE)).unwrap();
    let mut longest = Duration::ZERO;
    for piece in whole.chunks(whole.len() / PIECES) {
        let started = Instant::now();
        file.write_all(piece).unwrap();
        served.caller.asks(10);
        longest = longest.max(started.elapsed());
    }
    drop(file);
    served.operator.event(served.before, "hello", "swapped");
    served.caller.sees(&greeting(2, "Ada"));
    served.settle();
    let kinds = served.kinds();
    // A file that rests for half a second is told as it is, and a busy host may take a while to notice that it doesn't.
    if longest < Duration::from_millis(250) {
        assert_eq!(kinds, ["swapped"]);
    } else {
        // A writer that is silent for longer has left for all that anybody knows.
        assert_eq!(
            kinds.iter().filter(|kind| *kind == "swapped").count(),
            1,
            "{kinds:?}"
        );
    }
    served.over(&[1, 2]);
}

#[test]
fn writer_that_leaves_half_way_is_told_and_may_come_back() {
    let served = Served::start();
    let whole = hello(2);
    let (half, rest) = whole.split_at(whole.len() / 2);
    let mut file = File::create(served.site.at(FILE)).unwrap();
    file.write_all(half).unwrap();
    served.refuses("malformed", &["perhaps cut off"]);
    served.settle();
    assert_eq!(served.kinds(), ["refused"]);
    file.write_all(rest).unwrap();
    drop(file);
    served.operator.event(served.before, "hello", "swapped");
    served.settle();
    assert_eq!(served.kinds(), ["refused", "swapped"]);
    served.over(&[1, 2]);
}

/// `component` may be a link, and what counts is where it leads.
#[test]
fn link_that_is_swapped_leads_to_another_version() {
    let site = Site::new();
    site.put("one.wasm", &hello(1));
    site.put("two.wasm", &hello(2));
    symlink("one.wasm", site.at(FILE)).unwrap();
    let served = Served::start_by(site, command(), "");
    symlink("two.wasm", served.site.at("link")).unwrap();
    fs::rename(served.site.at("link"), served.site.at(FILE)).unwrap();
    served.operator.event(served.before, "hello", "swapped");
    served.caller.sees(&greeting(2, "Ada"));
    // What the link leads to is followed as well.
    served.site.put("two.wasm", &hello(3));
    served.caller.sees(&greeting(3, "Ada"));
    // What it led to before isn't.
    served.site.put("one.wasm", b"no component");
    served.settle();
    assert_eq!(served.kinds(), ["swapped", "swapped"]);
    served.over(&[1, 2, 3]);
}

/// Kubernetes shows a volume's files as links through `..data`, itself a link that is swapped.
#[test]
fn volume_of_kubernetes_is_swapped_two_links_before_the_file() {
    let site = Site::new();
    let release = |name: &str, bytes: &[u8]| {
        fs::create_dir(site.at(name)).unwrap();
        fs::write(site.at(name).join(FILE), bytes).unwrap();
    };
    let point = |to: &str| {
        symlink(to, site.at("..data_tmp")).unwrap();
        fs::rename(site.at("..data_tmp"), site.at("..data")).unwrap();
    };
    release("..2026_01", &hello(1));
    point("..2026_01");
    symlink(format!("..data/{FILE}"), site.at(FILE)).unwrap();
    let served = Served::start_by(site.clone(), command(), "");

    release("..2026_02", b"no component");
    point("..2026_02");
    fs::remove_dir_all(site.at("..2026_01")).unwrap();
    served.refuses("not-wasm", &[]);

    release("..2026_03", &hello(2));
    point("..2026_03");
    fs::remove_dir_all(site.at("..2026_02")).unwrap();
    served.operator.event(served.before, "hello", "swapped");
    served.caller.sees(&greeting(2, "Ada"));
    served.settle();
    assert_eq!(served.kinds(), ["refused", "swapped"]);
    served.over(&[1, 2]);
}

/// It would hold up every other change.
#[test]
fn manifest_that_is_no_file_is_told_and_holds_up_nothing() {
    let served = Served::start();
    let (site, operator) = (&served.site, &served.operator);
    let path = site.at("berth.toml");
    let whole = fs::read(&path).unwrap();
    let spoils: [(&str, &dyn Fn()); 4] = [
        ("this is a pipe, not a file", &|| {
            let made = Command::new("mkfifo").arg(site.at("pipe")).status().unwrap();
            assert!(made.success());
            fs::rename(site.at("pipe"), &path).unwrap();
        }),
        ("this is a device, not a file", &|| {
            symlink("/dev/zero", site.at("zero")).unwrap();
            fs::rename(site.at("zero"), &path).unwrap();
        }),
        ("there is no such file", &|| fs::remove_file(&path).unwrap()),
        ("it is not UTF-8", &|| site.replace("berth.toml", b"# \xff")),
    ];
    for (says, spoil) in spoils {
        let before = operator.last();
        spoil();
        let event = operator.event(before, "", "manifest-refused");
        let faults = event["faults"].as_array().unwrap();
        assert_eq!(faults.len(), 1, "{event:#}");
        assert!(faults[0].as_str().unwrap().contains(says), "{event:#}");
        served.settle();
        site.replace("berth.toml", &whole);
        served.settle();
        let of_manifest = |event: &&serde_json::Value| event["plugin"].is_null();
        let events = operator.since(before);
        assert_eq!(events.iter().filter(of_manifest).count(), 1, "{events:#?}");
    }
    served.recovers();
    served.over(&[1, 2]);
}

/// Guests that run have all the memory that there is, so nothing can be started to see whether it can. That is nobody's fault,
/// and passes.
#[test]
fn what_finds_no_room_is_tried_again_until_there_is_some() {
    let site = Site::new();
    site.put("hello.wasm", &hello(1));
    let manifest = |more: &str| {
        Manifest::new()
            .raw(WATCH)
            .raw("[limits]\ntotal_memory = \"4MiB\"")
            .handler_with("fixtures/echo", "limits = { cpu = \"10s\", wall = \"60s\" }")
            .handler_file("hello", &site.at("hello.wasm"), "")
            .raw(more)
    };
    let berth = site.start(&manifest(""));
    let operator = Operator::of(&berth);
    assert_eq!(berth.get("/hello/Ada").text(), greeting(1, "Ada"));
    let before = operator.last();
    let full: Vec<Connection> = (0..3)
        .map(|_| {
            let mut connection = Connection::open(berth.address);
            connection.send(head("GET", "/echo/sleep/50000", &[], 0));
            connection
        })
        .collect();
    eventually("they run", || {
        berth.metric("berth_plugin_running", &["echo"]) == 3.0
    });
    eventually("all memory is taken", || {
        let answer = berth.get("/hello/Ada");
        answer.status == 503 && answer.code() == "host-busy"
    });

    site.replace("hello.wasm", &hello(2));
    let event = operator.event(before, "hello", "refused");
    assert_eq!(event["code"], "no-room", "{event:#}");
    let reason = event["reason"].as_str().unwrap();
    assert!(
        reason.contains("the 4.0 MiB of `limits.total_memory`"),
        "{reason}"
    );
    let answer = operator.deploy("hello", "", &[], &hello(3));
    is(&answer, 422, "no-room");
    let another = format!(
        "[plugins.another]\ncomponent = {:?}\n[[routes]]\npath = \"/another/*\"\nplugin = \"another\"\naccess = \"public\"",
        site.at("hello.wasm")
    );
    site.replace("berth.toml", manifest(&another).text().as_bytes());
    let event = operator.event(before, "", "manifest-refused");
    assert!(
        event["faults"][0].as_str().unwrap().contains("total_memory"),
        "{event:#}"
    );

    drop(full);
    operator.event(before, "hello", "swapped");
    operator.event(before, "", "manifest-applied");
    assert_eq!(berth.get("/hello/Ada").text(), greeting(2, "Ada"));
    assert_eq!(berth.get("/another/Ada").text(), greeting(2, "Ada"));
    let kinds: Vec<String> = operator
        .since(before)
        .iter()
        .map(|event| event["kind"].as_str().unwrap().to_owned())
        .filter(|kind| kind.contains("refused"))
        .collect();
    // The file's, the deploy's and the manifest's, each once however often they were tried.
    assert_eq!(kinds, ["refused", "refused", "manifest-refused"]);
}

/// There will never be room for it, so waiting for some is not the advice.
#[test]
fn what_needs_more_than_all_guests_may_have_is_a_fault_of_its_own() {
    let site = Site::new();
    site.put("hello.wasm", &hello(1));
    let manifest = Manifest::new()
        .raw("[limits]\ntotal_memory = \"1MiB\"")
        .handler_file("hello", &site.at("hello.wasm"), "");
    let berth = site.start(&manifest);
    let answer = Operator::of(&berth).deploy("hello", "", &[], &hello(2));
    is(&answer, 422, "start-failed");
    let says = "it needs more than the 1.0 MiB of `limits.total_memory`";
    assert!(answer.text().contains(says), "{}", answer.text());
}
