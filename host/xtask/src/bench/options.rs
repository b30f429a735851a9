//! The bench's arguments.

use std::path::PathBuf;

use super::cases::{CASES, Case, Server};
use crate::failure::Failure;

pub(crate) const HELP: &str = "\
Measure berth against plain hyper and against `wasmtime serve`, and print the ratios. With `swap`, measure berth while
its components are swapped against the same berth while they aren't.

Usage: cargo xtask bench [OPTIONS]
       cargo xtask bench swap [OPTIONS]

  --seconds N       length of one run                                    [5]
  --rounds N        rounds; every case runs once in each                 [5]
  --connections N   connections that wrk keeps open, each with a request [32; `bench swap`: 200]
  --only KEY...     only these cases
  --swaps N         swaps of each case: rounds are added until so many were made, and a
                    tenth of them where each one is compiled             [1000; `bench swap` only]
  --wasmtime PATH   a wasmtime CLI to compare with                       [installed into target/tools]
  --no-wasmtime     leave the cases `serve02` and `serve03` out
  --json            one JSON object on stdout, progress on stderr

Cases of `bench`:
  hyper         plain hyper,    POST /api/v1/auth/verify-email: JSON in, JSON out
  hyper-get     plain hyper,    GET /hello/world
  typed-fresh   berth,          the POST, answered by a typed policy
  http02-fresh  berth,          the GET, answered by a WASI 0.2 handler
  http03-fresh  berth,          the GET, answered by a WASI 0.3 handler
  typed-reused, http02-reused, http03-reused
                berth,          the same with serial reuse
  http03-concurrent
                berth,          the 0.3 handler, several requests at once on one instance
  native-sql    plain hyper and sqlx, POST /sql/bench: one row by its key
  sql           berth,          the same query through `berth:host/sql`
  login         berth,          POST /api/v1/auth/login by the bundled policy: one Argon2id hash
  me            berth,          GET /api/v1/me with a token
  caller        berth,          the hello handler on a route for signed-in users
  token-issue, token-verify
                berth,          a handler that has a token signed, or verified
  serve02       wasmtime serve, the same 0.2 handler, a fresh instance per request
  serve03       wasmtime serve, the same 0.3 handler, with the CLI's default reuse

Cases of `bench swap`, each once while nothing is swapped and once while its plugin is swapped again and again:
  typed-fresh, http02-fresh, http02-reused, http03-concurrent
                as above, between two versions whose machine code is in the cache
  http02-compiled
                as http02-fresh, every time with a component that has to be compiled

All servers run at once; the cases take turns, in an order that rotates. Ratios count, absolute numbers don't.
Close other programs first. Manifests are in target/bench/, and the logs if something fails. For a quick look:
  cargo xtask bench --only hyper typed-fresh --rounds 3 --seconds 2
  cargo xtask bench swap --only http02-fresh --swaps 100";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) seconds: usize,
    pub(super) rounds: usize,
    pub(super) connections: usize,
    pub(super) json: bool,
    pub(super) cli: Cli,
    /// Swaps of each case, if they are what is measured.
    pub(super) swaps: Option<usize>,
    only: Vec<String>,
}

/// Which wasmtime CLI to compare with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cli {
    Install,
    At(PathBuf),
    None,
}

impl Options {
    /// Those of `bench`.
    pub(super) fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let options = Self::read(arguments, 32)?;
        match options.swaps {
            None => Ok(options),
            Some(_) => Err(Failure::usage(
                "`--swaps` is for `cargo xtask bench swap`; write `swap` before the options.",
            )),
        }
    }

    /// Those of `bench swap`.
    pub(super) fn of_swaps(arguments: &[String]) -> Result<Self, Failure> {
        let options = Self::read(arguments, 200)?;
        match options.cli {
            Cli::Install => Ok(options),
            Cli::At(_) | Cli::None => Err(Failure::usage(
                "`bench swap` measures berth alone. Leave `--wasmtime` and `--no-wasmtime` out.",
            )),
        }
    }

    fn read(arguments: &[String], connections: usize) -> Result<Self, Failure> {
        let mut options = Self {
            seconds: 5,
            rounds: 5,
            connections,
            json: false,
            cli: Cli::Install,
            swaps: None,
            only: Vec::new(),
        };
        let mut rest = arguments.iter().peekable();
        while let Some(argument) = rest.next() {
            let (name, mut given) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            let mut value = || {
                given
                    .take()
                    .or_else(|| rest.next_if(|next| !next.starts_with("--")).cloned())
            };
            match name {
                "--seconds" => options.seconds = number(name, value())?,
                "--rounds" => options.rounds = number(name, value())?,
                "--connections" => options.connections = number(name, value())?,
                "--swaps" => options.swaps = Some(number(name, value())?),
                "--wasmtime" => options.cli = Cli::At(path(value())?),
                "--no-wasmtime" => options.cli = Cli::None,
                "--json" => options.json = true,
                "--only" => {
                    let before = options.only.len();
                    while let Some(keys) = value() {
                        options
                            .only
                            .extend(keys.split(',').filter(|key| !key.is_empty()).map(str::to_owned));
                    }
                    if options.only.len() == before {
                        return Err(Failure::usage(
                            "`--only` needs a case. `cargo xtask bench --help` lists them.",
                        ));
                    }
                }
                _ => {
                    return Err(Failure::usage(format!(
                        "`bench` has no option `{argument}`. `cargo xtask bench --help` lists them."
                    )));
                }
            }
        }
        Ok(options)
    }

    /// What `--only` names of a table, in the table's order; all of it without.
    pub(super) fn chosen<T>(
        &self,
        table: &'static [T],
        key: impl Fn(&T) -> &'static str,
    ) -> Result<Vec<&'static T>, Failure> {
        for wanted in &self.only {
            if !table.iter().any(|case| key(case) == wanted) {
                let keys: Vec<&str> = table.iter().map(&key).collect();
                return Err(Failure::usage(format!(
                    "There is no case `{wanted}`. The cases are {}.",
                    keys.join(", ")
                )));
            }
        }
        Ok(table
            .iter()
            .filter(|case| self.only.is_empty() || self.only.iter().any(|wanted| wanted == key(case)))
            .collect())
    }

    /// The cases to measure, in the table's order.
    pub(super) fn cases(&self) -> Result<Vec<&'static Case>, Failure> {
        let chosen: Vec<&Case> = self
            .chosen(CASES, |case| case.key)?
            .into_iter()
            .filter(|case| self.cli != Cli::None || !matches!(case.server, Server::WasmtimeServe(_)))
            .collect();
        // Without `--only`, leaving cases out is the point; with it, it is a contradiction.
        if self
            .only
            .iter()
            .any(|key| !chosen.iter().any(|case| case.key == key))
        {
            return Err(Failure::usage(
                "`--only` names cases that `--no-wasmtime` leaves out. Drop one of the two.",
            ));
        }
        Ok(chosen)
    }
}

fn number(option: &str, value: Option<String>) -> Result<usize, Failure> {
    value
        .and_then(|text| text.parse().ok())
        .filter(|&number| number > 0)
        .ok_or_else(|| {
            Failure::usage(format!(
                "`{option}` needs a whole number above zero, as in `{option} 5`."
            ))
        })
}

fn path(value: Option<String>) -> Result<PathBuf, Failure> {
    let path = value.map(PathBuf::from).ok_or_else(|| {
        Failure::usage(
            "`--wasmtime` needs the path of a wasmtime CLI. `--no-wasmtime` leaves those cases out.",
        )
    })?;
    // Absolute, because a bare name would be looked up on the PATH.
    path.canonicalize().map_err(|error| {
        Failure::usage(format!(
            "`--wasmtime {}` can't be used: {error}. Give the path of a wasmtime CLI.",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, Failure> {
        Options::parse(
            &arguments
                .iter()
                .map(|&argument| argument.to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn swaps_are_counted_where_something_is_swapped() -> Result<(), Failure> {
        let swap = |arguments: &[&str]| {
            Options::of_swaps(
                &arguments
                    .iter()
                    .map(|&argument| argument.to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(swap(&["--swaps", "5", "--seconds", "1"])?.swaps, Some(5));
        assert_eq!(swap(&[])?.swaps, None);
        assert_eq!((swap(&[])?.connections, parse(&[])?.connections), (200, 32));
        assert!(parse(&["--swaps", "5"]).is_err());
        assert!(swap(&["--no-wasmtime"]).is_err());
        Ok(())
    }

    fn keys(options: &Options) -> Result<Vec<&'static str>, Failure> {
        Ok(options.cases()?.into_iter().map(|case| case.key).collect())
    }

    #[test]
    fn defaults_measure_everything() -> Result<(), Failure> {
        let options = parse(&[])?;
        assert_eq!(
            (options.seconds, options.rounds, options.connections, options.json),
            (5, 5, 32, false)
        );
        assert_eq!(options.cases()?.len(), CASES.len());
        Ok(())
    }

    #[test]
    fn only_takes_several_keys_and_keeps_the_tables_order() -> Result<(), Failure> {
        let options = parse(&["--only", "typed-fresh", "hyper,serve02", "--json", "--seconds=2"])?;
        assert_eq!(keys(&options)?, ["hyper", "typed-fresh", "serve02"]);
        assert!(options.json);
        assert_eq!(options.seconds, 2);
        Ok(())
    }

    #[test]
    fn no_wasmtime_leaves_its_cases_out() -> Result<(), Failure> {
        let without = keys(&parse(&["--no-wasmtime"])?)?;
        assert!(without.iter().all(|key| !key.starts_with("serve")));
        assert!(parse(&["--no-wasmtime", "--only", "serve02"])?.cases().is_err());
        Ok(())
    }

    #[test]
    fn wrong_arguments_are_named() -> Result<(), Failure> {
        assert!(
            parse(&["--only", "nothing"])?
                .cases()
                .is_err_and(|f| f.sentence().contains("`nothing`"))
        );
        for wrong in [
            &["--rounds", "0"][..],
            &["--rounds", "x"],
            &["--rounds"],
            &["--only"],
            &["--fast"],
            &["x"],
        ] {
            assert_eq!(
                parse(wrong).map_err(|failure| failure.exit()),
                Err(64),
                "{wrong:?}"
            );
        }
        Ok(())
    }
}
