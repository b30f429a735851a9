//! `berth:host/log`: lines with levels and fields, joined to the request.
//!
//! A plugin can write to the host's log. It can't choose the target, its own name or the request's id, write a
//! control character, or write without bound. What is more talkative than its `log` setting allows is dropped first,
//! and costs it none of its lines.

use std::fmt::Write;
use std::sync::Arc;

use wasmtime::AsContextMut;
use wasmtime::component::{Access, HasData, Linker};

use super::bindings::berth::host::log::{self, Field, Level};
use crate::runtime::instance::{Ctx, Origin, Task};
use crate::runtime::journal::{Line, Writer};

/// The longest message, in bytes.
const MAX_MESSAGE: usize = 8 * 1024;
/// The most fields of a line.
const MAX_FIELDS: usize = 16;
/// The longest name of a field, in bytes.
const MAX_NAME: usize = 64;
/// The longest value of a field, in bytes.
const MAX_VALUE: usize = 1024;

/// What the functions of this interface see of a store.
struct LogView<'a> {
    origin: &'a Arc<Origin>,
    tasks: &'a [Task],
}

impl log::Host for LogView<'_> {}

impl<T> log::HostWithStore<T> for HasLog {
    fn write(
        mut host: Access<'_, T, Self>,
        level: Level,
        message: String,
        fields: Vec<Field>,
    ) -> wasmtime::Result<()> {
        let origin = if host.get().tasks.is_empty() {
            Arc::clone(host.get().origin)
        } else {
            // The oldest call is the one that the host made for the request.
            let root = host.as_context_mut().async_call_stack()?.last();
            let view = host.get();
            let task = view.tasks.iter().find(|task| Some(task.id) == root);
            Arc::clone(task.map_or(view.origin, |task| &task.origin))
        };
        if heard(level) <= origin.plugin.spec.log && origin.take_line() {
            emit(&origin, level, &message, &fields);
        }
        Ok(())
    }
}

/// The level as the host has it.
pub(super) fn heard(level: Level) -> tracing::Level {
    match level {
        Level::Trace => tracing::Level::TRACE,
        Level::Debug => tracing::Level::DEBUG,
        Level::Info => tracing::Level::INFO,
        Level::Warn => tracing::Level::WARN,
        Level::Error => tracing::Level::ERROR,
    }
}

/// Write one line of a guest. Also used for its standard output.
pub(super) fn emit(origin: &Origin, level: Level, message: &str, fields: &[Field]) {
    macro_rules! event {
        ($level:ident) => {
            if tracing::enabled!(target: "berth::guest", tracing::Level::$level) {
                let fields = joined(fields);
                let message = clean(message, MAX_MESSAGE);
                let line = match &fields {
                    Some(fields) => format!("{message} {fields}"),
                    None => message.clone(),
                };
                let line = Line::new(tracing::Level::$level, Writer::Guest, line);
                let journal = &origin.plugin.ledger.journal;
                journal.write(line.of(&origin.version.digest, origin.request_id()));
                tracing::event!(
                    target: "berth::guest",
                    tracing::Level::$level,
                    plugin = origin.plugin.name,
                    version = origin.version.digest,
                    request_id = origin.request_id(),
                    fields = fields.as_deref(),
                    "{message}",
                );
            }
        };
    }
    match level {
        Level::Trace => event!(TRACE),
        Level::Debug => event!(DEBUG),
        Level::Info => event!(INFO),
        Level::Warn => event!(WARN),
        Level::Error => event!(ERROR),
    }
}

/// `a=1 b="two words"`, or nothing.
fn joined(fields: &[Field]) -> Option<String> {
    let mut text = String::new();
    for field in fields.iter().take(MAX_FIELDS) {
        if !text.is_empty() {
            text.push(' ');
        }
        let (name, value) = (clean(&field.name, MAX_NAME), clean(&field.value, MAX_VALUE));
        // Writing into a String can't fail.
        let _ = if value.contains([' ', '"', '=']) {
            write!(text, "{name}={value:?}")
        } else {
            write!(text, "{name}={value}")
        };
    }
    (!text.is_empty()).then_some(text)
}

/// Cut, and without control characters: a guest must not forge a line or drive a terminal.
fn clean(text: &str, max: usize) -> String {
    let end = text.floor_char_boundary(max);
    text.get(..end)
        .unwrap_or_default()
        .chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

struct HasLog;

impl HasData for HasLog {
    type Data<'a> = LogView<'a>;
}

/// Link the interface.
///
/// # Errors
/// It is linked already.
pub fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    log::add_to_linker::<_, HasLog>(linker, |ctx: &mut Ctx| LogView {
        origin: ctx.origin(),
        tasks: ctx.tasks(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, value: &str) -> Field {
        Field {
            name: name.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn fields_are_joined_bounded_and_quoted_when_needed() {
        assert_eq!(joined(&[]), None);
        assert_eq!(
            joined(&[field("a", "1"), field("b", "two words")]).unwrap(),
            "a=1 b=\"two words\""
        );
        let many: Vec<_> = (0..100).map(|n| field(&format!("n{n}"), "x")).collect();
        assert_eq!(joined(&many).unwrap().split(' ').count(), MAX_FIELDS);
        assert_eq!(
            joined(&[field("a", &"x".repeat(5000))]).unwrap().len(),
            "a=".len() + MAX_VALUE
        );
    }

    #[test]
    fn a_guest_cannot_forge_a_line_or_drive_a_terminal() {
        assert_eq!(
            clean("ok\n2026-01-01 ERROR gone\x1b[2J", 100),
            "ok\u{fffd}2026-01-01 ERROR gone\u{fffd}[2J"
        );
        assert_eq!(clean("ééé", 3), "é");
    }
}
