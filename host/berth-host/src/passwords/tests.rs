//! The names P1 to P5 are those of the list of cases that break others.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use super::*;

fn hasher(concurrency: u32, queue: u32) -> Hasher {
    Hasher::new(PasswordSpec { concurrency, queue })
}

/// What one verification found, and how many hashes of which kind it made.
async fn verify(password: &str, hash: Option<&str>) -> (Verdict, [u64; 2]) {
    let hasher = hasher(1, 1);
    let verdict = hasher
        .verify(password.to_owned(), hash.map(str::to_owned))
        .await
        .unwrap();
    (verdict, hasher.hashes().map(|(_, n)| n))
}

const MATCH: Verdict = Verdict {
    matches: true,
    rehash: false,
};
const OLD: Verdict = Verdict {
    matches: true,
    rehash: true,
};
const NO: Verdict = Verdict {
    matches: false,
    rehash: false,
};

fn bcrypt_of(password: &[u8]) -> String {
    // The crate's own cut, as the older system did it.
    bcrypt::hash_with_salt(password, 4, [7; 16])
        .unwrap()
        .format_for_version(bcrypt::Version::TwoA)
}

#[tokio::test]
async fn new_hash_is_argon2id_with_its_own_salt_and_verifies() {
    let hasher = hasher(2, 4);
    let one = hasher.hash("correct horse".to_owned()).await.unwrap();
    let other = hasher.hash("correct horse".to_owned()).await.unwrap();
    assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
    assert_ne!(one, other);
    assert_eq!(verify("correct horse", Some(&one)).await, (MATCH, [1, 0]));
    assert_eq!(verify("correct horse ", Some(&one)).await, (NO, [1, 0]));
    assert_eq!(verify("", Some(&one)).await, (NO, [1, 0]));
    let empty = hasher.hash(String::new()).await.unwrap();
    assert_eq!(verify("", Some(&empty)).await, (MATCH, [1, 0]));
}

/// From another implementation: the reference program's test vector for Argon2id, version 19.
#[tokio::test]
async fn hash_of_another_implementation_verifies() {
    let hash = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
    assert_eq!(
        verify("password", Some(hash)).await,
        (OLD, [1, 0]),
        "a short salt is weaker"
    );
    assert_eq!(verify("passwort", Some(hash)).await, (NO, [1, 0]));
    // `$2a$` of the reference's library, from its own tests.
    let hash = "$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga";
    assert_eq!(verify("allmine", Some(hash)).await, (OLD, [0, 1]));
    for prefix in ["$2b$", "$2y$"] {
        let hash = hash.replace("$2a$", prefix);
        assert_eq!(verify("allmine", Some(&hash)).await, (OLD, [0, 1]));
    }
}

/// P1: what bcrypt doesn't read is not ignored.
#[tokio::test]
async fn p1_bcrypt_never_cuts_a_password() {
    let a = |n: usize| "a".repeat(n);
    for n in [1, 55, 71, 72] {
        let hash = bcrypt_of(a(n).as_bytes());
        assert_eq!(verify(&a(n), Some(&hash)).await, (OLD, [0, 1]), "{n} bytes");
        for other in [a(n - 1), a(n + 1), format!("{}X", a(n))] {
            assert_eq!(
                verify(&other, Some(&hash)).await,
                (NO, [0, 1]),
                "{n} bytes and {}",
                other.len()
            );
        }
    }
    // Its first 72 bytes are the same.
    let long = format!("{}X", a(72));
    let hash = bcrypt_of(long.as_bytes());
    for given in [long, format!("{}Y", a(72)), a(73), a(4096)] {
        assert_eq!(verify(&given, Some(&hash)).await, (NO, [0, 1]));
    }
    assert_eq!(
        verify(&a(72), Some(&hash)).await,
        (OLD, [0, 1]),
        "it is this one's hash too"
    );
    // 24 characters of four bytes are 96 bytes; 18 are 72.
    let emoji = |n: usize| "\u{1f511}".repeat(n);
    let hash = bcrypt_of(emoji(18).as_bytes());
    assert_eq!(verify(&emoji(18), Some(&hash)).await, (OLD, [0, 1]));
    assert_eq!(
        verify(&emoji(24), Some(&bcrypt_of(emoji(24).as_bytes()))).await,
        (NO, [0, 1])
    );
    // bcrypt repeats a password with its end: these two are one to it.
    let hash = bcrypt_of(b"a");
    assert_eq!(verify("a\0a", Some(&hash)).await, (NO, [0, 1]));
    // Exact bytes, not NFC.
    let hash = bcrypt_of("e\u{301}".as_bytes());
    assert_eq!(verify("e\u{301}", Some(&hash)).await, (OLD, [0, 1]));
    assert_eq!(verify("\u{e9}", Some(&hash)).await, (NO, [0, 1]));
    // Argon2 reads everything.
    let hasher = hasher(1, 1);
    let hash = hasher.hash(format!("{}X", a(72))).await.unwrap();
    assert_eq!(verify(&format!("{}Y", a(72)), Some(&hash)).await, (NO, [1, 0]));
}

/// P3: the same password typed on two keyboards is the same; nothing else is changed; size is checked before work.
#[tokio::test]
async fn p3_passwords_are_compared_in_nfc_and_never_trimmed() {
    let hasher = hasher(1, 1);
    let hash = hasher.hash("caf\u{e9} ".to_owned()).await.unwrap();
    assert_eq!(verify("cafe\u{301} ", Some(&hash)).await, (MATCH, [1, 0]));
    for other in [
        "cafe\u{301}",
        "caf\u{e9}",
        " caf\u{e9} ",
        "CAF\u{c9} ",
        "cafe ",
        "caf\u{e9}\u{a0}",
    ] {
        assert_eq!(verify(other, Some(&hash)).await, (NO, [1, 0]), "{other:?}");
    }
    // Compatibility forms stay apart: NFC, not NFKC.
    let hash = hasher.hash("\u{fb01}".to_owned()).await.unwrap();
    assert_eq!(verify("fi", Some(&hash)).await, (NO, [1, 0]));

    let made = hasher.hashes();
    for long in [4097, 1_000_000] {
        assert_eq!(hasher.hash("x".repeat(long)).await, Err(HashError::TooLong));
        assert_eq!(
            hasher.verify("x".repeat(long), Some(hash.clone())).await,
            Err(HashError::TooLong)
        );
    }
    assert_eq!(hasher.hashes(), made, "no work was done");
    assert!(hasher.hash("x".repeat(4096)).await.is_ok());
    // What grows most in NFC: three times its bytes.
    assert!(hasher.verify("\u{1d160}".repeat(1024), None).await.is_ok());
}

/// P4: one hash for every path that fails, and none that matches.
#[tokio::test]
async fn p4_every_failing_path_hashes_exactly_once() {
    let real = hasher(1, 1).hash("right".to_owned()).await.unwrap();
    for password in ["wrong", ""] {
        for hash in [
            Some(real.as_str()),
            None,
            Some(""),
            Some("x"),
            Some("$argon2id$"),
            Some("!"),
        ] {
            assert_eq!(
                verify(password, hash).await,
                (NO, [1, 0]),
                "{password:?} {hash:?}"
            );
        }
    }
    assert_eq!(verify("wrong", Some(&bcrypt_of(b"right"))).await, (NO, [0, 1]));
}

/// A stored hash chooses no costs beyond the bounds, and no hash that could be met by chance.
#[tokio::test]
async fn hostile_hashes_cost_what_any_other_costs() {
    let salt_and_hash = "c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
    for parameters in [
        "m=4294967295,t=1,p=1",
        "m=65537,t=1,p=1",
        "m=8,t=4294967295,p=1",
        "m=8,t=11,p=1",
        "m=65536,t=5,p=1",
        "m=19456,t=2,p=16777215",
        "m=64,t=1,p=5",
        "m=0,t=0,p=0",
        "m=19456,t=2",
        "m=19456,t=2,p=1,keyid=AAAA",
        "m=19456,t=2,p=1,data=AAAA",
        "m=-1,t=2,p=1",
    ] {
        let hash = format!("$argon2id$v=19${parameters}${salt_and_hash}");
        assert!(matches!(Stored::parse(&hash), Stored::Dummy), "{hash}");
    }
    for hash in [
        "$argon2id$v=18$m=19456,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO0",
        "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ",
        "$2a$31$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga",
        "$2a$15$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga",
        "$2a$03$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga",
        "$2a$+9$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga",
        "$2x$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga",
        "$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcg",
        "$2a$10$\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}",
        "$6$salt$hash",
    ] {
        assert!(matches!(Stored::parse(hash), Stored::Dummy), "{hash}");
    }
    assert!(matches!(Stored::parse(&"$".repeat(1_000_000)), Stored::Dummy));
    let weak = format!("$argon2id$v=19$m=64,t=1,p=1${salt_and_hash}");
    assert!(matches!(Stored::parse(&weak), Stored::Argon2(_)));
    assert!(Stored::parse(&weak).is_weak());
}

/// Ask a future once, and say whether it waits.
async fn waits<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
    let mut future = Some(future);
    std::future::poll_fn(|context| {
        let polled = future.take().map(|future| future.poll(context));
        Poll::Ready(matches!(polled, Some(Poll::Pending)))
    })
    .await
}

/// P5: what doesn't fit into the queue is sent away with a time, and who leaves makes room.
#[tokio::test]
async fn p5_the_queue_is_bounded_and_who_leaves_makes_room() {
    let hasher = hasher(1, 2);
    // The one place is taken, without a hash whose end nobody could foresee.
    let place = Arc::clone(&hasher.0.places).acquire_owned().await.unwrap();
    let mut first = pin!(hasher.hash("first".to_owned()));
    assert!(waits(first.as_mut()).await);
    {
        let mut second = pin!(hasher.verify("second".to_owned(), None));
        assert!(waits(second.as_mut()).await);
        assert_eq!(hasher.waiting(), 2);
        assert_eq!(hasher.hash("third".to_owned()).await, Err(HashError::Busy(1)));
        assert_eq!(hasher.refused(), 1);
    }
    assert_eq!(hasher.waiting(), 1, "the second has left");
    let mut fourth = pin!(hasher.hash("fourth".to_owned()));
    assert!(waits(fourth.as_mut()).await);
    assert_eq!(hasher.hashes().map(|(_, n)| n), [0, 0]);
    drop(place);
    assert!(first.await.is_ok() && fourth.await.is_ok());
    assert_eq!(hasher.hashes().map(|(_, n)| n), [2, 0]);
    assert_eq!(hasher.waiting(), 0);
}

/// P5: 200 at once are hashed two at a time, in the memory of two, and the executor serves meanwhile.
#[tokio::test]
async fn p5_many_at_once_hash_few_at_a_time() {
    let hasher = hasher(2, 8);
    let (mut done, mut busy) = (0, 0);
    let mut all: Vec<_> = (0..200)
        .map(|_| {
            let hasher = hasher.clone();
            tokio::spawn(async move { hasher.verify("x".to_owned(), None).await })
        })
        .collect();
    for task in all.drain(..) {
        match task.await.unwrap() {
            Ok(verdict) => {
                assert_eq!(verdict, NO);
                done += 1;
            }
            Err(HashError::Busy(seconds)) => {
                assert!((1..=60).contains(&seconds));
                busy += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(done >= 10 && done + busy == 200, "{done} done, {busy} sent away");
    assert_eq!(hasher.hashes()[0].1, done);
    let memory = hasher.0.memory.lock().unwrap();
    assert!(memory.len() <= 2, "{} blocks of memory", memory.len());
    assert!(memory.iter().all(|blocks| blocks.len() == algorithms::BLOCKS));
    let wiped = |block: &Block| block.as_ref().iter().all(|&word| word == 0);
    assert!(memory.iter().flatten().all(wiped), "nothing of a password stays");
}

#[test]
fn debug_says_nothing_of_what_was_hashed() {
    assert!(format!("{:?}", hasher(1, 1)).starts_with("Hasher { spec: PasswordSpec"));
}
