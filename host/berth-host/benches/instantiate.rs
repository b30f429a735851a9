//! What a guest costs: a fresh instance, a reused one, and none at all, without sockets.
//!
//! `typed` calls a function of the `auth-static` fixture through the library: admission, store, instance, call. `request`
//! is a whole request over a connection in memory, from its first byte to the last of its answer.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark: whatever is not as expected must stop it, and criterion's macros make items without docs"
)]

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_host::admit::Admission;
use berth_host::config::{self, Environment};
use berth_host::dispatch::auth::bindings::berth::policy::types::RequestInfo;
use berth_host::runtime::instance::{Exports, Instance, Origin};
use berth_host::runtime::limits::Meter;
use berth_host::runtime::plugin::{Plugin, Version};
use berth_host::runtime::turns::metered;
use berth_host::serve::{self, Peer};
use berth_host::state::Host;
use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::runtime::Runtime;

/// Where `cargo xtask guests` puts the components.
fn guest(name: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/plugins");
    let folder = std::env::var_os("BERTH_GUESTS").map_or(built, PathBuf::from);
    let path = folder.join(name).with_extension("wasm");
    assert!(
        path.exists(),
        "{} is missing; run `cargo xtask guests`",
        path.display()
    );
    path
}

fn host(reuse: &str) -> Arc<Host> {
    let mut manifest = String::new();
    for (name, component, more) in [
        ("auth", "fixtures/auth-static", "policy = \"auth\""),
        ("hello", "hello", ""),
        ("hello-p3", "hello-p3", ""),
    ] {
        let component = guest(component);
        writeln!(
            manifest,
            "[plugins.{name}]\ncomponent = {component:?}\n{reuse}\n{more}"
        )
        .unwrap();
        if more.is_empty() {
            writeln!(
                manifest,
                "[[routes]]\npath = \"/{name}/*\"\nplugin = \"{name}\"\naccess = \"public\""
            )
            .unwrap();
        }
    }
    let spec = config::parse(Path::new("berth.toml"), &manifest, &Environment::empty()).unwrap();
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    Arc::new(Host::build(&spec, &Arc::default(), workers, |_| {}).unwrap())
}

const FRESH: &str = "";
const REUSED: &str = "reuse = \"serial\"\nreuse_count = 1000000";

/// One call of `verify-email`, as the dispatcher makes it.
async fn call(host: &Host, plugin: &Arc<Plugin>, version: &Arc<Version>, info: &RequestInfo) {
    let place = plugin.slots.enter(plugin.spec.limits.wall).await.unwrap();
    let admission = match version.shelf.take() {
        Some(instance) => Admission::Idle { instance, place },
        None => Admission::Fresh {
            place,
            instance: host
                .instances
                .take(plugin.spec.limits.wall, || false)
                .await
                .unwrap(),
        },
    };
    let id = HeaderValue::from_static("bench");
    let client = Ipv4Addr::LOCALHOST.into();
    let (plugin_of, version_of) = (Arc::clone(plugin), Arc::clone(version));
    let origin = Arc::new(Origin::new(plugin_of, version_of, id, client, false));
    let meter = Arc::new(Meter::new(
        plugin.spec.limits.cpu,
        Arc::clone(&host.runtime.turns),
    ));
    let mut instance = Instance::obtain(&host.runtime, origin, &meter, admission);
    let answer = metered(&meter, async {
        instance.start(&version.pre).await.unwrap();
        let Instance {
            store,
            exports: Some(Exports::Auth(policy)),
            ..
        } = &mut instance
        else {
            panic!("the fixture is an auth policy");
        };
        policy
            .berth_policy_auth()
            .call_verify_email(store, info, "token")
            .await
    });
    assert!(answer.await.unwrap().is_ok());
    instance.release(version, &host.instances);
}

fn typed(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let info = RequestInfo {
        request_id: "bench".to_owned(),
        client_ip: "127.0.0.1".to_owned(),
        user_agent: None,
        received_at: 0,
    };
    let mut group = criterion.benchmark_group("typed");
    for (name, reuse) in [("fresh", FRESH), ("reused", REUSED)] {
        let host = host(reuse);
        let table = host.table.load_full();
        let plugin = table.plugin("auth").unwrap();
        let version = &plugin.current().unwrap();
        group.bench_function(name, |b| {
            b.to_async(&runtime).iter(|| call(&host, plugin, version, &info))
        });
    }
    group.finish();
}

/// The client's end of a connection in memory.
async fn connect(host: &Arc<Host>) -> SendRequest<Full<Bytes>> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let host = Arc::clone(host);
    let peer = Arc::new(Peer::new(([127, 0, 0, 1], 1).into(), false, Arc::clone(&host)));
    let service = service_fn(move |request| serve::request(Arc::clone(&host), Arc::clone(&peer), request));
    tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(theirs), service));
    let (sender, connection) = handshake(TokioIo::new(ours)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("request");
    let body = Bytes::from_static(br#"{"token":"t"}"#);
    let cases = [
        ("health", "/health", FRESH, false),
        ("typed-fresh", "/api/v1/auth/verify-email", FRESH, true),
        ("typed-reused", "/api/v1/auth/verify-email", REUSED, true),
        ("http02-fresh", "/hello/world", FRESH, false),
        ("http02-reused", "/hello/world", REUSED, false),
        ("http03-fresh", "/hello-p3/world", FRESH, false),
        ("http03-reused", "/hello-p3/world", REUSED, false),
    ];
    for (name, path, reuse, post) in cases {
        let host = host(reuse);
        let mut sender = runtime.block_on(connect(&host));
        let make = || {
            let request = Request::builder().uri(path).header("host", "bench");
            if post {
                let request = request.method("POST").header("content-type", "application/json");
                request.body(Full::new(body.clone())).unwrap()
            } else {
                request.body(Full::default()).unwrap()
            }
        };
        group.bench_function(name, |b| {
            b.iter(|| {
                runtime.block_on(async {
                    sender.ready().await.unwrap();
                    let answer = sender.send_request(make()).await.unwrap();
                    assert_eq!(answer.status(), StatusCode::OK);
                    answer.into_body().collect().await.unwrap()
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, typed, request);
criterion_main!(benches);
