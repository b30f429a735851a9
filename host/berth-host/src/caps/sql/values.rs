//! Values between WIT and Postgres's binary form. Nothing is lost on the way; what WIT has no case for goes as bytes.
//!
//! The forms are those of the `…send` and `…recv` functions in Postgres's `src/backend/utils/adt`.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo};
use sqlx::{Encode, Postgres, Type};
use uuid::Uuid;

use super::numeric;
use crate::caps::bindings::berth::host::sql::{Date, Instant, Timestamp, Value};

/// The numbers of Postgres's own types (`pg_type.dat`), which never change.
pub(super) mod oid {
    macro_rules! types {
        ($($name:ident = $oid:literal, $array:ident = $array_oid:literal, $text:literal;)*) => {
            $(pub(crate) const $name: u32 = $oid; pub(crate) const $array: u32 = $array_oid;)*

            /// The name of a type, of those that have a case in WIT.
            pub(crate) fn name(oid: u32) -> Option<&'static str> {
                match oid {
                    $($name => Some($text), $array => Some(concat!($text, "[]")),)*
                    _ => None,
                }
            }
        };
    }
    types! {
        BOOL = 16, BOOL_ARRAY = 1000, "bool";
        BYTEA = 17, BYTEA_ARRAY = 1001, "bytea";
        NAME = 19, NAME_ARRAY = 1003, "name";
        INT8 = 20, INT8_ARRAY = 1016, "int8";
        INT2 = 21, INT2_ARRAY = 1005, "int2";
        INT4 = 23, INT4_ARRAY = 1007, "int4";
        TEXT = 25, TEXT_ARRAY = 1009, "text";
        JSON = 114, JSON_ARRAY = 199, "json";
        FLOAT4 = 700, FLOAT4_ARRAY = 1021, "float4";
        FLOAT8 = 701, FLOAT8_ARRAY = 1022, "float8";
        BPCHAR = 1042, BPCHAR_ARRAY = 1014, "bpchar";
        VARCHAR = 1043, VARCHAR_ARRAY = 1015, "varchar";
        DATE = 1082, DATE_ARRAY = 1182, "date";
        TIMESTAMP = 1114, TIMESTAMP_ARRAY = 1115, "timestamp";
        TIMESTAMPTZ = 1184, TIMESTAMPTZ_ARRAY = 1185, "timestamptz";
        NUMERIC = 1700, NUMERIC_ARRAY = 1231, "numeric";
        UUID = 2950, UUID_ARRAY = 2951, "uuid";
        JSONB = 3802, JSONB_ARRAY = 3807, "jsonb";
    }
}

/// From 1970-01-01 to 2000-01-01, where Postgres begins to count.
const DAYS: i32 = 10_957;
const SECONDS: i64 = DAYS as i64 * 86_400;
const MICROSECONDS: i64 = 1_000_000;
/// `jsonb` begins with the version of its binary form.
const JSONB_VERSION: u8 = 1;

/// The value of a column; nothing if it has no case of its own, or isn't what its type promises.
pub(super) fn decode(oid: u32, bytes: &[u8]) -> Option<Value> {
    Some(match oid {
        oid::BOOL => Value::Boolean(boolean(bytes)?),
        oid::INT2 | oid::INT4 | oid::INT8 => Value::Int64(integer(bytes)?),
        oid::FLOAT4 | oid::FLOAT8 => Value::Float64(float(bytes)?),
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME => Value::Text(text(bytes)?),
        oid::BYTEA => Value::Bytes(bytes.to_vec()),
        oid::NUMERIC => Value::Numeric(numeric::text(bytes)?),
        oid::TIMESTAMPTZ => Value::Timestamp(timestamp(bytes)?),
        oid::TIMESTAMP => Value::LocalTimestamp(timestamp(bytes)?),
        oid::DATE => Value::Date(date(bytes)?),
        oid::UUID => Value::Uuid(uuid(bytes)?),
        oid::JSON => Value::Json(text(bytes)?),
        oid::JSONB => Value::Json(jsonb(bytes)?),
        oid::BOOL_ARRAY => Value::BooleanArray(array(bytes, boolean)?),
        oid::INT2_ARRAY | oid::INT4_ARRAY | oid::INT8_ARRAY => Value::Int64Array(array(bytes, integer)?),
        oid::FLOAT4_ARRAY | oid::FLOAT8_ARRAY => Value::Float64Array(array(bytes, float)?),
        oid::TEXT_ARRAY | oid::VARCHAR_ARRAY | oid::BPCHAR_ARRAY | oid::NAME_ARRAY => {
            Value::TextArray(array(bytes, text)?)
        }
        oid::BYTEA_ARRAY => Value::BytesArray(array(bytes, |b| Some(b.to_vec()))?),
        oid::NUMERIC_ARRAY => Value::NumericArray(array(bytes, numeric::text)?),
        oid::TIMESTAMPTZ_ARRAY | oid::TIMESTAMP_ARRAY => Value::TimestampArray(array(bytes, timestamp)?),
        oid::DATE_ARRAY => Value::DateArray(array(bytes, date)?),
        oid::UUID_ARRAY => Value::UuidArray(array(bytes, uuid)?),
        oid::JSON_ARRAY => Value::JsonArray(array(bytes, text)?),
        oid::JSONB_ARRAY => Value::JsonArray(array(bytes, jsonb)?),
        _ => return None,
    })
}

/// How many bytes a value takes here, before it is decoded.
pub(super) fn size(oid: u32, bytes: &[u8]) -> usize {
    let numerics = match oid {
        oid::NUMERIC => numeric::length(bytes),
        oid::NUMERIC_ARRAY => array(bytes, |element| Some(numeric::length(element))).map_or(0, |lengths| {
            lengths.into_iter().flatten().fold(0, usize::saturating_add)
        }),
        _ => 0,
    };
    numerics.max(bytes.len())
}

fn boolean(bytes: &[u8]) -> Option<bool> {
    match bytes {
        [byte] => Some(*byte != 0),
        _ => None,
    }
}

fn integer(bytes: &[u8]) -> Option<i64> {
    Some(match *bytes {
        [a, b] => i16::from_be_bytes([a, b]).into(),
        [a, b, c, d] => i32::from_be_bytes([a, b, c, d]).into(),
        _ => i64::from_be_bytes(bytes.try_into().ok()?),
    })
}

fn float(bytes: &[u8]) -> Option<f64> {
    Some(match *bytes {
        [a, b, c, d] => f32::from_be_bytes([a, b, c, d]).into(),
        _ => f64::from_be_bytes(bytes.try_into().ok()?),
    })
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

fn jsonb(bytes: &[u8]) -> Option<String> {
    match bytes {
        [JSONB_VERSION, rest @ ..] => text(rest),
        _ => None,
    }
}

fn uuid(bytes: &[u8]) -> Option<String> {
    Some(Uuid::from_slice(bytes).ok()?.hyphenated().to_string())
}

fn timestamp(bytes: &[u8]) -> Option<Timestamp> {
    Some(match i64::from_be_bytes(bytes.try_into().ok()?) {
        i64::MIN => Timestamp::BeforeAll,
        i64::MAX => Timestamp::AfterAll,
        at => Timestamp::At(Instant {
            seconds: at.div_euclid(MICROSECONDS) + SECONDS,
            microseconds: u32::try_from(at.rem_euclid(MICROSECONDS)).ok()?,
        }),
    })
}

fn date(bytes: &[u8]) -> Option<Date> {
    Some(match i32::from_be_bytes(bytes.try_into().ok()?) {
        i32::MIN => Date::BeforeAll,
        i32::MAX => Date::AfterAll,
        day => Date::On(day.checked_add(DAYS)?),
    })
}

/// An array of one dimension, or an empty one. Where its indices begin is not kept.
fn array<T>(bytes: &[u8], element: impl Fn(&[u8]) -> Option<T>) -> Option<Vec<Option<T>>> {
    let (dimensions, rest) = word(bytes)?;
    // Whether there are NULLs, and the elements' type.
    let (_, rest) = word(rest)?;
    let (_, rest) = word(rest)?;
    if dimensions == 0 {
        return Some(Vec::new());
    }
    let (count, rest) = word(rest)?;
    let (_lower_bound, mut rest) = word(rest)?;
    let count = usize::try_from(count).ok().filter(|_| dimensions == 1)?;
    // Each has a length of four bytes, whatever the header says.
    let mut elements = Vec::with_capacity(count.min(rest.len() / 4));
    for _ in 0..count {
        let (length, after) = word(rest)?;
        if length < 0 {
            elements.push(None);
            rest = after;
            continue;
        }
        let (bytes, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
        elements.push(Some(element(bytes)?));
        rest = after;
    }
    rest.is_empty().then_some(elements)
}

fn word(bytes: &[u8]) -> Option<(i32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<4>()?;
    Some((i32::from_be_bytes(*word), rest))
}

/// A parameter as it is sent.
#[derive(Debug)]
pub(super) struct Parameter {
    /// Its type; 0 leaves it to Postgres.
    pub(super) oid: u32,
    bytes: Option<Vec<u8>>,
}

impl Parameter {
    /// Its size in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.as_ref().map_or(0, Vec::len)
    }

    /// A parameter's binary form.
    ///
    /// # Errors
    /// What Postgres can't have, in words.
    pub(super) fn new(value: Value) -> Result<Self, String> {
        use self::oid::*;
        let (oid, bytes) = match value {
            Value::Null => return Ok(Self { oid: 0, bytes: None }),
            Value::Boolean(value) => (BOOL, vec![u8::from(value)]),
            Value::Int64(value) => (INT8, value.to_be_bytes().to_vec()),
            Value::Float64(value) => (FLOAT8, value.to_be_bytes().to_vec()),
            Value::Text(value) => (TEXT, to_text(value)?),
            Value::Bytes(value) => (BYTEA, value),
            Value::Numeric(value) => (NUMERIC, to_numeric(&value)?),
            Value::Timestamp(value) => (TIMESTAMPTZ, to_timestamp(value)?),
            Value::LocalTimestamp(value) => (TIMESTAMP, to_timestamp(value)?),
            Value::Date(value) => (DATE, to_date(value)?),
            Value::Uuid(value) => (UUID, to_uuid(&value)?),
            Value::Json(value) => (JSONB, to_jsonb(value)?),
            Value::BooleanArray(values) => (BOOL_ARRAY, to_array(BOOL, values, |v| Ok(vec![u8::from(v)]))?),
            Value::Int64Array(values) => (
                INT8_ARRAY,
                to_array(INT8, values, |v| Ok(v.to_be_bytes().to_vec()))?,
            ),
            Value::Float64Array(values) => (
                FLOAT8_ARRAY,
                to_array(FLOAT8, values, |v| Ok(v.to_be_bytes().to_vec()))?,
            ),
            Value::TextArray(values) => (TEXT_ARRAY, to_array(TEXT, values, to_text)?),
            Value::BytesArray(values) => (BYTEA_ARRAY, to_array(BYTEA, values, Ok)?),
            Value::NumericArray(values) => (NUMERIC_ARRAY, to_array(NUMERIC, values, |v| to_numeric(&v))?),
            Value::TimestampArray(values) => {
                (TIMESTAMPTZ_ARRAY, to_array(TIMESTAMPTZ, values, to_timestamp)?)
            }
            Value::DateArray(values) => (DATE_ARRAY, to_array(DATE, values, to_date)?),
            Value::UuidArray(values) => (UUID_ARRAY, to_array(UUID, values, |v| to_uuid(&v))?),
            Value::JsonArray(values) => (JSONB_ARRAY, to_array(JSONB, values, to_jsonb)?),
            Value::Other(other) => {
                return Err(format!(
                    "a {} can't be sent as bytes; send its text and cast it, as in `$1::text::{}`",
                    shown(&other.type_name),
                    shown(&other.type_name)
                ));
            }
        };
        Ok(Self {
            oid,
            bytes: Some(bytes),
        })
    }
}

impl Encode<'_, Postgres> for Parameter {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match &self.bytes {
            Some(bytes) => {
                buffer.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
            None => Ok(IsNull::Yes),
        }
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(Oid(self.oid)))
    }

    fn size_hint(&self) -> usize {
        self.len()
    }
}

impl Type<Postgres> for Parameter {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(0))
    }
}

/// What a guest wrote, short enough for a message.
fn shown(text: &str) -> &str {
    text.get(..text.floor_char_boundary(64)).unwrap_or_default()
}

fn to_text(text: String) -> Result<Vec<u8>, String> {
    match text.contains('\0') {
        true => Err("a text has a NUL character, which Postgres can't store; send `bytes`".to_owned()),
        false => Ok(text.into_bytes()),
    }
}

fn to_jsonb(text: String) -> Result<Vec<u8>, String> {
    let mut bytes = to_text(text)?;
    bytes.insert(0, JSONB_VERSION);
    Ok(bytes)
}

fn to_numeric(text: &str) -> Result<Vec<u8>, String> {
    numeric::binary(text).ok_or_else(|| {
        format!("{:?} is no numeric: digits, with a sign, a point and an exponent if need be, or NaN or Infinity; at most 131072 digits before the point and 16383 after it", shown(text))
    })
}

fn to_uuid(text: &str) -> Result<Vec<u8>, String> {
    let inner = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let digits: String = inner
        .unwrap_or(text)
        .chars()
        .filter(|c| *c != '-')
        .take(33)
        .collect();
    Uuid::try_parse(&digits)
        .map(|uuid| uuid.as_bytes().to_vec())
        .map_err(|_| format!("{:?} is no UUID", shown(text)))
}

fn to_timestamp(timestamp: Timestamp) -> Result<Vec<u8>, String> {
    let at = match timestamp {
        Timestamp::BeforeAll => i64::MIN,
        Timestamp::AfterAll => i64::MAX,
        Timestamp::At(Instant {
            seconds,
            microseconds,
        }) => {
            if i64::from(microseconds) >= MICROSECONDS {
                return Err(format!("{microseconds} microseconds are more than a second"));
            }
            seconds
                .checked_sub(SECONDS)
                .and_then(|seconds| seconds.checked_mul(MICROSECONDS))
                .and_then(|at| at.checked_add(microseconds.into()))
                .filter(|at| *at != i64::MIN && *at != i64::MAX)
                .ok_or_else(|| format!("{seconds} seconds are further away than any timestamp"))?
        }
    };
    Ok(at.to_be_bytes().to_vec())
}

fn to_date(date: Date) -> Result<Vec<u8>, String> {
    let day = match date {
        Date::BeforeAll => i32::MIN,
        Date::AfterAll => i32::MAX,
        Date::On(day) => day
            .checked_sub(DAYS)
            .filter(|day| *day != i32::MIN)
            .ok_or_else(|| format!("{day} days are further away than any date"))?,
    };
    Ok(day.to_be_bytes().to_vec())
}

fn to_array<T>(
    oid: u32,
    values: Vec<Option<T>>,
    element: impl Fn(T) -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, String> {
    let size = |size: usize| i32::try_from(size).map_err(|_| "an array is too large".to_owned());
    let mut bytes = Vec::new();
    let has_nulls = values.iter().any(Option::is_none);
    bytes.extend(i32::from(!values.is_empty()).to_be_bytes());
    bytes.extend(i32::from(has_nulls).to_be_bytes());
    bytes.extend(oid.to_be_bytes());
    if !values.is_empty() {
        bytes.extend(size(values.len())?.to_be_bytes());
        bytes.extend(1i32.to_be_bytes());
    }
    for value in values {
        match value {
            Some(value) => {
                let element = element(value)?;
                bytes.extend(size(element.len())?.to_be_bytes());
                bytes.extend(element);
            }
            None => bytes.extend((-1i32).to_be_bytes()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
