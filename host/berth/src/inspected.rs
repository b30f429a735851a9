//! One checked component, for people and for programs.

use berth_host::contract::{Fault, Memory, Report};
use berth_host::runtime::load::Inspection;
use bytesize::ByteSize;
use serde::Serialize;

use crate::check::count;

/// How far the facts about a component are set in below its name.
const INDENT: &str = "        ";
/// The unit of memories, in bytes.
const PAGE: u64 = 64 * 1024;

/// What `berth check` says of a component. The fields are those of `--json`; they may grow, not change.
#[derive(Debug, Serialize)]
pub(crate) struct Inspected {
    name: String,
    pub(crate) ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// Its machine code, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    code_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// The single faults of a component that doesn't fit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    faults: Vec<Fault>,
    #[serde(flatten)]
    report: Option<Report>,
    /// Without a manifest, what it needs is advice, not a fact about its grants.
    #[serde(skip)]
    bare: bool,
}

impl Inspected {
    pub(crate) fn new(name: &str, inspection: Inspection, bare: bool) -> Self {
        let Inspection { loaded, report } = inspection;
        let fault = loaded.as_ref().err();
        Self {
            name: name.to_owned(),
            ok: loaded.is_ok(),
            kind: loaded.as_ref().ok().map(|version| version.pre.kind()),
            version: loaded.as_ref().ok().map(|version| version.digest.clone()),
            code_bytes: loaded.as_ref().ok().map(|version| version.pre.code_bytes()),
            code: fault.map(|fault| fault.code()),
            message: fault.map(ToString::to_string),
            faults: fault.map_or_else(Vec::new, |fault| fault.parts().cloned().collect()),
            report,
            bare,
        }
    }

    /// How many warnings there are.
    pub(crate) fn warnings(&self) -> usize {
        self.report.as_ref().map_or(0, |report| report.warnings.len())
    }

    /// Several lines for people: what it is or why not, then the facts.
    pub(crate) fn text(&self) -> String {
        let mut out = match (self.kind, &self.version) {
            (Some(kind), Some(version)) => format!("ok      {}: {kind}, version {version}\n", self.name),
            _ => self.refusal(),
        };
        if let Some(report) = &self.report {
            for line in self.facts(report) {
                out.push_str(&format!("{INDENT}{line}\n"));
            }
        }
        out
    }

    /// Every fault on a line of its own.
    fn refusal(&self) -> String {
        let mut messages: Vec<&str> = self.faults.iter().map(|f| f.message.as_str()).collect();
        if messages.is_empty() {
            messages.extend(self.message.as_deref());
        }
        format!(
            "faulty  {}: {}\n",
            self.name,
            messages.join(&format!("\n{INDENT}"))
        )
    }

    fn facts(&self, report: &Report) -> Vec<String> {
        let mut lines = vec![self.sizes(report)];
        let mut word = "imports ";
        for (package, status) in report.packages() {
            lines.push(format!("{word}{package}: {}", status.text()));
            word = INDENT;
        }
        if self.bare && !report.needs.is_empty() {
            let grants: Vec<String> = report.needs.iter().map(|key| format!("{key} = true")).collect();
            lines.push(format!("needs   grants = {{ {} }}", grants.join(", ")));
        }
        for warning in &report.warnings {
            lines.push(format!("warning {}", warning.message));
        }
        lines
    }

    fn sizes(&self, report: &Report) -> String {
        let mut parts = vec![format!("file {}", size(report.bytes as u64))];
        if let Some(code) = self.code_bytes {
            parts.push(format!("machine code {}", size(code as u64)));
        }
        parts.push(count(report.shape.modules as usize, "core module"));
        parts.extend(report.shape.memories.iter().map(memory));
        if !report.wasi.is_empty() {
            let versions: Vec<&str> = report.wasi.iter().map(String::as_str).collect();
            parts.push(format!("WASI {}", versions.join(" and ")));
        }
        parts.join(", ")
    }
}

fn size(bytes: u64) -> ByteSize {
    ByteSize::b(bytes)
}

fn memory(memory: &Memory) -> String {
    let pages = |n: u64| size(n.saturating_mul(PAGE));
    match memory.maximum_pages {
        Some(maximum) => format!("memory {} to {}", pages(memory.initial_pages), pages(maximum)),
        None => format!("memory from {}", pages(memory.initial_pages)),
    }
}
