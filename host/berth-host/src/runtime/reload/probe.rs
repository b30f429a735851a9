//! A version is instantiated once before anybody is served by it, within the plugin's own limits.
//!
//! The probe has an instance of its own, beside those of the requests, so that a busy host can't keep a good version out
//! and a bad one takes no caller's place. Its start functions run; none of its exports is called, because what it would do
//! (and to whom) is not ours to guess.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use wasmtime::WasmBacktrace;

use crate::error::{Error, Trap};
use crate::runtime::instance::{Instance, Origin};
use crate::runtime::limits::{Meter, Refused};
use crate::runtime::load_fault::{LoadFault, spaced};
use crate::runtime::plugin::{Plugin, PluginLimits, Version};
use crate::runtime::trap;
use crate::runtime::turns::metered;
use crate::state::Host;

/// Instances beside those of the requests.
pub const PROBES: u32 = 1;

/// Start it once. How long that took.
///
/// # Errors
/// [`LoadFault::Start`], or [`LoadFault::NoRoom`].
pub async fn probe(host: &Host, plugin: &Arc<Plugin>, version: &Arc<Version>) -> Result<Duration, LoadFault> {
    let fault = |trap: Trap, cause: String| LoadFault::Start {
        trap: trap.label(),
        cause,
    };
    let Ok(permit) = Arc::clone(&host.probes).acquire_owned().await else {
        return Err(fault(Trap::Refused, "the host is stopping".to_owned()));
    };
    let started = Instant::now();
    let limits = plugin.spec.limits;
    let meter = Arc::new(Meter::new(limits.cpu, Arc::clone(&host.runtime.turns)));
    let origin = Arc::new(Origin::shared(Arc::clone(plugin), Arc::clone(version)));
    let mut instance = Instance::shared(&host.runtime, origin, &meter, permit);
    match timeout(limits.wall, metered(&meter, instance.start(&version.pre))).await {
        Ok(Ok(())) => Ok(started.elapsed()),
        Ok(Err(error)) => Err(match trap::classify(&error, &meter) {
            Error::Guest(it) => fault(it.trap, cause(&error, it.trap, &limits)),
            Error::HostBusy => {
                let total = bytesize::ByteSize::b(host.runtime.budget.limit() as u64);
                match meter.refused() {
                    Refused::Total => fault(
                        Trap::Memory,
                        format!("it needs more than the {total} of `limits.total_memory`"),
                    ),
                    _ => LoadFault::NoRoom { total },
                }
            }
            other => fault(Trap::Refused, format!("{other:?}")),
        }),
        Err(_) => Err(fault(
            Trap::Wall,
            format!(
                "it had not started after the {} ms of `limits.wall`",
                limits.wall.as_millis()
            ),
        )),
    }
}

/// What happened and in which function, on one line. The rest is a backtrace, which the log of a request would have.
fn cause(error: &wasmtime::Error, trap: Trap, limits: &PluginLimits) -> String {
    let what = match trap {
        Trap::Cpu => format!("it has used the {} ms of `limits.cpu`", limits.cpu.as_millis()),
        Trap::Memory => format!(
            "it needs more than the {} of `limits.memory`",
            bytesize::ByteSize::b(limits.memory as u64)
        ),
        _ => {
            let root = error.root_cause().to_string();
            root.strip_prefix("wasm trap: ").unwrap_or(&root).to_owned()
        }
    };
    let trace = error.downcast_ref::<WasmBacktrace>().map(ToString::to_string);
    // As in `0: 0x84a - module!function`; the first one is where it was.
    let place = trace.as_deref().and_then(|trace| {
        let mut lines = trace.lines().filter_map(|line| line.split_once(" - "));
        lines.next().map(|(_, function)| function.trim())
    });
    match place {
        Some(function) => spaced(&format!("{what}, in {function}")),
        None => spaced(&what),
    }
}
