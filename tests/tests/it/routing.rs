//! Paths and methods, over HTTP. The table of patterns itself is in the unit tests of `berth_host::route`.

use berth_tests::berth::{Berth, Manifest};
use berth_tests::wire::{Connection, Response, head, request};

fn routes() -> Berth {
    let mut manifest = Manifest::new()
        .auth("fixtures/auth-static")
        .handler("fixtures/echo");
    for (path, methods) in [
        ("/api/*", ""),
        ("/items/{id}", "methods = [\"GET\", \"DELETE\"]"),
        ("/items/special", "methods = [\"GET\"]"),
        ("/slash/", ""),
        ("/a%2Fb", ""),
    ] {
        manifest = manifest.raw(&format!(
            "[[routes]]\npath = \"{path}\"\nplugin = \"echo\"\naccess = \"public\"\n{methods}\n"
        ));
    }
    manifest.start()
}

fn ask(berth: &Berth, method: &str, path: &str) -> Response {
    request(berth.address, method, path, &[], b"")
}

/// The echo handler says which path it saw, so a hit is told by its header.
#[test]
fn paths_lead_where_the_table_says() {
    let berth = routes();
    let table: &[(&str, &str, u16)] = &[
        ("GET", "/health", 200),
        ("GET", "/health/", 404),
        ("GET", "/nope", 404),
        ("GET", "//health", 404),
        // The policy's routes beat the wildcard, also when they are written with escapes.
        ("GET", "/api/v1/me", 401),
        ("GET", "/%61pi/v1/me", 401),
        ("GET", "/api/other", 200),
        ("GET", "/api", 200),
        ("GET", "/api/", 200),
        ("GET", "/api/v1/me/more", 200),
        // An exact path owns all its methods: no falling through to the wildcard.
        ("GET", "/api/v1/auth/login", 405),
        ("GET", "/items/7", 200),
        ("DELETE", "/items/7", 200),
        ("DELETE", "/items/special", 405),
        ("PUT", "/items/7", 405),
        ("GET", "/items/", 404),
        ("GET", "/items/7/8", 404),
        ("GET", "/slash/", 200),
        ("GET", "/slash", 404),
        ("GET", "/a%2Fb", 200),
        ("GET", "/a%2fb", 200),
        ("GET", "/a/b", 404),
        ("GET", "/items/%2e%2e/x", 400),
        ("GET", "/items/../health", 400),
        ("GET", "/items/%zz", 400),
        ("GET", "/items/%", 400),
        ("GET", "/items/%ff", 400),
        ("GET", "/items/caf%C3%A9", 200),
    ];
    for (method, path, status) in table {
        let answer = ask(&berth, method, path);
        assert_eq!(answer.status, *status, "{method} {path}: {}", answer.text());
        if *status == 200 && *path != "/health" {
            assert_eq!(
                answer.header("x-echo-path"),
                Some(*path),
                "the handler sees the path as it came"
            );
        }
        if *status >= 400 {
            assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        }
    }
}

#[test]
fn wrong_method_lists_the_right_ones() {
    let berth = routes();
    let answer = ask(&berth, "PUT", "/items/7");
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (405, "method-not-allowed")
    );
    assert_eq!(answer.header("allow"), Some("DELETE, GET, HEAD, OPTIONS"));
    assert_eq!(
        ask(&berth, "GET", "/api/v1/auth/login").header("allow"),
        Some("OPTIONS, POST")
    );
    assert_eq!(
        ask(&berth, "BREW", "/health").header("allow"),
        Some("GET, HEAD, OPTIONS")
    );
}

#[test]
fn options_is_answered_by_the_host_where_methods_are_listed() {
    let berth = routes();
    let answer = ask(&berth, "OPTIONS", "/items/7");
    assert_eq!(
        (answer.status, answer.header("allow")),
        (204, Some("DELETE, GET, HEAD, OPTIONS"))
    );
    assert!(answer.header("x-request-id").is_some());
    // A route for every method leaves it to the handler.
    assert_eq!(
        ask(&berth, "OPTIONS", "/api/other").header("x-echo-method"),
        Some("OPTIONS")
    );
}

#[test]
fn head_goes_where_get_goes() {
    let berth = routes();
    let mut connection = Connection::open(berth.address);
    connection.send(head("HEAD", "/health", &[], 0));
    let answer = connection.response("HEAD").unwrap();
    assert_eq!(answer.status, 200);
    let length: usize = answer.header("content-length").unwrap().parse().unwrap();
    assert!(length > 100, "the length that GET would have");
    connection.send(head("HEAD", "/nope", &[], 0));
    assert_eq!(connection.response("HEAD").unwrap().status, 404);
    connection.send(head("HEAD", "/items/7", &[], 0));
    let answer = connection.response("HEAD").unwrap();
    assert_eq!(
        (answer.status, answer.header("x-echo-method")),
        (200, Some("HEAD"))
    );
    connection.send(head("GET", "/health", &[], 0));
    assert_eq!(connection.response("GET").unwrap().status, 200, "still in step");
}

#[test]
fn many_segments_cost_nothing_but_a_404() {
    let berth = routes();
    let path = "/x".repeat(3000);
    assert_eq!(ask(&berth, "GET", &path).status, 404);
    let answer = ask(&berth, "GET", &format!("/api{path}"));
    assert_eq!(
        (answer.status, answer.header("x-echo-path").map(str::len)),
        (200, Some(6004))
    );
}
