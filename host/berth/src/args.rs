//! The command line.

use std::path::PathBuf;

use berth_host::runtime::plugin::Policy;
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
