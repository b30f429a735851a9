//! The one `Engine` of a process: how components are compiled, where their memory comes from, and what ticks.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use wasmtime::component::Linker;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails,
};

use super::cache::Cache;
use super::compile::Compilers;
use super::instance::Ctx;
use super::limits::{Budget, MAX_TABLE_ELEMENTS, TICK};
use super::link;
use super::reload::probe::PROBES;
use super::turns::Turns;

/// What the pools are sized for.
#[derive(Clone, Copy, Debug)]
pub struct RuntimeSettings {
    /// How many instances may live at once, over all plugins.
    pub instances: u32,
    /// Worker threads. All but one may be taken by hogs.
    pub workers: usize,
    /// The largest memory limit of any plugin, in bytes.
    pub max_memory: usize,
    /// The memory of all guests together, in bytes.
    pub memory_budget: usize,
}

/// Slots of the pools, by what they hold.
#[derive(Clone, Copy, Debug)]
pub struct PoolSizes {
    /// Component instances.
    pub component_instances: u32,
    /// Core instances.
    pub core_instances: u32,
    /// Linear memories.
    pub memories: u32,
    /// Tables.
    pub tables: u32,
    /// Stacks of suspended calls.
    pub stacks: u32,
}

impl PoolSizes {
    fn of(settings: &RuntimeSettings) -> Self {
        let n = settings.instances.saturating_add(PROBES);
        Self {
            component_instances: n,
            core_instances: n.saturating_mul(CORE_INSTANCES_PER_COMPONENT),
            memories: n.saturating_mul(MEMORIES_PER_COMPONENT),
            tables: n.saturating_mul(TABLES_PER_COMPONENT),
            // Each request suspends at most one call; a few more for instances that are being dropped.
            stacks: n.saturating_add(n / 4).saturating_add(16),
        }
    }
}

/// Core instances that one component may have. A Rust policy has 3, JavaScript 8, Python 14.
const CORE_INSTANCES_PER_COMPONENT: u32 = 32;
/// Memories that one component may have. Every toolchain known to us makes one, composed components several.
const MEMORIES_PER_COMPONENT: u32 = 4;
/// Tables that one component may have.
const TABLES_PER_COMPONENT: u32 = 16;
/// Wasm stack; a fiber's own stack must be larger by what host functions need.
const WASM_STACK: usize = 512 * 1024;
const FIBER_STACK: usize = 2 * 1024 * 1024;
/// Pages a slot keeps between two tenants; they are reset by copying, which is cheaper than unmapping.
const KEEP_MEMORY: usize = 1024 * 1024;
const KEEP_STACK: usize = 64 * 1024;
const KEEP_TABLE: usize = 64 * 1024;
/// Slots whose pages are given back in one go. No batches: a slot that waits for others isn't found when its module is
/// dropped, and holds on to the version's memory image and machine code until somebody else gets the slot. After a swap
/// that may be never. Nothing is lost by it, as Linux takes one `madvise` for each region anyway.
const DECOMMIT_BATCH: usize = 1;

/// Engine, linker and what all stores share.
pub struct Runtime {
    /// The engine.
    pub engine: Engine,
    /// WASI, which everybody may import; [`super::link::granted`] adds what a plugin is granted.
    pub(crate) linker: Linker<Ctx>,
    /// What compiles.
    pub(crate) compilers: Compilers,
    /// Whose turn it is to run guest code.
    pub turns: Arc<Turns>,
    /// See [`super::limits`].
    pub budget: Arc<Budget>,
    /// How memory is reset between two tenants of a slot.
    pub reset: Reset,
    /// Machine code on disk, if there is a place for it.
    pub cache: Option<Cache>,
    settings: RuntimeSettings,
    /// Stops the ticker when the runtime goes.
    ticking: Arc<AtomicBool>,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("settings", &self.settings)
            .field("reset", &self.reset)
            .finish_non_exhaustive()
    }
}

/// How a memory slot is made clean for its next tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Only the pages that were written are reset, found with `PAGEMAP_SCAN`: the fast way.
    PagemapScan,
    /// The slot is unmapped and mapped again with `madvise`. Why the fast way is not used, for the log.
    Madvise(&'static str),
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PagemapScan => write!(f, "pagemap-scan"),
            Self::Madvise(why) => write!(f, "madvise ({why})"),
        }
    }
}

impl Runtime {
    /// Build the engine, start the ticker.
    ///
    /// # Errors
    /// The kernel doesn't give the address space for the pools or the threads, or the CPU isn't supported.
    pub fn new(settings: RuntimeSettings) -> wasmtime::Result<Self> {
        let reset = safe_reset();
        let engine = Engine::new(&config(&settings, reset))?;
        let linker = link::linker(&engine)?;
        let ticking = Arc::new(AtomicBool::new(true));
        start_ticker(&engine, Arc::downgrade(&ticking))?;
        Ok(Self {
            engine,
            linker,
            compilers: Compilers::start(settings.workers)?,
            turns: Arc::new(Turns::new(settings.workers)),
            budget: Arc::new(Budget::new(settings.memory_budget)),
            reset,
            cache: None,
            settings,
            ticking,
        })
    }

    /// Slots of the pools.
    pub fn pool_sizes(&self) -> PoolSizes {
        PoolSizes::of(&self.settings)
    }

    /// What the pools were sized for.
    pub fn settings(&self) -> RuntimeSettings {
        self.settings
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.ticking.store(false, Ordering::Relaxed);
    }
}

fn config(settings: &RuntimeSettings, reset: Reset) -> Config {
    let n = settings.instances.saturating_add(PROBES);
    let sizes = PoolSizes::of(settings);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(sizes.component_instances)
        .total_core_instances(sizes.core_instances)
        .total_memories(sizes.memories)
        .total_tables(sizes.tables)
        .total_stacks(sizes.stacks)
        .total_gc_heaps(n)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT)
        .max_memories_per_component(MEMORIES_PER_COMPONENT)
        .max_tables_per_component(TABLES_PER_COMPONENT)
        .max_memories_per_module(MEMORIES_PER_COMPONENT)
        .max_tables_per_module(TABLES_PER_COMPONENT)
        .max_component_instance_size(1024 * 1024)
        .max_core_instance_size(1024 * 1024)
        .max_memory_size(settings.max_memory)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_unused_warm_slots(n)
        .decommit_batch_size(DECOMMIT_BATCH)
        .linear_memory_keep_resident(KEEP_MEMORY)
        .async_stack_keep_resident(KEEP_STACK)
        .table_keep_resident(KEEP_TABLE)
        .pagemap_scan(if reset == Reset::PagemapScan {
            Enabled::Yes
        } else {
            Enabled::No
        });

    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .memory_init_cow(true)
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(FIBER_STACK)
        .wasm_component_model(true)
        .wasm_component_model_async(true)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .generate_address_map(true);
    config
}

/// `PAGEMAP_SCAN` skips a page that was written and then swapped out, and the next tenant could read it
/// (<https://github.com/bytecodealliance/wasmtime/issues/14357>). So: only where nothing of this process can be
/// swapped, on a kernel that has the call (6.7).
fn safe_reset() -> Reset {
    let release = rustix::system::uname();
    if !kernel_at_least(&release.release().to_string_lossy(), (6, 7)) {
        return Reset::Madvise("the kernel is older than 6.7");
    }
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_else(|_| "unknown\nunknown".to_owned());
    if has_swap(&swaps) && !swap_forbidden() {
        return Reset::Madvise("this machine can swap");
    }
    Reset::PagemapScan
}

/// `/proc/swaps` has a heading and a line per swap area.
fn has_swap(proc_swaps: &str) -> bool {
    proc_swaps.lines().skip(1).any(|line| !line.trim().is_empty())
}

/// Whether this process's control group (version 2) may not swap at all.
fn swap_forbidden() -> bool {
    let Ok(groups) = std::fs::read_to_string("/proc/self/cgroup") else {
        return false;
    };
    let Some(path) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return false;
    };
    std::fs::read_to_string(format!("/sys/fs/cgroup/{path}/memory.swap.max"))
        .is_ok_and(|max| max.trim() == "0")
}

fn kernel_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= wanted,
        _ => false,
    }
}

/// An OS thread, not a task: it must tick while every worker is inside a guest.
fn start_ticker(engine: &Engine, ticking: Weak<AtomicBool>) -> std::io::Result<()> {
    let engine = engine.weak();
    thread::Builder::new()
        .name("berth-epoch".to_owned())
        .spawn(move || {
            loop {
                thread::sleep(TICK);
                let running = ticking.upgrade().is_some_and(|t| t.load(Ordering::Relaxed));
                match engine.upgrade() {
                    Some(engine) if running => engine.increment_epoch(),
                    _ => return,
                }
            }
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_compare_by_number() {
        assert!(kernel_at_least("6.18.44-fc", (6, 7)));
        assert!(kernel_at_least("6.7.0", (6, 7)));
        assert!(!kernel_at_least("6.6.99", (6, 7)));
        assert!(!kernel_at_least("5.15.0-100-generic", (6, 7)));
        assert!(!kernel_at_least("unknown", (6, 7)));
    }

    #[test]
    fn swap_is_seen_in_proc_swaps() {
        let heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert!(!has_swap(heading));
        assert!(has_swap(&format!("{heading}/dev/sda2 partition 100 0 -2\n")));
    }
}
