//! The threads that compile.
//!
//! As many as there are workers, so that a large component (Python's has 40 MiB) is there soon, and each of them gives way
//! to the workers: a host that is busy compiles slowly rather than serves slowly.

use std::sync::{Mutex, TryLockError};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use wasmtime::Engine;
use wasmtime::component::Component;

/// How much less of a core a compiling thread gets than one that serves; see nice(2). With 10 it is a tenth while both want
/// it, so that no compile is put off for ever.
const NICENESS: i32 = 10;

/// The threads. They end when this is dropped.
#[derive(Debug)]
pub struct Compilers {
    threads: ThreadPool,
    /// For a component that is wanted while another one is compiled: it doesn't wait until that is done.
    spare: ThreadPool,
    taken: Mutex<()>,
}

impl Compilers {
    /// Start so many, at least one.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(threads: usize) -> Result<Self, ThreadPoolBuildError> {
        let pool = |threads: usize, name: &'static str| {
            ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(move |number| format!("{name}-{number}"))
                .start_handler(|_| be_nice())
                .build()
        };
        Ok(Self {
            threads: pool(threads.max(1), "berth-compile")?,
            spare: pool(1, "berth-spare")?,
            taken: Mutex::new(()),
        })
    }

    /// Compile a component with them, and wait for it. Not for an async thread.
    ///
    /// # Errors
    /// wasmtime's: it is no component, or doesn't fit the engine.
    pub fn component(&self, engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Component> {
        // Nothing is behind the lock that a panic could leave half done.
        let alone = match self.taken.try_lock() {
            Ok(alone) => Some(alone),
            Err(TryLockError::Poisoned(alone)) => Some(alone.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let threads = if alone.is_some() {
            &self.threads
        } else {
            &self.spare
        };
        threads.install(|| Component::from_binary(engine, bytes))
    }
}

/// This thread gives way to those that serve. A courtesy: if the kernel refuses, compiling is just less polite.
pub(crate) fn be_nice() {
    let _ = rustix::process::nice(NICENESS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_nice_and_have_a_name() {
        let compilers = Compilers::start(2).unwrap();
        let (name, nice) = compilers.threads.install(|| {
            let name = std::thread::current().name().map(str::to_owned);
            let thread = rustix::thread::gettid();
            (
                name.unwrap(),
                rustix::process::getpriority_process(Some(thread)).unwrap(),
            )
        });
        assert!(name.starts_with("berth-compile-"), "{name}");
        let own = rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        assert_eq!(nice, (own + NICENESS).min(19));
    }

    /// As when an operator goes back to an earlier version while another one is compiled.
    #[test]
    fn second_component_does_not_wait_for_the_first() {
        let engine = Engine::default();
        let compilers = Compilers::start(1).unwrap();
        let first = compilers.taken.lock().unwrap();
        let whole = wat::parse_str("(component)").unwrap();
        std::thread::scope(|scope| {
            let (done, second) = std::sync::mpsc::channel();
            let (compilers, engine, whole) = (&compilers, &engine, &whole);
            scope.spawn(move || done.send(compilers.component(engine, whole).is_ok()));
            let compiled = second.recv_timeout(std::time::Duration::from_secs(30));
            drop(first);
            assert_eq!(compiled, Ok(true));
        });
    }

    #[test]
    fn what_is_no_component_is_refused() {
        let engine = Engine::default();
        let compilers = Compilers::start(1).unwrap();
        let whole = wat::parse_str("(component)").unwrap();
        assert!(compilers.component(&engine, &whole).is_ok());
        assert!(compilers.component(&engine, b"\0asm").is_err());
    }
}
