use proptest::prelude::*;

use super::*;
use crate::caps::bindings::berth::host::sql::Other;

fn again(value: Value) -> Option<Value> {
    let parameter = Parameter::new(value).unwrap();
    match &parameter.bytes {
        Some(bytes) => decode(parameter.oid, bytes),
        None => Some(Value::Null),
    }
}

fn same(value: Value) {
    // NaN is not equal to itself; its text is.
    assert_eq!(
        format!("{:?}", again(value.clone())),
        format!("{:?}", Some(value))
    );
}

fn at(seconds: i64, microseconds: u32) -> Timestamp {
    Timestamp::At(Instant {
        seconds,
        microseconds,
    })
}

#[test]
fn every_case_comes_back() {
    let text = |s: &str| s.to_owned();
    for value in [
        Value::Null,
        Value::Boolean(true),
        Value::Int64(i64::MIN),
        Value::Float64(f64::NAN),
        Value::Float64(f64::NEG_INFINITY),
        Value::Float64(-0.0),
        Value::Text(text("a\u{7f}é漢\u{1f600}\u{10ffff}")),
        Value::Text(String::new()),
        Value::Bytes(vec![]),
        Value::Bytes(vec![0, 255]),
        Value::Numeric(text("-0.0100")),
        Value::Timestamp(Timestamp::BeforeAll),
        Value::Timestamp(Timestamp::AfterAll),
        Value::Timestamp(at(0, 0)),
        Value::LocalTimestamp(at(-1, 999_999)),
        Value::Date(Date::On(0)),
        Value::Date(Date::On(-2_440_588)),
        Value::Date(Date::BeforeAll),
        Value::Date(Date::AfterAll),
        Value::Uuid(text("00112233-4455-6677-8899-aabbccddeeff")),
        Value::Json(text("{\"a\": [1, null]}")),
        Value::BooleanArray(vec![]),
        Value::BooleanArray(vec![Some(false), None]),
        Value::Int64Array(vec![None, Some(1)]),
        Value::Float64Array(vec![Some(f64::INFINITY), None]),
        Value::TextArray(vec![Some(text("")), None, Some(text("x"))]),
        Value::BytesArray(vec![Some(vec![]), None]),
        Value::NumericArray(vec![Some(text("NaN")), None]),
        Value::TimestampArray(vec![Some(at(1, 1)), None]),
        Value::DateArray(vec![Some(Date::On(1)), None]),
        Value::UuidArray(vec![Some(text("00112233-4455-6677-8899-aabbccddeeff")), None]),
        Value::JsonArray(vec![Some(text("null")), None]),
    ] {
        same(value);
    }
}

#[test]
fn smaller_numbers_are_widened() {
    assert!(matches!(decode(oid::INT2, &[0xff, 0xfe]), Some(Value::Int64(-2))));
    assert!(matches!(decode(oid::INT4, &[0xff; 4]), Some(Value::Int64(-1))));
    let float = decode(oid::FLOAT4, &0.1f32.to_be_bytes());
    assert!(matches!(float, Some(Value::Float64(v)) if v == f64::from(0.1f32)));
}

#[test]
fn what_postgres_cannot_have_is_refused_in_words() {
    for (value, wanted) in [
        (Value::Text("a\0b".to_owned()), "NUL character"),
        (Value::TextArray(vec![Some("\0".to_owned())]), "NUL character"),
        (Value::Json("\0".to_owned()), "NUL character"),
        (Value::Numeric("one".to_owned()), "\"one\" is no numeric"),
        (Value::Uuid("xyz".to_owned()), "is no UUID"),
        (Value::Timestamp(at(0, 1_000_000)), "more than a second"),
        (
            Value::Timestamp(at(i64::MAX, 0)),
            "further away than any timestamp",
        ),
        (Value::Date(Date::On(i32::MIN)), "further away than any date"),
        (
            Value::Other(Other {
                type_name: "inet".to_owned(),
                bytes: vec![],
            }),
            "`$1::text::inet`",
        ),
    ] {
        let error = Parameter::new(value).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn uuids_are_taken_in_every_form() {
    for given in [
        "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
        "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
        "a0eebc999c0b4ef8bb6d6bb9bd380a11",
        "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
    ] {
        let value = again(Value::Uuid(given.to_owned()));
        assert!(
            matches!(&value, Some(Value::Uuid(v)) if v == "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
            "{value:?}"
        );
    }
}

proptest! {
    #[test]
    fn any_timestamp_comes_back(seconds in -210_866_803_200i64..=9_224_318_015_999, microseconds in 0u32..1_000_000) {
        same(Value::Timestamp(at(seconds, microseconds)));
    }

    #[test]
    fn any_bytes_are_decoded_or_not(kind in prop::sample::select(vec![
        oid::BOOL, oid::INT8, oid::NUMERIC, oid::TIMESTAMP, oid::DATE, oid::UUID, oid::JSONB, oid::TEXT_ARRAY,
        oid::NUMERIC_ARRAY, oid::INT4_ARRAY,
    ]), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode(kind, &bytes);
    }

    #[test]
    fn any_array_of_texts_comes_back(values in prop::collection::vec(prop::option::of("[^\\x00]{0,8}"), 0..20)) {
        same(Value::TextArray(values));
    }
}
