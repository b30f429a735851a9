//! `[tokens]` and `[passwords]`.

use std::time::Duration;

use super::read::{Reader, Section};
use super::values;
use crate::grants::Capability;
use crate::identity::SessionSpec;
use crate::passwords::PasswordSpec;
use crate::runtime::plugin::PluginSpec;
use crate::tokens::{TokenAlgorithm, TokenSpec};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What `[tokens]` says.
pub(super) struct Issuing {
    pub(super) tokens: TokenSpec,
    pub(super) sessions: SessionSpec,
    /// Where the file says whose tokens they are.
    key_file_at: Option<usize>,
}

pub(super) fn tokens(reader: &Reader<'_>, root: &Section<'_, '_>) -> Issuing {
    let section = root.section("tokens");
    let text = |key: &str| {
        let given = section.scalar(key, values::path);
        given.unwrap_or_else(|| "berth".to_owned())
    };
    let key_file = section.scalar("hs256_key_file", values::path);
    let issuing = Issuing {
        tokens: TokenSpec {
            hs256_key_file: key_file.map(|path| reader.resolve(&path)),
            algorithm: section
                .scalar("algorithm", values::token_algorithm)
                .unwrap_or(TokenAlgorithm::EdDsa),
            issuer: text("issuer"),
            audience: text("audience"),
        },
        sessions: SessionSpec {
            access_life: section.scalar("access_life", values::life).unwrap_or(DAY),
            refresh_life: section.scalar("refresh_life", values::life).unwrap_or(30 * DAY),
        },
        key_file_at: section.at_of("hs256_key_file"),
    };
    section.finish();
    issuing
}

/// With the key of somebody else who issues tokens, nobody here does.
pub(super) fn one_issuer(reader: &Reader<'_>, issuing: &Issuing, plugins: &[PluginSpec]) {
    if issuing.tokens.hs256_key_file.is_none() {
        return;
    }
    for capability in [Capability::Tokens, Capability::Sessions] {
        for plugin in plugins.iter().filter(|plugin| plugin.grants.has(capability)) {
            reader.fault(
                issuing.key_file_at,
                "tokens.hs256_key_file",
                format!(
                    "means that tokens are issued elsewhere, and \"{}\" has the grant `{}`, which issues them here; remove one of the two",
                    plugin.name,
                    capability.example()
                ),
            );
        }
    }
}

pub(super) fn passwords(root: &Section<'_, '_>) -> PasswordSpec {
    let section = root.section("passwords");
    let default = PasswordSpec::default();
    let spec = PasswordSpec {
        concurrency: section
            .scalar("concurrency", values::count(1, 256))
            .unwrap_or(default.concurrency),
        queue: section
            .scalar("queue", values::count(0, 10_000))
            .unwrap_or(default.queue),
    };
    section.finish();
    spec
}
