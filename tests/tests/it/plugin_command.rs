//! `berth plugin` against canned answers: what it asks, and what it makes of what comes. A real host is asked elsewhere.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_tests::berth::command;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A request of the command.
#[derive(Clone)]
struct Asked {
    /// Method and path.
    line: String,
    head: String,
    body: Vec<u8>,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Something that answers like a host, and the folder of its token.
struct Canned {
    folder: TempDir,
    admin: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Canned {
    /// Each request is answered by this, on a thread of its own.
    fn new(answer: impl Fn(&Asked, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let folder = TempDir::new().unwrap();
        let token = folder.path().join("admin.token");
        std::fs::write(&token, "secret\n").unwrap();
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(folder.path().join("berth.toml"), "").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let request = read(&stream);
                    seen.lock().unwrap().push(request.clone());
                    answer(&request, &mut stream);
                });
            }
        });
        Self { folder, admin, asked }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = command();
        command
            .arg("plugin")
            .args(arguments)
            .env("BERTH_DATA_DIR", self.folder.path())
            .env("BERTH_ADMIN_LISTEN", &self.admin)
            .current_dir(self.folder.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn lines(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .map(|asked| asked.line.clone())
            .collect()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.folder.path().join(name), bytes).unwrap();
    }
}

fn read(stream: &TcpStream) -> Asked {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let head: Vec<String> = reader
        .by_ref()
        .lines()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let mut asked = Asked {
        line: head[0].trim_end_matches(" HTTP/1.1").to_owned(),
        head: head.join("\n"),
        body: Vec::new(),
    };
    let length = asked
        .header("content-length")
        .map_or(0, |length| length.parse().unwrap());
    asked.body = vec![0; length];
    reader.read_exact(&mut asked.body).unwrap();
    asked
}

fn answer(stream: &mut TcpStream, status: &str, body: &Value) {
    let body = body.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
}

fn stdout(out: &Output) -> &str {
    std::str::from_utf8(&out.stdout).unwrap()
}

fn stderr(out: &Output) -> &str {
    std::str::from_utf8(&out.stderr).unwrap()
}

#[test]
fn deploy_sends_the_component_and_its_signature_and_says_what_became_of_it() {
    let event = json!({
        "seq": 1, "at": 1, "kind": "swapped", "plugin": "hello", "from": "1a2b3c4d5e6f7a8b", "to": "9f8e7d6c5b4a7a8b",
        "steps": { "readUs": 1_000, "compileUs": 48_000, "totalUs": 61_000 },
    });
    let answered = event.clone();
    let host = Canned::new(move |asked, stream| match asked.line.starts_with("GET") {
        true => answer(
            stream,
            "200 OK",
            &json!({ "name": "hello", "version": "1a2b3c4d5e6f" }),
        ),
        false => answer(stream, "200 OK", &answered),
    });
    // More than the buffers on the way hold.
    let component: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    host.write("x.wasm", &component);
    let out = host.run(&["deploy", "hello", "x.wasm"]);
    assert_eq!(stderr(&out), "");
    assert!(out.status.success());
    assert_eq!(
        stdout(&out),
        "hello: 1a2b3c4d5e6f → 9f8e7d6c5b4a in 61 ms (read 1, compile 48)\n"
    );
    host.write("x.wasm.minisig", b"untrusted comment: x\nRUQ=\n");
    let out = host.run(&[
        "deploy",
        "hello",
        "x.wasm",
        "--canary",
        "10%",
        "--promote-after",
        "500",
        "--json",
    ]);
    assert_eq!(serde_json::from_str::<Value>(stdout(&out)).unwrap(), event);
    assert_eq!(
        host.lines(),
        [
            "GET /admin/plugins/hello",
            "POST /admin/plugins/hello/deploy",
            "GET /admin/plugins/hello",
            "POST /admin/plugins/hello/deploy?canary=10%25&promoteAfter=500",
        ]
    );
    let asked = host.asked.lock().unwrap();
    for upload in [&asked[1], &asked[3]] {
        assert!(upload.body == component);
        assert_eq!(upload.header("content-type"), Some("application/wasm"));
        assert_eq!(upload.header("authorization"), Some("Bearer secret"));
        assert_eq!(upload.header("transfer-encoding"), None);
    }
    assert_eq!(asked[1].header("berth-signature"), None);
    let signature = STANDARD
        .decode(asked[3].header("berth-signature").unwrap())
        .unwrap();
    assert_eq!(signature, b"untrusted comment: x\nRUQ=\n");
}

#[test]
fn refused_deploy_exits_with_1_and_says_what_serves_on() {
    let refusals = [
        (
            "422 Unprocessable Content",
            json!({ "code": "not-granted", "detail": "all", "errors": [{ "detail": "one\u{1b}" }, { "detail": "two" }] }),
            "one\n  two",
        ),
        (
            "413 Content Too Large",
            json!({ "code": "too-large", "detail": "it is too large" }),
            "it is too large",
        ),
        (
            "200 OK",
            json!({ "kind": "refused", "code": "not-wasm", "reason": "it is no component" }),
            "it is no component",
        ),
    ];
    for (status, refusal, expected) in refusals {
        let answered = refusal.clone();
        let host = Canned::new(move |asked, stream| match asked.line.starts_with("GET") {
            true => answer(
                stream,
                "200 OK",
                &json!({ "state": "ready", "version": "1a2b3c4d5e6f" }),
            ),
            false => answer(stream, status, &answered),
        });
        host.write("x.wasm", b"x");
        let out = host.run(&["deploy", "hello", "x.wasm"]);
        assert_eq!((out.status.code(), stdout(&out)), (Some(1), ""));
        let code = refusal["code"].as_str().unwrap();
        assert_eq!(
            stderr(&out),
            format!(
                "berth: hello: the component is refused ({code}); 1a2b3c4d5e6f serves on\n  {expected}\n"
            )
        );
        let out = host.run(&["deploy", "hello", "x.wasm", "--json"]);
        assert_eq!(out.status.code(), Some(1));
        assert_eq!(serde_json::from_str::<Value>(stdout(&out)).unwrap(), refusal);
    }
}

#[test]
fn what_is_missing_costs_no_upload() {
    let host = Canned::new(|_, stream| {
        answer(
            stream,
            "404 Not Found",
            &json!({ "code": "plugin-not-found", "detail": "x" }),
        );
    });
    host.write("x.wasm", b"x");
    let out = host.run(&["deploy", "hello", "absent.wasm"]);
    assert_eq!(out.status.code(), Some(64));
    assert!(
        stderr(&out).contains("absent.wasm: there is no such file"),
        "{}",
        stderr(&out)
    );
    assert!(host.lines().is_empty());
    let expected = "berth: there is no plugin \"hello\"; `berth plugin list` shows them\n";
    for arguments in [
        &["deploy", "hello", "x.wasm"] as &[&str],
        &["show", "hello"],
        &["rollback", "hello"],
        &["logs", "hello"],
        &["logs", "hello", "--follow"],
    ] {
        let out = host.run(arguments);
        assert_eq!(
            (out.status.code(), stderr(&out)),
            (Some(1), expected),
            "{arguments:?}"
        );
    }
    assert_eq!(host.lines()[0], "GET /admin/plugins/hello");
}

#[test]
fn changes_are_asked_for_as_they_are_written() {
    let host = Canned::new(|_, stream| {
        answer(
            stream,
            "200 OK",
            &json!({ "kind": "disabled", "plugin": "hello" }),
        )
    });
    for arguments in [
        &["rollback", "hello"] as &[&str],
        &["rollback", "hello", "--to", "1A2B"],
        &["promote", "hello"],
        &["disable", "hello"],
        &["enable", "hello"],
    ] {
        let out = host.run(arguments);
        assert_eq!(stdout(&out), "hello: out of service\n", "{}", stderr(&out));
    }
    let asked = host.asked.lock().unwrap();
    let asked: Vec<(&str, &str)> = asked
        .iter()
        .map(|asked| (asked.line.as_str(), std::str::from_utf8(&asked.body).unwrap()))
        .collect();
    assert_eq!(
        asked,
        [
            ("POST /admin/plugins/hello/rollback", "{}"),
            ("POST /admin/plugins/hello/rollback", "{\"to\":\"1a2b\"}"),
            ("POST /admin/plugins/hello/promote", ""),
            ("POST /admin/plugins/hello/disable", ""),
            ("POST /admin/plugins/hello/enable", ""),
        ]
    );
}

fn event(seq: u64) -> Value {
    json!({ "seq": seq, "at": seq * 1_000, "kind": "disabled", "plugin": format!("p{seq}"), "by": "operator" })
}

fn server_sent(event: &Value) -> String {
    format!("event: disabled\nid: {}\ndata: {event}\n\n", event["seq"])
}

/// A host whose list has the events 1 and 2, and whose stream begins with 2 and goes on when it is told to.
fn streaming(go_on: Receiver<()>) -> Canned {
    let go_on = Mutex::new(go_on);
    Canned::new(move |asked, stream| {
        if asked.header("accept") != Some("text/event-stream") {
            return answer(stream, "200 OK", &json!({ "events": [event(2), event(1)] }));
        }
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: begin\n\n{}{}",
            server_sent(&event(2)),
            server_sent(&event(3))
        )
        .unwrap();
        let go_on = go_on.lock().unwrap();
        if go_on.recv().is_ok() {
            let _ = write!(stream, "{}", server_sent(&event(4)));
            let _ = go_on.recv();
        }
    })
}

#[test]
fn followed_events_come_as_they_happen_and_once() {
    let (go_on, waiting) = channel();
    let host = streaming(waiting);
    let mut child = host
        .command(&["events", "--follow", "--limit", "7"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    for seq in 1..=3 {
        assert_eq!(
            next(),
            format!("1970-01-01T00:00:0{seq}Z  disabled          operator  p{seq}: out of service")
        );
    }
    go_on.send(()).unwrap();
    assert!(next().ends_with("p4: out of service"));
    drop(go_on);
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains("it ended the stream"), "{}", stderr(&out));
    assert_eq!(host.lines(), ["GET /admin/events?limit=7"; 2]);
}

#[test]
fn followed_json_is_one_object_a_line_and_ends_with_its_reader() {
    let (go_on, waiting) = channel();
    let host = streaming(waiting);
    let mut child = host
        .command(&["events", "p", "--follow", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for seq in 1..=3 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line, event(seq));
    }
    drop(lines);
    go_on.send(()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(host.lines(), ["GET /admin/events?limit=50&plugin=p"; 2]);
}

#[test]
fn lists_are_shown_for_people() {
    let host = Canned::new(|asked, stream| {
        let list = match asked.line.as_str() {
            "GET /admin/plugins" => json!({ "plugins": [{ "name": "hello", "state": "ready" }] }),
            "GET /admin/events?limit=50" => json!({ "events": [event(2), event(1)] }),
            "GET /admin/plugins/hello/logs?limit=2" => json!({ "lines": [
                { "at": 1, "level": "info", "source": "guest", "message": "one\u{1b}[2J" },
                { "at": 2, "level": "error", "source": "host", "message": "two" },
            ] }),
            _ => json!({ "name": "hello" }),
        };
        answer(stream, "200 OK", &list);
    });
    let said = |arguments: &[&str]| stdout(&host.run(arguments)).to_owned();
    assert!(said(&["list"]).ends_with("\nhello   ready\n"));
    assert_eq!(said(&["show", "hello"]), "plugin     hello\n");
    let events = said(&["events"]);
    assert!(
        events.starts_with("1970-01-01T00:00:02Z  ") && events.lines().count() == 2,
        "{events}"
    );
    assert_eq!(
        said(&["logs", "hello", "--limit", "2"]),
        "1970-01-01T00:00:00.001Z  INFO   guest   one\\u{1b}[2J\n1970-01-01T00:00:00.002Z  ERROR  host    two\n"
    );
    let json: Value = serde_json::from_str(&said(&["list", "--json"])).unwrap();
    assert_eq!(json["plugins"][0]["name"], "hello");
    let help = stdout(&host.run(&["--help"])).to_owned();
    assert!(
        help.contains("berth plugin deploy greeter greeter.wasm --canary 10%"),
        "{help}"
    );
}
