//! `berth:host/tokens`: access tokens, so that no plugin holds a key.
//!
//! A plugin can have a token signed and can ask what one says. It can't choose issuer, audience or algorithm, let a token
//! live longer than `tokens.access_life`, or make one that passes for a session that isn't open.

use std::sync::Arc;

use wasmtime::component::{HasData, Linker};

use super::bindings::berth::host::tokens::{self, Claims, IssueError};
use crate::runtime::instance::Ctx;
use crate::services::Services;
use crate::tokens::issue;

/// What the functions of this interface see of a store.
struct TokensView<'a> {
    services: &'a Arc<Services>,
}

impl tokens::Host for TokensView<'_> {
    fn issue(
        &mut self,
        subject: String,
        session_id: String,
        life: Option<u32>,
        extra: String,
    ) -> wasmtime::Result<Result<String, IssueError>> {
        let Some(issuer) = &self.services.issuer else {
            return Err(wasmtime::Error::msg(
                "`tokens` is granted and there is no key ring",
            ));
        };
        let issued = issue::Extra::parse(&extra)
            .and_then(|extra| issuer.issue(&subject, &session_id, life, &extra))
            .map(|issued| issued.token);
        match issued {
            Err(issue::IssueError::Invalid(what)) => Ok(Err(IssueError::Invalid(what))),
            issued => Ok(Ok(issued?)),
        }
    }

    fn verify(&mut self, token: String) -> wasmtime::Result<Option<Claims>> {
        let claims = self
            .services
            .tokens
            .as_ref()
            .and_then(|verifier| verifier.verify(&token).ok());
        Ok(claims.map(|claims| Claims {
            subject: claims.subject,
            session_id: claims.session_id,
            issued_at: claims.issued_at,
            expires_at: claims.expires_at,
            extra: claims.extra,
        }))
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
    tokens::add_to_linker::<_, HasTokens>(linker, |ctx: &mut Ctx| TokensView {
        services: &ctx.origin().plugin.services,
    })
}
