//! What the tests of changed files share: a berth that follows its files, somebody who asks all the time, and an operator.

use berth_tests::berth::{Berth, Manifest, command};
use berth_tests::swaps::{Caller, Operator, Site, WATCH, another, built, digest, greeting, hello};
use serde_json::Value;

/// The plugin `hello` at its version 1, asked all the time.
pub(crate) struct Served {
    pub(crate) site: Site,
    pub(crate) berth: Berth,
    pub(crate) operator: Operator,
    pub(crate) caller: Caller,
    /// The number of the last event before the test.
    pub(crate) before: u64,
    markers: std::cell::Cell<u32>,
}

/// The file of the plugin.
pub(crate) const FILE: &str = "hello.wasm";
/// That of another plugin, whose events show that those before it have come.
const MARKER: &str = "marker.wasm";

impl Served {
    pub(crate) fn start() -> Self {
        Self::start_by(Site::new(), command(), "")
    }

    /// In a folder that may hold things already, by a program that ends up being berth, with more lines in the plugin's
    /// table.
    pub(crate) fn start_by(site: Site, program: std::process::Command, more: &str) -> Self {
        if !site.at(FILE).exists() {
            site.put(FILE, &hello(1));
        }
        site.put(MARKER, &marker(0));
        let manifest = Manifest::new()
            .raw(WATCH)
            .handler_file("hello", &site.at(FILE), more)
            .handler_file("marker", &site.at(MARKER), "");
        let berth = site.start_by(program, &manifest);
        let operator = Operator::of(&berth);
        let caller = Caller::start(berth.address, "/hello/Ada");
        caller.sees(&greeting(1, "Ada"));
        let before = operator.last();
        Self {
            site,
            berth,
            operator,
            caller,
            before,
            markers: std::cell::Cell::new(0),
        }
    }

    /// Whatever was done to the files is noticed, read, and told if there is anything to tell: the same was done to another
    /// plugin afterwards, and is told. A fault, which is told late, and then a good version.
    pub(crate) fn settle(&self) {
        let number = self.markers.get() + 1;
        self.markers.set(number);
        let before = self.operator.last();
        self.site.replace(
            MARKER,
            format!("no component, for the {number}th time").as_bytes(),
        );
        self.operator.event(before, "marker", "refused");
        self.site.replace(MARKER, &marker(number));
        self.operator.event(before, "marker", "swapped");
    }

    /// The kinds of the plugin's events since the test began.
    pub(crate) fn kinds(&self) -> Vec<String> {
        self.operator.kinds(self.before, "hello")
    }

    /// The version 1 is served, nobody has noticed anything, and the file's fault is told: in one event with this code and
    /// all of these words, and one line of the log.
    #[track_caller]
    pub(crate) fn refuses(&self, code: &str, says: &[&str]) -> Value {
        let event = self.operator.event(self.before, "hello", "refused");
        assert_eq!(
            (event["code"].as_str(), event["by"].as_str()),
            (Some(code), Some("file")),
            "{event:#}"
        );
        assert_eq!(event["from"], digest(&hello(1)), "{event:#}");
        let reason = event["reason"].as_str().unwrap_or_default();
        for part in says {
            assert!(reason.contains(part), "{reason:?} says {part:?}");
        }
        let health = self.operator.health("hello");
        assert_eq!(
            (health["state"].as_str(), health["version"].as_str()),
            (Some("ready"), event["from"].as_str()),
            "{health:#}"
        );
        assert_eq!(self.berth.get("/health").json()["status"], "healthy");
        let plugin = self.operator.plugin("hello");
        assert_eq!(plugin["lastEvent"]["seq"], event["seq"], "{plugin:#}");
        assert_eq!(plugin["version"], event["from"], "{plugin:#}");
        self.caller.asks(3);
        event
    }

    /// A good file makes it serve another version, whatever was before.
    #[track_caller]
    pub(crate) fn recovers(&self) {
        let before = self.operator.last();
        self.site.replace(FILE, &hello(2));
        let event = self.operator.event(before, "hello", "swapped");
        assert_eq!(
            (event["from"].as_str(), event["to"].as_str()),
            (Some(&*digest(&hello(1))), Some(&*digest(&hello(2)))),
            "{event:#}"
        );
        self.caller.sees(&greeting(2, "Ada"));
        self.settle();
    }

    /// The end: every answer was one of these versions', whole, and the log has one line for each event and no more.
    #[track_caller]
    pub(crate) fn over(self, versions: &[u32]) {
        let greetings: Vec<String> = versions.iter().map(|&n| greeting(n, "Ada")).collect();
        let seen = self.caller.stop();
        seen.only(&greetings.iter().map(String::as_str).collect::<Vec<_>>());
        let kinds = self.operator.kinds(self.before, "hello");
        self.berth.stop();
        let lines = self.site.log();
        let told: Vec<(&str, &str)> = lines
            .iter()
            .filter(|line| line["target"] == "berth::swap" && line["plugin"] == "hello")
            .filter(|line| line["event"] != "measured")
            .map(|line| {
                let text = |key: &str| line[key].as_str().unwrap_or_default();
                (text("level"), text("event"))
            })
            .collect();
        let level = |kind: &str| if kind == "refused" { "ERROR" } else { "INFO" };
        let wanted: Vec<(&str, &str)> = kinds.iter().map(|kind| (level(kind), kind.as_str())).collect();
        assert_eq!(told, wanted);
    }
}

fn marker(number: u32) -> Vec<u8> {
    another(&built("fixtures/spin"), number)
}
