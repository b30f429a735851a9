//! Real files, changed in all the ways that editors, builds and Kubernetes do it. Most of these run twice: once by
//! notifications alone (no sweep for an hour), once by looking alone.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;

/// Notifications alone.
const NOTIFIED: Pace = Pace {
    sweep: Duration::from_secs(3600),
    poll: Duration::from_secs(3600),
    ..Pace::USUAL
};
/// Looking alone.
const LOOKING: Pace = Pace {
    notices: false,
    poll: Duration::from_millis(5),
    ..Pace::USUAL
};
/// Notifications alone, and whatever is not said to be whole is waited for so long that nothing between two steps of a
/// test is told, however slow the machine is.
const PATIENT: Pace = Pace {
    settle: Duration::from_secs(2),
    open: Duration::from_secs(30),
    ..NOTIFIED
};

/// A folder, and a watch of files in it.
struct Scene {
    _folder: TempDir,
    root: PathBuf,
    watch: Watch,
    notified: bool,
    last: String,
}

impl Scene {
    /// With what is made in the folder before watching begins; what is watched of it, and one file more.
    async fn new(pace: Pace, files: &[&str], make: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        make(&root);
        fs::write(root.join("sentinel"), "").unwrap();
        let files = files.iter().chain(&["sentinel"]).map(|file| root.join(file));
        let watch = Watch::at(pace, files);
        let scene = Self {
            _folder: folder,
            root,
            watch,
            notified: pace.notices,
            last: String::new(),
        };
        // The second look comes when the folders are watched.
        scene
            .watch
            .desk
            .looks
            .subscribe()
            .wait_for(|looks| *looks >= 2)
            .await
            .unwrap();
        scene
    }

    fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(file), text).unwrap();
    }

    /// Write it under another name and rename it.
    fn place(&self, file: &str, text: impl AsRef<[u8]>) {
        let new = self.path("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(file)).unwrap();
    }

    /// Point a symlink elsewhere in one step.
    fn point(&self, link: &str, target: &str) {
        let new = self.path("new");
        symlink(target, &new).unwrap();
        fs::rename(new, self.path(link)).unwrap();
    }

    /// Wait until the thread has looked so many times more.
    async fn looks(&self, more: u64) {
        let mut looks = self.watch.desk.looks.subscribe();
        let most = *looks.borrow() + more;
        looks.wait_for(|looks| *looks >= most).await.unwrap();
    }

    async fn told(&mut self) -> String {
        let told = tokio::time::timeout(Duration::from_secs(20), self.watch.changed());
        let told = told.await.expect("nothing is told");
        self.last = told.strip_prefix(&self.root).unwrap().display().to_string();
        self.last.clone()
    }

    /// What is told until this one is; for where steps between two states may be told or not.
    async fn told_with(&mut self, file: &str) {
        while self.told().await != file {}
    }

    /// Nothing more is told: all notifications of before have come when the sentinel is told, and what has yet to settle
    /// would be told soon after. Where there are no notifications, what was told last may be told again: whoever only
    /// looks takes a slow test for two changes.
    async fn quiet(&mut self) {
        let last = self.last.clone();
        self.place("sentinel", "");
        while self.told().await != "sentinel" {
            assert!(!self.notified && self.last == last, "{} is told", self.last);
        }
        let more = tokio::time::timeout(5 * SETTLE, self.watch.changed()).await;
        assert!(more.is_err(), "{more:?}");
    }
}

#[tokio::test]
async fn file_written_in_place_is_told_once() {
    for pace in [PATIENT, LOOKING] {
        let mut scene = Scene::new(pace, &["file"], |root| fs::write(root.join("file"), "1").unwrap()).await;
        for text in ["22", "33", "4"] {
            scene.write("file", text);
            assert_eq!(scene.told().await, "file");
            scene.quiet().await;
        }
    }
}

#[tokio::test]
async fn file_renamed_over_is_told_once() {
    for pace in [PATIENT, LOOKING] {
        let mut scene = Scene::new(pace, &["file"], |root| fs::write(root.join("file"), "1").unwrap()).await;
        for synced in [false, true] {
            let mut file = File::create(scene.path("temporary")).unwrap();
            file.write_all(b"2").unwrap();
            if synced {
                file.sync_all().unwrap();
            }
            drop(file);
            fs::rename(scene.path("temporary"), scene.path("file")).unwrap();
            assert_eq!(scene.told().await, "file");
            scene.quiet().await;
        }
    }
}

/// As vim does it: the old file becomes the backup, the new one is written where it was.
#[tokio::test]
async fn file_saved_with_a_backup_is_told_once() {
    for pace in [PATIENT, LOOKING] {
        let mut scene = Scene::new(pace, &["file"], |root| fs::write(root.join("file"), "1").unwrap()).await;
        fs::rename(scene.path("file"), scene.path("file~")).unwrap();
        scene.write("file", "2");
        assert_eq!(scene.told().await, "file");
        fs::remove_file(scene.path("file~")).unwrap();
        scene.quiet().await;
    }
}

#[tokio::test]
async fn deletion_is_told_once_and_so_is_the_file_that_comes_back() {
    for pace in [NOTIFIED, LOOKING] {
        let mut scene = Scene::new(pace, &["file"], |root| fs::write(root.join("file"), "1").unwrap()).await;
        for _ in 0..3 {
            fs::remove_file(scene.path("file")).unwrap();
            assert_eq!(scene.told().await, "file");
            scene.quiet().await;
            scene.write("file", "1");
            assert_eq!(scene.told().await, "file");
            scene.quiet().await;
        }
    }
}

/// As cargo does it: away with the old one, and a second name for the new one.
#[tokio::test]
async fn file_linked_into_place_is_told_once() {
    let make = |root: &Path| {
        fs::write(root.join("deps"), "1").unwrap();
        fs::hard_link(root.join("deps"), root.join("file")).unwrap();
    };
    for pace in [PATIENT, LOOKING] {
        let mut scene = Scene::new(pace, &["file"], make).await;
        scene.place("deps", "2");
        fs::remove_file(scene.path("file")).unwrap();
        fs::hard_link(scene.path("deps"), scene.path("file")).unwrap();
        assert_eq!(scene.told().await, "file");
        assert_eq!(fs::read(scene.path("file")).unwrap(), b"2");
        scene.quiet().await;
    }
}

#[tokio::test]
async fn symlinks_are_followed_to_their_end() {
    let make = |root: &Path| {
        for folder in ["a", "b", "c"] {
            fs::create_dir(root.join(folder)).unwrap();
            fs::write(root.join(folder).join("real"), folder).unwrap();
        }
        symlink("../b/real", root.join("a/middle")).unwrap();
        symlink("a/middle", root.join("file")).unwrap();
    };
    for pace in [PATIENT, LOOKING] {
        let mut scene = Scene::new(pace, &["file"], make).await;
        // The end.
        scene.write("b/real", "written in place");
        assert_eq!(scene.told().await, "file");
        scene.place("b/real", "replaced");
        assert_eq!(scene.told().await, "file");
        // The middle.
        scene.point("a/middle", "../c/real");
        assert_eq!(scene.told().await, "file");
        // Where it leads now, and no more where it led.
        scene.place("c/real", "replaced");
        assert_eq!(scene.told().await, "file");
        scene.place("b/real", "nobody's");
        scene.quiet().await;
        // The beginning.
        scene.point("file", "b/real");
        assert_eq!(scene.told().await, "file");
        scene.place("b/real", "replaced again");
        assert_eq!(scene.told().await, "file");
        scene.place("c/real", "nobody's");
        scene.quiet().await;
    }
}

/// A projected volume: the folder of the files is a symlink that is swapped, and the old folder is removed.
#[tokio::test]
async fn swapped_folder_of_kubernetes_is_told_for_each_file() {
    let version = |root: &Path, version: &str| {
        fs::create_dir(root.join(version)).unwrap();
        for file in ["a", "b"] {
            fs::write(root.join(version).join(file), version).unwrap();
        }
    };
    for pace in [PATIENT, LOOKING] {
        let mut scene = Scene::new(pace, &["a", "b"], |root| {
            version(root, "..2026_1");
            symlink("..2026_1", root.join("..data")).unwrap();
            symlink("..data/a", root.join("a")).unwrap();
            symlink("..data/b", root.join("b")).unwrap();
        })
        .await;
        for (old, new) in [("..2026_1", "..2026_2"), ("..2026_2", "..2026_3")] {
            version(&scene.root, new);
            scene.point("..data", new);
            fs::remove_dir_all(scene.path(old)).unwrap();
            assert_eq!(scene.told().await, "a");
            assert_eq!(scene.told().await, "b");
            assert_eq!(fs::read_to_string(scene.path("a")).unwrap(), new);
            scene.quiet().await;
        }
    }
}

/// `cargo clean`, and a build after it.
#[tokio::test]
async fn folder_that_is_removed_and_made_again_is_watched_again() {
    let make = |root: &Path| {
        fs::create_dir_all(root.join("target/wasm/release")).unwrap();
        fs::write(root.join("target/wasm/release/file"), "0").unwrap();
    };
    for pace in [NOTIFIED, LOOKING] {
        let mut scene = Scene::new(pace, &["target/wasm/release/file"], make).await;
        for text in ["1", "2", "3"] {
            fs::remove_dir_all(scene.path("target")).unwrap();
            assert_eq!(scene.told().await, "target/wasm/release/file");
            scene.quiet().await;
            fs::create_dir_all(scene.path("target/wasm/release")).unwrap();
            scene.place("target/wasm/release/file", text);
            assert_eq!(scene.told().await, "target/wasm/release/file");
            scene.quiet().await;
            scene.place("target/wasm/release/file", "more");
            assert_eq!(scene.told().await, "target/wasm/release/file");
        }
    }
}

/// The same with no pause, so that the system's news of the old folder meets the watch of the new one.
#[tokio::test]
async fn folder_that_is_made_again_at_once_is_watched_again() {
    let make = |root: &Path| {
        fs::create_dir(root.join("dist")).unwrap();
        fs::write(root.join("dist/file"), "0").unwrap();
    };
    for pace in [NOTIFIED, LOOKING] {
        let mut scene = Scene::new(pace, &["dist/file"], make).await;
        for n in 0..20 {
            fs::remove_dir_all(scene.path("dist")).unwrap();
            fs::create_dir(scene.path("dist")).unwrap();
            scene.write("dist/file", "1");
            // At random times, so that each order of things is met.
            tokio::time::sleep(Duration::from_micros(fastrand::u64(0..3000))).await;
            let text = n.to_string();
            scene.place("dist/file", &text);
            // It may have been told before that.
            while let Ok(file) = tokio::time::timeout(5 * SETTLE, scene.watch.changed()).await {
                assert_eq!(file, scene.path("dist/file"));
            }
            scene.place("dist/file", "2");
            assert_eq!(scene.told().await, "dist/file");
        }
    }
}

#[tokio::test]
async fn folder_that_is_exchanged_is_noticed_and_watched() {
    let make = |root: &Path| {
        for folder in ["dist", "dist.new"] {
            fs::create_dir(root.join(folder)).unwrap();
            fs::write(root.join(folder).join("file"), folder).unwrap();
        }
    };
    for pace in [NOTIFIED, LOOKING] {
        let mut scene = Scene::new(pace, &["dist/file"], make).await;
        fs::rename(scene.path("dist"), scene.path("dist.old")).unwrap();
        fs::rename(scene.path("dist.new"), scene.path("dist")).unwrap();
        assert_eq!(scene.told().await, "dist/file");
        scene.quiet().await;
        scene.write("dist/file", "changed");
        assert_eq!(scene.told().await, "dist/file");
        scene.write("dist.old/file", "nobody's");
        scene.quiet().await;
    }
}

/// A folder further up that is exchanged makes no notification; the sweep finds it, and watches the new one.
#[tokio::test]
async fn sweep_finds_what_notifications_miss() {
    let pace = Pace {
        sweep: Duration::from_millis(30),
        ..Pace::USUAL
    };
    let make = |root: &Path| {
        for folder in ["up/dist", "up.new/dist"] {
            fs::create_dir_all(root.join(folder)).unwrap();
            fs::write(root.join(folder).join("file"), folder).unwrap();
        }
    };
    let mut scene = Scene::new(pace, &["up/dist/file"], make).await;
    fs::rename(scene.path("up"), scene.path("up.old")).unwrap();
    fs::rename(scene.path("up.new"), scene.path("up")).unwrap();
    assert_eq!(scene.told().await, "up/dist/file");
    scene.looks(2).await;
    scene.place("up/dist/file", "changed");
    assert_eq!(scene.told().await, "up/dist/file");
}

/// False alarms, which the caller's hash will tell from changes; here so that they stay few.
#[tokio::test]
async fn touch_and_chmod_are_told_once() {
    for pace in [NOTIFIED, LOOKING] {
        let mut scene = Scene::new(pace, &["file"], |root| fs::write(root.join("file"), "1").unwrap()).await;
        let file = File::open(scene.path("file")).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(scene.told().await, "file");
        scene.quiet().await;
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(scene.told().await, "file");
        scene.quiet().await;
    }
}

#[tokio::test]
async fn slow_writer_is_waited_for() {
    let pace = Pace {
        open: Duration::from_secs(60),
        most: Duration::from_secs(60),
        ..NOTIFIED
    };
    let mut scene = Scene::new(pace, &["file"], |root| fs::write(root.join("file"), "1").unwrap()).await;
    let mut file = File::create(scene.path("file")).unwrap();
    for _ in 0..3 {
        file.write_all(b"chunk").unwrap();
        // The writer takes longer than a file that rests.
        let early = tokio::time::timeout(5 * SETTLE, scene.watch.changed()).await;
        assert!(early.is_err(), "{early:?}");
    }
    drop(file);
    assert_eq!(scene.told().await, "file");
    scene.quiet().await;
}

#[tokio::test]
async fn writer_that_never_closes_is_not_waited_for_for_ever() {
    let pace = Pace {
        open: Duration::from_millis(100),
        ..NOTIFIED
    };
    let mut scene = Scene::new(pace, &["file"], |root| fs::write(root.join("file"), "1").unwrap()).await;
    let mut file = File::create(scene.path("file")).unwrap();
    for _ in 0..2 {
        file.write_all(b"line").unwrap();
        assert_eq!(scene.told().await, "file");
    }
    drop(file);
    scene.quiet().await;
}

#[tokio::test]
async fn nothing_is_told_of_files_that_stay_the_same() {
    let pace = Pace {
        sweep: Duration::from_millis(1),
        ..Pace::USUAL
    };
    for pace in [pace, LOOKING] {
        let mut scene = Scene::new(pace, &["file", "none", "none/file"], |root| {
            fs::write(root.join("file"), "1").unwrap();
        })
        .await;
        let mut looks = scene.watch.desk.looks.subscribe();
        let most = *looks.borrow() + 20;
        tokio::select! {
            biased;
            told = scene.watch.changed() => panic!("{} is told", told.display()),
            _ = looks.wait_for(|looks| *looks >= most) => {}
        }
    }
}

#[tokio::test]
async fn set_adds_files_and_takes_files_away() {
    let make = |root: &Path| {
        for folder in ["a", "b", "c"] {
            fs::create_dir(root.join(folder)).unwrap();
            fs::write(root.join(folder).join("file"), folder).unwrap();
        }
    };
    for pace in [NOTIFIED, LOOKING] {
        let mut scene = Scene::new(pace, &["a/file", "b/file"], make).await;
        // What was changed before it is watched is not told; what was changed right after is.
        scene.write("c/file", "before");
        let files = ["b/file", "c/file", "sentinel"].map(|file| scene.path(file));
        scene.watch.set(files.clone());
        scene.quiet().await;
        scene.watch.set(files.clone());
        scene.write("c/file", "changed");
        assert_eq!(scene.told().await, "c/file");
        scene.write("a/file", "nobody's");
        scene.quiet().await;
        // A change that isn't told yet survives, of a file that stays.
        scene.place("b/file", "changed");
        scene.place("c/file", "changed");
        scene.watch.set([scene.path("b/file"), scene.path("sentinel")]);
        assert_eq!(scene.told().await, "b/file");
        scene.quiet().await;
        scene.watch.set([]);
        scene.write("sentinel", "nobody's");
        let more = tokio::time::timeout(5 * SETTLE, scene.watch.changed()).await;
        assert!(more.is_err(), "{more:?}");
        // One that comes back is known as it is then.
        scene.watch.set(files);
        scene.quiet().await;
    }
}

/// Two settings in a row, before the thread has seen the first: what was known first counts.
#[tokio::test]
async fn change_between_two_settings_is_told() {
    for _ in 0..50 {
        let mut scene = Scene::new(NOTIFIED, &[], |root| fs::write(root.join("file"), "1").unwrap()).await;
        let files = ["file", "sentinel"].map(|file| scene.path(file));
        scene.watch.set(files.clone());
        scene.place("file", "changed");
        scene.watch.set(files);
        assert_eq!(scene.told().await, "file");
    }
}

#[tokio::test]
async fn files_and_folders_that_are_missing_at_first_are_told_when_they_appear() {
    for pace in [NOTIFIED, LOOKING] {
        let mut scene = Scene::new(pace, &["file", "a/b/c/file", "later/file"], |_| {}).await;
        scene.write("file", "1");
        assert_eq!(scene.told().await, "file");
        fs::create_dir(scene.path("a")).unwrap();
        scene.quiet().await;
        fs::create_dir_all(scene.path("a/b/c")).unwrap();
        scene.quiet().await;
        scene.write("a/b/c/file", "1");
        assert_eq!(scene.told().await, "a/b/c/file");
        scene.quiet().await;
        fs::create_dir(scene.path("elsewhere")).unwrap();
        scene.write("elsewhere/file", "1");
        symlink("elsewhere", scene.path("later")).unwrap();
        assert_eq!(scene.told().await, "later/file");
        scene.quiet().await;
    }
}

/// A path stays what it was given as.
#[tokio::test]
async fn relative_paths_and_several_names_of_one_file_are_told() {
    for pace in [NOTIFIED, LOOKING] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().canonicalize().unwrap().join("file");
        fs::write(&file, "1").unwrap();
        let up: PathBuf = std::env::current_dir()
            .unwrap()
            .components()
            .skip(1)
            .map(|_| "..")
            .collect();
        let relative = up.join(file.strip_prefix("/").unwrap());
        assert!(relative.is_relative());
        let mut watch = Watch::at(pace, [relative.clone(), file.clone()]);
        fs::write(&file, "22").unwrap();
        let mut told = [watch.changed().await, watch.changed().await];
        let mut expected = [relative, file];
        told.sort();
        expected.sort();
        assert_eq!(told, expected);
    }
}

#[tokio::test]
async fn name_that_is_no_text_is_told() {
    use std::os::unix::ffi::OsStrExt;
    for pace in [NOTIFIED, LOOKING] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
        let mut watch = Watch::at(pace, [file.clone()]);
        fs::write(&file, "1").unwrap();
        assert_eq!(watch.changed().await, file);
    }
}

#[tokio::test]
async fn files_changed_at_once_are_each_told() {
    for pace in [PATIENT, LOOKING] {
        let names: Vec<String> = (0..500).map(|n| format!("{n:03}")).collect();
        let files: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut scene = Scene::new(pace, &files, |_| {}).await;
        for name in &names {
            scene.place(name, "1");
        }
        let mut told = Vec::new();
        for _ in &names {
            told.push(scene.told().await);
        }
        told.sort();
        assert_eq!(told, names);
        scene.quiet().await;
    }
}

/// As `tokio::select!` does with it.
#[tokio::test]
async fn nothing_is_lost_when_waiting_is_given_up() {
    let mut scene = Scene::new(NOTIFIED, &["file"], |_| {}).await;
    for n in 0..20 {
        let _ = tokio::time::timeout(Duration::ZERO, scene.watch.changed()).await;
        scene.place("file", n.to_string());
        let mut told = Err(());
        while told.is_err() {
            told = tokio::select! {
                biased;
                told = scene.watch.changed() => Ok(told),
                () = tokio::time::sleep(Duration::from_micros(fastrand::u64(0..300))) => Err(()),
            };
        }
        assert_eq!(told, Ok(scene.path("file")));
    }
    scene.quiet().await;
}

#[tokio::test]
async fn reading_the_files_makes_no_looks() {
    let pace = Pace {
        gap: Duration::ZERO,
        ..NOTIFIED
    };
    let mut scene = Scene::new(pace, &["file"], |root| fs::write(root.join("file"), "1").unwrap()).await;
    let looks = *scene.watch.desk.looks.borrow();
    for _ in 0..200 {
        read_whole(&scene.path("file"), 100).unwrap();
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    // Notifications come in order: those of reading are past when this is told.
    fs::rename(scene.path("file"), scene.path("sentinel")).unwrap();
    scene.told_with("sentinel").await;
    let looks = *scene.watch.desk.looks.borrow() - looks;
    assert!(looks < 20, "{looks} looks");
}

/// Other files in the folder cost no looks, and a file that is written all the time costs one per gap.
#[tokio::test]
async fn storms_are_weathered() {
    let mut scene = Scene::new(NOTIFIED, &["file"], |_| {}).await;
    let before = *scene.watch.desk.looks.borrow();
    for n in 0..20_000 {
        // Appended to: ext4 writes a file to the disk that was emptied and written anew.
        let other = scene.path(&format!("other-{}", n % 100));
        let mut other = File::options().append(true).create(true).open(other).unwrap();
        other.write_all(b"1").unwrap();
    }
    scene.place("file", "1");
    assert_eq!(scene.told().await, "file");
    let looks = *scene.watch.desk.looks.borrow() - before;
    assert!(looks <= 10, "{looks} looks");

    let before = *scene.watch.desk.looks.borrow();
    let began = Instant::now();
    let mut file = File::create(scene.path("file")).unwrap();
    for _ in 0..100_000 {
        file.write_all(b"x").unwrap();
    }
    drop(file);
    scene.told_with("file").await;
    let most = began.elapsed().as_millis() / NOTIFIED.gap.as_millis() + 5;
    let looks = *scene.watch.desk.looks.borrow() - before;
    assert!(
        u128::from(looks) <= most,
        "{looks} looks, and {most} would be many"
    );
}

/// Whatever is done to a file, and however quickly: what is read after the last that is told is what is in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_change_is_never_missed() {
    for pace in [NOTIFIED, LOOKING] {
        let mut scene = Scene::new(pace, &["file"], |root| {
            fs::create_dir(root.join("a")).unwrap();
            fs::create_dir(root.join("b")).unwrap();
        })
        .await;
        for round in 0..20_u32 {
            let root = scene.root.clone();
            let writer = tokio::task::spawn_blocking(move || churn(&root, round));
            let mut seen = None;
            let mut last = None;
            let mut writer = Some(writer);
            let deadline = Instant::now() + Duration::from_secs(20);
            while last.is_none() || seen != last {
                tokio::select! {
                    file = scene.watch.changed() => {
                        let read = tokio::task::spawn_blocking(move || read_whole(&file, 100));
                        match read.await.unwrap() {
                            Ok(bytes) => seen = Some(String::from_utf8(bytes).unwrap()),
                            // It is told again when it rests.
                            Err(ReadFault::Missing { .. } | ReadFault::Restless { .. }) => {}
                            Err(fault) => panic!("{fault}"),
                        }
                    }
                    text = async { writer.as_mut().unwrap().await }, if writer.is_some() => {
                        last = Some(text.unwrap());
                        writer = None;
                    }
                    () = tokio::time::sleep_until(deadline.into()) => {
                        panic!("round {round}: read {seen:?}, and it is {last:?}; notified: {}", pace.notices)
                    }
                }
            }
        }
    }
}

/// Change a file in every way, many times; gives what is in it in the end. All texts are equally long, so that the size
/// tells nothing.
fn churn(root: &Path, round: u32) -> String {
    let (file, new) = (root.join("file"), root.join("new"));
    let mut text = String::new();
    for n in 0..30 {
        text = format!("{round:03}-{n:03}");
        match fastrand::u8(0..5) {
            // In place, if it is there; through a symlink, if it is one.
            0 => fs::write(&file, &text).unwrap(),
            1 => {
                fs::write(&new, &text).unwrap();
                fs::rename(&new, &file).unwrap();
            }
            2 => {
                let _ = fs::remove_file(&file);
                fs::write(&file, &text).unwrap();
            }
            3 => {
                fs::write(&new, &text).unwrap();
                let _ = fs::remove_file(&file);
                fs::hard_link(&new, &file).unwrap();
                fs::remove_file(&new).unwrap();
            }
            _ => {
                let target = fastrand::choice(["a/real", "b/real"]).unwrap();
                fs::write(root.join(target), &text).unwrap();
                symlink(target, &new).unwrap();
                fs::rename(&new, &file).unwrap();
            }
        }
        std::thread::sleep(Duration::from_micros(
            fastrand::choice([0, 0, 500, 5_000, 30_000]).unwrap(),
        ));
    }
    text
}

#[tokio::test]
async fn threads_end_with_the_watch() {
    let scene = Scene::new(Pace::USUAL, &["file"], |_| {}).await;
    let desk = Arc::downgrade(&scene.watch.desk);
    // The caller's, our thread's, the library's.
    assert_eq!(desk.strong_count(), 3);
    drop(scene);
    while desk.strong_count() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// From the beginning of a change to its being told; printed, not judged.
#[tokio::test]
async fn latencies() {
    let mut scene = Scene::new(Pace::USUAL, &["file", "deps"], |_| {}).await;
    let mut measure = async |what: &str, prepare: &dyn Fn(&Scene), change: &dyn Fn(&Scene)| {
        let mut times = Vec::new();
        for _ in 0..25 {
            prepare(&scene);
            scene.told_with("deps").await;
            // At rest, so that each is measured alone.
            while tokio::time::timeout(2 * SETTLE, scene.watch.changed())
                .await
                .is_ok()
            {}
            let began = Instant::now();
            change(&scene);
            scene.told_with("file").await;
            times.push(began.elapsed());
        }
        times.sort();
        eprintln!(
            "{what}: median {:?}, 90% {:?}, most {:?}",
            times[12], times[22], times[24]
        );
    };
    // What is done before each ends with a change of `deps`; that is told when all before it is.
    let deps = |scene: &Scene| scene.place("deps", "1");
    let new = |scene: &Scene| {
        deps(scene);
        scene.write("new", "1");
    };
    let file = |scene: &Scene| {
        scene.write("file", "22");
        deps(scene);
    };
    let rename = |scene: &Scene| fs::rename(scene.path("new"), scene.path("file")).unwrap();
    measure("renamed over", &new, &rename).await;
    let write = |scene: &Scene| scene.write("file", "22");
    measure("written in place", &deps, &write).await;
    let link = |scene: &Scene| {
        fs::remove_file(scene.path("file")).unwrap();
        fs::hard_link(scene.path("deps"), scene.path("file")).unwrap();
    };
    measure("linked into place", &deps, &link).await;
    let delete = |scene: &Scene| fs::remove_file(scene.path("file")).unwrap();
    measure("deleted", &file, &delete).await;
}
