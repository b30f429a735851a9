//! What an earlier berth that was killed has left running in a cluster: its server, or backends whose server died.
//!
//! A process belongs to a cluster when it is a Postgres program whose working folder is the cluster, which is so for the
//! server and every backend as long as they live, however the folder was moved and whatever `postmaster.pid` says. The
//! data folder's lock is ours, so nobody else has a reason to run one there.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{PrivateError, io_error, socket};

/// How long a server may take to stop in its own way: it writes everything down first.
const FAST: Duration = Duration::from_secs(60);
/// How long processes may take to go when they are told to go at once.
const QUICK: Duration = Duration::from_secs(10);
/// How often it is looked whether they are gone.
const LOOK: Duration = Duration::from_millis(20);

/// Stop everything that runs in a cluster, and remove the files that say that something does.
pub(super) async fn clear(cluster: &Path, socket_folder: &Path) -> Result<(), PrivateError> {
    let running = processes_in(cluster);
    if !running.is_empty() {
        let postmaster = postmaster(cluster).filter(|pid| running.contains(pid));
        tracing::warn!(
            target: "berth::postgres",
            processes = running.len(), folder = %cluster.display(),
            "a Postgres of an earlier run still runs in the private cluster and is stopped",
        );
        if let Some(postmaster) = postmaster {
            signal(&[postmaster], Signal::INT);
            gone(cluster, FAST).await;
        }
        // Backends without a server go at once; what they had not committed is undone at the next start.
        for (how, patience) in [(Signal::QUIT, QUICK), (Signal::KILL, QUICK)] {
            signal(&processes_in(cluster), how);
            gone(cluster, patience).await;
        }
        occupied(cluster)?;
    }
    // They name a process id, which may be that of another program by now, and then no server would start.
    let lock = socket::file(socket_folder).with_extension(format!("{}.lock", super::PORT));
    for stale in [
        &cluster.join("postmaster.pid"),
        &socket::file(socket_folder),
        &lock,
    ] {
        match std::fs::remove_file(stale) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error(stale, "can't be removed")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// End everything that makes a cluster in a folder.
pub(super) async fn kill(folder: &Path) -> Result<(), PrivateError> {
    signal(&processes_in(folder), Signal::KILL);
    gone(folder, QUICK).await;
    occupied(folder)
}

fn occupied(folder: &Path) -> Result<(), PrivateError> {
    let left = processes_in(folder);
    if left.is_empty() {
        return Ok(());
    }
    let pids: Vec<String> = left.iter().map(ToString::to_string).collect();
    Err(PrivateError::Occupied {
        folder: folder.to_owned(),
        pids: pids.join(", "),
    })
}

fn signal(pids: &[Pid], how: Signal) {
    for pid in pids {
        // It may have ended by itself.
        let _ = kill_process(*pid, how);
    }
}

/// Wait until nothing runs in a folder, or the patience is over.
async fn gone(folder: &Path, patience: Duration) {
    let all_gone = async {
        while !processes_in(folder).is_empty() {
            tokio::time::sleep(LOOK).await;
        }
    };
    // Whoever asked looks again.
    let _ = tokio::time::timeout(patience, all_gone).await;
}

/// The server that a cluster's own file names.
fn postmaster(cluster: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(cluster.join("postmaster.pid")).ok()?;
    Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
}

/// The Postgres programs that run in a folder or below it. Processes that have ended and wait for their parent have no
/// folder any more.
fn processes_in(folder: &Path) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| runs_in(*pid, folder))
        .filter_map(Pid::from_raw)
        .collect()
}

fn runs_in(pid: i32, folder: &Path) -> bool {
    let read = |name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).ok();
    let is_postgres = || {
        let program = read("exe")?;
        // Not the exact name: some distributions wrap programs, and that of one that was upgraded ends in " (deleted)".
        let name = program.file_name()?.to_string_lossy();
        Some(name.contains("postgres") || name.contains("initdb"))
    };
    read("cwd").is_some_and(|cwd| cwd.starts_with(folder)) && is_postgres().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program called `postgres` that only waits.
    fn program(folder: &Path) -> std::path::PathBuf {
        let program = folder.join("postgres");
        std::fs::copy("/bin/sleep", &program).unwrap();
        program
    }

    #[tokio::test]
    async fn only_postgres_programs_in_the_folder_are_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let (ours, other) = (folder.join("ours"), folder.join("other"));
        let program = program(&folder);
        let run = |program: &Path, place: &Path| {
            std::fs::create_dir_all(place).unwrap();
            std::process::Command::new(program)
                .arg("600")
                .current_dir(place)
                .spawn()
                .unwrap()
        };
        let mut mine = run(&program, &ours);
        let mut below = run(&program, &ours.join("base"));
        let mut elsewhere = run(&program, &other);
        let mut no_postgres = run(Path::new("/bin/sleep"), &ours);
        // A file from a dead server, with the id of a living process that has nothing to do with it.
        std::fs::write(ours.join("postmaster.pid"), format!("{}\n", no_postgres.id())).unwrap();
        // Nobody else waits for them, so they would stay as zombies, which must not count.
        clear(&ours, &other).await.unwrap();
        assert!(mine.wait().unwrap().code().is_none(), "ended by a signal");
        assert!(below.wait().unwrap().code().is_none(), "ended by a signal");
        assert!(elsewhere.try_wait().unwrap().is_none());
        assert!(no_postgres.try_wait().unwrap().is_none());
        assert!(!ours.join("postmaster.pid").exists());
        for child in [&mut elsewhere, &mut no_postgres] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
