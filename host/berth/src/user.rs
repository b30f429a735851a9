//! `berth user`: the accounts of a running host, by its admin API.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use http::Method;
use serde_json::{Value, json};

use crate::args::{UserArgs, UserCommand};
use crate::check;
use crate::client::{Client, ClientError};
use crate::text::{columns, escape, pretty, text, time};
use crate::{EXIT_FAILED, EXIT_FAULTY};

/// The most accounts of one answer.
const PAGE: u32 = 200;

pub(crate) fn run(args: &UserArgs) -> ExitCode {
    let spec = match check::host_of(&args.config) {
        Ok(spec) => spec,
        Err(code) => return code,
    };
    if let Some(role) = bad_role(&args.command) {
        eprintln!("berth: {role:?} is no role: 1 to 64 letters, digits and \"._:-\"");
        return ExitCode::from(EXIT_FAULTY);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(async {
            let client = Client::new(&spec).map_err(|error| error.to_string())?;
            perform(&client, args).await
        }),
        Err(error) => Err(format!("the network can't be used: {error}")),
    };
    match done {
        Ok(text) => check::write(&text, 0),
        Err(message) => {
            eprintln!("berth: {message}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// The first role that the host would refuse.
fn bad_role(command: &UserCommand) -> Option<&String> {
    match command {
        UserCommand::Role { add, remove, .. } => add
            .iter()
            .chain(remove)
            .find(|role| !berth_host::identity::users::is_role(role)),
        _ => None,
    }
}

/// What is to be printed.
async fn perform(client: &Client, args: &UserArgs) -> Result<String, String> {
    match &args.command {
        UserCommand::List { email, limit } => {
            let query = ("/admin/users", "email", email.as_deref().unwrap_or_default());
            let (users, more) = list(client, query, "users", *limit)
                .await
                .map_err(|error| error.to_string())?;
            if more && !args.json {
                eprintln!("berth: there are more; raise --limit, or narrow with --email");
            }
            Ok(if args.json {
                pretty(&json!({ "users": users }))
            } else {
                table(&users)
            })
        }
        UserCommand::Audit { user, limit } => {
            let query = ("/admin/audit", "user", user.as_deref().unwrap_or_default());
            let (entries, _) = list(client, query, "entries", *limit)
                .await
                .map_err(|error| error.to_string())?;
            Ok(if args.json {
                pretty(&json!({ "entries": entries }))
            } else {
                audit_table(&entries)
            })
        }
        UserCommand::Show { user } => show(client, user, Method::GET, "", None, args.json).await,
        UserCommand::Role { user, add, remove } => {
            let change = json!({ "add": add, "remove": remove });
            show(client, user, Method::POST, "/roles", Some(&change), args.json).await
        }
        UserCommand::Deactivate { user } => {
            show(client, user, Method::POST, "/deactivate", None, args.json).await
        }
        UserCommand::Activate { user } => {
            show(client, user, Method::POST, "/activate", None, args.json).await
        }
        UserCommand::Delete { user, yes } => {
            if !yes {
                confirm(client, user).await?;
            }
            let deleted = one(client, user, Method::DELETE, "", None).await?;
            Ok(if args.json {
                pretty(&deleted)
            } else {
                format!("deleted {} ({})\n", user, text(&deleted, "deleted"))
            })
        }
    }
}

/// Page after page, until there are enough. The query is a path, the name of its filter, and what to filter by.
async fn list(
    client: &Client,
    (path, filter, about): (&str, &str, &str),
    member: &str,
    limit: u32,
) -> Result<(Vec<Value>, bool), ClientError> {
    let mut found = Vec::new();
    let mut after = String::new();
    loop {
        let left = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
        let mut path = format!("{path}?limit={}", left.min(PAGE));
        for (name, value) in [(filter, about), ("cursor", &after)] {
            if !value.is_empty() {
                path.push_str(&format!("&{name}={}", escape(value)));
            }
        }
        let mut page = client.call(Method::GET, &path, None).await?;
        after = text(&page, "next");
        let before = found.len();
        if let Some(Value::Array(more)) = page.get_mut(member).map(Value::take) {
            found.extend(more);
        }
        // Whatever answers there: a page with nothing on it is the last one.
        let nothing = found.len() == before;
        if after.is_empty() || nothing || found.len() >= limit as usize {
            return Ok((found, !after.is_empty()));
        }
    }
}

/// One call about one account, and its answer.
async fn one(
    client: &Client,
    user: &str,
    method: Method,
    action: &str,
    body: Option<&Value>,
) -> Result<Value, String> {
    let path = format!("/admin/users/{}{action}", escape(user));
    client
        .call(method, &path, body)
        .await
        .map_err(|error| match error {
            ClientError::Refused(refusal) if refusal.code == "user-not-found" => {
                format!("there is no account {user:?}; `berth user list` shows them")
            }
            error => error.to_string(),
        })
}

/// The same, with the account to be printed.
async fn show(
    client: &Client,
    user: &str,
    method: Method,
    action: &str,
    body: Option<&Value>,
    json: bool,
) -> Result<String, String> {
    let account = one(client, user, method, action, body).await?;
    Ok(if json { pretty(&account) } else { lines(&account) })
}

/// Ask whoever sits there. Nobody does where standard input is no terminal.
async fn confirm(client: &Client, user: &str) -> Result<(), String> {
    let account = one(client, user, Method::GET, "", None).await?;
    if !io::stdin().is_terminal() {
        return Err("deleting can't be undone; add --yes to do it without being asked".to_owned());
    }
    eprint!(
        "Delete {} ({}) and end {} sessions? This can't be undone. Type yes: ",
        text(&account, "email"),
        text(&account, "id"),
        text(&account, "sessions")
    );
    let mut answer = String::new();
    io::stderr()
        .flush()
        .and_then(|()| io::stdin().lock().read_line(&mut answer))
        .map_err(|error| format!("the answer can't be read: {error}"))?;
    if answer.trim() == "yes" {
        Ok(())
    } else {
        Err("nothing was deleted".to_owned())
    }
}

fn state(user: &Value) -> &'static str {
    match user.get("active").and_then(Value::as_bool) {
        Some(true) => "active",
        _ => "deactivated",
    }
}

fn table(users: &[Value]) -> String {
    let rows = users.iter().map(|user| {
        [
            text(user, "id"),
            text(user, "email"),
            state(user).to_owned(),
            time(user, "createdAt"),
            text(user, "roles"),
        ]
    });
    columns(["ID", "EMAIL", "STATE", "CREATED", "ROLES"], rows)
}

fn audit_table(entries: &[Value]) -> String {
    let rows = entries.iter().map(|entry| {
        [
            time(entry, "at"),
            text(entry, "action"),
            text(entry, "outcome"),
            text(entry, "account"),
            text(entry, "clientIp"),
            text(entry, "actor"),
            text(entry, "detail"),
        ]
    });
    columns(
        ["TIME", "ACTION", "OUTCOME", "ACCOUNT", "FROM", "BY", "DETAIL"],
        rows,
    )
}

fn lines(user: &Value) -> String {
    let verified = match user.get("emailVerified").and_then(Value::as_bool) {
        Some(true) => "verified",
        _ => "not verified",
    };
    let mut lines = vec![
        ("id", text(user, "id")),
        ("email", format!("{} ({verified})", text(user, "email"))),
        ("name", text(user, "name")),
        ("state", state(user).to_owned()),
        ("roles", text(user, "roles")),
        ("created", time(user, "createdAt")),
        ("updated", time(user, "updatedAt")),
    ];
    if user.get("sessions").is_some() {
        lines.push(("sessions", text(user, "sessions")));
    }
    lines
        .into_iter()
        .map(|(name, value)| format!("{}\n", format!("{name:9} {value}").trim_end()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_shown_for_people() {
        let user = json!({
            "id": "01920000-0000-7000-8000-000000000001", "email": "ada@example.com", "emailVerified": false,
            "name": "Ada\u{1b}[2J", "roles": ["admin", "ops"], "active": true, "createdAt": 1_735_689_600_000_u64,
            "updatedAt": 1_735_689_600_000_u64, "sessions": 2,
        });
        assert_eq!(
            lines(&user),
            "id        01920000-0000-7000-8000-000000000001\n\
             email     ada@example.com (not verified)\n\
             name      Ada[2J\n\
             state     active\n\
             roles     admin, ops\n\
             created   2025-01-01T00:00:00Z\n\
             updated   2025-01-01T00:00:00Z\n\
             sessions  2\n"
        );
        assert_eq!(
            table(&[user]),
            "ID                                    EMAIL            STATE   CREATED               ROLES\n\
             01920000-0000-7000-8000-000000000001  ada@example.com  active  2025-01-01T00:00:00Z  admin, ops\n"
        );
    }
}
