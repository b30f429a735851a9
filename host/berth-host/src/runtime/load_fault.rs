//! Why a component can't be served.

use std::path::PathBuf;

use super::load::MAX_COMPONENT;
use super::reload::watch::ReadFault;
use super::signature::SignatureFault;
use crate::contract::{Fault, Faults};

/// Why a component can't be served. Its text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadFault {
    /// The file can't be read.
    #[error("{path}: {reason}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The file is too large.
    #[error("the file has {size} bytes; at most {MAX_COMPONENT} are read")]
    TooLarge {
        /// Bytes.
        size: u64,
    },
    /// Not WebAssembly at all.
    #[error(
        "the file is not WebAssembly: it begins with {begins:?}, not with \"\\0asm\"; `component` names the .wasm file that the build made"
    )]
    NotWasm {
        /// The first bytes.
        begins: String,
    },
    /// A core module.
    #[error(
        "the file is a core module, not a component; build it for wasm32-wasip2, or wrap it with `wasm-tools component new`"
    )]
    CoreModule,
    /// A core module for the first preview of WASI.
    #[error(
        "the file is a core module for WASI preview 1 (wasm32-wasip1), not a component; build it for wasm32-wasip2, or wrap it with `wasm-tools component new --adapt`"
    )]
    Preview1,
    /// Cut off.
    #[error("the file is a damaged component, perhaps cut off: {0}; build it again")]
    Damaged(String),
    /// Whole, but against the rules of WebAssembly.
    #[error("the file is not a valid component: {0}; build it again with a current toolchain")]
    Invalid(String),
    /// It uses a proposal that is switched off.
    #[error(
        "the component needs a feature of WebAssembly that this host doesn't have: {0}; build it without"
    )]
    Feature(String),
    /// An instance of it would be larger than the host's pools allow.
    #[error("an instance of the component would be too large: {0}")]
    Oversized(String),
    /// Its imports or exports are not those that the manifest and this host give it.
    #[error("{0}")]
    Unfit(Faults),
    /// It can't serve several requests at once.
    #[error("{0}")]
    NotConcurrent(String),
    /// An instance of it can't be started.
    #[error("an instance of the component can't be started ({trap}): {cause}")]
    Start {
        /// The kind of its end, as in the log and the metrics.
        trap: &'static str,
        /// What happened, on one line.
        cause: String,
    },
    /// It was not started, because the guests that run have what all of them may have together.
    #[error(
        "the component could not be started once, as the guests of this host have the {total} of `limits.total_memory` among them; a file that berth follows is tried again, deploy anything else again or raise the limit"
    )]
    NoRoom {
        /// What they may have.
        total: bytesize::ByteSize,
    },
    /// The version that an operator chose can't be had any more.
    #[error(
        "the version that an operator has chosen, {digest}, is not kept, so it can't be served in another way: {reason}; deploy it again"
    )]
    NotKept {
        /// The version.
        digest: String,
        /// Why.
        reason: String,
    },
    /// It isn't signed by anybody who is trusted.
    #[error(transparent)]
    Signature(#[from] SignatureFault),
    /// The compiler ended in a way that it should not.
    #[error(
        "the component could not be compiled: the compiler failed; build the component again, and tell us if that doesn't help"
    )]
    Compiler,
    /// Granted folders that can't be opened.
    #[error("{}", .0.join("; "))]
    Folders(Vec<String>),
}

impl From<ReadFault> for LoadFault {
    fn from(fault: ReadFault) -> Self {
        let text = fault.to_string();
        match fault {
            ReadFault::TooLarge { size, .. } => Self::TooLarge { size },
            ReadFault::Missing { path } => Self::Unreadable {
                path,
                reason: "there is no such file; build the component, or correct `component`".to_owned(),
            },
            ReadFault::NotAFile { path, .. }
            | ReadFault::Forbidden { path, .. }
            | ReadFault::Restless { path }
            | ReadFault::Io { path, .. } => {
                let prefix = format!("{}: ", path.display());
                let reason = text.strip_prefix(&prefix).unwrap_or(&text).to_owned();
                Self::Unreadable { path, reason }
            }
        }
    }
}

impl LoadFault {
    /// The stable name, for `berth check --json`, the health report and the log.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "unreadable",
            Self::TooLarge { .. } => "too-large",
            Self::NotWasm { .. } => "not-wasm",
            Self::CoreModule | Self::Preview1 => "core-module",
            Self::Damaged(_) | Self::Invalid(_) => "malformed",
            Self::Feature(_) => "needs-feature",
            Self::Oversized(_) => "oversized",
            Self::Unfit(faults) => faults.code(),
            Self::NotConcurrent(_) => "not-concurrent",
            Self::Folders(_) => "folders",
            Self::Start { .. } => "start-failed",
            Self::NoRoom { .. } => "no-room",
            Self::Signature(_) => "signature",
            Self::Compiler => "compiler-failed",
            Self::NotKept { .. } => "not-kept",
        }
    }

    /// The single faults of a component that doesn't fit; none for other reasons.
    pub fn parts(&self) -> impl Iterator<Item = &Fault> {
        let faults = match self {
            Self::Unfit(faults) => Some(faults),
            _ => None,
        };
        faults.into_iter().flat_map(Faults::iter)
    }

    /// Why wasmtime didn't compile a component, from its words: it has no types for this.
    pub(super) fn of_compiling(error: &wasmtime::Error) -> Self {
        // The causes above the last one say where in the compiler it was.
        let words = &spaced(&error.root_cause().to_string());
        if let Some(limit) = pool_limit(words) {
            return Self::Oversized(limit);
        }
        if NEEDS_FEATURE.iter().any(|part| words.contains(part)) {
            return Self::Feature(words.to_owned());
        }
        if CUT_OFF.iter().any(|part| words.contains(part)) {
            return Self::Damaged(words.to_owned());
        }
        Self::Invalid(words.to_owned())
    }
}

/// What wasmparser says when a proposal is switched off.
const NEEDS_FEATURE: [&str; 6] = [
    "must be enabled",
    "not enabled",
    "requires the component model",
    "requires the `cm-",
    "feature required",
    "proposal not supported",
];

/// What it says when a section is longer than what is left of the file.
const CUT_OFF: [&str; 2] = ["unexpected end", "is out of bounds (bound = "];

/// A limit of the instance pools, from what wasmtime says of one that is exceeded.
fn pool_limit(words: &str) -> Option<String> {
    let limits = [
        "exceeds the configured maximum",
        "exceeds the per-instance limit",
        "exceeds the total tables limit",
        "which exceeds the limit of",
    ];
    if !limits.iter().any(|part| words.contains(part)) {
        return None;
    }
    let words = words.split("; breakdown").next().unwrap_or(words);
    let numbers: Vec<u64> = words
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter_map(|word| match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        })
        .collect();
    let [.., asked, given] = numbers.as_slice() else {
        return Some(words.to_owned());
    };
    let parts = [
        ("core module instances", "core instances"),
        ("Wasm linear memories", "memories"),
        ("defined memories count", "memories"),
        ("tables", "tables"),
    ];
    if let Some((_, what)) = parts.iter().find(|(part, _)| words.contains(part)) {
        return Some(format!("it has {asked} {what}, and {given} are allowed"));
    }
    if words.contains("memory has a minimum byte size") {
        return Some(memory_limit(*asked, *given));
    }
    Some(words.to_owned())
}

/// A memory that begins larger than what any instance may have, in bytes.
pub(super) fn memory_limit(asked: u64, given: u64) -> String {
    let size = |bytes| bytesize::ByteSize::b(bytes);
    format!(
        "its memory begins with {}, and `limits.memory` allows {}; raise that, or build with a smaller memory",
        size(asked),
        size(given)
    )
}

/// wasmtime's error chain on one line.
pub(super) fn one_line(error: &wasmtime::Error) -> String {
    spaced(&format!("{error:#}"))
}

/// On one line, whatever it was.
pub(super) fn spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::engine::{Runtime, RuntimeSettings};
    use super::*;

    fn runtime() -> Runtime {
        Runtime::new(RuntimeSettings {
            instances: 2,
            workers: 1,
            max_memory: 1 << 20,
            memory_budget: 1 << 20,
        })
        .unwrap()
    }

    fn fault(runtime: &Runtime, bytes: &[u8]) -> Option<LoadFault> {
        wasmtime::component::Component::from_binary(&runtime.engine, bytes)
            .err()
            .map(|error| LoadFault::of_compiling(&error))
    }

    /// A file that is cut anywhere but between two sections is called that.
    #[test]
    fn cut_file_is_told_as_damaged() {
        let runtime = runtime();
        let text = "(component (core module $m (memory 1) (func (export \"f\") (result i32) i32.const 7) (data (i32.const 0) \"abc\"))
            (core instance $i (instantiate $m)) (func (export \"f\") (result u32) (canon lift (core func $i \"f\"))))";
        let whole = wat::parse_str(text).unwrap();
        let (mut damaged, mut other) = (0, Vec::new());
        for length in 8..whole.len() {
            match fault(&runtime, &whole[..length]) {
                Some(LoadFault::Damaged(_)) => damaged += 1,
                Some(fault) => other.push((length, fault.to_string())),
                // Cut between two sections, it is a smaller component.
                None => {}
            }
        }
        assert_eq!(other, []);
        assert!(damaged >= whole.len() - 8 - 10, "{damaged} of {}", whole.len());
    }

    /// Each kind of failure, as this version of wasmtime words it.
    #[test]
    fn failures_to_compile_are_told_apart() {
        let runtime = runtime();
        let many = |n: usize, module: &str, what: &str| {
            let instances = format!("(core instance (instantiate {what}))").repeat(n);
            format!("(component {module} {instances})")
        };
        let table: Vec<(String, &str, &str)> = vec![
            (
                many(5, "(core module $m (memory 1))", "$m"),
                "oversized",
                "an instance of the component would be too large: it has 5 memories, and 4 are allowed",
            ),
            (
                many(33, "(core module $m)", "$m"),
                "oversized",
                "an instance of the component would be too large: it has 33 core instances, and 32 are allowed",
            ),
            (
                many(17, "(core module $m (table 1 funcref))", "$m"),
                "oversized",
                "an instance of the component would be too large: it has 17 tables, and 16 are allowed",
            ),
            (
                "(component (core module (memory 17)))".into(),
                "oversized",
                "an instance of the component would be too large: its memory begins with 1.1 MiB, and `limits.memory` allows 1.0 MiB; raise that, or build with a smaller memory",
            ),
            (
                "(component (core module (memory 1 1 shared)))".into(),
                "needs-feature",
                "the component needs a feature of WebAssembly that this host doesn't have: threads must be enabled for shared memories (at offset 0x15); build it without",
            ),
            (
                "(component (core module (func (result i32))))".into(),
                "malformed",
                "the file is not a valid component: Invalid input WebAssembly code at offset 34: type mismatch: expected i32 but nothing on stack; build it again with a current toolchain",
            ),
        ];
        for (text, code, message) in table {
            let bytes = wat::parse_str(&text).unwrap();
            let fault = fault(&runtime, &bytes).unwrap_or_else(|| panic!("{text} compiles"));
            assert_eq!(
                (fault.code(), fault.to_string().as_str()),
                (code, message),
                "{text}"
            );
        }
    }
}
