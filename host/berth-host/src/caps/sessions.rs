//! `berth:host/sessions`: who is signed in. A plugin can open, refresh, list and end sessions, and can't bring an ended
//! one back, use a refresh token twice, or see one that it wasn't given.

use std::sync::Arc;

use uuid::Uuid;
use wasmtime::component::{HasData, Linker};

use super::bindings::berth::host::sessions::{self, Error, Info, Reason, Tokens};
use crate::identity::audit::Entry;
use crate::identity::sessions::{EndedBy, Opened, Reuse, SessionError, Sessions};
use crate::runtime::instance::{Ctx, Origin};
use crate::tokens::issue::Extra;

/// What the functions of this interface see of a store.
struct SessionsView<'a> {
    origin: &'a Arc<Origin>,
}

impl SessionsView<'_> {
    fn sessions(&self) -> wasmtime::Result<&Sessions> {
        let identity = self.origin.plugin.services.identity.as_ref();
        let sessions = identity.map(|identity| &identity.sessions);
        sessions.ok_or_else(|| wasmtime::Error::msg("`sessions` is granted and there is no identity store"))
    }

    /// A theft is on the record of its account, whatever the plugin says to its client.
    fn record(&self, reuse: &Reuse) {
        let Origin {
            plugin,
            version,
            request_id,
            client,
            ..
        } = &**self.origin;
        let Some(audit) = &plugin.services.audit else {
            return;
        };
        audit.record(Entry {
            action: "refresh",
            outcome: "reused".into(),
            user: Some(reuse.user),
            account: Some(reuse.email.clone()),
            actor: None,
            client_ip: client.map(|client| client.to_string()).unwrap_or_default(),
            request_id: request_id.to_str().unwrap_or_default().to_owned(),
            plugin: Some(plugin.name.clone()),
            digest: Some(version.digest.clone()),
            detail: Some(reuse.session.to_string()),
        });
    }
}

impl sessions::Host for SessionsView<'_> {
    async fn open(
        &mut self,
        user_id: String,
        client_ip: String,
        user_agent: Option<String>,
        extra: String,
    ) -> wasmtime::Result<Result<Tokens, Error>> {
        let sessions = self.sessions()?;
        let opened = async {
            let (user, extra) = (id("user-id", &user_id)?, Extra::parse(&extra)?);
            sessions
                .open(user, &client_ip, user_agent.as_deref(), &extra)
                .await
        };
        told(opened.await.map(tokens))
    }

    async fn refresh(
        &mut self,
        refresh_token: String,
        extra: String,
    ) -> wasmtime::Result<Result<Tokens, Error>> {
        let sessions = self.sessions()?;
        let opened = async {
            let extra = Extra::parse(&extra)?;
            sessions.refresh(&refresh_token, &extra).await
        };
        let opened = opened.await;
        if let Err(SessionError::Reused(reuse)) = &opened {
            self.record(reuse);
        }
        told(opened.map(tokens))
    }

    async fn open_sessions(&mut self, user_id: String) -> wasmtime::Result<Result<Vec<Info>, Error>> {
        let sessions = self.sessions()?;
        let list = async { Ok(sessions.list(id("user-id", &user_id)?).await?) };
        let info = |info: crate::identity::sessions::SessionInfo| Info {
            id: info.id.to_string(),
            created_at: info.created_at,
            last_used_at: info.last_used_at,
            client_ip: info.client_ip,
            user_agent: info.user_agent,
        };
        told(list.await.map(|list| list.into_iter().map(info).collect()))
    }

    async fn close(
        &mut self,
        user_id: String,
        session_id: String,
        reason: Reason,
    ) -> wasmtime::Result<Result<bool, Error>> {
        let sessions = self.sessions()?;
        let closed = async {
            let user = id("user-id", &user_id)?;
            // A path's parameter, mostly: what is no id is nobody's session.
            match Uuid::try_parse(&session_id) {
                Ok(session) => Ok(sessions.close(user, session, ended_by(reason)).await?),
                Err(_) => Ok(false),
            }
        };
        told(closed.await)
    }

    async fn close_all(
        &mut self,
        user_id: String,
        keep: Option<String>,
        reason: Reason,
    ) -> wasmtime::Result<Result<u32, Error>> {
        let sessions = self.sessions()?;
        let closed = async {
            let user = id("user-id", &user_id)?;
            let keep = keep.as_deref().map(|keep| id("keep", keep)).transpose()?;
            Ok(sessions.close_all(user, keep, ended_by(reason)).await?)
        };
        told(closed.await)
    }
}

const fn ended_by(reason: Reason) -> EndedBy {
    match reason {
        Reason::Logout => EndedBy::Logout,
        Reason::Revoked => EndedBy::Revoked,
        Reason::Password => EndedBy::Password,
    }
}

fn id(name: &str, text: &str) -> Result<Uuid, SessionError> {
    Uuid::try_parse(text).map_err(|_| SessionError::Invalid(format!("`{name}` is not a UUID")))
}

fn tokens(opened: Opened) -> Tokens {
    Tokens {
        session_id: opened.session.to_string(),
        user_id: opened.user.to_string(),
        access_token: opened.access_token,
        refresh_token: opened.refresh_token,
        expires_in: opened.expires_in,
    }
}

fn told<T>(result: Result<T, SessionError>) -> wasmtime::Result<Result<T, Error>> {
    Ok(match result {
        Ok(it) => Ok(it),
        Err(SessionError::Invalid(what)) => Err(Error::Invalid(what)),
        Err(SessionError::NoUser) => Err(Error::NoUser),
        Err(SessionError::NoSession) => Err(Error::NoSession),
        Err(SessionError::Reused(_)) => Err(Error::Reused),
        Err(SessionError::Unavailable(_)) => Err(Error::Unavailable),
        Err(error @ SessionError::Broken(_)) => return Err(error.into()),
    })
}

struct HasSessions;

impl HasData for HasSessions {
    type Data<'a> = SessionsView<'a>;
}

/// Link the interface.
///
/// # Errors
/// It is linked already.
pub fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    sessions::add_to_linker::<_, HasSessions>(linker, |ctx: &mut Ctx| SessionsView { origin: ctx.origin() })
}
