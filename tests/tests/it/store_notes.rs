//! The example plugin `notes`: a handler that reads its caller and uses `sql`.

use berth_tests::berth::{Berth, Manifest};
use berth_tests::guest;
use berth_tests::store::Store;
use berth_tests::wire::{Response, request_as};
use serde_json::json;

use crate::callers::{key_file, now, token_until};

const ADA: &str = "0190a6f0-0000-7000-8000-00000000000a";
const BOB: &str = "0190a6f0-0000-7000-8000-00000000000b";

fn ask(berth: &Berth, user: &str, method: &str, path: &str, body: &str) -> Response {
    let token = token_until(user, now() + 60);
    let forged = [("berth-user-id", ADA)];
    request_as(berth.address, &token, method, path, &forged, body.as_bytes())
}

#[test]
fn notes_of_each_user_are_their_own() {
    let (store, key) = (Store::new(), key_file());
    let component = guest("notes");
    let manifest = Manifest::new().auth("fixtures/auth-static").raw(&format!(
        "[plugins.notes]\ncomponent = {component:?}\ngrants = {{ sql = [\"notes\"] }}\n\
         [[routes]]\npath = \"/notes/*\"\nplugin = \"notes\"\naccess = \"user\"\n"
    ));
    let path = key.path().display().to_string();
    let berth = store.start_with(&manifest, &[("BERTH_TOKENS_HS256_KEY_FILE", &path)]);

    assert_eq!(berth.get("/notes/").status, 401);
    assert_eq!(
        ask(&berth, ADA, "GET", "/notes/", "").json(),
        json!({"notes": []})
    );
    let note = ask(
        &berth,
        ADA,
        "POST",
        "/notes/",
        r#"{"text": "buy 漢字 '; drop table notes; --"}"#,
    );
    assert_eq!(note.status, 200, "{}", note.text());
    let note = note.json();
    assert_eq!(note["text"], "buy 漢字 '; drop table notes; --");
    assert!(
        note["createdAt"]
            .as_u64()
            .is_some_and(|at| at.abs_diff(now() * 1000) < 120_000),
        "{note}"
    );
    // Bob sends a header of Ada's, which he can't.
    assert_eq!(
        ask(&berth, BOB, "GET", "/notes/", "").json(),
        json!({"notes": []})
    );
    let path = format!("/notes/{}", note["id"]);
    assert_eq!(ask(&berth, BOB, "DELETE", &path, "").status, 404);
    assert_eq!(
        ask(&berth, ADA, "GET", "/notes/", "").json(),
        json!({"notes": [note]})
    );
    assert_eq!(ask(&berth, ADA, "POST", "/notes/", r#"{"text": ""}"#).status, 400);
    assert_eq!(ask(&berth, ADA, "POST", "/notes/", "{}").status, 400);
    assert_eq!(ask(&berth, ADA, "DELETE", &path, "").json(), note);
    assert_eq!(ask(&berth, ADA, "DELETE", &path, "").status, 404);
    assert_eq!(
        store.one::<i64>("select count(*) from pg_tables where schemaname = 'notes'"),
        1
    );
}
