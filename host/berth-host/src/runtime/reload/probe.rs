//! A version is instantiated once before anybody is served by it, within the plugin's own limits.
//!
//! The probe has an instance of its own, beside those of the requests, so that a busy host can't keep a good version out
//! and a bad one takes no caller's place. Its start functions run; none of its exports is called, because what it would do
//! (and to whom) is not ours to guess.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::error::{Error, Trap};
use crate::runtime::instance::{Instance, Origin};
use crate::runtime::limits::Meter;
use crate::runtime::load_fault::LoadFault;
use crate::runtime::plugin::{Plugin, Version};
use crate::runtime::trap;
use crate::runtime::turns::metered;
use crate::state::Host;

/// Instances beside those of the requests.
pub const PROBES: u32 = 1;

/// Start it once. How long that took.
///
/// # Errors
/// [`LoadFault::Start`].
pub async fn probe(host: &Host, plugin: &Arc<Plugin>, version: &Arc<Version>) -> Result<Duration, LoadFault> {
    let fault = |trap: Trap, cause: &str| LoadFault::Start {
        trap: trap.label(),
        // The rest is a backtrace, which the log of a request would have.
        cause: cause
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .take(3)
            .collect::<Vec<_>>()
            .join(" "),
    };
    let Ok(permit) = Arc::clone(&host.probes).acquire_owned().await else {
        return Err(fault(Trap::Refused, "the host is stopping"));
    };
    let started = Instant::now();
    let limits = plugin.spec.limits;
    let meter = Arc::new(Meter::new(limits.cpu, Arc::clone(&host.runtime.turns)));
    let origin = Arc::new(Origin::shared(Arc::clone(plugin), Arc::clone(version)));
    let mut instance = Instance::shared(&host.runtime, origin, &meter, permit);
    match timeout(limits.wall, metered(&meter, instance.start(&version.pre))).await {
        Ok(Ok(())) => Ok(started.elapsed()),
        Ok(Err(error)) => Err(match trap::classify(&error, &meter) {
            Error::Guest(it) => fault(it.trap, &it.cause),
            other => fault(
                Trap::Memory,
                &format!("the host has no room for it now ({other:?})"),
            ),
        }),
        Err(_) => Err(fault(
            Trap::Wall,
            &format!("it had not started after {} ms", limits.wall.as_millis()),
        )),
    }
}
