//! How often somebody may try to register, sign in, refresh or change a password. Asked before anything is
//! instantiated, whatever the policy.
//!
//! Two limits, each a token bucket (GCRA): per address over all accounts, and per address *and* account. There is none
//! per account alone, because whoever knows an e-mail address could keep its owner out with it; the owner comes from
//! elsewhere and has a bucket of their own. An IPv4 address counts whole, of an IPv6 address its /64, which is what one
//! customer gets.
//!
//! Memory is bounded: [`MAX_KEYS`] buckets a limit. When they are taken, the full ones (nobody has tried for a while)
//! make room; while there are none, new callers share [`OVERFLOW`] buckets by chance. Nothing is kept over a restart,
//! and each host counts for itself.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{IdentitySpec, canonical};
use governor::clock::{Clock, DefaultClock};
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{Quota, RateLimiter};

/// The most buckets of one limit: about 3 MiB.
pub const MAX_KEYS: usize = 65_536;
/// Buckets that are shared by those who got none of their own.
pub const OVERFLOW: usize = 256;
/// Locks of one limit, so that workers rarely wait for each other.
const SHARDS: usize = 16;
/// How often a full limit looks for buckets that it can do without.
const SWEEP: Duration = Duration::from_secs(1);
/// What is looked at of an account's name, in bytes. No e-mail address is longer.
const MAX_ACCOUNT: usize = 320;

/// So many within a time, as in `"10/5min"`; the first ones may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// Within how long.
    pub per: Duration,
}

impl Rate {
    fn quota(self) -> Quota {
        // A bucket fills up by one after every part of the time; at least a nanosecond, so that it can be counted.
        let each = (self.per / self.count.get()).max(Duration::from_nanos(1));
        Quota::with_period(each)
            .unwrap_or(Quota::per_second(self.count))
            .allow_burst(self.count)
    }
}

/// Who tries, counted.
#[derive(Debug)]
pub struct Attempts {
    addresses: Option<Limit>,
    accounts: Option<Limit>,
    /// Two, because one hash has 64 bits and there are many keys. A stranger can't choose keys that meet.
    hashes: [RandomState; 2],
}

impl Attempts {
    /// Nobody has tried yet.
    pub fn new(spec: &IdentitySpec) -> Self {
        Self {
            addresses: spec.address_rate.map(Limit::new),
            accounts: spec.account_rate.map(Limit::new),
            hashes: [RandomState::new(), RandomState::new()],
        }
    }

    /// Somebody tries, perhaps for an account: its e-mail address as typed, or its id.
    ///
    /// # Errors
    /// Too often: how long to wait.
    pub fn admit(&self, address: IpAddr, account: Option<&str>) -> Result<(), Duration> {
        let place = place(address);
        if let Some(addresses) = &self.addresses {
            addresses.admit(self.key(&(place, "")))?;
        }
        if let (Some(accounts), Some(account)) = (&self.accounts, account) {
            let end = account.floor_char_boundary(MAX_ACCOUNT);
            let account = canonical(account.get(..end).unwrap_or_default());
            accounts.admit(self.key(&(place, account.as_str())))?;
        }
        Ok(())
    }

    /// Keys are hashes, so that no bucket is larger than another and no address lies about in memory.
    fn key(&self, of: &(u128, &str)) -> u128 {
        let [high, low] = &self.hashes;
        u128::from(high.hash_one(of)) << 64 | u128::from(low.hash_one(of))
    }
}

/// An IPv4 address (mapped), or the /64 of an IPv6 address.
fn place(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(four) => four.to_ipv6_mapped().to_bits(),
        IpAddr::V6(six) => six.to_bits() & !u128::from(u64::MAX),
    }
}

/// One limit: its buckets, and when it was last swept.
#[derive(Debug)]
struct Limit {
    buckets: RateLimiter<u128, Buckets, DefaultClock>,
    began: Instant,
    /// Milliseconds after `began`.
    next_sweep: AtomicU64,
    full: std::sync::Arc<AtomicBool>,
}

impl Limit {
    fn new(rate: Rate) -> Self {
        let buckets = Buckets::default();
        Self {
            full: std::sync::Arc::clone(&buckets.full),
            buckets: RateLimiter::new(rate.quota(), buckets, DefaultClock::default()),
            began: Instant::now(),
            next_sweep: AtomicU64::new(0),
        }
    }

    fn admit(&self, key: u128) -> Result<(), Duration> {
        let admitted = self.buckets.check_key(&key);
        self.sweep();
        admitted.map_err(|not_until| not_until.wait_time_from(self.buckets.clock().now()))
    }

    /// Make room if there was none, at most once in a while: it looks at every bucket.
    fn sweep(&self) {
        if !self.full.load(Ordering::Relaxed) {
            return;
        }
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = self.next_sweep.load(Ordering::Relaxed);
        let next = now.saturating_add(u64::try_from(SWEEP.as_millis()).unwrap_or(u64::MAX));
        let mine = now >= due
            && self
                .next_sweep
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if mine {
            self.full.store(false, Ordering::Relaxed);
            self.buckets.retain_recent();
        }
    }
}

/// A bounded map of buckets. A bucket is the time at which it would be full again.
#[derive(Debug)]
struct Buckets {
    shards: [Mutex<HashMap<u128, Nanos>>; SHARDS],
    overflow: Vec<Mutex<Option<Nanos>>>,
    /// Somebody got no bucket of their own since the last sweep.
    full: std::sync::Arc<AtomicBool>,
}

impl Default for Buckets {
    fn default() -> Self {
        Self {
            shards: Default::default(),
            overflow: (0..OVERFLOW).map(|_| Mutex::default()).collect(),
            full: std::sync::Arc::default(),
        }
    }
}

/// The remainder is below `count`, so it fits.
fn part(bits: u128, count: usize) -> usize {
    usize::try_from(bits % count.max(1) as u128).unwrap_or(0)
}

impl StateStore for Buckets {
    type Key = u128;

    fn measure_and_replace<T, F, E>(&self, key: &u128, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let Some(shard) = self.shards.get(part(*key, SHARDS)) else {
            return measure(None).map(|(outcome, _)| outcome);
        };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = shard.get_mut(key) {
            let (outcome, after) = measure(Some(*bucket))?;
            *bucket = after;
            return Ok(outcome);
        }
        if shard.len() < MAX_KEYS / SHARDS {
            let (outcome, after) = measure(None)?;
            shard.insert(*key, after);
            return Ok(outcome);
        }
        drop(shard);
        self.full.store(true, Ordering::Relaxed);
        let Some(shared) = self.overflow.get(part(*key >> 64, OVERFLOW)) else {
            return measure(None).map(|(outcome, _)| outcome);
        };
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let (outcome, after) = measure(*shared)?;
        *shared = Some(after);
        Ok(outcome)
    }
}

impl ShrinkableKeyedStateStore<u128> for Buckets {
    fn retain_recent(&self, drop_below: Nanos) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, bucket| *bucket > drop_below);
        }
    }

    fn len(&self) -> usize {
        let lock =
            |shard: &Mutex<HashMap<u128, Nanos>>| shard.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.shards.iter().map(lock).sum()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(count: u32, per: Duration) -> Option<Rate> {
        let count = NonZeroU32::new(count).unwrap();
        Some(Rate { count, per })
    }

    fn attempts(address_rate: Option<Rate>, account_rate: Option<Rate>) -> Attempts {
        Attempts::new(&IdentitySpec {
            address_rate,
            account_rate,
            ..IdentitySpec::default()
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn account_is_limited_per_address_so_that_its_owner_gets_in_from_elsewhere() {
        let attempts = attempts(None, rate(3, HOUR));
        let attacker = ip("203.0.113.7");
        for _ in 0..3 {
            assert_eq!(attempts.admit(attacker, Some("ada@example.com")), Ok(()));
        }
        // However it is written.
        for typed in ["ada@example.com", "ADA@Example.com"] {
            let wait = attempts.admit(attacker, Some(typed)).unwrap_err();
            assert!(wait > HOUR / 4 && wait <= HOUR / 3, "{wait:?}");
        }
        assert_eq!(attempts.admit(ip("203.0.113.8"), Some("ada@example.com")), Ok(()));
        assert_eq!(attempts.admit(attacker, Some("bob@example.com")), Ok(()));
        assert_eq!(attempts.admit(attacker, None), Ok(()));
        assert_eq!(attempts.admit(attacker, Some("ü@e.de")), Ok(()));
        assert_eq!(attempts.admit(attacker, Some("U\u{308}@e.de")), Ok(()));
        assert_eq!(attempts.admit(attacker, Some("Ü@e.de")), Ok(()));
        assert!(attempts.admit(attacker, Some("ü@E.de")).is_err());
    }

    #[test]
    fn address_is_limited_over_all_accounts_and_an_ipv6_customer_is_a_64() {
        let attempts = attempts(rate(2, HOUR), None);
        for (address, account) in [("2001:db8::1", "a"), ("2001:db8::ffff:1", "b")] {
            assert_eq!(attempts.admit(ip(address), Some(account)), Ok(()));
        }
        assert!(attempts.admit(ip("2001:db8::2"), None).is_err());
        assert_eq!(attempts.admit(ip("2001:db8:0:1::1"), None), Ok(()));
        assert_eq!(attempts.admit(ip("192.0.2.1"), None), Ok(()));
        assert_eq!(attempts.admit(ip("::ffff:192.0.2.1"), None), Ok(()));
        assert!(
            attempts.admit(ip("192.0.2.1"), None).is_err(),
            "one address in two spellings"
        );
        assert_eq!(attempts.admit(ip("192.0.2.2"), None), Ok(()));
    }

    #[test]
    fn bucket_fills_up_again_and_off_is_off() {
        let attempts = attempts(rate(1, Duration::from_millis(20)), None);
        let me = ip("192.0.2.1");
        assert_eq!(attempts.admit(me, None), Ok(()));
        let started = Instant::now();
        while let Err(wait) = attempts.admit(me, None) {
            assert!(wait <= Duration::from_millis(20));
            std::thread::sleep(wait);
            assert!(started.elapsed() < Duration::from_secs(30), "it never fills up");
        }
        let off = Attempts::new(&IdentitySpec {
            address_rate: None,
            account_rate: None,
            ..IdentitySpec::default()
        });
        assert!((0..10_000).all(|_| off.admit(me, Some("a")).is_ok()));
    }

    #[test]
    fn million_keys_take_bounded_memory_and_the_known_ones_keep_their_own() {
        let attempts = attempts(rate(2, HOUR), None);
        let me = ip("192.0.2.1");
        assert_eq!(attempts.admit(me, None), Ok(()));
        let started = Instant::now();
        let mut refused = 0_u32;
        for n in 0..1_000_000_u32 {
            let stranger = IpAddr::from(std::net::Ipv4Addr::from_bits(0x0b00_0000 + n));
            refused += u32::from(attempts.admit(stranger, None).is_err());
        }
        println!("a million strangers: {:?}", started.elapsed());
        let limit = attempts.addresses.as_ref().unwrap();
        assert!(limit.buckets.len() <= MAX_KEYS, "{}", limit.buckets.len());
        // Those who came too late share few buckets.
        assert!(refused > 900_000, "{refused}");
        assert_eq!(attempts.admit(me, None), Ok(()));
        assert!(
            attempts.admit(me, None).is_err(),
            "my own bucket, with its own count"
        );
    }

    #[test]
    fn full_limit_makes_room_when_buckets_have_filled_up() {
        let limit = Limit::new(rate(1, Duration::from_millis(1)).unwrap());
        for key in 0..2 * MAX_KEYS as u128 {
            let _ = limit.admit(key << 4 | key >> 12);
        }
        let started = Instant::now();
        // The next sweep that is due finds them all full.
        while limit.buckets.len() > MAX_KEYS / 2 {
            limit.full.store(true, Ordering::Relaxed);
            limit.sweep();
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "{}",
                limit.buckets.len()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
