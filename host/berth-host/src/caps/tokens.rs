//! `berth:host/tokens`: access tokens, so that no plugin holds a key.

use wasmtime::component::{HasData, Linker};

use super::bindings::berth::host::tokens::{self, Claims, IssueError};
use crate::runtime::instance::Ctx;

struct TokensView<'a> {
    _ctx: &'a mut Ctx,
}

impl tokens::Host for TokensView<'_> {
    fn issue(
        &mut self,
        _subject: String,
        _session_id: String,
        _life: Option<u32>,
        _extra: String,
    ) -> wasmtime::Result<Result<String, IssueError>> {
        Ok(Err(IssueError::Invalid(String::new())))
    }

    fn verify(&mut self, _token: String) -> wasmtime::Result<Option<Claims>> {
        Ok(None)
    }
}

struct HasTokens;

impl HasData for HasTokens {
    type Data<'a> = TokensView<'a>;
}

/// Link the interface.
///
/// # Errors
/// It is linked already.
pub fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    tokens::add_to_linker::<_, HasTokens>(linker, |ctx: &mut Ctx| TokensView { _ctx: ctx })
}
