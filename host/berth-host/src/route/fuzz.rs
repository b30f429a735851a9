//! The router against a plain reading of its rules: every route is asked on its own, the best one is chosen.

use proptest::prelude::*;

use super::*;

/// A segment as text, and how it may be written in a path.
fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => proptest::sample::select(vec!["a", "b", "api", "me", ""]).prop_map(str::to_owned),
        1 => proptest::sample::select(vec!["{x}", "a b", "é", "%", "/", "...", "*", "\u{0}", "?"]).prop_map(str::to_owned),
        1 => "[ -~]{0,3}",
    ]
}

/// A segment of a pattern.
#[derive(Clone, Debug)]
enum Part {
    Exact(String),
    Param,
}

fn pattern() -> impl Strategy<Value = (Vec<Part>, bool)> {
    let part = prop_oneof![
        3 => segment().prop_map(Part::Exact),
        1 => Just(Part::Param),
    ];
    (prop::collection::vec(part, 0..5), any::<bool>())
}

fn is_dots(text: &str) -> bool {
    text == "." || text == ".."
}

/// Escaped where it must be, and here and there where it need not be.
fn written(text: &str, all: bool) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes()
        .map(|b| {
            if plain(b) && !all {
                char::from(b).to_string()
            } else {
                format!("%{b:02x}")
            }
        })
        .collect()
}

fn pattern_text((parts, rest): &(Vec<Part>, bool)) -> String {
    let mut pieces: Vec<String> = parts
        .iter()
        .map(|p| match p {
            Part::Exact(text) => written(text, false),
            Part::Param => "{p}".to_owned(),
        })
        .collect();
    if *rest {
        pieces.push("*".to_owned());
    }
    format!("/{}", pieces.join("/"))
}

/// How good a route fits, smaller is better: segment by segment 0 for exact, 1 for a parameter, 2 for the rest.
fn fits((parts, rest): &(Vec<Part>, bool), segments: &[String]) -> Option<Vec<u8>> {
    // "/" alone has one empty segment, and so has a pattern without parts.
    let parts: Vec<Part> = if parts.is_empty() && !rest {
        vec![Part::Exact(String::new())]
    } else {
        parts.clone()
    };
    if segments.len() < parts.len() || (!rest && segments.len() > parts.len()) {
        return None;
    }
    let mut how = Vec::new();
    for (part, segment) in parts.iter().zip(segments) {
        how.push(match part {
            Part::Exact(text) if text == segment => 0,
            Part::Param if !segment.is_empty() => 1,
            _ => return None,
        });
    }
    if *rest {
        how.push(2);
    }
    Some(how)
}

proptest! {
    #[test]
    fn router_agrees_with_its_rules(
        patterns in prop::collection::vec(pattern(), 0..12),
        segments in prop::collection::vec(segment(), 1..6),
        escape in any::<bool>(),
    ) {
        let mut router = Router::new();
        let mut routes = Vec::new();
        for pattern in &patterns {
            let text = pattern_text(pattern);
            let dotted = pattern.0.iter().any(|p| matches!(p, Part::Exact(text) if is_dots(text)));
            match router.add(&text, &Methods::Any, routes.len(), routes.len()) {
                Ok(()) => routes.push(pattern.clone()),
                // The same path again, or one that no request can have.
                Err(AddError::Taken(other)) => prop_assert_eq!(pattern_text(&routes[other]), text),
                Err(error) => prop_assert!(dotted, "{}: {}", text, error),
            }
        }
        let path: String = segments.iter().map(|s| format!("/{}", written(s, escape))).collect();
        let found = router.find(&Method::GET, &path);
        if segments.iter().any(|s| is_dots(s)) {
            prop_assert!(matches!(found, Found::Malformed(_)), "{}", path);
            return Ok(());
        }
        let best = routes.iter().enumerate().filter_map(|(n, r)| Some((fits(r, &segments)?, n))).min();
        match (best, found) {
            (None, Found::Nothing) => {}
            (Some((_, best)), Found::Route { target, params }) => {
                prop_assert_eq!(pattern_text(&routes[target]), pattern_text(&routes[best]), "{}", path);
                let taken: Vec<&str> = routes[best]
                    .0
                    .iter()
                    .zip(&segments)
                    .filter(|(part, _)| matches!(part, Part::Param))
                    .map(|(_, segment)| segment.as_str())
                    .collect();
                prop_assert_eq!(params, taken);
            }
            (best, found) => prop_assert!(false, "{}: {:?} expected, {:?} found", path, best, found),
        }
    }

    #[test]
    fn any_path_is_found_or_not_and_never_decoded_twice(path in prop_oneof![any::<String>(), "(/|%2[fF]|%25|%|[a-f0-9.]){0,30}"]) {
        let mut router = Router::new();
        router.add("/{a}", &Methods::Any, 1, 0).unwrap();
        router.add("/{a}/{b}", &Methods::Only(vec![Method::POST]), 2, 1).unwrap();
        router.add("/*", &Methods::Any, 3, 2).unwrap();
        for method in [Method::GET, Method::POST, Method::OPTIONS] {
            match router.find(&method, &path) {
                Found::Route { target, params } => {
                    let raw: Vec<&str> = path[1..].split('/').collect();
                    prop_assert_eq!(params.len(), if target == 3 { 0 } else { target });
                    for (param, raw) in params.iter().zip(raw) {
                        let once = percent_decode_str(raw).decode_utf8().unwrap();
                        prop_assert_eq!(param, &once);
                        prop_assert!(!is_dots(param));
                    }
                }
                Found::Malformed(_) => {
                    let sound = path.starts_with('/')
                        && path[1..].split('/').all(|s| well_escaped(s.as_bytes())
                            && percent_decode_str(s).decode_utf8().is_ok_and(|s| !is_dots(&s)));
                    prop_assert!(!sound, "{}", path);
                }
                Found::WrongMethod { .. } | Found::Options { .. } => prop_assert!(method != Method::POST),
                Found::Nothing => prop_assert!(false, "\"/*\" takes {}", path),
            }
        }
    }

    #[test]
    fn any_pattern_is_taken_or_refused(pattern in prop_oneof![any::<String>(), "/(\\{[a-z]?\\}|\\*|%[0-9a-f]{2}|[a-z./?#]){0,12}"]) {
        let mut router = Router::new();
        if router.add(&pattern, &Methods::Any, (), 0).is_ok() {
            prop_assert_eq!(router.add(&pattern, &Methods::Any, (), 1), Err(AddError::Taken(0)));
            // A pattern without parameters and rest is a path that it takes.
            if !pattern.contains(['{', '*']) {
                let taken = matches!(router.find(&Method::GET, &pattern), Found::Route { .. });
                prop_assert!(taken, "{}", pattern);
            }
        }
    }
}
