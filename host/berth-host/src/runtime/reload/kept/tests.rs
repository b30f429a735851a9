use std::os::unix::fs::symlink;
use std::sync::Barrier;

use tempfile::TempDir;

use super::*;

fn digest_of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A digest of one repeated digit.
fn repeated(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn version(digest: &str, by: By) -> KeptVersion {
    KeptVersion {
        digest: digest.to_owned(),
        size: 3,
        loaded_at: 1_735_689_600_000,
        by,
        signed_by: None,
    }
}

fn open() -> (TempDir, Kept) {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::open(&folder.path().join("plugins")).unwrap();
    (folder, kept)
}

/// Put these bytes and record them as current; the digest.
fn serve(kept: &Kept, plugin: &str, bytes: &[u8], by: By, keep: usize) -> String {
    let digest = digest_of_bytes(bytes);
    kept.put(plugin, &digest, bytes, None).unwrap();
    let mut state = kept.state(plugin).unwrap();
    state.became_current(version(&digest, by), keep);
    kept.record(plugin, &state).unwrap();
    digest
}

/// The names in a plugin's folder.
fn names(folder: &TempDir, plugin: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder.path().join("plugins").join(plugin))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn versions_and_state_survive_a_restart() {
    let (folder, kept) = open();
    assert_eq!(kept.state("hello").unwrap(), State::default());
    let digest = digest_of_bytes(b"one");
    kept.put("hello", &digest, b"one", Some("untrusted comment: x\n"))
        .unwrap();
    let other = digest_of_bytes(b"two");
    kept.put("hello", &other, b"two", None).unwrap();
    let mut state = State::default();
    state.became_current(version(&digest, By::File), 2);
    let mut deployed = version(&other, By::Deploy);
    deployed.signed_by = Some("RWQf6LRC".to_owned());
    state.became_current(deployed, 2);
    state.chosen = Some(Chosen {
        digest: other.clone(),
        file: Some(digest.clone()),
    });
    state.disabled = true;
    kept.record("hello", &state).unwrap();
    drop(kept);
    let kept = Kept::open(&folder.path().join("plugins")).unwrap();
    assert_eq!(kept.state("hello").unwrap(), state);
    assert_eq!(
        kept.read("hello", &digest).unwrap(),
        (b"one".to_vec(), Some("untrusted comment: x\n".to_owned()))
    );
    assert_eq!(kept.read("hello", &other).unwrap(), (b"two".to_vec(), None));
    // A plugin has only its own.
    assert!(matches!(
        kept.read("other", &digest),
        Err(KeptError::Missing { .. })
    ));
    let plugin = folder.path().join("plugins/hello");
    assert_eq!(
        (mode(&folder.path().join("plugins")), mode(&plugin)),
        (0o700, 0o700)
    );
    for name in names(&folder, "hello") {
        assert_eq!(mode(&plugin.join(&name)), 0o600, "{name}");
    }
}

#[test]
fn state_is_json_that_people_can_read_and_later_members_are_passed_over() {
    let mut state = State::default();
    state.became_current(version(&repeated('a'), By::Rollback), 1);
    let text = String::from_utf8(state.encode().unwrap()).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "format": 1,
            "versions": [{
                "digest": repeated('a'), "size": 3, "loaded_at": 1_735_689_600_000_u64, "by": "rollback",
                "signed_by": null,
            }],
            "current": repeated('a'), "chosen": null, "disabled": false,
        })
    );
    for by in [By::File, By::Deploy, By::Rollback, By::Canary, By::Manifest] {
        assert_eq!(serde_json::json!(by), by.key());
    }
    let later = text.replacen("\"format\": 1", "\"format\": 1, \"new\": {\"x\": []}", 1);
    assert_eq!(State::decode(later.as_bytes()).unwrap(), state);
    assert_eq!(State::decode(b"{\"format\":1}").unwrap(), State::default());
}

#[test]
fn put_again_writes_nothing_and_mends_what_is_damaged() {
    let (folder, kept) = open();
    let digest = digest_of_bytes(b"one");
    kept.put("hello", &digest, b"one", Some("first")).unwrap();
    let file = folder.path().join(format!("plugins/hello/{digest}.wasm"));
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    // A second name holds the old file, so that a new one can't get its number.
    std::fs::hard_link(&file, folder.path().join("held")).unwrap();
    let before = inode(&file);
    kept.put("hello", &digest, b"one", None).unwrap();
    assert_eq!(inode(&file), before);
    assert_eq!(kept.read("hello", &digest).unwrap().1.as_deref(), Some("first"));
    kept.put("hello", &digest, b"one", Some("second")).unwrap();
    assert_eq!(kept.read("hello", &digest).unwrap().1.as_deref(), Some("second"));
    assert_eq!(inode(&file), before);
    for damage in [&b"onE"[..], b"on", b"", b"one more"] {
        std::fs::write(&file, damage).unwrap();
        let error = kept.read("hello", &digest).unwrap_err();
        assert!(
            matches!(&error, KeptError::Damaged { found, .. } if *found == digest_of_bytes(damage)),
            "{error}"
        );
        assert!(error.to_string().contains("is damaged"), "{error}");
        kept.put("hello", &digest, b"one", None).unwrap();
        assert_eq!(kept.read("hello", &digest).unwrap().0, b"one", "{damage:?}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(
        kept.read("hello", &digest),
        Err(KeptError::Missing { .. })
    ));
}

#[test]
fn large_component_is_compared_to_its_last_byte() {
    let (folder, kept) = open();
    let mut bytes = vec![7; 300_000];
    let digest = digest_of_bytes(&bytes);
    kept.put("hello", &digest, &bytes, None).unwrap();
    let file = folder.path().join(format!("plugins/hello/{digest}.wasm"));
    assert!(holds(&file, &bytes));
    bytes[299_999] = 8;
    assert!(!holds(&file, &bytes));
    assert!(!holds(&file, &bytes[..299_999]));
    assert!(!holds(&file.with_extension("absent"), &bytes));
    let too_large = kept.put("hello", &digest, b"x", Some(&"x".repeat(32 * 1024 + 1)));
    assert!(matches!(too_large, Err(KeptError::TooLarge { most: 32_768, .. })));
}

#[test]
fn damaged_state_is_told_and_moved_aside_by_the_next() {
    let one = repeated('1');
    let damages = [
        (String::new(), "is no state of a plugin: EOF"),
        ("{\"format\":1,\"vers".to_owned(), "is no state of a plugin: EOF"),
        ("[]".to_owned(), "is no state of a plugin"),
        (
            "{\"format\":2}".to_owned(),
            "is of format 2, and this berth knows format 1",
        ),
        (
            "{\"format\":1,\"current\":\"../../x\"}".to_owned(),
            "\"../../x\" is no digest",
        ),
        (
            format!("{{\"format\":1,\"chosen\":{{\"digest\":\"{}\"}}}}", &one[1..]),
            "is no digest",
        ),
        (" ".repeat(256 * 1024 + 1), "has more than 262144 bytes"),
    ];
    for (damage, expected) in damages {
        let (folder, kept) = open();
        let digest = serve(&kept, "hello", b"one", By::File, 1);
        let file = folder.path().join("plugins/hello/state.json");
        std::fs::write(&file, &damage).unwrap();
        let error = kept.state("hello").unwrap_err();
        assert!(matches!(error, KeptError::State { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains(expected) && said.contains("state.json: "), "{said}");
        // Nobody knows what is wanted: nothing is swept.
        drop(kept);
        let kept = Kept::open(&folder.path().join("plugins")).unwrap();
        kept.read("hello", &digest).unwrap();
        kept.record("hello", &State::default()).unwrap();
        assert_eq!(kept.state("hello").unwrap(), State::default());
        let aside = folder.path().join("plugins/hello/state.json.damaged");
        assert_eq!(std::fs::read_to_string(aside).unwrap(), damage);
    }
}

#[test]
fn what_a_crash_leaves_is_swept_at_the_next_start() {
    let (folder, kept) = open();
    let old = serve(&kept, "hello", b"one", By::File, 1);
    let new = serve(&kept, "hello", b"two", By::File, 1);
    let unrecorded = digest_of_bytes(b"three");
    kept.put("hello", &unrecorded, b"three", Some("signature"))
        .unwrap();
    let plugin = folder.path().join("plugins/hello");
    for name in [".fresh-0", ".fresh-12", "notes.txt", "abc.wasm"] {
        std::fs::write(plugin.join(name), "half").unwrap();
    }
    // Nothing of this is a plugin's.
    std::fs::create_dir(folder.path().join("plugins/Not A Plugin")).unwrap();
    std::fs::write(folder.path().join("plugins/Not A Plugin/.fresh-0"), "").unwrap();
    std::fs::write(folder.path().join("plugins/file"), "").unwrap();
    drop(kept);
    let kept = Kept::open(&folder.path().join("plugins")).unwrap();
    let mut expected = vec![
        format!("{old}.wasm"),
        format!("{new}.wasm"),
        "abc.wasm".to_owned(),
        "notes.txt".to_owned(),
        "state.json".to_owned(),
    ];
    expected.sort();
    assert_eq!(names(&folder, "hello"), expected);
    assert!(folder.path().join("plugins/Not A Plugin/.fresh-0").exists());
    assert_eq!(kept.read("hello", &new).unwrap().0, b"two");
}

#[test]
fn candidate_is_kept_until_its_trial_has_ended() {
    let (folder, kept) = open();
    let served = serve(&kept, "hello", b"one", By::File, 1);
    let tried = digest_of_bytes(b"two");
    kept.put("hello", &tried, b"two", Some("signature")).unwrap();
    let mut state = kept.state("hello").unwrap();
    state.candidate = Some(tried.clone());
    kept.record("hello", &state).unwrap();
    // A start sweeps what nobody names. The trial is over then, and whoever begins to serve says so.
    drop(kept);
    let kept = Kept::open(&folder.path().join("plugins")).unwrap();
    assert_eq!(kept.state("hello").unwrap(), state);
    kept.read("hello", &tried).unwrap();
    // Nothing comes of it.
    state.candidate = None;
    kept.record("hello", &state).unwrap();
    assert_eq!(
        names(&folder, "hello"),
        [format!("{served}.wasm"), "state.json".to_owned()]
    );
    // It serves everybody.
    kept.put("hello", &tried, b"two", None).unwrap();
    state.candidate = Some(tried.clone());
    state.became_current(version(&served, By::Deploy), 3);
    assert_eq!(
        state.candidate.as_ref(),
        Some(&tried),
        "another one became current"
    );
    state.became_current(version(&tried, By::Canary), 3);
    assert_eq!(state.candidate, None);
    kept.record("hello", &state).unwrap();
    kept.read("hello", &tried).unwrap();
}

#[test]
fn oldest_versions_go_with_their_files_but_never_the_current_or_the_chosen() {
    let (folder, kept) = open();
    let digests: Vec<String> = (0..6)
        .map(|n| serve(&kept, "hello", format!("v{n}").as_bytes(), By::File, 2))
        .collect();
    let mut expected: Vec<String> = digests[3..].iter().map(|d| format!("{d}.wasm")).collect();
    expected.push("state.json".to_owned());
    expected.sort();
    assert_eq!(names(&folder, "hello"), expected);
    let mut state = kept.state("hello").unwrap();
    assert_eq!(state.versions.len(), 3);
    assert_eq!(state.previous().unwrap().digest, digests[4]);
    // Back to the oldest, and chosen: it is the first now, whatever comes and however little is kept.
    state.became_current(version(&digests[3], By::Rollback), 2);
    state.chosen = Some(Chosen {
        digest: digests[3].clone(),
        file: Some(digests[5].clone()),
    });
    kept.record("hello", &state).unwrap();
    let order = |state: &State| -> Vec<String> { state.versions.iter().map(|v| v.digest.clone()).collect() };
    assert_eq!(
        order(&state),
        [digests[3].clone(), digests[5].clone(), digests[4].clone()]
    );
    assert_eq!(state.previous().unwrap().digest, digests[5]);
    state.became_current(version(&digests[3], By::Manifest), 0);
    assert_eq!(order(&state), [digests[3].clone()]);
    assert_eq!(state.chosen.as_ref().unwrap().digest, digests[3]);
    assert!(state.previous().is_none());
    kept.record("hello", &state).unwrap();
    assert_eq!(kept.read("hello", &digests[3]).unwrap().0, b"v3");
    // Only what the state named before is dropped: the rest may be about to be recorded.
    let soon = digest_of_bytes(b"soon");
    kept.put("hello", &soon, b"soon", None).unwrap();
    kept.record("hello", &state).unwrap();
    kept.read("hello", &soon).unwrap();
    // A state that names a version only as current, or only as chosen, keeps it.
    let bare = State {
        current: Some(digests[3].clone()),
        ..State::default()
    };
    kept.record("hello", &bare).unwrap();
    kept.read("hello", &digests[3]).unwrap();
}

#[test]
fn choice_ends_with_another_version_or_with_the_file() {
    let (one, two) = (repeated('1'), repeated('2'));
    let chosen = Some(Chosen {
        digest: one.clone(),
        file: None,
    });
    for (digest, by, stays) in [
        (&one, By::Deploy, true),
        (&one, By::Rollback, true),
        (&one, By::Manifest, true),
        (&one, By::Canary, true),
        (&one, By::File, false),
        (&two, By::Deploy, false),
        (&two, By::File, false),
    ] {
        let mut state = State {
            chosen: chosen.clone(),
            ..State::default()
        };
        state.became_current(version(digest, by), 3);
        assert_eq!(state.chosen.is_some(), stays, "{by:?}");
    }
}

/// Every combination of what was chosen, what served last, which of them are kept, and the file.
#[test]
fn last_act_wins_at_a_start() {
    let [chosen, current, then, now] = ['a', 'b', 'c', 'd'].map(repeated);
    let mut rows = 0;
    for choice in [None, Some(None), Some(Some(&then))] {
        for served in [None, Some(&current), Some(&chosen)] {
            for kept in [vec![], vec![&chosen], vec![&current], vec![&current, &chosen]] {
                for file in [None, Some(&then), Some(&now), Some(&chosen), Some(&current)] {
                    rows += 1;
                    let state = State {
                        versions: kept.iter().map(|digest| version(digest, By::Deploy)).collect(),
                        current: served.cloned(),
                        chosen: choice.map(|file: Option<&String>| Chosen {
                            digest: chosen.clone(),
                            file: file.cloned(),
                        }),
                        disabled: false,
                        candidate: None,
                    };
                    let (has_chosen, has_current) = (
                        choice.is_some() && kept.contains(&&chosen),
                        served.is_some_and(|digest| kept.contains(&digest)),
                    );
                    let expected = match (choice, file) {
                        // The file is the one that it was.
                        (Some(None), None) if has_chosen => Some((&chosen, Because::Chosen)),
                        (Some(Some(at)), Some(file)) if at == file && has_chosen => {
                            Some((&chosen, Because::Chosen))
                        }
                        // It is another one, or nothing was chosen, or what was chosen is lost.
                        (_, Some(_)) => None,
                        // It is gone.
                        (_, None) if has_chosen => Some((&chosen, Because::NoFile)),
                        (_, None) if has_current => Some((served.unwrap(), Because::NoFile)),
                        (_, None) => None,
                    };
                    let expected = expected.map_or(AtStart::File, |(digest, because)| {
                        AtStart::Kept(digest.clone(), because)
                    });
                    assert_eq!(
                        state.at_start(file.map(String::as_str)),
                        expected,
                        "{state:?}, file {file:?}"
                    );
                }
            }
        }
    }
    assert_eq!(rows, 3 * 3 * 4 * 5);
}

/// The same, as it happens.
#[test]
fn operators_choice_outlives_restarts_until_the_file_changes() {
    let [file, deployed, built] = ['1', '2', '3'].map(repeated);
    let mut state = State::default();
    assert_eq!(state.at_start(Some(&file)), AtStart::File);
    state.became_current(version(&file, By::File), 3);
    assert_eq!(state.at_start(Some(&file)), AtStart::File);
    assert_eq!(state.at_start(None), AtStart::Kept(file.clone(), Because::NoFile));
    state.became_current(version(&deployed, By::Deploy), 3);
    state.chosen = Some(Chosen {
        digest: deployed.clone(),
        file: Some(file.clone()),
    });
    let held = AtStart::Kept(deployed.clone(), Because::Chosen);
    assert_eq!(state.at_start(Some(&file)), held);
    assert_eq!(
        state.at_start(None),
        AtStart::Kept(deployed.clone(), Because::NoFile)
    );
    // Built again: the author acted last.
    assert_eq!(state.at_start(Some(&built)), AtStart::File);
    // The operator's copy of what they deployed is the file's act, and undoing it is another.
    assert_eq!(state.at_start(Some(&deployed)), AtStart::File);
    state.became_current(version(&deployed, By::File), 3);
    assert_eq!(state.at_start(Some(&file)), AtStart::File);
}

#[test]
fn prefix_finds_one_version_or_says_why_not() {
    let (one, two, three) = (
        format!("abcd1{}", "0".repeat(59)),
        format!("abcd2{}", "0".repeat(59)),
        repeated('f'),
    );
    let mut state = State::default();
    for digest in [&one, &two, &three] {
        state.became_current(version(digest, By::File), 5);
    }
    for prefix in ["abcd1", "ABCD1", &one] {
        assert_eq!(state.find(prefix).unwrap().digest, one, "{prefix}");
    }
    assert_eq!(state.find("ffff").unwrap().digest, three);
    let said = |prefix: &str| state.find(prefix).unwrap_err().to_string();
    assert_eq!(
        said("abcd"),
        "\"abcd\" may be any of abcd20000000, abcd10000000; write more digits"
    );
    assert_eq!(
        said("1234"),
        "no kept version begins with \"1234\"; kept are ffffffffffff, abcd20000000, abcd10000000"
    );
    for prefix in ["", "fff", "ffg0", "../..", "ffff ", &format!("{three}f"), "ÄÖÜß"] {
        assert!(
            matches!(state.find(prefix), Err(FindError::Malformed(_))),
            "{prefix}"
        );
    }
    assert!(said(&"f".repeat(10_000)).len() < 200);
    assert_eq!(
        State::default().find("ffff").unwrap_err().to_string(),
        "no kept version begins with \"ffff\"; none are kept"
    );
}

#[test]
fn hostile_names_reach_no_file() {
    let (folder, kept) = open();
    let digest = digest_of_bytes(b"one");
    for name in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc",
        "A",
        "a b",
        "a\0b",
        "ü",
        &"a".repeat(65),
    ] {
        let name_error = |result: Result<(), KeptError>| matches!(result, Err(KeptError::Name(_)));
        assert!(name_error(kept.put(name, &digest, b"one", None)), "{name:?}");
        assert!(name_error(kept.record(name, &State::default())), "{name:?}");
        assert!(name_error(kept.state(name).map(drop)), "{name:?}");
        assert!(name_error(kept.read(name, &digest).map(drop)), "{name:?}");
    }
    for bad in [
        "",
        "../../x",
        "abc",
        &digest.to_uppercase(),
        &format!("{digest}0"),
        &digest[1..],
    ] {
        let digest_error = |result: Result<(), KeptError>| matches!(result, Err(KeptError::Digest(_)));
        assert!(digest_error(kept.put("hello", bad, b"one", None)), "{bad:?}");
        assert!(digest_error(kept.read("hello", bad).map(drop)), "{bad:?}");
        let state = State {
            current: Some(bad.to_owned()),
            ..State::default()
        };
        assert!(digest_error(kept.record("hello", &state)), "{bad:?}");
    }
    let made: Vec<_> = std::fs::read_dir(folder.path().join("plugins"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(made, ["hello"]);
    assert!(names(&folder, "hello").is_empty());
}

#[test]
fn folder_that_others_may_write_to_or_that_is_elsewhere_is_refused() {
    let (folder, kept) = open();
    let digest = serve(&kept, "hello", b"one", By::File, 1);
    let plugin = folder.path().join("plugins/hello");
    for (open, is_refused) in [(0o720, true), (0o702, true), (0o777, true), (0o755, false)] {
        set_mode(&plugin, open);
        let read = kept.read("hello", &digest);
        assert_eq!(
            matches!(read, Err(KeptError::Writable { .. })),
            is_refused,
            "{open:o}"
        );
        if is_refused {
            let said = kept.state("hello").unwrap_err().to_string();
            assert!(
                said.contains(&format!("others may write to this folder (mode {open:o})")),
                "{said}"
            );
        }
    }
    // Another plugin's folder doesn't stop the start.
    set_mode(&plugin, 0o777);
    let plugins = folder.path().join("plugins");
    Kept::open(&plugins).unwrap();
    set_mode(&plugins, 0o770);
    assert!(matches!(Kept::open(&plugins), Err(KeptError::Writable { .. })));
    set_mode(&plugins, 0o700);
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), plugins.join("link")).unwrap();
    std::fs::write(plugins.join("file"), "").unwrap();
    for name in ["link", "file"] {
        let said = kept.put(name, &digest, b"one", None).unwrap_err().to_string();
        assert!(said.contains("kept versions can't be there"), "{said}");
    }
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    let file = folder.path().join("not-a-folder");
    std::fs::write(&file, "").unwrap();
    let said = Kept::open(&file).unwrap_err().to_string();
    assert!(said.contains("kept versions can't be there"), "{said}");
}

#[test]
fn choice_of_a_version_that_is_not_kept_is_not_recorded() {
    let (_folder, kept) = open();
    let served = serve(&kept, "hello", b"one", By::File, 1);
    let before = kept.state("hello").unwrap();
    let mut state = before.clone();
    state.chosen = Some(Chosen {
        digest: repeated('7'),
        file: Some(served),
    });
    let error = kept.record("hello", &state).unwrap_err();
    assert_eq!(
        error.to_string(),
        "version 777777777777 of the plugin \"hello\" is not kept; deploy its component again"
    );
    assert_eq!(kept.state("hello").unwrap(), before);
}

#[test]
fn failed_write_leaves_the_state_before_and_nothing_else() {
    let (folder, kept) = open();
    serve(&kept, "hello", b"one", By::File, 1);
    let before = kept.state("hello").unwrap();
    let file = folder.path().join("plugins/hello/state.json");
    // A folder that isn't empty can't be replaced by a file, whoever tries.
    let blocked = digest_of_bytes(b"two");
    std::fs::create_dir_all(folder.path().join(format!("plugins/hello/{blocked}.wasm/x"))).unwrap();
    let said = kept.put("hello", &blocked, b"two", None).unwrap_err().to_string();
    assert!(
        said.contains(&format!("{blocked}.wasm: can't be written: ")),
        "{said}"
    );
    assert!(
        !names(&folder, "hello")
            .iter()
            .any(|name| name.starts_with(".fresh-"))
    );
    let large = State {
        versions: vec![version(&repeated('1'), By::File); 2_000],
        ..State::default()
    };
    assert!(matches!(
        kept.record("hello", &large),
        Err(KeptError::TooLarge { .. })
    ));
    assert!(file.exists());
    assert_eq!(kept.state("hello").unwrap(), before);
}

/// Readers see one of the states, whole, and the last one has its files.
#[test]
fn concurrent_records_leave_one_whole_state_with_its_files() {
    const ROUNDS: usize = 20;
    let (folder, kept) = open();
    let writers = 4;
    let barrier = Barrier::new(writers + 1);
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let (kept, barrier) = (&kept, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for round in 0..ROUNDS {
                    let bytes = format!("{writer} {round}").into_bytes();
                    let digest = digest_of_bytes(&bytes);
                    kept.put("hello", &digest, &bytes, None).unwrap();
                    let mut state = State::default();
                    state.became_current(version(&digest, By::File), 3);
                    kept.record("hello", &state).unwrap();
                    // A plugin of its own sees nothing of the others.
                    serve(kept, &format!("p{writer}"), &bytes, By::File, 1);
                }
            });
        }
        barrier.wait();
        for _ in 0..200 {
            let state = kept.state("hello").unwrap();
            assert!(state.versions.len() <= 1, "{state:?}");
        }
    });
    let state = kept.state("hello").unwrap();
    let last = &state.versions[0].digest;
    kept.read("hello", last).unwrap();
    assert_eq!(
        names(&folder, "hello"),
        [format!("{last}.wasm"), "state.json".to_owned()]
    );
    for writer in 0..writers {
        let plugin = format!("p{writer}");
        assert_eq!(names(&folder, &plugin).len(), 3, "two versions and the state");
        let last = digest_of_bytes(format!("{writer} {}", ROUNDS - 1).as_bytes());
        assert_eq!(kept.state(&plugin).unwrap().current, Some(last));
    }
}
