//! Running other programs: cargo with a clean environment, and failures that name the whole command.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use crate::failure::Failure;
use crate::workspace::Workspace;

/// The advice after a failed build or test: the program has already said it better than we could.
pub(crate) const SEE_ABOVE: &str = "Its messages above say why.";

/// Cargo, in the root of the checkout, as if it had been called from a shell.
pub(crate) fn cargo(workspace: &Workspace) -> Command {
    let mut cargo = clean(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace.root());
    cargo.env_remove("CARGO_BUILD_TARGET_DIR");
    cargo.env("CARGO_TARGET_DIR", workspace.target());
    cargo
}

/// A program without the variables that `cargo run` set for *us*. Build scripts that watch them (ring's does)
/// would otherwise run again after every change between `cargo build` and `cargo xtask`.
pub(crate) fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(describes_this_package) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the program with our stdin, stdout and stderr. Anything but success is a failure that ends in `advice`.
pub(crate) fn succeed(command: &mut Command, advice: &str) -> Result<(), Failure> {
    let status = status(command)?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "`{}` failed with {}. {advice}",
        show(command),
        describe(status)
    )))
}

/// Runs the program with our stdin, stdout and stderr and returns how it ended.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus, Failure> {
    command.status().map_err(|error| not_started(command, &error))
}

/// Runs the program and returns its trimmed stdout; its stderr becomes part of the failure.
pub(crate) fn output(command: &mut Command) -> Result<String, Failure> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| not_started(command, &error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(Failure::new(format!(
        "`{}` failed with {}: {}",
        show(command),
        describe(output.status),
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

/// Whether the program runs and succeeds; what it prints is of no interest.
pub(crate) fn works(command: &mut Command) -> bool {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// The program's file, if it is on the `PATH`.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|file| {
            file.metadata()
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

/// The command as it would be typed into a shell: cargo without the folder of the toolchain that runs us.
pub(crate) fn show(command: &Command) -> String {
    let program = command.get_program();
    let cargo = Path::new(program).file_name().filter(|name| *name == "cargo");
    let mut line = quoted(cargo.unwrap_or(program));
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&quoted(argument));
    }
    line
}

/// How a program ended, for the middle of a sentence.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

/// The exit code to pass on; a signal becomes 128 + its number, as in a shell.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn not_started(command: &Command, error: &std::io::Error) -> Failure {
    Failure::new(format!(
        "`{}` could not be started: {error}. Check that `{}` is installed and on the PATH.",
        show(command),
        command.get_program().to_string_lossy()
    ))
}

fn describes_this_package(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_")
        || variable.starts_with("CARGO_MANIFEST_")
        || matches!(
            variable,
            "CARGO_BIN_NAME" | "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE"
        )
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_is_shown_as_a_shell_would_take_it() {
        let mut command = Command::new("echo");
        command.args(["a b", "it's", "", "--flag=x"]);
        assert_eq!(show(&command), r"echo 'a b' 'it'\''s' '' --flag=x");
    }

    #[test]
    fn cargo_is_shown_without_its_folder() {
        assert_eq!(
            show(Command::new("/toolchains/stable/bin/cargo").arg("test")),
            "cargo test"
        );
    }

    #[test]
    fn only_variables_about_this_package_are_removed() {
        assert!(describes_this_package("CARGO_PKG_VERSION_MAJOR"));
        assert!(describes_this_package("CARGO_MANIFEST_DIR"));
        assert!(!describes_this_package("CARGO_HOME"));
        assert!(!describes_this_package("CARGO_TARGET_DIR"));
        assert!(!describes_this_package("CARGO_NET_OFFLINE"));
    }

    #[test]
    fn failed_program_is_named_with_its_exit_code() {
        let failure = succeed(Command::new("sh").args(["-c", "exit 7"]), "Try again.").err();
        assert_eq!(
            failure,
            Some(Failure::new(
                "`sh -c 'exit 7'` failed with exit code 7. Try again."
            ))
        );
    }

    #[test]
    fn missing_program_is_named() {
        let failure = succeed(&mut Command::new("no-such-program"), "").err();
        assert!(failure.is_some_and(|f| f.sentence().starts_with("`no-such-program` could not be started")));
    }
}
