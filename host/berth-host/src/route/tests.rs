use super::*;

fn router(patterns: &[&'static str]) -> Router<&'static str> {
    let mut router = Router::new();
    for (index, pattern) in patterns.iter().enumerate() {
        router.add(pattern, &Methods::Any, *pattern, index).unwrap();
    }
    router
}

fn find(router: &Router<&'static str>, path: &str) -> Option<(&'static str, Vec<String>)> {
    match router.find(&Method::GET, path) {
        Found::Route { target, params } => Some((target, params.into_iter().map(Cow::into_owned).collect())),
        Found::Nothing => None,
        other => panic!("{path}: {other:?}"),
    }
}

#[track_caller]
fn leads(router: &Router<&'static str>, path: &str, target: &'static str, params: &[&str]) {
    assert_eq!(
        find(router, path),
        Some((target, params.iter().map(|p| (*p).to_owned()).collect())),
        "{path}"
    );
}

#[test]
fn exact_beats_parameter_beats_wildcard() {
    let r = router(&["/api/*", "/api/{id}", "/api/me", "/{a}/{b}/c", "/*"]);
    leads(&r, "/api/me", "/api/me", &[]);
    leads(&r, "/api/you", "/api/{id}", &["you"]);
    leads(&r, "/api/you/too", "/api/*", &[]);
    leads(&r, "/x/y/c", "/{a}/{b}/c", &["x", "y"]);
    leads(&r, "/x/y/z", "/*", &[]);
    leads(&r, "/", "/*", &[]);
}

#[test]
fn a_dead_end_goes_back_to_the_next_best() {
    let r = router(&["/a/b/c", "/a/{x}/d", "/{y}/b/e"]);
    leads(&r, "/a/b/c", "/a/b/c", &[]);
    leads(&r, "/a/b/d", "/a/{x}/d", &["b"]);
    leads(&r, "/a/b/e", "/{y}/b/e", &["a"]);
    assert_eq!(find(&r, "/a/b/f"), None);
}

#[test]
fn longest_prefix_wins_among_wildcards() {
    let r = router(&["/*", "/a/*", "/a/b/*"]);
    leads(&r, "/a/b/c/d", "/a/b/*", &[]);
    leads(&r, "/a/b", "/a/b/*", &[]);
    leads(&r, "/a/c", "/a/*", &[]);
    leads(&r, "/b", "/*", &[]);
}

#[test]
fn slashes_count() {
    let r = router(&["/x", "/y/", "/z/*"]);
    leads(&r, "/x", "/x", &[]);
    assert_eq!(find(&r, "/x/"), None);
    leads(&r, "/y/", "/y/", &[]);
    assert_eq!(find(&r, "/y"), None);
    for path in ["/z", "/z/", "/z//", "/z/a"] {
        leads(&r, path, "/z/*", &[]);
    }
    assert_eq!(find(&r, "//x"), None);
}

#[test]
fn a_parameter_takes_one_segment_that_is_not_empty() {
    let r = router(&["/u/{id}"]);
    leads(&r, "/u/7", "/u/{id}", &["7"]);
    assert_eq!(find(&r, "/u/"), None);
    assert_eq!(find(&r, "/u"), None);
    assert_eq!(find(&r, "/u/7/8"), None);
}

#[test]
fn escapes_are_decoded_within_their_segment() {
    let r = router(&["/api/me", "/a%2Fb", "/f/{name}"]);
    leads(&r, "/%61pi/m%65", "/api/me", &[]);
    leads(&r, "/a%2fb", "/a%2Fb", &[]);
    assert_eq!(find(&r, "/a/b"), None);
    leads(&r, "/f/a%2Fb%20c", "/f/{name}", &["a/b c"]);
    leads(&r, "/f/%7Bname%7D", "/f/{name}", &["{name}"]);
}

#[test]
fn malformed_paths_are_told() {
    let r = router(&["/*"]);
    for path in [
        "*",
        "",
        "x",
        "/%",
        "/%2",
        "/%zz",
        "/%ff",
        "/.",
        "/a/..",
        "/a/%2e%2E/b",
        "/%2e",
    ] {
        assert!(
            matches!(r.find(&Method::GET, path), Found::Malformed(_)),
            "{path}"
        );
    }
    leads(&r, "/...", "/*", &[]);
}

#[test]
fn more_segments_than_fit_inline_are_matched_too() {
    let r = router(&["/*", "/x/{a}/*"]);
    let path = format!("/x/y{}", "/z".repeat(1000));
    leads(&r, &path, "/x/{a}/*", &["y"]);
    leads(&r, &"/w".repeat(24), "/*", &[]);
    leads(&r, &"/w".repeat(25), "/*", &[]);
}

#[test]
fn methods_are_looked_at_after_the_path() {
    let mut r = Router::new();
    r.add("/x", &Methods::Only(vec![Method::GET]), 1, 0).unwrap();
    r.add("/x", &Methods::Only(vec![Method::POST]), 2, 1).unwrap();
    r.add("/*", &Methods::Any, 3, 2).unwrap();
    let at = |method: Method, path| match r.find(&method, path) {
        Found::Route { target, .. } => Ok(target),
        Found::WrongMethod { allow } | Found::Options { allow } => Err(allow),
        other => panic!("{other:?}"),
    };
    assert_eq!(at(Method::GET, "/x"), Ok(1));
    assert_eq!(at(Method::HEAD, "/x"), Ok(1));
    assert_eq!(at(Method::POST, "/x"), Ok(2));
    assert_eq!(at(Method::PUT, "/x"), Err("GET, HEAD, OPTIONS, POST".to_owned()));
    assert_eq!(
        at(Method::OPTIONS, "/x"),
        Err("GET, HEAD, OPTIONS, POST".to_owned())
    );
    assert_eq!(at(Method::OPTIONS, "/y"), Ok(3));
}

#[test]
fn two_routes_may_not_take_the_same_request() {
    let mut r = Router::new();
    r.add("/x/{a}", &Methods::Only(vec![Method::GET]), (), 0).unwrap();
    assert_eq!(
        r.add("/x/{b}", &Methods::Only(vec![Method::GET, Method::PUT]), (), 1),
        Err(AddError::Taken(0))
    );
    assert_eq!(r.add("/x/{b}", &Methods::Any, (), 1), Err(AddError::Taken(0)));
    r.add("/x/{b}", &Methods::Only(vec![Method::PUT]), (), 1).unwrap();
    r.add("/%78/y", &Methods::Any, (), 2).unwrap();
    assert_eq!(
        r.add("/x/y", &Methods::Only(vec![Method::GET]), (), 3),
        Err(AddError::Taken(2))
    );
}

#[test]
fn faulty_patterns_say_what_is_right() {
    let mut r = Router::new();
    for (pattern, error) in [
        ("", PatternError::NoSlash),
        ("x", PatternError::NoSlash),
        ("/a*", PatternError::Wildcard),
        ("/*/a", PatternError::Wildcard),
        ("/{}", PatternError::Parameter),
        ("/x{a}", PatternError::Parameter),
        ("/{a b}", PatternError::Character),
        ("/{a", PatternError::Parameter),
        ("/a?b", PatternError::Character),
        ("/a#b", PatternError::Character),
        ("/../b", PatternError::Segment),
        ("/%4", PatternError::Segment),
    ] {
        assert_eq!(
            r.add(pattern, &Methods::Any, (), 0),
            Err(AddError::Pattern(error)),
            "{pattern}"
        );
    }
}
