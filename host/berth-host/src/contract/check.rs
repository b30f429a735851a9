//! A component's imports and exports against the offer: every fault, in the component's order.

use wit_parser::{Function, Interface, InterfaceId, Resolve, TypeDefKind, TypeId};

use super::compare::{self, Difference, Pair};
use super::decode::{Component, Item};
use super::fault::{Fault, FaultKind};
use super::name::InterfaceName;
use super::offer::{Offer, Offered};
use super::text::{definition, function_name, signature};
use super::world::{Kind, classify};
use crate::config::nearest;
use crate::grants::{Grants, Missing};
use crate::runtime::plugin::Policy;

/// Functions that are named in a sentence; the others are counted.
const NAMED_FUNCTIONS: usize = 3;

/// Every fault of a component.
pub(super) fn faults(
    offer: &Offer,
    component: &Component,
    wanted: Option<Policy>,
    grants: &Grants,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    let exports: Vec<String> = component.exports.iter().map(|e| e.name.clone()).collect();
    match classify(wanted, &exports) {
        Err(fault) => faults.push(*fault),
        Ok(kind) => faults.extend(export_faults(offer, component, kind)),
    }
    for import in &component.imports {
        faults.extend(import_faults(offer, component, import, grants));
    }
    faults
}

/// What one import lacks.
fn import_faults(offer: &Offer, component: &Component, import: &Item, grants: &Grants) -> Vec<Fault> {
    let name = InterfaceName::parse(&import.name);
    let Some(interface) = import
        .interface
        .and_then(|id| component.resolve.interfaces.get(id))
    else {
        return vec![Fault::of(
            FaultKind::UnknownInterface,
            &import.name,
            format!(
                "it imports \"{}\" outside any interface, which no host gives; import it from an interface of this host's wit/",
                import.name
            ),
        )];
    };
    let offered = offer.import(&name);
    let is_ours = name.package() == "berth:host";
    if offered.is_none() && !is_ours && needs_nothing(&component.resolve, interface) {
        return Vec::new();
    }
    let Some(offered) = offered else {
        return vec![unknown(offer, import, &name)];
    };
    let mut faults: Vec<Fault> = grants
        .missing([import.name.as_str()])
        .iter()
        .map(|missing| not_granted(import, missing))
        .collect();
    faults.extend(member_faults(offer, component, import, interface, offered));
    faults
}

fn not_granted(import: &Item, missing: &Missing) -> Fault {
    Fault {
        grant: missing.capability.map(|c| c.key().to_owned()),
        ..Fault::of(FaultKind::NotGranted, &import.name, missing.to_string())
    }
}

fn unknown(offer: &Offer, import: &Item, name: &InterfaceName) -> Fault {
    let versions = offer.versions(&name.path);
    if !versions.is_empty() {
        let offered = versions.join(" and ");
        let message = format!(
            "it imports \"{}\", but this host offers {offered}; build it for that version",
            import.name
        );
        return Fault {
            host: Some(offered),
            ..Fault::of(FaultKind::UnknownVersion, &import.name, message)
        };
    }
    let near = offer.nearest(name);
    let hint = near.map_or_else(
        || "a component may import WASI 0.2, WASI 0.3 and what `grants` gives".to_owned(),
        |near| format!("did you mean \"{near}\"?"),
    );
    Fault {
        host: near.map(str::to_owned),
        ..Fault::of(
            FaultKind::UnknownInterface,
            &import.name,
            format!(
                "it imports \"{}\", which this host doesn't have; {hint}",
                import.name
            ),
        )
    }
}

/// Whether an interface has only types, which need nobody to provide them.
pub(super) fn needs_nothing(resolve: &Resolve, interface: &Interface) -> bool {
    interface.functions.is_empty() && resources(resolve, interface).next().is_none()
}

fn resources<'r>(resolve: &'r Resolve, interface: &'r Interface) -> impl Iterator<Item = &'r str> {
    interface
        .types
        .iter()
        .filter(|(_, id)| {
            resolve
                .types
                .get(**id)
                .is_some_and(|def| matches!(def.kind, TypeDefKind::Resource))
        })
        .map(|(name, _)| name.as_str())
}

/// The functions and resources of one import that aren't offered, or not like that.
fn member_faults(
    offer: &Offer,
    component: &Component,
    import: &Item,
    interface: &Interface,
    offered: &Offered,
) -> Vec<Fault> {
    let Some(ours) = offer.resolve.interfaces.get(offered.id) else {
        return Vec::new();
    };
    let mut faults = Vec::new();
    let known: Vec<&str> = resources(&offer.resolve, ours).collect();
    for resource in resources(&component.resolve, interface).filter(|r| !known.contains(r)) {
        faults.push(unknown_member(
            import,
            offered,
            &format!("the resource `{resource}`"),
            resource,
            &known,
        ));
    }
    let names: Vec<&str> = ours.functions.keys().map(|n| function_name(n)).collect();
    let mut pairs = Vec::new();
    for (name, function) in &interface.functions {
        match ours.functions.get(name) {
            Some(our) => pairs.push((function, our)),
            None => {
                let name = function_name(name);
                faults.push(unknown_member(
                    import,
                    offered,
                    &format!("`{name}`"),
                    name,
                    &names,
                ));
            }
        }
    }
    let sides = Sides {
        theirs: &component.resolve,
        ours: &offer.resolve,
        interface: &import.name,
        verbs: ["it imports", "this host offers"],
    };
    faults.extend(type_faults(&sides, pairs));
    faults
}

fn unknown_member(import: &Item, offered: &Offered, what: &str, name: &str, known: &[&str]) -> Fault {
    let near = nearest(name, known);
    let hint = match near {
        Some(near) => format!("did you mean `{near}`?"),
        None => "build it for that version".to_owned(),
    };
    let newer = import.name != offered.text;
    let message = match (newer, near) {
        (false, None) => format!(
            "it imports {what} of {}, which this host doesn't have; build it against this host's wit/",
            import.name
        ),
        (false, Some(_)) => format!(
            "it imports {what} of {}, which this host doesn't have; {hint}",
            import.name
        ),
        (true, _) => format!(
            "it imports {what} of {}, which this host's {} doesn't have; {hint}",
            import.name, offered.text
        ),
    };
    Fault {
        functions: vec![name.to_owned()],
        host: near.map(str::to_owned),
        ..Fault::of(FaultKind::UnknownFunction, &import.name, message)
    }
}

/// What the export that makes a component what it is lacks.
fn export_faults(offer: &Offer, component: &Component, kind: Kind) -> Vec<Fault> {
    let wanted = InterfaceName::parse(kind.export());
    let Some((export, theirs)) = component.exports.iter().find_map(|export| {
        let fits = InterfaceName::parse(&export.name).fits(&wanted);
        let interface = component.resolve.interfaces.get(export.interface?)?;
        fits.then_some((export, interface))
    }) else {
        return Vec::new();
    };
    let offered: Option<InterfaceId> = offer.export(&wanted).map(|o| o.id);
    let Some(ours) = offered.and_then(|id| offer.resolve.interfaces.get(id)) else {
        return Vec::new();
    };
    let names: Vec<&str> = theirs.functions.keys().map(|n| function_name(n)).collect();
    let mut faults = Vec::new();
    let mut pairs = Vec::new();
    for (name, our) in &ours.functions {
        match theirs.functions.get(name) {
            Some(function) => pairs.push((function, our)),
            None => {
                let name = function_name(name);
                let called = signature(&offer.resolve, our);
                let hint = nearest(name, &names)
                    .map_or_else(String::new, |near| format!("; it exports `{near}` instead"));
                faults.push(Fault {
                    functions: vec![name.to_owned()],
                    host: Some(called.clone()),
                    ..Fault::of(
                        FaultKind::MissingFunction,
                        &export.name,
                        format!(
                            "it exports {} without `{name}`, which this host calls as `{called}`{hint}",
                            export.name
                        ),
                    )
                });
            }
        }
    }
    let sides = Sides {
        theirs: &component.resolve,
        ours: &offer.resolve,
        interface: &export.name,
        verbs: ["it exports", "this host calls"],
    };
    faults.extend(type_faults(&sides, pairs));
    faults
}

struct Sides<'a> {
    theirs: &'a Resolve,
    ours: &'a Resolve,
    interface: &'a str,
    /// What the component and the host do with the interface.
    verbs: [&'static str; 2],
}

/// Compare functions. A difference in a signature is a fault of its function; one in a named type is told once, with
/// the functions that use the type.
fn type_faults(sides: &Sides<'_>, pairs: Vec<(&Function, &Function)>) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut types: Vec<(Pair, Vec<String>, Vec<String>)> = Vec::new();
    for (theirs, ours) in pairs {
        let name = function_name(&theirs.name);
        let found = compare::functions((sides.theirs, theirs), (sides.ours, ours));
        let (inside, direct): (Vec<Difference>, Vec<Difference>) =
            found.into_iter().partition(|d| d.within.is_some());
        if !direct.is_empty() {
            let direct = direct.into_iter().map(|d| d.what).collect();
            faults.push(signature_fault(sides, theirs, ours, direct));
        }
        for difference in inside {
            let Some(pair) = difference.within else {
                continue;
            };
            let at = types.iter().position(|(p, ..)| *p == pair).unwrap_or(types.len());
            if at == types.len() {
                types.push((pair, Vec::new(), Vec::new()));
            }
            if let Some((_, functions, differences)) = types.get_mut(at) {
                push_new(functions, name.to_owned());
                push_new(differences, difference.what);
            }
        }
    }
    faults.extend(
        types
            .into_iter()
            .map(|(pair, functions, differences)| named_fault(sides, pair, functions, differences)),
    );
    faults
}

fn push_new(list: &mut Vec<String>, item: String) {
    if !list.contains(&item) {
        list.push(item);
    }
}

fn signature_fault(sides: &Sides<'_>, theirs: &Function, ours: &Function, differences: Vec<String>) -> Fault {
    let name = function_name(&theirs.name);
    let (component, host) = (signature(sides.theirs, theirs), signature(sides.ours, ours));
    let [their_verb, our_verb] = sides.verbs;
    let interface = sides.interface;
    let message = if component == host {
        format!(
            "{their_verb} `{name}` of {interface} as `{component}` like this host, but {}; build it against this host's wit/",
            differences.join(", ")
        )
    } else {
        format!(
            "{their_verb} `{name}` of {interface} as `{component}`, but {our_verb} `{host}`; build it against this host's wit/"
        )
    };
    Fault {
        functions: vec![name.to_owned()],
        component: Some(component),
        host: Some(host),
        differences,
        ..Fault::of(FaultKind::WrongType, interface, message)
    }
}

fn named_fault(sides: &Sides<'_>, pair: Pair, functions: Vec<String>, differences: Vec<String>) -> Fault {
    let (component, host) = (
        definition(sides.theirs, pair.theirs),
        definition(sides.ours, pair.ours),
    );
    let [their_verb, our_verb] = sides.verbs;
    let name = type_text(sides.ours, pair.ours);
    let interface = sides.interface;
    let message = format!(
        "{their_verb} {} of {interface} with `{component}`, but {our_verb} {} with `{host}`: of the component's `{name}`, {}; build it against this host's wit/",
        function_list(&functions),
        if functions.len() == 1 { "it" } else { "them" },
        differences.join(", "),
    );
    Fault {
        functions,
        component: Some(component),
        host: Some(host),
        differences,
        ..Fault::of(FaultKind::WrongType, interface, message)
    }
}

fn type_text(resolve: &Resolve, id: TypeId) -> &str {
    let name = resolve.types.get(id).and_then(|def| def.name.as_deref());
    name.unwrap_or("type")
}

/// `a`, `b` and 7 more.
fn function_list(functions: &[String]) -> String {
    let named: Vec<String> = functions
        .iter()
        .take(NAMED_FUNCTIONS)
        .map(|f| format!("`{f}`"))
        .collect();
    match (functions.len().saturating_sub(NAMED_FUNCTIONS), named.as_slice()) {
        (0, [one]) => one.clone(),
        (0, [first @ .., last]) => format!("{} and {last}", first.join(", ")),
        (more, _) => format!("{} and {more} more", named.join(", ")),
    }
}
