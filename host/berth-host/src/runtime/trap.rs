//! From wasmtime's errors to the one trap enum.

use wasmtime::component::ResourceTableError;

use super::limits::{Meter, Refused};
use crate::error::{Error, Fault, Trap};

/// The longest cause that is logged, in bytes: a recursion's backtrace is long and says the same thing again.
const MAX_CAUSE: usize = 8 * 1024;

/// Why a guest's run failed.
///
/// What the host itself decided comes first (the CPU limit, a refused growth): the trap that follows from it is only
/// how the guest took it.
pub fn classify(error: &wasmtime::Error, meter: &Meter) -> Error {
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        // The pools are sized above the permits, so this is the host's fault if it ever happens.
        return Error::Internal(format!("no slot in the instance pool: {error:#}"));
    }
    let kind = kind(error, meter);
    if kind == Trap::Memory && matches!(meter.refused(), Refused::Budget | Refused::Total) {
        // The others have it all, or all is too little: not this guest's fault.
        return Error::HostBusy;
    }
    Error::Guest(Fault {
        trap: kind,
        cause: bounded(format!("{error:?}")),
    })
}

/// A cause that is short enough for the log.
pub fn bounded(mut cause: String) -> String {
    cause.truncate(cause.floor_char_boundary(MAX_CAUSE));
    cause
}

fn kind(error: &wasmtime::Error, meter: &Meter) -> Trap {
    if meter.is_exhausted() {
        return Trap::Cpu;
    }
    if error.is::<wasmtime_wasi::I32Exit>() {
        return Trap::Exit;
    }
    if let Some(ResourceTableError::Full) = error.downcast_ref::<ResourceTableError>() {
        return Trap::Handles;
    }
    match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::StackOverflow) => return Trap::Stack,
        Some(wasmtime::Trap::Interrupt) => return Trap::Cpu,
        _ => {}
    }
    match meter.refused() {
        Refused::Memory | Refused::Budget | Refused::Total => Trap::Memory,
        Refused::Table => Trap::Table,
        Refused::Nothing => Trap::Unreachable,
    }
}
