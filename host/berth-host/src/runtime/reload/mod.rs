//! Changing what a plugin is, or what the manifest says, while the host serves.
//!
//! One task, the [`Reloader`], makes every change, one after another: what a file's author saves, what an operator sends,
//! what a trial decides, what the manifest says. While it waits for a component to be compiled, which may take a minute, it
//! makes what is urgent: a rollback, a promotion, switching a plugin off or on, what a trial decides.
//!
//! A component goes through the same steps whoever brings it: read whole, its signature verified, compiled (or taken from the
//! cache), compared with what the manifest grants, instantiated once. Only then it takes the place of the one before, by one
//! atomic store; requests in flight finish on the version that they began with, which goes with the last of them. Whatever
//! fails on the way changes nothing and is told once.
//!
//! Who wins: the last act. An operator's deploy or rollback holds until the file becomes another one than it was then, also
//! over a restart ([`kept::State::at_start`]).
//!
//! A fault of a file is held back until the file has rested for [`REST`]: most files are found half-written before they are
//! found whole.
//!
//! - [`watch`]: which files may have changed.
//! - `ask`: how a change is asked for.
//! - [`compiler`]: the thread that compiles.
//! - [`probe`]: an instance before anybody is served.
//! - [`canary`]: a version on trial.
//! - [`kept`]: the versions on disk.
//! - [`events`]: what happened.
//! - [`start`]: what a plugin begins to serve with.
//! - `operator`: what an operator asks for.
//! - `manifest`: another generation of the routing table.

mod ask;
pub mod canary;
pub mod compiler;
pub mod events;
pub mod kept;
mod manifest;
mod operator;
pub mod probe;
pub mod start;
pub mod watch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::ask::Command;
pub use self::ask::{Change, Inbox, Reload};
use self::canary::{Trial, Verdict};
use self::compiler::Compiler;
use self::events::{Event, Kind, Usage};
use self::kept::{AtStart, By, Kept, KeptError, KeptVersion, State};
use self::watch::Watch;
use super::load::{Source, Steps, load_source, short};
use super::load_fault::LoadFault;
use super::plugin::{Plugin, PluginSpec, Serving, Version};
use super::signature;
use crate::error::Error;
use crate::metrics::VersionMetrics;
use crate::respond::now_ms;
use crate::state::{Host, HostSpec};

/// How long a file with a fault must rest until the fault is told.
pub const REST: Duration = Duration::from_millis(500);
/// How often faults that are held back, versions that can be compared, and plugins that leave are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How soon a file that found no room is tried again the first time, and at the latest. In between it doubles.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(30);
/// Requests of the new version until the two are compared.
pub const COMPARED_AFTER: u64 = 20;
/// How long a comparison is waited for.
const COMPARED_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// Decisions of trials that may wait.
const WAITING: usize = 16;

/// What comes of a change.
type Outcome = Result<Arc<Event>, Error>;

/// A trial has ended.
type Decision = (String, Arc<Trial>, Verdict);

/// Makes the changes of one host.
pub struct Reloader {
    host: Arc<Host>,
    /// The manifest that the host was started with.
    began: HostSpec,
    /// The manifest that is in force.
    spec: HostSpec,
    /// One that was refused because of components that may be whole soon.
    wanted: Option<HostSpec>,
    /// Whether plugins are served as in development; see [`crate::runtime::reuse::Reuse::for_development`].
    development: bool,
    inbox: Inbox,
    decisions: (mpsc::Sender<Decision>, mpsc::Receiver<Decision>),
    /// For what may take long.
    compiler: Compiler,
    /// For what is made meanwhile.
    urgent: Compiler,
    /// Whether that is being made, or nothing is to be made meanwhile.
    is_urgent: bool,
    /// When an operator last asked to go back to an earlier version of a plugin, or to promote its candidate, and it was done.
    /// Another version that was asked for before is not served.
    decided_at: HashMap<String, Instant>,
    /// Counts the versions of each plugin that an operator has chosen.
    chosen: HashMap<String, u64>,
    /// Counts what was made of each plugin meanwhile.
    acts: HashMap<String, u64>,
    watch: Option<Watch>,
    /// What is kept of every plugin, as on disk.
    states: HashMap<String, State>,
    /// Faults that are told when their files have rested.
    held: Vec<Held>,
    /// Files that found no room, by plugin; the manifest's is [`manifest::MANIFEST`].
    again: HashMap<String, Again>,
    /// Whether a plugin of the manifest that was read last found none.
    found_no_room: bool,
    /// The faults that were told last, so that none is told twice.
    told: HashMap<String, String>,
    comparisons: Vec<Comparison>,
    /// Plugins of earlier generations whose requests may still use the database; see [`Reloader::settle`].
    leaving: Vec<Weak<Plugin>>,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader")
            .field("watch", &self.watch.is_some())
            .finish_non_exhaustive()
    }
}

struct Held {
    /// A plugin's name; empty for the manifest.
    of: String,
    event: Event,
    until: Instant,
}

/// A file that found no room.
struct Again {
    at: Instant,
    pause: Duration,
    /// Its digest, if it is a component.
    digest: Option<String>,
}

impl Again {
    /// After it was tried in vain; `before` is what there was until then.
    fn after(before: Option<Self>, digest: Option<String>) -> Self {
        let same = before.filter(|before| before.digest == digest);
        let pause = same.map_or(AGAIN, |before| (before.pause * 2).min(AGAIN_AT_MOST));
        Self {
            at: Instant::now() + pause,
            pause,
            digest,
        }
    }
}

impl Held {
    /// What is the same if it is the same fault.
    fn text(&self) -> String {
        format!("{:?} {}", self.event.to, self.event.message())
    }
}

/// A swap whose two versions have not both served yet.
struct Comparison {
    plugin: String,
    by: By,
    from: (String, Arc<VersionMetrics>),
    to: (String, Arc<VersionMetrics>),
    /// Requests that the new one had answered already, in an earlier life.
    answered_before: u64,
    until: Instant,
}

/// A version that could be served.
struct Ready {
    source: Source,
    version: Arc<Version>,
    steps: Steps,
}

/// A component that can't be served.
struct Refused {
    /// The first digits of its digest, if it could be read.
    digest: Option<String>,
    size: Option<usize>,
    fault: LoadFault,
}

impl Reloader {
    /// For this host, which was built from `spec`. `watch`: follow the files of the plugins and the manifest.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(host: &Arc<Host>, spec: HostSpec, watch: bool, development: bool) -> std::io::Result<Self> {
        let inbox = host.take_inbox().unwrap_or_else(|| Reload::new().1);
        let mut reloader = Self {
            states: HashMap::new(),
            host: Arc::clone(host),
            began: spec.clone(),
            spec,
            wanted: None,
            development,
            inbox,
            decisions: mpsc::channel(WAITING),
            compiler: Compiler::start("berth-compile", true)?,
            urgent: Compiler::start("berth-urgent", false)?,
            is_urgent: false,
            decided_at: HashMap::new(),
            chosen: HashMap::new(),
            acts: HashMap::new(),
            watch: None,
            held: Vec::new(),
            again: HashMap::new(),
            found_no_room: false,
            told: HashMap::new(),
            comparisons: Vec::new(),
            leaving: Vec::new(),
        };
        if watch {
            let files = reloader.files();
            reloader.watch = Some(Watch::start(files));
        }
        Ok(reloader)
    }

    /// Before anybody is served: what is another version than the one that served last is started once, as at any other
    /// change, and what served last takes its place if it can't be. Nobody is served by either meanwhile.
    ///
    /// A version that nothing was before is not tried out: there is nothing that could serve in its place, and its callers
    /// learn what is wrong.
    pub async fn try_out_new(&self) {
        for plugin in &self.host.table.load_full().plugins {
            let (Some(version), Some(last)) = (
                plugin.current(),
                self.host.services.state_of(&plugin.name).current,
            ) else {
                continue;
            };
            if version.sha256 == last || probe::probe(&self.host, plugin, &version).await.is_ok() {
                continue;
            }
            let (host, of) = (Arc::clone(&self.host), Arc::clone(plugin));
            let loaded = self
                .compiler
                .run(move || start::load_last(&host.runtime, &of.spec, &host.services, &last));
            if let Some(Some(last)) = loaded.await {
                let last = plugin.ledger.count(last);
                plugin.ledger.enter(&last);
                plugin.serve(Serving {
                    current: Ok(last),
                    ..plugin.serving().as_ref().clone()
                });
            }
        }
    }

    /// Make changes until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        self.begin(By::File, |_| true).await;
        if self.watch.is_some() {
            self.manifest_changed().await;
        }
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                command = self.inbox.next() => match command {
                    Some(command) => self.answer(command).await,
                    None => return,
                },
                Some((plugin, trial, verdict)) = self.decisions.1.recv() => {
                    self.decided(&plugin, &trial, verdict).await;
                }
                path = changed(&mut self.watch) => self.file_changed(&path).await,
                _ = ticks.tick(), if self.has_to_tick() => {
                    self.tick();
                    self.try_again().await;
                    self.settle().await;
                }
            }
        }
    }

    async fn answer(&mut self, command: Command) {
        // Whoever asked has left before it was begun.
        if command.reply.is_closed() {
            return;
        }
        let outcome = self.make(command.change, command.asked).await;
        // Whoever asked may have left by now.
        let _ = command.reply.send(outcome);
    }

    /// Wait for something slow, and meanwhile make what is urgent. Whoever waits here must expect that something was, to
    /// this plugin or another; and `slow` is not polled meanwhile, so it must hold nothing that others wait for.
    async fn meanwhile<T>(&mut self, slow: impl Future<Output = T>) -> T {
        let mut slow = pin!(slow);
        // One thing at a time.
        if self.is_urgent {
            return slow.await;
        }
        loop {
            tokio::select! {
                done = &mut slow => return done,
                Some(command) = self.inbox.urgent.recv() => self.make_urgently(command).await,
                Some((plugin, trial, verdict)) = self.decisions.1.recv() => {
                    self.acted(&plugin);
                    self.decided(&plugin, &trial, verdict).await;
                }
            }
        }
    }

    /// Not an `async fn`: such a change may be what this is called from.
    fn make_urgently(&mut self, command: Command) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            if let Some(plugin) = command.change.plugin() {
                self.acted(plugin);
            }
            self.is_urgent = true;
            self.answer(command).await;
            self.is_urgent = false;
        })
    }

    fn acted(&mut self, plugin: &str) {
        // What there isn't is not counted: operators may write any name.
        if self.host.table.load().plugin(plugin).is_some() {
            *self.acts.entry(plugin.to_owned()).or_default() += 1;
        }
    }

    /// The thread for what is being made.
    fn lane(&self) -> Compiler {
        let lane = if self.is_urgent {
            &self.urgent
        } else {
            &self.compiler
        };
        lane.clone()
    }

    /// Keep what the host, or a generation of it, has begun to serve with. Where that isn't the file, see why: it can't be
    /// served, or it has changed between the load and the begin of the watch.
    async fn begin(&mut self, by: By, is_new: impl Fn(&Plugin) -> bool) {
        let table = self.host.table.load_full();
        let new = || table.plugins.iter().filter(|plugin| is_new(plugin));
        for plugin in new() {
            if !self.states.contains_key(&plugin.name) {
                let state = self.host.services.state_of(&plugin.name);
                self.states.insert(plugin.name.clone(), state);
                self.forget_trial(plugin).await;
            }
        }
        let mut differ = Vec::new();
        for plugin in new() {
            if let Some(version) = plugin.current()
                && let Some(source) = version.take_unkept()
            {
                self.keep(plugin, &version, source, by, None).await;
            }
            let of = Arc::clone(plugin);
            let source = self.lane().run(move || Source::file(&of.spec)).await;
            match (source, plugin.current()) {
                (Some(Ok(source)), Some(version)) if source.sha256 == version.sha256 => {
                    if self.state(&plugin.name).current.as_ref() != Some(&version.sha256) {
                        self.keep(plugin, &version, source, by, None).await;
                    }
                }
                _ => differ.push(plugin),
            }
        }
        // Only now, when all is known of all: something else may be made of any of them from here on.
        for plugin in differ {
            self.follow(plugin).await;
        }
        for plugin in new() {
            if let Err(fault) = &plugin.serving().current {
                self.was_said(&plugin.name, &fault.to_string());
            }
        }
    }

    /// A plugin's fault was told when it was loaded, so it is not told again.
    fn was_said(&mut self, plugin: &str, fault: &str) {
        let said = |held: &mut Held| held.of == plugin && held.event.reason.as_deref() == Some(fault);
        for held in self.held.extract_if(.., said) {
            self.told.insert(held.of.clone(), held.text());
        }
    }

    /// A candidate of the berth before this one is nobody's now.
    async fn forget_trial(&mut self, plugin: &Arc<Plugin>) {
        let state = self.state(&plugin.name);
        let Some(candidate) = state.candidate.take() else {
            return;
        };
        let (name, state) = (plugin.name.clone(), state.clone());
        self.kept(plugin, "the candidate's file stays", move |kept| {
            kept.record(&name, &state)
        })
        .await;
        let mut event = Event::new(Kind::CanaryWithdrawn, By::Canary, Some(&plugin.name));
        event.from = plugin.current().map(|version| version.digest.clone());
        event.to = Some(short(&candidate).to_owned());
        event.reason = Some("berth was started again, and a trial doesn't outlive that".to_owned());
        self.host.events.tell(event);
    }

    fn state(&mut self, plugin: &str) -> &mut State {
        let read = || self.host.services.state_of(plugin);
        self.states.entry(plugin.to_owned()).or_insert_with(read)
    }

    /// What is watched: the manifest, every component, and the signatures of those that need one.
    fn files(&self) -> Vec<PathBuf> {
        let wanted = self.wanted.iter().flat_map(|spec| &spec.plugins);
        let components = self.spec.plugins.iter().chain(wanted).flat_map(|plugin| {
            let signature = (!plugin.public_keys.is_empty()).then(|| signature::file_of(&plugin.component));
            std::iter::once(plugin.component.clone()).chain(signature)
        });
        std::iter::once(self.spec.file.clone())
            .chain(components)
            .collect()
    }

    fn watch_files(&mut self) {
        let files = self.files();
        if let Some(watch) = &mut self.watch {
            watch.set(files);
        }
    }

    async fn file_changed(&mut self, path: &Path) {
        let is_wanted =
            |plugin: &PluginSpec| path == plugin.component || path == signature::file_of(&plugin.component);
        if path == self.spec.file || self.wanted.iter().any(|spec| spec.plugins.iter().any(is_wanted)) {
            self.manifest_changed().await;
        }
        let table = self.host.table.load_full();
        for plugin in &table.plugins {
            let component = &plugin.spec.component;
            if path == component
                || (!plugin.spec.public_keys.is_empty() && path == signature::file_of(component))
            {
                self.follow(plugin).await;
            }
        }
    }

    /// A plugin's file may be another one.
    async fn follow(&mut self, plugin: &Arc<Plugin>) {
        self.held.retain(|held| held.of != plugin.name);
        let again = self.again.remove(&plugin.name);
        let spec = plugin.spec.clone();
        let read = self.lane().run(move || Source::file(&spec)).await;
        let read = read.unwrap_or(Err(LoadFault::Compiler));
        let source = match read {
            Ok(source) => source,
            Err(fault) => {
                let refused = Refused {
                    digest: None,
                    size: None,
                    fault,
                };
                return self.hold(plugin, refused, By::File);
            }
        };
        let serves = plugin
            .current()
            .is_some_and(|version| version.sha256 == source.sha256);
        // What an operator chose holds as long as the file is the one that it was then.
        let chosen = matches!(
            self.state(&plugin.name).at_start(Some(&source.sha256)),
            AtStart::Kept(..)
        );
        if serves || chosen {
            self.told.remove(&plugin.name);
            if serves {
                self.decides(plugin, &source.sha256).await;
            }
            return;
        }
        let chosen = self.chosen.get(&plugin.name).copied();
        let loaded = self.load(plugin, source).await;
        if self.chosen.get(&plugin.name).copied() != chosen {
            // An operator has chosen something else meanwhile, which holds until the file is another one again.
            return match loaded {
                Err(refused) if !matches!(refused.fault, LoadFault::NoRoom { .. }) => {
                    self.hold(plugin, refused, By::File);
                }
                _ => _ = self.told.remove(&plugin.name),
            };
        }
        match loaded {
            Ok(ready) => {
                self.told.remove(&plugin.name);
                self.withdraw(plugin, By::File, "the plugin's file has changed")
                    .await;
                self.switch(plugin, ready, By::File, Kind::Swapped, None).await;
            }
            Err(refused) => {
                if matches!(refused.fault, LoadFault::NoRoom { .. }) {
                    self.again
                        .insert(plugin.name.clone(), Again::after(again, refused.digest.clone()));
                }
                self.hold(plugin, refused, By::File);
            }
        }
    }

    /// Whether there is room now for what found none.
    async fn try_again(&mut self) {
        let now = Instant::now();
        let due: Vec<String> = self
            .again
            .iter()
            .filter(|(_, again)| again.at <= now)
            .map(|(of, _)| of.clone())
            .collect();
        for of in due {
            if of == manifest::MANIFEST {
                self.manifest_changed().await;
            } else if let Some(plugin) = self.host.table.load_full().plugin(&of) {
                self.follow(plugin).await;
            } else {
                self.again.remove(&of);
            }
        }
    }

    /// The file has become what serves already. If an operator had chosen that while the file was another one, it is the file
    /// that decides from now on.
    async fn decides(&mut self, plugin: &Arc<Plugin>, file: &str) {
        let state = self.state(&plugin.name);
        let is_older = |chosen: &kept::Chosen| chosen.file.as_deref() != Some(file);
        if state.chosen.as_ref().is_some_and(is_older) {
            state.chosen = None;
            let state = state.clone();
            self.write(plugin, None, state).await;
        }
    }

    /// Everything from the bytes to a version that has been started once.
    async fn load(&mut self, plugin: &Arc<Plugin>, source: Source) -> Result<Ready, Refused> {
        let (host, of) = (Arc::clone(&self.host), Arc::clone(plugin));
        let digest = Some(source.digest().to_owned());
        let size = Some(source.bytes.len());
        let refused = |fault| Refused { digest, size, fault };
        let lane = self.lane();
        let loaded = lane.run(move || {
            let version = load_source(&host.runtime, &of.spec, &source);
            (source, version)
        });
        let (source, version) = match self.meanwhile(loaded).await {
            Some((source, Ok(version))) => (source, version),
            Some((_, Err(fault))) => return Err(refused(fault)),
            None => return Err(refused(LoadFault::Compiler)),
        };
        let mut steps = version.steps;
        let version = plugin.ledger.count(version);
        match probe::probe(&self.host, plugin, &version).await {
            Ok(took) => steps.probe = took,
            Err(fault) => return Err(refused(fault)),
        }
        Ok(Ready {
            source,
            version,
            steps,
        })
    }

    /// The one step after which everybody new gets this version.
    async fn switch(
        &mut self,
        plugin: &Arc<Plugin>,
        ready: Ready,
        by: By,
        kind: Kind,
        chosen: Option<Option<String>>,
    ) -> Arc<Event> {
        let Ready {
            source,
            version,
            mut steps,
        } = ready;
        let before = plugin.serving().as_ref().clone();
        let answered_before = version.metrics.requests_answered();
        plugin.ledger.enter(&version);
        let started = Instant::now();
        plugin.serve(Serving {
            current: Ok(Arc::clone(&version)),
            canary: None,
            disabled: before.disabled,
        });
        steps.switch = started.elapsed();
        let mut event = Event::new(kind, by, Some(&plugin.name));
        event.to = Some(version.digest.clone());
        event.size = Some(version.size);
        event.signed_by.clone_from(&version.signed_by);
        event.steps = Some(steps.into());
        if let Ok(old) = &before.current {
            event.from = Some(old.digest.clone());
            self.compare(plugin, by, old, (&version, answered_before));
        }
        drop(before);
        plugin.ledger.swaps.made();
        let is_promised = chosen.is_some();
        let not_kept = self.keep(plugin, &version, source, by, chosen).await;
        event.not_kept = not_kept.filter(|_| is_promised);
        self.host.events.tell(event)
    }

    /// Tell what the two versions of a swap cost when the new one has answered some requests more than it had before.
    fn compare(&mut self, plugin: &Plugin, by: By, from: &Version, (to, answered): (&Version, u64)) {
        self.comparisons
            .retain(|comparison| comparison.plugin != plugin.name);
        self.comparisons.push(Comparison {
            plugin: plugin.name.clone(),
            by,
            from: (from.digest.clone(), Arc::clone(&from.metrics)),
            to: (to.digest.clone(), Arc::clone(&to.metrics)),
            answered_before: answered,
            until: Instant::now() + COMPARED_WITHIN,
        });
    }

    /// Keep a version that became current. `chosen`: an operator chose it, while the file had this digest.
    async fn keep(
        &mut self,
        plugin: &Arc<Plugin>,
        version: &Arc<Version>,
        source: Source,
        by: By,
        chosen: Option<Option<String>>,
    ) -> Option<String> {
        let keep = self.spec.reload.keep;
        let digest = version.sha256.clone();
        let state = self.state(&plugin.name);
        state.became_current(
            KeptVersion {
                digest: digest.clone(),
                size: version.size as u64,
                loaded_at: now_ms(),
                by,
                signed_by: version.signed_by.clone(),
            },
            keep,
        );
        if let Some(file) = chosen {
            state.chosen = Some(kept::Chosen { digest, file });
            *self.chosen.entry(plugin.name.clone()).or_default() += 1;
        }
        let state = self.state(&plugin.name).clone();
        self.write(plugin, Some(source), state).await
    }

    /// Write what is kept of a plugin: after the switch, so that nobody waits for the disk but whoever asked.
    async fn write(&self, plugin: &Plugin, source: Option<Source>, state: State) -> Option<String> {
        let name = plugin.name.clone();
        self.kept(
            plugin,
            "a restart or a rollback may not find what serves now",
            move |kept| {
                if let Some(source) = source {
                    kept.put(&name, &source.sha256, &source.bytes, source.signature.as_deref())?;
                }
                kept.record(&name, &state)
            },
        )
        .await
    }

    /// Do this with what is kept, if anything is, on a thread that may wait for the disk. Serving goes on without it, so a
    /// failure is a warning, `then` is what it means, and is given back for whoever was promised that it is kept.
    async fn kept(
        &self,
        plugin: &Plugin,
        then: &str,
        act: impl FnOnce(&Kept) -> Result<(), KeptError> + Send + 'static,
    ) -> Option<String> {
        let Some(kept) = self.host.services.kept.clone() else {
            return Some("this host keeps no versions: it has no data folder that it can use".to_owned());
        };
        let done = tokio::task::spawn_blocking(move || act(&kept)).await;
        let failed = match done {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(target: "berth::swap", plugin = plugin.name, "{then}: {failed}");
        Some(failed)
    }

    /// A fault is told when the file has rested, and only if it wasn't told last.
    fn hold(&mut self, plugin: &Arc<Plugin>, refused: Refused, by: By) {
        let event = self.refusal(plugin, &refused, by);
        self.held.push(Held {
            of: plugin.name.clone(),
            event,
            until: Instant::now() + REST,
        });
    }

    fn refusal(&self, plugin: &Plugin, refused: &Refused, by: By) -> Event {
        let mut event = Event::new(Kind::Refused, by, Some(&plugin.name));
        event.from = plugin.current().map(|version| version.digest.clone());
        event.to.clone_from(&refused.digest);
        event.size = refused.size;
        event.code = Some(refused.fault.code());
        event.reason = Some(refused.fault.to_string());
        event
    }

    fn has_to_tick(&self) -> bool {
        let rests = self.held.is_empty()
            && self.again.is_empty()
            && self.comparisons.is_empty()
            && self.leaving.is_empty();
        !rests
    }

    fn tick(&mut self) {
        let now = Instant::now();
        for held in std::mem::take(&mut self.held) {
            if held.until > now {
                self.held.push(held);
                continue;
            }
            let text = held.text();
            if self.told.insert(held.of.clone(), text.clone()).as_ref() == Some(&text) {
                continue;
            }
            if let Some(plugin) = self.host.table.load().plugin(&held.of) {
                plugin.ledger.swaps.refused();
            }
            self.host.events.tell(held.event);
        }
        let events = &self.host.events;
        self.comparisons.retain(|it| {
            let after = it.to.1.requests_answered();
            if after < it.answered_before + COMPARED_AFTER || it.from.1.requests_answered() == 0 {
                return it.until > now;
            }
            let mut event = Event::new(Kind::Measured, it.by, Some(&it.plugin));
            event.from = Some(it.from.0.clone());
            event.to = Some(it.to.0.clone());
            event.before = Some(Usage::of(&it.from.0, &it.from.1));
            event.after = Some(Usage::of(&it.to.0, &it.to.1));
            events.tell(event);
            false
        });
    }
}

/// Nothing, for ever, where nothing is watched.
async fn changed(watch: &mut Option<Watch>) -> PathBuf {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}
