//! Which statements are not for plugins, by their first word.
//!
//! What a role may do is Postgres's business. This is for what the role may do and the *connection* must not: change
//! what the next statement finds, wait for something, speak another protocol. It is the first line, with better
//! words; the second is that a connection is cleaned before it is used again, and that the role has no rights to
//! come by (a function body, for one, is not looked into).

/// What is wrong with a statement, for the plugin's author.
pub(super) type Denial = String;

/// What a statement may change beside rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Rows, at most.
    Plain,
    /// Tables, types: what was prepared before may no longer fit.
    Definition,
}

/// The largest statement, in bytes.
pub(super) const MAX_STATEMENT: usize = 64 * 1024;

const TRANSACTIONS: &str = "use the resource `transaction`";
const SESSION: &str = "a connection serves many requests; within a transaction, `select set_config(name, value, true)` sets for its time";
const NOTIFY: &str = "a connection is lent for one call; keep what is to be told in a table";
const COPY: &str =
    "use `insert … select … from unnest($1, $2, …)` to write much at once, and `query` to read";
const CURSOR: &str = "use `limit` and a condition on the last key";
const PREPARED: &str = "statements are prepared and kept by the host";
const ROLES: &str = "roles and what they may do are the manifest's business";
const CODE: &str = "create a function, or send the statements one by one";

const DENIED: &[(&[&str], &str)] = &[
    (
        &[
            "begin",
            "start",
            "commit",
            "end",
            "rollback",
            "abort",
            "savepoint",
            "release",
        ],
        TRANSACTIONS,
    ),
    (&["set", "reset", "discard"], SESSION),
    (&["listen", "unlisten", "notify"], NOTIFY),
    (&["copy"], COPY),
    (&["declare", "fetch", "move", "close"], CURSOR),
    (&["prepare", "execute", "deallocate"], PREPARED),
    (&["grant", "revoke", "reassign"], ROLES),
    (&["do"], CODE),
    (&["load"], "no code is loaded into the server for a plugin"),
];

/// Second words that are not for plugins after `create`, `alter` and `drop`.
const ROLE_WORDS: [&str; 4] = ["role", "user", "group", "owned"];

/// Functions that are not for plugins, by the beginning of their name: large objects are outside of every schema.
const FUNCTIONS: [&str; 3] = ["lo_", "loread", "lowrite"];

/// Whether a statement is for plugins.
pub(super) fn check(statement: &str) -> Result<Kind, Denial> {
    let mut words = Words::new(statement);
    let Some(first) = words.next() else {
        return Ok(Kind::Plain);
    };
    let Word::Name(first) = first else {
        return function(statement).map(|()| Kind::Plain);
    };
    if let Some((_, instead)) = DENIED
        .iter()
        .find(|(keywords, _)| keywords.iter().any(|k| first.eq_ignore_ascii_case(k)))
    {
        return Err(format!(
            "{} is not for plugins: {instead}",
            first.to_ascii_uppercase()
        ));
    }
    let defines = ["create", "alter", "drop"]
        .iter()
        .any(|k| first.eq_ignore_ascii_case(k));
    if defines
        && let Some(Word::Name(second)) = words.next()
        && ROLE_WORDS.iter().any(|k| second.eq_ignore_ascii_case(k))
    {
        return Err(format!(
            "{} {} is not for plugins: {ROLES}",
            first.to_ascii_uppercase(),
            second.to_ascii_uppercase()
        ));
    }
    function(statement)?;
    const PLAIN: [&str; 10] = [
        "select", "insert", "update", "delete", "with", "values", "table", "merge", "explain", "show",
    ];
    Ok(match PLAIN.iter().any(|k| first.eq_ignore_ascii_case(k)) {
        true => Kind::Plain,
        false => Kind::Definition,
    })
}

/// Whether it calls none of [`FUNCTIONS`].
fn function(statement: &str) -> Result<(), Denial> {
    let mut name = None;
    for word in Words::new(statement) {
        match (word, name) {
            (Word::Name(found) | Word::Quoted(found), _) => name = Some(found),
            (Word::Open, Some(called)) if is_denied(called) => {
                return Err(format!(
                    "{called} is not for plugins: keep bytes in a column of type bytea"
                ));
            }
            _ => name = None,
        }
    }
    Ok(())
}

fn is_denied(name: &str) -> bool {
    FUNCTIONS.iter().any(|denied| match denied.ends_with('_') {
        true => name
            .get(..denied.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(denied)),
        false => name.eq_ignore_ascii_case(denied),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word<'a> {
    /// A keyword or an identifier.
    Name(&'a str),
    /// An identifier in quotes, without them.
    Quoted(&'a str),
    /// `(`, but not before the first word.
    Open,
    /// Anything else.
    Other,
}

/// The words of a statement, without white space, comments and what is in strings.
struct Words<'a> {
    rest: &'a str,
    begun: bool,
}

impl<'a> Words<'a> {
    fn new(statement: &'a str) -> Self {
        Self {
            rest: statement,
            begun: false,
        }
    }

    fn cut(&mut self, at: usize) -> &'a str {
        let at = self.rest.ceil_char_boundary(at);
        let (cut, rest) = self.rest.split_at_checked(at).unwrap_or((self.rest, ""));
        self.rest = rest;
        cut
    }

    /// Skip up to and including the end of what begins here; all of the rest if it doesn't end.
    fn skip(&mut self, open: usize, close: &str) {
        self.cut(open);
        let at = self
            .rest
            .find(close)
            .map_or(self.rest.len(), |at| at + close.len());
        self.cut(at);
    }

    /// Comments nest in Postgres.
    fn skip_comment(&mut self) {
        let mut depth = 0u32;
        loop {
            let (open, close) = (self.rest.find("/*"), self.rest.find("*/"));
            match (open, close) {
                (Some(open), Some(close)) if open < close => {
                    depth += 1;
                    self.cut(open + 2);
                }
                (Some(open), None) => {
                    depth += 1;
                    self.cut(open + 2);
                }
                (_, Some(close)) => {
                    depth = depth.saturating_sub(1);
                    self.cut(close + 2);
                    if depth == 0 {
                        return;
                    }
                }
                (None, None) => {
                    self.rest = "";
                    return;
                }
            }
        }
    }

    /// A string with backslashes.
    fn skip_escaped(&mut self) {
        let mut escaped = false;
        let end = self.rest.char_indices().skip(1).find(|(_, c)| {
            let ends = *c == '\'' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        self.cut(end.map_or(self.rest.len(), |(at, _)| at + 1));
    }

    /// `$tag$ … $tag$`; false if none begins here.
    fn skip_dollars(&mut self) -> bool {
        let Some(end) = self.rest.get(1..).and_then(|rest| rest.find('$')) else {
            return false;
        };
        let tag = self.rest.get(..end + 2).unwrap_or_default();
        let inner = tag.trim_matches('$');
        if inner.starts_with(|c: char| c.is_ascii_digit()) || !inner.chars().all(is_name) {
            return false;
        }
        let tag = tag.to_owned();
        self.skip(tag.len(), &tag);
        true
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || !c.is_ascii()
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        loop {
            let first = self.rest.chars().next()?;
            if first.is_ascii_whitespace() || first == '\u{b}' {
                self.cut(1);
            } else if self.rest.starts_with("--") {
                let end = self.rest.find(['\n', '\r']).unwrap_or(self.rest.len());
                self.cut(end);
            } else if self.rest.starts_with("/*") {
                self.skip_comment();
            } else if !self.begun && (first == '(' || first == ';') {
                self.cut(1);
            } else {
                break;
            }
        }
        self.begun = true;
        let first = self.rest.chars().next()?;
        let second = self.rest.chars().nth(1);
        Some(match first {
            'e' | 'E' if second == Some('\'') => {
                self.cut(1);
                self.skip_escaped();
                Word::Other
            }
            '\'' => {
                self.skip(1, "'");
                Word::Other
            }
            '"' => {
                let end = self.rest.get(1..).and_then(|rest| rest.find('"'));
                let end = end.map_or(self.rest.len(), |at| at + 2);
                Word::Quoted(self.cut(end).trim_matches('"'))
            }
            '$' => {
                if !self.skip_dollars() {
                    self.cut(1);
                }
                Word::Other
            }
            '(' => {
                self.cut(1);
                Word::Open
            }
            c if is_name(c) => {
                let end = self
                    .rest
                    .find(|c: char| !is_name(c) && c != '$')
                    .unwrap_or(self.rest.len());
                Word::Name(self.cut(end.max(1)))
            }
            _ => {
                self.cut(1);
                Word::Other
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn statements_that_change_the_connection_are_denied() {
        for statement in [
            "BEGIN",
            "  start transaction",
            "-- hello\n/* a /* nested */ one */ commit",
            "((rollback",
            ";;SET ROLE postgres",
            "reset role",
            "RESET ALL",
            "set session authorization postgres",
            "Set search_path to other",
            "LISTEN x",
            "notify x, 'y'",
            "copy t from program 'id'",
            "COPY t TO '/tmp/x'",
            "declare c cursor with hold for select 1",
            "prepare p as select 1",
            "deallocate all",
            "discard all",
            "load 'x'",
            "do $$ begin end $$",
            "grant all on t to public",
            "alter role x password 'y'",
            "create user x",
            "drop owned by x",
            "savepoint a",
            "select lo_create(0)",
            "select pg_catalog . \"lo_import\" /* x */ ('/etc/passwd')",
            "select 'a', LO_PUT(1, 0, '')",
            "select $$lo_x($$, lo_get(1)",
            "select E'\\'', lo_get(1)",
        ] {
            assert!(check(statement).is_err(), "{statement}");
        }
    }

    #[test]
    fn every_other_statement_is_postgres_business() {
        for statement in [
            "select 1",
            "(select 1)",
            "",
            "-- nothing",
            "select 'begin; lo_create(0)'",
            "select \"set\" from beginnings",
            "insert into commits values ('rollback')",
            "with d as (delete from t returning *) select * from d",
            "select lo_x from t",
            "select lo_x, (1)",
            "select low(1), long(2), lower('A')",
            "values ($1)",
            "select $a$ lo_create( $a$",
            "select E'\\\\', 'lo_create(1)'",
            "'begin'",
        ] {
            assert_eq!(check(statement), Ok(Kind::Plain), "{statement}");
        }
        for statement in [
            "create table t (id int)",
            "alter table t add x int",
            "drop type m",
            "truncate t",
            "analyze",
        ] {
            assert_eq!(check(statement), Ok(Kind::Definition), "{statement}");
        }
        let denial = check("set role x").unwrap_err();
        assert!(
            denial.starts_with("SET is not for plugins: a connection serves many requests"),
            "{denial}"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_to_its_end(text in "[ a-zA-Z0-9_$'\"(){};:*/\\-\\n\\\\é]{0,200}") {
            let _ = check(&text);
            prop_assert!(Words::new(&text).count() <= text.len());
        }
    }
}
