//! What a plugin begins to serve with: its file, or a version that is kept.

use super::kept::AtStart;
use crate::runtime::engine::Runtime;
use crate::runtime::load::{Source, load_source};
use crate::runtime::load_fault::LoadFault;
use crate::runtime::plugin::{PluginSpec, Version};
use crate::services::Services;

/// Load it by the rule of [`super::kept::State::at_start`]. A file that can't be served doesn't replace what served last:
/// that is true over a restart as well.
///
/// # Errors
/// The file's, if nothing that is kept can be served in its place.
pub fn load(runtime: &Runtime, spec: &PluginSpec, services: &Services) -> Result<Version, LoadFault> {
    let file = Source::file(spec);
    let state = services.state_of(&spec.name);
    let digest = file.as_ref().ok().map(|source| source.sha256.as_str());
    if let AtStart::Kept(kept, because) = state.at_start(digest) {
        match load_kept(runtime, spec, services, &kept) {
            Ok(version) => {
                serves_kept(spec, &version, because.reason());
                return Ok(version);
            }
            Err(fault) => tracing::warn!(
                target: "berth::swap",
                plugin = spec.name,
                "version {kept:.12} is kept and can't be served, so the file is: {fault}",
            ),
        }
    }
    let fault = match file.and_then(|source| load_source(runtime, spec, &source)) {
        Ok(version) => return Ok(version),
        Err(fault) => fault,
    };
    let last = state
        .current
        .filter(|last| services.kept.is_some() && !last.is_empty());
    match last.map(|last| load_kept(runtime, spec, services, &last)) {
        Some(Ok(version)) => {
            serves_kept(
                spec,
                &version,
                "its file can't be served, and this is the version that served last",
            );
            Ok(version)
        }
        _ => Err(fault),
    }
}

/// What is wrong with the file is an event, which [`super::Reloader`] tells.
fn serves_kept(spec: &PluginSpec, version: &Version, because: &str) {
    tracing::info!(
        target: "berth::swap",
        plugin = spec.name,
        version = version.digest,
        "a kept version is served: {because}",
    );
}

fn load_kept(
    runtime: &Runtime,
    spec: &PluginSpec,
    services: &Services,
    digest: &str,
) -> Result<Version, String> {
    let kept = services.kept.as_ref().ok_or("there is no data folder")?;
    let (bytes, signature) = kept.read(&spec.name, digest).map_err(|error| error.to_string())?;
    load_source(runtime, spec, &Source::sent(bytes, signature)).map_err(|fault| fault.to_string())
}
