//! What is measured: a table of cases and a table of ratios. A new case is one line in each.
//!
//! A case is a server and a request. Servers that are equal are started once and shared. A variant of berth is
//! a [`Setup`]. What is measured while components are swapped has a table of its own, in [`super::swap`].

use super::request::Request;

/// One thing to measure.
pub(super) struct Case {
    pub(super) key: &'static str,
    pub(super) server: Server,
    pub(super) request: Request,
}

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    PlainHyper,
    /// Plain hyper that asks the database of this berth.
    NativeSql(&'static Setup),
    Berth(&'static Setup),
    WasmtimeServe(&'static Cli),
}

/// A variant of berth: what its manifest says beyond the same plugins and routes.
#[derive(PartialEq, Eq)]
pub(super) struct Setup {
    /// Names the process, its manifest and its log.
    pub(super) name: &'static str,
    /// `reuse` of the plugins that have it.
    pub(super) reuse: &'static [(&'static str, &'static str)],
    pub(super) serves: Serves,
}

/// What a berth serves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Serves {
    /// A typed policy and two handlers.
    Plain,
    /// The bundled auth policy with a private Postgres and one account, and what asks them.
    Accounts,
    /// What is swapped: a plugin for each case, and an admin API to do it with.
    Swapped,
}

/// A variant of `wasmtime serve`.
#[derive(PartialEq, Eq)]
pub(super) struct Cli {
    pub(super) name: &'static str,
    pub(super) component: &'static str,
    pub(super) arguments: &'static [&'static str],
}

/// Two cases, one over the other.
pub(super) struct Ratio {
    pub(super) key: &'static str,
    pub(super) over: &'static str,
    pub(super) under: &'static str,
    pub(super) meaning: &'static str,
}

impl Server {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::PlainHyper => "plain-hyper",
            Self::NativeSql(_) => "native-sql",
            Self::Berth(setup) => setup.name,
            Self::WasmtimeServe(cli) => cli.name,
        }
    }
}

/// One fresh instance per request, the default.
const FRESH: Setup = Setup {
    name: "berth",
    reuse: &[],
    serves: Serves::Plain,
};

/// One request after another on the same instances.
const REUSED: Setup = Setup {
    name: "berth-reused",
    reuse: &[("auth", "serial"), ("hello", "serial"), ("hello-p3", "serial")],
    serves: Serves::Plain,
};

/// Several requests at once on the same instance, as `wasmtime serve` does.
const CONCURRENT: Setup = Setup {
    name: "berth-concurrent",
    reuse: &[("hello-p3", "concurrent")],
    serves: Serves::Plain,
};

/// Accounts in a private Postgres, a fresh instance per request.
pub(super) const ACCOUNTS: Setup = Setup {
    name: "berth-accounts",
    reuse: &[],
    serves: Serves::Accounts,
};

/// The reuse is the CLI's default for 0.2, spelled out so that it shows in the report. `-Scli` because a guest
/// in Rust imports `wasi:cli` through its standard library.
const SERVE02: Cli = Cli {
    name: "serve02",
    component: "hello",
    arguments: &["-Scli", "--max-instance-reuse-count=1"],
};
/// The same for 0.3: 128 requests per instance, 16 of them at once.
const SERVE03: Cli = Cli {
    name: "serve03",
    component: "hello-p3",
    arguments: &[
        "-Scli",
        "-Sp3",
        "-Wcomponent-model-async",
        "--max-instance-reuse-count=128",
        "--max-instance-concurrent-reuse-count=16",
    ],
};

pub(super) const VERIFY_EMAIL: Request = Request {
    path: "/api/v1/auth/verify-email",
    // 200 bytes.
    json: Some(concat!(
        r#"{"token":""#,
        "bench-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef012345",
        "6789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef012345",
        r#""}"#
    )),
    signed_in: false,
    answer: "\"emailVerified\"",
};
pub(super) const HELLO: Request = Request {
    path: "/hello/world",
    json: None,
    signed_in: false,
    answer: "Hello, world.",
};
pub(super) const HELLO_P3: Request = Request {
    path: "/hello-p3/world",
    json: None,
    signed_in: false,
    answer: "Hello, world.",
};

/// Makes the account that the others use; its answer has the token.
pub(super) const REGISTER: Request = Request {
    path: "/api/v1/auth/register",
    json: Some(r#"{"email":"bench@example.com","password":"correct horse battery"}"#),
    signed_in: false,
    answer: "\"accessToken\"",
};
/// Makes the account that logs in all the time: an account has so many sessions and no more, the oldest ones end.
pub(super) const REGISTER_LOGIN: Request = Request {
    json: LOGIN.json,
    ..REGISTER
};
const LOGIN: Request = Request {
    path: "/api/v1/auth/login",
    json: Some(r#"{"email":"login@example.com","password":"correct horse battery"}"#),
    signed_in: false,
    answer: "\"accessToken\"",
};
const ME: Request = Request {
    path: "/api/v1/me",
    json: None,
    signed_in: true,
    answer: "bench@example.com",
};
const CALLER: Request = Request {
    path: "/caller/world",
    json: None,
    signed_in: true,
    answer: "Hello, world.",
};
const TOKEN_ISSUE: Request = Request {
    path: "/identity/tokens.issue",
    json: Some(r#"{"subject":"bench","session-id":"bench","extra":""}"#),
    signed_in: false,
    answer: r#"{"ok":"ey"#,
};
const TOKEN_VERIFY: Request = Request {
    path: "/identity/tokens.verify",
    json: Some(r#"{"token":"TOKEN"}"#),
    signed_in: false,
    answer: r#""subject":""#,
};
/// Makes the table that the query reads.
pub(super) const FILL: Request = Request {
    path: "/sql/fill",
    json: Some(concat!(
        r#"[{"do":"execute","sql":"create table rows (id int8 primary key, text text not null)"},"#,
        r#"{"do":"execute","sql":"insert into rows values (1, 'the row')"}]"#
    )),
    signed_in: false,
    answer: r#"{"touched":1}"#,
};
const SQL: Request = Request {
    path: "/sql/bench",
    json: Some(r#"[{"do":"query","sql":"select text from rows where id = $1","with":[{"int64":1}]}]"#),
    signed_in: false,
    answer: "the row",
};

#[rustfmt::skip]
pub(super) const CASES: &[Case] = &[
    Case { key: "hyper",        server: Server::PlainHyper,              request: VERIFY_EMAIL },
    Case { key: "hyper-get",    server: Server::PlainHyper,              request: HELLO },
    Case { key: "typed-fresh",  server: Server::Berth(&FRESH),           request: VERIFY_EMAIL },
    Case { key: "http02-fresh", server: Server::Berth(&FRESH),           request: HELLO },
    Case { key: "http03-fresh", server: Server::Berth(&FRESH),           request: HELLO_P3 },
    Case { key: "typed-reused",  server: Server::Berth(&REUSED),         request: VERIFY_EMAIL },
    Case { key: "http02-reused", server: Server::Berth(&REUSED),         request: HELLO },
    Case { key: "http03-reused", server: Server::Berth(&REUSED),         request: HELLO_P3 },
    Case { key: "http03-concurrent", server: Server::Berth(&CONCURRENT), request: HELLO_P3 },
    Case { key: "serve02",      server: Server::WasmtimeServe(&SERVE02), request: HELLO },
    Case { key: "serve03",      server: Server::WasmtimeServe(&SERVE03), request: HELLO },
    Case { key: "native-sql",    server: Server::NativeSql(&ACCOUNTS),   request: SQL },
    Case { key: "sql",           server: Server::Berth(&ACCOUNTS),       request: SQL },
    Case { key: "login",         server: Server::Berth(&ACCOUNTS),       request: LOGIN },
    Case { key: "me",            server: Server::Berth(&ACCOUNTS),       request: ME },
    Case { key: "caller",        server: Server::Berth(&ACCOUNTS),       request: CALLER },
    Case { key: "token-issue",   server: Server::Berth(&ACCOUNTS),       request: TOKEN_ISSUE },
    Case { key: "token-verify",  server: Server::Berth(&ACCOUNTS),       request: TOKEN_VERIFY },
];

/// The keys say `hyper` for both baselines: each case is compared with plain hyper answering the same request.
#[rustfmt::skip]
pub(super) const RATIOS: &[Ratio] = &[
    Ratio { key: "typed-fresh/hyper",   over: "typed-fresh",  under: "hyper",     meaning: "what the component costs: the same JSON in and out" },
    Ratio { key: "http02-fresh/hyper",  over: "http02-fresh", under: "hyper-get", meaning: "the same, for a 0.2 handler: the same GET" },
    Ratio { key: "http03-fresh/hyper",  over: "http03-fresh", under: "hyper-get", meaning: "the same, for a 0.3 handler: the same GET" },
    Ratio { key: "http02-fresh/serve",  over: "http02-fresh", under: "serve02",   meaning: "the same component, a fresh instance each in both" },
    Ratio { key: "http03-fresh/serve",  over: "http03-fresh", under: "serve03",   meaning: "the same component; the CLI reuses its instances" },
    Ratio { key: "typed-reused/hyper",  over: "typed-reused",  under: "hyper",    meaning: "what the component costs without making its instance" },
    Ratio { key: "http02-reused/serve", over: "http02-reused", under: "serve02",  meaning: "the same component; the CLI makes a fresh instance" },
    Ratio { key: "http03-reused/serve", over: "http03-reused", under: "serve03",  meaning: "the same component, instances used again in both" },
    Ratio { key: "http03-concurrent/serve", over: "http03-concurrent", under: "serve03", meaning: "the same component, used by several at once in both" },
    Ratio { key: "sql/native",          over: "sql",          under: "native-sql", meaning: "what the component and its role's checks cost: the same query" },
    Ratio { key: "sql/hyper",           over: "sql",          under: "hyper", meaning: "the same, and what the query costs" },
    Ratio { key: "me/native",           over: "me",           under: "native-sql", meaning: "token, session check, policy with a query of its own; against one query" },
    Ratio { key: "me/hyper",            over: "me",           under: "hyper-get", meaning: "the same, and what the queries cost" },
    Ratio { key: "caller/native",       over: "caller",       under: "native-sql", meaning: "a handler for signed-in users: token, session check, policy, handler" },
    Ratio { key: "token-issue/hyper",   over: "token-issue",  under: "hyper", meaning: "a handler that has a token signed (Ed25519)" },
    Ratio { key: "token-verify/hyper",  over: "token-verify", under: "hyper", meaning: "a handler that has one verified" },
    Ratio { key: "login/hyper",         over: "login",        under: "hyper",     meaning: "Argon2id and nothing else to speak of" },
    Ratio { key: "typed-fresh/serve02", over: "typed-fresh",  under: "serve02",   meaning: "a typed policy instead of a handler, fresh in both" },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ratio_names_two_cases() {
        for ratio in RATIOS {
            for key in [ratio.over, ratio.under] {
                assert!(
                    CASES.iter().any(|case| case.key == key),
                    "{} names no case: {key}",
                    ratio.key
                );
            }
        }
    }

    #[test]
    fn body_is_200_bytes() {
        assert_eq!(VERIFY_EMAIL.json.map(str::len), Some(200));
    }
}
