//! The manifest has changed: one new generation of plugins and routes, or none.
//!
//! A plugin of which the manifest says the same as before is the same plugin, with its instances and its trial. One that is
//! new or changed is loaded and started once before anything is switched. If any of it is faulty nothing is changed, and
//! every fault is told. What the rest of the manifest says (addresses, limits of the host, keys, the database) was built
//! into the process at its start: a change there is named, and waits for the next one.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::events::{Event, Kind};
use super::kept::By;
use super::watch::read_whole;
use super::{Held, Outcome, REST, Reloader, probe, start};
use crate::config::{self, Environment};
use crate::error::Error;
use crate::grants::Capability;
use crate::runtime::plugin::{LoadFault, Plugin, PluginSpec};
use crate::state::HostSpec;
use crate::table::Table;

/// The largest manifest that is read again, in bytes. One of a hundred plugins has some 50 KiB.
const MAX_MANIFEST: u64 = 4 * 1024 * 1024;

/// What stands for the manifest where plugins stand by their names.
pub(super) const MANIFEST: &str = "";

impl Reloader {
    /// The manifest's file may be another one, or a component that it waits for.
    pub(super) async fn manifest_changed(&mut self) {
        self.held.retain(|held| held.of != MANIFEST);
        match self.apply(By::File).await {
            Ok(_) => _ = self.told.remove(MANIFEST),
            Err(event) => self.held.push(Held {
                of: MANIFEST.to_owned(),
                event: *event,
                until: Instant::now() + REST,
            }),
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
        let file = self.spec.file.clone();
        let mut next = match self.compiler.run(move || read(&file)).await {
            Some(Ok(next)) => next,
            Some(Err(faults)) => return Err(refused(faults)),
            None => return Err(refused(vec!["the manifest could not be read".to_owned()])),
        };
        if self.development {
            next.for_development();
        }
        if next == self.spec {
            self.wanted = None;
            return Ok(Arc::new(Event::new(Kind::Unchanged, by, None)));
        }
        let faults = self.beyond_reach(&next);
        if !faults.is_empty() {
            return Err(refused(faults));
        }
        if let Err(error) = self.host.services.follow(&next).await {
            return Err(refused(vec![error.to_string()]));
        }
        let before = self.host.table.load_full();
        let (plugins, faults) = self.plugins(&before, &next).await;
        let table = Table::new(before.generation + 1, &next, plugins);
        let table = match table {
            Ok(table) if faults.is_empty() => table,
            Ok(_) => {
                // When their components are whole, it is tried again.
                self.wanted = Some(next);
                self.watch_files();
                return Err(refused(faults));
            }
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
        self.host.table.store(Arc::new(table));
        for plugin in gone {
            self.end_trial(&plugin, by, Kind::CanaryWithdrawn, "the manifest has changed")
                .await;
            plugin.retire();
        }
        self.spec = next;
        self.wanted = None;
        self.watch_files();
        let event = self.host.events.tell(event);
        self.begin().await;
        Ok(event)
    }

    /// What a running host can't give to a plugin, because it is built at the start.
    fn beyond_reach(&self, next: &HostSpec) -> Vec<String> {
        let services = &self.host.services;
        let largest = self.host.runtime.settings().max_memory;
        let mut faults = Vec::new();
        for plugin in &next.plugins {
            let mut fault = |key: &str, what: &str| {
                faults.push(format!(
                    "plugins.{}.{key}: {what}; restart berth to use it",
                    plugin.name
                ));
            };
            if plugin.grants.has(Capability::Sql) && services.postgres.is_none() {
                fault("grants.sql", "this host was started without a database");
            }
            if plugin.grants.has(Capability::Sessions) && services.identity.is_none() {
                fault("grants.sessions", "this host was started without accounts");
            }
            if plugin.grants.has(Capability::Tokens) && services.issuer.is_none() {
                fault("grants.tokens", "this host was started without keys to sign with");
            }
            if plugin.limits.memory > largest {
                let largest = bytesize::ByteSize::b(largest as u64);
                fault(
                    "limits.memory",
                    &format!("this host was started with room for {largest} per instance"),
                );
            }
        }
        faults
    }

    /// The plugins of the next generation, with the faults of those that are new or changed.
    async fn plugins(&self, before: &Table, next: &HostSpec) -> (Vec<Arc<Plugin>>, Vec<String>) {
        let (mut plugins, mut faults) = (Vec::new(), Vec::new());
        for spec in &next.plugins {
            let old = before.plugin(&spec.name);
            if let Some(same) = old.filter(|old| old.spec == *spec) {
                plugins.push(Arc::clone(same));
                continue;
            }
            let plugin = self.plugin_of(spec, old).await;
            let started = match (&plugin.serving().current, plugin.current()) {
                (Ok(_), Some(version)) => Ok(version),
                (Err(fault), _) => Err(fault.clone()),
                (Ok(_), None) => Err(LoadFault::Compiler),
            };
            let started = match started {
                Ok(version) => probe::probe(&self.host, &plugin, &version).await.map(|_| ()),
                Err(fault) => Err(fault),
            };
            if let Err(fault) = started {
                faults.push(format!("plugins.{}: {fault}", spec.name));
            }
            plugins.push(plugin);
        }
        (plugins, faults)
    }

    async fn plugin_of(&self, spec: &PluginSpec, old: Option<&Arc<Plugin>>) -> Arc<Plugin> {
        let (host, wanted) = (Arc::clone(&self.host), spec.clone());
        let loaded = self
            .compiler
            .run(move || start::load(&host.runtime, &wanted, &host.services))
            .await;
        let disabled = self.states.get(&spec.name).map_or_else(
            || self.host.services.state_of(&spec.name).disabled,
            |state| state.disabled,
        );
        let ledger = old.map(|old| Arc::clone(&old.ledger)).unwrap_or_default();
        Arc::new(Plugin::new(
            spec.clone(),
            &self.host.services,
            ledger,
            loaded.unwrap_or(Err(LoadFault::Compiler)),
            disabled,
        ))
    }
}

/// The manifest, read whole like a component: what is no file, or without an end, must not hold up the thread.
fn read(file: &Path) -> Result<HostSpec, Vec<String>> {
    let bytes = read_whole(file, MAX_MANIFEST).map_err(|fault| vec![fault.to_string()])?;
    let text = String::from_utf8(bytes).map_err(|_| vec![format!("{}: it is not UTF-8", file.display())])?;
    config::parse(file, &text, &Environment::of_process())
        .map_err(|faults| faults.iter().map(ToString::to_string).collect())
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
        ("reload", began.reload == next.reload),
        ("plugins.*.log", loudest(next) <= loudest(began)),
    ];
    sections
        .iter()
        .filter(|(_, same)| !same)
        .map(|(name, _)| (*name).to_owned())
        .collect()
}
