//! The manifest has changed: one new generation of plugins and routes, or none.
//!
//! A plugin of which the manifest says the same as before is the same plugin, with its instances and its trial. One that is
//! new or changed is loaded and started once before anything is switched. If any of it is faulty nothing is changed, and
//! every fault is told. What the rest of the manifest says (addresses, limits of the host, keys, the database) was built
//! into the process at its start: a change there is named, and waits for the next one.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::time::sleep;

use super::events::{Event, Kind};
use super::kept::By;
use super::watch::read_whole;
use super::{Again, Held, Outcome, REST, Reloader, probe, start};
use crate::config::{self, Environment, ManifestFault};
use crate::error::Error;
use crate::grants::Capability;
use crate::runtime::plugin::{Ledger, LoadFault, Plugin, PluginSpec, Version};
use crate::state::{Host, HostSpec};
use crate::table::Table;

/// The largest manifest that is followed, in bytes.
const MAX_MANIFEST: u64 = 1024 * 1024;
/// How often a manifest that takes plugins away is looked at, until it is taken as it is.
const RESTS: u32 = 20;
/// How often the plugins of a manifest are loaded anew because an operator did something meanwhile. Then operators wait.
const ROUNDS: u32 = 8;

/// A manifest's text: of a regular file, whole, and not larger than it can be.
fn read(file: &Path) -> Result<String, Vec<ManifestFault>> {
    let fault = |message: String| vec![config::fault_at(file, "", &[], message)];
    let bytes = read_whole(file, MAX_MANIFEST).map_err(|error| {
        let text = error.to_string();
        let prefix = format!("{}: ", file.display());
        fault(text.strip_prefix(&prefix).unwrap_or(&text).to_owned())
    })?;
    String::from_utf8(bytes).map_err(|_| fault("it is not UTF-8".to_owned()))
}

/// What stands for the manifest where plugins stand by their names.
pub(super) const MANIFEST: &str = "";

impl Reloader {
    /// The manifest's file may be another one, or a component that it waits for.
    pub(super) async fn manifest_changed(&mut self) {
        self.held.retain(|held| held.of != MANIFEST);
        let again = self.again.remove(MANIFEST);
        self.rested().await;
        match self.apply(By::File).await {
            Ok(_) => _ = self.told.remove(MANIFEST),
            Err(event) => {
                if self.found_no_room {
                    self.again.insert(MANIFEST.to_owned(), Again::after(again, None));
                }
                self.held.push(Held {
                    of: MANIFEST.to_owned(),
                    event: *event,
                    until: Instant::now() + REST,
                });
            }
        }
    }

    /// Wait until a manifest that would take plugins away has rested: one that is half-written is a manifest too, with less
    /// in it.
    async fn rested(&mut self) {
        let mut before = None;
        for _ in 0..RESTS {
            let file = self.spec.file.clone();
            let lane = self.lane();
            let read = lane.run(move || {
                let text = read(&file)?;
                let spec = config::parse(&file, &text, &Environment::of_process())?;
                Ok::<_, Vec<ManifestFault>>((text, spec))
            });
            // What is faulty is held back elsewhere.
            let Some(Ok((text, next))) = read.await else {
                return;
            };
            let stays = |old: &PluginSpec| next.plugins.iter().any(|new| new.name == old.name);
            if self.spec.plugins.iter().all(stays) || before.as_ref() == Some(&text) {
                return;
            }
            before = Some(text);
            self.meanwhile(sleep(REST)).await;
        }
    }

    /// An operator asks for it.
    pub(super) async fn reload_manifest(&mut self) -> Outcome {
        self.held.retain(|held| held.of != MANIFEST);
        match self.apply(By::Deploy).await {
            Ok(event) => Ok(event),
            Err(event) => {
                let event = self.host.events.tell(*event);
                Err(Error::SwapRefused {
                    code: "manifest-refused",
                    detail: event.message(),
                })
            }
        }
    }

    async fn apply(&mut self, by: By) -> Result<Arc<Event>, Box<Event>> {
        let refused = |faults: Vec<String>| {
            let mut event = Event::new(Kind::ManifestRefused, by, None);
            event.faults = faults;
            Box::new(event)
        };
        self.found_no_room = false;
        let file = self.spec.file.clone();
        let lane = self.lane();
        let read = lane.run(move || -> Result<_, Vec<ManifestFault>> {
            let text = read(&file)?;
            let spec = config::parse(&file, &text, &Environment::of_process())?;
            Ok((text, spec))
        });
        let (text, mut next) = match read.await {
            Some(Ok(read)) => read,
            Some(Err(faults)) => return Err(refused(faults.iter().map(ToString::to_string).collect())),
            None => return Err(refused(vec!["the manifest could not be read".to_owned()])),
        };
        if self.development {
            next.for_development();
        }
        if next == self.spec {
            self.wanted = None;
            return Ok(Arc::new(Event::new(Kind::Unchanged, by, None)));
        }
        if by == By::File && next.plugins.is_empty() && !self.spec.plugins.is_empty() {
            return Err(refused(vec![format!(
                "{}: it has no plugins any more, which is how a file looks that could not be written; if that is meant, read it again with SIGHUP",
                next.file.display()
            )]));
        }
        let before = self.host.table.load_full();
        let mut rounds = 0..ROUNDS;
        let (found, mut faults) = loop {
            let is_last = rounds.next().is_none();
            let (acts, mut faults) = (self.acts.clone(), Vec::new());
            self.found_no_room = false;
            self.is_urgent = is_last;
            let found = self.plugins(&before, &next, &text, &mut faults).await;
            self.is_urgent = false;
            // What an operator did to one that is changed counts. Another time all of it is in the cache, if there is one.
            let is_other =
                |spec: &&PluginSpec| before.plugin(&spec.name).is_none_or(|old| old.spec != **spec);
            let mut others = next.plugins.iter().filter(is_other);
            if is_last || others.all(|spec| acts.get(&spec.name) == self.acts.get(&spec.name)) {
                break (found, faults);
            }
        };
        if !faults.is_empty() {
            // When their components are whole, it is tried again.
            self.wanted = Some(next);
            self.watch_files();
            faults.sort_by_key(|fault| (fault.line, fault.column));
            return Err(refused(faults.iter().map(ToString::to_string).collect()));
        }
        if let Err(error) = self.change_roles(&before, &next).await {
            return Err(refused(vec![error]));
        }
        let plugins = found.into_iter().map(|found| found.plugin(&self.host)).collect();
        let table = match Table::new(before.generation + 1, &next, plugins) {
            Ok(table) => table,
            Err(error) => return Err(refused(vec![error.to_string()])),
        };
        let mut event = Event::new(Kind::ManifestApplied, by, None);
        let known = |table: &Table, name: &str| table.plugin(name).is_some();
        let names = |of: &Table, is: &dyn Fn(&Arc<Plugin>) -> bool| -> Vec<String> {
            of.plugins
                .iter()
                .filter(|plugin| is(plugin))
                .map(|plugin| plugin.name.clone())
                .collect()
        };
        let same = |plugin: &Arc<Plugin>| {
            before
                .plugin(&plugin.name)
                .is_some_and(|old| Arc::ptr_eq(old, plugin))
        };
        event.added = names(&table, &|plugin| !known(&before, &plugin.name));
        event.changed = names(&table, &|plugin| known(&before, &plugin.name) && !same(plugin));
        event.removed = names(&before, &|plugin| !known(&table, &plugin.name));
        event.needs_restart = needs_restart(&self.began, &next);
        let gone: Vec<Arc<Plugin>> = before
            .plugins
            .iter()
            .filter(|old| table.plugin(&old.name).is_none_or(|new| !Arc::ptr_eq(old, new)))
            .cloned()
            .collect();
        table.plugins.iter().for_each(|plugin| plugin.enter());
        let table = Arc::new(table);
        self.host.table.store(Arc::clone(&table));
        for plugin in gone {
            self.end_trial(&plugin, by, Kind::CanaryWithdrawn, "the manifest has changed")
                .await;
            plugin.retire();
            if plugin.sql.is_some() {
                self.leaving.push(Arc::downgrade(&plugin));
            }
        }
        self.spec = next;
        self.wanted = None;
        self.watch_files();
        let event = self.host.events.tell(event);
        self.tell_swaps(&before, &table);
        let is_new = |plugin: &Plugin| {
            let old = before.plugin(&plugin.name);
            old.is_none_or(|old| !std::ptr::eq(old.as_ref(), plugin))
        };
        self.begin(By::Manifest, is_new).await;
        Ok(event)
    }

    /// Plugins whose component is another one now.
    fn tell_swaps(&self, before: &Table, now: &Table) {
        for plugin in &now.plugins {
            let old = before.plugin(&plugin.name).and_then(|old| old.current());
            let (Some(old), Some(new)) = (old, plugin.current()) else {
                continue;
            };
            if old.sha256 == new.sha256 {
                continue;
            }
            let mut event = Event::new(Kind::Swapped, By::Manifest, Some(&plugin.name));
            event.from = Some(old.digest.clone());
            event.to = Some(new.digest.clone());
            event.size = Some(new.size);
            event.signed_by.clone_from(&new.signed_by);
            event.steps = Some(new.steps.into());
            plugin.ledger.swaps.made();
            self.host.events.tell(event);
        }
    }

    /// Give the plugins of the next manifest their roles in the database, and take nothing back yet.
    async fn change_roles(&mut self, before: &Table, next: &HostSpec) -> Result<(), String> {
        let leaving = self.still_leaving();
        let old: Vec<&PluginSpec> = before
            .plugins
            .iter()
            .chain(&leaving)
            .map(|plugin| &plugin.spec)
            .collect();
        let services = &self.host.services;
        let Err(error) = services.follow(next, &old).await else {
            return Ok(());
        };
        // Some may have been made.
        if let Err(again) = services.follow(&self.spec, &old).await {
            tracing::warn!(target: "berth::sql", "the plugins' roles may be more than the manifest has: {again}");
        }
        Err(error.to_string())
    }

    fn still_leaving(&mut self) -> Vec<Arc<Plugin>> {
        self.leaving.retain(|plugin| plugin.strong_count() > 0);
        self.leaving.iter().filter_map(Weak::upgrade).collect()
    }

    /// When the last request of the plugins of earlier generations has ended, what only they might do in the database is
    /// taken back.
    pub(super) async fn settle(&mut self) {
        if self.leaving.is_empty() || !self.still_leaving().is_empty() {
            return;
        }
        if let Err(error) = self.host.services.follow(&self.spec, &[]).await {
            tracing::warn!(
                target: "berth::sql",
                "what plugins had in the database and the manifest no longer grants is theirs until the next start: {error}",
            );
        }
    }

    /// What a running host can't give to a plugin, because it is built at the start: keys and what is wrong.
    fn beyond_reach(&self, plugin: &PluginSpec) -> Vec<([&'static str; 2], String)> {
        let services = &self.host.services;
        let largest = self.host.runtime.settings().max_memory;
        let mut faults = Vec::new();
        let mut fault = |key, what: String| {
            faults.push((key, format!("{what}; restart berth to use it")));
        };
        for (capability, is_there, what) in [
            (Capability::Sql, services.postgres.is_some(), "a database"),
            (Capability::Sessions, services.identity.is_some(), "accounts"),
            (Capability::Tokens, services.issuer.is_some(), "keys to sign with"),
        ] {
            if plugin.grants.has(capability) && !is_there {
                fault(
                    ["grants", capability.key()],
                    format!("this host was started without {what}"),
                );
            }
        }
        if plugin.limits.memory > largest {
            let largest = bytesize::ByteSize::b(largest as u64);
            fault(
                ["limits", "memory"],
                format!("this host was started with room for {largest} per instance"),
            );
        }
        faults
    }

    /// The plugins of the next generation; what is wrong with those that are new or changed goes to `faults`.
    async fn plugins(
        &mut self,
        before: &Table,
        next: &HostSpec,
        text: &str,
        faults: &mut Vec<ManifestFault>,
    ) -> Vec<Found> {
        let mut found = Vec::new();
        for spec in &next.plugins {
            let old = before.plugin(&spec.name);
            if let Some(same) = old.filter(|old| old.spec == *spec) {
                found.push(Found::Same(Arc::clone(same)));
                continue;
            }
            let mut fault = |keys: &[&str], message: String| {
                let key = [&["plugins", spec.name.as_str()][..], keys].concat();
                faults.push(config::fault_at(&next.file, text, &key, message));
            };
            let beyond = self.beyond_reach(spec);
            if !beyond.is_empty() {
                beyond.into_iter().for_each(|(key, what)| fault(&key, what));
                continue;
            }
            match self.other(spec, old).await {
                Ok(other) => found.push(other),
                Err(error) => {
                    self.found_no_room |= matches!(error, LoadFault::NoRoom { .. });
                    fault(&[], error.to_string());
                }
            }
        }
        found
    }

    /// A plugin that is new or changed, started once.
    async fn other(&mut self, spec: &PluginSpec, old: Option<&Arc<Plugin>>) -> Result<Found, LoadFault> {
        let (host, wanted) = (Arc::clone(&self.host), spec.clone());
        // As it is in memory: what could not be written counts all the same.
        let state = self.states.get(&spec.name).cloned();
        let state = state.unwrap_or_else(|| self.host.services.state_of(&spec.name));
        let disabled = state.disabled;
        let is_moved = old.is_none_or(|old| old.spec.component != spec.component);
        let lane = self.lane();
        let loaded =
            lane.run(move || start::load_changed(&host.runtime, &wanted, &host.services, &state, is_moved));
        let loaded = self.meanwhile(loaded).await;
        let ledger = old.map(|old| Arc::clone(&old.ledger)).unwrap_or_default();
        let version = ledger.count(loaded.unwrap_or(Err(LoadFault::Compiler))?);
        let found = Found::Other {
            disabled,
            spec: Box::new(spec.clone()),
            ledger,
            version: Arc::clone(&version),
        };
        // It has no connections yet: those are for what is in force.
        let tried = found.clone().plugin(&self.host);
        probe::probe(&self.host, &tried, &version).await?;
        Ok(found)
    }
}

/// A plugin of the next generation.
#[derive(Clone)]
enum Found {
    /// The manifest says the same of it as before.
    Same(Arc<Plugin>),
    /// It is new, or changed.
    Other {
        spec: Box<PluginSpec>,
        ledger: Arc<Ledger>,
        version: Arc<Version>,
        disabled: bool,
    },
}

impl Found {
    fn plugin(self, host: &Host) -> Arc<Plugin> {
        match self {
            Self::Same(plugin) => plugin,
            Self::Other {
                spec,
                ledger,
                version,
                disabled,
            } => Arc::new(Plugin::new(*spec, &host.services, ledger, Ok(version), disabled)),
        }
    }
}

/// The sections that differ from what the host was started with and are read at the start only.
fn needs_restart(began: &HostSpec, next: &HostSpec) -> Vec<String> {
    let loudest = |spec: &HostSpec| spec.plugins.iter().map(|plugin| plugin.log).max();
    let sections = [
        (
            "http",
            began.listen == next.listen
                && began.tls == next.tls
                && began.trusted_proxies == next.trusted_proxies
                && began.limits.http() == next.limits.http(),
        ),
        ("admin", began.admin == next.admin),
        ("limits", began.limits.instances() == next.limits.instances()),
        ("data", began.data == next.data),
        ("postgres", began.postgres == next.postgres),
        ("identity", began.identity == next.identity),
        (
            "tokens",
            began.tokens == next.tokens && began.sessions == next.sessions,
        ),
        ("passwords", began.passwords == next.passwords),
        ("telemetry", began.telemetry == next.telemetry),
        // How many versions are kept is looked at when one is.
        ("reload", began.reload.watch == next.reload.watch),
        ("plugins.*.log", loudest(next) <= loudest(began)),
    ];
    sections
        .iter()
        .filter(|(_, same)| !same)
        .map(|(name, _)| (*name).to_owned())
        .collect()
}
