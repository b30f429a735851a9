//! Bodies that nobody would send: whatever the bytes, they are decoded or refused with pointers that make sense.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// What each operation takes: members that must be there, members that may be.
const SHAPES: [(AuthOp, &[&str], &[&str]); 5] = [
    (AuthOp::Register, &["email", "password"], &["name"]),
    (AuthOp::Login, &["email", "password"], &[]),
    (AuthOp::Refresh, &["refreshToken"], &[]),
    (AuthOp::VerifyEmail, &["token"], &[]),
    (AuthOp::ChangePassword, &["currentPassword", "newPassword"], &[]),
];

/// What must hold of any body.
fn holds(body: &[u8]) -> Result<(), TestCaseError> {
    let document = serde_json::from_slice::<Value>(body).ok();
    for (op, required, optional) in SHAPES {
        let Err(faults) = Input::decode(op, body) else {
            let object = document.as_ref().and_then(Value::as_object);
            // A number too large for `Value` may be in a member that is ignored.
            prop_assert!(document.is_none() || object.is_some());
            if let Some(object) = object {
                prop_assert!(
                    required
                        .iter()
                        .all(|m| object.get(*m).is_some_and(Value::is_string))
                );
                prop_assert!(
                    optional
                        .iter()
                        .all(|m| object.get(*m).is_none_or(|v| v.is_string() || v.is_null()))
                );
            }
            continue;
        };
        prop_assert!(!faults.is_empty(), "refused without a reason");
        for FieldError { pointer, detail } in &faults {
            prop_assert!(!detail.is_empty() && detail.len() < 300);
            let known = required
                .iter()
                .chain(optional)
                .any(|m| pointer.strip_prefix('/') == Some(m));
            prop_assert!(pointer.is_empty() || known, "{}", pointer);
            let Some(document) = &document else {
                prop_assert_eq!(pointer, "");
                continue;
            };
            match document.pointer(pointer) {
                None => prop_assert_eq!(detail, "is missing"),
                Some(Value::String(_)) => prop_assert!(pointer.is_empty(), "{} is a string", pointer),
                Some(_) => prop_assert_ne!(detail, "is missing"),
            }
        }
        let mut pointers: Vec<&str> = faults.iter().map(|f| f.pointer.as_str()).collect();
        pointers.dedup();
        prop_assert_eq!(pointers.len(), faults.len(), "one fault per place");
    }
    Ok(())
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|n| json!(n)),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// An object with the members of some operation, or nearly.
fn nearly() -> impl Strategy<Value = Value> {
    let member = prop_oneof![
        4 => proptest::sample::select(vec![
            "email", "password", "name", "token", "refreshToken", "refresh_token", "currentPassword", "newPassword",
        ])
        .prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    let value = prop_oneof![2 => any::<String>().prop_map(Value::from), 1 => any_value()];
    prop::collection::btree_map(member, value, 0..8)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        holds(&bytes)?;
    }

    #[test]
    fn any_json_like_text_is_decoded_or_refused(text in "([{}\\[\\],:\"\\\\]|null|1e999|-|\"email\":|\"token\":\"|\\\\ud800|é| ){0,30}") {
        holds(text.as_bytes())?;
    }

    #[test]
    fn any_document_is_decoded_or_refused(document in prop_oneof![any_value(), nearly()]) {
        holds(&serde_json::to_vec(&document).unwrap())?;
    }

    #[test]
    fn cut_or_changed_document_is_decoded_or_refused(
        document in nearly(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut body = serde_json::to_vec(&document).unwrap();
        let at = at.index(body.len());
        holds(&body[..at])?;
        body[at] = byte;
        holds(&body)?;
    }

    #[test]
    fn what_is_right_is_decoded_as_it_is(
        words in prop::collection::vec(any::<String>(), 3),
        more in prop::collection::btree_map("x[a-z]{0,5}", any_value(), 0..4),
        named in any::<bool>(),
    ) {
        for (op, required, optional) in SHAPES {
            let mut members: serde_json::Map<String, Value> = more.clone().into_iter().collect();
            for (member, word) in required.iter().zip(&words) {
                members.insert((*member).to_owned(), json!(word));
            }
            if named {
                members.extend(optional.iter().map(|m| ((*m).to_owned(), json!(words[2]))));
            }
            let body = serde_json::to_vec(&members).unwrap();
            let name = named.then_some(&words[2]);
            let same = match Input::decode(op, &body) {
                Ok(Input::Registration(it)) => it.email == words[0] && it.password == words[1] && it.name.as_ref() == name,
                Ok(Input::Credentials(it)) => it.email == words[0] && it.password == words[1],
                Ok(Input::Token(it)) => it == words[0],
                Ok(Input::PasswordChange(it)) => it.current_password == words[0] && it.new_password == words[1],
                _ => false,
            };
            prop_assert!(same, "{:?}: {}", op, String::from_utf8_lossy(&body));
        }
    }
}
