//! What a well-formed request looks like. Nothing here knows the host or the store.
//!
//! Lengths of passwords and names count Unicode characters (scalar values). A password's are counted after
//! normalization to NFC (RFC 8265), which is what the host hashes, so that the same password typed on two keyboards is
//! the same and has the same length. Nothing of a password is trimmed.

use std::collections::BTreeSet;

use email_address::{EmailAddress, Options};
use unicode_normalization::UnicodeNormalization;

use crate::berth::policy::types::FieldError;
use crate::common::is_common;
use crate::exports::berth::policy::auth::Problem;
use crate::refusal;

/// RFC 5321's limit on a path, less its angle brackets.
const EMAIL_MAX_BYTES: usize = 254;
/// NIST SP 800-63B asks for at least 8, and for no rules on what they are.
const PASSWORD_MIN_CHARS: usize = 8;
/// 4096 bytes at most, which is what the host hashes.
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

/// The canonical address of a body of `register`, or every fault of it.
pub fn registration(email: &str, password: &str, name: &str) -> Result<String, Vec<Fault>> {
    let canonical = canonical_email("/email", email);
    let password = new_password("/password", password, canonical.as_deref().unwrap_or(""));
    let name = display_name("/name", name);
    all([
        canonical.as_ref().err(),
        password.as_ref().err(),
        name.as_ref().err(),
    ])?;
    canonical.map_err(|fault| vec![fault])
}

/// The canonical address of a body of `login`, or what is wrong with it. A password is never refused before it is
/// compared, not even an empty one: the answer would come sooner than to a wrong one.
pub fn login(email: &str) -> Result<String, Vec<Fault>> {
    canonical_email("/email", email).map_err(|fault| vec![fault])
}

/// Every fault of a body of `change-password` of the account with this address. The present password is compared
/// whatever it is.
pub fn password_change(email: &str, new: &str) -> Result<(), Vec<Fault>> {
    new_password("/newPassword", new, email).map_err(|fault| vec![fault])
}

/// Every fault of a body that is one token.
pub fn token(pointer: &'static str, token: &str) -> Result<(), Vec<Fault>> {
    if token.trim().is_empty() {
        return Err(vec![Fault {
            pointer,
            code: INVALID_REQUEST,
            detail: "The token is missing.".to_owned(),
        }]);
    }
    Ok(())
}

/// An address that the database doesn't take.
pub fn unusable_email() -> Fault {
    Fault {
        pointer: "/email",
        code: INVALID_EMAIL,
        detail: "The e-mail address can't be used. Write it in lower case.".to_owned(),
    }
}

/// Lets a request without faults pass.
pub fn accept<T>(found: Result<T, Vec<Fault>>) -> Result<T, Problem> {
    found.map_err(problem)
}

/// The refusal of a request with these faults.
pub fn problem(faults: Vec<Fault>) -> Problem {
    let (code, detail) = summary(&faults);
    let fields = faults
        .into_iter()
        .map(|fault| FieldError {
            pointer: fault.pointer.to_owned(),
            detail: fault.detail,
        })
        .collect();
    Problem {
        fields,
        ..refusal::problem(400, code, &detail)
    }
}

fn all<const N: usize>(found: [Option<&Fault>; N]) -> Result<(), Vec<Fault>> {
    let faults: Vec<Fault> = found
        .into_iter()
        .flatten()
        .map(|fault| Fault {
            detail: fault.detail.clone(),
            ..*fault
        })
        .collect();
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// The code and the sentence for a request with these faults.
fn summary(faults: &[Fault]) -> (&'static str, String) {
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

/// The address in lower case and NFC, as accounts are told apart. Nothing is trimmed: what a form sends with a space is
/// shown to its user, not guessed.
fn canonical_email(pointer: &'static str, typed: &str) -> Result<String, Fault> {
    let fault = |detail: String| Fault {
        pointer,
        code: INVALID_EMAIL,
        detail,
    };
    if typed.trim().is_empty() {
        return Err(fault("The e-mail address is missing.".to_owned()));
    }
    let canonical: String = typed.to_lowercase().nfc().collect();
    if canonical.len() > EMAIL_MAX_BYTES || typed.len() > EMAIL_MAX_BYTES {
        return Err(fault(format!(
            "The e-mail address is too long: at most {EMAIL_MAX_BYTES} bytes."
        )));
    }
    let options = Options::default()
        .with_required_tld()
        .without_domain_literal()
        .without_display_text();
    let plain = !canonical
        .chars()
        .any(|c| c.is_whitespace() || c.is_control() || is_invisible(c));
    match EmailAddress::parse_with_options(&canonical, options) {
        Ok(_) if plain => Ok(canonical),
        _ => Err(fault(
            "The e-mail address isn't valid. It looks like name@example.com.".to_owned(),
        )),
    }
}

/// Characters that nobody sees, or that turn around what stands after them: an address with one would look like somebody
/// else's and be another account. They are Unicode's `Default_Ignorable_Code_Point`s, which no identifier may have
/// (RFC 8264 section 9.13), and the others of its category `Cf` on the first plane.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// A password that is being chosen for the account with this canonical address, which may be unknown (empty).
fn new_password(pointer: &'static str, password: &str, email: &str) -> Result<(), Fault> {
    let length = if password.is_ascii() {
        password.len()
    } else {
        password.nfc().count()
    };
    let detail = match length {
        0 => "The password is missing.".to_owned(),
        1..PASSWORD_MIN_CHARS => {
            format!("The password is too short: at least {PASSWORD_MIN_CHARS} characters.")
        }
        PASSWORD_MIN_CHARS..=PASSWORD_MAX_CHARS if is_the_address(password, email) => {
            "The password is the e-mail address. Choose one that doesn't follow from it.".to_owned()
        }
        PASSWORD_MIN_CHARS..=PASSWORD_MAX_CHARS if is_common(password) => {
            "The password is one of those that are guessed first. Choose a rarer one, such as several words."
                .to_owned()
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

/// The address itself or the part before the `@`, in whatever case.
fn is_the_address(password: &str, email: &str) -> bool {
    let password: String = password.to_lowercase().nfc().collect();
    let local = email.rsplit_once('@').map_or("", |(local, _)| local);
    password == email || password == local
}

fn display_name(pointer: &'static str, name: &str) -> Result<(), Fault> {
    let detail = if name.chars().count() > NAME_MAX_CHARS {
        format!("The name is too long: at most {NAME_MAX_CHARS} characters.")
    } else if name.chars().any(char::is_control) {
        "The name has a control character in it.".to_owned()
    } else {
        return Ok(());
    };
    Err(Fault {
        pointer,
        code: INVALID_REQUEST,
        detail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "a rare password";

    fn pointers(faults: &[Fault]) -> Vec<&str> {
        faults.iter().map(|fault| fault.pointer).collect()
    }

    fn choose(password: &str) -> Result<(), Fault> {
        new_password("/password", password, "ada.lovelace@example.com")
    }

    #[test]
    fn emails_become_canonical() {
        for (typed, canonical) in [
            ("ada@example.com", "ada@example.com"),
            ("Ada.Lovelace+Notes@Example.COM", "ada.lovelace+notes@example.com"),
            ("ÜNAL@exämple.de", "ünal@exämple.de"),
            ("U\u{308}nal@example.de", "ünal@example.de"),
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
            " ada@example.com",
            "ada@example.com\n",
            "\"a b\"@example.com",
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
            "a\u{200b}da@example.com",
            "ada@exam\u{ad}ple.com",
            "\u{feff}ada@example.com",
            "\u{202e}ada@example.com",
            "ada\u{e0041}@example.com",
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
            "12345679x",
            "        ",
            "пароль-日本",
            &"x".repeat(1024),
            &"é".repeat(1024),
            // Counted as it is hashed: two scalar values as typed, one in NFC.
            &"e\u{301}".repeat(1024),
        ] {
            assert_eq!(choose(good), Ok(()), "{good:?}");
        }
        for bad in [
            "",
            "1234567",
            "日本語日本語日",
            &"e\u{301}".repeat(7),
            &"x".repeat(1025),
        ] {
            let fault = choose(bad).expect_err(bad);
            assert_eq!(fault.code, "weak-password", "{bad:?}");
        }
    }

    #[test]
    fn passwords_that_everybody_guesses_are_refused() {
        for (bad, because) in [
            ("password", "guessed first"),
            ("PassWord", "guessed first"),
            ("12345678", "guessed first"),
            ("ada.lovelace", "is the e-mail address"),
            ("Ada.Lovelace@Example.com", "is the e-mail address"),
        ] {
            let fault = choose(bad).expect_err(bad);
            assert_eq!(fault.code, "weak-password");
            assert!(fault.detail.contains(because), "{bad}: {}", fault.detail);
        }
        assert_eq!(choose("ada.lovelace!"), Ok(()));
        assert_eq!(new_password("/password", GOOD, ""), Ok(()));
    }

    #[test]
    fn login_looks_at_the_address_alone() {
        assert_eq!(login("Ada@example.com").as_deref(), Ok("ada@example.com"));
        let faults = login("ada").unwrap_err();
        assert_eq!(pointers(&faults), ["/email"]);
        assert_eq!(summary(&faults).0, "invalid-email");
    }

    #[test]
    fn names_have_at_most_200_characters_and_none_that_controls() {
        let with = |name: &str| registration("ada@example.com", GOOD, name);
        assert_eq!(with(&"ä".repeat(200)).as_deref(), Ok("ada@example.com"));
        for name in ["ä".repeat(201), "Ada\u{0}".to_owned(), "A\nB".to_owned()] {
            let faults = with(&name).unwrap_err();
            assert_eq!(pointers(&faults), ["/name"]);
            assert_eq!(summary(&faults).0, "invalid-request");
        }
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let faults = registration("ada", "short", &"x".repeat(201)).unwrap_err();
        assert_eq!(pointers(&faults), ["/email", "/password", "/name"]);
        let (code, detail) = summary(&faults);
        assert_eq!(code, "invalid-request");
        assert!(detail.contains("3 faults"), "{detail}");
    }

    #[test]
    fn a_lone_fault_gives_its_own_code_and_sentence() {
        let faults = registration("ada", GOOD, "").unwrap_err();
        assert_eq!(summary(&faults), ("invalid-email", faults[0].detail.clone()));
        let faults = registration("ada@example.com", "short", "").unwrap_err();
        assert_eq!(summary(&faults), ("weak-password", faults[0].detail.clone()));
        let problem = accept(password_change("ada@example.com", "short")).unwrap_err();
        assert_eq!((problem.status, problem.code.as_str()), (400, "weak-password"));
        assert_eq!(problem.fields[0].pointer, "/newPassword");
    }

    #[test]
    fn tokens_are_not_blank() {
        assert_eq!(token("/token", "abc"), Ok(()));
        assert_eq!(pointers(&token("/token", "").unwrap_err()), ["/token"]);
        assert_eq!(
            pointers(&token("/refreshToken", " ").unwrap_err()),
            ["/refreshToken"]
        );
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
