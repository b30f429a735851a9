//! `berth:host/passwords`: hashing, so that no policy chooses the algorithm.
//!
//! A plugin can hash and verify. It can't choose the costs, skip the queue, or find out by the time of a call whether
//! there was a hash to compare with.

use std::sync::Arc;

use wasmtime::component::{HasData, Linker};

use super::bindings::berth::host::passwords::{self, Error, Verdict};
use crate::passwords::HashError;
use crate::runtime::instance::Ctx;
use crate::services::Services;

/// What the functions of this interface see of a store.
struct PasswordsView<'a> {
    services: &'a Arc<Services>,
}

impl passwords::Host for PasswordsView<'_> {
    async fn hash(&mut self, password: String) -> wasmtime::Result<Result<String, Error>> {
        told(self.services.passwords.hash(password).await)
    }

    async fn verify(
        &mut self,
        password: String,
        hash: Option<String>,
    ) -> wasmtime::Result<Result<Verdict, Error>> {
        let verdict = self.services.passwords.verify(password, hash).await;
        told(verdict.map(|verdict| Verdict {
            matches: verdict.matches,
            rehash: verdict.rehash,
        }))
    }
}

fn told<T>(result: Result<T, HashError>) -> wasmtime::Result<Result<T, Error>> {
    match result {
        Ok(it) => Ok(Ok(it)),
        Err(HashError::Busy(seconds)) => Ok(Err(Error::Busy(seconds))),
        Err(HashError::TooLong) => Ok(Err(Error::TooLong)),
        Err(HashError::Broken) => Err(HashError::Broken.into()),
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
    passwords::add_to_linker::<_, HasPasswords>(linker, |ctx: &mut Ctx| PasswordsView {
        services: &ctx.origin().plugin.services,
    })
}
