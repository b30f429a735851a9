//! The host's own keys of access tokens: `tokens.json` in the data folder.
//!
//! One key is the current one and signs; the others are retired and verify until the last token that they signed has
//! expired. A token names its key (`kid`), and a key has one algorithm: nothing is tried out.
//!
//! Whoever changes the file holds `tokens.lock` meanwhile, the running host and the operator's commands alike. The host
//! notices a change by the file's identity and time, see [`Ring::follow`].

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use arc_swap::{ArcSwap, Guard};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use jsonwebtoken::{DecodingKey, EncodingKey};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{TokenAlgorithm, jwks, now};
use crate::data::{self, DataError};
use crate::secret::Secret;

/// The file in the data folder.
pub const FILE: &str = "tokens.json";
/// Who holds it may change [`FILE`].
const LOCK: &str = "tokens.lock";
/// The file's own version.
const VERSION: u32 = 1;
/// Bytes of a secret: an Ed25519 seed, or an HS256 key as long as the hash.
const SECRET: usize = 32;
/// Random bytes of a `kid`.
const KID: usize = 12;
/// The most keys that a file may have.
const MAX_KEYS: usize = 64;
/// A running host goes on signing with a key for a moment after it was retired: until it looks at the file again.
const GRACE: u64 = 60;
/// How often a running host looks whether the file has changed.
const LOOK: Duration = Duration::from_secs(1);

/// What is before the seed in the PKCS#8 form of an Ed25519 key (RFC 8410 section 7): version 0, the algorithm
/// 1.3.101.112, and an octet string in an octet string.
const PKCS8_ED25519: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The keys, as they are now.
pub struct Ring {
    path: PathBuf,
    life: u64,
    live: ArcSwap<Live>,
    seen: Mutex<Seen>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Which file it was, to see that it has changed: it is only ever replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

/// What the file holds, ready for use.
pub(super) struct Live {
    keys: Vec<LiveKey>,
    signing: Signing,
    jwks: Bytes,
    /// When the first retired key is of no use any more, in seconds since the Unix epoch.
    stale: Option<u64>,
}

/// A key that verifies.
pub(super) struct LiveKey {
    kid: String,
    pub(super) algorithm: TokenAlgorithm,
    pub(super) verifying: DecodingKey,
    until: Option<u64>,
}

/// The current key.
pub(super) struct Signing {
    pub(super) kid: String,
    pub(super) algorithm: TokenAlgorithm,
    pub(super) key: EncodingKey,
}

impl Live {
    /// The key of this id, if it may still verify.
    pub(super) fn verifying(&self, kid: &str, now: u64) -> Option<&LiveKey> {
        let key = self.keys.iter().find(|key| key.kid == kid)?;
        key.until.is_none_or(|until| now < until).then_some(key)
    }

    pub(super) fn signing(&self) -> &Signing {
        &self.signing
    }
}

/// The file. Its secrets are wiped when it is dropped.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    keys: Vec<StoredKey>,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct StoredKey {
    kid: String,
    #[zeroize(skip)]
    algorithm: TokenAlgorithm,
    /// Seconds since the Unix epoch.
    created: u64,
    /// Seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired: Option<u64>,
    /// Base64url.
    secret: String,
}

/// What may be said of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// What tokens name it by.
    pub kid: String,
    /// What it is for.
    pub algorithm: TokenAlgorithm,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// When it stopped signing, in seconds since the Unix epoch; the current key hasn't.
    pub retired: Option<u64>,
    /// Until when it verifies, in seconds since the Unix epoch.
    pub verifies_until: Option<u64>,
}

impl Ring {
    /// Open the ring in a data folder, and make it if there is none. A current key of another algorithm is retired.
    ///
    /// # Errors
    /// The file can't be read or written, is damaged, or others may read it.
    pub fn open(folder: &Path, algorithm: TokenAlgorithm, access_life: Duration) -> Result<Self, DataError> {
        let path = folder.join(FILE);
        let life = access_life.as_secs();
        let lock = lock(folder)?;
        let made = data::read_or_create(&path, || encode(&Stored::new(algorithm)?))?;
        let mut stored = Stored::decode(&path, &made)?;
        let switched = stored.current(&path)?.algorithm != algorithm;
        if switched {
            stored.rotate(algorithm, now())?;
        }
        if stored.prune(life, now()) || switched {
            data::replace(&path, &encode(&stored)?)?;
        }
        let (live, seen) = (stored.live(&path, life)?, look(&path)?);
        drop(lock);
        Ok(Self {
            path,
            life,
            live: ArcSwap::from_pointee(live),
            seen: Mutex::new(seen),
        })
    }

    /// The keys as they are now.
    pub(super) fn keys(&self) -> Guard<Arc<Live>> {
        self.live.load()
    }

    /// The longest life of a token that these keys sign, in seconds.
    pub(super) fn life(&self) -> u64 {
        self.life
    }

    /// The public keys as a JWK Set.
    pub fn jwks(&self) -> Bytes {
        self.live.load().jwks.clone()
    }

    /// Take over what somebody else made of the file, and drop the keys that are of no use any more. For ever.
    pub async fn follow(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = None;
        loop {
            ticks.tick().await;
            let ring = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || ring.refresh(now())).await;
            match looked
                .map_err(|panic| panic.to_string())
                .and_then(|r| r.map_err(|e| e.to_string()))
            {
                Ok(true) => {
                    tracing::info!(target: "berth", kid = self.live.load().signing.kid, "the keys of tokens have changed");
                    told = None;
                }
                Ok(false) => told = None,
                // Once: the keys from before go on.
                Err(error) if told.as_ref() != Some(&error) => {
                    tracing::error!(target: "berth", "the keys of tokens stay as they were: {error}");
                    told = Some(error);
                }
                Err(_) => {}
            }
        }
    }

    /// Read the file if it isn't the one that was read, or if a key in it is of no use any more. Whether it was read.
    pub(super) fn refresh(&self, now: u64) -> Result<bool, DataError> {
        let stale = self.live.load().stale.is_some_and(|stale| stale <= now);
        let known = self.seen.lock().map_or(Seen::default(), |seen| *seen);
        if !stale && look(&self.path)? == known {
            return Ok(false);
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let lock = lock(folder)?;
        let mut stored = Stored::decode(&self.path, &data::read(&self.path)?)?;
        if stored.prune(self.life, now) {
            data::replace(&self.path, &encode(&stored)?)?;
        }
        let (live, seen) = (stored.live(&self.path, self.life)?, look(&self.path)?);
        drop(lock);
        self.live.store(Arc::new(live));
        if let Ok(mut known) = self.seen.lock() {
            *known = seen;
        }
        Ok(true)
    }
}

/// Make a new current key, and retire the one before. With `forget`, no other key stays: every access token that was
/// issued so far is invalid then. Gives the new key.
///
/// # Errors
/// There is no ring in the folder, or it can't be read or written.
pub fn rotate(
    folder: &Path,
    algorithm: TokenAlgorithm,
    access_life: Duration,
    forget: bool,
) -> Result<KeyInfo, DataError> {
    let path = folder.join(FILE);
    let _lock = lock(folder)?;
    let mut stored = Stored::decode(&path, &data::read(&path)?)?;
    stored.current(&path)?;
    let life = access_life.as_secs();
    stored.rotate(algorithm, now())?;
    if forget {
        stored.keys.retain(|key| key.retired.is_none());
    }
    stored.prune(life, now());
    data::replace(&path, &encode(&stored)?)?;
    Ok(stored.current(&path)?.info(life))
}

/// What may be said of the keys of a ring, the newest first.
///
/// # Errors
/// There is no ring in the folder, or it can't be read.
pub fn list(folder: &Path, access_life: Duration) -> Result<Vec<KeyInfo>, DataError> {
    let path = folder.join(FILE);
    let stored = Stored::decode(&path, &data::read(&path)?)?;
    let keys = stored.keys.iter().rev();
    Ok(keys.map(|key| key.info(access_life.as_secs())).collect())
}

impl Stored {
    fn new(algorithm: TokenAlgorithm) -> Result<Self, DataError> {
        Ok(Self {
            version: VERSION,
            keys: vec![StoredKey::new(algorithm, now())?],
        })
    }

    fn decode(path: &Path, bytes: &Secret) -> Result<Self, DataError> {
        // Never the parser's own words: they may have a part of a secret in them.
        let stored: Self = serde_json::from_slice(bytes.expose())
            .map_err(|error| damaged(path, format!("is not a key ring (line {})", error.line())))?;
        if stored.version != VERSION {
            return Err(damaged(
                path,
                format!(
                    "is of version {}, and this berth knows version {VERSION}",
                    stored.version
                ),
            ));
        }
        if stored.keys.len() > MAX_KEYS {
            return Err(damaged(path, format!("has more than {MAX_KEYS} keys")));
        }
        Ok(stored)
    }

    fn current(&self, path: &Path) -> Result<&StoredKey, DataError> {
        let mut current = self.keys.iter().filter(|key| key.retired.is_none());
        match (current.next(), current.next()) {
            (Some(key), None) => Ok(key),
            (None, _) => Err(damaged(path, "has no current key".to_owned())),
            (Some(_), Some(_)) => Err(damaged(path, "has more than one current key".to_owned())),
        }
    }

    fn rotate(&mut self, algorithm: TokenAlgorithm, now: u64) -> Result<(), DataError> {
        let fresh = StoredKey::new(algorithm, now)?;
        for key in &mut self.keys {
            key.retired.get_or_insert(now);
        }
        self.keys.push(fresh);
        // The oldest go first, if somebody rotates more often than tokens expire.
        let surplus = self.keys.len().saturating_sub(MAX_KEYS);
        self.keys.drain(..surplus);
        Ok(())
    }

    /// Drop the keys that no valid token is signed with. Whether there were any.
    fn prune(&mut self, life: u64, now: u64) -> bool {
        let before = self.keys.len();
        self.keys
            .retain(|key| key.until(life).is_none_or(|until| now < until));
        self.keys.len() != before
    }

    fn live(&self, path: &Path, life: u64) -> Result<Live, DataError> {
        let current = self.current(path)?;
        let secret = current.secret(path)?;
        let signing = Signing {
            kid: current.kid.clone(),
            algorithm: current.algorithm,
            key: match current.algorithm {
                TokenAlgorithm::EdDsa => {
                    let der = Zeroizing::new([&PKCS8_ED25519[..], &secret[..]].concat());
                    EncodingKey::from_ed_der(&der)
                }
                TokenAlgorithm::Hs256 => EncodingKey::from_secret(&secret[..]),
            },
        };
        let mut public = Vec::new();
        let mut keys = Vec::with_capacity(self.keys.len());
        // The newest first: it is the one that is looked for.
        for key in self.keys.iter().rev() {
            let secret = key.secret(path)?;
            let verifying = match key.algorithm {
                TokenAlgorithm::EdDsa => {
                    let point = SigningKey::from_bytes(&secret).verifying_key().to_bytes();
                    public.push((key.kid.as_str(), point));
                    // Not a DER at all, whatever the name: the crate wants the 32 bytes of RFC 8032.
                    DecodingKey::from_ed_der(&point)
                }
                TokenAlgorithm::Hs256 => DecodingKey::from_secret(&secret[..]),
            };
            keys.push(LiveKey {
                kid: key.kid.clone(),
                algorithm: key.algorithm,
                verifying,
                until: key.until(life),
            });
        }
        Ok(Live {
            jwks: jwks::document(&public),
            stale: keys.iter().filter_map(|key| key.until).min(),
            keys,
            signing,
        })
    }
}

impl StoredKey {
    fn new(algorithm: TokenAlgorithm, now: u64) -> Result<Self, DataError> {
        let secret = Zeroizing::new(data::random()?);
        let mut kid = [0; KID];
        getrandom::fill(&mut kid).map_err(DataError::Random)?;
        Ok(Self {
            kid: URL_SAFE_NO_PAD.encode(kid),
            algorithm,
            created: now,
            retired: None,
            secret: URL_SAFE_NO_PAD.encode(&secret[..]),
        })
    }

    fn secret(&self, path: &Path) -> Result<Zeroizing<[u8; SECRET]>, DataError> {
        let fault = || damaged(path, format!("the secret of the key {:?} is not one", self.kid));
        let bytes = URL_SAFE_NO_PAD.decode(&self.secret).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| fault())?;
        let bytes: &[u8; SECRET] = bytes.as_slice().try_into().map_err(|_| fault())?;
        Ok(Zeroizing::new(*bytes))
    }

    fn until(&self, life: u64) -> Option<u64> {
        Some(self.retired?.saturating_add(life).saturating_add(GRACE))
    }

    fn info(&self, life: u64) -> KeyInfo {
        KeyInfo {
            kid: self.kid.clone(),
            algorithm: self.algorithm,
            created: self.created,
            retired: self.retired,
            verifies_until: self.until(life),
        }
    }
}

fn encode(stored: &Stored) -> Result<Secret, DataError> {
    // Serialising strings and numbers can't fail; an empty file would never be written in its place.
    serde_json::to_vec_pretty(stored)
        .map(Secret::new)
        .map_err(|error| damaged(Path::new(FILE), format!("can't be encoded: {error}")))
}

fn look(path: &Path) -> Result<Seen, DataError> {
    let about = std::fs::metadata(path).map_err(|error| io_error(path, "can't be looked at", error))?;
    Ok(Seen {
        inode: about.ino(),
        size: about.size(),
        seconds: about.mtime(),
        nanoseconds: about.mtime_nsec(),
    })
}

/// Wait for the right to change the file. Given back when the result is dropped.
fn lock(folder: &Path) -> Result<File, DataError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = file.map_err(|error| io_error(&path, "can't be opened", error))?;
    flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| io_error(&path, "can't be locked", error.into()))?;
    Ok(file)
}

fn io_error(path: &Path, what: &'static str, error: io::Error) -> DataError {
    DataError::Io {
        path: path.to_owned(),
        what,
        error,
    }
}

fn damaged(path: &Path, what: String) -> DataError {
    DataError::Damaged {
        path: path.to_owned(),
        what: format!(
            "{what}; restore it from a backup, or move it away: a new one is made then, and every access token so far is invalid"
        ),
    }
}
