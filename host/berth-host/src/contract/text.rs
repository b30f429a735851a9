//! Functions and types in WIT syntax, on one line and of bounded length: a component can make types of any size.

use wit_parser::{Function, FunctionKind, Handle, Resolve, Type, TypeDefKind, TypeId};

/// A signature or definition longer than this is cut, in bytes.
const MAX_TEXT: usize = 400;
/// A definition longer than this is shown without its members: the difference is told in words.
const MAX_DEFINITION: usize = 160;

/// `write: func(level: level, message: string)`. The receiver of a method isn't written, as in WIT.
pub(super) fn signature(resolve: &Resolve, function: &Function) -> String {
    let mut out = Writer::new(resolve);
    let name = function_name(&function.name);
    let name = name.split_once('.').map_or(name, |(_, method)| method);
    let skipped = usize::from(is_method(&function.kind));
    let word = match function.kind {
        FunctionKind::Freestanding | FunctionKind::Method(_) => ": func",
        FunctionKind::AsyncFreestanding | FunctionKind::AsyncMethod(_) => ": async func",
        FunctionKind::Static(_) => ": static func",
        FunctionKind::AsyncStatic(_) => ": static async func",
        FunctionKind::Constructor(_) => "",
    };
    let constructor = matches!(function.kind, FunctionKind::Constructor(_));
    out.push(if constructor { "constructor" } else { name });
    out.push(word);
    out.push("(");
    for (index, param) in function.params.iter().skip(skipped).enumerate() {
        out.push(if index > 0 { ", " } else { "" });
        out.push(&param.name);
        out.push(": ");
        out.ty(&param.ty);
    }
    out.push(")");
    if let (Some(result), false) = (&function.result, constructor) {
        out.push(" -> ");
        out.ty(result);
    }
    out.finish()
}

/// How a function is called in a sentence: `write`, or `input-stream.read` for one of a resource.
pub(super) fn function_name(name: &str) -> &str {
    name.split_once(']').map_or(name, |(_, rest)| rest)
}

/// Whether its first parameter is its receiver.
pub(super) fn is_method(kind: &FunctionKind) -> bool {
    matches!(kind, FunctionKind::Method(_) | FunctionKind::AsyncMethod(_))
}

/// A type where it is used: by its name if it has one.
pub(super) fn type_name(resolve: &Resolve, ty: &Type) -> String {
    let mut out = Writer::new(resolve);
    out.ty(ty);
    out.finish()
}

/// A type where it is defined: `record field { name: string, value: string }`.
pub(super) fn definition(resolve: &Resolve, id: TypeId) -> String {
    let Some(def) = resolve.types.get(id) else {
        return String::new();
    };
    let name = def.name.as_deref().unwrap_or("_");
    let mut out = Writer::new(resolve);
    let word = match &def.kind {
        TypeDefKind::Record(record) => {
            out.members(
                record
                    .fields
                    .iter()
                    .map(|f| (f.name.as_str(), Some((": ", &f.ty)))),
            );
            "record"
        }
        TypeDefKind::Variant(variant) => {
            out.members(
                variant
                    .cases
                    .iter()
                    .map(|c| (c.name.as_str(), c.ty.as_ref().map(|ty| ("(", ty)))),
            );
            "variant"
        }
        TypeDefKind::Enum(cases) => {
            out.members(cases.cases.iter().map(|c| (c.name.as_str(), None)));
            "enum"
        }
        TypeDefKind::Flags(flags) => {
            out.members(flags.flags.iter().map(|f| (f.name.as_str(), None)));
            "flags"
        }
        TypeDefKind::Resource => return format!("resource {name}"),
        other => return format!("type {name} = {}", kind(resolve, other)),
    };
    if out.text.len() > MAX_DEFINITION {
        return format!("{word} {name} {{ … }}");
    }
    format!("{word} {name} {{ {} }}", out.text)
}

fn kind(resolve: &Resolve, kind: &TypeDefKind) -> String {
    let mut out = Writer::new(resolve);
    out.kind(kind);
    out.finish()
}

struct Writer<'r> {
    resolve: &'r Resolve,
    text: String,
}

impl<'r> Writer<'r> {
    fn new(resolve: &'r Resolve) -> Self {
        Self {
            resolve,
            text: String::new(),
        }
    }

    fn push(&mut self, text: &str) {
        if !self.is_full() {
            self.text.push_str(text);
        }
    }

    fn is_full(&self) -> bool {
        self.text.len() > MAX_TEXT
    }

    fn finish(self) -> String {
        if self.is_full() {
            self.text.chars().take(MAX_TEXT).chain(['…']).collect()
        } else {
            self.text
        }
    }

    fn members<'a>(&mut self, members: impl Iterator<Item = (&'a str, Option<(&'a str, &'a Type)>)>) {
        for (index, (name, ty)) in members.enumerate() {
            self.push(if index > 0 { ", " } else { "" });
            self.push(name);
            if let Some((before, ty)) = ty {
                self.push(before);
                self.ty(ty);
                self.push(if before == "(" { ")" } else { "" });
            }
        }
    }

    fn ty(&mut self, ty: &Type) {
        // A type may be a tree that shares its branches, and far larger than its encoding.
        if self.is_full() {
            return;
        }
        let word = match ty {
            Type::Bool => "bool",
            Type::U8 => "u8",
            Type::U16 => "u16",
            Type::U32 => "u32",
            Type::U64 => "u64",
            Type::S8 => "s8",
            Type::S16 => "s16",
            Type::S32 => "s32",
            Type::S64 => "s64",
            Type::F32 => "f32",
            Type::F64 => "f64",
            Type::Char => "char",
            Type::String => "string",
            Type::ErrorContext => "error-context",
            Type::Id(id) => {
                let resolve = self.resolve;
                match resolve.types.get(*id) {
                    Some(def) => match &def.name {
                        Some(name) => self.push(name),
                        None => self.kind(&def.kind),
                    },
                    None => self.push("_"),
                }
                return;
            }
        };
        self.push(word);
    }

    fn kind(&mut self, kind: &TypeDefKind) {
        match kind {
            TypeDefKind::Type(ty) => self.ty(ty),
            TypeDefKind::Handle(Handle::Own(id)) => self.ty(&Type::Id(*id)),
            TypeDefKind::Handle(Handle::Borrow(id)) => self.generic("borrow", [Some(&Type::Id(*id)), None]),
            TypeDefKind::Option(ty) => self.generic("option", [Some(ty), None]),
            TypeDefKind::List(ty) => self.generic("list", [Some(ty), None]),
            TypeDefKind::Map(key, value) => self.generic("map", [Some(key), Some(value)]),
            TypeDefKind::Future(ty) => self.generic("future", [ty.as_ref(), None]),
            TypeDefKind::Stream(ty) => self.generic("stream", [ty.as_ref(), None]),
            TypeDefKind::Result(result) => match (&result.ok, &result.err) {
                (None, Some(err)) => {
                    self.push("result<_, ");
                    self.ty(err);
                    self.push(">");
                }
                (ok, err) => self.generic("result", [ok.as_ref(), err.as_ref()]),
            },
            TypeDefKind::FixedLengthList(ty, length) => {
                self.push("list<");
                self.ty(ty);
                self.push(&format!(", {length}>"));
            }
            TypeDefKind::Tuple(tuple) => {
                self.push("tuple<");
                for (index, ty) in tuple.types.iter().enumerate() {
                    self.push(if index > 0 { ", " } else { "" });
                    self.ty(ty);
                }
                self.push(">");
            }
            TypeDefKind::Record(_)
            | TypeDefKind::Variant(_)
            | TypeDefKind::Enum(_)
            | TypeDefKind::Flags(_)
            | TypeDefKind::Resource
            | TypeDefKind::Unknown => self.push(kind.as_str()),
        }
    }

    fn generic(&mut self, word: &str, arguments: [Option<&Type>; 2]) {
        self.push(word);
        let mut before = "<";
        for ty in arguments.into_iter().flatten() {
            self.push(before);
            self.ty(ty);
            before = ", ";
        }
        self.push(if before == "<" { "" } else { ">" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIT: &str = "package a:b;
interface c {
  resource r {
    constructor(size: u32);
    read: func(len: u64) -> result<list<u8>, option<string>>;
    make: static func(other: borrow<r>) -> r;
  }
  type time = u64;
  record point { x: s32, at: time }
  variant shape { none, dot(point) }
  flags bits { a, b }
  enum color { red, green }
  f: func(a: tuple<shape, bits>, b: color) -> result<_, list<u8, 4>>;
  g: async func(a: stream<u8>, b: future) -> result;
}";

    #[test]
    fn signatures_and_definitions_are_wit() {
        let mut resolve = Resolve::default();
        resolve.push_source("c.wit", WIT).unwrap();
        let (_, interface) = resolve.interfaces.iter().next().unwrap();
        let of = |name: &str| signature(&resolve, &interface.functions[name]);
        assert_eq!(of("[constructor]r"), "constructor(size: u32)");
        assert_eq!(
            of("[method]r.read"),
            "read: func(len: u64) -> result<list<u8>, option<string>>"
        );
        assert_eq!(of("[static]r.make"), "make: static func(other: borrow<r>) -> r");
        assert_eq!(
            of("f"),
            "f: func(a: tuple<shape, bits>, b: color) -> result<_, list<u8, 4>>"
        );
        assert_eq!(of("g"), "g: async func(a: stream<u8>, b: future) -> result");
        let define = |name: &str| definition(&resolve, interface.types[name]);
        assert_eq!(define("point"), "record point { x: s32, at: time }");
        assert_eq!(define("shape"), "variant shape { none, dot(point) }");
        assert_eq!(define("bits"), "flags bits { a, b }");
        assert_eq!(define("color"), "enum color { red, green }");
        assert_eq!(define("time"), "type time = u64");
        assert_eq!(define("r"), "resource r");
        assert_eq!(function_name("[method]r.read"), "r.read");
        assert_eq!(function_name("f"), "f");
    }

    #[test]
    fn types_that_double_at_every_level_are_cut() {
        let mut wit = "package a:b;\ninterface c {\n  f: func(a: ".to_owned();
        let mut ty = "u8".to_owned();
        for _ in 0..12 {
            ty = format!("tuple<{ty}, {ty}>");
        }
        wit += &ty;
        wit += ");\n}";
        let mut resolve = Resolve::default();
        resolve.push_source("c.wit", &wit).unwrap();
        let (_, interface) = resolve.interfaces.iter().next().unwrap();
        let text = signature(&resolve, &interface.functions["f"]);
        assert_eq!(text.chars().count(), MAX_TEXT + 1);
        assert!(text.ends_with('…'));
    }
}
