//! Every type, both ways (CASES, hosting 23).

use berth_tests::berth::Berth;
use berth_tests::store::Store;
use serde_json::{Value as Json, json};

use crate::store_sql::{fixture, one, rows, steps};

/// Send a value as a parameter, and get it back.
#[track_caller]
fn echo(berth: &Berth, cast: &str, given: &Json) -> Json {
    let step = json!({"do": "query", "sql": format!("select $1{cast}"), "with": [given]});
    let answer = steps(berth, &json!([step])).remove(0);
    assert!(answer["rows"].is_array(), "{given}: {answer}");
    answer["rows"][0][0].clone()
}

#[test]
fn hosting_23_every_value_comes_back() {
    let store = Store::new();
    let berth = store.start(&fixture("\"notes\"", ""));
    let planes: String =
        "a\u{7f}\u{80}é漢\u{ffff}\u{10000}\u{1f600}\u{2fffe}\u{e0001}\u{fffff}\u{10ffff}".to_owned();
    let digits = format!("-{}.{}", "1234567890".repeat(60), "0123456789".repeat(40));
    for value in [
        json!(null),
        json!({"boolean": true}),
        json!({"boolean": false}),
        json!({"int64": i64::MAX}),
        json!({"int64": i64::MIN}),
        json!({"int64": 9_007_199_254_740_993_i64}),
        json!({"float64": "NaN"}),
        json!({"float64": "inf"}),
        json!({"float64": "-inf"}),
        json!({"float64": "-0.0"}),
        json!({"float64": "5e-324"}),
        json!({"float64": "1.7976931348623157e308"}),
        json!({"text": planes}),
        json!({"text": ""}),
        json!({"bytes": ""}),
        json!({"bytes": "00ff00"}),
        json!({"numeric": digits}),
        json!({"numeric": "99999999999999999999999999999999999999"}),
        json!({"numeric": "1.500"}),
        json!({"numeric": "NaN"}),
        json!({"numeric": "Infinity"}),
        json!({"numeric": "-Infinity"}),
        json!({"timestamp": "before-all"}),
        json!({"timestamp": "after-all"}),
        json!({"timestamp": [-210_866_803_200_i64, 0]}),
        json!({"timestamp": [9_224_318_015_999_i64, 999_999]}),
        json!({"timestamp": [-1, 1]}),
        json!({"local-timestamp": [0, 0]}),
        json!({"date": "before-all"}),
        json!({"date": "after-all"}),
        json!({"date": -2_440_588}),
        json!({"date": 2_145_042_540}),
        json!({"uuid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}),
        json!({"json": "{\"a\": [1, 2.50, null, \"\\u00e9\"]}"}),
        json!({"boolean-array": []}),
        json!({"boolean-array": [true, null]}),
        json!({"int64-array": [null, 9_007_199_254_740_993_i64]}),
        json!({"float64-array": ["NaN", null, "-inf"]}),
        json!({"text-array": ["", null, "NULL", "\"{},\\"]}),
        json!({"bytes-array": ["", null, "00"]}),
        json!({"numeric-array": ["1.0", null, "NaN"]}),
        json!({"timestamp-array": [[0, 1], null, "after-all"]}),
        json!({"date-array": [0, null, "before-all"]}),
        json!({"uuid-array": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", null]}),
        json!({"json-array": ["null", null, "{}"]}),
    ] {
        let wanted = match &value["json"] {
            Json::Null => value.clone(),
            // jsonb keeps the value, not its spelling.
            _ => json!({"json": "{\"a\": [1, 2.50, null, \"é\"]}"}),
        };
        assert_eq!(echo(&berth, "", &value), wanted);
    }
}

#[test]
fn hosting_23_columns_arrive_as_what_they_are() {
    let store = Store::new();
    let berth = store.start(&fixture("\"notes\"", ""));
    store.run("create extension if not exists citext with schema public");
    for statement in [
        "create type mood as enum ('sad', 'ok')",
        "create domain age as int check (value >= 0)",
        "create type pair as (a int, b text)",
    ] {
        rows(&berth, statement);
    }
    for (column, name, wanted) in [
        ("1::int2", "int2", json!({"int64": 1})),
        (
            "(-2147483648)::int4",
            "int4",
            json!({"int64": -2_147_483_648_i64}),
        ),
        ("0.1::float4", "float4", json!({"float64": "0.10000000149011612"})),
        ("'a'::char(3)", "bpchar", json!({"text": "a  "})),
        ("'a'::varchar", "varchar", json!({"text": "a"})),
        ("'a'::name", "name", json!({"text": "a"})),
        ("'a'", "text", json!({"text": "a"})),
        ("null::inet", "inet", json!(null)),
        (
            "'2020-01-01 05:00+05:30'::timestamptz",
            "timestamptz",
            json!({"timestamp": [1_577_835_000, 0]}),
        ),
        (
            "'2020-01-01 05:00'::timestamp",
            "timestamp",
            json!({"local-timestamp": [1_577_854_800, 0]}),
        ),
        ("'1.10'::json", "json", json!({"json": "1.10"})),
        ("7::age", "int4", json!({"int64": 7})),
        ("'{1,null}'::int2[]", "int2[]", json!({"int64-array": [1, null]})),
        (
            "'{a,null}'::varchar[]",
            "varchar[]",
            json!({"text-array": ["a", null]}),
        ),
        (
            "'sad'::mood",
            "notes.mood",
            json!({"other": {"type-name": "notes.mood", "bytes": "736164"}}),
        ),
        (
            "'Ab'::public.citext",
            "public.citext",
            json!({"other": {"type-name": "public.citext", "bytes": "4162"}}),
        ),
        (
            "'1.2.3.4'::inet",
            "inet",
            json!({"other": {"type-name": "inet", "bytes": "0220000401020304"}}),
        ),
        (
            "'[1,2)'::int4range",
            "int4range",
            json!({"other": {"type-name": "int4range", "bytes": "02000000040000000100000004".to_owned() + "00000002"}}),
        ),
        ("'{{1,2},{3,4}}'::int4[]", "int4[]", json!(null)),
        ("row(1, 'x')::pair", "notes.pair", json!(null)),
        ("array['ok'::mood]", "notes.mood[]", json!(null)),
        ("interval '1 day'", "interval", json!(null)),
        ("'01:02'::time", "time", json!(null)),
    ] {
        let answer = one(&berth, &format!("select {column} as c, 1 as one"));
        assert_eq!(
            answer["columns"],
            json!([["c", name], ["one", "int4"]]),
            "{column}: {answer}"
        );
        let row = &answer["rows"][0];
        assert_eq!(row[1], json!({"int64": 1}), "{column}");
        if wanted.is_null() && !column.starts_with("null") {
            assert_eq!(row[0]["other"]["type-name"], name, "{column}: {answer}");
        } else {
            assert_eq!(row[0], wanted, "{column}");
        }
    }
    // Within a transaction that has just made the type.
    let done = steps(
        &berth,
        &json!([{"do": "begin"},
            {"do": "execute", "in": 0, "sql": "create type size as enum ('s')"},
            {"do": "query", "in": 0, "sql": "select 's'::size"},
            {"do": "commit", "in": 0}]),
    );
    assert_eq!(
        done[2]["rows"],
        json!([[{"other": {"type-name": "notes.size", "bytes": "73"}}]]),
        "{done:?}"
    );
    // The driver doesn't know multiranges; that is said, and nothing is broken.
    let answer = one(&berth, "select '{[1,2)}'::int4multirange");
    assert_eq!(answer["error"], "invalid", "{answer}");
    assert_eq!(
        rows(&berth, "select '{[1,2)}'::int4multirange::text"),
        json!([[{"text": "{[1,2)}"}]])
    );
}

/// Parameters go where Postgres casts them to.
#[test]
fn parameters_fit_other_types_by_a_cast() {
    let store = Store::new();
    let berth = store.start(&fixture("\"notes\"", ""));
    rows(
        &berth,
        "create table t (a int2, b float4, c inet, d numeric(5,2), e date, f varchar(3), g json, h timestamp)",
    );
    let done = steps(
        &berth,
        &json!([
            {"do": "execute", "sql": "insert into t values ($1, $2, $3::text::inet, $4, $5, $6, $7::jsonb::json, $8)",
                "with": [{"int64": 1}, {"float64": "1.5"}, {"text": "10.0.0.1"}, {"numeric": "1.005"}, {"date": 1},
                    {"text": "abc"}, {"json": "1"}, {"local-timestamp": [1, 0]}]},
            {"do": "execute", "sql": "insert into t (a, c) values ($1, $2)", "with": [null, null]},
            {"do": "execute", "sql": "insert into t (a) values ($1)", "with": [{"int64": 40_000}]},
            {"do": "query", "sql": "select a, b, host(c), d, e, f, g, h from t where a = 1"},
        ]),
    );
    assert_eq!(done[0], json!({"touched": 1}), "{done:?}");
    assert_eq!(done[1], json!({"touched": 1}), "{done:?}");
    assert_eq!(done[2]["what"]["code"], "22003");
    assert_eq!(
        done[3]["rows"],
        json!([[{"int64": 1}, {"float64": "1.5"}, {"text": "10.0.0.1"}, {"numeric": "1.01"}, {"date": 1},
            {"text": "abc"}, {"json": "1"}, {"local-timestamp": [1, 0]}]])
    );
}

#[test]
fn what_can_not_be_sent_is_refused_before_it_is() {
    let store = Store::new();
    let berth = store.start(&fixture("\"notes\"", ""));
    let with = |value: Json| json!({"do": "query", "sql": "select $1", "with": [value]});
    let many: Vec<Json> = (0..1001).map(|_| json!(null)).collect();
    let long = format!("select 1 -- {}", "x".repeat(70_000));
    let done = steps(
        &berth,
        &json!([
            with(json!({"text": "a\u{0}b"})),
            with(json!({"numeric": "one"})),
            with(json!({"uuid": "x"})),
            with(json!({"other": {"type-name": "inet", "bytes": "00"}})),
            {"do": "query", "sql": "select 1 \u{0}"},
            {"do": "query", "sql": long},
            {"do": "query", "sql": "select 1", "with": many},
            with(json!({"json": "{"})),
            {"do": "query", "sql": "select $1", "with": []},
        ]),
    );
    for (step, wanted) in done.iter().zip([
        "$1: a text has a NUL character",
        "$1: \"one\" is no numeric",
        "$1: \"x\" is no UUID",
        "$1: a inet can't be sent as bytes",
        "the statement has a NUL character",
        "the statement has 70012 bytes",
        "there are 1001 parameters",
    ]) {
        let what = step["what"].as_str().unwrap_or_default();
        assert!(step["error"] == "invalid" && what.starts_with(wanted), "{step}");
    }
    assert_eq!(done[7]["what"]["code"], "22P02");
    assert_eq!(done[8]["error"], "database", "{}", done[8]);
}
