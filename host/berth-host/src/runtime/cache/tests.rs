use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use wasmtime::Config;
use wasmtime::Store;
use wasmtime::component::Linker;

use super::super::engine::{Runtime, RuntimeSettings};
use super::*;

fn from_binary(engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Component> {
    Component::from_binary(engine, bytes)
}

fn engine() -> Engine {
    Runtime::new(RuntimeSettings {
        instances: 8,
        workers: 1,
        max_memory: 1 << 20,
        memory_budget: 1 << 20,
    })
    .unwrap()
    .engine
    .clone()
}

/// A component that answers with this number.
fn numbered(number: u32) -> Vec<u8> {
    let text = format!(
        "(component (core module $m (func (export \"f\") (result i32) i32.const {number}))
            (core instance $i (instantiate $m))
            (func (export \"f\") (result u32) (canon lift (core func $i \"f\"))))"
    );
    wat::parse_str(text).unwrap()
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// What a component answers.
fn answer(engine: &Engine, component: &Component) -> u32 {
    let mut store = Store::new(engine, ());
    store.set_epoch_deadline(u64::MAX / 2);
    let instance = wait(Linker::new(engine).instantiate_async(&mut store, component)).unwrap();
    let f = instance.get_typed_func::<(), (u32,)>(&mut store, "f").unwrap();
    wait(f.call_async(&mut store, ())).unwrap().0
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

/// One component of one cache.
struct Case {
    engine: Engine,
    folder: tempfile::TempDir,
    number: u32,
}

impl Case {
    fn new(number: u32) -> Self {
        Self {
            engine: engine(),
            folder: tempfile::tempdir().unwrap(),
            number,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn entry(&self) -> PathBuf {
        let key = Key::of(&self.engine, &digest(&numbered(self.number)));
        self.path().join(key.name())
    }

    fn cache(&self) -> Cache {
        Cache::open(&self.path()).unwrap()
    }

    /// Ask for the component, and see that it is the right one whatever was found.
    fn ask(&self, cache: &Cache) -> Found {
        let bytes = numbered(self.number);
        let (component, found) = cache.component(&self.engine, &digest(&bytes), &bytes, from_binary);
        assert_eq!(answer(&self.engine, &component.unwrap()), self.number);
        found
    }

    /// Ask twice: for what is wrong, and to see that it was repaired.
    fn refused(&self, cache: &Cache) -> String {
        let Found::Damaged(why) = self.ask(cache) else {
            panic!("a wrong entry was used");
        };
        assert_eq!(self.ask(cache), Found::Hit, "{why}");
        why
    }
}

/// Make an entry whose header is right, of an artifact that is not what wasmtime made.
fn forged(key: &Key, artifact: &[u8]) -> Vec<u8> {
    let mut entry = MAGIC.to_vec();
    entry.extend(length_of(artifact));
    entry.extend(key.0);
    let hash = hash_of(&entry, artifact);
    entry.extend(hash);
    entry.extend(artifact);
    entry
}

#[test]
fn component_is_compiled_once_and_found_by_every_later_process() {
    let case = Case::new(7);
    let cache = case.cache();
    assert_eq!(case.ask(&cache), Found::Missed);
    assert_eq!(case.ask(&cache), Found::Hit);
    assert_eq!(case.ask(&case.cache()), Found::Hit);
    // Of another engine with the same settings, as after a restart.
    let bytes = numbered(7);
    let engine = engine();
    let (component, found) = case
        .cache()
        .component(&engine, &digest(&bytes), &bytes, from_binary);
    assert_eq!((answer(&engine, &component.unwrap()), found), (7, Found::Hit));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&case.path()), mode(&case.entry())), (0o700, 0o600));
}

#[test]
fn what_a_hit_runs_is_the_entry_and_not_the_bytes() {
    // So that the tests of damaged entries mean something: an entry of the right form is executed.
    let case = Case::new(7);
    let cache = case.cache();
    let key = Key::of(&case.engine, &digest(&numbered(7)));
    let other = Component::from_binary(&case.engine, &numbered(8)).unwrap();
    cache.write(&key, &other.serialize().unwrap()).unwrap();
    let bytes = numbered(7);
    let (component, found) = cache.component(&case.engine, &digest(&bytes), &bytes, from_binary);
    assert_eq!(
        (answer(&case.engine, &component.unwrap()), found),
        (8, Found::Hit)
    );
}

#[test]
fn every_changed_bit_is_seen() {
    let case = Case::new(7);
    let cache = case.cache();
    case.ask(&cache);
    let key = Key::of(&case.engine, &digest(&numbered(7)));
    let whole = std::fs::read(case.entry()).unwrap();
    assert!(artifact(&whole, &key).is_ok());
    // Every bit of the header; of the artifact every byte, in some bit.
    let header = (0..HEADER).flat_map(|at| (0..8).map(move |bit| (at, bit)));
    let hashed = (HEADER..whole.len()).step_by(97).map(|at| (at, at % 8));
    for (at, bit) in header.chain(hashed) {
        let mut entry = whole.clone();
        entry[at] ^= 1 << bit;
        assert!(artifact(&entry, &key).is_err(), "bit {bit} of byte {at}");
    }
}

#[test]
fn damaged_entry_is_compiled_again() {
    let case = Case::new(7);
    let cache = case.cache();
    case.ask(&cache);
    let whole = std::fs::read(case.entry()).unwrap();
    let table = [
        (0, "it doesn't begin as an entry of this version"),
        (MAGIC.len(), "it has another length than it says"),
        (MAGIC.len() + 8, "it is an entry of another component or engine"),
        (HEAD, "its content doesn't fit its hash"),
        (HEADER, "its content doesn't fit its hash"),
        (whole.len() / 2, "its content doesn't fit its hash"),
        (whole.len() - 1, "its content doesn't fit its hash"),
    ];
    for (at, why) in table {
        let mut entry = whole.clone();
        entry[at] ^= 1;
        std::fs::write(case.entry(), entry).unwrap();
        let said = case.refused(&cache);
        assert!(
            said.starts_with(&case.entry().display().to_string()) && said.contains(why),
            "byte {at}: {said}"
        );
    }
}

#[test]
fn entry_of_another_length_is_compiled_again() {
    let case = Case::new(7);
    let cache = case.cache();
    case.ask(&cache);
    let whole = std::fs::read(case.entry()).unwrap();
    for length in [
        0,
        1,
        MAGIC.len(),
        HEAD,
        HEADER - 1,
        HEADER,
        HEADER + 1,
        4096,
        whole.len() - 1,
    ] {
        std::fs::write(case.entry(), &whole[..length]).unwrap();
        let said = case.refused(&cache);
        let why = if length < HEADER {
            "cut off"
        } else {
            "another length"
        };
        assert!(said.contains(why), "{length}: {said}");
    }
    let longer = [whole.as_slice(), b"\0"].concat();
    std::fs::write(case.entry(), longer).unwrap();
    assert!(case.refused(&cache).contains("another length"));
    // As large as a disk, but nothing in it.
    File::create(case.entry())
        .unwrap()
        .set_len(MAX_ENTRY + 1)
        .unwrap();
    assert!(case.refused(&cache).contains("at most"));
}

#[test]
fn whole_entry_that_wasmtime_refuses_is_compiled_again() {
    let case = Case::new(7);
    let cache = case.cache();
    case.ask(&cache);
    let key = Key::of(&case.engine, &digest(&numbered(7)));
    let mut config = Config::new();
    config.wasm_component_model(true);
    let foreign = Engine::new(&config).unwrap();
    let foreign = Component::from_binary(&foreign, &numbered(7)).unwrap();
    for artifact in [&b""[..], b"no machine code", &foreign.serialize().unwrap()] {
        std::fs::write(case.entry(), forged(&key, artifact)).unwrap();
        let said = case.refused(&cache);
        assert!(said.contains("wasmtime refuses it: "), "{said}");
    }
}

#[test]
fn other_engines_have_other_entries() {
    let case = Case::new(7);
    let cache = case.cache();
    assert_eq!(case.ask(&cache), Found::Missed);
    let bytes = numbered(7);
    let changes: [fn(&mut Config); 3] = [
        |_| {},
        |config| {
            config.cranelift_opt_level(wasmtime::OptLevel::None);
        },
        |config| {
            config.consume_fuel(true);
        },
    ];
    for change in changes {
        let mut config = Config::new();
        change(&mut config);
        let engine = Engine::new(&config).unwrap();
        let found = || cache.component(&engine, &digest(&bytes), &bytes, from_binary).1;
        assert_eq!((found(), found()), (Found::Missed, Found::Hit));
    }
    assert_eq!(std::fs::read_dir(case.path()).unwrap().count(), 4);
    assert_eq!(case.ask(&cache), Found::Hit);
}

#[test]
fn entry_under_another_name_is_not_used() {
    let case = Case::new(7);
    let cache = case.cache();
    case.ask(&cache);
    let other = Case {
        engine: case.engine.clone(),
        folder: tempfile::tempdir().unwrap(),
        number: 8,
    };
    other.ask(&other.cache());
    std::fs::copy(other.entry(), case.entry()).unwrap();
    let said = case.refused(&cache);
    assert!(said.contains("of another component or engine"), "{said}");
}

#[test]
fn entry_that_others_could_have_made_is_not_used() {
    let case = Case::new(7);
    let cache = case.cache();
    case.ask(&cache);
    for mode in [0o620, 0o602, 0o666] {
        std::fs::set_permissions(case.entry(), std::fs::Permissions::from_mode(mode)).unwrap();
        let said = case.refused(&cache);
        assert!(said.contains("others may write it"), "{said}");
    }
    let elsewhere = case.folder.path().join("elsewhere");
    std::fs::rename(case.entry(), &elsewhere).unwrap();
    symlink(&elsewhere, case.entry()).unwrap();
    let said = case.refused(&cache);
    assert!(said.contains("a symbolic link"), "{said}");
    assert!(case.entry().symlink_metadata().unwrap().is_file());

    // Nobody opens its other end.
    std::fs::remove_file(case.entry()).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, case.entry(), Mode::RUSR | Mode::WUSR).unwrap();
    let said = case.refused(&cache);
    assert!(said.contains("not a regular file"), "{said}");
}

#[test]
fn files_of_another_user_are_refused() {
    let case = Case::new(7);
    let cache = case.cache();
    case.ask(&cache);
    if !geteuid().is_root() {
        // Nobody can give a file away without being root. A file of somebody else's is one of root's then.
        let said = Cache::open(Path::new("/usr")).unwrap_err().to_string();
        assert!(said.contains("belongs to user 0"), "{said}");
        return;
    }
    std::os::unix::fs::chown(case.entry(), Some(12345), None).unwrap();
    let said = case.refused(&cache);
    assert!(said.contains("it belongs to user 12345"), "{said}");
    std::os::unix::fs::chown(case.path(), Some(12345), None).unwrap();
    let said = Cache::open(&case.path()).unwrap_err().to_string();
    assert!(said.contains("belongs to user 12345"), "{said}");
}

#[test]
fn folder_that_others_may_write_is_refused() {
    let case = Case::new(7);
    drop(case.cache());
    let mode = |mode| std::fs::set_permissions(case.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    for bad in [0o770, 0o707, 0o777, 0o1777, 0o720, 0o702] {
        mode(bad);
        let said = Cache::open(&case.path()).unwrap_err().to_string();
        assert!(
            said.contains(&format!("others may write to the compile cache (mode {bad:03o})")),
            "{said}"
        );
    }
    for good in [0o700, 0o711, 0o755] {
        mode(good);
        assert_eq!(case.cache().limit, MAX_TOTAL);
    }
}

#[test]
fn what_is_no_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link, real) = (
        folder.path().join("file"),
        folder.path().join("link"),
        folder.path().join("real"),
    );
    std::fs::write(&file, "").unwrap();
    std::fs::create_dir(&real).unwrap();
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o700)).unwrap();
    symlink(&real, &link).unwrap();
    let said = |path: &Path| Cache::open(path).unwrap_err().to_string();
    assert!(said(&file).contains("must be a folder, and this is a file"));
    assert!(said(&link).contains("must be a folder, and this is a symbolic link"));
    let below = said(&file.join("below"));
    assert!(
        below.contains("the compile cache can't be made: Not a directory"),
        "{below}"
    );
}

/// The folder's path is another's now; the cache stays in the one that was checked.
#[test]
fn folder_in_the_place_of_an_open_one_is_not_read() {
    let case = Case::new(7);
    let cache = case.cache();
    case.ask(&cache);
    std::fs::rename(case.path(), case.folder.path().join("moved")).unwrap();
    std::fs::create_dir(case.path()).unwrap();
    let key = Key::of(&case.engine, &digest(&numbered(7)));
    std::fs::write(case.entry(), forged(&key, b"made up")).unwrap();
    assert_eq!(case.ask(&cache), Found::Hit);
}

/// Run as a user without root's right to write everywhere.
fn unprivileged<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Of this thread alone.
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::DAC_OVERRIDE);
            set_capabilities(None, sets).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn folder_that_can_only_be_read_still_serves_what_is_in_it() {
    let case = Case::new(7);
    let other = Case {
        engine: case.engine.clone(),
        folder: tempfile::tempdir().unwrap(),
        number: 8,
    };
    case.ask(&case.cache());
    let mode = |mode| std::fs::set_permissions(case.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o500);
    unprivileged(|| {
        let cache = case.cache();
        assert_eq!(case.ask(&cache), Found::Hit);
        assert_eq!(other.ask(&cache), Found::Missed);
        assert_eq!(other.ask(&cache), Found::Missed);
        assert!(cache.told.load(Ordering::Relaxed));
    });
    mode(0o700);
    assert_eq!(std::fs::read_dir(case.path()).unwrap().count(), 1);
}

#[test]
fn failed_write_leaves_nothing_behind() {
    let case = Case::new(7);
    let cache = case.cache();
    // A folder can't be replaced by a file.
    std::fs::create_dir(case.entry()).unwrap();
    assert!(matches!(case.ask(&cache), Found::Damaged(why) if why.contains("not a regular file")));
    assert!(cache.told.load(Ordering::Relaxed));
    assert_eq!(std::fs::read_dir(case.path()).unwrap().count(), 1);
    std::fs::remove_dir(case.entry()).unwrap();
    assert_eq!(case.ask(&cache), Found::Missed);
    assert!(!cache.told.load(Ordering::Relaxed));

    std::fs::remove_dir_all(case.path()).unwrap();
    assert_eq!(case.ask(&cache), Found::Missed);
    assert!(cache.told.load(Ordering::Relaxed));
    assert!(!case.path().exists());
}

#[test]
fn component_that_does_not_compile_is_told_in_the_compilers_words() {
    let case = Case::new(7);
    let cache = case.cache();
    let bytes = b"\0asm\x0d\0\x01\0damaged";
    let alone = Component::from_binary(&case.engine, bytes)
        .map(|_| ())
        .unwrap_err();
    let (component, found) = cache.component(&case.engine, &digest(bytes), bytes, from_binary);
    let error = component.map(|_| ()).unwrap_err();
    assert_eq!(format!("{error:#}"), format!("{alone:#}"));
    assert_eq!(found, Found::Missed);
    assert_eq!(std::fs::read_dir(case.path()).unwrap().count(), 0);
}

/// Pools are no part of the key: machine code doesn't depend on them.
#[test]
fn component_too_large_for_smaller_pools_is_refused_although_it_is_cached() {
    let bytes = wat::parse_str("(component (core module (memory 17)))").unwrap();
    let with_memory = |max_memory| {
        let settings = RuntimeSettings {
            instances: 2,
            workers: 1,
            max_memory,
            memory_budget: 4 << 20,
        };
        Runtime::new(settings).unwrap().engine.clone()
    };
    let (large, small) = (with_memory(2 << 20), with_memory(1 << 20));
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(&folder.path().join("cache")).unwrap();
    assert!(
        cache
            .component(&large, &digest(&bytes), &bytes, from_binary)
            .0
            .is_ok()
    );
    let (component, found) = cache.component(&small, &digest(&bytes), &bytes, from_binary);
    let error = component.map(|_| ()).unwrap_err();
    let alone = Component::from_binary(&small, &bytes).map(|_| ()).unwrap_err();
    assert_eq!(format!("{error:#}"), format!("{alone:#}"));
    assert_eq!(found, Found::Missed);
    // It is still there for the larger ones.
    assert_eq!(
        cache.component(&large, &digest(&bytes), &bytes, from_binary).1,
        Found::Hit
    );
}

/// Each opens the folder, as processes do.
#[test]
fn writers_at_once_disturb_neither_each_other_nor_readers() {
    const WRITERS: u32 = 4;
    let case = Case::new(7);
    drop(case.cache());
    let start = Barrier::new(WRITERS as usize);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (case, start) = (&case, &start);
            scope.spawn(move || {
                start.wait();
                for _ in 0..20 {
                    let found = case.ask(&case.cache());
                    assert!(!matches!(found, Found::Damaged(_)), "{found:?}");
                    if writer == 0 {
                        // Readers find it or not.
                        let _ = std::fs::remove_file(case.entry());
                    }
                }
            });
        }
    });
    case.ask(&case.cache());
    assert_eq!(case.ask(&case.cache()), Found::Hit);
    assert_eq!(std::fs::read_dir(case.path()).unwrap().count(), 1);
}

#[test]
fn files_of_dead_writers_are_removed_and_those_of_live_ones_stay() {
    let case = Case::new(7);
    drop(case.cache());
    let name = hex(&[7; 32]);
    let (dead, live, alien) = (
        case.path().join(format!("{name}.0000000000000001{PART}")),
        case.path().join(format!("{name}.0000000000000002{PART}")),
        case.path().join("README"),
    );
    std::fs::write(&dead, "half").unwrap();
    std::fs::write(&alien, "").unwrap();
    let writer = File::create(&live).unwrap();
    flock(&writer, FlockOperation::LockExclusive).unwrap();
    drop(case.cache());
    assert_eq!(
        (dead.exists(), live.exists(), alien.exists()),
        (false, true, true)
    );
    drop(writer);
    drop(case.cache());
    assert_eq!((live.exists(), alien.exists()), (false, true));
}

#[test]
fn entries_unused_for_longest_go_when_there_are_too_many() {
    let case = Case::new(0);
    let cache = case.cache();
    let case = |number| Case {
        engine: case.engine.clone(),
        folder: tempfile::tempdir_in(case.folder.path()).unwrap(),
        number,
    };
    let entry = |number: u32| {
        let key = Key::of(&case(number).engine, &digest(&numbered(number)));
        cache.path.join(key.name())
    };
    let age = |number, hours: u64| {
        let then = SystemTime::now() - Duration::from_secs(3600 * hours);
        File::open(entry(number)).unwrap().set_modified(then).unwrap();
    };
    let there = || {
        (0..6)
            .filter(|number| entry(*number).exists())
            .collect::<Vec<_>>()
    };
    for number in 0..4 {
        assert_eq!(case(number).ask(&cache), Found::Missed);
        age(number, 10 - u64::from(number));
    }
    let size = std::fs::metadata(entry(0)).unwrap().len();
    assert_eq!(there(), [0, 1, 2, 3]);
    // Used again: now 1 is the oldest, then 2.
    assert_eq!(case(0).ask(&cache), Found::Hit);
    let cache_of_four = Cache::open(&cache.path).unwrap().bounded(4 * size);
    assert_eq!(case(4).ask(&cache_of_four), Found::Missed);
    assert_eq!(there(), [0, 2, 3, 4]);
    // A newer clock's entry is no reason to remove what was just written.
    let cache_of_one = Cache::open(&cache.path).unwrap().bounded(size);
    assert_eq!(case(5).ask(&cache_of_one), Found::Missed);
    assert_eq!(there(), [5]);
    // What is larger than everything may be isn't kept.
    let cache_of_none = Cache::open(&cache.path).unwrap().bounded(size - 1);
    assert_eq!(case(1).ask(&cache_of_none), Found::Missed);
    assert_eq!(there(), [5]);
}

/// For people: how long it takes, of a component with some thousand functions.
#[test]
fn times_are_printed() {
    let case = Case::new(7);
    let cache = case.cache();
    let functions: String = (0..3_000)
        .map(|n| {
            let body: String = (0..12)
                .map(|k| format!("(local.set 0 (i32.add (i32.mul (local.get 0) (i32.const {})) (i32.load (i32.and (local.get 0) (i32.const 1023)))))", n + k))
                .collect();
            format!("(func (export \"f{n}\") (param i32) (result i32) {body} (local.get 0))")
        })
        .collect();
    let text =
        format!("(component (core module $m (memory 1) {functions}) (core instance (instantiate $m)))");
    let bytes = wat::parse_str(text).unwrap();
    let digest = digest(&bytes);
    let time = |what: &str, work: &mut dyn FnMut()| {
        let began = Instant::now();
        work();
        println!("{what:>12}: {:?}", began.elapsed());
    };
    time("key", &mut || {
        assert_ne!(Key::of(&case.engine, &digest), Key([0; 32]))
    });
    time("miss", &mut || {
        assert_eq!(
            cache.component(&case.engine, &digest, &bytes, from_binary).1,
            Found::Missed
        );
    });
    for _ in 0..3 {
        time("hit", &mut || {
            assert_eq!(
                cache.component(&case.engine, &digest, &bytes, from_binary).1,
                Found::Hit
            );
        });
    }
    let component = Component::from_binary(&case.engine, &bytes).unwrap();
    let mut artifact = Vec::new();
    time("serialize", &mut || artifact = component.serialize().unwrap());
    let key = Key::of(&case.engine, &digest);
    time("write", &mut || cache.write(&key, &artifact).unwrap());
    time("read", &mut || drop(cache.read(&key.name()).unwrap()));
    time("hash", &mut || assert_ne!(hash_of(&[], &artifact), [0; 32]));
    #[expect(unsafe_code, reason = "timed alone")]
    time("deserialize", &mut || {
        // SAFETY: just serialized, of the same engine.
        drop(unsafe { Component::deserialize(&case.engine, &artifact) }.unwrap());
    });
    println!(
        "{} bytes of component, {} of machine code",
        bytes.len(),
        artifact.len()
    );
}
