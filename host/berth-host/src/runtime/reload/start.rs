//! What a plugin begins to serve with: its file, or a version that is kept.

use super::kept::{AtStart, Because, State};
use crate::runtime::engine::Runtime;
use crate::runtime::load::{Source, load_source, short};
use crate::runtime::load_fault::LoadFault;
use crate::runtime::plugin::{PluginSpec, Version};
use crate::services::Services;

/// Load what a changed manifest says of a plugin. `is_moved`: its component is another file than before, or it is new. Then
/// that file must be good, unless an operator has chosen something else: nothing stands in for what somebody has just asked for.
///
/// # Errors
/// As [`load`]; and the file's, if it is moved.
pub fn load_changed(
    runtime: &Runtime,
    spec: &PluginSpec,
    services: &Services,
    state: &State,
    is_moved: bool,
) -> Result<Version, LoadFault> {
    let file = Source::file(spec);
    if is_moved {
        let digest = file.as_ref().ok().map(|source| source.sha256.as_str());
        let is_chosen = matches!(state.at_start(digest), AtStart::Kept(_, Because::Chosen));
        if !is_chosen {
            return load_file(runtime, spec, services, state, file?);
        }
    }
    let digest = file.as_ref().ok().map(|source| source.sha256.as_str());
    if let AtStart::Kept(chosen, Because::Chosen) = state.at_start(digest) {
        // Nothing stands in for that either.
        return load_kept(runtime, spec, services, &chosen).map_err(|reason| LoadFault::NotKept {
            digest: short(&chosen).to_owned(),
            reason,
        });
    }
    load_from(runtime, spec, services, state, file)
}

/// Load it by the rule of [`super::kept::State::at_start`]. A file that can't be served doesn't replace what served last:
/// that is true over a restart as well.
///
/// # Errors
/// The file's, if nothing that is kept can be served in its place.
pub fn load(
    runtime: &Runtime,
    spec: &PluginSpec,
    services: &Services,
    state: &State,
) -> Result<Version, LoadFault> {
    load_from(runtime, spec, services, state, Source::file(spec))
}

fn load_from(
    runtime: &Runtime,
    spec: &PluginSpec,
    services: &Services,
    state: &State,
    file: Result<Source, LoadFault>,
) -> Result<Version, LoadFault> {
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
    let fault = match file.and_then(|source| load_file(runtime, spec, services, state, source)) {
        Ok(version) => return Ok(version),
        Err(fault) => fault,
    };
    let last = state
        .current
        .as_ref()
        .filter(|last| services.kept.is_some() && !last.is_empty());
    match last.map(|last| load_kept(runtime, spec, services, last)) {
        Some(Ok(version)) => {
            serves_kept(spec, &version, FAULTY);
            Ok(version)
        }
        _ => Err(fault),
    }
}

/// What was read of the file, with its bytes if it is a version that isn't kept yet.
fn load_file(
    runtime: &Runtime,
    spec: &PluginSpec,
    services: &Services,
    state: &State,
    source: Source,
) -> Result<Version, LoadFault> {
    let version = load_source(runtime, spec, &source)?;
    if services.kept.is_none() || state.current.as_ref() == Some(&version.sha256) {
        return Ok(version);
    }
    Ok(version.keep_later(source))
}

/// Why it isn't the file, if that is faulty.
const FAULTY: &str = "its file can't be served, and this is the version that served last";

/// What served last, in the place of a version that was loaded and can't be started. Nothing if it isn't kept, or can't be
/// served either.
pub fn load_last(runtime: &Runtime, spec: &PluginSpec, services: &Services, last: &str) -> Option<Version> {
    let version = load_kept(runtime, spec, services, last).ok()?;
    serves_kept(spec, &version, FAULTY);
    Some(version)
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
