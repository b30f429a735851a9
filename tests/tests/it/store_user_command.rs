//! `berth user`: the accounts of a running host from its command line.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use berth_tests::berth::{Berth, Manifest, run};
use berth_tests::store::Store;

use crate::store_admin::{id, start};

/// `berth user …` for a running host.
fn user(store: &Store, berth: &Berth, arguments: &[&str]) -> Output {
    let mut all = vec!["user"];
    all.extend(arguments);
    let (data, admin) = (store.data().display().to_string(), berth.admin.to_string());
    let environment = [
        ("BERTH_DATA_DIR", data.as_str()),
        ("BERTH_ADMIN_LISTEN", admin.as_str()),
    ];
    run(Manifest::new().text(), &all, &environment)
}

fn said(store: &Store, berth: &Berth, arguments: &[&str]) -> String {
    let out = user(store, berth, arguments);
    assert!(
        out.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

fn complained(store: &Store, berth: &Berth, arguments: &[&str], code: i32) -> String {
    let out = user(store, berth, arguments);
    assert_eq!(
        (out.status.code(), out.stdout.len()),
        (Some(code), 0),
        "{arguments:?}"
    );
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn accounts_are_listed_for_people_and_for_programs() {
    let names: Vec<String> = (0..230).map(|n| format!("u{n}@example.com")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (store, berth) = start(&names);
    let text = said(&store, &berth, &["list", "--email", "u22@"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].starts_with("ID ") && lines[0].ends_with("ROLES"),
        "{text}"
    );
    assert!(
        lines[1].starts_with(&id(23)) && lines[1].contains("  u22@example.com  active  "),
        "{text}"
    );
    // Over more than one page of the API.
    assert_eq!(
        said(&store, &berth, &["list", "--limit", "1000"]).lines().count(),
        231
    );
    let out = user(&store, &berth, &["list", "--limit", "205"]);
    assert_eq!(String::from_utf8_lossy(&out.stdout).lines().count(), 206);
    assert!(String::from_utf8_lossy(&out.stderr).contains("there are more"));
    let json: serde_json::Value =
        serde_json::from_str(&said(&store, &berth, &["list", "--json", "--limit", "3"])).unwrap();
    assert_eq!(json["users"].as_array().unwrap().len(), 3);
    assert_eq!(json["users"][0]["email"], "u229@example.com");
}

#[test]
fn account_is_shown_changed_and_deleted() {
    let (store, berth) = start(&["ada@example.com"]);
    let shown = said(&store, &berth, &["show", "Ada@Example.com"]);
    assert!(shown.contains(&format!("id        {}\n", id(1))), "{shown}");
    assert!(
        shown.contains("state     active\n") && shown.contains("sessions  0\n"),
        "{shown}"
    );
    let roles = said(
        &store,
        &berth,
        &[
            "role",
            "ada@example.com",
            "--add",
            "admin",
            "--add",
            "ops",
            "--remove",
            "x",
        ],
    );
    assert!(roles.contains("roles     admin, ops\n"), "{roles}");
    let json: serde_json::Value = serde_json::from_str(&said(
        &store,
        &berth,
        &["role", &id(1), "--remove", "ops", "--json"],
    ))
    .unwrap();
    assert_eq!(json["roles"].to_string(), r#"["admin"]"#);
    assert!(said(&store, &berth, &["deactivate", "ada@example.com"]).contains("state     deactivated\n"));
    assert!(!store.one::<bool>("select active from identity.users"));
    assert!(said(&store, &berth, &["activate", "ada@example.com"]).contains("state     active\n"));
    let asked = complained(&store, &berth, &["delete", "ada@example.com"], 1);
    assert!(asked.contains("add --yes"), "{asked}");
    assert_eq!(store.one::<i64>("select count(*) from identity.users"), 1);
    let deleted = said(&store, &berth, &["delete", "ada@example.com", "--yes"]);
    assert_eq!(deleted, format!("deleted ada@example.com ({})\n", id(1)));
    assert_eq!(store.one::<i64>("select count(*) from identity.users"), 0);
    // Its record stays, and is found by the address and by the id.
    let actions = |arguments: &[&str]| -> Vec<String> {
        let text = said(&store, &berth, arguments);
        assert!(text.starts_with("TIME "), "{text}");
        text.lines()
            .skip(1)
            .map(|line| line.split_whitespace().nth(1).unwrap().to_owned())
            .collect()
    };
    let expected = ["delete", "activate", "deactivate", "roles", "roles"];
    berth_tests::berth::eventually("the record is written", || {
        actions(&["audit", "ADA@example.com"]) == expected
    });
    assert_eq!(actions(&["audit", &id(1)]), expected);
    assert_eq!(actions(&["audit", "--limit", "2"]), expected[..2]);
    assert!(actions(&["audit", "bob@example.com"]).is_empty());
    let json: serde_json::Value = serde_json::from_str(&said(&store, &berth, &["audit", "--json"])).unwrap();
    let last = &json["entries"][4];
    assert_eq!(
        (last["actor"].as_str(), last["detail"].as_str()),
        (Some("operator"), Some("+admin +ops -x"))
    );
}

#[test]
fn what_is_in_the_way_is_said_in_a_sentence() {
    let (store, mut berth) = start(&[]);
    let missing = complained(&store, &berth, &["show", "nobody@example.com"], 1);
    assert!(
        missing.contains("there is no account \"nobody@example.com\"; `berth user list`"),
        "{missing}"
    );
    let role = complained(&store, &berth, &["role", "x", "--add", "two words"], 64);
    assert!(role.contains("\"two words\" is no role"), "{role}");
    // Neither --add nor --remove.
    assert_eq!(user(&store, &berth, &["role", "x"]).status.code(), Some(2));
    let token = store.data().join("admin.token");
    let text = std::fs::read_to_string(&token).unwrap();
    std::fs::write(&token, "another\n").unwrap();
    let refused = complained(&store, &berth, &["list"], 1);
    assert!(
        refused.contains("doesn't take the token of") && !refused.contains("another\n"),
        "{refused}"
    );
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(complained(&store, &berth, &["list"], 1).contains("others may read this file (mode 644)"));
    std::fs::remove_file(&token).unwrap();
    let none = complained(&store, &berth, &["list"], 1);
    assert!(
        none.contains("there is no such file") && none.contains("data.dir"),
        "{none}"
    );
    std::fs::write(&token, text).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    said(&store, &berth, &["list"]);
    berth.signal("TERM");
    assert!(berth.wait().success());
    let gone = complained(&store, &berth, &["list"], 1);
    assert!(gone.contains("no host answers at 127.0.0.1:"), "{gone}");
    let off = run("[admin]\nlisten = \"off\"\n", &["user", "list"], &[]);
    let off = String::from_utf8_lossy(&off.stderr).into_owned();
    assert!(off.contains("`admin.listen` is \"off\""), "{off}");
    let faulty = run("[admin]\nlisten = 7\n", &["user", "list"], &[]);
    assert_eq!(faulty.status.code(), Some(64));
    let help = run("", &["user", "--help"], &[]);
    assert!(String::from_utf8_lossy(&help.stdout).contains("berth user deactivate ada@example.com"));
}

/// Something else may answer where a host is expected.
#[test]
fn what_answers_instead_of_a_host_neither_writes_to_the_terminal_nor_holds_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("admin.token");
    std::fs::write(&token, "x").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let answer = |status: &'static str, body: &'static str| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let head = BufReader::new(stream.try_clone().unwrap()).lines();
                head.map_while(Result::ok)
                    .take_while(|line| !line.is_empty())
                    .for_each(drop);
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let data = folder.path().display().to_string();
        let environment = [
            ("BERTH_DATA_DIR", data.as_str()),
            ("BERTH_ADMIN_LISTEN", admin.as_str()),
        ];
        run(Manifest::new().text(), &["user", "list"], &environment)
    };
    let refused = answer(
        "400 Bad Request",
        r#"{"code":"x","detail":"go \u001b[2J\u009b2J away"}"#,
    );
    assert_eq!(
        String::from_utf8(refused.stderr).unwrap(),
        "berth: go [2J2J away\n"
    );
    // Page after page, with nobody on any of them.
    let endless = answer("200 OK", r#"{"users":[],"next":"more"}"#);
    assert!(
        endless.status.success(),
        "{}",
        String::from_utf8_lossy(&endless.stderr)
    );
}
