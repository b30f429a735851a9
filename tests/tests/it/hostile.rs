//! Guests that misbehave while they run: each costs its own request one answer, and nothing else.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use berth_tests::berth::{Berth, Manifest};
use berth_tests::wire::{Connection, Ended, Response, get, head};

/// The request that fails, the answer it must get, and that the next request of the same plugin and of another one
/// are served.
#[track_caller]
pub(crate) fn fails(berth: &Berth, path: &str, status: u16, code: &str, trap: &str) {
    let plugin = path.split('/').nth(1).unwrap();
    let before = berth.metric("berth_plugin_traps_total", &[plugin, trap]);
    let answer = berth.get(path);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (status, code),
        "{path}: {}",
        answer.text()
    );
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let line = berth.request_line(answer.header("x-request-id").unwrap());
    assert_eq!(line["trap"], trap, "{line}");
    assert_eq!(line["code"], code, "{line}");
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &[plugin, trap]),
        before + 1.0
    );
    assert_eq!(berth.get("/hello/next").text(), "Hello, next.\n");
}

pub(crate) fn with_hello(fixture: &str, more: &str) -> Berth {
    Manifest::new()
        .handler("hello")
        .handler_with(&format!("fixtures/{fixture}"), more)
        .start()
}

#[test]
fn endless_loop_is_ended_by_the_cpu_limit() {
    let berth = with_hello("spin", "limits = { cpu = \"200ms\" }");
    fails(&berth, "/spin/x", 503, "plugin-cpu", "cpu");
    let line = berth.logged("the request", |e| {
        e["path"] == "/spin/x" && e["target"] == "berth::request"
    });
    let cpu = line["cpu_us"].as_u64().unwrap();
    assert!(
        (200_000..400_000).contains(&cpu),
        "{cpu} µs of guest time for a limit of 200 ms"
    );
}

#[test]
fn endless_loop_in_a_start_function_is_ended_by_the_cpu_limit() {
    let berth = with_hello("spin-start", "limits = { cpu = \"200ms\" }");
    fails(&berth, "/spin-start/x", 503, "plugin-cpu", "cpu");
}

#[test]
fn deep_recursion_is_ended_by_the_stack_limit() {
    let berth = with_hello("recursion", "");
    fails(&berth, "/recursion/x", 500, "plugin-stack", "stack");
}

#[test]
fn memory_bomb_is_told_apart_from_a_crash() {
    let berth = with_hello("memory-bomb", "limits = { memory = \"16MiB\" }");
    fails(&berth, "/memory-bomb/x", 503, "plugin-memory", "memory");
    assert_eq!(
        berth.metric("berth_guest_memory_bytes", &[]),
        0.0,
        "the budget is given back"
    );
    let peak = berth.metric("berth_plugin_memory_peak_bytes", &["memory-bomb"]);
    assert!(peak > 0.0 && peak <= 16.0 * 1_048_576.0, "{peak}");
}

#[test]
fn memory_budget_of_the_process_holds_over_plugins() {
    let manifest = Manifest::new()
        .raw("[limits]\ntotal_memory = \"24MiB\"\n")
        .handler("hello")
        .handler_with(
            "fixtures/memory-bomb",
            "limits = { memory = \"1GiB\", cpu = \"5s\" }",
        );
    let berth = manifest.start();
    let answer = berth.get("/memory-bomb/x");
    // Not the plugin's own limit, so not the plugin's fault.
    assert_eq!((answer.status, answer.code().as_str()), (503, "host-busy"));
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["memory-bomb", "memory"]),
        0.0
    );
    assert_eq!(berth.get("/hello/next").status, 200);
}

#[test]
fn guest_parked_in_a_host_call_is_ended_by_the_wall_limit() {
    let berth = with_hello("park", "limits = { wall = \"300ms\" }");
    let started = Instant::now();
    fails(&berth, "/park/x", 504, "plugin-timeout", "wall");
    assert!(started.elapsed() < Duration::from_secs(10));
    let line = berth.logged("the request", |e| {
        e["path"] == "/park/x" && e["target"] == "berth::request"
    });
    assert!(
        line["cpu_us"].as_u64().unwrap() < 200_000,
        "waiting is not computing: {line}"
    );
}

#[test]
fn trap_before_the_head_is_one_500_and_one_log_line_with_function_names() {
    let berth = with_hello("trap-before-head", "");
    fails(&berth, "/trap-before-head/x", 500, "plugin-trap", "unreachable");
    let event = berth.logged("the backtrace", |e| {
        e["target"] == "berth::plugin" && e["trap"] == "unreachable"
    });
    let text = event["message"].as_str().unwrap();
    assert!(
        text.contains("wasm trap: wasm `unreachable` instruction executed"),
        "{text}"
    );
    assert!(
        text.contains("trap_before_head"),
        "the backtrace names functions: {text}"
    );
    assert!(!event["request_id"].as_str().unwrap().is_empty());
}

#[test]
fn trap_after_the_head_aborts_the_connection() {
    let berth = with_hello("trap-after-head", "");
    let mut connection = Connection::open(berth.address);
    connection.send(head("GET", "/trap-after-head/x", &[], 0));
    let answer = connection.response("GET").unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), "half of the bo");
    assert_eq!(answer.ended, Ended::Cut, "a cut body must not look whole");
    let line = berth.request_line(answer.header("x-request-id").unwrap());
    assert_eq!(line["code"], "plugin-trap", "{line}");
    assert_eq!(line["status"], 200, "{line}");
    berth.logged("the backtrace", |e| {
        e["target"] == "berth::plugin" && e["trap"] == "unreachable"
    });
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["trap-after-head", "unreachable"]),
        1.0
    );
    assert_eq!(berth.get("/hello/next").status, 200);
}

#[test]
fn trap_after_a_complete_response_lets_it_stand() {
    let berth = with_hello("trap-after-body", "");
    let answer = berth.get("/trap-after-body/x");
    assert_eq!((answer.status, answer.ended), (200, Ended::Whole));
    assert!(!answer.body.is_empty());
    berth.logged("the trap all the same", |e| {
        e["target"] == "berth::plugin" && e["trap"] == "unreachable"
    });
    assert_eq!(berth.get("/hello/next").status, 200);
}

#[test]
fn handler_that_returns_without_a_response_is_named_as_that() {
    fails(
        &with_hello("no-response", ""),
        "/no-response/x",
        500,
        "plugin-no-response",
        "no-response",
    );
}

#[test]
fn handler_that_answers_with_an_error_code_is_a_500() {
    let berth = with_hello("guest-error", "");
    fails(&berth, "/guest-error/x", 500, "plugin-error", "refused");
    let event = berth.logged("the cause", |e| {
        e["target"] == "berth::plugin" && e["trap"] == "refused"
    });
    assert!(
        event["message"].as_str().unwrap().contains("error code"),
        "{event}"
    );
}

#[test]
fn guest_that_exits_is_a_500() {
    fails(&with_hello("exit", ""), "/exit/x", 500, "plugin-exit", "exit");
}

#[test]
fn the_same_faults_of_a_03_handler_have_the_same_answers() {
    let berth = with_hello("echo-p3", "limits = { cpu = \"200ms\", wall = \"500ms\" }");
    fails(&berth, "/echo-p3/trap", 500, "plugin-trap", "unreachable");
    fails(&berth, "/echo-p3/spin", 503, "plugin-cpu", "cpu");
    fails(&berth, "/echo-p3/park", 504, "plugin-timeout", "wall");
    fails(&berth, "/echo-p3/error", 500, "plugin-error", "refused");
    let cut = berth.get("/echo-p3/trap-after-head");
    assert_eq!((cut.status, cut.ended), (200, Ended::Cut));
    assert_eq!(berth.get("/hello/next").status, 200);
}

#[test]
fn one_spinning_guest_per_worker_leaves_the_others_their_time() {
    let berth = with_hello("spin", "limits = { cpu = \"2s\", concurrency = 64 }");
    leave_the_others_their_time(&berth, |address| get(address, "/spin/x"));
}

/// One request that spins for each worker, while `hello` and `/health` are asked.
pub(crate) fn leave_the_others_their_time(berth: &Berth, spin: fn(SocketAddr) -> Response) {
    let workers = std::thread::available_parallelism().unwrap().get();
    let address = berth.address;
    std::thread::scope(|scope| {
        let spinning: Vec<_> = (0..workers).map(|_| scope.spawn(move || spin(address))).collect();
        // They are in when the metrics say that their instances are taken.
        while berth.metric("berth_instances_free", &[]) > 256.0 - workers as f64 {
            std::thread::yield_now();
        }
        let mut health = Vec::new();
        let mut hello = Vec::new();
        for _ in 0..20 {
            health.push(timed(|| assert_eq!(get(address, "/health").status, 200)));
            hello.push(timed(|| {
                assert_eq!(get(address, "/hello/next").text(), "Hello, next.\n")
            }));
        }
        let still = spinning.iter().filter(|s| !s.is_finished()).count();
        assert_eq!(
            still, workers,
            "the guests were still spinning while the others were measured"
        );
        health.sort();
        hello.sort();
        println!(
            "health: median {:?}, worst {:?}; hello: median {:?}, worst {:?}",
            health[10], health[19], hello[10], hello[19]
        );
        // The promise is 50 ms; the median of 20 is held to it, so that a noisy machine can't fail the test.
        assert!(health[10] < Duration::from_millis(50), "health: {health:?}");
        assert!(hello[10] < Duration::from_millis(50), "hello: {hello:?}");
        for spin in spinning {
            assert_eq!(spin.join().unwrap().code(), "plugin-cpu");
        }
    });
}

fn timed(run: impl FnOnce()) -> Duration {
    let started = Instant::now();
    run();
    started.elapsed()
}

#[test]
fn client_that_leaves_ends_its_guest() {
    let berth = with_hello("park", "");
    let mut connection = Connection::open(berth.address);
    connection.send(head("GET", "/park/x", &[("x-request-id", "leaver")], 0));
    while berth.metric("berth_instances_free", &[]) == 256.0 {
        std::thread::yield_now();
    }
    drop(connection);
    let line = berth.request_line("leaver");
    assert_eq!(line["code"], "client-gone", "{line}");
    assert_eq!(line["status"], serde_json::Value::Null);
    while berth.metric("berth_instances_free", &[]) < 256.0 {
        std::thread::yield_now();
    }
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["park", "client-gone"]),
        1.0
    );
    assert!(
        !berth.log().iter().any(|e| e["level"] == "ERROR"),
        "a client that leaves is no error"
    );
}

#[test]
fn excess_over_cap_and_queue_is_429_with_retry_after() {
    let berth = with_hello("park", "limits = { wall = \"3s\", concurrency = 1 }");
    let address = berth.address;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| scope.spawn(move || get(address, "/park/x")))
            .collect();
        let answers: Vec<_> = clients.into_iter().map(|c| c.join().unwrap()).collect();
        let codes = |code: &str| answers.iter().filter(|a| a.code() == code).count();
        assert_eq!(codes("plugin-busy"), 3, "1 runs, 4 wait, 3 of 8 are sent away");
        for busy in answers.iter().filter(|a| a.status == 429) {
            assert_eq!(busy.header("retry-after"), Some("1"));
        }
        assert_eq!(
            codes("plugin-busy") + codes("plugin-timeout") + codes("host-busy"),
            8
        );
    });
    assert_eq!(berth.get("/hello/next").status, 200);
}

#[test]
fn handler_that_always_fails_is_still_tried_for_every_request() {
    let berth = with_hello("trap-before-head", "");
    for _ in 0..30 {
        assert_eq!(berth.get("/trap-before-head/x").code(), "plugin-trap");
    }
    assert_eq!(
        berth.metric("berth_plugin_traps_total", &["trap-before-head", "unreachable"]),
        30.0
    );
    let loops = |e: &serde_json::Value| e["code"] == "crash-loop" && e["plugin"] == "trap-before-head";
    berth.logged("the loop", loops);
    assert_eq!(berth.log().iter().filter(|e| loops(e)).count(), 1, "said once");
}
