//! A thread that reads, hashes, checks and links components, and waits until they are compiled, one after another.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use tokio::sync::oneshot;

use crate::runtime::compile::be_nice;

/// Jobs that may wait for the thread. Whoever asks waits for its turn before that already; see [`super::Reloader`].
const WAITING: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

/// The thread. It ends when the last of these is dropped.
#[derive(Clone, Debug)]
pub struct Compiler(SyncSender<Job>);

impl Compiler {
    /// Start it, with a name of at most 15 bytes. `is_nice`: it gives way to the requests, to which the cores belong.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(name: &str, is_nice: bool) -> std::io::Result<Self> {
        let (sender, jobs) = sync_channel::<Job>(WAITING);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            if is_nice {
                be_nice();
            }
            jobs.into_iter().for_each(|job| job());
        })?;
        Ok(Self(sender))
    }

    /// Do this on the thread. Nothing if it panics, or the thread is gone or has too much to do.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = oneshot::channel();
        let job = Box::new(move || {
            // What the job worked with goes with it, so nobody sees it half done. Nobody may wait any more.
            if let Ok(value) = catch_unwind(AssertUnwindSafe(job)) {
                let _ = done.send(value);
            }
        });
        self.0.try_send(job).ok()?;
        result.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn thread_survives_a_job_that_panics() {
        let compiler = Compiler::start("berth-test", true).unwrap();
        assert_eq!(compiler.run(|| -> u8 { panic!("as compilers do") }).await, None);
        assert_eq!(
            compiler
                .run(|| thread::current().name().map(str::to_owned))
                .await
                .unwrap()
                .unwrap(),
            "berth-test"
        );
    }
}
