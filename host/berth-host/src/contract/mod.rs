//! Does a component fit this host? If not: where, exactly.
//!
//! wasmtime's linker stops at the first thing that doesn't fit and names it in its own words. Here the component's
//! interface is decoded as WIT and compared with the repository's `wit/`, which is embedded, so that every fault is
//! found in one run and told as a sentence with both sides in WIT. The linker still decides; this explains, so it runs
//! only when something doesn't fit, and in `berth check`.
//!
//! Pure: bytes and grants in, values out. What is compared is what wasmtime compares, and a test holds the offer to
//! the linker.

mod check;
mod compare;
mod decode;
mod fault;
mod name;
mod offer;
mod report;
mod shape;
mod text;
mod world;

pub use fault::{Fault, FaultKind, Faults};
pub use report::{Import, Report, Status, Warning, report};
pub use shape::{Memory, Shape, is_preview1, shape};
pub use world::{Kind, classify, policy_of};

use crate::grants::Grants;
use crate::runtime::plugin::Policy;

/// Every fault of a component that wasmtime has compiled. None if it fits.
///
/// # Errors
/// It can't be decoded; the text says why.
pub fn explain(bytes: &[u8], wanted: Option<Policy>, grants: &Grants) -> Result<Vec<Fault>, String> {
    let offer = offer::offer()?;
    let component = decode::decode(bytes)?;
    Ok(check::faults(offer, &component, wanted, grants))
}

#[cfg(test)]
mod tests;
