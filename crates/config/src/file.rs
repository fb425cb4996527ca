//! The configuration file: TOML, flattened to paths that know their place.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::bounded;
use crate::problem::Problem;
use crate::value::{Origin, Raw};

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// As it was given.
    pub raw: Raw,
    /// By whom.
    pub origin: Origin,
    /// Its place among the others of the file, to keep the order of destinations.
    pub position: usize,
}

/// Values by path: `relay.batch_size`, `destinations.default.type`, `routes[0].event_type`.
/// Tables have an entry of their own.
pub type Entries = BTreeMap<String, Entry>;

/// Reads and flattens a file. Also what is wrong with it: that it cannot be read, or every syntax error with its line and column.
pub fn read(path: &Path) -> (Entries, Vec<Problem>) {
    let name = path.display().to_string();
    let refuse = |problem| (Entries::new(), vec![problem]);
    match bounded::read(path, bounded::CONFIGURATION_BYTES_MAX).map(String::from_utf8) {
        Ok(Ok(text)) => parse(&name, &text),
        Ok(Err(_)) => refuse(Problem {
            path: String::new(),
            place: Some(name),
            message: "the file is not UTF-8".into(),
            help: "save it as UTF-8".into(),
        }),
        Err(error) => refuse(Problem {
            path: String::new(),
            place: Some(name),
            message: format!("cannot read the configuration file: {error}"),
            help: "correct the path given with --config (or POSTHASTE_CONFIG)".into(),
        }),
    }
}

/// Flattens the text of a file called `name`, as far as it has the syntax.
pub fn parse(name: &str, text: &str) -> (Entries, Vec<Problem>) {
    let source = Source::new(name, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut entries = Entries::new();
    source.flatten_table(table.get_ref(), "", &mut entries);
    (entries, errors.iter().map(|error| source.syntax_problem(error)).collect())
}

struct Source<'a> {
    name: &'a str,
    text: &'a str,
    /// Where each line begins: a file of 20,000 destinations has as many places.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(name: &'a str, text: &'a str) -> Self {
        let breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { name, text, lines: std::iter::once(0).chain(breaks).collect() }
    }

    fn flatten_table(&self, table: &DeTable<'_>, prefix: &str, entries: &mut Entries) {
        for (key, value) in table {
            let path = if prefix.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{prefix}.{}", key.get_ref())
            };
            self.flatten(&path, key.span().start, value, entries);
        }
    }

    fn flatten(&self, path: &str, at: usize, value: &Spanned<DeValue<'_>>, entries: &mut Entries) {
        let raw = match value.get_ref() {
            DeValue::String(text) => Raw::Text(text.to_string()),
            DeValue::Integer(integer) => {
                match i64::from_str_radix(integer.as_str(), integer.radix()) {
                    Ok(value) => Raw::Integer(value),
                    Err(_) => Raw::Other("a number beyond 64 bits"),
                }
            }
            DeValue::Float(float) => {
                float.as_str().parse().map_or(Raw::Other("a number"), Raw::Number)
            }
            DeValue::Boolean(value) => Raw::Bool(*value),
            DeValue::Datetime(_) => Raw::Other("a date"),
            DeValue::Array(items) => {
                let tables = items.iter().any(|item| item.get_ref().is_table());
                if tables {
                    for (index, item) in items.iter().enumerate() {
                        let path = format!("{path}[{index}]");
                        self.flatten(&path, item.span().start, item, entries);
                    }
                    Raw::Section
                } else if items.iter().next().is_none() {
                    // `routes = []` is a way to say that there are none.
                    Raw::Section
                } else {
                    Raw::Other("an array")
                }
            }
            DeValue::Table(table) => {
                self.flatten_table(table, path, entries);
                Raw::Section
            }
        };
        let origin = Origin::File(self.place(at));
        entries.insert(path.to_owned(), Entry { raw, origin, position: at });
    }

    fn syntax_problem(&self, error: &toml::de::Error) -> Problem {
        let place = match error.span() {
            Some(span) => self.place(span.start),
            None => self.name.to_owned(),
        };
        Problem {
            path: String::new(),
            place: Some(place),
            message: format!("TOML syntax: {}", error.message().replace('\n', ", ")),
            help: "correct the line; texts need quotes, sections look like [relay]".into(),
        }
    }

    /// `FILE:LINE:COLUMN`, counted from 1, columns in characters.
    fn place(&self, offset: usize) -> String {
        let offset = self.text.floor_char_boundary(offset);
        // The first begins at 0, so that there is one.
        let line = self.lines.partition_point(|begin| *begin <= offset);
        let begin = self.lines[line - 1];
        let column = self.text[begin..offset].chars().count() + 1;
        format!("{}:{line}:{column}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_and_table_has_a_path_and_a_place() {
        let text = "[relay]\nbatch_size = 7\n[[routes]]\nevent_type = \"a\"\n";
        let (entries, _) = parse("f.toml", text);
        let paths: Vec<&str> = entries.keys().map(String::as_str).collect();
        assert_eq!(
            paths,
            ["relay", "relay.batch_size", "routes", "routes[0]", "routes[0].event_type"]
        );
        assert_eq!(entries["relay.batch_size"].raw, Raw::Integer(7));
        assert_eq!(entries["relay.batch_size"].origin, Origin::File("f.toml:2:1".into()));
    }

    #[test]
    fn all_syntax_errors_are_reported_with_line_and_column() {
        let (_, problems) = parse("f.toml", "[relay\nbatch_size = = 3\n");
        assert!(problems[0].place.as_deref().unwrap().starts_with("f.toml:1:"), "{problems:?}");
        assert!(problems.len() >= 2, "{problems:?}");
    }
}
