//! What was swapped, refused, or taken back: told once to the log, kept for a while, and passed on to whoever follows.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::broadcast;

use super::kept::By;
use crate::metrics::VersionMetrics;
use crate::respond::now_ms;
use crate::runtime::load::Steps;

/// Events that are kept.
const KEPT: usize = 512;
/// Events that somebody who follows may be behind; then some are left out for them.
const BEHIND: usize = 256;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Another version serves.
    Swapped,
    /// A version can't be served; the one before serves on.
    Refused,
    /// An operator went back to an earlier version.
    RolledBack,
    /// A share of the callers gets another version.
    CanaryStarted,
    /// A candidate was worse than it may be, and is gone.
    CanaryFailed,
    /// A candidate was withdrawn before anything was decided.
    CanaryWithdrawn,
    /// A candidate has held, and serves everybody.
    Promoted,
    /// An operator has switched a plugin off.
    Disabled,
    /// An operator has switched a plugin on again.
    Enabled,
    /// What was asked for is so already.
    Unchanged,
    /// Both versions of a swap have served: what they cost.
    Measured,
    /// The manifest has changed, and is in force.
    ManifestApplied,
    /// The manifest has changed, and is faulty: nothing was changed.
    ManifestRefused,
}

impl Kind {
    /// As in JSON.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Swapped => "swapped",
            Self::Refused => "refused",
            Self::RolledBack => "rolled-back",
            Self::CanaryStarted => "canary-started",
            Self::CanaryFailed => "canary-failed",
            Self::CanaryWithdrawn => "canary-withdrawn",
            Self::Promoted => "promoted",
            Self::Disabled => "disabled",
            Self::Enabled => "enabled",
            Self::Unchanged => "unchanged",
            Self::Measured => "measured",
            Self::ManifestApplied => "manifest-applied",
            Self::ManifestRefused => "manifest-refused",
        }
    }

    const fn is_bad(self) -> bool {
        matches!(self, Self::Refused | Self::CanaryFailed | Self::ManifestRefused)
    }
}

/// What one version's requests cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// The version.
    pub digest: String,
    /// Requests that it has answered.
    pub requests: u64,
    /// Guest CPU time of a request, in microseconds.
    pub cpu_mean_us: u64,
    /// The same that 99 of 100 don't exceed.
    pub cpu_p99_us: u64,
    /// Half of the requests took no longer, in microseconds.
    pub p50_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
    /// Linear memory of a request's instance, in bytes.
    pub memory_mean_bytes: u64,
    /// The largest so far.
    pub memory_max_bytes: u64,
}

impl Usage {
    /// Of what was counted so far.
    pub fn of(digest: &str, metrics: &VersionMetrics) -> Self {
        let (duration, cpu) = (metrics.duration.snapshot(), metrics.cpu.snapshot());
        let us =
            |time: Option<Duration>| u64::try_from(time.unwrap_or_default().as_micros()).unwrap_or(u64::MAX);
        Self {
            digest: digest.to_owned(),
            requests: metrics.requests_answered(),
            cpu_mean_us: us(cpu.mean()),
            cpu_p99_us: us(cpu.quantile(0.99)),
            p50_us: us(duration.quantile(0.5)),
            p99_us: us(duration.quantile(0.99)),
            memory_mean_bytes: metrics.memory_mean().unwrap_or(0),
            memory_max_bytes: metrics.memory_most(),
        }
    }
}

/// The steps of a swap, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepTimes {
    /// Reading and hashing.
    pub read_us: u64,
    /// Verifying the signature.
    pub verify_us: u64,
    /// Compiling, or taking the machine code from the cache.
    pub compile_us: u64,
    /// Whether it came from the cache.
    pub cached: bool,
    /// Comparing imports and exports, linking.
    pub link_us: u64,
    /// Instantiating it once.
    pub probe_us: u64,
    /// Putting it in the place of the other one.
    pub switch_us: u64,
    /// All of them.
    pub total_us: u64,
}

impl From<Steps> for StepTimes {
    fn from(steps: Steps) -> Self {
        let us = |step: Duration| u64::try_from(step.as_micros()).unwrap_or(u64::MAX);
        Self {
            read_us: us(steps.read),
            verify_us: us(steps.verify),
            compile_us: us(steps.compile),
            cached: steps.cached,
            link_us: us(steps.link),
            probe_us: us(steps.probe),
            switch_us: us(steps.switch),
            total_us: us(steps.total()),
        }
    }
}

/// One event. What doesn't apply isn't there.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Counted from 1 since the start.
    pub seq: u64,
    /// Milliseconds since the Unix epoch.
    pub at: u64,
    /// What happened.
    pub kind: Kind,
    /// To which plugin; none for the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// What made it happen.
    pub by: By,
    /// The digest of the version before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The digest of the version after, or of the one that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The size of its component in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// Whose signature it has: the number of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<StepTimes>,
    /// The share of a canary, as in `10%`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<String>,
    /// A stable name of what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// Why, as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wrong with a manifest, each with its place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
    /// Plugins that the manifest has added.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<String>,
    /// Plugins that it has changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<String>,
    /// Plugins that it no longer has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
    /// Sections of the manifest that have changed and take effect at the next start only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub needs_restart: Vec<String>,
    /// What the version before costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Usage>,
    /// What the version after costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Usage>,
}

impl Event {
    /// An event of now, of which nothing more is known.
    pub fn new(kind: Kind, by: By, plugin: Option<&str>) -> Self {
        Self {
            seq: 0,
            at: now_ms(),
            kind,
            plugin: plugin.map(str::to_owned),
            by,
            from: None,
            to: None,
            size: None,
            signed_by: None,
            steps: None,
            share: None,
            code: None,
            reason: None,
            faults: Vec::new(),
            added: Vec::new(),
            changed: Vec::new(),
            removed: Vec::new(),
            needs_restart: Vec::new(),
            before: None,
            after: None,
        }
    }

    /// For the log and for people, after the plugin's name.
    pub fn message(&self) -> String {
        let from = self.from.as_deref().unwrap_or("nothing");
        let to = self.to.as_deref().unwrap_or("?");
        let reason = self.reason.as_deref().unwrap_or("no reason is known");
        match self.kind {
            Kind::Swapped if self.from.is_none() => format!("{to} serves; nothing did before"),
            Kind::Swapped => format!("{from} was replaced by {to}"),
            Kind::Refused if self.from.is_some() => {
                format!("{to} can't be served, {from} serves on: {reason}")
            }
            Kind::Refused => format!("{to} can't be served: {reason}"),
            Kind::RolledBack => format!("went back from {from} to {to}"),
            Kind::CanaryStarted => {
                let share = self.share.as_deref().unwrap_or("a share");
                format!("{to} is tried with {share} of the callers, the others get {from}")
            }
            Kind::CanaryFailed => {
                format!("the candidate {to} was taken back, {from} serves everybody: {reason}")
            }
            Kind::CanaryWithdrawn => {
                format!("the candidate {to} was withdrawn, {from} serves everybody: {reason}")
            }
            Kind::Promoted => format!("the candidate {to} has held and replaces {from}"),
            Kind::Disabled => "switched off: its routes answer 503".to_owned(),
            Kind::Enabled => "switched on again".to_owned(),
            Kind::Unchanged => format!("{to} serves already"),
            Kind::Measured => format!("{from} and {to} have both served"),
            Kind::ManifestApplied => "the changed manifest is in force".to_owned(),
            Kind::ManifestRefused => format!(
                "the changed manifest is faulty, nothing was changed: {}",
                self.faults.join("; ")
            ),
        }
    }

    fn log(&self) {
        let steps = self.steps.as_ref();
        let list = |names: &[String]| (!names.is_empty()).then(|| names.join(", "));
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "berth::swap",
                    event = self.kind.key(),
                    plugin = self.plugin.as_deref(),
                    by = self.by.key(),
                    from = self.from.as_deref(),
                    to = self.to.as_deref(),
                    bytes = self.size,
                    signed_by = self.signed_by.as_deref(),
                    share = self.share.as_deref(),
                    code = self.code,
                    total_us = steps.map(|s| s.total_us),
                    read_us = steps.map(|s| s.read_us),
                    verify_us = steps.map(|s| s.verify_us),
                    compile_us = steps.map(|s| s.compile_us),
                    cached = steps.map(|s| s.cached),
                    link_us = steps.map(|s| s.link_us),
                    probe_us = steps.map(|s| s.probe_us),
                    switch_us = steps.map(|s| s.switch_us),
                    added = list(&self.added),
                    changed = list(&self.changed),
                    removed = list(&self.removed),
                    needs_restart = list(&self.needs_restart),
                    cpu_mean_us.before = self.before.as_ref().map(|u| u.cpu_mean_us),
                    cpu_mean_us.after = self.after.as_ref().map(|u| u.cpu_mean_us),
                    memory_mean_bytes.before = self.before.as_ref().map(|u| u.memory_mean_bytes),
                    memory_mean_bytes.after = self.after.as_ref().map(|u| u.memory_mean_bytes),
                    p99_us.before = self.before.as_ref().map(|u| u.p99_us),
                    p99_us.after = self.after.as_ref().map(|u| u.p99_us),
                    "{}",
                    self.message(),
                )
            };
        }
        match self.kind.is_bad() {
            true => line!(error),
            false => line!(info),
        }
    }
}

/// The events of a host.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<(VecDeque<Arc<Event>>, u64)>,
    live: broadcast::Sender<Arc<Event>>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            live: broadcast::channel(BEHIND).0,
        }
    }
}

impl Events {
    /// Number one, log it, keep it, pass it on.
    pub fn tell(&self, mut event: Event) -> Arc<Event> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.1 += 1;
        event.seq = kept.1;
        event.log();
        let event = Arc::new(event);
        kept.0.push_back(Arc::clone(&event));
        if kept.0.len() > KEPT {
            kept.0.pop_front();
        }
        // Nobody may be there to hear it.
        let _ = self.live.send(Arc::clone(&event));
        event
    }

    /// The last ones, newest first: of one plugin, or of all.
    pub fn last(&self, plugin: Option<&str>, limit: usize) -> Vec<Arc<Event>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |event: &&Arc<Event>| plugin.is_none_or(|name| event.plugin.as_deref() == Some(name));
        kept.0.iter().rev().filter(of).take(limit).cloned().collect()
    }

    /// The events that follow.
    pub fn follow(&self) -> broadcast::Receiver<Arc<Event>> {
        self.live.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_numbered_bounded_and_found_by_plugin() {
        let events = Events::default();
        let mut live = events.follow();
        for n in 0..KEPT + 5 {
            let plugin = if n % 2 == 0 { "even" } else { "odd" };
            events.tell(Event::new(Kind::Swapped, By::File, Some(plugin)));
        }
        let all = events.last(None, usize::MAX);
        assert_eq!(all.len(), KEPT);
        assert_eq!(all.first().unwrap().seq, KEPT as u64 + 5);
        let odd = events.last(Some("odd"), 3);
        assert_eq!(odd.iter().map(|e| e.seq % 2).collect::<Vec<_>>(), [0, 0, 0]);
        assert!(matches!(
            live.try_recv(),
            Err(broadcast::error::TryRecvError::Lagged(_))
        ));
    }

    #[test]
    fn what_does_not_apply_is_not_in_the_json() {
        let event = Event::new(Kind::Disabled, By::Deploy, Some("hello"));
        let json = serde_json::to_value(&event).unwrap();
        let mut names: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["at", "by", "kind", "plugin", "seq"]);
        assert_eq!(json["kind"], Kind::Disabled.key());
    }
}
