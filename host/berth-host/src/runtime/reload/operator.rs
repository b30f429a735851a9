//! What an operator asks for, and what a trial decides.

use std::sync::Arc;
use std::time::Instant;

use super::canary::{Bounds, Counts, Share, Trial, Verdict};
use super::events::{Event, Kind};
use super::kept::{By, KeptVersion};
use super::{Change, Outcome, Ready, Refused, Reloader, Source};
use crate::error::Error;
use crate::runtime::plugin::{Canary, Plugin, Serving};

impl Reloader {
    /// Make a change that was asked for at this time.
    pub(super) async fn make(&mut self, change: Change, asked: Instant) -> Outcome {
        match change {
            Change::Deploy {
                plugin,
                bytes,
                signature,
                canary,
            } => {
                let plugin = self.plugin(&plugin)?;
                self.deploy(&plugin, (bytes, signature), canary, asked).await
            }
            Change::RollBack { plugin, to } => {
                let plugin = self.plugin(&plugin)?;
                let event = self.roll_back(&plugin, to, asked).await?;
                // Whatever is deployed takes a candidate's place anyway.
                if event.kind != Kind::CanaryWithdrawn {
                    self.has_decided(&plugin, asked);
                }
                Ok(event)
            }
            Change::Promote { plugin } => {
                let plugin = self.plugin(&plugin)?;
                let event = self.promote(&plugin, By::Deploy).await?;
                self.has_decided(&plugin, asked);
                Ok(event)
            }
            Change::SetDisabled { plugin, disabled } => {
                let plugin = self.plugin(&plugin)?;
                Ok(self.set_disabled(&plugin, disabled).await)
            }
            Change::Manifest => self.reload_manifest().await,
        }
    }

    fn plugin(&self, name: &str) -> Result<Arc<Plugin>, Error> {
        let found = self.host.table.load().plugin(name).cloned();
        found.ok_or_else(|| Error::NoPlugin {
            name: name.to_owned(),
        })
    }

    async fn deploy(
        &mut self,
        plugin: &Arc<Plugin>,
        (bytes, signature): (Vec<u8>, Option<String>),
        canary: Option<(Share, Bounds)>,
        asked: Instant,
    ) -> Outcome {
        self.is_still_wanted(plugin, asked)?;
        let hashed = self.lane().run(move || Source::sent(bytes, signature)).await;
        let source = hashed.ok_or_else(|| Error::Internal("the compiler's thread is gone".to_owned()))?;
        let file = self.file_digest(plugin).await;
        if let Some(current) = plugin.current()
            && current.sha256 == source.sha256
        {
            self.withdraw(plugin, By::Deploy, "the current version was deployed again")
                .await;
            let mut event = Event::new(Kind::Unchanged, By::Deploy, Some(&plugin.name));
            event.to = Some(current.digest.clone());
            self.keep(plugin, &current, source, By::Deploy, Some(file)).await;
            return Ok(Arc::new(event));
        }
        let ready = match self.load(plugin, source).await {
            Ok(ready) => ready,
            Err(refused) => return Err(self.refuse(plugin, &refused, By::Deploy)),
        };
        self.is_still_wanted(plugin, asked)?;
        self.withdraw(plugin, By::Deploy, "another version was deployed")
            .await;
        match canary {
            None => Ok(self
                .switch(plugin, ready, By::Deploy, Kind::Swapped, Some(file))
                .await),
            Some(canary) => self.try_out(plugin, ready, canary, file).await,
        }
    }

    fn has_decided(&mut self, plugin: &Plugin, asked: Instant) {
        let at = self.decided_at.entry(plugin.name.clone()).or_insert(asked);
        *at = asked.max(*at);
    }

    /// The last act wins, also where it was the quicker one.
    fn is_still_wanted(&self, plugin: &Plugin, asked: Instant) -> Result<(), Error> {
        match self.decided_at.get(&plugin.name) {
            Some(&at) if at > asked => Err(Error::Conflict(format!(
                "before this version was ready the plugin \"{}\" was rolled back or its candidate promoted, so it is not served; ask for it again if it is still wanted",
                plugin.name
            ))),
            _ => Ok(()),
        }
    }

    /// The digest of a plugin's file now, if it can be read.
    async fn file_digest(&self, plugin: &Arc<Plugin>) -> Option<String> {
        let spec = plugin.spec.clone();
        let read = self.lane().run(move || Source::file(&spec)).await;
        read?.ok().map(|source| source.sha256)
    }

    /// Told at once: somebody waits for it.
    fn refuse(&mut self, plugin: &Plugin, refused: &Refused, by: By) -> Error {
        let event = self.refusal(plugin, refused, by);
        plugin.ledger.swaps.refused();
        self.host.events.tell(event);
        Error::SwapRefused {
            code: refused.fault.code(),
            detail: refused.fault.to_string(),
        }
    }

    async fn try_out(
        &mut self,
        plugin: &Arc<Plugin>,
        ready: Ready,
        (share, bounds): (Share, Bounds),
        file: Option<String>,
    ) -> Outcome {
        let serving = plugin.serving().as_ref().clone();
        let Ok(current) = &serving.current else {
            return Err(Error::Conflict(format!(
                "the plugin \"{}\" serves nothing that a candidate could be compared with; deploy it without a canary",
                plugin.name
            )));
        };
        let known = Counts {
            requests: current.metrics.requests_answered(),
            failed: current.metrics.requests_failed(),
        };
        let trial = Arc::new(Trial::new(share, bounds, known));
        let mut event = Event::new(Kind::CanaryStarted, By::Deploy, Some(&plugin.name));
        event.from = Some(current.digest.clone());
        event.to = Some(ready.version.digest.clone());
        event.size = Some(ready.version.size);
        event.signed_by.clone_from(&ready.version.signed_by);
        event.steps = Some(ready.steps.into());
        event.share = Some(share.to_string());
        plugin.ledger.enter(&ready.version);
        // Its bytes are kept for the promotion, and its name so that the next start can say what became of it.
        let (name, source) = (plugin.name.clone(), ready.source);
        let state = self.state(&plugin.name);
        state.candidate = Some(source.sha256.clone());
        let state = state.clone();
        self.kept(plugin, "the candidate's file is not kept", move |kept| {
            kept.put(&name, &source.sha256, &source.bytes, source.signature.as_deref())?;
            kept.record(&name, &state)
        })
        .await;
        plugin.serve(Serving {
            canary: Some(Canary {
                version: ready.version,
                trial: Arc::clone(&trial),
                file,
            }),
            ..serving
        });
        let (name, decided) = (plugin.name.clone(), self.decisions.0.clone());
        tokio::spawn(async move {
            let verdict = trial.decided().await;
            // The host may have stopped meanwhile.
            let _ = decided.send((name, trial, verdict)).await;
        });
        Ok(self.host.events.tell(event))
    }

    pub(super) async fn decided(&mut self, name: &str, trial: &Arc<Trial>, verdict: Verdict) {
        let Ok(plugin) = self.plugin(name) else { return };
        let is_current = plugin
            .serving()
            .canary
            .as_ref()
            .is_some_and(|canary| Arc::ptr_eq(&canary.trial, trial));
        if !is_current {
            return;
        }
        match verdict {
            Verdict::Promote => {
                if let Err(error) = self.promote(&plugin, By::Canary).await {
                    tracing::error!(target: "berth::swap", plugin = name, "a candidate could not be promoted: {error:?}");
                }
            }
            Verdict::RollBack(reason) => {
                self.end_trial(&plugin, By::Canary, Kind::CanaryFailed, &reason.to_string())
                    .await;
                plugin.ledger.swaps.taken_back();
            }
            Verdict::Cancelled => {}
        }
    }

    /// If there is a candidate, it goes.
    pub(super) async fn withdraw(
        &mut self,
        plugin: &Arc<Plugin>,
        by: By,
        reason: &str,
    ) -> Option<Arc<Event>> {
        self.end_trial(plugin, by, Kind::CanaryWithdrawn, reason).await
    }

    pub(super) async fn end_trial(
        &mut self,
        plugin: &Arc<Plugin>,
        by: By,
        kind: Kind,
        reason: &str,
    ) -> Option<Arc<Event>> {
        let serving = plugin.serving().as_ref().clone();
        let canary = serving.canary.clone()?;
        canary.trial.cancel();
        let mut event = Event::new(kind, by, Some(&plugin.name));
        event.from = serving
            .current
            .as_ref()
            .ok()
            .map(|current| current.digest.clone());
        event.to = Some(canary.version.digest.clone());
        event.reason = Some(reason.to_owned());
        plugin.serve(Serving {
            canary: None,
            ..serving
        });
        let state = self.state(&plugin.name);
        state.candidate = None;
        let (name, state) = (plugin.name.clone(), state.clone());
        self.kept(plugin, "the candidate's file stays", move |kept| {
            kept.record(&name, &state)
        })
        .await;
        Some(self.host.events.tell(event))
    }

    async fn promote(&mut self, plugin: &Arc<Plugin>, by: By) -> Outcome {
        let serving = plugin.serving().as_ref().clone();
        let Some(canary) = serving.canary else {
            return Err(Error::Conflict(format!(
                "the plugin \"{}\" has no candidate; deploy one with --canary",
                plugin.name
            )));
        };
        let mut event = Event::new(Kind::Promoted, by, Some(&plugin.name));
        event.from = serving
            .current
            .as_ref()
            .ok()
            .map(|current| current.digest.clone());
        event.to = Some(canary.version.digest.clone());
        let version = Arc::clone(&canary.version);
        event.size = Some(version.size);
        event.signed_by.clone_from(&version.signed_by);
        event.steps = Some(version.steps.into());
        if let Ok(old) = &serving.current {
            // It has served in its trial.
            self.compare(plugin, by, old, (&version, 0));
        }
        plugin.serve(Serving {
            current: Ok(canary.version),
            canary: None,
            disabled: serving.disabled,
        });
        // Only now: a trial that has ended gives nobody the candidate any more.
        canary.trial.cancel();
        plugin.ledger.swaps.made();
        // What a trial decides holds until the file is another one than when the trial began; what an operator decides, than now.
        let file = match by {
            By::Canary => canary.file,
            _ => self.file_digest(plugin).await,
        };
        if by != By::Canary {
            *self.chosen.entry(plugin.name.clone()).or_default() += 1;
        }
        let keep = self.spec.reload.keep;
        let state = self.state(&plugin.name);
        state.became_current(
            KeptVersion {
                digest: version.sha256.clone(),
                size: version.size as u64,
                loaded_at: crate::respond::now_ms(),
                by,
                signed_by: version.signed_by.clone(),
            },
            keep,
        );
        state.chosen = Some(super::kept::Chosen {
            digest: version.sha256.clone(),
            file,
        });
        let state = state.clone();
        event.not_kept = self.write(plugin, None, state).await;
        Ok(self.host.events.tell(event))
    }

    async fn roll_back(&mut self, plugin: &Arc<Plugin>, to: Option<String>, asked: Instant) -> Outcome {
        self.is_still_wanted(plugin, asked)?;
        if to.is_none()
            && let Some(event) = self
                .withdraw(plugin, By::Rollback, "an operator took it back")
                .await
        {
            return Ok(event);
        }
        let state = self.state(&plugin.name);
        let found = match &to {
            Some(prefix) => state
                .find(prefix)
                .map_err(|error| Error::Conflict(error.to_string()))?,
            None => state.previous().ok_or_else(|| {
                Error::Conflict(format!(
                    "no earlier version of the plugin \"{}\" is kept",
                    plugin.name
                ))
            })?,
        };
        let digest = found.digest.clone();
        if plugin.current().is_some_and(|current| current.sha256 == digest) {
            return Err(Error::Conflict(format!("version {digest:.12} serves already")));
        }
        let Some(kept) = self.host.services.kept.clone() else {
            return Err(Error::Conflict(
                "this host keeps no versions: it has no data folder".to_owned(),
            ));
        };
        let name = plugin.name.clone();
        let lane = self.lane();
        let read = lane.run(move || {
            let read = kept.read(&name, &digest);
            read.map(|(bytes, signature)| Source::sent(bytes, signature))
        });
        let source = match read.await {
            Some(Ok(source)) => source,
            Some(Err(error)) => return Err(Error::Conflict(error.to_string())),
            None => return Err(Error::Internal("the compiler's thread is gone".to_owned())),
        };
        let file = self.file_digest(plugin).await;
        match self.load(plugin, source).await {
            Ok(ready) => {
                self.is_still_wanted(plugin, asked)?;
                self.withdraw(
                    plugin,
                    By::Rollback,
                    "an operator went back to an earlier version",
                )
                .await;
                Ok(self
                    .switch(plugin, ready, By::Rollback, Kind::RolledBack, Some(file))
                    .await)
            }
            Err(refused) => Err(self.refuse(plugin, &refused, By::Rollback)),
        }
    }

    async fn set_disabled(&mut self, plugin: &Arc<Plugin>, disabled: bool) -> Arc<Event> {
        let serving = plugin.serving().as_ref().clone();
        let kind = if disabled { Kind::Disabled } else { Kind::Enabled };
        let mut event = Event::new(kind, By::Deploy, Some(&plugin.name));
        event.to = serving
            .current
            .as_ref()
            .ok()
            .map(|current| current.digest.clone());
        plugin.serve(Serving { disabled, ..serving });
        let state = self.state(&plugin.name);
        state.disabled = disabled;
        let state = state.clone();
        event.not_kept = self.write(plugin, None, state).await;
        self.host.events.tell(event)
    }
}
