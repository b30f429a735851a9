//! `berth:host/passwords`: hashing, so that no policy chooses the algorithm.

use wasmtime::component::{HasData, Linker};

use super::bindings::berth::host::passwords::{self, Error, Verdict};
use crate::runtime::instance::Ctx;

struct PasswordsView<'a> {
    _ctx: &'a mut Ctx,
}

impl passwords::Host for PasswordsView<'_> {
    async fn hash(&mut self, _password: String) -> wasmtime::Result<Result<String, Error>> {
        Ok(Err(Error::Busy(1)))
    }

    async fn verify(
        &mut self,
        _password: String,
        _hash: Option<String>,
    ) -> wasmtime::Result<Result<Verdict, Error>> {
        Ok(Err(Error::Busy(1)))
    }
}

struct HasPasswords;

impl HasData for HasPasswords {
    type Data<'a> = PasswordsView<'a>;
}

/// Link the interface.
///
/// # Errors
/// It is linked already.
pub fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    passwords::add_to_linker::<_, HasPasswords>(linker, |ctx: &mut Ctx| PasswordsView { _ctx: ctx })
}
