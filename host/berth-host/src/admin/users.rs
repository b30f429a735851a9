//! `/admin/users`: the accounts, as JSON. What is changed takes effect at once, is logged, and goes to the audit.

use std::sync::Arc;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::query;
use crate::body::ReplyBody;
use crate::error::{Error, FieldError};
use crate::gate::read_json;
use crate::identity::audit::{Audit, Entry, rows};
use crate::identity::users::{self, MAX_PAGE, MAX_ROLE, MAX_ROLES, PAGE, Page, UsersError, Which, is_role};
use crate::identity::{Account, Identity};
use crate::respond::{self, Success};
use crate::state::HostLimits;

/// What is asked. Accounts are named by id or e-mail address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Audit,
    List,
    Show(String),
    Roles(String),
    SetActive(String, bool),
    Delete(String),
}

impl Call {
    /// `/admin/audit`.
    pub(super) fn audit(method: &Method) -> Result<Self, Error> {
        if method == Method::GET {
            return Ok(Self::Audit);
        }
        Err(Error::MethodNotAllowed {
            allow: "GET".to_owned(),
        })
    }

    /// `/admin/users`, and below.
    pub(super) fn find(method: &Method, who: Option<String>, action: Option<&str>) -> Result<Self, Error> {
        let wrong_method = |allow: &str| {
            Err(Error::MethodNotAllowed {
                allow: allow.to_owned(),
            })
        };
        let post = |call| {
            if method == Method::POST {
                Ok(call)
            } else {
                wrong_method("POST")
            }
        };
        match (who, action) {
            (None, _) if method == Method::GET => Ok(Self::List),
            (None, _) => wrong_method("GET"),
            (Some(who), None) if method == Method::GET => Ok(Self::Show(who)),
            (Some(who), None) if method == Method::DELETE => Ok(Self::Delete(who)),
            (Some(_), None) => wrong_method("DELETE, GET"),
            (Some(who), Some("roles")) => post(Self::Roles(who)),
            (Some(who), Some("activate")) => post(Self::SetActive(who, true)),
            (Some(who), Some("deactivate")) => post(Self::SetActive(who, false)),
            (Some(_), Some(_)) => Err(Error::NotFound),
        }
    }
}

/// Who asks.
#[derive(Debug)]
pub(super) struct Operator<'a> {
    pub(super) audit: Option<&'a Arc<Audit>>,
    pub(super) client_ip: String,
    pub(super) request_id: String,
}

impl Operator<'_> {
    /// Say what was done, in the log and in the audit.
    fn did(&self, action: &'static str, account: &Account, detail: Option<String>) {
        tracing::info!(
            target: "berth::admin",
            action,
            user_id = %account.id,
            detail,
            client = self.client_ip,
            request_id = self.request_id,
            "an account was changed",
        );
        if let Some(audit) = self.audit {
            audit.record(Entry {
                action,
                outcome: "ok".into(),
                user: Some(account.id),
                account: Some(account.email.clone()),
                actor: Some("operator".to_owned()),
                client_ip: self.client_ip.clone(),
                request_id: self.request_id.clone(),
                detail,
                ..Entry::default()
            });
        }
    }
}

impl From<UsersError> for Error {
    fn from(error: UsersError) -> Self {
        match error {
            UsersError::NotFound => Self::UserNotFound,
            UsersError::TooManyRoles => Self::Json(vec![FieldError {
                pointer: "/add".to_owned(),
                detail: format!("an account has at most {MAX_ROLES} roles"),
            }]),
            UsersError::Database(error) => {
                tracing::warn!(target: "berth::admin", "accounts can't be asked for: {error}");
                Self::DatabaseUnavailable
            }
            UsersError::Sessions(_) => Self::DatabaseUnavailable,
        }
    }
}

pub(super) async fn call(
    identity: &Identity,
    operator: &Operator<'_>,
    call: Call,
    request: Request<Incoming>,
    limits: &HostLimits,
) -> Result<Response<ReplyBody>, Error> {
    let postgres = &*identity.postgres;
    let account = match call {
        Call::Audit => {
            let asked = Asked::parse(request.uri().query().unwrap_or_default(), "user")?;
            let before = asked.cursor(|text| text.parse().ok())?;
            let whose = asked.about.as_deref().map(Which::parse);
            return json(&rows::list(postgres, whose.as_ref(), before, asked.limit).await?);
        }
        Call::List => {
            let asked = Asked::parse(request.uri().query().unwrap_or_default(), "email")?;
            let after = asked.cursor(|text| Uuid::try_parse(text).ok())?;
            let page = users::list(postgres, asked.about.as_deref(), after, asked.limit).await?;
            return json(&PageJson::from(&page));
        }
        Call::Show(who) => {
            let (account, sessions) = users::find(postgres, &Which::parse(&who)).await?;
            return json(&UserJson::new(&account, Some(sessions)));
        }
        Call::Delete(who) => {
            let account = users::delete(postgres, &Which::parse(&who)).await?;
            operator.did("delete", &account, None);
            return json(&DeletedJson {
                deleted: account.id.to_string(),
            });
        }
        Call::SetActive(who, active) => {
            let account = users::set_active(identity, &Which::parse(&who), active).await?;
            operator.did(if active { "activate" } else { "deactivate" }, &account, None);
            account
        }
        Call::Roles(who) => {
            let change = RolesJson::decode(&read_json(request, limits).await?)?;
            let account =
                users::change_roles(postgres, &Which::parse(&who), &change.add, &change.remove).await?;
            operator.did("roles", &account, Some(change.summary()));
            account
        }
    };
    json(&UserJson::new(&account, None))
}

fn json(value: &impl Serialize) -> Result<Response<ReplyBody>, Error> {
    let body = serde_json::to_vec(value)
        .map_err(|error| Error::Internal(format!("an answer could not be encoded: {error}")))?;
    Ok(respond::json(Success::Done, body))
}

/// An account as the operator sees it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UserJson<'a> {
    id: String,
    email: &'a str,
    email_verified: bool,
    name: &'a str,
    roles: &'a [String],
    active: bool,
    mfa_enabled: bool,
    created_at: u64,
    updated_at: u64,
    /// Open ones; only where one account is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<u64>,
}

impl<'a> UserJson<'a> {
    /// Of an account, with its number of open sessions where that is known.
    fn new(account: &'a Account, sessions: Option<u64>) -> Self {
        Self {
            id: account.id.to_string(),
            email: &account.email,
            email_verified: account.email_verified,
            name: &account.name,
            roles: &account.roles,
            active: account.active,
            mfa_enabled: account.mfa_enabled,
            created_at: account.created_at,
            updated_at: account.updated_at,
            sessions,
        }
    }
}

#[derive(Serialize)]
struct PageJson<'a> {
    users: Vec<UserJson<'a>>,
    /// What `cursor` takes for the next page; null at the end.
    next: Option<String>,
}

impl<'a> From<&'a Page> for PageJson<'a> {
    fn from(page: &'a Page) -> Self {
        Self {
            users: page.users.iter().map(|user| UserJson::new(user, None)).collect(),
            next: page.next.map(|id| id.to_string()),
        }
    }
}

#[derive(Serialize)]
struct DeletedJson {
    deleted: String,
}

/// The query of a list.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    /// Which ones; what it is called depends on the list.
    about: Option<String>,
    cursor: Option<String>,
    limit: u32,
}

impl Asked {
    fn parse(query: &str, about: &str) -> Result<Self, Error> {
        let mut asked = Self {
            about: None,
            cursor: None,
            limit: PAGE,
        };
        for (name, value) in query::pairs(Some(query))? {
            match name.as_str() {
                "cursor" => asked.cursor = Some(value).filter(|text| !text.is_empty()),
                "limit" => {
                    let limit = query::number("limit", &value, 1, u64::from(MAX_PAGE))?;
                    asked.limit = u32::try_from(limit).unwrap_or(MAX_PAGE);
                }
                name if name == about => asked.about = Some(value).filter(|text| !text.is_empty()),
                _ => {
                    return Err(Error::InvalidParameter(format!(
                        "there is {about}, cursor and limit, and nothing else"
                    )));
                }
            }
        }
        Ok(asked)
    }

    fn cursor<T>(&self, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Error> {
        self.cursor
            .as_deref()
            .map(|text| {
                parse(text).ok_or_else(|| {
                    Error::InvalidParameter(
                        "cursor is not one; take it from `next` of the last page".to_owned(),
                    )
                })
            })
            .transpose()
    }
}

#[derive(Debug, Deserialize)]
struct RolesJson {
    #[serde(default)]
    add: Vec<String>,
    #[serde(default)]
    remove: Vec<String>,
}

impl RolesJson {
    fn decode(body: &[u8]) -> Result<Self, Error> {
        let fault = |pointer: String, detail: String| FieldError { pointer, detail };
        let change: Self = serde_json::from_slice(body).map_err(|error| {
            Error::Json(vec![fault(
                String::new(),
                format!("it is not {{add, remove}}: {error}"),
            )])
        })?;
        if change.add.is_empty() && change.remove.is_empty() {
            let what = "name at least one role in `add` or `remove`";
            return Err(Error::Json(vec![fault(String::new(), what.to_owned())]));
        }
        let lists = [("add", &change.add), ("remove", &change.remove)];
        if let Some((name, _)) = lists.iter().find(|(_, list)| list.len() > MAX_ROLES) {
            let what = format!("has more than {MAX_ROLES} roles");
            return Err(Error::Json(vec![fault(format!("/{name}"), what)]));
        }
        let faults: Vec<FieldError> = lists
            .iter()
            .flat_map(|(name, list)| list.iter().enumerate().map(move |(at, role)| (name, at, role)))
            .filter(|(_, _, role)| !is_role(role))
            .map(|(name, at, _)| {
                let what = format!("a role is 1 to {MAX_ROLE} letters, digits and \"._:-\"");
                fault(format!("/{name}/{at}"), what)
            })
            .collect();
        if faults.is_empty() {
            Ok(change)
        } else {
            Err(Error::Json(faults))
        }
    }

    /// `+admin -reader`.
    fn summary(&self) -> String {
        let signed = |sign: char, roles: &[String]| -> Vec<String> {
            roles.iter().map(|role| format!("{sign}{role}")).collect()
        };
        let mut all = signed('+', &self.add);
        all.extend(signed('-', &self.remove));
        all.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_of_a_list_is_read_whole_or_refused() {
        let parse = |query| Asked::parse(query, "email");
        let asked = parse("email=ada%2Bx%40&limit=7&cursor=12").unwrap();
        assert_eq!((asked.about.as_deref(), asked.limit), (Some("ada+x@"), 7));
        assert_eq!(asked.cursor(|text| text.parse::<i64>().ok()).unwrap(), Some(12));
        assert!(asked.cursor(|text| Uuid::try_parse(text).ok()).is_err());
        assert_eq!(parse("").unwrap().limit, PAGE);
        for bad in ["limit=0", "limit=201", "limit=x", "emial=x", "email=%ff"] {
            assert!(matches!(parse(bad), Err(Error::InvalidParameter(_))), "{bad}");
        }
    }

    #[test]
    fn roles_are_checked_one_by_one() {
        let change = RolesJson::decode(br#"{"add":["admin"],"remove":["reader"],"more":1}"#).unwrap();
        assert_eq!(change.summary(), "+admin -reader");
        let faults = |body: &str| match RolesJson::decode(body.as_bytes()) {
            Err(Error::Json(faults)) => faults.into_iter().map(|f| f.pointer).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            faults(r#"{"add":["ok","two words"],"remove":[""]}"#),
            ["/add/1", "/remove/0"]
        );
        for body in ["{}", "[]", "", r#"{"add":"admin"}"#, r#"{"add":[7]}"#] {
            assert_eq!(faults(body), [""], "{body}");
        }
        let many = format!(r#"{{"remove":[{}]}}"#, vec!["\"x\""; 65].join(","));
        assert_eq!(faults(&many), ["/remove"]);
    }
}
