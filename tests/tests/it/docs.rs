//! The documents are true: their commands run, their answers are the ones that come, their tables are the code's.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use berth_tests::berth::{command, eventually, run};
use berth_tests::store::Store;
use berth_tests::{guest, program, root, wire};
use tempfile::TempDir;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// The fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == format!("```{language}") {
            let block: Vec<&str> = lines.by_ref().take_while(|l| *l != "```").collect();
            found.push(block.join("\n"));
        } else if line.starts_with("```") && line.len() > 3 {
            lines.by_ref().take_while(|l| *l != "```").for_each(drop);
        }
    }
    found
}

/// The commands of `sh` blocks, without their comments.
fn commands(text: &str) -> Vec<String> {
    let lines: Vec<String> = blocks(text, "sh").join("\n").lines().map(str::to_owned).collect();
    lines
        .into_iter()
        .map(|l| l.split('#').next().unwrap().trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect()
}

/// A child that is stopped by SIGTERM and waited for.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .args(["-s", "TERM", &self.0.id().to_string()])
            .status();
        let _ = self.0.wait();
    }
}

/// Start something that ends up as `berth`, and wait for its address.
pub(crate) fn start(command: &mut Command) -> (Running, SocketAddr) {
    let (running, address, _) = start_with_admin(command);
    (running, address)
}

/// The same with the address for operators.
fn start_with_admin(command: &mut Command) -> (Running, SocketAddr, SocketAddr) {
    command
        .env("BERTH_HTTP_LISTEN", "127.0.0.1:0")
        .env("BERTH_ADMIN_LISTEN", "127.0.0.1:0");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let running = Running(child);
    let mut address = |prefix: &str| -> SocketAddr {
        let mut said = lines.by_ref().map_while(Result::ok);
        let found = said.find_map(|l| l.strip_prefix(prefix).map(|a| a.parse().unwrap()));
        found.expect("it says where it listens")
    };
    let (callers, operators) = (
        address("berth listens on http://"),
        address("berth admin on http://"),
    );
    assert!(lines.map_while(Result::ok).any(|l| l.starts_with("ready in ")));
    (running, callers, operators)
}

/// Run every `$ …` of the `console` blocks, each block in a shell of its own, and compare what they print. How many
/// of them are requests.
fn curls_answer(text: &str, address: SocketAddr) -> usize {
    const END: &str = "--- the next command ---\n";
    let mut ran = 0;
    let folder = TempDir::new().unwrap();
    for block in blocks(text, "console") {
        let (mut script, mut expected) = (String::new(), Vec::new());
        for line in block.lines() {
            match line.strip_prefix("$ ") {
                Some(command) => {
                    let is_request = command.starts_with("curl ") || command.starts_with("post ");
                    ran += usize::from(is_request);
                    let command = command.replace("127.0.0.1:8080", &address.to_string());
                    script.push_str(&format!("{command}\nprintf '\\n{}\\n'\n", END.trim_end()));
                    expected.push(String::new());
                }
                None => {
                    let answer = expected
                        .last_mut()
                        .unwrap_or_else(|| panic!("{line:?} is a command"));
                    answer.push_str(line);
                    answer.push('\n');
                }
            }
        }
        let out = Command::new("sh")
            .args(["-c", &script])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&out.stdout).into_owned();
        let answers: Vec<&str> = out
            .split(END)
            .map(|answer| answer.trim_end_matches('\n'))
            .collect();
        let expected: Vec<&str> = expected.iter().map(|e| e.trim_end_matches('\n')).collect();
        assert_eq!(answers[..expected.len()], expected, "{block}");
    }
    ran
}

/// `cargo xtask up` as a newcomer calls it, and the README's requests against it.
#[test]
fn readme_two_commands_and_first_requests_work() {
    let readme = read("README.md");
    let known = [
        // This test.
        "cargo xtask up",
        // Whoever runs this test.
        "cargo xtask test",
        // This test.
        "target/debug/berth plugin deploy hello target/plugins/hello-p3.wasm --config plugins/berth.toml",
        "target/debug/berth plugin show hello --config plugins/berth.toml",
        "target/debug/berth plugin rollback hello --config plugins/berth.toml",
        "target/debug/berth plugin events --config plugins/berth.toml",
        // `commands_for_operators_work`.
        "target/debug/berth check --config plugins/berth.toml",
        "target/debug/berth check target/plugins/hello.wasm",
        "target/debug/berth routes --config plugins/berth.toml",
        // `store_tokens::keys_rotate_while_the_host_serves`.
        "target/debug/berth keys list --config plugins/berth.toml",
        "target/debug/berth keys rotate tokens --config plugins/berth.toml",
        // This test.
        "target/debug/berth plugin list --config plugins/berth.toml",
        // `store_user_command`.
        "target/debug/berth user list --config plugins/berth.toml",
        "target/debug/berth --help",
    ];
    assert_eq!(
        commands(&readme),
        known,
        "every command of the README is run by a test"
    );
    let mut up = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["BERTH_", "NEXTEST", "CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"]
            .iter()
            .any(|p| name.starts_with(p))
        {
            up.env_remove(name);
        }
    }
    // Not the data of whoever works in this checkout, who may have a berth running on it.
    let store = Store::private();
    up.env("BERTH_DATA_DIR", store.data());
    up.args(["xtask", "up"]).current_dir(root());
    let (running, address, admin) = start_with_admin(&mut up);
    assert_eq!(curls_answer(&readme, address), 9);
    swaps_answer(&readme, &store, (address, admin));
    // Stopped and started again, the account is still there.
    drop(running);
    let (_running, address) = start(&mut up);
    let login = r#"{"email":"ada@example.com","password":"correct horse battery"}"#;
    let answer = wire::post_json(address, "/api/v1/auth/login", login);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// The README's `berth plugin` commands, in its order, against the host that `up` has started: each answer by the version
/// that serves then, and not one that fails.
fn swaps_answer(readme: &str, store: &Store, (address, admin): (SocketAddr, SocketAddr)) {
    let kind = || -> String {
        let health = wire::get(address, "/health").json();
        let plugins = health["plugins"].as_array().unwrap();
        let hello = plugins.iter().find(|plugin| plugin["name"] == "hello").unwrap();
        hello["kind"].as_str().unwrap().to_owned()
    };
    let mut ran = 0;
    for line in commands(readme) {
        let Some(arguments) = line.strip_prefix("target/debug/berth plugin ") else {
            continue;
        };
        let component = guest("hello-p3");
        let arguments = arguments.replace("target/plugins/hello-p3.wasm", component.to_str().unwrap());
        let out = command()
            .args(["plugin"])
            .args(arguments.split(' '))
            .current_dir(root())
            .env("BERTH_ADMIN_LISTEN", admin.to_string())
            .env("BERTH_DATA_DIR", store.data())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success(),
            "{line}: {said}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        assert!(said.contains("hello"), "{line}: {said}");
        assert_eq!(
            wire::get(address, "/hello/world").text(),
            "Hello, world.\n",
            "after {line}"
        );
        match arguments.split(' ').next() {
            Some("deploy") => assert!(kind().contains("0.3"), "{}", kind()),
            Some("rollback") => assert!(kind().contains("0.2"), "{}", kind()),
            _ => {}
        }
        ran += 1;
    }
    assert_eq!(ran, 5);
}

#[test]
fn commands_for_operators_work() {
    for arguments in [&["check"] as &[&str], &["routes"]] {
        let out = command()
            .args(arguments)
            .args(["--config", "plugins/berth.toml"])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    let hello = guest("hello");
    assert!(run("", &["check", hello.to_str().unwrap()], &[]).status.success());
    assert!(run("", &["--help"], &[]).status.success());
}

/// The cells of the table that begins with this heading.
fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines().skip_while(|l| *l != heading);
    assert!(lines.next().is_some(), "the table {heading:?}");
    lines
        .skip(1)
        .take_while(|l| l.starts_with('|'))
        .map(|l| {
            l.trim_matches('|')
                .split('|')
                .map(|c| c.trim().trim_matches('`').to_owned())
                .collect()
        })
        .collect()
}

#[test]
fn route_reference_is_the_routers() {
    let manifest = root().join("plugins/berth.toml");
    let out = run(
        "",
        &["routes", "--json", "--config", manifest.to_str().unwrap()],
        &[],
    );
    let rows: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let ours: Vec<Vec<String>> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            ["methods", "path", "served_by", "access"]
                .map(|c| row[c].as_str().unwrap().to_owned())
                .to_vec()
        })
        .collect();
    assert_eq!(
        table(&read("README.md"), "| methods | path | served by | access |"),
        ours
    );
}

#[test]
fn table_of_keys_has_every_key_and_its_default() {
    let rows = table(&read("README.md"), "| key | default | meaning |");
    let documented: BTreeSet<String> = rows.iter().map(|r| r[0].clone()).collect();
    assert_eq!(documented.len(), rows.len());
    // A misspelt key makes the host list the ones it knows.
    for section in [
        "http",
        "admin",
        "data",
        "postgres",
        "tokens",
        "passwords",
        "identity",
        "limits",
        "telemetry",
        "reload",
        "signatures",
    ] {
        let out = run(&format!("[{section}]\nqqqqqqqqqqqqqqqq = 1\n"), &["check"], &[]);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        let known = text
            .lines()
            .next()
            .unwrap()
            .split("known here: ")
            .nth(1)
            .unwrap_or_else(|| panic!("{text}"));
        let known: BTreeSet<String> = known.split(", ").map(|k| format!("{section}.{k}")).collect();
        let ours = documented
            .iter()
            .filter(|k| k.starts_with(&format!("{section}.")))
            .cloned()
            .collect();
        assert_eq!(known, ours, "[{section}]");
    }
    // The defaults are accepted, and are the same as leaving the key out (pinned in the unit tests of `config`).
    let with_default = rows.iter().filter(|row| row[1] != "none");
    let manifest: String = with_default.fold(String::new(), |mut text, row| {
        let (section, key) = row[0].split_once('.').unwrap();
        let heading = format!("[{section}]\n");
        if !text.contains(&heading) {
            text.push_str(&heading);
        }
        text + &format!("{key} = {}\n", row[1])
    });
    let out = run(&manifest, &["check"], &[]);
    assert!(
        out.status.success(),
        "{manifest}{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

#[test]
fn manifest_of_the_readme_is_good_but_for_its_missing_component() {
    let toml = blocks(&read("README.md"), "toml").join("\n");
    let out = run(&toml, &["check"], &[]);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(text.contains("hello.wasm: there is no such file"), "{text}");
    assert!(text.contains("1 plugin, 2 routes, 1 fault"), "{text}");
}

/// Every code that `respond` can give is in the README, with its status.
#[test]
fn table_of_errors_has_every_code() {
    let rows = table(&read("README.md"), "| status | `code` |");
    let tests = read("host/berth-host/src/respond/tests.rs");
    // Each row of the pinned table ends in `status, "code"`, on one line or over several.
    let words: Vec<&str> = tests
        .split_whitespace()
        .map(|w| w.trim_end_matches(['(', ')', ',', ']', ';']))
        .collect();
    let pinned = words.windows(2).filter_map(|pair| {
        let code = pair[1].strip_prefix('"')?.strip_suffix('"')?;
        (pair[0].len() == 3 && pair[0].bytes().all(|b| b.is_ascii_digit())).then_some((pair[0], code))
    });
    let mut found = 0;
    for (status, code) in pinned {
        // One comes from a policy, one is never sent.
        if ["teapot", "client-gone"].contains(&code) {
            continue;
        }
        let row = rows
            .iter()
            .find(|r| r[0] == status)
            .unwrap_or_else(|| panic!("no row for {status}"));
        assert!(
            row[1].split(['`', ',', ' ']).any(|c| c == code),
            "{status} {code} is not in {row:?}"
        );
        found += 1;
    }
    assert!(found >= 25, "{found} codes were compared");
}

/// Every code that the bundled policy gives is in its table, with its status.
#[test]
fn table_of_the_policys_codes_has_every_code() {
    let rows = table(&read("README.md"), "| status | `code` of the policy | when |");
    let source = read("plugins/auth/src/refusal.rs");
    let words: Vec<&str> = source
        .split_whitespace()
        .map(|word| word.trim_end_matches(','))
        .collect();
    let given = words.windows(2).filter_map(|pair| {
        let status = pair[0].rsplit('(').next().unwrap();
        let code = pair[1].strip_prefix('"')?.strip_suffix('"')?;
        (status.len() == 3 && status.bytes().all(|b| b.is_ascii_digit())).then_some((status, code))
    });
    let mut given: Vec<(&str, &str)> = given.collect();
    given.extend([("400", "invalid-email"), ("400", "invalid-request")]);
    assert!(given.len() >= 12, "{given:?}");
    for (status, code) in given {
        let found = rows
            .iter()
            .any(|row| row[0] == status && row[1].split(['`', ',', ' ']).any(|c| c == code));
        assert!(found, "{status} {code}");
    }
}

/// The tests and benchmarks of accounts that the reference has: `auth_service_test`, then `handlers_test`.
const REFERENCE: [&str; 28] = [
    "TestCreateUser",
    "TestCreateUserDuplicate",
    "TestAuthenticateUser",
    "TestAuthenticateUserWrongPassword",
    "TestAuthenticateUserNotFound",
    "TestGetUser",
    "TestGetUserNotFound",
    "TestGenerateToken",
    "TestVerifyToken",
    "TestVerifyTokenInvalid",
    "TestVerifyTokenWrongSecret",
    "TestEndToEndAuthFlow",
    "TestGetUserByEmail",
    "TestGetUserByEmailNotFound",
    "TestSignupSuccess",
    "TestSignupDuplicateEmail",
    "TestSignupInvalidEmail",
    "TestSignupWeakPassword",
    "TestLoginSuccess",
    "TestLoginInvalidEmail",
    "TestLoginWrongPassword",
    "TestMeHandlerAuthenticated",
    "TestMeHandlerNoAuth",
    "TestMeHandlerInvalidToken",
    "BenchmarkSignup",
    "BenchmarkLogin",
    "BenchmarkGenerateToken",
    "BenchmarkVerifyToken",
];

/// The counterpart of `TestCreateUser` is `test_create_user`, and it is there.
#[test]
fn every_test_of_the_references_accounts_has_its_counterpart() {
    let rows = table(&read("tests/README.md"), "| test of the reference | shown by |");
    let named: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(named, REFERENCE);
    let source = read("tests/tests/it/store_parity.rs");
    for row in &rows {
        let mut snake = String::new();
        for letter in row[0].chars() {
            if letter.is_ascii_uppercase() && !snake.is_empty() {
                snake.push('_');
            }
            snake.push(letter.to_ascii_lowercase());
        }
        assert_eq!(row[1], format!("store_parity::{snake}"));
        assert!(source.contains(&format!("#[test]\nfn {snake}()")), "{snake}");
    }
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    for document in [
        "README.md",
        "plugins/README.md",
        "host/berth-host/README.md",
        "host/berth-host/benches/README.md",
    ] {
        let text = read(document);
        let folder = Path::new(document).parent().unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !target.starts_with("http") {
                let path = root().join(folder).join(target.split('#').next().unwrap());
                assert!(path.exists(), "{document} links to {target}");
            }
        }
    }
}

/// The author's way of `plugins/README.md`, step by step, in an empty folder.
#[test]
fn plugin_authors_get_from_nothing_to_a_running_handler() {
    let text = read("plugins/README.md");
    let steps = commands(&text);
    let expected = [
        "rustup target add wasm32-wasip2",
        "cargo new --lib greeter",
        "cd greeter",
        "cargo add wstd@0.6",
        "cargo build --release --target wasm32-wasip2",
        "berth check target/wasm32-wasip2/release/greeter.wasm",
        "berth check",
        "berth up",
        "sed -i 's/You asked for/You want/' src/lib.rs",
        "cargo build --release --target wasm32-wasip2",
        "cp -r ../berth/wit/host wit",
        "cargo add wit-bindgen@0.63 --no-default-features --features macros,realloc",
        "cargo build --release --target wasm32-wasip2",
        "berth up",
    ];
    assert_eq!(steps, expected);
    let (text, with_postgres) = text.split_at(text.find("## Using Postgres").unwrap());
    let folder = TempDir::new().unwrap();
    let crate_folder = folder.path().join("greeter");
    // The target folder is shared between runs of this test, so that wstd is compiled once; the documents' own path to
    // the component leads there.
    let target = root().join("target/guests-docs");
    let shell = |step: &str, place: &Path| {
        let out = Command::new("sh")
            .args(["-c", step])
            .current_dir(place)
            .env("CARGO_TARGET_DIR", &target)
            .output();
        let out = out.unwrap();
        assert!(
            out.status.success(),
            "{step}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    };
    for step in &steps[..2] {
        shell(step, folder.path());
    }
    shell(&steps[3], &crate_folder);
    let part = |text: &str, language: &str, first: &str| -> String {
        let found = blocks(text, language)
            .into_iter()
            .find(|b| b.lines().next().is_some_and(|l| l.starts_with(first)));
        found.unwrap_or_else(|| panic!("a {language} block that begins with {first}")) + "\n"
    };
    let write_parts = |text: &str| {
        let lib = part(text, "rust", "// src/lib.rs");
        std::fs::write(crate_folder.join("src/lib.rs"), lib).unwrap();
        std::fs::write(
            crate_folder.join("berth.toml"),
            part(text, "toml", "# berth.toml"),
        )
        .unwrap();
    };
    let cargo_toml = crate_folder.join("Cargo.toml");
    let with_lib = std::fs::read_to_string(&cargo_toml).unwrap() + "\n" + &part(text, "toml", "# Cargo.toml");
    std::fs::write(&cargo_toml, with_lib).unwrap();
    write_parts(text);
    shell(&steps[4], &crate_folder);
    std::os::unix::fs::symlink(&target, crate_folder.join("target")).unwrap();

    let berth = program("BERTH_BIN", "target/debug/berth");
    for check in &steps[5..7] {
        let out = command()
            .args(check.split(' ').skip(1))
            .current_dir(&crate_folder)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{check}: {}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    assert!(berth.ends_with("berth"));
    let (before, after) = text.split_at(text.find("## Save and see").unwrap());
    let (running, address) = start(command().arg("up").current_dir(&crate_folder));
    assert_eq!(curls_answer(before, address), 1);
    for step in &steps[8..10] {
        shell(step, &crate_folder);
    }
    eventually("the new version serves", || {
        wire::get(address, "/greet/me").text().starts_with("You want")
    });
    assert_eq!(curls_answer(after, address), 1);
    drop(running);

    // And on with Postgres.
    std::os::unix::fs::symlink(root(), folder.path().join("berth")).unwrap();
    for step in &steps[10..12] {
        shell(step, &crate_folder);
    }
    write_parts(with_postgres);
    shell(&steps[12], &crate_folder);
    let store = Store::new();
    let mut up = command();
    up.arg("up").current_dir(&crate_folder).envs(store.environment());
    let (_up, address) = start(&mut up);
    assert_eq!(curls_answer(with_postgres, address), 2);
}

#[test]
fn tests_that_the_table_of_tokens_and_passwords_names_exist() {
    let rows = table(&read("tests/README.md"), "| case | what goes wrong | shown by |");
    assert_eq!(rows.len(), 13);
    for name in rows.iter().flat_map(|row| row[2].split([',', ' ', '`'])) {
        let Some((module, test)) = name.split_once("::") else {
            continue;
        };
        let file = match module.strip_prefix("src/") {
            Some(own) => format!("host/berth-host/src/{own}.rs"),
            None => format!("tests/tests/it/{module}.rs"),
        };
        assert!(read(&file).contains(&format!("fn {test}()")), "{name}");
    }
}

#[test]
fn tests_that_the_table_of_faults_names_exist() {
    let rows = table(
        &read("tests/README.md"),
        "| what went wrong elsewhere | reported in | shown by |",
    );
    assert!(rows.len() >= 20);
    for row in rows {
        let line = &row[2];
        let names: Vec<&str> = line
            .split([',', ' ', '`'])
            .filter(|part| part.contains("::"))
            .collect();
        assert!(!names.is_empty(), "{row:?}");
        for name in names {
            let (module, test) = name.split_once("::").unwrap();
            let source = read(&format!("tests/tests/it/{module}.rs"));
            assert!(source.contains(&format!("fn {test}()")), "{name}");
        }
    }
}
