//! The command line.

use std::path::PathBuf;

use berth_host::runtime::plugin::Policy;
use berth_host::runtime::reload::canary::{Share, ShareError};
use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Parser, Subcommand, ValueEnum};

/// A WebAssembly-plugin host.
///
/// berth accepts HTTP, routes each request to a sandboxed Wasm component, and gives that component exactly the host
/// functions that the manifest grants it.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  berth up                         serve ./berth.toml while you develop
  berth check                      find every fault of ./berth.toml and its components
  berth check greeter.wasm         say what a component is, imports and needs
  berth serve --config /etc/berth/berth.toml
  berth routes --json              what is served where
  berth keys rotate tokens         sign access tokens with a new key
  berth user list                  the accounts of the running host
  berth plugin deploy greeter greeter.wasm
                                   swap a plugin of the running host

A manifest of six lines:
  [plugins.hello]
  component = \"hello.wasm\"
  [[routes]]
  path = \"/hello/*\"
  plugin = \"hello\"
  access = \"public\"

Environment: BERTH_<SECTION>_<KEY> wins over the manifest, as in BERTH_HTTP_LISTEN=0.0.0.0:80.
RUST_LOG filters the log, as in RUST_LOG=info,berth::request=off.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a manifest while developing.
    Up(ServeArgs),
    /// Serve a manifest in production: like `up`, with a log for machines unless a terminal reads it.
    Serve(ServeArgs),
    /// Find every fault of a manifest and of the components that it names. Starts nothing.
    ///
    /// With a component instead of a manifest: what it is, what it imports, and what it needs.
    Check(CheckArgs),
    /// Print the routes of a manifest.
    Routes(ReadArgs),
    /// Keys in the data folder: list them, or make new ones. Never prints a secret.
    #[command(subcommand, after_help = KEYS_EXAMPLES)]
    Keys(KeysCommand),
    /// Look at and change the accounts of a running host.
    ///
    /// Asks the admin API of the host that serves this manifest, on this machine, with the token of its data folder:
    /// run it as the user that runs the host. Every change takes effect at once.
    #[command(after_help = USER_EXAMPLES)]
    User(UserArgs),
    /// Look at, swap and roll back the plugins of a running host.
    ///
    /// Asks the admin API of the host that serves this manifest, on this machine, with the token of its data folder:
    /// run it as the user that runs the host. No change ends a request: those that have begun finish on the version
    /// that they began with.
    #[command(after_help = PLUGIN_EXAMPLES)]
    Plugin(PluginArgs),
}

const KEYS_EXAMPLES: &str = "\
Examples:
  berth keys list                        the keys of access tokens, the newest first
  berth keys rotate tokens               sign with a new key; the others verify until their tokens have expired
  berth keys rotate tokens --drop-old    a key was seen by somebody: every access token so far is invalid

Sessions go on: clients get a new access token for their refresh token.";

const USER_EXAMPLES: &str = "\
Examples:
  berth user list --email @example.com          the newest accounts whose address has this in it
  berth user show ada@example.com
  berth user role ada@example.com --add admin --add ops --remove guest
  berth user deactivate ada@example.com         ends all of their sessions; nothing is lost
  berth user activate ada@example.com
  berth user delete ada@example.com --yes       cannot be undone
  berth user audit ada@example.com              who tried what on the account, and from where

An account is named by its e-mail address or its id.
A role is 1 to 64 letters, digits and \"._:-\".
A route with access = \"role:admin\" is for whoever has the role \"admin\".";

#[derive(Debug, clap::Args)]
pub(crate) struct UserArgs {
    #[command(subcommand)]
    pub(crate) command: UserCommand,
    /// The manifest of the running host, for its admin address and data folder.
    #[arg(long, short, value_name = "FILE", default_value = "berth.toml", global = true)]
    pub(crate) config: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// List accounts, newest first.
    List {
        /// Only those whose e-mail address contains this.
        #[arg(long, value_name = "TEXT")]
        email: Option<String>,
        /// How many at most.
        #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show one account and how many sessions it has open.
    Show {
        /// E-mail address or id.
        user: String,
    },
    /// Give an account roles, or take them away: at least one of `--add` and `--remove`.
    #[command(group = ArgGroup::new("change").args(["add", "remove"]).required(true).multiple(true))]
    Role {
        /// E-mail address or id.
        user: String,
        /// A role to give; may be repeated.
        #[arg(long, value_name = "ROLE")]
        add: Vec<String>,
        /// A role to take away; may be repeated.
        #[arg(long, value_name = "ROLE")]
        remove: Vec<String>,
    },
    /// Keep somebody out: ends all of their sessions and refuses new ones.
    Deactivate {
        /// E-mail address or id.
        user: String,
    },
    /// Let somebody in again who was deactivated.
    Activate {
        /// E-mail address or id.
        user: String,
    },
    /// Delete an account and its sessions. Its rows in the audit stay.
    Delete {
        /// E-mail address or id.
        user: String,
        /// Don't ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Show the record of attempts and changes, newest first.
    Audit {
        /// Only of this account: e-mail address or id.
        user: Option<String>,
        /// How many at most.
        #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
}

const PLUGIN_EXAMPLES: &str = "\
Examples:
  berth plugin list                             what serves, since when, and how well
  berth plugin show greeter                     all of one plugin, with the versions that are kept
  berth plugin deploy greeter greeter.wasm      check, try, swap; or change nothing
  berth plugin deploy greeter greeter.wasm --canary 10% --promote-after 500
                                                a tenth of the callers first
  berth plugin promote greeter                  all of them now
  berth plugin rollback greeter                 back to the version before
  berth plugin rollback greeter --to 1a2b3c     back to the kept version 1a2b3c…
  berth plugin disable greeter                  its routes answer 503 until `enable`
  berth plugin logs greeter --follow            what it and the host say, as it comes
  berth plugin events --follow                  every swap, every refusal, and why

A signature beside the component (greeter.wasm.minisig) is sent with it.
An operator's choice outlives a restart, until the plugin's own file changes: the last act wins.";

#[derive(Debug, clap::Args)]
pub(crate) struct PluginArgs {
    #[command(subcommand)]
    pub(crate) command: PluginCommand,
    /// The manifest of the running host, for its admin address and data folder.
    #[arg(long, short, value_name = "FILE", default_value = "berth.toml", global = true)]
    pub(crate) config: PathBuf,
    /// Print JSON; with `--follow`, one object a line.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// List the plugins: which version serves, since when, and how well.
    List,
    /// Show one plugin: what it may and needs, its measurements, and the versions that are kept.
    Show {
        /// Its name in the manifest.
        plugin: String,
    },
    /// Send a component, and serve it if it fits: it is checked, compiled and tried before anything changes.
    Deploy {
        /// The plugin's name in the manifest.
        plugin: String,
        /// The component. FILE.minisig beside it is its signature.
        file: PathBuf,
        /// Let a share of the callers try it first, as in 10% or 2.5%. It is dropped by itself if it does worse.
        #[arg(long, value_name = "SHARE", value_parser = share)]
        canary: Option<Share>,
        /// Serve it to all after so many requests of its trial, at least 20.
        #[arg(long, value_name = "REQUESTS", requires = "canary", value_parser = clap::value_parser!(u64).range(20..))]
        promote_after: Option<u64>,
    },
    /// Go back to the version before, or to another one that is kept.
    ///
    /// While a candidate is tried, without --to, the candidate is withdrawn. It waits for no compiler; a version that is being
    /// deployed at that moment is not served.
    Rollback {
        /// The plugin's name in the manifest.
        plugin: String,
        /// The first digits of the version's digest, at least 4; `show` lists them.
        #[arg(long, value_name = "VERSION", value_parser = prefix)]
        to: Option<String>,
    },
    /// End the trial of a version: it serves all callers.
    Promote {
        /// The plugin's name in the manifest.
        plugin: String,
    },
    /// Take a plugin out of service: its routes answer 503. Nothing is lost.
    Disable {
        /// The plugin's name in the manifest.
        plugin: String,
    },
    /// Put a plugin back into service.
    Enable {
        /// The plugin's name in the manifest.
        plugin: String,
    },
    /// Show what a plugin says, and what the host says of it, oldest first.
    Logs {
        /// The plugin's name in the manifest.
        plugin: String,
        /// How many lines at most.
        #[arg(long, value_name = "NUMBER", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Go on with what comes, until Ctrl-C.
        #[arg(long, short)]
        follow: bool,
    },
    /// Show what has happened to the plugins, newest first; with `--follow`, oldest first.
    Events {
        /// Only to this one.
        plugin: Option<String>,
        /// How many at most.
        #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// Go on with what comes, until Ctrl-C.
        #[arg(long, short)]
        follow: bool,
    },
}

/// A percentage of the callers. Its sign may be left out.
fn share(text: &str) -> Result<Share, ShareError> {
    match text.ends_with('%') {
        true => text.parse(),
        false => format!("{text}%").parse(),
    }
}

/// The beginning of a digest.
fn prefix(text: &str) -> Result<String, String> {
    match (4..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("a version is named by 4 to 64 hexadecimal digits of its digest".to_owned()),
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// The manifest. Relative paths in it are relative to its folder.
    #[arg(long, short, value_name = "FILE", default_value = "berth.toml")]
    pub(crate) config: PathBuf,
    /// How the log is written to standard error; `up` defaults to text, `serve` to auto.
    #[arg(long, value_enum)]
    pub(crate) log_format: Option<LogFormat>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// A component to check by itself, without a manifest.
    #[arg(value_name = "COMPONENT", conflicts_with = "config")]
    pub(crate) component: Option<PathBuf>,
    /// Which policy the component is meant to be; without, it is what it exports.
    #[arg(long, value_name = "NAME", requires = "component", value_parser = policies())]
    pub(crate) policy: Option<String>,
    /// The manifest.
    #[arg(long, short, value_name = "FILE", default_value = "berth.toml")]
    pub(crate) config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn policies() -> PossibleValuesParser {
    PossibleValuesParser::new(Policy::ALL.map(Policy::key))
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReadArgs {
    /// The manifest.
    #[arg(long, short, value_name = "FILE", default_value = "berth.toml")]
    pub(crate) config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Print the keys of access tokens, the newest first.
    List(ReadArgs),
    /// Make a new key. A running host uses it within seconds.
    Rotate(RotateArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct RotateArgs {
    /// Which keys.
    #[arg(value_name = "KEYS", value_enum)]
    pub(crate) keys: RotatedKeys,
    /// Drop the keys before it at once, as when one of them was seen by somebody: every access token so far is invalid.
    /// Without, they verify until the last token that they signed has expired.
    #[arg(long)]
    pub(crate) drop_old: bool,
    /// The manifest.
    #[arg(long, short, value_name = "FILE", default_value = "berth.toml")]
    pub(crate) config: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RotatedKeys {
    /// Of access tokens.
    Tokens,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn plugin(arguments: &[&str]) -> Result<PluginArgs, String> {
        let all = ["berth", "plugin"].iter().chain(arguments);
        match Args::try_parse_from(all)
            .map_err(|error| error.to_string())?
            .command
        {
            Command::Plugin(args) => Ok(args),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    /// The commands of a text of examples.
    fn examples(text: &str) -> Vec<Vec<&str>> {
        let commands = text.lines().filter(|line| line.starts_with("  berth "));
        commands
            .map(|line| {
                line.trim()
                    .split("   ")
                    .next()
                    .unwrap()
                    .split_whitespace()
                    .collect()
            })
            .collect()
    }

    #[test]
    fn examples_are_commands() {
        let all: Vec<Vec<&str>> = [EXAMPLES, KEYS_EXAMPLES, USER_EXAMPLES, PLUGIN_EXAMPLES]
            .into_iter()
            .flat_map(examples)
            .collect();
        assert!(all.len() > 25, "{all:?}");
        for command in all {
            let parsed = Args::try_parse_from(&command);
            assert!(parsed.is_ok(), "{command:?}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn deploy_takes_a_share_with_or_without_its_sign() {
        for (text, wanted) in [("10%", "10%"), ("10", "10%"), ("2.5", "2.5%"), ("100%", "100%")] {
            let args = plugin(&[
                "deploy",
                "hello",
                "x.wasm",
                "--canary",
                text,
                "--promote-after",
                "500",
            ]);
            let PluginCommand::Deploy {
                canary,
                promote_after,
                ..
            } = args.unwrap().command
            else {
                panic!("{text}: not a deploy");
            };
            assert_eq!(
                (canary, promote_after),
                (wanted.parse().ok(), Some(500)),
                "{text}"
            );
        }
        for text in ["0", "0%", "101%", "-1", "1.555%", "%", "10%%", "ten"] {
            let error = plugin(&["deploy", "hello", "x.wasm", &format!("--canary={text}")]).unwrap_err();
            assert!(error.contains("is no share of the callers"), "{text}: {error}");
        }
        let alone = plugin(&["deploy", "hello", "x.wasm", "--promote-after", "50"]).unwrap_err();
        assert!(alone.contains("--canary"), "{alone}");
    }

    #[test]
    fn version_is_named_by_at_least_four_digits() {
        let args = plugin(&[
            "rollback", "hello", "--to", "1A2b", "--json", "--config", "x.toml",
        ])
        .unwrap();
        assert!(matches!(args.command, PluginCommand::Rollback { to: Some(to), .. } if to == "1a2b"));
        assert!(args.json && args.config.ends_with("x.toml"));
        for to in ["1a2", "xyzw", "", &"a".repeat(65), "../.."] {
            let error = plugin(&["rollback", "hello", &format!("--to={to}")]).unwrap_err();
            assert!(error.contains("4 to 64 hexadecimal digits"), "{to}: {error}");
        }
    }
}
