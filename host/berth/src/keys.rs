//! `berth keys`: the key ring in the data folder. Works on the file, whether or not a host is running.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use berth_host::config::{self, Environment};
use berth_host::data::DataError;
use berth_host::state::HostSpec;
use berth_host::tokens::ring::{self, KeyInfo};

use crate::args::{KeysCommand, RotateArgs, RotatedKeys};
use crate::{EXIT_FAILED, check};

pub(crate) fn run(command: &KeysCommand) -> ExitCode {
    match command {
        KeysCommand::List(args) => with(&args.config, |spec| {
            let keys = ring::list(&spec.data, spec.sessions.access_life)?;
            Ok(match args.json {
                // Strings and numbers can always be written.
                true => serde_json::to_string_pretty(&keys).unwrap_or_default() + "\n",
                false => table(&keys),
            })
        }),
        KeysCommand::Rotate(args) => with(&args.config, |spec| rotate(args, spec)),
    }
}

fn rotate(args: &RotateArgs, spec: &HostSpec) -> Result<String, DataError> {
    match args.keys {
        RotatedKeys::Tokens => {
            let (algorithm, life) = (spec.tokens.algorithm, spec.sessions.access_life);
            let key = ring::rotate(&spec.data, algorithm, life, args.drop_old)?;
            Ok(format!(
                "tokens are signed with {} ({}) now\n",
                key.kid,
                key.algorithm.key()
            ))
        }
    }
}

fn with(file: &Path, work: impl FnOnce(&HostSpec) -> Result<String, DataError>) -> ExitCode {
    let spec = match config::load(file, &Environment::of_process()) {
        Ok(spec) => spec,
        Err(faults) => return check::refuse(file, &faults),
    };
    match work(&spec) {
        Ok(text) => check::write(&text, 0),
        Err(DataError::Io { path, error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!(
                "berth: {}: there are no keys yet; a host makes them when it first starts with a plugin that has the grant `tokens` or `sessions`",
                path.display()
            );
            ExitCode::from(EXIT_FAILED)
        }
        Err(error) => {
            eprintln!("berth: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn table(keys: &[KeyInfo]) -> String {
    let mut text = String::new();
    for key in keys {
        let until = match key.verifies_until {
            Some(until) => format!("retired, verifies until {}", time(until)),
            None => "signs".to_owned(),
        };
        // Writing into a String can't fail.
        let _ = writeln!(
            text,
            "{}  {}  made {}  {until}",
            key.kid,
            key.algorithm.key(),
            time(key.created)
        );
    }
    text
}

fn time(seconds: u64) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds))
}
