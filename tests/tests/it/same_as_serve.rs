//! A component that `wasmtime serve` serves is served the same by berth: same status, headers and bytes.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use berth_tests::berth::Manifest;
use berth_tests::wire::{Ended, Response, request};
use berth_tests::{guest, program};

/// Method, path, body.
type Case = (&'static str, &'static str, &'static [u8]);

struct Serve(Child);

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `wasmtime serve` on a free port, ready.
fn serve(component: &str, p3: bool) -> (Serve, SocketAddr) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new(program("BERTH_WASMTIME", "target/tools/wasmtime-48.0.2/wasmtime"));
    command.args(["serve", "-Scli", "--addr", &port.to_string()]);
    if p3 {
        command.args(["-Sp3", "-Wcomponent-model-async"]);
    }
    let mut child = command
        .arg(guest(component))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let ready = lines.find(|l| l.as_ref().is_ok_and(|l| l.contains("Serving HTTP")));
    assert!(ready.is_some(), "wasmtime serve began");
    std::thread::spawn(move || lines.for_each(drop));
    (Serve(child), port)
}

/// All that must be equal: everything but the date, what belongs to the connection (a server that has not read all of
/// a body yet closes it), and the id that berth adds.
fn comparable(mut response: Response) -> (u16, Vec<(String, String)>, Vec<u8>, Ended) {
    response
        .headers
        .retain(|(name, _)| !matches!(name.as_str(), "date" | "connection" | "x-request-id"));
    response.headers.sort();
    // The echo of the request's headers: an id more, and no promised order of names.
    if response.body.starts_with(b"berth-request-id: ") || response.text().contains("x-sent: 1\n") {
        let text = response.text();
        let mut lines: Vec<&str> = text
            .lines()
            .filter(|l| !l.starts_with("berth-request-id: "))
            .collect();
        lines.sort_unstable();
        response.body = lines.join("\n").into_bytes();
    }
    (response.status, response.headers, response.body, response.ended)
}

#[test]
fn answers_of_wasmtime_serve_and_berth_compare_equal() {
    let cases: &[(&str, bool, &[Case])] = &[
        (
            "hello",
            false,
            &[
                ("GET", "/hello/world", b""),
                ("GET", "/", b""),
                ("POST", "/hello/Ada?x=1", b"body"),
            ],
        ),
        (
            "hello-p3",
            true,
            &[
                ("GET", "/hello/world", b""),
                ("GET", "/hello/", b""),
                ("POST", "/hello/Ada", b"body"),
            ],
        ),
        (
            "fixtures/echo",
            false,
            &[
                ("POST", "/echo", b"some bytes"),
                ("GET", "/status/404", b""),
                ("GET", "/status/204", b""),
                ("GET", "/big/300000", b""),
                ("GET", "/headers", b""),
                ("HEAD", "/status/200", b""),
            ],
        ),
        (
            "fixtures/echo-p3",
            true,
            &[("POST", "/echo", b"some bytes"), ("GET", "/x?y=z", b"")],
        ),
    ];
    for (component, p3, requests) in cases {
        let (_serve, theirs) = serve(component, *p3);
        // The same paths on both sides: berth's route takes everything.
        let berth = Manifest::new()
            .raw(&format!("[plugins.it]\ncomponent = {:?}\n", guest(component)))
            .raw("[[routes]]\npath = \"/*\"\nplugin = \"it\"\naccess = \"public\"\n")
            .start();
        for (method, path, body) in *requests {
            let headers = [("x-sent", "1"), ("accept", "a/b"), ("content-type", "text/plain")];
            let them = comparable(request(theirs, method, path, &headers, body));
            let us = comparable(request(berth.address, method, path, &headers, body));
            assert_eq!(us, them, "{component}: {method} {path}");
        }
    }
}
