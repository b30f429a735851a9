//! What a well-formed request looks like. Nothing here knows the host or the store.
//!
//! Lengths of passwords and names count Unicode characters (scalar values) as they were typed. Nothing is
//! normalized: whoever hashes a password has to normalize it first (NFC, RFC 8265), so that the same password
//! typed on two keyboards is the same.

use std::collections::BTreeSet;

use email_address::{EmailAddress, Options};

/// RFC 5321's limit on a path, less its angle brackets.
const EMAIL_MAX_BYTES: usize = 254;
const PASSWORD_MIN_CHARS: usize = 8;
const PASSWORD_MAX_CHARS: usize = 1024;
const NAME_MAX_CHARS: usize = 200;

const INVALID_EMAIL: &str = "invalid-email";
const WEAK_PASSWORD: &str = "weak-password";
const INVALID_REQUEST: &str = "invalid-request";

/// One thing that is wrong with a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where, as a JSON pointer into the request's body.
    pub pointer: &'static str,
    /// The problem's code, if this is all that is wrong.
    pub code: &'static str,
    /// What is wrong and what would be right.
    pub detail: String,
}

/// Every fault of a body of `register`.
pub fn registration(email: &str, password: &str, name: Option<&str>) -> Vec<Fault> {
    let name = name.and_then(|name| display_name("/name", name).err());
    [
        canonical_email("/email", email).err(),
        new_password("/password", password).err(),
        name,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Every fault of a body of `login`. An old password may be shorter than a new one has to be.
pub fn credentials(email: &str, password: &str) -> Vec<Fault> {
    [
        canonical_email("/email", email).err(),
        present_password("/password", password).err(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Every fault of a body of `change-password`.
pub fn password_change(current: &str, new: &str) -> Vec<Fault> {
    [
        present_password("/currentPassword", current).err(),
        new_password("/newPassword", new).err(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Every fault of a body that is one token.
pub fn token(pointer: &'static str, token: &str) -> Vec<Fault> {
    if token.trim().is_empty() {
        vec![Fault {
            pointer,
            code: INVALID_REQUEST,
            detail: "The token is missing.".to_owned(),
        }]
    } else {
        Vec::new()
    }
}

/// The code and the sentence for a request with these faults.
pub fn summary(faults: &[Fault]) -> (&'static str, String) {
    let codes: BTreeSet<_> = faults.iter().map(|fault| fault.code).collect();
    let code = if codes.len() == 1 {
        faults[0].code
    } else {
        INVALID_REQUEST
    };
    let detail = match faults {
        [fault] => fault.detail.clone(),
        _ => format!(
            "The request has {} faults. Correct the fields that are listed, then try again.",
            faults.len()
        ),
    };
    (code, detail)
}

/// Whether this is written like a UUID: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12.
pub fn is_uuid(text: &str) -> bool {
    let mut groups = text.split('-');
    let fits = [8, 4, 4, 4, 12].into_iter().all(|length| {
        groups
            .next()
            .is_some_and(|group| group.len() == length && group.bytes().all(|byte| byte.is_ascii_hexdigit()))
    });
    fits && groups.next().is_none()
}

/// The address without surrounding space and in lower case, as it is stored and compared.
fn canonical_email(pointer: &'static str, typed: &str) -> Result<String, Fault> {
    let fault = |detail: String| Fault {
        pointer,
        code: INVALID_EMAIL,
        detail,
    };
    let canonical = typed.trim().to_lowercase();
    if canonical.is_empty() {
        return Err(fault("The e-mail address is missing.".to_owned()));
    }
    if canonical.len() > EMAIL_MAX_BYTES {
        return Err(fault(format!(
            "The e-mail address is too long: at most {EMAIL_MAX_BYTES} bytes."
        )));
    }
    let options = Options::default()
        .with_required_tld()
        .without_domain_literal()
        .without_display_text();
    match EmailAddress::parse_with_options(&canonical, options) {
        Ok(_) => Ok(canonical),
        Err(_) => Err(fault(
            "The e-mail address isn't valid. It looks like name@example.com.".to_owned(),
        )),
    }
}

/// A password that is being chosen.
fn new_password(pointer: &'static str, password: &str) -> Result<(), Fault> {
    let detail = match password.chars().count() {
        0 => "The password is missing.".to_owned(),
        1..PASSWORD_MIN_CHARS => {
            format!("The password is too short: at least {PASSWORD_MIN_CHARS} characters.")
        }
        PASSWORD_MIN_CHARS..=PASSWORD_MAX_CHARS => return Ok(()),
        _ => format!("The password is too long: at most {PASSWORD_MAX_CHARS} characters."),
    };
    Err(Fault {
        pointer,
        code: WEAK_PASSWORD,
        detail,
    })
}

/// A password that was chosen earlier, perhaps under other rules.
fn present_password(pointer: &'static str, password: &str) -> Result<(), Fault> {
    let detail = match password.chars().count() {
        0 => "The password is missing.".to_owned(),
        1..=PASSWORD_MAX_CHARS => return Ok(()),
        _ => format!("The password is too long: at most {PASSWORD_MAX_CHARS} characters."),
    };
    Err(Fault {
        pointer,
        code: INVALID_REQUEST,
        detail,
    })
}

fn display_name(pointer: &'static str, name: &str) -> Result<(), Fault> {
    if name.chars().count() <= NAME_MAX_CHARS {
        return Ok(());
    }
    let detail = format!("The name is too long: at most {NAME_MAX_CHARS} characters.");
    Err(Fault {
        pointer,
        code: INVALID_REQUEST,
        detail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointers(faults: &[Fault]) -> Vec<&str> {
        faults.iter().map(|fault| fault.pointer).collect()
    }

    #[test]
    fn emails_become_canonical() {
        for (typed, canonical) in [
            ("ada@example.com", "ada@example.com"),
            (
                "  Ada.Lovelace+Notes@Example.COM\n",
                "ada.lovelace+notes@example.com",
            ),
            ("ÜNAL@exämple.de", "ünal@exämple.de"),
        ] {
            assert_eq!(
                canonical_email("/email", typed).as_deref(),
                Ok(canonical),
                "{typed:?}"
            );
        }
    }

    #[test]
    fn bad_emails_are_refused() {
        for typed in [
            "",
            "   ",
            "ada",
            "ada@",
            "@example.com",
            "ada@localhost",
            "ada@@example.com",
            "ada lovelace@example.com",
            "ada@exam ple.com",
            "ada@example..com",
            "ada..l@example.com",
            ".ada@example.com",
            "ada@-example.com",
            "ada@[192.0.2.1]",
            "Ada <ada@example.com>",
            "ada@example.com\nbcc: eve@example.com",
            "ada\0@example.com",
        ] {
            let fault = canonical_email("/email", typed).expect_err(typed);
            assert_eq!(
                (fault.pointer, fault.code),
                ("/email", "invalid-email"),
                "{typed:?}"
            );
        }
    }

    #[test]
    fn an_email_has_at_most_254_bytes() {
        let label = "d".repeat(60);
        let fits = format!("{}@{label}.{label}.{label}.dd.com", "a".repeat(64));
        assert_eq!(fits.len(), 254);
        assert!(canonical_email("/email", &fits).is_ok());
        let too_long = fits.replace(".com", ".come");
        assert!(canonical_email("/email", &too_long).is_err());
    }

    #[test]
    fn new_passwords_have_8_to_1024_characters_of_any_kind() {
        for good in [
            "12345678",
            "        ",
            "пароль-日本",
            &"x".repeat(1024),
            &"é".repeat(1024),
        ] {
            assert_eq!(new_password("/password", good), Ok(()), "{good:?}");
        }
        for bad in ["", "1234567", "日本語日本語日", &"x".repeat(1025)] {
            assert!(new_password("/password", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn login_takes_short_passwords_but_not_none() {
        assert_eq!(credentials("ada@example.com", "old"), []);
        let faults = credentials("ada@example.com", "");
        assert_eq!(pointers(&faults), ["/password"]);
        assert_eq!(summary(&faults).0, "invalid-request");
    }

    #[test]
    fn names_have_at_most_200_characters() {
        assert_eq!(
            registration("ada@example.com", "long enough", Some(&"ä".repeat(200))),
            []
        );
        let faults = registration("ada@example.com", "long enough", Some(&"ä".repeat(201)));
        assert_eq!(pointers(&faults), ["/name"]);
        assert_eq!(summary(&faults).0, "invalid-request");
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let faults = registration("ada", "short", Some(&"x".repeat(201)));
        assert_eq!(pointers(&faults), ["/email", "/password", "/name"]);
        let (code, detail) = summary(&faults);
        assert_eq!(code, "invalid-request");
        assert!(detail.contains("3 faults"), "{detail}");
    }

    #[test]
    fn a_lone_fault_gives_its_own_code_and_sentence() {
        let faults = registration("ada", "long enough", None);
        assert_eq!(summary(&faults), ("invalid-email", faults[0].detail.clone()));
        let faults = registration("ada@example.com", "short", None);
        assert_eq!(summary(&faults), ("weak-password", faults[0].detail.clone()));
    }

    #[test]
    fn password_changes_check_both_passwords() {
        assert_eq!(password_change("old", "long enough"), []);
        let faults = password_change("", "short");
        assert_eq!(pointers(&faults), ["/currentPassword", "/newPassword"]);
        assert_eq!(summary(&faults).0, "invalid-request");
        assert_eq!(summary(&password_change("old", "short")).0, "weak-password");
    }

    #[test]
    fn tokens_are_not_blank() {
        assert_eq!(token("/token", "abc"), []);
        assert_eq!(pointers(&token("/token", "")), ["/token"]);
        assert_eq!(pointers(&token("/refreshToken", " ")), ["/refreshToken"]);
    }

    #[test]
    fn uuids_are_known_by_their_shape() {
        assert!(is_uuid("01920000-0000-7000-8000-000000000001"));
        assert!(is_uuid("01920000-ABCD-7000-8000-00000000000F"));
        for text in [
            "",
            "----",
            "01920000-0000-7000-8000-00000000000",
            "01920000-0000-7000-8000-0000000000011",
            "0192000g-0000-7000-8000-000000000001",
            "01920000000070008000000000000001",
            "01920000-0000-7000-8000-000000000001-",
        ] {
            assert!(!is_uuid(text), "{text:?}");
        }
    }
}
