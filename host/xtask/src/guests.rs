//! `cargo xtask guests`: the components, built by cargo and put where berth and the tests look for them.
//!
//! Guests are a workspace of their own with another target, so no build script builds them; this step does, and
//! cargo decides what is out of date. A component is copied only when its bytes differ, by a rename within the
//! folder: a berth that watches the folder sees a whole file or none, and sees nothing when nothing changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use crate::commands::{self, SEE_ABOVE};
use crate::failure::{self, Failure};
use crate::prerequisites::Prerequisites;
use crate::workspace::Workspace;
use crate::{say, workspace};

pub(crate) const HELP: &str = "\
Build every guest into a component.

Usage: cargo xtask guests

plugins/NAME/          becomes target/plugins/NAME.wasm
plugins/fixtures/NAME/ becomes target/plugins/fixtures/NAME.wasm  (cases for the tests)

NAME is the package's name. A folder without a Cargo.toml is left alone, and so is a crate that builds neither
a `cdylib` nor a program. A berth that is running picks a changed component up by itself.";

/// Where the guests' `cargo build` puts an artifact, below its target folder.
const RELEASE: &str = "wasm32-wasip2/release";
/// Both folders hold one crate per folder; the second part is the same below target/plugins.
const GROUPS: [&str; 2] = ["", "fixtures"];

pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<(), Failure> {
    if let Some(argument) = arguments.first() {
        return Err(Failure::usage(format!(
            "`guests` has no argument `{argument}`: it builds all of them."
        )));
    }
    let mut prerequisites = Prerequisites::new(workspace);
    prerequisites.c_compiler()?;
    prerequisites.wasm_target()?;
    build(workspace)
}

/// Builds all guests and brings `target/plugins` up to date.
pub(crate) fn build(workspace: &Workspace) -> Result<(), Failure> {
    let start = Instant::now();
    let manifest = workspace.guest_sources().join("Cargo.toml");
    if !manifest.is_file() {
        return Err(Failure::new(format!(
            "There is no {}, so there are no guests to build. Check that the checkout is complete.",
            workspace::short(&manifest).display()
        )));
    }
    let target = workspace.target().join("guests");
    let mut cargo = commands::cargo(workspace);
    cargo.args([
        "build",
        "--release",
        "--target",
        "wasm32-wasip2",
        "--manifest-path",
        "plugins/Cargo.toml",
    ]);
    cargo.arg("--target-dir").arg(&target);
    commands::succeed(&mut cargo, SEE_ABOVE)?;

    let artifacts = target.join(RELEASE);
    let mut total = 0;
    let mut changes = Changes::default();
    for group in GROUPS {
        let crates = component_crates(&workspace.guest_sources().join(group))?;
        total += crates.len();
        install(
            &crates,
            &artifacts,
            &workspace.components().join(group),
            &mut changes,
        )?;
    }
    say::done("guests", &changes.describe(total), start);
    Ok(())
}

/// What the step did to `target/plugins`.
#[derive(Default)]
struct Changes {
    written: Vec<String>,
    removed: Vec<String>,
}

impl Changes {
    fn describe(&self, total: usize) -> String {
        let mut text = say::counted(total, "component");
        if self.written.is_empty() && self.removed.is_empty() {
            return text + " up to date";
        }
        if !self.written.is_empty() {
            text += &format!(", new or changed: {}", few(&self.written));
        }
        if !self.removed.is_empty() {
            text += &format!(", removed: {}", few(&self.removed));
        }
        text
    }
}

/// The names, or how many they are when they would fill the line.
fn few(names: &[String]) -> String {
    if names.len() > 6 {
        names.len().to_string()
    } else {
        names.join(", ")
    }
}

/// The crates in `folder` that become components: package name → folder.
fn component_crates(folder: &Path) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let mut crates = BTreeMap::new();
    for entry in entries(folder)? {
        let manifest = entry.join("Cargo.toml");
        if !manifest.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&manifest).map_err(failure::io(
            format!("{} could not be read", workspace::short(&manifest).display()),
            "Check its permissions.",
        ))?;
        let Some(name) = package_name(&text) else {
            return Err(Failure::new(format!(
                "{} has no `name` in its [package] section. Give the package a name.",
                workspace::short(&manifest).display()
            )));
        };
        // Code that guests share is a plain library, which is no component.
        if text.contains("cdylib") || entry.join("src/main.rs").is_file() {
            crates.insert(name, entry);
        }
    }
    Ok(crates)
}

/// Copies what differs, removes what has no crate any more.
fn install(
    crates: &BTreeMap<String, PathBuf>,
    artifacts: &Path,
    destination: &Path,
    changes: &mut Changes,
) -> Result<(), Failure> {
    std::fs::create_dir_all(destination).map_err(failure::io(
        format!(
            "The folder {} could not be made",
            workspace::short(destination).display()
        ),
        "Check the permissions of the folder above it.",
    ))?;
    for (name, source) in crates {
        let artifact = artifact(artifacts, name).ok_or_else(|| {
            Failure::new(format!(
                "The crate in {} was built, but there is no component `{name}` in {}. Check that its `[lib]` has \
                 `crate-type = [\"cdylib\"]` and no other name, and that plugins/Cargo.toml lists it as a member.",
                workspace::short(source).display(),
                workspace::short(artifacts).display()
            ))
        })?;
        if replace(&artifact, destination, name)? {
            changes.written.push(name.clone());
        }
    }
    for file in entries(destination)? {
        let (Some(stem), Some("wasm")) = (stem(&file), file.extension().and_then(|e| e.to_str())) else {
            continue;
        };
        if !crates.contains_key(&stem) {
            std::fs::remove_file(&file).map_err(failure::io(
                format!(
                    "{}, whose crate is gone, could not be removed",
                    workspace::short(&file).display()
                ),
                "Remove it by hand.",
            ))?;
            changes.removed.push(stem);
        }
    }
    Ok(())
}

/// The component that cargo built: underscores from a `cdylib`, dashes from a program. If a crate has been
/// both, the newer one counts.
fn artifact(artifacts: &Path, name: &str) -> Option<PathBuf> {
    let modified = |file: &PathBuf| file.metadata().and_then(|found| found.modified()).ok();
    [name.replace('-', "_"), name.to_owned()]
        .into_iter()
        .map(|stem| artifacts.join(stem + ".wasm"))
        .filter(|file| file.is_file())
        .max_by_key(|file| modified(file).unwrap_or(SystemTime::UNIX_EPOCH))
}

/// Puts the artifact at `destination/name.wasm` in one step; false if the same bytes are there already.
fn replace(artifact: &Path, destination: &Path, name: &str) -> Result<bool, Failure> {
    let target = destination.join(format!("{name}.wasm"));
    let context = format!("{} could not be written", workspace::short(&target).display());
    let advice = "Check the free space and the folder's permissions.";
    let bytes = std::fs::read(artifact).map_err(failure::io(
        format!("{} could not be read", workspace::short(artifact).display()),
        "Run `cargo xtask guests` again.",
    ))?;
    if std::fs::read(&target).is_ok_and(|present| present == bytes) {
        return Ok(false);
    }
    // Not *.wasm, so that no watcher takes it for a component; the process id keeps two runs apart.
    let temporary = destination.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = std::fs::write(&temporary, &bytes).and_then(|()| std::fs::rename(&temporary, &target));
    if written.is_err() {
        std::fs::remove_file(&temporary).ok();
    }
    written.map_err(failure::io(context, advice))?;
    Ok(true)
}

/// What is in a folder, in order; nothing if it does not exist.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let read = || -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(folder)?
            .map(|entry| entry.map(|found| found.path()))
            .collect()
    };
    let mut found = read().map_err(failure::io(
        format!(
            "The folder {} could not be read",
            workspace::short(folder).display()
        ),
        "Check its permissions.",
    ))?;
    found.sort();
    Ok(found)
}

fn stem(file: &Path) -> Option<String> {
    file.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned)
}

/// The `name` in a manifest's `[package]` section.
fn package_name(manifest: &str) -> Option<String> {
    let mut in_package = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            in_package = line == "[package]";
        } else if in_package
            && let Some((key, value)) = line.split_once('=')
            && key.trim() == "name"
        {
            return value
                .split('"')
                .nth(1)
                .filter(|name| !name.is_empty())
                .map(str::to_owned);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_name_is_the_packages() {
        let manifest = "[lib]\nname = \"other\"\n[package]\nversion = \"1\"\nname = \"auth-static\" # x\n";
        assert_eq!(package_name(manifest), Some("auth-static".to_owned()));
        assert_eq!(package_name("[workspace]\nmembers = []\n"), None);
        assert_eq!(
            package_name("[package]\nversion = \"1\"\n[lib]\nname = \"x\"\n"),
            None
        );
    }

    #[test]
    fn changes_are_told_in_one_line() {
        let mut changes = Changes::default();
        assert_eq!(changes.describe(18), "18 components up to date");
        changes.written.push("auth".to_owned());
        changes.removed.push("old".to_owned());
        assert_eq!(
            changes.describe(1),
            "1 component, new or changed: auth, removed: old"
        );
    }

    #[test]
    fn components_follow_their_crates() -> Result<(), Failure> {
        let folder = std::env::temp_dir().join(format!("berth-xtask-guests-{}", std::process::id()));
        let (artifacts, destination) = (folder.join("artifacts"), folder.join("plugins"));
        let io = |context: &'static str| failure::io(context, "");
        std::fs::create_dir_all(&artifacts).map_err(io("artifacts"))?;
        std::fs::write(artifacts.join("auth_static.wasm"), b"one").map_err(io("artifact"))?;
        let crates = BTreeMap::from([("auth-static".to_owned(), folder.clone())]);

        let mut first = Changes::default();
        install(&crates, &artifacts, &destination, &mut first)?;
        assert_eq!(first.written, ["auth-static"]);
        assert_eq!(
            std::fs::read(destination.join("auth-static.wasm"))
                .ok()
                .as_deref(),
            Some(&b"one"[..])
        );

        let mut second = Changes::default();
        install(&crates, &artifacts, &destination, &mut second)?;
        assert!(second.written.is_empty() && second.removed.is_empty());

        let mut third = Changes::default();
        install(&BTreeMap::new(), &artifacts, &destination, &mut third)?;
        assert_eq!(third.removed, ["auth-static"]);
        assert_eq!(entries(&destination)?, Vec::<PathBuf>::new());
        std::fs::remove_dir_all(&folder).map_err(io("cleanup"))
    }
}
