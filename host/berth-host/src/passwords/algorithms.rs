//! The algorithms themselves, and how their hashes are written.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bcrypt::BASE_64 as BCRYPT_BASE64;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a salt (RFC 9106 section 3.1 recommends 16).
pub(super) const SALT: usize = 16;
/// Bytes of a hash.
const OUTPUT: usize = 32;
/// What a new hash costs: 19 MiB, 2 passes, 1 lane (OWASP's first choice for Argon2id).
const MEMORY: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Blocks of memory of such a hash.
pub(super) const BLOCKS: usize = MEMORY as usize;

/// The longest hash that is looked at, in bytes: as long as the database keeps.
const MAX_HASH: usize = 512;
/// What a stored hash may ask for at most; whoever can write hashes must not be able to stop the host. In KiB.
const MAX_MEMORY: u32 = 64 * 1024;
const MAX_PASSES: u32 = 10;
const MAX_LANES: u32 = 4;
/// Memory times passes, in KiB: seven times what a new hash costs.
const MAX_COST: u32 = 256 * 1024;

/// The costs of bcrypt: below 4 there is none, and 14 takes a second.
const BCRYPT_COSTS: std::ops::RangeInclusive<u32> = 4..=14;
/// What bcrypt reads of a password, in bytes, its terminating zero included.
const BCRYPT_MAX: usize = 72;

/// A hash, read.
pub(super) enum Stored {
    /// Argon2, of any kind.
    Argon2(Box<StoredArgon2>),
    /// bcrypt.
    Bcrypt(StoredBcrypt),
    /// None, or one that can't be read: never matches, and costs the same.
    Dummy,
}

impl Stored {
    pub(super) fn parse(text: &str) -> Self {
        if text.len() > MAX_HASH {
            return Self::Dummy;
        }
        let argon2 = || StoredArgon2::parse(text).map(|stored| Self::Argon2(Box::new(stored)));
        let bcrypt = || StoredBcrypt::parse(text).map(Self::Bcrypt);
        argon2().or_else(bcrypt).unwrap_or(Self::Dummy)
    }

    /// Whether a new hash would be better.
    pub(super) fn is_weak(&self) -> bool {
        match self {
            Self::Argon2(stored) => stored.is_weak(),
            Self::Bcrypt(_) | Self::Dummy => true,
        }
    }
}

/// A new hash, in the PHC string format. Nothing if the parameters were wrong, which they aren't.
pub(super) fn argon2id(password: &str, salt: &[u8; SALT], memory: &mut Vec<Block>) -> Option<String> {
    let params = Params::new(MEMORY, PASSES, LANES, Some(OUTPUT)).ok()?;
    let mut output = Zeroizing::new([0; OUTPUT]);
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    hash_into(&argon2, password, salt, &mut output[..], memory)?;
    let (salt, output) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(&output[..]));
    Some(format!(
        "$argon2id$v=19$m={MEMORY},t={PASSES},p={LANES}${salt}${output}"
    ))
}

fn hash_into(
    argon2: &Argon2<'_>,
    password: &str,
    salt: &[u8],
    output: &mut [u8],
    memory: &mut Vec<Block>,
) -> Option<()> {
    let blocks = argon2.params().block_count();
    if memory.len() < blocks {
        memory.resize(blocks, Block::new());
    }
    let memory = memory.get_mut(..blocks)?;
    argon2
        .hash_password_into_with_memory(password.as_bytes(), salt, output, memory)
        .ok()
}

pub(super) struct StoredArgon2 {
    argon2: Argon2<'static>,
    id: bool,
    salt: Vec<u8>,
    output: Vec<u8>,
}

impl StoredArgon2 {
    fn parse(text: &str) -> Option<Self> {
        let hash = PasswordHash::new(text).ok()?;
        let algorithm = match hash.algorithm.as_str() {
            "argon2id" => Algorithm::Argon2id,
            "argon2i" => Algorithm::Argon2i,
            "argon2d" => Algorithm::Argon2d,
            _ => return None,
        };
        // The first version had no field for it.
        let version = match hash.version {
            Some(19) => Version::V0x13,
            Some(16) | None => Version::V0x10,
            Some(_) => return None,
        };
        // A key id or associated data belong to a secret that isn't here.
        let only_costs = hash
            .params
            .iter()
            .all(|(name, _)| matches!(name.as_str(), "m" | "t" | "p"));
        let cost = |name: &str| hash.params.get_decimal(name);
        let (memory, passes, lanes) = (cost("m")?, cost("t")?, cost("p")?);
        let bounded = memory <= MAX_MEMORY
            && passes <= MAX_PASSES
            && lanes <= MAX_LANES
            && memory.saturating_mul(passes) <= MAX_COST;
        if !only_costs || !bounded {
            return None;
        }
        let (salt, output) = (hash.salt?, hash.hash?);
        let output = output.as_bytes().to_vec();
        let params = Params::new(memory, passes, lanes, Some(output.len())).ok()?;
        // Shorter ones can be found by chance.
        (output.len() >= 16 && salt.len() >= argon2::MIN_SALT_LEN).then(|| Self {
            argon2: Argon2::new(algorithm, version, params),
            id: algorithm == Algorithm::Argon2id && version == Version::V0x13,
            salt: salt.to_vec(),
            output,
        })
    }

    /// Nothing if it can't be hashed at all.
    pub(super) fn matches(&self, password: &str, memory: &mut Vec<Block>) -> Option<bool> {
        let mut output = Zeroizing::new(vec![0; self.output.len()]);
        hash_into(&self.argon2, password, &self.salt, &mut output, memory)?;
        Some(output.ct_eq(&self.output).into())
    }

    fn is_weak(&self) -> bool {
        let params = self.argon2.params();
        !self.id
            || params.m_cost() < MEMORY
            || params.t_cost() < PASSES
            || self.output.len() < OUTPUT
            || self.salt.len() < SALT
    }
}

pub(super) struct StoredBcrypt {
    cost: u32,
    salt: [u8; 16],
    output: [u8; 23],
}

impl StoredBcrypt {
    /// `$2b$10$`, then 22 characters of salt and 31 of the hash.
    fn parse(text: &str) -> Option<Self> {
        let rest = ["$2a$", "$2b$", "$2y$"]
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix))?;
        let (cost, rest) = rest.split_once('$')?;
        let digits = cost.len() == 2 && cost.bytes().all(|b| b.is_ascii_digit());
        let cost: u32 = cost
            .parse()
            .ok()
            .filter(|cost| digits && BCRYPT_COSTS.contains(cost))?;
        let (salt, output) = rest.split_at_checked(22)?;
        Some(Self {
            cost,
            salt: BCRYPT_BASE64.decode(salt).ok()?.try_into().ok()?,
            output: BCRYPT_BASE64.decode(output).ok()?.try_into().ok()?,
        })
    }

    /// Never cuts. A password is what bcrypt reads all of: up to 72 bytes, where the terminating zero of a shorter one
    /// counts, and without a zero, which would make `"a"` and `"a\0a"` the same.
    pub(super) fn matches(&self, password: &[u8]) -> Option<bool> {
        let whole = password.len() <= BCRYPT_MAX && !password.contains(&0);
        let mut key = password.to_vec();
        key.push(0);
        key.truncate(BCRYPT_MAX);
        let mut output = bcrypt::bcrypt(self.cost, self.salt, &key);
        key.zeroize();
        let (output_23, _) = output.split_at(self.output.len());
        let matches: bool = output_23.ct_eq(&self.output).into();
        output.zeroize();
        Some(whole && matches)
    }
}
