//! Components written as text, for what no toolchain builds.

use std::path::PathBuf;

use tempfile::TempDir;

/// A component's file, gone when dropped.
#[derive(Debug)]
pub struct Built {
    folder: TempDir,
}

impl Built {
    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("built.wasm")
    }
}

/// Build a component from its text.
pub fn build(text: &str) -> Built {
    let bytes = wat::parse_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let folder = TempDir::new().expect("a temporary folder");
    let built = Built { folder };
    std::fs::write(built.path(), bytes).expect("the component can be written");
    built
}

/// A `wasi:http` 0.2 handler that never answers, with these imports (`(import …)` forms) beside what it needs.
pub fn handler(imports: &str) -> Built {
    build(&handler_text("0.2.6", imports))
}

/// The same for a version of WASI 0.2.
pub fn handler_of(wasi: &str, imports: &str) -> Built {
    build(&handler_text(wasi, imports))
}

/// A `wasi:http` 0.2 handler that does this, in the text format, when it is instantiated.
pub fn handler_at_start(instructions: &str) -> Vec<u8> {
    let main = format!("(memory 1) (func $start {instructions}) (start $start)");
    let text = handler_text("0.2.6", "").replace("(memory 1)", &main);
    wat::parse_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn handler_text(wasi: &str, imports: &str) -> String {
    format!(
        r#"(component
  (import "wasi:http/types@{wasi}" (instance $http
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (alias export $http "incoming-request" (type $request))
  (alias export $http "response-outparam" (type $out))
  {imports}
  (core module $main (memory 1) (func $handle (export "handle") (param i32 i32)))
  (core instance $main (instantiate $main))
  (func $handle (param "request" (own $request)) (param "response-out" (own $out))
    (canon lift (core func $main "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@{wasi}" (instance $handler))
)"#
    )
}

/// `berth:host/log` with these functions; `level` and `field` are its types, as it has them.
pub fn log(version: &str, functions: &str) -> String {
    log_with(
        version,
        r#"(field "name" string) (field "value" string)"#,
        functions,
    )
}

/// The same with other fields in the record `field`.
pub fn log_with(version: &str, fields: &str, functions: &str) -> String {
    format!(
        r#"(import "berth:host/log@{version}" (instance
    (type $l (enum "trace" "debug" "info" "warn" "error"))
    (export "level" (type $level (eq $l)))
    (type $f (record {fields}))
    (export "field" (type $field (eq $f)))
    {functions}))"#
    )
}

/// The real `write` of `berth:host/log`.
pub const WRITE: &str = r#"(export "write" (func (param "level" $level) (param "message" string) (param "fields" (list $field))))"#;
