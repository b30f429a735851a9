//! The decisions, on whatever [`Host`] there is.
//!
//! | who asks | what is promised |
//! |---|---|
//! | `login` | one answer and the work of one hash for an unknown address, a wrong or empty password, an account without a password, a deactivated account |
//! | `register` | says that an address has an account, because its owner has to be told and nothing is mailed; rate limits of the host bound what can be found out that way |
//! | `change-password` | the present password is asked for; every other session ends |
//! | `authenticate` | decided on the account as it is now, not as it was when the token was issued |

use crate::accounts::{Account, NewAccount, NotMade};
use crate::berth::host::passwords;
use crate::berth::host::sessions::{Reason, Tokens};
use crate::exports::berth::policy::auth::{
    Claims, Credentials, PasswordChange, Principal, Problem, Registration, RequestInfo, Session, SessionInfo,
    User,
};
use crate::host::Host;
use crate::refusal::{
    accounts_elsewhere, changed_but_others_signed_in, created_but_not_signed_in, email_taken,
    invalid_access_token, invalid_credentials, invalid_mail_token, invalid_refresh_token, session_not_found,
    user_not_found, wrong_current_password,
};
use crate::validate::{self, accept, is_uuid};

pub fn register(host: &impl Host, info: &RequestInfo, given: &Registration) -> Result<Session, Problem> {
    let name = given.name.as_deref().unwrap_or_default();
    let email = accept(validate::registration(&given.email, &given.password, name))?;
    let hash = host.hash(&given.password)?;
    let account = NewAccount {
        id: uuid_v7(info.received_at, host.random()?),
        email: &given.email,
        canonical: &email,
        hash: &hash,
        name,
    };
    // Whether the address is free is for the database alone to say: two may register it at once.
    let user = host.create(&account).map_err(|not_made| match not_made {
        NotMade::Taken => email_taken(),
        NotMade::Address => validate::problem(vec![validate::unusable_email()]),
        NotMade::Other(problem) => problem,
    })?;
    match host.open(&user.id, info) {
        Ok(tokens) => Ok(session(user, tokens)),
        Err(error) => Err(created_but_not_signed_in(error.into())),
    }
}

pub fn login(host: &impl Host, info: &RequestInfo, given: &Credentials) -> Result<Session, Problem> {
    let email = accept(validate::login(&given.email))?;
    let account = host.find_by_email(&email)?;
    // Once, and before anything is decided.
    let hash = account.as_ref().and_then(|account| account.hash.as_deref());
    let verdict = match host.verify(&given.password, hash) {
        Ok(verdict) => verdict,
        // Nobody's password is that long.
        Err(passwords::Error::TooLong) => return Err(invalid_credentials()),
        Err(busy) => return Err(busy.into()),
    };
    let Some(Account {
        user,
        hash: Some(hash),
    }) = account
    else {
        return Err(invalid_credentials());
    };
    if !verdict.matches || !user.active {
        return Err(invalid_credentials());
    }
    let hash = if verdict.rehash {
        renew(host, &user.id, hash, &given.password)
    } else {
        hash
    };
    let tokens = host.open(&user.id, info)?;
    still_right(host, &user.id, &hash, &given.password, &tokens)?;
    Ok(session(user, tokens))
}

/// Store a hash of today's kind. A failure costs nothing but the next attempt.
fn renew(host: &impl Host, user: &str, old: String, password: &str) -> String {
    let renewed = match host.hash(password) {
        Ok(new) => match host.replace_hash(user, &old, &new) {
            Ok(true) => return new,
            Ok(false) => return old,
            Err(problem) => problem.code,
        },
        Err(error) => Problem::from(error).code,
    };
    host.warn(&format!(
        "a hash of an older kind could not be renewed: {renewed}"
    ));
    old
}

/// A password that was changed while it was being checked ends the session that it has just opened: whoever changed it
/// has ended every session that was there, and this one may have come a moment later.
fn still_right(
    host: &impl Host,
    user: &str,
    hash: &str,
    password: &str,
    tokens: &Tokens,
) -> Result<(), Problem> {
    let now = host
        .find(user)?
        .filter(|now| now.user.active)
        .and_then(|now| now.hash);
    let right = match now.as_deref() {
        Some(now) if now == hash => true,
        // Renewed by another sign-in, most likely.
        Some(now) => host.verify(password, Some(now))?.matches,
        None => false,
    };
    if right {
        return Ok(());
    }
    host.close(user, &tokens.session_id, Reason::Password)?;
    Err(invalid_credentials())
}

pub fn refresh(host: &impl Host, token: &str) -> Result<Session, Problem> {
    accept(validate::token("/refreshToken", token))?;
    let tokens = host.refresh(token).map_err(|error| match error {
        crate::berth::host::sessions::Error::NoUser => invalid_refresh_token(),
        error => error.into(),
    })?;
    match host.find(&tokens.user_id)? {
        Some(account) if account.user.active => Ok(session(account.user, tokens)),
        _ => Err(invalid_refresh_token()),
    }
}

pub fn logout(host: &impl Host, caller: &Principal) -> Result<(), Problem> {
    // One that has ended meanwhile has ended.
    host.close(&caller.user_id, &caller.session_id, Reason::Logout)?;
    Ok(())
}

pub fn authenticate(claims: Claims) -> Result<Principal, Problem> {
    let Some(account) = claims.account else {
        return Err(accounts_elsewhere());
    };
    if account.id != claims.subject || !account.active {
        return Err(invalid_access_token());
    }
    Ok(Principal {
        user_id: account.id,
        email: account.email,
        roles: account.roles,
        session_id: claims.session_id,
    })
}

pub fn me(host: &impl Host, caller: &Principal) -> Result<User, Problem> {
    let account = host.find(&caller.user_id)?.ok_or_else(user_not_found)?;
    Ok(account.user)
}

pub fn change_password(host: &impl Host, caller: &Principal, given: &PasswordChange) -> Result<(), Problem> {
    accept(validate::password_change(&caller.email, &given.new_password))?;
    let account = host.find(&caller.user_id)?;
    let hash = account.and_then(|account| account.hash);
    let verdict = match host.verify(&given.current_password, hash.as_deref()) {
        Ok(verdict) => verdict,
        Err(passwords::Error::TooLong) => return Err(wrong_current_password()),
        Err(busy) => return Err(busy.into()),
    };
    let (Some(hash), true) = (hash, verdict.matches) else {
        return Err(wrong_current_password());
    };
    let new = host.hash(&given.new_password)?;
    if !host.replace_hash(&caller.user_id, &hash, &new)? {
        // Somebody else was faster, so what was given as the present password isn't it any more.
        return Err(wrong_current_password());
    }
    match host.close_all(&caller.user_id, Some(&caller.session_id), Reason::Password) {
        Ok(_) => Ok(()),
        Err(error) => Err(changed_but_others_signed_in(error.into())),
    }
}

/// The host mails nothing yet, so there is no token that could be right.
pub fn verify_email(token: &str) -> Result<User, Problem> {
    accept(validate::token("/token", token))?;
    Err(invalid_mail_token())
}

pub fn sessions(host: &impl Host, caller: &Principal) -> Result<Vec<SessionInfo>, Problem> {
    let open = host.sessions(&caller.user_id)?;
    Ok(open
        .into_iter()
        .map(|it| SessionInfo {
            current: it.id == caller.session_id,
            id: it.id,
            created_at: it.created_at,
            last_used_at: it.last_used_at,
            client_ip: it.client_ip,
            user_agent: it.user_agent,
        })
        .collect())
}

pub fn revoke(host: &impl Host, caller: &Principal, session: &str) -> Result<(), Problem> {
    if is_uuid(session) && host.close(&caller.user_id, session, Reason::Revoked)? {
        return Ok(());
    }
    Err(session_not_found())
}

fn session(user: User, tokens: Tokens) -> Session {
    Session {
        access_token: tokens.access_token,
        refresh_token: tokens.refresh_token,
        expires_in: tokens.expires_in,
        user,
    }
}

/// RFC 9562 section 5.7: 48 bits of time, then what nobody can guess.
fn uuid_v7(milliseconds: u64, random: [u8; 10]) -> String {
    let time = milliseconds.to_be_bytes();
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&time[2..]);
    bytes[6..].copy_from_slice(&random);
    bytes[6] = 0x70 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests;
