//! Components and manifests that change while a berth serves them: a folder of the test's own, somebody who asks all the
//! time, and an operator.
//!
//! ```no_run
//! use berth_tests::berth::Manifest;
//! use berth_tests::swaps::{Caller, Operator, Site, WATCH, greeting, hello};
//!
//! let site = Site::new();
//! site.put("hello.wasm", &hello(1));
//! let berth = site.start(&Manifest::new().raw(WATCH).handler_file("hello", &site.at("hello.wasm"), ""));
//! let (operator, caller) = (Operator::of(&berth), Caller::start(berth.address, "/hello/Ada"));
//! let before = operator.last();
//! site.replace("hello.wasm", &hello(2));
//! operator.event(before, "hello", "swapped");
//! caller.sees(&greeting(2, "Ada"));
//! caller.stop().only(&[&greeting(1, "Ada"), &greeting(2, "Ada")]);
//! ```

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::berth::{Berth, Manifest, PATIENCE, command};
use crate::guest;
use crate::wire::{Connection, Ended, Response, head, request, request_as};

/// `berth serve` follows the files, as `berth up` does.
pub const WATCH: &str = "[reload]\nwatch = true";

/// A built component, as it is: `built("hello")`.
pub fn built(name: &str) -> Vec<u8> {
    let path = guest(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A version of `hello` that can be told from others by what it answers: [`greeting`].
pub fn hello(number: u32) -> Vec<u8> {
    altered(&built("hello"), "Hello, ", &format!("{}, ", mark(number)))
}

/// What [`hello`] answers at `/hello/<name>`.
pub fn greeting(number: u32, name: &str) -> String {
    format!("{}, {name}.\n", mark(number))
}

fn mark(number: u32) -> String {
    assert!(number < 10_000, "as long as \"Hello\"");
    format!("V{number:04}")
}

/// A component with another text in the place of one that is as long.
pub fn altered(component: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len(), "{from:?} and {to:?}");
    let mut bytes = component.to_vec();
    let places: Vec<usize> = (0..bytes.len())
        .filter(|&at| bytes[at..].starts_with(from.as_bytes()))
        .collect();
    assert!(!places.is_empty(), "{from:?} is in the component");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}

/// Another version of a component that does the same: with a custom section more.
pub fn another(component: &[u8], number: u32) -> Vec<u8> {
    let name = b"version";
    let content = number.to_le_bytes();
    // All lengths are below 128, so each is one byte in LEB128.
    let mut bytes = component.to_vec();
    bytes.extend([0, (1 + name.len() + content.len()) as u8, name.len() as u8]);
    bytes.extend(name);
    bytes.extend(content);
    bytes
}

/// A version of a component that does the same and keeps the compiler busy: with a module more, of so many functions that
/// nobody calls. A hundred take some 50 ms of CPU time.
pub fn slow(component: &[u8], functions: usize) -> Vec<u8> {
    let steps = "(local.set 0 (i64.mul (i64.add (local.get 0) (local.get 1)) (i64.xor (local.get 0) (i64.const 7))))\n\
                 (if (i64.eqz (local.get 0)) (then (local.set 1 (i64.rotl (local.get 1) (local.get 0)))))\n";
    let function = format!(
        "(func (param i64 i64) (result i64) {} local.get 0)\n",
        steps.repeat(12)
    );
    let module = wat::parse_str(format!("(module {})", function.repeat(functions))).expect("a module");
    let mut bytes = component.to_vec();
    bytes.push(1);
    // LEB128.
    let mut rest = module.len();
    while rest >= 0x80 {
        bytes.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes.extend(module);
    bytes
}

/// A component's digest, as versions are shown.
pub fn digest(component: &[u8]) -> String {
    sha256(component)[..12].to_owned()
}

/// All digits of it, as versions are kept.
pub fn sha256(component: &[u8]) -> String {
    Sha256::digest(component)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// How long the threads that compile have been on a processor so far; see proc(5) of `schedstat`.
pub fn compiled_for(berth: &Berth) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", berth.pid())).expect("it runs");
    let read = |task: &Path, name: &str| std::fs::read_to_string(task.join(name)).unwrap_or_default();
    let on_cpu = tasks
        .filter_map(|task| Some(task.ok()?.path()))
        .filter(|task| read(task, "comm").starts_with("berth-compile"))
        .map(|task| {
            let stat = read(&task, "schedstat");
            let nanos = stat.split(' ').next().and_then(|ns| ns.parse().ok());
            Duration::from_nanos(nanos.unwrap_or(0))
        });
    on_cpu.sum()
}

/// Wait until there is something.
///
/// # Panics
/// There is nothing within [`PATIENCE`]; `otherwise` is said.
#[track_caller]
pub fn until<T>(otherwise: impl Fn() -> String, mut there: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = there() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{}", otherwise());
        thread::sleep(Duration::from_millis(2));
    }
}

/// A folder in which a berth is started, perhaps more than once: with the manifest, the components that the test puts
/// there, and the data folder `.berth`.
#[derive(Clone, Debug)]
pub struct Site(Arc<TempDir>);

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    /// An empty one.
    pub fn new() -> Self {
        Self(Arc::new(TempDir::new().expect("a temporary folder")))
    }

    /// The path of a name in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Write a file in place: others may see it half written.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.at(name);
        std::fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Write a file under another name and rename it: it is the old one or the new one.
    pub fn replace(&self, name: &str, bytes: &[u8]) {
        let spare = format!("{name}.new");
        self.put(&spare, bytes);
        std::fs::rename(self.at(&spare), self.at(name)).expect("a file can be renamed");
    }

    /// The log of the last berth that was started here.
    pub fn log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.at("log.jsonl")).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Start a berth here.
    pub fn start(&self, manifest: &Manifest) -> Berth {
        self.start_by(command(), manifest)
    }

    /// The same with a program that ends up being berth, or with more of an environment.
    pub fn start_by(&self, program: Command, manifest: &Manifest) -> Berth {
        Berth::start_at(program, &self.0, manifest.text(), &[])
    }

    /// Stop it, and start another one.
    pub fn restart(&self, berth: Berth, manifest: &Manifest) -> Berth {
        berth.stop();
        self.start(manifest)
    }
}

/// Somebody who asks all the time, on one connection, and remembers what came back.
#[derive(Debug)]
pub struct Caller {
    shared: Arc<Mutex<Shared>>,
    thread: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    over: bool,
    seen: Seen,
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How many answers there were.
    pub answers: u64,
    /// Bodies of answers with 200, each with how often it came in a row.
    pub runs: Vec<(String, u64)>,
    /// Everything else.
    pub faults: Vec<String>,
}

impl Caller {
    /// `GET` this path from now on.
    pub fn start(address: SocketAddr, path: &str) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (path, of) = (path.to_owned(), Arc::clone(&shared));
        let thread = thread::spawn(move || {
            let mut connection = Connection::open(address);
            loop {
                connection.send(head("GET", &path, &[], 0));
                let answer = connection.response("GET");
                let again = answer.is_none().then(|| Connection::try_open(address));
                let mut shared = lock(&of);
                shared.seen.count(answer);
                // Nobody is there any more.
                if shared.over || matches!(again, Some(None)) {
                    return;
                }
                drop(shared);
                connection = again.flatten().unwrap_or(connection);
                // Not a benchmark: what is tested needs the processor as well.
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self { shared, thread }
    }

    /// What came back so far.
    pub fn so_far(&self) -> Seen {
        lock(&self.shared).seen.clone()
    }

    /// Wait until this is the latest answer.
    #[track_caller]
    pub fn sees(&self, body: &str) {
        until(
            || format!("{body:?} is not answered: {:?}", self.so_far()),
            || {
                let shared = lock(&self.shared);
                shared
                    .seen
                    .runs
                    .last()
                    .filter(|(last, _)| last == body)
                    .map(|_| ())
            },
        );
    }

    /// Wait until there were this many more answers.
    #[track_caller]
    pub fn asks(&self, more: u64) {
        let wanted = self.so_far().answers + more;
        until(
            || format!("nothing is answered: {:?}", self.so_far()),
            || (self.so_far().answers >= wanted).then_some(()),
        );
    }

    /// Ask no more.
    pub fn stop(self) -> Seen {
        lock(&self.shared).over = true;
        self.thread.join().expect("the caller ends");
        lock(&self.shared).seen.clone()
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    fn count(&mut self, answer: Option<Response>) {
        self.answers += 1;
        match answer {
            Some(answer) if answer.status == 200 && answer.ended == Ended::Whole => {
                let body = answer.text();
                match self.runs.last_mut() {
                    Some((last, times)) if *last == body => *times += 1,
                    _ => self.runs.push((body, 1)),
                }
            }
            Some(answer) => {
                self.faults
                    .push(format!("{} {:?} {}", answer.status, answer.ended, answer.text()))
            }
            None => self.faults.push("closed without an answer".to_owned()),
        }
    }

    /// Every answer was one of these, whole, with 200; and they came in this order, without going back.
    #[track_caller]
    pub fn only(&self, bodies: &[&str]) {
        assert!(self.faults.is_empty(), "{:?}", self.faults);
        let came: Vec<&str> = self.runs.iter().map(|(body, _)| body.as_str()).collect();
        let wanted: Vec<&str> = bodies
            .iter()
            .copied()
            .filter(|body| came.contains(body))
            .collect();
        assert_eq!(came, wanted, "of {bodies:?}");
    }

    /// The different bodies.
    pub fn bodies(&self) -> BTreeSet<&str> {
        self.runs.iter().map(|(body, _)| body.as_str()).collect()
    }
}

/// A client of the admin API, with the token of the berth's data folder.
#[derive(Clone, Debug)]
pub struct Operator {
    address: SocketAddr,
    token: String,
}

impl Operator {
    /// Of a berth whose data folder is `.berth` beside its manifest.
    pub fn of(berth: &Berth) -> Self {
        Self::with(berth.admin, &berth.folder().join(".berth"))
    }

    /// Of the berth at this address with this data folder.
    pub fn with(address: SocketAddr, data: &Path) -> Self {
        let file = data.join("admin.token");
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        Self {
            address,
            token: text.trim().to_owned(),
        }
    }

    /// Ask for anything.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        request_as(self.address, &self.token, method, path, headers, body)
    }

    /// `GET`, which must be 200.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, &[], b"");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// `POST` of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Response {
        let body = body.to_string();
        self.ask(
            "POST",
            path,
            &[("content-type", "application/json")],
            body.as_bytes(),
        )
    }

    /// Deploy a component. `more` are headers beside its type, `query` what follows a `?`.
    pub fn deploy(&self, plugin: &str, query: &str, more: &[(&str, &str)], component: &[u8]) -> Response {
        let mut headers = vec![("content-type", "application/wasm")];
        headers.extend(more);
        let path = format!("/admin/plugins/{plugin}/deploy?{query}");
        self.ask("POST", &path, &headers, component)
    }

    /// What is known of a plugin.
    #[track_caller]
    pub fn plugin(&self, name: &str) -> Value {
        self.get(&format!("/admin/plugins/{name}"))
    }

    /// The digest of the version that a plugin serves, as versions are shown.
    #[track_caller]
    pub fn serves(&self, plugin: &str) -> String {
        let plugin = self.plugin(plugin);
        plugin["version"].as_str().unwrap_or_default().to_owned()
    }

    /// A plugin in the health report.
    #[track_caller]
    pub fn health(&self, plugin: &str) -> Value {
        let health = request(self.address, "GET", "/health", &[], b"").json();
        let plugins = health["plugins"].as_array().cloned().unwrap_or_default();
        let found = plugins.into_iter().find(|it| it["name"] == plugin);
        found.unwrap_or_else(|| panic!("{plugin} is in {health}"))
    }

    /// The number of the latest event.
    #[track_caller]
    pub fn last(&self) -> u64 {
        self.get("/admin/events?limit=1")["events"][0]["seq"]
            .as_u64()
            .unwrap_or(0)
    }

    /// The events after a number, in order.
    #[track_caller]
    pub fn since(&self, seq: u64) -> Vec<Value> {
        let mut events = self.get("/admin/events?limit=500")["events"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        events.retain(|event| event["seq"].as_u64() > Some(seq));
        events.reverse();
        events
    }

    /// The kinds of a plugin's events after a number, in order, but for comparisons of versions (`measured`): those come
    /// when both have served enough.
    #[track_caller]
    pub fn kinds(&self, seq: u64, plugin: &str) -> Vec<String> {
        let events = self.since(seq).into_iter();
        events
            .filter(|event| event["plugin"] == plugin && event["kind"] != "measured")
            .map(|event| event["kind"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Wait for an event of a kind, of a plugin (`""` for the manifest), after a number.
    #[track_caller]
    pub fn event(&self, seq: u64, plugin: &str, kind: &str) -> Value {
        until(
            || format!("no event {kind} of {plugin:?} in {:#?}", self.since(seq)),
            || {
                let events = self.since(seq).into_iter();
                let of = |event: &Value| event["plugin"].as_str().unwrap_or_default() == plugin;
                events
                    .filter(|event| event["kind"] == kind)
                    .find(|event| of(event))
            },
        )
    }

    /// Follow a stream of events: `/admin/events`, or `/admin/plugins/<name>/logs`.
    pub fn follow(&self, path: &str) -> Live {
        let mut stream = TcpStream::connect(self.address).expect("the host accepts connections");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a read timeout can be set");
        let bearer = format!("Bearer {}", self.token);
        let headers = [
            ("authorization", bearer.as_str()),
            ("accept", "text/event-stream"),
        ];
        stream
            .write_all(head("GET", path, &headers, 0).as_bytes())
            .expect("the host reads");
        let mut live = Live {
            stream: BufReader::new(stream),
            text: String::new(),
        };
        let head = live.head();
        assert!(head.contains("text/event-stream"), "{head}");
        // The comment that says that it has begun: what happens from now on is told.
        assert_eq!(live.block().as_deref(), Some(": connected"));
        live
    }
}

/// A stream of server-sent events.
#[derive(Debug)]
pub struct Live {
    stream: BufReader<TcpStream>,
    text: String,
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The kind of an event, or the level of a line.
    pub name: String,
    /// Its number, if it has one.
    pub number: Option<u64>,
    /// All of it.
    pub data: Value,
}

impl Live {
    /// The next event; nothing if the host has ended the stream.
    #[track_caller]
    pub fn hears(&mut self) -> Option<Told> {
        loop {
            let block = self.block()?;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
            // Comments keep the connection alive.
            if let Some(data) = field("data: ") {
                return Some(Told {
                    name: field("event: ").unwrap_or_default().to_owned(),
                    number: field("id: ").and_then(|id| id.parse().ok()),
                    data: serde_json::from_str(data).unwrap_or_else(|e| panic!("{e} in {block}")),
                });
            }
        }
    }

    fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = self.stream.read_line(&mut head).expect("a head");
            assert!(read > 0, "closed after {head:?}");
        }
        head
    }

    fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                return Some(block);
            }
            let mut size = String::new();
            self.stream.read_line(&mut size).expect("a chunk");
            let size = usize::from_str_radix(size.trim(), 16)
                .ok()
                .filter(|size| *size > 0)?;
            let mut chunk = vec![0; size + 2];
            self.stream.read_exact(&mut chunk).expect("a whole chunk");
            self.text += &String::from_utf8_lossy(&chunk[..size]);
        }
    }
}
