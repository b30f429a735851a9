//! Finding one of a thousand routes; a scan of the same routes, one after the other, for comparison.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark: whatever is not as expected must stop it, and criterion's macros make items without docs"
)]

use std::hint::black_box;

use berth_host::route::{Found, Methods, Router};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::Method;

const ROUTES: usize = 1_000;

/// A third of each kind.
fn pattern(n: usize) -> String {
    match n % 3 {
        0 => format!("/api/v1/service-{n}/items"),
        1 => format!("/api/v1/service-{n}/items/{{id}}"),
        _ => format!("/files/bucket-{n}/*"),
    }
}

/// In the middle of the table, where a scan has half of its work behind it.
const PATHS: [(&str, &str); 4] = [
    ("exact", "/api/v1/service-501/items"),
    ("parameter", "/api/v1/service-502/items/0190f3c2"),
    ("wildcard", "/files/bucket-503/a/b/c.txt"),
    ("miss", "/api/v1/service-501/nothing"),
];

/// What a router without a tree does: the first pattern that fits.
fn scan(routes: &[String], path: &str) -> Option<usize> {
    routes.iter().position(|pattern| {
        let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
        loop {
            match (pattern.next(), path.next()) {
                (Some("*"), _) => return true,
                (None, None) => return true,
                (Some(part), Some(segment)) if part == segment || part.starts_with('{') => {}
                _ => return false,
            }
        }
    })
}

fn routes(criterion: &mut Criterion) {
    let patterns: Vec<String> = (0..ROUTES).map(pattern).collect();
    let mut router = Router::new();
    for (n, pattern) in patterns.iter().enumerate() {
        router.add(pattern, &Methods::Any, n, n).unwrap();
    }
    let mut group = criterion.benchmark_group("route");
    for (kind, path) in PATHS {
        // Both must agree, or the comparison means nothing.
        let found = match router.find(&Method::GET, path) {
            Found::Route { target, .. } => Some(target),
            _ => None,
        };
        assert_eq!(found, scan(&patterns, path), "{path}");
        assert_eq!(found.is_none(), kind == "miss", "{path}");
        group.bench_with_input(BenchmarkId::new("router", kind), path, |b, path| {
            b.iter(|| black_box(router.find(&Method::GET, black_box(path))));
        });
        group.bench_with_input(BenchmarkId::new("scan", kind), path, |b, path| {
            b.iter(|| black_box(scan(&patterns, black_box(path))));
        });
    }
    group.finish();
}

criterion_group!(benches, routes);
criterion_main!(benches);
