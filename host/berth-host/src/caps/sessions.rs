//! `berth:host/sessions`: who is signed in. A plugin can open, refresh, list and end sessions, and can't bring an ended
//! one back, use a refresh token twice, or see one that it wasn't given.

use wasmtime::component::{HasData, Linker};

use super::bindings::berth::host::sessions::{self, Error, Info, Tokens};
use crate::runtime::instance::Ctx;

struct SessionsView<'a> {
    _ctx: &'a mut Ctx,
}

impl sessions::Host for SessionsView<'_> {
    async fn open(
        &mut self,
        _user_id: String,
        _client_ip: String,
        _user_agent: Option<String>,
        _extra: String,
    ) -> wasmtime::Result<Result<Tokens, Error>> {
        Ok(Err(Error::Unavailable))
    }

    async fn refresh(
        &mut self,
        _refresh_token: String,
        _extra: String,
    ) -> wasmtime::Result<Result<Tokens, Error>> {
        Ok(Err(Error::Unavailable))
    }

    async fn open_sessions(&mut self, _user_id: String) -> wasmtime::Result<Result<Vec<Info>, Error>> {
        Ok(Err(Error::Unavailable))
    }

    async fn close(
        &mut self,
        _user_id: String,
        _session_id: String,
    ) -> wasmtime::Result<Result<bool, Error>> {
        Ok(Err(Error::Unavailable))
    }

    async fn close_all(
        &mut self,
        _user_id: String,
        _keep: Option<String>,
    ) -> wasmtime::Result<Result<u32, Error>> {
        Ok(Err(Error::Unavailable))
    }
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
    sessions::add_to_linker::<_, HasSessions>(linker, |ctx: &mut Ctx| SessionsView { _ctx: ctx })
}
