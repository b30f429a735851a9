//! The manifests that the measured berths run with. No limits on attempts: all requests come from one address.

use std::net::SocketAddr;
use std::path::Path;

#[cfg(test)]
use super::cases::Serves;
use super::cases::Setup;

/// Plugin, component below the folder of components, and what makes it more than a handler.
const PLUGINS: &[(&str, &str, Option<&str>)] = &[
    ("auth", "fixtures/auth-static", Some("auth")),
    ("hello", "hello", None),
    ("hello-p3", "hello-p3", None),
];

/// The plugins that are swapped.
const SWAPPED: &[(&str, &str, Option<&str>)] = &[
    ("auth", "fixtures/auth-static", Some("auth")),
    ("hello", "hello", None),
    ("hello-reused", "hello", None),
    ("hello-p3", "hello-p3", None),
];

/// The same with accounts, and which grants each has.
const WITH_ACCOUNTS: &[(&str, &str, Option<&str>, &str)] = &[
    (
        "auth",
        "auth",
        Some("auth"),
        "{ sql = [\"identity\"], passwords = true, sessions = true, log = true, settings = true }",
    ),
    ("caller", "hello", None, "{}"),
    ("sql", "fixtures/sql", None, "{ sql = [\"bench\"] }"),
    (
        "identity",
        "fixtures/identity",
        None,
        "{ tokens = true, passwords = true, sessions = true }",
    ),
];

/// `berth.toml` of a berth with accounts as text. What limits attempts is off: one client logs in all the time.
pub(super) fn with_accounts(listen: SocketAddr, components: &Path, data: &Path) -> String {
    let mut text = format!(
        "[http]\nlisten = {}\n\n[admin]\nlisten = \"off\"\n\n[data]\ndir = {}\n\n[identity]\naddress_rate = \"off\"\naccount_rate = \"off\"\n",
        toml_string(&listen.to_string()),
        toml_string(&data.to_string_lossy())
    );
    for (plugin, component, policy, grants) in WITH_ACCOUNTS {
        let file = components.join(format!("{component}.wasm"));
        text += &format!(
            "\n[plugins.{plugin}]\ncomponent = {}\ngrants = {grants}\n",
            toml_string(&file.to_string_lossy())
        );
        match policy {
            Some(policy) => text += &format!("policy = {}\n", toml_string(policy)),
            None => {
                let access = if *plugin == "caller" { "user" } else { "public" };
                text += &format!(
                    "\n[[routes]]\npath = \"/{plugin}/*\"\nplugin = \"{plugin}\"\naccess = \"{access}\"\n"
                );
            }
        }
    }
    text
}

/// `berth.toml` as text.
pub(super) fn manifest(listen: SocketAddr, components: &Path, setup: &Setup) -> String {
    let mut text = format!(
        "[http]\nlisten = {}\n\n[admin]\nlisten = \"off\"\n\n\
         [identity]\naddress_rate = \"off\"\naccount_rate = \"off\"\n",
        toml_string(&listen.to_string())
    );
    text += &handlers(components, PLUGINS, setup);
    text
}

/// `berth.toml` of a berth whose plugins are swapped: with a data folder, which has the token for its admin API, and that on
/// any free port.
pub(super) fn swapped(listen: SocketAddr, components: &Path, data: &Path, setup: &Setup) -> String {
    let mut text = format!(
        "[http]\nlisten = {}\n\n[admin]\nlisten = \"127.0.0.1:0\"\n\n[data]\ndir = {}\n\n\
         [identity]\naddress_rate = \"off\"\naccount_rate = \"off\"\n",
        toml_string(&listen.to_string()),
        toml_string(&data.to_string_lossy())
    );
    text += &handlers(components, SWAPPED, setup);
    text
}

/// Plugins without grants, and the routes to those that are handlers.
fn handlers(components: &Path, plugins: &[(&str, &str, Option<&str>)], setup: &Setup) -> String {
    let mut text = String::new();
    for (plugin, component, policy) in plugins {
        let file = components.join(format!("{component}.wasm"));
        text += &format!(
            "\n[plugins.{plugin}]\ncomponent = {}\n",
            toml_string(&file.to_string_lossy())
        );
        if let Some(policy) = policy {
            text += &format!("policy = {}\n", toml_string(policy));
        }
        if let Some((_, reuse)) = setup.reuse.iter().find(|(name, _)| name == plugin) {
            text += &format!("reuse = {}\n", toml_string(reuse));
        }
    }
    for (plugin, _, _) in plugins.iter().filter(|(_, _, policy)| policy.is_none()) {
        text += &format!(
            "\n[[routes]]\npath = {}\nplugin = {}\naccess = \"public\"\n",
            toml_string(&format!("/{plugin}/*")),
            toml_string(plugin)
        );
    }
    text
}

fn toml_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', r#"\""#))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_has_the_plugins_and_the_routes() {
        let setup = Setup {
            name: "x",
            reuse: &[("hello-p3", "concurrent")],
            serves: Serves::Plain,
        };
        let listen = SocketAddr::from(([127, 0, 0, 1], 4000));
        let expected = r#"[http]
listen = "127.0.0.1:4000"

[admin]
listen = "off"

[identity]
address_rate = "off"
account_rate = "off"

[plugins.auth]
component = "/a \"b\"/fixtures/auth-static.wasm"
policy = "auth"

[plugins.hello]
component = "/a \"b\"/hello.wasm"

[plugins.hello-p3]
component = "/a \"b\"/hello-p3.wasm"
reuse = "concurrent"

[[routes]]
path = "/hello/*"
plugin = "hello"
access = "public"

[[routes]]
path = "/hello-p3/*"
plugin = "hello-p3"
access = "public"
"#;
        assert_eq!(manifest(listen, Path::new("/a \"b\""), &setup), expected);
    }
}
