//! The decisions against a host that counts what it is asked.

use std::cell::{Cell, RefCell};

use super::*;
use crate::berth::host::passwords::Verdict;
use crate::berth::host::sessions::{self, Info};

/// "Hashes" are the password in a wrapping; those of an older kind say so.
#[derive(Default)]
struct Fake {
    accounts: RefCell<Vec<(Account, String)>>,
    sessions: RefCell<Vec<(String, String)>>,
    /// Why sessions were ended.
    ended: RefCell<Vec<Reason>>,
    verified: Cell<usize>,
    hashed: Cell<usize>,
    busy: Cell<bool>,
    warned: RefCell<Vec<String>>,
    /// What somebody else does between the opening of a session and the next look at the account.
    meanwhile: RefCell<Option<String>>,
}

impl Fake {
    fn with(accounts: &[(&str, Option<&str>, bool)]) -> Self {
        let fake = Self::default();
        for (at, (email, hash, active)) in accounts.iter().enumerate() {
            let user = user(
                &format!("01920000-0000-7000-8000-00000000000{at}"),
                email,
                *active,
            );
            let account = Account {
                user,
                hash: hash.map(str::to_owned),
            };
            fake.accounts.borrow_mut().push((account, (*email).to_owned()));
        }
        fake
    }

    fn hash_of(&self, email: &str) -> Option<String> {
        let accounts = self.accounts.borrow();
        accounts.iter().find(|(_, e)| e == email)?.0.hash.clone()
    }
}

fn user(id: &str, email: &str, active: bool) -> User {
    User {
        id: id.to_owned(),
        email: email.to_owned(),
        email_verified: false,
        name: String::new(),
        roles: vec!["reader".to_owned()],
        created_at: 1,
        updated_at: 1,
        mfa_enabled: false,
        active,
    }
}

impl Host for Fake {
    fn find_by_email(&self, canonical: &str) -> Result<Option<Account>, Problem> {
        let accounts = self.accounts.borrow();
        Ok(accounts
            .iter()
            .find(|(_, e)| e == canonical)
            .map(|(a, _)| a.clone()))
    }

    fn find(&self, id: &str) -> Result<Option<Account>, Problem> {
        let mut accounts = self.accounts.borrow_mut();
        let account = accounts.iter_mut().find(|(a, _)| a.user.id == id);
        if let (Some(hash), Some((account, _))) = (self.meanwhile.take(), account) {
            account.hash = Some(hash);
        }
        Ok(accounts
            .iter()
            .find(|(a, _)| a.user.id == id)
            .map(|(a, _)| a.clone()))
    }

    fn create(&self, new: &NewAccount<'_>) -> Result<User, NotMade> {
        let mut accounts = self.accounts.borrow_mut();
        if accounts.iter().any(|(_, e)| e == new.canonical) {
            return Err(NotMade::Taken);
        }
        let user = User {
            name: new.name.to_owned(),
            ..user(&new.id, new.canonical, true)
        };
        let hash = Some(new.hash.to_owned());
        let account = Account {
            user: user.clone(),
            hash,
        };
        accounts.push((account, new.canonical.to_owned()));
        Ok(user)
    }

    fn replace_hash(&self, id: &str, old: &str, new: &str) -> Result<bool, Problem> {
        let mut accounts = self.accounts.borrow_mut();
        let account = accounts.iter_mut().find(|(a, _)| a.user.id == id);
        Ok(match account {
            Some((account, _)) if account.hash.as_deref() == Some(old) => {
                account.hash = Some(new.to_owned());
                true
            }
            _ => false,
        })
    }

    fn hash(&self, password: &str) -> Result<String, passwords::Error> {
        self.hashed.set(self.hashed.get() + 1);
        if self.busy.get() {
            return Err(passwords::Error::Busy(3));
        }
        Ok(format!("hash({password})"))
    }

    fn verify(&self, password: &str, hash: Option<&str>) -> Result<Verdict, passwords::Error> {
        self.verified.set(self.verified.get() + 1);
        if self.busy.get() {
            return Err(passwords::Error::Busy(3));
        }
        if password.len() > 4096 {
            return Err(passwords::Error::TooLong);
        }
        let old = hash == Some(format!("old({password})").as_str());
        Ok(Verdict {
            matches: old || hash == Some(format!("hash({password})").as_str()),
            rehash: old,
        })
    }

    fn open(&self, user: &str, _: &RequestInfo) -> Result<Tokens, sessions::Error> {
        let mut sessions = self.sessions.borrow_mut();
        let session = format!("01930000-0000-7000-8000-00000000000{}", sessions.len());
        sessions.push((user.to_owned(), session.clone()));
        Ok(tokens(user, &session))
    }

    fn refresh(&self, token: &str) -> Result<Tokens, sessions::Error> {
        match token {
            "gone" => Err(sessions::Error::NoUser),
            "used" => Err(sessions::Error::Reused),
            "old" => Err(sessions::Error::NoSession),
            "down" => Err(sessions::Error::Unavailable),
            user => Ok(tokens(user, "s")),
        }
    }

    fn sessions(&self, user: &str) -> Result<Vec<Info>, sessions::Error> {
        let sessions = self.sessions.borrow();
        Ok(sessions
            .iter()
            .filter(|(u, _)| u == user)
            .map(|(_, id)| Info {
                id: id.clone(),
                created_at: 1,
                last_used_at: 2,
                client_ip: "192.0.2.1".to_owned(),
                user_agent: None,
            })
            .collect())
    }

    fn close(&self, user: &str, session: &str, why: Reason) -> Result<bool, sessions::Error> {
        let mut sessions = self.sessions.borrow_mut();
        let before = sessions.len();
        sessions.retain(|(u, s)| (u.as_str(), s.as_str()) != (user, session));
        let closed = before - sessions.len();
        self.ended.borrow_mut().extend(vec![why; closed]);
        Ok(closed > 0)
    }

    fn close_all(&self, user: &str, keep: Option<&str>, why: Reason) -> Result<u32, sessions::Error> {
        let mut sessions = self.sessions.borrow_mut();
        let before = sessions.len();
        sessions.retain(|(u, s)| u != user || Some(s.as_str()) == keep);
        let closed = before - sessions.len();
        self.ended.borrow_mut().extend(vec![why; closed]);
        Ok(closed as u32)
    }

    fn random(&self) -> Result<[u8; 10], Problem> {
        Ok([0xff; 10])
    }

    fn warn(&self, what: &str) {
        self.warned.borrow_mut().push(what.to_owned());
    }
}

fn tokens(user: &str, session: &str) -> Tokens {
    Tokens {
        session_id: session.to_owned(),
        user_id: user.to_owned(),
        access_token: "access".to_owned(),
        refresh_token: "refresh".to_owned(),
        expires_in: 86_400,
    }
}

fn info() -> RequestInfo {
    RequestInfo {
        request_id: "r".to_owned(),
        client_ip: "192.0.2.1".to_owned(),
        user_agent: None,
        received_at: 0x0192_0000_0000,
    }
}

fn caller(fake: &Fake, email: &str, session: &str) -> Principal {
    let account = fake.find_by_email(email).unwrap().unwrap();
    Principal {
        user_id: account.user.id,
        email: email.to_owned(),
        roles: Vec::new(),
        session_id: session.to_owned(),
    }
}

fn sign_in(fake: &Fake, email: &str, password: &str) -> Result<Session, Problem> {
    let given = Credentials {
        email: email.to_owned(),
        password: password.to_owned(),
    };
    login(fake, &info(), &given)
}

const ADA: &str = "ada@example.com";

#[test]
fn every_failing_login_hashes_once_and_gives_the_same_answer() {
    let fake = Fake::with(&[
        (ADA, Some("hash(right password)"), true),
        ("elsewhere@example.com", None, true),
        ("gone@example.com", Some("hash(right password)"), false),
    ]);
    for (email, password) in [
        ("nobody@example.com", "right password"),
        (ADA, "wrong password"),
        (ADA, ""),
        ("elsewhere@example.com", ""),
        ("elsewhere@example.com", "right password"),
        ("gone@example.com", "right password"),
        (ADA, &"x".repeat(5000)),
    ] {
        fake.verified.set(0);
        let problem = sign_in(&fake, email, password).unwrap_err();
        assert_eq!(fake.verified.get(), 1, "{email} {password:?}");
        assert_eq!(
            (problem.status, problem.code.as_str()),
            (401, "invalid-credentials")
        );
        assert_eq!(problem.detail, "invalid email or password");
        assert!(problem.fields.is_empty() && problem.retry_after.is_none());
    }
    assert_eq!(fake.hashed.get(), 0);
    assert!(fake.sessions.borrow().is_empty());
    fake.verified.set(0);
    assert_eq!(sign_in(&fake, "ada", "x").unwrap_err().status, 400);
    assert_eq!(fake.verified.get(), 0);
}

#[test]
fn right_password_signs_in_whatever_the_case_of_the_address() {
    let fake = Fake::with(&[(ADA, Some("hash(right password)"), true)]);
    let session = sign_in(&fake, "Ada@Example.COM", "right password").unwrap();
    assert_eq!((session.user.email.as_str(), session.expires_in), (ADA, 86_400));
    assert_eq!((fake.verified.get(), fake.hashed.get()), (1, 0));
}

#[test]
fn hash_of_an_older_kind_is_renewed_at_login() {
    let fake = Fake::with(&[(ADA, Some("old(right password)"), true)]);
    sign_in(&fake, ADA, "right password").unwrap();
    assert_eq!(fake.hash_of(ADA).as_deref(), Some("hash(right password)"));
    assert!(fake.warned.borrow().is_empty());
}

#[test]
fn password_that_changes_during_a_login_ends_the_new_session() {
    let fake = Fake::with(&[(ADA, Some("hash(right password)"), true)]);
    fake.meanwhile.replace(Some("hash(another one)".to_owned()));
    assert_eq!(
        sign_in(&fake, ADA, "right password").unwrap_err().code,
        "invalid-credentials"
    );
    assert!(fake.sessions.borrow().is_empty());
    assert_eq!(fake.ended.take(), [Reason::Password]);
    // Renewed by another sign-in: still the same password.
    let fake = Fake::with(&[(ADA, Some("hash(right password)"), true)]);
    fake.meanwhile.replace(Some("old(right password)".to_owned()));
    sign_in(&fake, ADA, "right password").unwrap();
    assert_eq!(fake.sessions.borrow().len(), 1);
}

#[test]
fn want_of_a_place_to_hash_is_503_with_a_time() {
    let fake = Fake::with(&[(ADA, Some("hash(right password)"), true)]);
    fake.busy.set(true);
    for problem in [
        sign_in(&fake, ADA, "right password").unwrap_err(),
        sign_in(&fake, "nobody@example.com", "right password").unwrap_err(),
        make(&fake, "eve@example.com", "right password").unwrap_err(),
    ] {
        assert_eq!((problem.status, problem.retry_after), (503, Some(3)));
    }
}

fn make(fake: &Fake, email: &str, password: &str) -> Result<Session, Problem> {
    let given = Registration {
        email: email.to_owned(),
        password: password.to_owned(),
        name: Some("Ada".to_owned()),
    };
    register(fake, &info(), &given)
}

#[test]
fn account_is_made_once_whatever_the_case_of_the_address() {
    let fake = Fake::default();
    let session = make(&fake, "Ada@Example.com", "right password").unwrap();
    assert_eq!(session.user.id, "01920000-0000-7fff-bfff-ffffffffffff");
    assert_eq!(
        (session.user.email.as_str(), session.user.name.as_str()),
        (ADA, "Ada")
    );
    let again = make(&fake, "ADA@example.com", "right password").unwrap_err();
    assert_eq!((again.status, again.code.as_str()), (409, "email-already-exists"));
    assert_eq!(again.detail, "email already registered");
    assert_eq!(
        make(&fake, "b@example.com", "password").unwrap_err().code,
        "weak-password"
    );
}

#[test]
fn changed_password_asks_for_the_old_one_and_ends_the_other_sessions() {
    let fake = Fake::with(&[(ADA, Some("hash(right password)"), true)]);
    for _ in 0..3 {
        sign_in(&fake, ADA, "right password").unwrap();
    }
    let mine = fake.sessions.borrow()[1].1.clone();
    let me = caller(&fake, ADA, &mine);
    let change = |current: &str, new: &str| {
        let given = PasswordChange {
            current_password: current.to_owned(),
            new_password: new.to_owned(),
        };
        change_password(&fake, &me, &given)
    };
    for wrong in ["wrong password", "", &"x".repeat(5000)] {
        let problem = change(wrong, "another password").unwrap_err();
        assert_eq!(
            (problem.status, problem.code.as_str()),
            (400, "invalid-credentials")
        );
        assert_eq!(problem.fields[0].pointer, "/currentPassword");
    }
    assert_eq!(
        change("right password", "short").unwrap_err().code,
        "weak-password"
    );
    assert_eq!(fake.sessions.borrow().len(), 3);
    change("right password", "another password").unwrap();
    assert_eq!(
        fake.sessions.borrow().as_slice(),
        [(me.user_id.clone(), mine.clone())]
    );
    assert_eq!(fake.ended.take(), [Reason::Password; 2]);
    assert_eq!(sign_in(&fake, ADA, "right password").unwrap_err().status, 401);
    sign_in(&fake, ADA, "another password").unwrap();
}

#[test]
fn refresh_says_what_is_wrong_with_a_token() {
    let fake = Fake::with(&[(ADA, None, true)]);
    let id = caller(&fake, ADA, "s").user_id;
    assert_eq!(refresh(&fake, &id).unwrap().user.email, ADA);
    for (token, status, code) in [
        ("", 400, "invalid-request"),
        ("gone", 401, "invalid-refresh-token"),
        ("used", 401, "invalid-refresh-token"),
        ("old", 401, "invalid-refresh-token"),
        ("down", 503, "database-unavailable"),
        (
            "01990000-0000-7000-8000-000000000000",
            401,
            "invalid-refresh-token",
        ),
    ] {
        let problem = refresh(&fake, token).unwrap_err();
        assert_eq!((problem.status, problem.code.as_str()), (status, code), "{token}");
    }
}

#[test]
fn claims_are_judged_by_the_account_as_it_is_now() {
    let claims = |account: Option<User>| Claims {
        subject: "u".to_owned(),
        session_id: "s".to_owned(),
        issued_at: 0,
        expires_at: 1,
        extra: String::new(),
        account,
    };
    let principal = authenticate(claims(Some(user("u", ADA, true)))).unwrap();
    assert_eq!((principal.roles.len(), principal.session_id.as_str()), (1, "s"));
    let elsewhere = authenticate(claims(None)).unwrap_err();
    assert_eq!(
        (elsewhere.status, elsewhere.code.as_str()),
        (503, "accounts-elsewhere")
    );
    for wrong in [user("u", ADA, false), user("v", ADA, true)] {
        assert_eq!(authenticate(claims(Some(wrong))).unwrap_err().status, 401);
    }
}

#[test]
fn sessions_are_the_callers_own() {
    let fake = Fake::with(&[
        (ADA, Some("hash(right password)"), true),
        ("eve@example.com", Some("hash(right password)"), true),
    ]);
    sign_in(&fake, ADA, "right password").unwrap();
    sign_in(&fake, ADA, "right password").unwrap();
    let ids: Vec<String> = fake.sessions.borrow().iter().map(|(_, id)| id.clone()).collect();
    let ada = caller(&fake, ADA, &ids[1]);
    let listed = sessions(&fake, &ada).unwrap();
    let current: Vec<bool> = listed.iter().map(|it| it.current).collect();
    assert_eq!(current, [false, true]);
    let eve = caller(&fake, "eve@example.com", "s");
    for (who, session) in [(&eve, ids[0].as_str()), (&ada, "nonsense")] {
        let problem = revoke(&fake, who, session).unwrap_err();
        assert_eq!(
            (problem.status, problem.code.as_str()),
            (404, "session-not-found")
        );
    }
    revoke(&fake, &ada, &ids[0]).unwrap();
    logout(&fake, &ada).unwrap();
    // Twice is no error.
    logout(&fake, &ada).unwrap();
    assert!(fake.sessions.borrow().is_empty());
    assert_eq!(fake.ended.take(), [Reason::Revoked, Reason::Logout]);
    assert_eq!(me(&fake, &ada).unwrap().email, ADA);
    assert_eq!(verify_email("anything").unwrap_err().code, "invalid-token");
}
