//! Hashing of passwords, off the async threads and behind a bounded queue.
//!
//! A hash costs some 19 MiB and tens of milliseconds of a core on purpose, so strangers who send passwords decide how
//! much the host works: only a few hashes run at once, only so many wait, and the rest is told when to come back. A
//! caller who stops waiting leaves the queue.
//!
//! [`Hasher::verify`] hashes exactly once whatever it is given, so that an answer's time doesn't say whether there is an
//! account. The one difference that is left: an account whose bcrypt hash comes from an older system takes bcrypt's
//! time until its next login, which replaces the hash.

mod algorithms;

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use argon2::Block;
use tokio::sync::Semaphore;
use unicode_normalization::UnicodeNormalization;
use zeroize::{Zeroize, Zeroizing};

use self::algorithms::Stored;

/// The longest password, in bytes; checked before any work.
pub const MAX_PASSWORD: usize = 4096;
/// The longest a caller who is sent away is told to wait, in seconds.
const MAX_WAIT: u64 = 60;

/// What the manifest says of passwords.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasswordSpec {
    /// Hashes at once.
    pub concurrency: u32,
    /// Hashes that may wait.
    pub queue: u32,
}

impl Default for PasswordSpec {
    /// Half of the cores hash, so that the other half serves.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            concurrency: u32::try_from(cores / 2).unwrap_or(1).max(1),
            queue: 64,
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// Too many wait already. Carries the seconds after which trying again makes sense.
    #[error("too many passwords wait to be hashed")]
    Busy(u32),
    /// More than [`MAX_PASSWORD`] bytes.
    #[error("the password has more than {MAX_PASSWORD} bytes")]
    TooLong,
    /// The host's own fault, as in a system without randomness.
    #[error("the password can't be hashed")]
    Broken,
}

/// What [`Hasher::verify`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is the password.
    pub matches: bool,
    /// Whether it is, and its hash should be made anew.
    pub rehash: bool,
}

/// Hashes passwords.
#[derive(Clone)]
pub struct Hasher(Arc<Shared>);

struct Shared {
    spec: PasswordSpec,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Of the last hash, in microseconds: what the next one will take.
    took: AtomicU64,
    argon2: AtomicU64,
    bcrypt: AtomicU64,
    refused: AtomicU64,
    /// Memory of hashes that ended, wiped, at most one for each place: fresh pages would be a tenth of the time.
    memory: Mutex<Vec<Vec<Block>>>,
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher")
            .field("spec", &self.0.spec)
            .finish_non_exhaustive()
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new(PasswordSpec::default())
    }
}

impl Hasher {
    /// With its own queue.
    pub fn new(spec: PasswordSpec) -> Self {
        Self(Arc::new(Shared {
            spec,
            places: Arc::new(Semaphore::new(spec.concurrency as usize)),
            waiting: AtomicUsize::new(0),
            took: AtomicU64::new(0),
            argon2: AtomicU64::new(0),
            bcrypt: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            memory: Mutex::default(),
        }))
    }

    /// The hash of a new password, in the PHC string format.
    ///
    /// # Errors
    /// See [`HashError`].
    pub async fn hash(&self, password: String) -> Result<String, HashError> {
        let password = bounded(password)?;
        self.run(move |shared| {
            let mut salt = [0; algorithms::SALT];
            getrandom::fill(&mut salt).map_err(|_| HashError::Broken)?;
            let mut memory = shared.borrow();
            let hash = algorithms::argon2id(&normalized(&password), &salt, &mut memory);
            shared.argon2.fetch_add(1, Ordering::Relaxed);
            shared.give_back(memory);
            hash.ok_or(HashError::Broken)
        })
        .await
    }

    /// Whether a password has this hash. Hashes exactly once, also without a hash or with one that can't be read.
    ///
    /// # Errors
    /// See [`HashError`].
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<Verdict, HashError> {
        let password = bounded(password)?;
        self.run(move |shared| {
            let stored = hash.as_deref().map_or(Stored::Dummy, Stored::parse);
            let counter = match stored {
                Stored::Bcrypt(_) => &shared.bcrypt,
                Stored::Argon2(_) | Stored::Dummy => &shared.argon2,
            };
            let matches = match &stored {
                // Bytes as they are: that is what was hashed then.
                Stored::Bcrypt(stored) => stored.matches(password.as_bytes()),
                Stored::Argon2(stored) => {
                    let mut memory = shared.borrow();
                    let matches = stored.matches(&normalized(&password), &mut memory);
                    shared.give_back(memory);
                    matches
                }
                Stored::Dummy => {
                    let mut memory = shared.borrow();
                    let hash =
                        algorithms::argon2id(&normalized(&password), &[0; algorithms::SALT], &mut memory);
                    shared.give_back(memory);
                    hash.map(|_| false)
                }
            };
            counter.fetch_add(1, Ordering::Relaxed);
            let matches = matches.ok_or(HashError::Broken)?;
            Ok(Verdict {
                matches,
                rehash: matches && stored.is_weak(),
            })
        })
        .await
    }

    /// How many hashes were made, by algorithm.
    pub fn hashes(&self) -> [(&'static str, u64); 2] {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [("argon2", read(&self.0.argon2)), ("bcrypt", read(&self.0.bcrypt))]
    }

    /// How many wait at the moment.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// How many were sent away.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, HashError> + Send + 'static,
    ) -> Result<T, HashError> {
        let shared = &self.0;
        let place = match Arc::clone(&shared.places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                let _waiting = shared.wait()?;
                let place = Arc::clone(&shared.places).acquire_owned().await;
                place.map_err(|_| HashError::Broken)?
            }
        };
        let shared = Arc::clone(shared);
        let done = tokio::task::spawn_blocking(move || {
            // Held to the end, also when nobody waits for it any more.
            let _place = place;
            let started = Instant::now();
            let done = work(&shared);
            shared.took.store(micros(started.elapsed()), Ordering::Relaxed);
            done
        });
        done.await.map_err(|_| HashError::Broken)?
    }
}

impl Shared {
    /// A place in the queue, given back when the result is dropped.
    fn wait(&self) -> Result<Waiting<'_>, HashError> {
        let queue = self.spec.queue as usize;
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= queue {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(HashError::Busy(self.busy_for()));
        }
        Ok(Waiting(&self.waiting))
    }

    /// How long the queue needs to be worked off, in seconds.
    fn busy_for(&self) -> u32 {
        let whole = self.took.load(Ordering::Relaxed) * u64::from(self.spec.queue + 1);
        let seconds = (whole / u64::from(self.spec.concurrency.max(1))).div_ceil(1_000_000);
        u32::try_from(seconds.clamp(1, MAX_WAIT)).unwrap_or(1)
    }

    fn borrow(&self) -> Vec<Block> {
        self.memory
            .lock()
            .ok()
            .and_then(|mut all| all.pop())
            .unwrap_or_default()
    }

    fn give_back(&self, mut memory: Vec<Block>) {
        memory.iter_mut().for_each(Zeroize::zeroize);
        // A hash from elsewhere may have needed more than ours do.
        memory.truncate(algorithms::BLOCKS);
        memory.shrink_to_fit();
        if let Ok(mut all) = self.memory.lock() {
            all.push(memory);
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn bounded(password: String) -> Result<Zeroizing<String>, HashError> {
    let password = Zeroizing::new(password);
    match password.len() {
        0..=MAX_PASSWORD => Ok(password),
        _ => Err(HashError::TooLong),
    }
}

/// NFC (RFC 8265 section 4.2), and nothing else: no trimming, no folding.
fn normalized(password: &str) -> Zeroizing<String> {
    // Room for what grows, so that no copy is left behind in a string that was too small.
    let mut text = Zeroizing::new(String::with_capacity(password.len().saturating_mul(3)));
    text.extend(password.nfc());
    text
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
