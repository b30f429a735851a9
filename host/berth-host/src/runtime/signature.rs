//! Signatures of components, as [minisign](https://jedisct1.github.io/minisign/) makes them: `minisign -Sm hello.wasm`
//! writes `hello.wasm.minisig`, which lies beside the component.
//!
//! Ed25519 over the BLAKE2b-512 of the file, and once more over that signature and a comment that is trusted with it.
//! The `minisign-verify` crate, by minisign's author, decides; what is parsed here besides only says what is wrong.
//!
//! **Only prehashed signatures.** Since version 0.10 (October 2021) minisign makes no others unless it is asked to (`-l`). The
//! older kind signs the file itself. It would be as secure, but a second kind is a second path through the code that
//! decides what may run, for files that nobody has yet: berth is younger than that version. Such a signature is told apart
//! and says how to make one that is accepted.
//!
//! What a signature doesn't say, because minisign's format doesn't: which plugin the component is meant for, and that it
//! is the newest. Whoever can write to the folder of the components can put back an older version with its signature, or
//! one plugin's signed component in the place of another's. There is no revocation, either: a key that has leaked is taken
//! out of the manifest.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::VerifyingKey;
use minisign_verify::Signature;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The largest signature file that is read, in bytes. minisign writes about 300, and comments of at most 8 KiB.
pub const MAX_SIGNATURE: u64 = 32 * 1024;

const TOO_LONG: &str = "it has more than 32 KiB";

/// What the algorithm of keys and of legacy signatures is called, and that of prehashed signatures.
const ED25519: &[u8] = b"Ed";
const PREHASHED: &[u8] = b"ED";
/// Bytes of a key's number.
const ID: usize = 8;
/// Bytes of a public key's line: algorithm, number, point. Of a secret key's: also how it is encrypted, and more.
const PUBLIC: usize = 2 + ID + 32;
const SECRET: usize = 158;
/// Bytes of a signature's line: algorithm, number, signature.
const SIGNATURE: usize = 2 + ID + 64;
/// What the first line begins with.
const COMMENT: &str = "untrusted comment: ";
/// The most of a trusted comment that is kept, in bytes. minisign's own is a time, a file name and "hashed".
const MAX_COMMENT: usize = 256;

/// A key that components may be signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    id: KeyId,
    key: minisign_verify::PublicKey,
}

/// A key's number, which only says which key to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KeyId([u8; ID]);

/// As minisign prints it.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

impl PublicKey {
    /// From the second line of a `.pub` file, "RW" and 54 more letters, digits and signs.
    ///
    /// # Errors
    /// It isn't one. The text doesn't repeat it, because it could be a secret key.
    pub fn parse(text: &str) -> Result<Self, String> {
        const EXPECTED: &str =
            "give the second line of the .pub file that `minisign -G` made, \"RW\" and 54 more characters";
        let text = text.trim();
        let bytes = STANDARD
            .decode(text)
            .map_err(|_| format!("this is no public key of minisign, because it is no base64; {EXPECTED}"))?;
        if bytes.len() == SECRET {
            return Err(
                "this is a secret key, and whoever has read it can sign; make another pair with `minisign -G`, and give its public key"
                    .to_owned(),
            );
        }
        let parts = bytes.split_at_checked(2).and_then(|(algorithm, rest)| {
            let (id, point) = rest.split_first_chunk::<ID>()?;
            Some((
                algorithm,
                KeyId(*id),
                <&[u8; PUBLIC - 2 - ID]>::try_from(point).ok()?,
            ))
        });
        let Some((ED25519, id, point)) = parts else {
            return Err(format!(
                "this is no public key of minisign, which is {PUBLIC} bytes that begin with \"Ed\"; {EXPECTED}"
            ));
        };
        // There is no checksum, but every other mistyped key is no point of the curve. For a weak one, of small order,
        // anybody can sign.
        if VerifyingKey::from_bytes(point).map_or(true, |key| key.is_weak()) {
            return Err(format!(
                "this is no public key that anybody could sign for, perhaps mistyped; {EXPECTED}"
            ));
        }
        let key = minisign_verify::PublicKey::from_base64(text)
            .map_err(|error| format!("this is no public key of minisign: {error}; {EXPECTED}"))?;
        Ok(Self { id, key })
    }

    /// Its number, as minisign prints it: 16 hexadecimal digits.
    pub fn id(&self) -> String {
        self.id.to_string()
    }
}

/// Who has signed a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The number of the key.
    pub key_id: String,
    /// What the signer's tool wrote: usually when, and the file's name. For the log: cut, and without characters that
    /// could forge a line.
    pub trusted_comment: String,
}

/// Why a component doesn't count as signed. Its text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureFault {
    /// There is no signature.
    #[error(
        "the component isn't signed: there is no `.minisig` file beside it, and only signed components are served; sign it with `minisign -Sm` and its name"
    )]
    Missing,
    /// Its file can't be read.
    #[error("{}: the component's signature can't be read: {reason}", path.display())]
    Unreadable {
        /// The signature's file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Not in minisign's format.
    #[error(
        "the component's `.minisig` file is not a signature of minisign: {0}; sign the component again with `minisign -Sm` and its name"
    )]
    Malformed(String),
    /// Of the older kind.
    #[error(
        "the component's signature is of minisign's older kind, which is not prehashed; sign it again with minisign 0.10 or newer, without `-l`"
    )]
    Legacy,
    /// Of a key that isn't trusted here.
    #[error(
        "the component is signed with the key {id}, which is not among those that are trusted here ({known}); sign it with one of these, or trust the key as well",
        known = listed(known)
    )]
    UnknownKey {
        /// The number of its key, as the signature says.
        id: String,
        /// The numbers of the trusted keys.
        known: Vec<String>,
    },
    /// Of a known key, but not for this component.
    #[error(
        "the signature doesn't fit the component: one of them was changed, or only one replaced, since key {id} signed; sign it again with `minisign -Sm` and its name, if you know where it comes from"
    )]
    Altered {
        /// The number of its key, as the signature says.
        id: String,
    },
}

fn listed(known: &[String]) -> String {
    match known {
        [] => "there are none".to_owned(),
        known => known.join(", "),
    }
}

/// Where the signature of a component is.
pub fn file_of(component: &Path) -> PathBuf {
    let mut file = component.as_os_str().to_owned();
    file.push(".minisig");
    PathBuf::from(file)
}

/// The text of a component's signature; nothing if there is none.
///
/// Who can write to the folder can put anything there. A pipe would be waited for and a device have no end, so only a
/// regular file is read, and not more than [`MAX_SIGNATURE`] of it. Symbolic links are followed: some tools deploy files
/// that way, and whatever they lead to must be a signature of these bytes.
///
/// # Errors
/// It is there and can't be read, or is no text.
pub fn read(component: &Path) -> Result<Option<String>, SignatureFault> {
    let path = file_of(component);
    let unreadable = |reason: &dyn fmt::Display| SignatureFault::Unreadable {
        path: path.clone(),
        reason: reason.to_string(),
    };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(unreadable(&error)),
    };
    if !file.metadata().map_err(|error| unreadable(&error))?.is_file() {
        return Err(unreadable(&"it is not a regular file"));
    }
    let mut bytes = Vec::new();
    Read::take(&mut file, MAX_SIGNATURE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > MAX_SIGNATURE {
        return Err(SignatureFault::Malformed(TOO_LONG.to_owned()));
    }
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| SignatureFault::Malformed("it is no UTF-8 text".to_owned()))
}

/// Who has signed these bytes. `signature` is what [`read`] gave.
///
/// That nothing need be signed is for the caller to decide: without keys nothing counts as signed here. To be asked before
/// a component is compiled: the compiler need not see what nobody vouches for.
///
/// # Errors
/// No key of `keys` has.
pub fn verify(
    keys: &[PublicKey],
    component: &[u8],
    signature: Option<&str>,
) -> Result<Signed, SignatureFault> {
    let text = signature.ok_or(SignatureFault::Missing)?;
    let id = claimed(text)?;
    let signature = Signature::decode(text).map_err(|_| {
        SignatureFault::Malformed(
            "its third and fourth line, the trusted comment and what signs it, are damaged or not there"
                .to_owned(),
        )
    })?;
    // Numbers are chosen at random, but whoever makes a key can choose: two keys may have the same.
    let mut candidates = keys.iter().filter(|key| key.id == id).peekable();
    if candidates.peek().is_none() {
        return Err(SignatureFault::UnknownKey {
            id: id.to_string(),
            known: keys.iter().map(PublicKey::id).collect(),
        });
    }
    // `false`: prehashed ones alone.
    if candidates.any(|key| key.key.verify(component, &signature, false).is_ok()) {
        return Ok(Signed {
            key_id: id.to_string(),
            trusted_comment: clean(signature.trusted_comment()),
        });
    }
    Err(SignatureFault::Altered { id: id.to_string() })
}

/// The key that a signature says it is of.
fn claimed(text: &str) -> Result<KeyId, SignatureFault> {
    let malformed = |what: &str| SignatureFault::Malformed(what.to_owned());
    if text.len() as u64 > MAX_SIGNATURE {
        return Err(malformed(TOO_LONG));
    }
    let mut lines = text.lines();
    if !lines.next().is_some_and(|line| line.starts_with(COMMENT)) {
        return Err(malformed("it doesn't begin with \"untrusted comment: \""));
    }
    let line = lines
        .next()
        .ok_or_else(|| malformed("it ends after the first line"))?;
    let bytes = STANDARD
        .decode(line)
        .map_err(|_| malformed("its second line is no base64"))?;
    let other = || malformed("its second line is no signature");
    if bytes.len() != SIGNATURE {
        return Err(other());
    }
    let (algorithm, rest) = bytes.split_at_checked(2).ok_or_else(other)?;
    match algorithm {
        PREHASHED => {}
        ED25519 => return Err(SignatureFault::Legacy),
        _ => return Err(malformed("it is made with an algorithm that is not known here")),
    }
    rest.first_chunk().map(|id| KeyId(*id)).ok_or_else(other)
}

/// For a log: on one line, nothing that drives a terminal or shows text in another order.
fn clean(comment: &str) -> String {
    let end = comment.floor_char_boundary(MAX_COMMENT);
    let kept = comment.get(..end).unwrap_or_default().chars();
    kept.map(|c| match c {
        '\t' => ' ',
        // Line and paragraph separators, marks and overrides of direction.
        '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    })
    .collect()
}

#[cfg(test)]
mod tests;
