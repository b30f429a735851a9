//! What is known of a plugin's versions, and what follows from it. Pure: no file, no clock.

use serde::{Deserialize, Serialize};

/// The file's own version.
const FORMAT: u32 = 1;
/// Hexadecimal digits of a digest, SHA-256.
const DIGEST: usize = 64;
/// The fewest digits that name a version.
const PREFIX: usize = 4;
/// Digits of a digest that are shown.
const SHOWN: usize = 12;

/// What is known of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The versions that are kept: the one that became current last is the first.
    #[serde(default)]
    pub versions: Vec<KeptVersion>,
    /// The digest of the version that served last.
    #[serde(default)]
    pub current: Option<String>,
    /// What an operator chose; nothing as long as the file decides.
    #[serde(default)]
    pub chosen: Option<Chosen>,
    /// An operator took the plugin out of service.
    #[serde(default)]
    pub disabled: bool,
    /// The digest of a version on trial. At a start, of one that was when the berth before ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
}

/// A version that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptVersion {
    /// The SHA-256 of the component, as 64 hexadecimal digits in lower case.
    pub digest: String,
    /// Bytes of the component.
    pub size: u64,
    /// When it became current, in milliseconds since the Unix epoch.
    pub loaded_at: u64,
    /// What made it current.
    pub by: By,
    /// Whose signature it has, if it has one.
    #[serde(default)]
    pub signed_by: Option<String>,
}

/// What made a version current.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// Its file, at a start or because it changed.
    File,
    /// An operator sent it.
    Deploy,
    /// An operator went back to it.
    Rollback,
    /// It passed its trial.
    Canary,
    /// The manifest changed.
    Manifest,
}

impl By {
    /// As in the state and in the admin API.
    pub fn key(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Deploy => "deploy",
            Self::Rollback => "rollback",
            Self::Canary => "canary",
            Self::Manifest => "manifest",
        }
    }
}

/// A version that an operator chose, by a deploy or a rollback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The version.
    pub digest: String,
    /// The digest of the plugin's file at that time; nothing if it could not be read.
    #[serde(default)]
    pub file: Option<String>,
}

/// What a plugin begins to serve with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AtStart {
    /// Its file.
    File,
    /// The kept version of this digest.
    Kept(String, Because),
}

/// Why it isn't the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// An operator chose it, and the file is still the one that it was then.
    Chosen,
    /// The file can't be read.
    NoFile,
}

impl Because {
    /// For the log, after the version.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Chosen => "an operator chose it, and the file has not changed since",
            Self::NoFile => "the file can't be read, and this is the version that served last",
        }
    }
}

/// Why a prefix names no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// It is no beginning of a digest, or so short that it may mean another version tomorrow.
    #[error("{0:?} names no version: write the first 4 or more hexadecimal digits of its digest")]
    Malformed(String),
    /// No version has it.
    #[error("no kept version begins with {prefix:?}; {}", listed(.kept))]
    Unknown {
        /// As given.
        prefix: String,
        /// What there is, newest first, as 12 digits each.
        kept: Vec<String>,
    },
    /// More than one has it.
    #[error("{prefix:?} may be any of {}; write more digits", .matches.join(", "))]
    Ambiguous {
        /// As given.
        prefix: String,
        /// The versions, newest first, as 12 digits each.
        matches: Vec<String>,
    },
}

fn listed(versions: &[String]) -> String {
    match versions.is_empty() {
        true => "none are kept".to_owned(),
        false => format!("kept are {}", versions.join(", ")),
    }
}

impl State {
    /// A version became current. It is the first from now on; of the others, the `keep` latest stay.
    ///
    /// An operator's choice ends when another version becomes current, and when the file itself does, even if it has
    /// the bytes that they chose: the file was the last to act. Whoever carries out a choice sets it afterwards; so it is never another version than
    /// the current one, and what is dropped here is neither.
    pub fn became_current(&mut self, version: KeptVersion, keep: usize) {
        let digest = version.digest.clone();
        if self.candidate.as_ref() == Some(&digest) {
            self.candidate = None;
        }
        if version.by == By::File || self.chosen.as_ref().is_some_and(|c| c.digest != digest) {
            self.chosen = None;
        }
        self.versions.retain(|kept| kept.digest != digest);
        self.versions.insert(0, version);
        self.versions.truncate(keep.saturating_add(1));
        self.current = Some(digest);
    }

    /// The kept version that serves, or served last.
    pub fn current(&self) -> Option<&KeptVersion> {
        self.version(self.current.as_deref()?)
    }

    /// The version that served before the current one: what a rollback without a digest goes to. After it, this is the
    /// version that it left, so a second one undoes the first.
    pub fn previous(&self) -> Option<&KeptVersion> {
        let is_other = |kept: &&KeptVersion| self.current.as_ref() != Some(&kept.digest);
        self.versions.iter().find(is_other)
    }

    /// The version whose digest begins with this, in either case.
    ///
    /// # Errors
    /// Not exactly one does, or it is too short to tell.
    pub fn find(&self, prefix: &str) -> Result<&KeptVersion, FindError> {
        let digits = prefix.to_ascii_lowercase();
        if !(PREFIX..=DIGEST).contains(&digits.len()) || !is_hex(&digits) {
            return Err(FindError::Malformed(prefix.chars().take(DIGEST + 1).collect()));
        }
        let short = |kept: &KeptVersion| kept.digest.chars().take(SHOWN).collect::<String>();
        let matches: Vec<&KeptVersion> = self
            .versions
            .iter()
            .filter(|kept| kept.digest.starts_with(&digits))
            .collect();
        match matches.as_slice() {
            [one] => Ok(one),
            [] => Err(FindError::Unknown {
                prefix: digits,
                kept: self.versions.iter().map(short).collect(),
            }),
            _ => Err(FindError::Ambiguous {
                prefix: digits,
                matches: matches.into_iter().map(short).collect(),
            }),
        }
    }

    /// What to begin with, given the digest of the plugin's file now, or nothing if it can't be read.
    ///
    /// The last act wins. Choosing a version is an act, and so is changing the file: the choice holds as long as the
    /// file is the one that it was then. Without a file, what was chosen serves on, else what served last; and if
    /// neither is kept, the file's own fault is what there is to say.
    pub fn at_start(&self, file: Option<&str>) -> AtStart {
        let is_kept = |digest: &str| self.version(digest).is_some();
        let chosen = self.chosen.as_ref().filter(|chosen| is_kept(&chosen.digest));
        match (chosen, file) {
            (Some(chosen), Some(now)) if chosen.digest == now => AtStart::File,
            (Some(chosen), now) if chosen.file.as_deref() == now => {
                AtStart::Kept(chosen.digest.clone(), Because::Chosen)
            }
            (_, Some(_)) => AtStart::File,
            (chosen, None) => {
                let current = self.current.as_ref().filter(|digest| is_kept(digest));
                match chosen.map(|chosen| &chosen.digest).or(current) {
                    Some(digest) => AtStart::Kept(digest.clone(), Because::NoFile),
                    None => AtStart::File,
                }
            }
        }
    }

    /// Every digest that stands in it; some more than once.
    pub(super) fn named(&self) -> impl Iterator<Item = &str> {
        let kept = self.versions.iter().map(|kept| kept.digest.as_str());
        let chosen = self.chosen.as_ref().map(|chosen| chosen.digest.as_str());
        let candidate = self.candidate.as_deref();
        kept.chain(self.current.as_deref()).chain(chosen).chain(candidate)
    }

    /// Whether a version is needed.
    pub(super) fn names(&self, digest: &str) -> bool {
        self.named().any(|named| named == digest)
    }

    /// Whether there is a decision of an operator in it.
    pub(super) fn is_decided(&self) -> bool {
        self.chosen.is_some() || self.disabled
    }

    fn version(&self, digest: &str) -> Option<&KeptVersion> {
        self.versions.iter().find(|kept| kept.digest == digest)
    }

    pub(super) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(&Stored {
            format: FORMAT,
            state: self,
        })?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// The state, or what is wrong.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let is_none = |error: serde_json::Error| format!("is no state of a plugin: {error}");
        // Before anything else: in another format it may be anything.
        let Format { format } = serde_json::from_slice(bytes).map_err(is_none)?;
        if format != FORMAT {
            return Err(format!(
                "is of format {format}, and this berth knows format {FORMAT}"
            ));
        }
        let state: Self = serde_json::from_slice(bytes).map_err(is_none)?;
        // They become names of files.
        if let Some(digest) = state.named().find(|digest| !is_digest(digest)) {
            return Err(format!("is no state of a plugin: {digest:.100?} is no digest"));
        }
        Ok(state)
    }
}

/// The file, around the state.
#[derive(Serialize)]
struct Stored<'a> {
    format: u32,
    #[serde(flatten)]
    state: &'a State,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// 64 hexadecimal digits, in lower case.
pub(super) fn is_digest(text: &str) -> bool {
    text.len() == DIGEST && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
