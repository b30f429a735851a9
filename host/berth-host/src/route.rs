//! Which route a path belongs to.
//!
//! Rules, in the order in which they decide:
//!
//! 1. A path is cut at `/` and each segment is percent-decoded on its own, so `%2F` stays inside its segment and
//!    `/%61pi/me` is `/api/me`. A malformed escape and the segments `.` and `..` (also escaped) are refused.
//! 2. Segment by segment from the left, an exact one beats a `{parameter}`, which beats a trailing `*`. A parameter
//!    takes exactly one non-empty segment. `/x/*` takes `/x`, `/x/` and everything below.
//! 3. A trailing slash counts: `/x` and `/x/` are two paths (but `/x/*` takes both). Empty segments count too.
//! 4. The best path decides alone; its methods are looked at afterwards (405 with `Allow`, never the next best path).
//!    `HEAD` goes where `GET` goes. `OPTIONS` is answered by the host unless the route takes every method.
//!
//! The table is immutable once built; a change builds a new one. Finding takes no lock and, for a path without
//! escapes and parameters, no allocation.

use std::borrow::Cow;
use std::collections::HashMap;

use http::Method;
use percent_encoding::percent_decode_str;

/// Which methods a route takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Methods {
    /// Every method; the handler sees `HEAD` and `OPTIONS` itself.
    Any,
    /// These. `HEAD` is added by `GET`, `OPTIONS` is answered by the host.
    Only(Vec<Method>),
}

/// Why a pattern was refused, with the fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Does not begin with a slash.
    #[error("a path begins with \"/\"")]
    NoSlash,
    /// `*` elsewhere than in the last segment, or beside other text.
    #[error("\"*\" stands alone as the last segment, as in \"/files/*\"")]
    Wildcard,
    /// Braces in the wrong place.
    #[error(
        "a parameter is a whole segment in braces with a name of letters, digits, \"_\" or \"-\", as in \"/users/{{id}}\""
    )]
    Parameter,
    /// A question mark, a fragment, white space or a control character.
    #[error(
        "a path has no query, fragment, white space or control characters; write such a character as in \"%20\""
    )]
    Character,
    /// `.` or `..`, or a broken escape.
    #[error("a path has no \".\" or \"..\" segments and only well-formed escapes")]
    Segment,
}

/// Adding a route failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// The pattern itself is wrong.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Another route has the same path and a method in common. Carries its index.
    #[error("another route takes the same requests")]
    Taken(usize),
}

/// What was found for a path and a method.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'p, T> {
    /// This one.
    Route {
        /// What was added.
        target: T,
        /// The values of the parameters, decoded, from left to right.
        params: Vec<Cow<'p, str>>,
    },
    /// The path exists and `OPTIONS` is to be answered with this `Allow`.
    Options {
        /// The value of the `Allow` header.
        allow: String,
    },
    /// The path exists, the method doesn't. Carries `Allow`.
    WrongMethod {
        /// The value of the `Allow` header.
        allow: String,
    },
    /// No such path.
    Nothing,
    /// The path is malformed: what about it.
    Malformed(&'static str),
}

/// The routing table. `T` is what a route leads to; it is copied out, so make it an index or an `Arc`.
#[derive(Debug, Default)]
pub struct Router<T> {
    root: Node<T>,
}

#[derive(Debug)]
struct Node<T> {
    exact: HashMap<Box<str>, Node<T>>,
    param: Option<Box<Node<T>>>,
    rest: Endpoint<T>,
    end: Endpoint<T>,
}

/// The targets at one place of the tree, by method.
#[derive(Debug)]
struct Endpoint<T> {
    any: Option<(T, usize)>,
    by_method: Vec<(Method, T, usize)>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            param: None,
            rest: Endpoint::default(),
            end: Endpoint::default(),
        }
    }
}

impl<T> Default for Endpoint<T> {
    fn default() -> Self {
        Self {
            any: None,
            by_method: Vec::new(),
        }
    }
}

impl<T: Clone> Router<T> {
    /// An empty table.
    pub fn new() -> Self {
        Self {
            root: Node::default(),
        }
    }

    /// Add a route. `index` names it in [`AddError::Taken`].
    ///
    /// # Errors
    /// A malformed pattern, or one whose requests another route already takes.
    pub fn add(&mut self, pattern: &str, methods: &Methods, target: T, index: usize) -> Result<(), AddError> {
        let segments = parse_pattern(pattern)?;
        let mut node = &mut self.root;
        let mut rest = false;
        for segment in segments {
            match segment {
                Piece::Exact(text) => node = node.exact.entry(text).or_default(),
                Piece::Param => node = node.param.get_or_insert_default(),
                Piece::Rest => rest = true,
            }
        }
        let endpoint = if rest { &mut node.rest } else { &mut node.end };
        endpoint.add(methods, target, index)
    }

    /// Find the route of a raw (still escaped) path.
    pub fn find<'p>(&self, method: &Method, path: &'p str) -> Found<'p, T> {
        let Some(path) = path.strip_prefix('/') else {
            return Found::Malformed("the path does not begin with \"/\"");
        };
        let mut segments = [const { Cow::Borrowed("") }; 24];
        let mut spill = Vec::new();
        let segments = match split(path, &mut segments, &mut spill) {
            Ok(segments) => segments,
            Err(what) => return Found::Malformed(what),
        };
        let mut params = Vec::new();
        match walk(&self.root, segments, 0, &mut params) {
            Some(endpoint) => endpoint.choose(method, segments, &params),
            None => Found::Nothing,
        }
    }
}

impl<T: Clone> Endpoint<T> {
    fn is_empty(&self) -> bool {
        self.any.is_none() && self.by_method.is_empty()
    }

    fn add(&mut self, methods: &Methods, target: T, index: usize) -> Result<(), AddError> {
        if let Some((_, other)) = &self.any {
            return Err(AddError::Taken(*other));
        }
        match methods {
            Methods::Any => {
                if let Some((_, _, other)) = self.by_method.first() {
                    return Err(AddError::Taken(*other));
                }
                self.any = Some((target, index));
            }
            Methods::Only(list) => {
                if let Some((_, _, other)) = self.by_method.iter().find(|(m, ..)| list.contains(m)) {
                    return Err(AddError::Taken(*other));
                }
                self.by_method
                    .extend(list.iter().map(|m| (m.clone(), target.clone(), index)));
            }
        }
        Ok(())
    }

    fn choose<'p>(&self, method: &Method, segments: &[Cow<'p, str>], params: &[usize]) -> Found<'p, T> {
        let route = |target: &T| Found::Route {
            target: target.clone(),
            params: params
                .iter()
                .filter_map(|&at| segments.get(at).cloned())
                .collect(),
        };
        if let Some((target, _)) = &self.any {
            return route(target);
        }
        let named = |wanted: &Method| {
            self.by_method
                .iter()
                .find(|(m, ..)| m == wanted)
                .map(|(_, t, _)| t)
        };
        if let Some(target) = named(method) {
            return route(target);
        }
        if method == Method::HEAD
            && let Some(target) = named(&Method::GET)
        {
            return route(target);
        }
        if method == Method::OPTIONS {
            return Found::Options { allow: self.allow() };
        }
        Found::WrongMethod { allow: self.allow() }
    }

    fn allow(&self) -> String {
        let mut names: Vec<&str> = self.by_method.iter().map(|(m, ..)| m.as_str()).collect();
        if names.contains(&"GET") && !names.contains(&"HEAD") {
            names.push("HEAD");
        }
        if !names.contains(&"OPTIONS") {
            names.push("OPTIONS");
        }
        names.sort_unstable();
        names.join(", ")
    }
}

/// Cut and decode. Up to 24 segments need no allocation.
fn split<'s, 'p>(
    path: &'p str,
    inline: &'s mut [Cow<'p, str>; 24],
    spill: &'s mut Vec<Cow<'p, str>>,
) -> Result<&'s [Cow<'p, str>], &'static str> {
    let count = path.bytes().filter(|&b| b == b'/').count() + 1;
    let fits = count <= inline.len();
    for (at, raw) in path.split('/').enumerate() {
        let segment = decode(raw)?;
        if !fits {
            spill.push(segment);
        } else if let Some(place) = inline.get_mut(at) {
            *place = segment;
        }
    }
    if fits {
        inline.get(..count).ok_or("the path is too long")
    } else {
        Ok(spill)
    }
}

fn decode(raw: &str) -> Result<Cow<'_, str>, &'static str> {
    let segment = if raw.as_bytes().contains(&b'%') {
        if !well_escaped(raw.as_bytes()) {
            return Err("the path has a malformed percent escape");
        }
        percent_decode_str(raw)
            .decode_utf8()
            .map_err(|_| "the path has an escape that is not UTF-8")?
    } else {
        Cow::Borrowed(raw)
    };
    if segment == "." || segment == ".." {
        return Err("the path has a \".\" or \"..\" segment");
    }
    Ok(segment)
}

fn well_escaped(raw: &[u8]) -> bool {
    let mut bytes = raw.iter();
    while let Some(byte) = bytes.next() {
        let hex = |b: Option<&u8>| b.is_some_and(u8::is_ascii_hexdigit);
        if *byte == b'%' && !(hex(bytes.next()) && hex(bytes.next())) {
            return false;
        }
    }
    true
}

/// Depth first, best first. Every node of the tree is visited at most once, whatever the path.
fn walk<'t, T: Clone>(
    node: &'t Node<T>,
    segments: &[Cow<'_, str>],
    at: usize,
    params: &mut Vec<usize>,
) -> Option<&'t Endpoint<T>> {
    let Some(segment) = segments.get(at) else {
        let here = if node.end.is_empty() {
            &node.rest
        } else {
            &node.end
        };
        return (!here.is_empty()).then_some(here);
    };
    if let Some(next) = node.exact.get(segment.as_ref())
        && let Some(found) = walk(next, segments, at + 1, params)
    {
        return Some(found);
    }
    if let Some(next) = &node.param
        && !segment.is_empty()
    {
        params.push(at);
        if let Some(found) = walk(next, segments, at + 1, params) {
            return Some(found);
        }
        params.pop();
    }
    (!node.rest.is_empty()).then_some(&node.rest)
}

enum Piece {
    Exact(Box<str>),
    Param,
    Rest,
}

fn parse_pattern(pattern: &str) -> Result<Vec<Piece>, PatternError> {
    let path = pattern.strip_prefix('/').ok_or(PatternError::NoSlash)?;
    if path
        .chars()
        .any(|c| matches!(c, '?' | '#') || c.is_whitespace() || c.is_control())
    {
        return Err(PatternError::Character);
    }
    let count = path.split('/').count();
    path.split('/')
        .enumerate()
        .map(|(at, raw)| match raw {
            "*" if at + 1 == count => Ok(Piece::Rest),
            _ if raw.contains('*') => Err(PatternError::Wildcard),
            _ if raw.contains(['{', '}']) => {
                let name = raw
                    .strip_prefix('{')
                    .and_then(|r| r.strip_suffix('}'))
                    .unwrap_or_default();
                let ok = !name.is_empty()
                    && name
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
                if ok {
                    Ok(Piece::Param)
                } else {
                    Err(PatternError::Parameter)
                }
            }
            _ => decode(raw)
                .map(|s| Piece::Exact(s.into()))
                .map_err(|_| PatternError::Segment),
        })
        .collect()
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
