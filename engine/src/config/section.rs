//! Sections: structs whose fields are keys, declared once with what each is for, its default and its range.
//!
//! From one declaration come the struct, the reader and what `print-config` says, so they can't differ.

use std::collections::BTreeMap;

use super::source::{ConfigError, Node, Place, Problem, Value};

/// A type of value that a key can have.
pub(crate) trait Setting: Sized {
    /// Reads it.
    fn read(node: &Node, key: &str) -> Result<Self, ConfigError>;
    /// Writes it as TOML.
    fn write(&self) -> Written;
    /// What it is where it is not given, if it need not be.
    fn absent() -> Option<Self> {
        None
    }
    /// Whether it is in a range, given in its own spelling.
    fn is_within(&self, _low: &str, _high: &str) -> bool {
        true
    }
}

/// How a value looks in a file.
pub(crate) enum Written {
    Value(String),
    /// Not set.
    Unset,
    /// Set, and secret.
    Secret,
}

/// A key: its name, what it is for, and what it takes.
pub(crate) struct Key {
    pub name: &'static str,
    pub about: &'static [&'static str],
    /// Its default, if it has one.
    pub default: &'static [&'static str],
    /// Its lowest and highest value, if it has such.
    pub range: &'static [&'static str],
}

/// A table of the tree, whose keys are taken out one by one.
pub(crate) struct Section<'a> {
    /// Its key.
    path: String,
    place: &'a Place,
    /// `None` if it is not given: then everything in it has its default.
    table: Option<&'a BTreeMap<String, Node>>,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// The whole tree.
    pub fn root(node: &'a Node) -> Result<Self, ConfigError> {
        Self::new(String::new(), node)
    }

    fn new(path: String, node: &'a Node) -> Result<Self, ConfigError> {
        match &node.value {
            Value::Table(table) => {
                Ok(Self { path, place: &node.place, table: Some(table), known: Vec::new() })
            }
            _ => Err(node.expected(&path, "a table")),
        }
    }

    /// The section of that name, given or not.
    pub fn section(&mut self, name: &'static str) -> Result<Section<'a>, ConfigError> {
        let path = self.key(name);
        match self.entry(name) {
            Some(node) => Section::new(path, node),
            None => Ok(Section { path, place: self.place, table: None, known: Vec::new() }),
        }
    }

    /// The sections of a list of that name.
    pub fn sections(&mut self, name: &'static str) -> Result<Vec<Section<'a>>, ConfigError> {
        let path = self.key(name);
        let Some(node) = self.entry(name) else { return Ok(Vec::new()) };
        let Value::List(list) = &node.value else {
            return Err(node.expected(&path, format!("a list of tables: [[{name}]]")));
        };
        let section = |(index, node)| Section::new(format!("{path}.{index}"), node);
        list.iter().enumerate().map(section).collect()
    }

    /// The value of a key.
    pub fn take<T: Setting>(&mut self, key: &Key) -> Result<T, ConfigError> {
        let path = self.key(key.name);
        let default;
        let node = match (self.entry(key.name), key.default) {
            (Some(node), _) => node,
            (None, [text, ..]) => {
                default = Node { place: Place::Default, value: Value::Raw((*text).into()) };
                &default
            }
            (None, []) => {
                return T::absent().ok_or_else(|| ConfigError {
                    place: self.place.clone(),
                    key: path,
                    problem: Problem::Missing("It has no default: give one"),
                });
            }
        };
        let value = T::read(node, &path)?;
        match key.range {
            [low, high] if !value.is_within(low, high) => {
                Err(node.expected(&path, format!("{low} to {high}")))
            }
            _ => Ok(value),
        }
    }

    /// Ends the section.
    ///
    /// # Errors
    /// If there is a key in it that nobody has taken.
    pub fn finish(self) -> Result<(), ConfigError> {
        let unknown = self.table.into_iter().flatten();
        match unknown.into_iter().find(|(name, _)| !self.known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, node)) => Err(ConfigError {
                place: node.place.clone(),
                key: self.key(name),
                problem: Problem::Unknown(self.known.join(", ")),
            }),
        }
    }

    fn entry(&mut self, name: &'static str) -> Option<&'a Node> {
        self.known.push(name);
        self.table?.get(name)
    }

    fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }
}

/// Declares sections: structs whose fields are keys. A field's documentation is the key's; then come its type, its
/// default and its range, each as it is spelled in the environment.
macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        $name:ident {$(
            $(#[doc = $why:literal])+
            $field:ident: $type:ty $(= $default:literal)? $([$low:literal to $high:literal])?,
        )*}
    )*) => {$(
        $(#[doc = $about])+
        #[derive(Clone, Debug)]
        pub struct $name {$(
            $(#[doc = $why])+
            pub $field: $type,
        )*}

        impl $name {
            pub(crate) fn read(mut given: $crate::config::section::Section<'_>)
                -> Result<Self, $crate::config::ConfigError>
            {
                let read = Self {$(
                    $field: given.take(&$crate::config::section::sections!(
                        @key $field [$($why)+] [$($default)?] [$($low $high)?]
                    ))?,
                )*};
                given.finish()?;
                Ok(read)
            }

            /// What it is for, and its keys and values in the order of the declaration.
            pub(crate) fn entries(&self) -> $crate::config::section::Entries {
                $crate::config::section::Entries {
                    about: &[$($about),+],
                    keys: vec![$((
                        $crate::config::section::sections!(
                            @key $field [$($why)+] [$($default)?] [$($low $high)?]
                        ),
                        $crate::config::section::Setting::write(&self.$field),
                    )),*],
                }
            }
        }
    )*};
    (@key $field:ident [$($why:literal)+] [$($default:literal)?] [$($low:literal $high:literal)?]) => {
        $crate::config::section::Key {
            name: stringify!($field),
            about: &[$($why),+],
            default: &[$($default)?],
            range: &[$($low, $high)?],
        }
    };
}
pub(crate) use sections;

/// A section as it is printed.
pub(crate) struct Entries {
    pub about: &'static [&'static str],
    pub keys: Vec<(Key, Written)>,
}

impl Entries {
    /// Appends the section as TOML, every key with a comment, below `header`.
    pub fn print(&self, header: &str, out: &mut String) {
        if !out.is_empty() {
            out.push('\n');
        }
        comment(self.about, out);
        out.push_str(&format!("{header}\n"));
        for (key, value) in &self.keys {
            comment(key.about, out);
            if let [default] = key.default {
                let range = match key.range {
                    [low, high] => format!("; {low} to {high}"),
                    _ => String::new(),
                };
                out.push_str(&format!("# Default: {default}{range}.\n"));
            }
            let name = key.name;
            out.push_str(&match value {
                Written::Value(value) => format!("{name} = {value}\n"),
                Written::Unset => format!("# {name} is not set\n"),
                Written::Secret => format!("# {name} is set, and not shown\n"),
            });
        }
    }

    /// Appends the keys that are set, without comments, below `header`.
    pub fn append(&self, header: &str, out: &mut String) {
        out.push_str(&format!("{header}\n"));
        for (key, value) in &self.keys {
            if let Written::Value(value) = value {
                out.push_str(&format!("{} = {value}\n", key.name));
            }
        }
    }
}

fn comment(lines: &[&str], out: &mut String) {
    for line in lines {
        out.push_str(&format!("# {}\n", line.trim()));
    }
}
