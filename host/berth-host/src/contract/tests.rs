use std::fmt::Write as _;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::abi::{AbiVariant, WasmType};
use wit_parser::{Function, Resolve, WorldItem, WorldKey};

use super::*;
use crate::grants::Capability;
use crate::grants::hosts::{HostEntry, HttpGrant};
use crate::runtime::engine::{Runtime, RuntimeSettings};
use crate::runtime::link;

/// A component of the world `w` of the last package: it imports and exports everything that the world names.
fn component(resolve: &mut Resolve, packages: &[&str]) -> Vec<u8> {
    let mut last = None;
    for (index, text) in packages.iter().enumerate() {
        last = Some(resolve.push_source(&format!("{index}.wit"), text).unwrap());
    }
    let world = resolve.select_world(&[last.unwrap()], Some("w")).unwrap();
    let mut core = "(module (memory (export \"memory\") 1)
        (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) unreachable)\n"
        .to_owned();
    let functions = |key: &WorldKey, item: &WorldItem| -> Vec<(String, Function)> {
        match item {
            WorldItem::Interface { id, .. } => {
                let functions = resolve.interfaces[*id].functions.values();
                let name = resolve.name_world_key(key);
                functions.map(|f| (name.clone(), f.clone())).collect()
            }
            _ => Vec::new(),
        }
    };
    for (key, item) in &resolve.worlds[world].imports {
        for (interface, function) in functions(key, item) {
            let signature = flat(resolve, AbiVariant::GuestImport, &function);
            writeln!(
                core,
                "(import {interface:?} {:?} (func {signature}))",
                function.name
            )
            .unwrap();
        }
    }
    // Imports come first in a module.
    let body = core.split_off(core.find("(import").unwrap_or(core.len()));
    core = format!("(module {body}{}", core.strip_prefix("(module").unwrap());
    for (key, item) in &resolve.worlds[world].exports {
        for (interface, function) in functions(key, item) {
            let signature = flat(resolve, AbiVariant::GuestExport, &function);
            let name = format!("{interface}#{}", function.name);
            writeln!(core, "(func (export {name:?}) {signature} unreachable)").unwrap();
        }
    }
    core += ")";
    let mut module = wat::parse_str(&core).unwrap();
    embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default()
        .module(&module)
        .unwrap()
        .encode()
        .unwrap()
}

fn flat(resolve: &Resolve, variant: AbiVariant, function: &Function) -> String {
    let signature = resolve.wasm_signature(variant, function);
    let text = |word: &str, types: &[WasmType]| -> String {
        types
            .iter()
            .map(|ty| match ty {
                WasmType::I64 | WasmType::PointerOrI64 => format!("({word} i64) "),
                WasmType::F32 => format!("({word} f32) "),
                WasmType::F64 => format!("({word} f64) "),
                WasmType::I32 | WasmType::Pointer | WasmType::Length => format!("({word} i32) "),
            })
            .collect()
    };
    text("param", &signature.params) + &text("result", &signature.results)
}

fn runtime() -> Runtime {
    Runtime::new(RuntimeSettings {
        instances: 1,
        workers: 1,
        max_memory: 1 << 20,
        memory_budget: 1 << 20,
    })
    .unwrap()
}

/// Whether a component links when everything is granted; the linker's words if not.
fn links(runtime: &Runtime, bytes: &[u8]) -> Result<(), String> {
    let component =
        wasmtime::component::Component::from_binary(&runtime.engine, bytes).map_err(|e| format!("{e:#}"))?;
    let everything = Grants::new(Capability::ALL.to_vec());
    let linker = link::granted(&runtime.linker, &everything).unwrap();
    linker
        .instantiate_pre(&component)
        .map(|_| ())
        .map_err(|e| format!("{e:#}"))
}

/// A handler that imports `log` of these packages.
fn importing(wit: &str) -> Vec<u8> {
    component(&mut Resolve::default(), &[wit])
}

/// The messages for a component, with everything granted, without what it should export.
fn messages(bytes: &[u8]) -> Vec<String> {
    messages_with(bytes, &Grants::new(Capability::ALL.to_vec()))
}

fn messages_with(bytes: &[u8], grants: &Grants) -> Vec<String> {
    explain(bytes, None, grants)
        .unwrap()
        .into_iter()
        .filter(|fault| fault.kind != FaultKind::WrongWorld)
        .map(|fault| fault.message)
        .collect()
}

const LEVEL: &str = "enum level { trace, debug, info, warn, error }";
const FIELD: &str = "record field { name: string, value: string }";
const WRITE: &str = "write: func(level: level, message: string, fields: list<field>);";

fn log(version: &str, items: &[&str]) -> Vec<u8> {
    importing(&format!(
        "package berth:host@{version};\ninterface log {{ {} }}\nworld w {{ import log; }}",
        items.join("\n")
    ))
}

/// The offer is the linker's: everything in it links, and what it leaves out doesn't.
#[test]
fn what_is_offered_is_what_is_linked() {
    let offer = offer::offer().unwrap();
    let runtime = runtime();
    let mut world = "package t:t;\nworld w {\n".to_owned();
    let names: Vec<&str> = offer.imports().map(|o| o.text.as_str()).collect();
    assert!(names.len() >= 50, "{names:?}");
    for name in &names {
        writeln!(world, "  import {name};").unwrap();
    }
    world += "}";
    let everything = component(&mut offer.resolve.clone(), &[&world]);
    assert_eq!(links(&runtime, &everything), Ok(()));
    assert_eq!(messages(&everything), [""; 0]);
    for name in [
        "wasi:cli/run@0.2.12",
        "wasi:cli/run@0.3.0",
        "wasi:http/incoming-handler@0.2.12",
        "wasi:http/handler@0.3.0",
        "berth:policy/auth@0.1.0",
    ] {
        let world = format!("package t:t;\nworld w {{ import {name}; }}");
        let bytes = component(&mut offer.resolve.clone(), &[&world]);
        assert!(links(&runtime, &bytes).is_err(), "{name}");
        assert_eq!(messages(&bytes).len(), 1, "{name}");
    }
}

/// Each difference with its message; the linker agrees that it is one.
#[test]
fn every_difference_of_an_import_is_told_in_wit() {
    let build = "build it against this host's wit/";
    let table: Vec<(Vec<u8>, Vec<String>)> = vec![
        (
            log("0.1.0", &[LEVEL, "write: func(level: level, message: string);"]),
            vec![format!(
                "it imports `write` of berth:host/log@0.1.0 as `write: func(level: level, message: string)`, but this host offers `write: func(level: level, message: string, fields: list<field>)`; {build}"
            )],
        ),
        (
            log("0.1.0", &[LEVEL, "record field { name: string }", WRITE]),
            vec![format!(
                "it imports `write` of berth:host/log@0.1.0 with `record field {{ name: string }}`, but this host offers it with `record field {{ name: string, value: string }}`: of the component's `field`, it has no field `value`; {build}"
            )],
        ),
        (
            log(
                "0.1.0",
                &[
                    "enum level { trace, debug, info, warn, error, fatal }",
                    "record field { name: string, value: u32 }",
                    WRITE,
                ],
            ),
            vec![
                format!(
                    "it imports `write` of berth:host/log@0.1.0 with `enum level {{ trace, debug, info, warn, error, fatal }}`, but this host offers it with `enum level {{ trace, debug, info, warn, error }}`: of the component's `level`, it has a case `fatal`, which this host's hasn't; {build}"
                ),
                format!(
                    "it imports `write` of berth:host/log@0.1.0 with `record field {{ name: string, value: u32 }}`, but this host offers it with `record field {{ name: string, value: string }}`: of the component's `field`, its field `value` is `u32`, not `string`; {build}"
                ),
            ],
        ),
        (
            log("0.1.0", &["record level { a: u8 }", FIELD, WRITE]),
            vec![format!(
                "it imports `write` of berth:host/log@0.1.0 as `write: func(level: level, message: string, fields: list<field>)` like this host, but its parameter `level` is `record level {{ a: u8 }}`, not `enum level {{ trace, debug, info, warn, error }}`; {build}"
            )],
        ),
        (
            log("0.1.0", &[LEVEL, FIELD, WRITE, "flush: func();", "wrote: func();"]),
            vec![
                format!(
                    "it imports `flush` of berth:host/log@0.1.0, which this host doesn't have; {build}"
                ),
                "it imports `wrote` of berth:host/log@0.1.0, which this host doesn't have; did you mean `write`?"
                    .to_owned(),
            ],
        ),
        (
            log("0.1.0", &[LEVEL, FIELD, "write: async func(level: level, message: string, fields: list<field>);"]),
            vec![format!(
                "it imports `write` of berth:host/log@0.1.0 as `write: async func(level: level, message: string, fields: list<field>)`, but this host offers `write: func(level: level, message: string, fields: list<field>)`; {build}"
            )],
        ),
        (
            log("0.9.0", &[LEVEL, FIELD, WRITE]),
            vec!["it imports \"berth:host/log@0.9.0\", but this host offers berth:host/log@0.1.0; build it for that version".to_owned()],
        ),
        (
            importing("package berth:host@0.1.0;\ninterface logs { f: func(); }\nworld w { import logs; }"),
            vec!["it imports \"berth:host/logs@0.1.0\", which this host doesn't have; did you mean \"berth:host/log@0.1.0\"?".to_owned()],
        ),
        (
            importing("package acme:store@1.0.0;\ninterface shelf { f: func(); }\nworld w { import shelf; }"),
            vec!["it imports \"acme:store/shelf@1.0.0\", which this host doesn't have; a component may import WASI 0.2, WASI 0.3 and what `grants` gives".to_owned()],
        ),
        (
            importing("package wasi:cli@0.2.99;\ninterface environment { get-secrets: func() -> string; }\nworld w { import environment; }"),
            vec!["it imports `get-secrets` of wasi:cli/environment@0.2.99, which this host's wasi:cli/environment@0.2.12 doesn't have; build it for that version".to_owned()],
        ),
        (
            importing("package wasi:cli@0.3.0-rc-1;\ninterface environment { get-environment: func() -> list<tuple<string, string>>; }\nworld w { import environment; }"),
            vec!["it imports \"wasi:cli/environment@0.3.0-rc-1\", but this host offers wasi:cli/environment@0.2.12 and wasi:cli/environment@0.3.0; build it for that version".to_owned()],
        ),
        (
            importing("package wasi:io@0.2.0;\ninterface poll { resource pollable { ready: func() -> u8; } resource waiter; poll: func(in: list<waiter>) -> list<u32>; }\nworld w { import poll; }"),
            vec![
                "it imports the resource `waiter` of wasi:io/poll@0.2.0, which this host's wasi:io/poll@0.2.12 doesn't have; build it for that version".to_owned(),
                format!("it imports `pollable.ready` of wasi:io/poll@0.2.0 as `ready: func() -> u8`, but this host offers `ready: func() -> bool`; {build}"),
                format!("it imports `poll` of wasi:io/poll@0.2.0 as `poll: func(in: list<waiter>) -> list<u32>`, but this host offers `poll: func(in: list<borrow<pollable>>) -> list<u32>`; {build}"),
            ],
        ),
    ];
    let runtime = runtime();
    for (bytes, expected) in table {
        assert_eq!(messages(&bytes), expected);
        assert!(
            links(&runtime, &bytes).is_err(),
            "the linker refuses it too: {expected:?}"
        );
    }
}

#[test]
fn newer_patch_with_known_functions_fits() {
    let runtime = runtime();
    let newer = [
        log("0.1.9", &[LEVEL, FIELD, WRITE]),
        importing(
            "package wasi:cli@0.2.99;\ninterface environment { get-arguments: func() -> list<string>; }\nworld w { import environment; }",
        ),
        importing(
            "package wasi:cli@0.3.2;\ninterface environment { get-arguments: func() -> list<string>; }\nworld w { import environment; }",
        ),
        // Types by themselves need nobody, and other names for the same structure are the same.
        importing("package acme:store@1.0.0;\ninterface types { type a = u8; }\nworld w { import types; }"),
        log(
            "0.1.0",
            &[
                "enum severity { trace, debug, info, warn, error }",
                "type text = string;",
                "record pair { name: text, value: text }",
                "write: func(a: severity, b: text, c: list<pair>);",
            ],
        ),
    ];
    for bytes in newer {
        assert_eq!(links(&runtime, &bytes), Ok(()));
        assert_eq!(messages(&bytes), [""; 0]);
    }
}

#[test]
fn fault_of_type_and_missing_grant_are_both_told() {
    let bytes = log("0.1.0", &[LEVEL, "write: func(level: level);"]);
    let told = messages_with(&bytes, &Grants::default());
    assert_eq!(
        told,
        [
            "it imports \"berth:host/log@0.1.0\", which is not granted; add `log = true` to the plugin's `grants`",
            "it imports `write` of berth:host/log@0.1.0 as `write: func(level: level)`, but this host offers `write: func(level: level, message: string, fields: list<field>)`; build it against this host's wit/",
        ]
    );
    let faults = explain(&bytes, None, &Grants::default()).unwrap();
    let json = serde_json::to_value(&faults).unwrap();
    assert_eq!(
        json[1],
        serde_json::json!({
            "kind": "not-granted", "interface": "berth:host/log@0.1.0", "grant": "log", "message": told[0],
        })
    );
    assert_eq!(
        json[2],
        serde_json::json!({
            "kind": "wrong-type", "interface": "berth:host/log@0.1.0", "functions": ["write"],
            "component": "write: func(level: level)",
            "host": "write: func(level: level, message: string, fields: list<field>)",
            "differences": ["it has 1 parameter, not 3"], "message": told[1],
        })
    );
    // What it exports comes first, and gives the code.
    assert_eq!(faults[0].kind, FaultKind::WrongWorld);
    assert_eq!(Faults::new(faults, Vec::new()).code(), "wrong-world");
}

/// The policy's own WIT with something changed.
fn policy(change: impl Fn(String) -> String) -> Vec<u8> {
    let types = include_str!("../../../../wit/policy/types.wit");
    let auth = include_str!("../../../../wit/policy/auth.wit").replace("package berth:policy@0.1.0;", "");
    let text = change(format!("{types}\n{auth}\nworld w {{ export auth; }}"));
    importing(&text)
}

fn auth_messages(bytes: &[u8]) -> Vec<String> {
    let faults = explain(bytes, Some(Policy::Auth), &Grants::default()).unwrap();
    faults.into_iter().map(|f| f.message).collect()
}

#[test]
fn every_difference_of_an_export_is_told_in_wit() {
    assert_eq!(auth_messages(&policy(|text| text)), [""; 0]);
    let newer = policy(|text| text.replace("berth:policy@0.1.0", "berth:policy@0.1.9"));
    assert_eq!(auth_messages(&newer), [""; 0]);
    let renamed = policy(|text| text.replace("  login: func", "  log-in: func"));
    assert_eq!(
        auth_messages(&renamed),
        [
            "it exports berth:policy/auth@0.1.0 without `login`, which this host calls as `login: func(info: request-info, credentials: credentials) -> result<session, problem>`; it exports `log-in` instead"
        ]
    );
    let retyped = policy(|text| {
        text.replace(
            "token: string) -> result<user, problem>",
            "token: u64) -> result<user, problem>",
        )
        .replace("current-password: string,", "")
    });
    assert_eq!(
        auth_messages(&retyped),
        [
            "it exports `verify-email` of berth:policy/auth@0.1.0 as `verify-email: func(info: request-info, token: u64) -> result<user, problem>`, but this host calls `verify-email: func(info: request-info, token: string) -> result<user, problem>`; build it against this host's wit/",
            "it exports `change-password` of berth:policy/auth@0.1.0 with `record password-change { new-password: string }`, but this host calls it with `record password-change { current-password: string, new-password: string }`: of the component's `password-change`, it has no field `current-password`; build it against this host's wit/",
        ]
    );
    let shared = policy(|text| text.replace("retry-after: option<u32>", "retry-after: option<u64>"));
    assert_eq!(
        auth_messages(&shared),
        [
            "it exports `register`, `login`, `refresh` and 7 more of berth:policy/auth@0.1.0 with `record problem { status: u16, code: string, detail: string, retry-after: option<u64>, fields: list<field-error> }`, but this host calls them with `record problem { status: u16, code: string, detail: string, retry-after: option<u32>, fields: list<field-error> }`: of the component's `problem`, its field `retry-after` is `u64`, not `u32`; build it against this host's wit/"
        ]
    );
}

#[test]
fn hostile_bytes_are_no_panic() {
    for bytes in [
        &b""[..],
        b"\0asm",
        b"\0asm\x0d\0\x01\0",
        b"\0asm\x0d\0\x01\0\x01\xff\xff\xff\xff\x0f",
    ] {
        let _ = shape(bytes);
        let _ = explain(bytes, None, &Grants::default());
    }
    assert_eq!(shape(b"\0asm\x0d\0\x01\0\x01\xff\xff\xff\xff\x0f"), None);
}

proptest::proptest! {
    /// A changed component is decoded, refused or found strange, and nothing else.
    #[test]
    fn changed_bytes_are_no_panic(changes in proptest::collection::vec((0usize..4096, 0u8..=255), 1..4)) {
        let mut bytes = log("0.1.0", &[LEVEL, FIELD, WRITE]);
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let _ = shape(&bytes);
        let _ = is_preview1(&bytes);
        let _ = report(&bytes, None);
        let _ = explain(&bytes, Some(Policy::Auth), &Grants::default());
    }
}

#[test]
fn shape_counts_modules_memories_and_names() {
    let named = "(core module $a (memory 2 9) (func $f))";
    let nameless = "(core module (memory 1) (func))";
    let text = format!("(component {named} (component {nameless} (core module)))");
    let bytes = wat::parse_str(&text).unwrap();
    let shape = shape(&bytes).unwrap();
    assert_eq!((shape.modules, shape.nameless), (3, 1));
    let memory = |initial_pages, maximum_pages| Memory {
        initial_pages,
        maximum_pages,
    };
    assert_eq!(shape.memories, [memory(2, Some(9)), memory(1, None)]);
    let warnings = report(&bytes, None).warnings;
    assert_eq!(
        warnings[0].message,
        "1 of its 3 core modules has no function names, so the backtrace of a trap has none; build with `strip = \"debuginfo\"`, not `strip = true`"
    );
    let preview1 = "(module (import \"wasi_snapshot_preview1\" \"fd_write\" (func)))";
    assert!(is_preview1(&wat::parse_str(preview1).unwrap()));
    assert!(!is_preview1(
        &wat::parse_str("(module (import \"env\" \"f\" (func)))").unwrap()
    ));
}

#[test]
fn report_groups_imports_and_names_unused_grants() {
    let bytes = importing(
        "package t:t;
interface types { type a = u8; }
world w { import types; import berth:host/log@0.1.0; import wasi:cli/environment@0.2.6; import wasi:cli/exit@0.2.6; }
package berth:host@0.1.0 { interface log { flush: func(); } }
package wasi:cli@0.2.6 { interface environment { get-arguments: func() -> list<string>; } interface exit { exit: func(status: result); } }",
    );
    let grants = Grants::new(vec![Capability::Settings]);
    let found = report(&bytes, Some(&grants));
    let packages: Vec<String> = found
        .packages()
        .into_iter()
        .map(|(text, status)| format!("{text}: {}", status.text()))
        .collect();
    assert_eq!(
        packages,
        [
            "berth:host@0.1.0 (log): not granted",
            "wasi:cli@0.2.6 (environment, exit): WASI",
        ]
    );
    assert_eq!(found.needs, ["log"]);
    assert_eq!(found.wasi.into_iter().collect::<Vec<_>>(), ["0.2.6"]);
    let unused: Vec<Warning> = found
        .warnings
        .into_iter()
        .filter(|w| w.code == "unused-grant")
        .collect();
    assert_eq!(
        unused,
        [Warning {
            code: "unused-grant",
            message:
                "`grants` has `settings`, and the component doesn't import berth:host/settings; take it out"
                    .to_owned()
        }]
    );
    let hosts = HttpGrant::new(vec!["api.example".parse::<HostEntry>().unwrap()]);
    let calling = report(&bytes, Some(&Grants::default().with_http(hosts))).warnings;
    assert_eq!(
        calling.last().unwrap().message,
        "`grants` has `http`, and the component doesn't import wasi:http/outgoing-handler or wasi:http/client; take it out"
    );
    let bare = report(&bytes, None).warnings;
    assert!(bare.iter().all(|w| w.code != "unused-grant"), "{bare:?}");
}
