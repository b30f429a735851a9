//! Manifests that nobody would write: whatever the text, it is read or refused with positions inside it.

use proptest::prelude::*;

use super::*;
use crate::runtime::reuse::Reuse;
use crate::state::issues_tokens;
use crate::table::fixed_routes;

/// With most of the keys that there are.
const GOOD: &str = r#"# A manifest.
[http]
listen = "127.0.0.1:8080"
header_bytes = "64KiB"
idle_time = "30s"
connections = 10_000

[admin]
listen = "off"

[limits]
instances = 0x10
total_memory = "4GiB"
cpu = "500ms"

[plugins.auth]
component = "auth.wasm"
policy = "auth"

[plugins.hello]
component = 'hello.wasm'
grants = { log = true, settings = false }
limits = { memory = "32MiB", cpu = "200ms", wall = "5s", concurrency = 16 }
reuse = "serial"
reuse_count = 1000
settings = { greeting = "ahoy — été", level = 1.5, on = true, since = 1979-05-27T07:32:00Z }

[[routes]]
path = "/hello/*"
plugin = "hello"
access = "public"

[[routes]]
path = "/users/{id}"
plugin = "hello"
access = "role:admin"
methods = ["GET", "POST"]
"#;

fn read(text: &str) -> Result<HostSpec, Vec<ManifestFault>> {
    parse(Path::new("berth.toml"), text, &Environment::empty())
}

/// What must hold of any text.
fn holds(text: &str) -> Result<(), TestCaseError> {
    let faults = match read(text) {
        Ok(spec) => return sound(&spec),
        Err(faults) => faults,
    };
    prop_assert!(!faults.is_empty(), "refused without a reason");
    let mut before = (0, 0);
    for fault in &faults {
        prop_assert!(!fault.message.is_empty());
        let (Some(line), Some(column)) = (fault.line, fault.column) else {
            return Err(TestCaseError::fail(format!("{fault} is nowhere in the file")));
        };
        // A fault may be at the very end, just behind the last character.
        let at = text.split('\n').nth(line - 1);
        prop_assert!(at.is_some(), "{fault}: there is no such line");
        prop_assert!(
            column <= at.unwrap().chars().count() + 1,
            "{fault}: there is no such column"
        );
        prop_assert!(column > 0 && line > 0);
        prop_assert!((line, column) >= before, "{fault} is out of order");
        before = (line, column);
    }
    prop_assert_eq!(
        read(text).unwrap_err(),
        faults,
        "the same text has the same faults"
    );
    Ok(())
}

/// What the host relies on.
fn sound(spec: &HostSpec) -> Result<(), TestCaseError> {
    let has_auth = spec.plugins.iter().any(|p| p.policy == Some(Policy::Auth));
    let mut router = Router::new();
    for (path, method) in fixed_routes(has_auth, issues_tokens(&spec.plugins)) {
        prop_assert_eq!(router.add(path, &Methods::Only(vec![method]), (), 0), Ok(()));
    }
    for route in &spec.routes {
        prop_assert_eq!(router.add(&route.path, &route.methods, (), 0), Ok(()));
        let plugin = spec.plugins.iter().find(|p| p.name == route.plugin);
        prop_assert!(plugin.is_some_and(|p| p.policy.is_none()), "{:?}", route);
        prop_assert!(has_auth || route.access == Access::Public, "{:?}", route);
    }
    let day = Duration::from_secs(86_400);
    for plugin in &spec.plugins {
        prop_assert!(values::is_plugin_name(&plugin.name));
        let limits = plugin.limits;
        prop_assert!(limits.memory >= MIB as usize && limits.concurrency > 0);
        prop_assert!(
            !limits.cpu.is_zero() && limits.cpu <= day && !limits.wall.is_zero() && limits.wall <= day
        );
    }
    let limits = &spec.limits;
    prop_assert!(limits.instances > 0 && limits.connections > 0 && limits.header_bytes >= 8192);
    prop_assert!(
        [limits.header_time, limits.idle_time, limits.drain_time]
            .iter()
            .all(|t| !t.is_zero() && *t <= day)
    );
    Ok(())
}

/// A word that means something somewhere, or nearly.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => proptest::sample::select(vec![
            "http", "limits", "plugins", "routes", "admin", "plugins.a", "plugins.a.limits", "listen", "component", "policy",
            "path", "plugin", "access", "methods", "reuse", "reuse_count", "grants", "settings", "memory", "cpu", "wall",
            "concurrency", "instances", "header_bytes", "=", "[", "]", "[[", "]]", "{", "}", ",", ".", "\"", "'''", "\"\"\"",
            "#", "\n", "\r\n", "\t", "true", "1", "-1", "0xffffffffffffffff", "1e999", "nan", "1979-05-27", "\"public\"",
            "\"user\"", "\"auth\"", "\"serial\"", "\"64MiB\"", "\"99999999999999999999GiB\"", "\"500ms\"",
            "\"18446744073709551615s\"", "\"/a/*\"", "\"/{x}\"", "\"a\"", "\\u0000", "\\", "é", "\u{feff}",
        ])
        .prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

/// A change of a text. Places are parts of its length.
#[derive(Clone, Debug)]
enum Change {
    Cut(prop::sample::Index, usize),
    Insert(prop::sample::Index, String),
    Twice(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let place = any::<prop::sample::Index>;
    prop_oneof![
        (place(), 1..40_usize).prop_map(|(at, n)| Change::Cut(at, n)),
        (place(), word()).prop_map(|(at, text)| Change::Insert(at, text)),
        place().prop_map(Change::Twice),
        (place(), place()).prop_map(|(a, b)| Change::Swap(a, b)),
    ]
}

fn changed(text: &str, change: &Change) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut lines: Vec<&str> = text.split('\n').collect();
    match change {
        Change::Cut(at, count) => {
            let start = text.floor_char_boundary(at.index(text.len()));
            let end = text.ceil_char_boundary((start + count).min(text.len()));
            return format!("{}{}", &text[..start], &text[end..]);
        }
        Change::Insert(at, more) => {
            let at = text.floor_char_boundary(at.index(text.len()));
            return format!("{}{more}{}", &text[..at], &text[at..]);
        }
        Change::Twice(line) => {
            let line = line.index(lines.len());
            lines.insert(line, lines[line]);
        }
        Change::Swap(a, b) => {
            let (a, b) = (a.index(lines.len()), b.index(lines.len()));
            lines.swap(a, b);
        }
    }
    lines.join("\n")
}

/// A plugin and its table.
fn plugin() -> impl Strategy<Value = (String, u32, u64, Option<u32>)> {
    (
        "[a-z0-9-]{1,12}",
        1..=100_000_u32,
        1..=86_400_000_u64,
        prop::option::of(1..=1_000_000_u32),
    )
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_with_positions(text in any::<String>()) {
        holds(&text)?;
    }

    #[test]
    fn any_words_are_read_or_refused_with_positions(words in prop::collection::vec(word(), 0..40)) {
        holds(&words.join(" "))?;
        holds(&words.concat())?;
    }

    #[test]
    fn changed_manifest_is_read_or_refused_with_positions(changes in prop::collection::vec(change(), 1..6)) {
        holds(GOOD)?;
        prop_assert!(read(GOOD).is_ok());
        let text = changes.iter().fold(GOOD.to_owned(), |text, one| changed(&text, one));
        holds(&text)?;
    }

    #[test]
    fn what_is_written_is_read(
        plugins in prop::collection::btree_map("[a-z0-9-]{1,12}", plugin(), 0..6),
        connections in 1..=1_000_000_u32,
        listen in any::<SocketAddr>(),
        setting in any::<String>(),
    ) {
        let mut text = format!("[http]\nconnections = {connections}\nlisten = \"{listen}\"\n");
        for (name, (_, concurrency, cpu, reuse)) in &plugins {
            let reuse = reuse.map_or(String::new(), |n| format!("reuse = \"serial\"\nreuse_count = {n}\n"));
            let setting = toml::Value::String(setting.clone());
            text += &format!(
                "[plugins.{name}]\ncomponent = \"{name}.wasm\"\nlimits = {{ concurrency = {concurrency}, cpu = \"{cpu}ms\" }}\n\
                 settings = {{ it = {setting} }}\n{reuse}\
                 [[routes]]\npath = \"/{name}/{{id}}\"\nplugin = \"{name}\"\naccess = \"public\"\n",
            );
        }
        let spec = read(&text).map_err(|faults| TestCaseError::fail(format!("{}\n{text}", faults[0])))?;
        sound(&spec)?;
        prop_assert_eq!(spec.limits.connections, connections as usize);
        prop_assert_eq!(spec.listen.to_string(), listen.to_string());
        prop_assert_eq!(spec.plugins.len(), plugins.len());
        prop_assert_eq!(spec.routes.len(), plugins.len());
        for read in &spec.plugins {
            let (_, concurrency, cpu, reuse) = &plugins[&read.name];
            prop_assert_eq!(read.limits.concurrency, *concurrency);
            prop_assert_eq!(read.limits.cpu, Duration::from_millis(*cpu));
            let expected = reuse.map_or(Reuse::None, |count| Reuse::Serial { count, random: false });
            prop_assert_eq!(read.reuse, expected);
            prop_assert_eq!(read.settings.get("it"), Some(&setting));
        }
    }
}
