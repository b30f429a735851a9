//! Walking a parsed TOML document: typed access with positions, environment overrides and unknown keys.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ManifestFault;
use super::environment::Environment;
use super::values::Parsed;

/// A raw value, with no position.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Integer(String),
    Boolean(bool),
    /// A float or a date, in its TOML spelling.
    Other(String),
    Array,
    Table,
}

impl Value {
    fn of(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) if number.radix() == 10 => {
                Self::Integer(number.as_str().replace('_', ""))
            }
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).map_or_else(
                |_| Self::Other(number.as_str().to_owned()),
                |n| Self::Integer(n.to_string()),
            ),
            DeValue::Boolean(value) => Self::Boolean(*value),
            DeValue::Float(number) => Self::Other(number.as_str().to_owned()),
            DeValue::Datetime(time) => Self::Other(time.to_string()),
            DeValue::Array(_) => Self::Array,
            DeValue::Table(_) => Self::Table,
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Boolean(_) => "a boolean",
            Self::Other(_) => "a float or a date",
            Self::Array => "an array",
            Self::Table => "a table",
        }
    }
}

/// The file, the environment, and the faults found so far.
pub(super) struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    env: &'a Environment,
    /// The variables that stand for keys.
    variables: RefCell<Vec<String>>,
    faults: RefCell<Vec<(usize, ManifestFault)>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str, env: &'a Environment) -> Self {
        Self {
            file,
            text,
            env,
            variables: RefCell::default(),
            faults: RefCell::new(Vec::new()),
        }
    }

    pub(super) fn file(&self) -> &Path {
        self.file
    }

    /// A path of the manifest, relative to its folder.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }

    /// Note a fault. `at` is a byte offset into the text.
    pub(super) fn fault(&self, at: Option<usize>, key: &str, message: String) {
        // A file of nothing but faults is no manifest; its first ones say so.
        if self.faults.borrow().len() >= MAX_FAULTS {
            return;
        }
        let position = at.map(|at| position(self.text, at));
        let fault = ManifestFault {
            file: self.file.to_owned(),
            line: position.map(|p| p.0),
            column: position.map(|p| p.1),
            key: key.to_owned(),
            message,
        };
        self.faults.borrow_mut().push((at.unwrap_or(usize::MAX), fault));
    }

    /// Report the variables that look like keys of a section but are none. Called when every key was asked for.
    pub(super) fn check_environment(&self) {
        let known = self.variables.borrow();
        for name in self.env.names() {
            let Some(section) = section_of(name) else {
                continue;
            };
            let of_section: Vec<&str> = known
                .iter()
                .map(String::as_str)
                .filter(|k| section_of(k) == Some(section))
                .collect();
            if of_section.is_empty() || of_section.contains(&name) {
                continue;
            }
            let keys: Vec<&str> = of_section.iter().map(|k| key_of(k)).collect();
            let hint = match nearest(key_of(name), &keys) {
                Some(near) => format!("did you mean BERTH_{section}_{near}?"),
                None => format!("there is {}", of_section.join(", ")),
            };
            let key = format!("the environment variable {name}");
            self.fault(None, &key, format!("stands for no key; {hint}"));
        }
    }

    /// Every fault, in the file's order.
    pub(super) fn into_faults(self) -> Vec<ManifestFault> {
        let mut faults = self.faults.into_inner();
        faults.sort_by_key(|(at, _)| *at);
        faults.into_iter().map(|(_, fault)| fault).collect()
    }
}

/// Faults that are found in one run.
const MAX_FAULTS: usize = 100;

/// Line and column of a byte offset, from 1.
pub(super) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

/// Where a key is in a text, as a byte offset; or the last of the tables on the way to it that is there.
pub(super) fn place_of(text: &str, key: &[&str]) -> Option<usize> {
    let (document, _) = DeTable::parse_recoverable(text);
    let mut table = document.get_ref();
    let mut found = None;
    for part in key {
        let Some((name, value)) = table.get_key_value(*part) else {
            break;
        };
        found = Some(name.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    found
}

/// `HTTP` of `BERTH_HTTP_LISTEN`.
fn section_of(variable: &str) -> Option<&str> {
    Some(variable.strip_prefix("BERTH_")?.split_once('_')?.0)
}

/// `LISTEN` of `BERTH_HTTP_LISTEN`.
fn key_of(variable: &str) -> &str {
    variable.splitn(3, '_').nth(2).unwrap_or(variable)
}

/// One table of the document. A table that isn't there reads as an empty one.
pub(super) struct Section<'r, 't> {
    reader: &'r Reader<'r>,
    table: Option<&'t DeTable<'t>>,
    path: String,
    at: Option<usize>,
    /// Keys that were asked for; the others are unknown.
    known: RefCell<Vec<String>>,
    /// Whether environment variables stand for its keys.
    env: bool,
}

impl<'r, 't> Section<'r, 't> {
    pub(super) fn root(reader: &'r Reader<'r>, table: &'t DeTable<'t>) -> Self {
        Self {
            reader,
            table: Some(table),
            path: String::new(),
            at: None,
            known: RefCell::default(),
            env: false,
        }
    }

    /// Its dotted path.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Where it begins.
    pub(super) fn at(&self) -> Option<usize> {
        self.at
    }

    /// Where a key's value is.
    pub(super) fn at_of(&self, key: &str) -> Option<usize> {
        self.table?.get(key).map(|v| v.span().start)
    }

    /// Its keys, each with its place.
    pub(super) fn keys(&self) -> Vec<(String, usize)> {
        let Some(table) = self.table else {
            return Vec::new();
        };
        table
            .iter()
            .map(|(key, _)| (key.get_ref().to_string(), key.span().start))
            .collect()
    }

    /// A table within.
    pub(super) fn section(&self, key: &str) -> Section<'r, 't> {
        let found = self.raw(key);
        let table = match found.map(|v| v.get_ref()) {
            Some(DeValue::Table(table)) => Some(table),
            Some(other) => {
                self.wrong(key, format!("must be a table, not {}", Value::of(other).kind()));
                None
            }
            None => None,
        };
        Section {
            reader: self.reader,
            table,
            path: self.join(key),
            at: found.map(|v| v.span().start),
            known: RefCell::default(),
            env: self.path.is_empty() && key != "plugins",
        }
    }

    /// The tables of an array of tables.
    pub(super) fn tables(&self, key: &str) -> Vec<Section<'r, 't>> {
        let Some(found) = self.raw(key) else {
            return Vec::new();
        };
        let DeValue::Array(array) = found.get_ref() else {
            self.wrong(key, format!("must be an array of tables, written as [[{key}]]"));
            return Vec::new();
        };
        array
            .iter()
            .enumerate()
            .filter_map(|(index, item)| {
                let path = format!("{}[{index}]", self.join(key));
                let DeValue::Table(table) = item.get_ref() else {
                    self.reader
                        .fault(Some(item.span().start), &path, "must be a table".to_owned());
                    return None;
                };
                Some(Section {
                    reader: self.reader,
                    table: Some(table),
                    path,
                    at: Some(item.span().start),
                    known: RefCell::default(),
                    env: false,
                })
            })
            .collect()
    }

    /// A raw value, if it is there.
    pub(super) fn value(&self, key: &str) -> Option<Value> {
        self.raw(key).map(|v| Value::of(v.get_ref()))
    }

    /// A value from the environment or the file.
    pub(super) fn scalar<T>(&self, key: &str, parse: impl Fn(&Value) -> Parsed<T>) -> Option<T> {
        let in_file = self.value(key);
        if self.env {
            let name = format!(
                "BERTH_{}_{}",
                self.path.to_ascii_uppercase(),
                key.to_ascii_uppercase()
            );
            let given = self.reader.env.get(&name);
            let mut variables = self.reader.variables.borrow_mut();
            if !variables.contains(&name) {
                variables.push(name.clone());
            }
            drop(variables);
            if let Some(text) = given {
                return parse(&Value::Text(text.to_owned()))
                    .map_err(|message| {
                        self.reader
                            .fault(None, &format!("the environment variable {name}"), message)
                    })
                    .ok();
            }
        }
        parse(&in_file?).map_err(|message| self.wrong(key, message)).ok()
    }

    /// The same, of a key that must be there. `what` says what to write.
    pub(super) fn required<T>(
        &self,
        key: &str,
        what: &str,
        parse: impl Fn(&Value) -> Parsed<T>,
    ) -> Option<T> {
        if self.raw(key).is_none() {
            if self.table.is_none() && self.at.is_some() {
                // It isn't a table at all, which was said already.
                return None;
            }
            self.reader
                .fault(self.at, &self.join(key), format!("is missing; add {what}"));
            return None;
        }
        self.scalar(key, parse)
    }

    /// A list of values.
    pub(super) fn list<T>(&self, key: &str, parse: impl Fn(&Value) -> Parsed<T>) -> Option<Vec<T>> {
        let found = self.raw(key)?;
        let DeValue::Array(array) = found.get_ref() else {
            self.wrong(
                key,
                format!("must be an array, not {}", Value::of(found.get_ref()).kind()),
            );
            return None;
        };
        let parsed = array.iter().filter_map(|item| {
            parse(&Value::of(item.get_ref()))
                .map_err(|message| {
                    self.reader
                        .fault(Some(item.span().start), &self.join(key), message)
                })
                .ok()
        });
        let parsed: Vec<T> = parsed.collect();
        (parsed.len() == array.len()).then_some(parsed)
    }

    /// Report the keys that nobody asked for.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        for (key, at) in self.keys() {
            if known.contains(&key.as_str()) {
                continue;
            }
            let hint = match nearest(&key, &known) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.reader.fault(
                Some(at),
                &self.join(&key),
                format!("there is no such key; {hint}"),
            );
        }
    }

    fn raw(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        let mut known = self.known.borrow_mut();
        if !known.iter().any(|k| k == key) {
            known.push(key.to_owned());
        }
        self.table?.get(key)
    }

    fn wrong(&self, key: &str, message: String) {
        self.reader.fault(self.at_of(key), &self.join(key), message);
    }

    fn join(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

/// The known word that was probably meant, if one is near enough.
pub(crate) fn nearest<'k>(given: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|k| {
            (
                strsim::damerau_levenshtein(&given.to_lowercase(), &k.to_lowercase()),
                *k,
            )
        })
        .min()
        .filter(|(distance, k)| *distance <= 1 + k.len() / 4)
        .map(|(_, k)| k)
}
