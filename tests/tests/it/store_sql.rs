//! `berth:host/sql`: what a plugin can do with it, and what is left when something goes wrong.

use berth_tests::berth::{Berth, Manifest};
use berth_tests::store::Store;
use serde_json::{Value as Json, json};

const FIXTURE: &str = "fixtures/sql";
const GRANT: &str = "grants = { sql = [\"notes\"] }\nlimits = { cpu = \"5s\" }";

fn manifest() -> Manifest {
    Manifest::new().handler_with(FIXTURE, GRANT)
}

/// What came of each step.
fn steps(berth: &Berth, steps: Json) -> Vec<Json> {
    let answer = berth.post("/sql/", &steps.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let outcomes: Json = serde_json::from_str(&answer.text()).expect("JSON");
    outcomes.as_array().expect("an array").clone()
}

#[test]
fn statements_run_in_the_plugins_schema() {
    let store = Store::new();
    let berth = store.start(&manifest());
    let done = steps(
        &berth,
        json!([
            {"do": "execute", "sql": "create table t (id bigint primary key, text text)"},
            {"do": "execute", "sql": "insert into t values ($1, $2), (2, null)", "with": [{"int64": 1}, {"text": "one"}]},
            {"do": "query", "sql": "select * from t order by id"},
            {"do": "query", "sql": "select * from t where false"},
            {"do": "execute", "sql": "insert into t values (1, 'again')"},
            {"do": "query", "sql": "select count(*) from notes.t;"},
        ]),
    );
    assert_eq!(
        done,
        [
            json!({"touched": 0}),
            json!({"touched": 2}),
            json!({"columns": [["id", "int8"], ["text", "text"]],
                "rows": [[{"int64": 1}, {"text": "one"}], [{"int64": 2}, null]]}),
            json!({"columns": [["id", "int8"], ["text", "text"]], "rows": []}),
            json!({"error": "database", "what": {"code": "23505", "constraint": "t_pkey",
                "message": "duplicate key value violates unique constraint \"t_pkey\""}}),
            json!({"columns": [["count", "int8"]], "rows": [[{"int64": 2}]]}),
        ]
    );
    assert_eq!(
        store.one::<i64>("select count(*) from pg_tables where schemaname = 'notes'"),
        1
    );
}
