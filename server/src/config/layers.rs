//! Where each value comes from: flag > environment > drop-ins > file > default.
//!
//! Reads TOML text and variables into one list of settings, keeping for each the place it came
//! from, so that every complaint can say where to look. Pure: the caller reads files. Not here:
//! what a value means (`config`).

use std::fmt;
use std::path::{Path, PathBuf};

use super::keys::{CONFIG_VARIABLE, KEYS, Key, Kind, PREFIX};
use super::policies;
use super::registry::NotADatabase;
use crate::policy::Policies;

/// A value in the shape that TOML gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string; also a number where [`Kind::TextOrNumber`] allows one.
    Text(String),
    /// A whole number.
    Number(i64),
    /// A boolean.
    Switch(bool),
    /// A list of strings.
    List(Vec<String>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let toml = match self {
            Self::Text(text) => toml_edit::Value::from(text.as_str()),
            Self::Number(number) => toml_edit::Value::from(*number),
            Self::Switch(on) => toml_edit::Value::from(*on),
            Self::List(items) => toml_edit::Value::Array(items.iter().map(String::as_str).collect()),
        };
        write!(f, "{toml}")
    }
}

/// Where a value was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere.
    Default,
    /// In a file.
    File {
        /// Which.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
    },
    /// In an environment variable.
    Environment(String),
    /// On the command line.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {what}")]
pub struct Problem {
    /// The place.
    pub at: Source,
    /// The complaint.
    pub what: Complaint,
}

/// What can be wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Complaint {
    /// The text is not TOML at all.
    #[error("{0}")]
    Syntax(String),
    /// No such section.
    #[error("unknown section [{name}]{}", did_you_mean(.suggestion.as_deref()))]
    UnknownSection {
        /// What was written.
        name: String,
        /// What was probably meant.
        suggestion: Option<String>,
    },
    /// No such key in its section.
    #[error("unknown key \"{name}\" in [{section}]{}", did_you_mean(.suggestion.as_deref()))]
    UnknownKey {
        /// Where it was written.
        section: String,
        /// What was written.
        name: String,
        /// What was probably meant.
        suggestion: Option<String>,
    },
    /// A key outside of any section.
    #[error("\"{0}\" is a section; write [{0}] and its keys below")]
    NotASection(String),
    /// A variable with our prefix that sets nothing.
    #[error("no such setting{}", did_you_mean(.suggestion.as_deref()))]
    UnknownVariable {
        /// What was probably meant.
        suggestion: Option<String>,
    },
    /// The wrong TOML type.
    #[error("{section}.{name} must be {expected}, not {found}")]
    WrongType {
        /// The section.
        section: &'static str,
        /// The key.
        name: &'static str,
        /// What to write.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// The right type, but no meaning.
    #[error("{section}.{name} = {value} is not {expected}")]
    Meaningless {
        /// The section.
        section: &'static str,
        /// The key.
        name: &'static str,
        /// What was found.
        value: Value,
        /// What to write.
        expected: &'static str,
    },
    /// The right type, but no meaning; the value may be a secret by mistake and is not told.
    #[error("{section}.{name}: {error}")]
    Secret {
        /// The section.
        section: &'static str,
        /// The key.
        name: &'static str,
        /// What is wrong.
        error: NotADatabase,
    },
    /// A group or policy that says nothing that makes sense.
    #[error("{section}.{name} is not {expected}")]
    BadPolicy {
        /// `groups`, `policy` or `policy.NAME`.
        section: String,
        /// The key.
        name: String,
        /// What to write.
        expected: &'static str,
    },
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |word| format!("; did you mean \"{word}\"?"))
}

/// Every setting with its value and where it came from, in the order of [`KEYS`].
#[derive(Clone, Debug)]
pub struct Layers {
    settings: Vec<(Value, Source)>,
    policies: Policies,
}

impl Layers {
    /// What holds when nobody says anything.
    #[expect(clippy::missing_panics_doc, reason = "the defaults are constants that a test parses")]
    pub fn defaults() -> Self {
        let settings = KEYS.iter().map(|key| {
            let value: toml_edit::Value = key.default.parse().expect("a default is TOML");
            (take(key, &value).expect("a default has its key's type"), Source::Default)
        });
        Self { settings: settings.collect(), policies: Policies::default() }
    }

    /// Lays a file over what is there. Later calls win.
    pub fn add_file(&mut self, path: &Path, text: &str) -> Vec<Problem> {
        let place = |span: Option<std::ops::Range<usize>>| {
            let (line, column) = position(text, span.map_or(0, |span| span.start));
            Source::File { path: path.to_owned(), line, column }
        };
        let document = match toml_edit::Document::parse(text) {
            Ok(document) => document,
            Err(error) => {
                let message = error.message().lines().collect::<Vec<_>>().join(", ");
                return vec![Problem { at: place(error.span()), what: Complaint::Syntax(message) }];
            }
        };
        let mut problems = Vec::new();
        let root = document.as_table();
        for (section, _) in root {
            let Some((section_key, item)) = root.get_key_value(section) else {
                continue;
            };
            let at_section = place(section_key.span().or_else(|| item.span()));
            let chosen_names = policies::SECTIONS.contains(&section);
            if !chosen_names && !KEYS.iter().any(|key| key.section == section) {
                let suggestion = suggest(section, KEYS.iter().map(|key| key.section).chain(policies::SECTIONS));
                let what = Complaint::UnknownSection { name: section.to_owned(), suggestion };
                problems.push(Problem { at: at_section, what });
                continue;
            }
            let Some(table) = item.as_table_like() else {
                problems.push(Problem { at: at_section, what: Complaint::NotASection(section.to_owned()) });
                continue;
            };
            if chosen_names {
                problems.extend(policies::read(section, table, &mut self.policies, &place));
                continue;
            }
            for (name, _) in table.iter() {
                let Some((name_key, item)) = table.get_key_value(name) else {
                    continue;
                };
                let Some(index) = Key::find(section, name) else {
                    let names = KEYS.iter().filter(|key| key.section == section).map(|key| key.name);
                    let what = Complaint::UnknownKey {
                        section: section.to_owned(),
                        name: name.to_owned(),
                        suggestion: suggest(name, names),
                    };
                    problems.push(Problem { at: place(name_key.span()), what });
                    continue;
                };
                let key = &KEYS[index];
                let at = place(item.span());
                match item.as_value().and_then(|value| take(key, value)) {
                    Some(value) => self.settings[index] = (value, at),
                    None => problems.push(wrong_type(key, at, item.type_name())),
                }
            }
        }
        problems
    }

    /// Lays variables over what is there; those without our prefix are none of our business.
    pub fn add_environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (variable, text) in variables {
            if !variable.starts_with(PREFIX) || variable == CONFIG_VARIABLE {
                continue;
            }
            let at = Source::Environment(variable.clone());
            let Some(index) = KEYS.iter().position(|key| key.variable() == variable) else {
                let names: Vec<String> = KEYS.iter().map(Key::variable).collect();
                let suggestion = suggest(&variable, names.iter().map(String::as_str));
                problems.push(Problem { at, what: Complaint::UnknownVariable { suggestion } });
                continue;
            };
            let key = &KEYS[index];
            match from_plain_text(key.kind, &text) {
                Some(value) => self.settings[index] = (value, at),
                None => problems.push(wrong_type(key, at, &format!("\"{text}\""))),
            }
        }
        problems
    }

    /// Lays one flag's text over what is there.
    ///
    /// # Panics
    /// For a setting that does not exist: flags are ours.
    pub fn add_flag(&mut self, flag: &'static str, section: &str, name: &str, text: &str) -> Vec<Problem> {
        let index = Key::find(section, name).expect("a flag sets a known key");
        match from_plain_text(KEYS[index].kind, text) {
            Some(value) => self.settings[index] = (value, Source::Flag(flag)),
            None => {
                return vec![wrong_type(&KEYS[index], Source::Flag(flag), &format!("\"{text}\""))];
            }
        }
        Vec::new()
    }

    /// One setting.
    ///
    /// # Panics
    /// For a setting that does not exist: names are constants of this crate.
    pub fn get(&self, section: &str, name: &str) -> (&'static Key, &Value, &Source) {
        let index = Key::find(section, name).expect("a known key");
        let (value, source) = &self.settings[index];
        (&KEYS[index], value, source)
    }

    /// The groups and policies of all files.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Takes the groups and policies over from `other`.
    pub fn take_policies_from(&mut self, other: &Self) {
        self.policies = other.policies.clone();
    }

    /// Takes one setting's value and origin over from `other`.
    ///
    /// # Panics
    /// For a setting that does not exist: names are constants of this crate.
    pub fn take_from(&mut self, other: &Self, section: &str, name: &str) {
        let index = Key::find(section, name).expect("a known key");
        self.settings[index] = other.settings[index].clone();
    }

    /// Every setting, in the order of [`KEYS`].
    pub fn iter(&self) -> impl Iterator<Item = (&'static Key, &Value, &Source)> {
        KEYS.iter().zip(&self.settings).map(|(key, (value, source))| (key, value, source))
    }
}

fn wrong_type(key: &Key, at: Source, found: &str) -> Problem {
    let what = Complaint::WrongType {
        section: key.section,
        name: key.name,
        expected: key.kind.expected(),
        found: found.to_owned(),
    };
    Problem { at, what }
}

/// The value, when its type is the key's.
fn take(key: &Key, value: &toml_edit::Value) -> Option<Value> {
    Some(match key.kind {
        Kind::Text => Value::Text(value.as_str()?.to_owned()),
        Kind::TextOrNumber => match value.as_integer() {
            Some(number) => Value::Text(number.to_string()),
            None => Value::Text(value.as_str()?.to_owned()),
        },
        Kind::Number => Value::Number(value.as_integer()?),
        Kind::Switch => Value::Switch(value.as_bool()?),
        Kind::List => {
            let items = value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned));
            Value::List(items.collect::<Option<_>>()?)
        }
    })
}

/// A value from a variable or a flag, where strings have no quotes and lists have commas.
fn from_plain_text(kind: Kind, text: &str) -> Option<Value> {
    Some(match kind {
        Kind::Text | Kind::TextOrNumber => Value::Text(text.to_owned()),
        Kind::Number => Value::Number(text.trim().parse().ok()?),
        Kind::Switch => Value::Switch(text.trim().parse().ok()?),
        Kind::List => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Value::List(items.map(str::to_owned).collect())
        }
    })
}

/// The candidate that differs least, if it is close enough to be a slip.
pub(super) fn suggest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    const CLOSE: f64 = 0.75;
    candidates
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= CLOSE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate.to_owned())
}

/// Line and column of a byte offset, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_has_the_type_of_its_key() {
        assert_eq!(Layers::defaults().iter().count(), KEYS.len());
    }

    #[test]
    fn a_mistyped_key_is_named_with_its_place_and_the_right_word() {
        assert_eq!(
            complaints("[listen]\n  adress = \"[::]:443\"\n"),
            [r#"gw.toml:2:3: unknown key "adress" in [listen]; did you mean "address"?"#]
        );
        assert_eq!(
            complaints("[netwerk]\nipv4 = \"10.1.0.0/24\"\n"),
            [r#"gw.toml:1:2: unknown section [netwerk]; did you mean "network"?"#]
        );
        assert_eq!(complaints("[log]\nzzz = 1\n"), [r#"gw.toml:2:1: unknown key "zzz" in [log]"#]);
    }

    #[test]
    fn a_wrong_type_is_named_with_its_place() {
        assert_eq!(
            complaints("[network]\nisolation = \"yes\"\n"),
            ["gw.toml:2:13: network.isolation must be true or false, not string"]
        );
        assert_eq!(
            complaints("[push]\ndns = [1]\n"),
            [r#"gw.toml:2:7: push.dns must be a list of strings, such as ["a", "b"], not array"#]
        );
        assert_eq!(complaints("log = 3\n"), [r#"gw.toml:1:1: "log" is a section; write [log] and its keys below"#]);
    }

    #[test]
    fn broken_toml_is_told_with_line_and_column() {
        let told = complaints("[log]\nlevel = \n");
        assert!(told[0].starts_with("gw.toml:2:"), "{told:?}");
    }

    #[test]
    fn an_unknown_variable_is_an_error_and_a_foreign_one_is_not() {
        let mut layers = Layers::defaults();
        let variables = [("CULVERT_SERVER_LOG__LEVLE", "debug"), ("PATH", "/bin"), (CONFIG_VARIABLE, "/x")];
        let problems = layers.add_environment(variables.map(|(name, text)| (name.to_owned(), text.to_owned())));
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [concat!(
                "environment CULVERT_SERVER_LOG__LEVLE: no such setting; ",
                "did you mean \"CULVERT_SERVER_LOG__LEVEL\"?"
            )]
        );
    }

    #[test]
    fn later_layers_win_and_each_value_knows_where_it_came_from() {
        let mut layers = Layers::defaults();
        assert!(layers.add_file(Path::new("a.toml"), "[log]\nlevel = \"warn\"\nformat = \"json\"\n").is_empty());
        assert!(layers.add_file(Path::new("b.toml"), "[log]\nlevel = \"debug\"\n").is_empty());
        let variable = ("CULVERT_SERVER_PUSH__DNS".to_owned(), "10.0.0.1, 10.0.0.2".to_owned());
        assert!(layers.add_environment([variable]).is_empty());
        assert!(layers.add_flag("--state-dir", "state", "dir", "/tmp/s").is_empty());

        let (_, value, source) = layers.get("log", "level");
        assert_eq!((value, source.to_string()), (&Value::Text("debug".into()), "b.toml:2:9".into()));
        assert_eq!(layers.get("log", "format").2.to_string(), "a.toml:3:10");
        assert_eq!(layers.get("push", "dns").1, &Value::List(vec!["10.0.0.1".into(), "10.0.0.2".into()]));
        assert_eq!(layers.get("state", "dir").2, &Source::Flag("--state-dir"));
        assert_eq!(layers.get("network", "isolation").2, &Source::Default);
    }

    fn complaints(text: &str) -> Vec<String> {
        let problems = Layers::defaults().add_file(Path::new("gw.toml"), text);
        problems.iter().map(ToString::to_string).collect()
    }
}
