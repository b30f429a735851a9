//! Where two functions differ. Types are followed through their names: what counts is what wasmtime compares, which
//! is structure. Names of parameters don't count; names of fields, cases, flags and resources do.

use std::collections::HashSet;

use wit_parser::{
    Function, FunctionKind, Handle, Resolve, Tuple, Type, TypeDef, TypeDefKind, TypeId, TypeOwner,
};

use super::name::InterfaceName;
use super::text::{definition, is_method, type_name};

/// One difference between what a component has and what this host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// The named type that it is in, on both sides; the signature itself if none.
    pub(super) within: Option<Pair>,
    /// What differs, as the end of a sentence about the component.
    pub(super) what: String,
}

/// Two named types that should be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    /// The component's.
    pub(super) theirs: TypeId,
    /// The host's.
    pub(super) ours: TypeId,
}

/// Compares functions of a component with functions of this host.
pub(super) struct Comparison<'r> {
    theirs: &'r Resolve,
    ours: &'r Resolve,
    /// Pairs that were compared for this function: types share their parts.
    seen: HashSet<Pair>,
    found: Vec<Difference>,
}

/// Every difference between two functions.
pub(super) fn functions(
    (theirs, their_function): (&Resolve, &Function),
    (ours, our_function): (&Resolve, &Function),
) -> Vec<Difference> {
    let mut comparison = Comparison {
        theirs,
        ours,
        seen: HashSet::new(),
        found: Vec::new(),
    };
    comparison.function(their_function, our_function);
    comparison.found
}

/// A type with all its names for the same thing taken away.
#[derive(Clone, Copy)]
enum Bare<'r> {
    Primitive(Type),
    Defined(TypeId, &'r TypeDef),
}

fn bare<'r>(resolve: &'r Resolve, ty: &Type) -> Bare<'r> {
    let mut ty = *ty;
    loop {
        let Type::Id(id) = ty else {
            return Bare::Primitive(ty);
        };
        match resolve.types.get(id) {
            Some(TypeDef {
                kind: TypeDefKind::Type(aliased),
                ..
            }) => ty = *aliased,
            Some(def) => return Bare::Defined(id, def),
            // Not reachable: the types of a `Resolve` are in it.
            None => return Bare::Primitive(ty),
        }
    }
}

impl Comparison<'_> {
    fn function(&mut self, theirs: &Function, ours: &Function) {
        let is_async = |f: &Function| {
            matches!(
                f.kind,
                FunctionKind::AsyncFreestanding | FunctionKind::AsyncMethod(_) | FunctionKind::AsyncStatic(_)
            )
        };
        match (is_async(theirs), is_async(ours)) {
            (true, false) => self.note(None, "it is `async` in the component".to_owned()),
            (false, true) => self.note(None, "it is not `async` in the component".to_owned()),
            _ => {}
        }
        let receiver = |f: &Function| usize::from(is_method(&f.kind));
        let given = |f: &Function| f.params.len().saturating_sub(receiver(f));
        if given(theirs) != given(ours) {
            self.note(
                None,
                format!("it has {}, not {}", parameters(given(theirs)), given(ours)),
            );
        }
        for (index, (their, our)) in theirs.params.iter().zip(&ours.params).enumerate() {
            let what = if index < receiver(ours) {
                "its receiver".to_owned()
            } else {
                format!("its parameter `{}`", our.name)
            };
            self.ty(&their.ty, &our.ty, None, &what);
        }
        self.optional(theirs.result.as_ref(), ours.result.as_ref(), None, "its result");
    }

    fn note(&mut self, within: Option<Pair>, what: String) {
        let difference = Difference { within, what };
        if !self.found.contains(&difference) {
            self.found.push(difference);
        }
    }

    /// Compare two types that are used at the same place, `what`, inside `within`.
    fn ty(&mut self, theirs: &Type, ours: &Type, within: Option<Pair>, what: &str) {
        match (bare(self.theirs, theirs), bare(self.ours, ours)) {
            (Bare::Primitive(a), Bare::Primitive(b)) if a == b => {}
            (Bare::Defined(a, their_def), Bare::Defined(b, our_def)) => {
                let pair = Pair { theirs: a, ours: b };
                if !self.seen.insert(pair) {
                    return;
                }
                if !self.defined((a, their_def), (b, our_def), within, what) {
                    self.other(theirs, ours, within, what);
                }
            }
            _ => self.other(theirs, ours, within, what),
        }
    }

    fn other(&mut self, theirs: &Type, ours: &Type, within: Option<Pair>, what: &str) {
        let (their_name, our_name) = (type_name(self.theirs, theirs), type_name(self.ours, ours));
        let text = if their_name != our_name {
            format!("{what} is `{their_name}`, not `{our_name}`")
        } else if let (Bare::Defined(a, their_def), Bare::Defined(b, our_def)) =
            (bare(self.theirs, theirs), bare(self.ours, ours))
            && their_def.kind.as_str() != our_def.kind.as_str()
        {
            let (theirs, ours) = (definition(self.theirs, a), definition(self.ours, b));
            format!("{what} is `{theirs}`, not `{ours}`")
        } else {
            format!("{what} is another `{our_name}`")
        };
        self.note(within, text);
    }

    fn optional(&mut self, theirs: Option<&Type>, ours: Option<&Type>, within: Option<Pair>, what: &str) {
        match (theirs, ours) {
            (Some(theirs), Some(ours)) => self.ty(theirs, ours, within, what),
            (None, None) => {}
            (Some(theirs), None) => {
                let name = type_name(self.theirs, theirs);
                self.note(within, format!("{what} is `{name}`, not nothing"));
            }
            (None, Some(ours)) => {
                let name = type_name(self.ours, ours);
                self.note(within, format!("{what} is nothing, not `{name}`"));
            }
        }
    }

    /// Compare two definitions; false if they are of different kinds altogether.
    fn defined(
        &mut self,
        (a, theirs): (TypeId, &TypeDef),
        (b, ours): (TypeId, &TypeDef),
        within: Option<Pair>,
        what: &str,
    ) -> bool {
        // What a named type holds is told as its own difference, not as one of its user.
        let named = Some(Pair { theirs: a, ours: b });
        match (&theirs.kind, &ours.kind) {
            (TypeDefKind::Record(theirs), TypeDefKind::Record(ours)) => {
                let their_fields: Vec<_> = theirs
                    .fields
                    .iter()
                    .map(|f| (f.name.as_str(), Some(&f.ty)))
                    .collect();
                let our_fields: Vec<_> = ours
                    .fields
                    .iter()
                    .map(|f| (f.name.as_str(), Some(&f.ty)))
                    .collect();
                self.members("field", &their_fields, &our_fields, named);
            }
            (TypeDefKind::Variant(theirs), TypeDefKind::Variant(ours)) => {
                let their_cases: Vec<_> = theirs
                    .cases
                    .iter()
                    .map(|c| (c.name.as_str(), c.ty.as_ref()))
                    .collect();
                let our_cases: Vec<_> = ours
                    .cases
                    .iter()
                    .map(|c| (c.name.as_str(), c.ty.as_ref()))
                    .collect();
                self.members("case", &their_cases, &our_cases, named);
            }
            (TypeDefKind::Enum(theirs), TypeDefKind::Enum(ours)) => {
                let theirs: Vec<_> = theirs.cases.iter().map(|c| (c.name.as_str(), None)).collect();
                let ours: Vec<_> = ours.cases.iter().map(|c| (c.name.as_str(), None)).collect();
                self.members("case", &theirs, &ours, named);
            }
            (TypeDefKind::Flags(theirs), TypeDefKind::Flags(ours)) => {
                let theirs: Vec<_> = theirs.flags.iter().map(|f| (f.name.as_str(), None)).collect();
                let ours: Vec<_> = ours.flags.iter().map(|f| (f.name.as_str(), None)).collect();
                self.members("flag", &theirs, &ours, named);
            }
            (TypeDefKind::Resource, TypeDefKind::Resource) => {
                return resource(self.theirs, theirs) == resource(self.ours, ours);
            }
            (TypeDefKind::Handle(Handle::Own(theirs)), TypeDefKind::Handle(Handle::Own(ours)))
            | (TypeDefKind::Handle(Handle::Borrow(theirs)), TypeDefKind::Handle(Handle::Borrow(ours))) => {
                self.ty(&Type::Id(*theirs), &Type::Id(*ours), within, what);
            }
            (TypeDefKind::Option(theirs), TypeDefKind::Option(ours))
            | (TypeDefKind::List(theirs), TypeDefKind::List(ours)) => self.ty(theirs, ours, within, what),
            (TypeDefKind::FixedLengthList(theirs, n), TypeDefKind::FixedLengthList(ours, m)) if n == m => {
                self.ty(theirs, ours, within, what);
            }
            (TypeDefKind::Map(their_key, their_value), TypeDefKind::Map(our_key, our_value)) => {
                self.ty(their_key, our_key, within, what);
                self.ty(their_value, our_value, within, what);
            }
            (TypeDefKind::Future(theirs), TypeDefKind::Future(ours))
            | (TypeDefKind::Stream(theirs), TypeDefKind::Stream(ours)) => {
                self.optional(theirs.as_ref(), ours.as_ref(), within, what);
            }
            (TypeDefKind::Result(theirs), TypeDefKind::Result(ours)) => {
                self.optional(theirs.ok.as_ref(), ours.ok.as_ref(), within, what);
                let what = if what == "its result" { "its error" } else { what };
                self.optional(theirs.err.as_ref(), ours.err.as_ref(), within, what);
            }
            (TypeDefKind::Tuple(Tuple { types: theirs }), TypeDefKind::Tuple(Tuple { types: ours })) => {
                if theirs.len() != ours.len() {
                    return false;
                }
                for (theirs, ours) in theirs.iter().zip(ours) {
                    self.ty(theirs, ours, within, what);
                }
            }
            _ => return false,
        }
        true
    }

    fn members(
        &mut self,
        word: &str,
        theirs: &[(&str, Option<&Type>)],
        ours: &[(&str, Option<&Type>)],
        within: Option<Pair>,
    ) {
        let find = |list: &[(&str, Option<&Type>)], name: &str| list.iter().position(|(n, _)| *n == name);
        for (name, _) in ours.iter().filter(|(name, _)| find(theirs, name).is_none()) {
            self.note(within, format!("it has no {word} `{name}`"));
        }
        for (name, _) in theirs.iter().filter(|(name, _)| find(ours, name).is_none()) {
            self.note(
                within,
                format!("it has a {word} `{name}`, which this host's hasn't"),
            );
        }
        let common = |list: &[(&str, Option<&Type>)], other: &[(&str, Option<&Type>)]| -> Vec<String> {
            list.iter()
                .filter(|(name, _)| find(other, name).is_some())
                .map(|(name, _)| (*name).to_owned())
                .collect()
        };
        if common(theirs, ours) != common(ours, theirs) {
            self.note(within, format!("its {word}s are in another order"));
        }
        for (name, theirs) in theirs {
            let Some((_, ours)) = ours.iter().find(|(n, _)| n == name) else {
                continue;
            };
            self.optional(*theirs, *ours, within, &format!("its {word} `{name}`"));
        }
    }
}

fn parameters(n: usize) -> String {
    match n {
        0 => "no parameters".to_owned(),
        1 => "1 parameter".to_owned(),
        n => format!("{n} parameters"),
    }
}

/// What makes a resource this one: its name and its interface, whatever the version.
fn resource(resolve: &Resolve, def: &TypeDef) -> (Option<String>, Option<String>) {
    let interface = match def.owner {
        TypeOwner::Interface(id) => resolve.id_of(id).map(|id| InterfaceName::parse(&id).path),
        TypeOwner::World(_) | TypeOwner::None => None,
    };
    (def.name.clone(), interface)
}
