//! Where settings come from: file, environment and flags, laid over each other into one tree.
//!
//! Every node of the tree knows its place, so that whatever is wrong with a value can be pointed at: a line of the
//! file, a variable or a flag. Later layers replace what they name: flag, environment, file, default. What the
//! values mean is not known here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What the name of every variable that sets a key starts with.
pub const PREFIX: &str = "WELLHEAD__";

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it is the default.
    Default,
    /// In the file.
    Line {
        /// Its path, as given.
        file: Arc<str>,
        /// Counted from 1.
        line: usize,
    },
    /// In the environment variable of this name.
    Variable(String),
    /// By the flag of this name.
    Flag(&'static str),
}

impl Place {
    /// Which layer it is: of two, the higher one counts.
    pub fn layer(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::Line { .. } => 1,
            Self::Variable(_) => 2,
            Self::Flag(_) => 3,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => Ok(()),
            Self::Line { file, line } => write!(f, "{file}:{line}: "),
            Self::Variable(name) => write!(f, "environment variable {name}: "),
            Self::Flag(name) => write!(f, "{name}: "),
        }
    }
}

/// What is wrong with a configuration, a users file or a file that one of them names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where.
    pub place: Place,
    /// The key, with its sections and list indexes, such as `listener.0.bind`; empty if it is the whole file.
    pub key: String,
    /// What.
    pub problem: Problem,
}

/// What is wrong with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The text is not TOML.
    Syntax(String),
    /// There is no such key; these there are.
    Unknown(String),
    /// The value is not one of this key's.
    Expected {
        /// What it takes.
        expected: String,
        /// What stands there; never a secret.
        found: String,
    },
    /// A key that has no default is not given; what to do.
    Missing(&'static str),
    /// The value is well formed, but can't be used; why.
    Refused(String),
    /// A file can't be read or written; which, and why.
    File(String),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        match &self.problem {
            Problem::Syntax(message) => write!(f, "not TOML: {message}"),
            Problem::Unknown(known) => write!(f, "unknown key; there are {known}"),
            Problem::Expected { expected, found } => write!(f, "expected {expected}, found {found}"),
            Problem::Missing(what_to_do) => write!(f, "missing. {what_to_do}"),
            Problem::Refused(why) => f.write_str(why),
            Problem::File(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ConfigError {}

/// A value given on the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// Its name, such as `--shards`.
    pub name: &'static str,
    /// The key it sets, such as `server.shards`.
    pub key: &'static str,
    /// The value.
    pub value: String,
}

/// A value and where it was given.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Table(BTreeMap<String, Node>),
    List(Vec<Node>),
    Text(String),
    Integer(i64),
    Boolean(bool),
    /// From where everything is text: the environment, a flag, a default.
    Raw(String),
    /// A type that no key takes; its name.
    Other(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(_) => f.write_str("a table"),
            Self::List(_) => f.write_str("a list"),
            Self::Text(text) | Self::Raw(text) => write!(f, "{text:?}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Boolean(truth) => write!(f, "{truth}"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// One step of a variable's path into the tree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Index(usize),
    Name(String),
}

impl Node {
    /// The tree of a TOML text; `file` is how errors call it.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let source = Source { file: file.into(), text };
        let table = DeTable::parse(text).map_err(|error| ConfigError {
            place: source.place(error.span().map_or(0, |span| span.start)),
            key: String::new(),
            problem: Problem::Syntax(error.message().replace('\n', ", ")),
        })?;
        Ok(Self { place: source.place(0), value: source.table(table.get_ref()) })
    }

    /// An empty tree.
    pub fn empty() -> Self {
        Self { place: Place::Default, value: Value::Table(BTreeMap::new()) }
    }

    /// Lays the variables that start with [`PREFIX`] over the tree, whatever order they come in.
    pub fn lay_environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), ConfigError> {
        let mut given = Vec::new();
        for (name, value) in variables {
            let Some(path) = name.strip_prefix(PREFIX) else { continue };
            let steps = steps(path, "__").ok_or_else(|| ConfigError {
                place: Place::Variable(name.clone()),
                key: String::new(),
                problem: Problem::Refused(format!(
                    "names are {PREFIX}SECTION__KEY, in upper case, and list entries have an index"
                )),
            })?;
            given.push((steps, name, value));
        }
        // Indexes in order, so that a list grows from its end.
        given.sort();
        for (steps, name, value) in given {
            self.set(&steps, Value::Raw(value), Place::Variable(name))?;
        }
        Ok(())
    }

    /// Lays one value over the tree; `key` has its sections and list indexes, with dots between them.
    pub fn lay(&mut self, key: &str, value: &str, place: Place) -> Result<(), ConfigError> {
        let steps = steps(&key.to_ascii_uppercase(), ".").unwrap_or_default();
        self.set(&steps, Value::Raw(value.into()), place)
    }

    /// Whether there is such a node right below this one.
    pub fn has(&self, name: &str) -> bool {
        matches!(&self.value, Value::Table(table) if table.contains_key(name))
    }

    /// The place of a key, or of what stands nearest above it.
    pub fn place_of(&self, key: &str) -> &Place {
        let mut node = self;
        for step in key.split('.') {
            let below = match &node.value {
                Value::Table(table) => table.get(step),
                Value::List(list) => step.parse().ok().and_then(|index: usize| list.get(index)),
                _ => None,
            };
            let Some(below) = below else { break };
            node = below;
        }
        &node.place
    }

    /// Drops all values, secrets among them: what is left are places.
    pub fn forget(&mut self) {
        match &mut self.value {
            Value::Table(table) => table.values_mut().for_each(Self::forget),
            Value::List(list) => list.iter_mut().for_each(Self::forget),
            value => *value = Value::Other("a value"),
        }
    }

    /// The error that the value is not what `expected` says.
    pub fn expected(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        let problem = Problem::Expected { expected: expected.into(), found: self.value.to_string() };
        ConfigError { place: self.place.clone(), key: key.into(), problem }
    }

    fn set(&mut self, steps: &[Step], value: Value, place: Place) -> Result<(), ConfigError> {
        self.descend(steps, value, &place).map_err(|why| {
            let key: Vec<_> = steps.iter().map(Step::to_string).collect();
            ConfigError { place, key: key.join("."), problem: Problem::Refused(why) }
        })
    }

    /// Replaces what is in the way: a wrong kind of value is found when the key is read.
    fn descend(&mut self, steps: &[Step], value: Value, place: &Place) -> Result<(), String> {
        let Some((step, rest)) = steps.split_first() else {
            *self = Self { place: place.clone(), value };
            return Ok(());
        };
        // Neither a table nor a list yet: the next step decides.
        let fresh = || Self { place: place.clone(), value: Value::Other("nothing") };
        match (&mut self.value, step) {
            (Value::Table(table), _) => {
                table.entry(step.to_string()).or_insert_with(fresh).descend(rest, value, place)
            }
            (Value::List(list), &Step::Index(index)) => {
                if index > list.len() {
                    return Err(format!("the next index of this list is {}", list.len()));
                }
                if index == list.len() {
                    list.push(fresh());
                }
                list[index].descend(rest, value, place)
            }
            (_, Step::Index(_)) => {
                *self = Self { place: place.clone(), value: Value::List(Vec::new()) };
                self.descend(steps, value, place)
            }
            (_, Step::Name(_)) => {
                *self = Self { place: place.clone(), value: Value::Table(BTreeMap::new()) };
                self.descend(steps, value, place)
            }
        }
    }
}

/// The steps of a path in upper case; `None` if it has none, or an empty one.
fn steps(path: &str, separator: &str) -> Option<Vec<Step>> {
    if path != path.to_ascii_uppercase() {
        return None;
    }
    path.split(separator)
        .map(|step| match step.parse() {
            _ if step.is_empty() => None,
            Ok(index) => Some(Step::Index(index)),
            Err(_) => Some(Step::Name(step.to_ascii_lowercase())),
        })
        .collect()
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

struct Source<'a> {
    file: Arc<str>,
    text: &'a str,
}

impl Source<'_> {
    fn place(&self, at: usize) -> Place {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        Place::Line { file: Arc::clone(&self.file), line }
    }

    fn table(&self, table: &DeTable<'_>) -> Value {
        let node = |(name, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            let mut node = self.node(value);
            // A header's table starts where its first key does, or nowhere.
            node.place = self.place(name.span().start);
            (String::from(name.get_ref() as &str), node)
        };
        Value::Table(table.iter().map(node).collect())
    }

    fn node(&self, value: &Spanned<DeValue<'_>>) -> Node {
        let converted = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Value::Other("a number out of range"), Value::Integer),
            DeValue::Float(_) => Value::Other("a number with a fraction"),
            DeValue::Boolean(truth) => Value::Boolean(*truth),
            DeValue::Datetime(_) => Value::Other("a date"),
            DeValue::Array(list) => Value::List(list.iter().map(|node| self.node(node)).collect()),
            DeValue::Table(table) => self.table(table),
        };
        Node { place: self.place(value.span().start), value: converted }
    }
}
