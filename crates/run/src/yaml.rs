//! YAML files of settings: read with the line of every key, so that each fault can be shown where
//! it stands; and the small writer that prints a configuration that can be read back.
//!
//! A file is one flat map whose keys are the names of flags. This file knows nothing of which flags
//! there are.
//!
//! Values are built from the parser's events, one after the other: the time is linear in the file,
//! what is nested is a list and not recursion, and a scalar's text is at hand as it was written
//! (`01` stays `01`).

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};

/// How deep lists and maps may be nested.
const DEEPEST: usize = 64;

/// How many values a file may hold, those that stand for others (`*name`) counted each time.
const MOST_VALUES: usize = 1_000_000;

/// YAML's own limit is 1024 characters for a key with its colon on one line; it holds for the key
/// as it would be written back.
const LONGEST_KEY: usize = 1000;

/// A setting of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key as written.
    pub key: String,
    /// Line of the key, from 1.
    pub line: usize,
    /// Its value.
    pub value: Value,
    /// The value with every scalar as the text that was written; for settings that are text.
    pub as_text: Value,
}

/// Why a file is not a map of settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YamlError {
    /// Line of the fault, from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

/// The settings of a file in their order. An empty file holds none.
///
/// # Errors
/// The text is not YAML, not one document, or not a map with text keys; it nests or holds more than
/// any file of settings.
pub fn parse(text: &str) -> Result<Vec<Entry>, YamlError> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| fault(error.marker().line(), error.info()))?;
        builder.take(event, span.start.line())?;
    }
    let Some(root) = builder.root else {
        return Ok(Vec::new());
    };
    match root.kind {
        Kind::Map(entries) => Ok(entries),
        Kind::Other(Value::Null, _) => Ok(Vec::new()),
        Kind::Other(..) => Err(fault(
            root.line,
            "expected a map of settings, `name: value`",
        )),
    }
}

fn fault(line: usize, message: impl Into<String>) -> YamlError {
    YamlError {
        line,
        message: message.into(),
    }
}

/// A value and where it begins.
#[derive(Clone)]
struct Node {
    line: usize,
    kind: Kind,
    /// How many values it is, itself included.
    size: usize,
}

#[derive(Clone)]
enum Kind {
    /// A map, its keys as text.
    Map(Vec<Entry>),
    /// Anything else: typed, and as text.
    Other(Value, Value),
}

impl Node {
    /// The value twice: typed, and with every scalar as text.
    fn into_values(self) -> (Value, Value) {
        match self.kind {
            Kind::Other(value, text) => (value, text),
            Kind::Map(entries) => {
                let (mut values, mut texts) = (Map::new(), Map::new());
                for entry in entries {
                    values.insert(entry.key.clone(), entry.value);
                    texts.insert(entry.key, entry.as_text);
                }
                (Value::Object(values), Value::Object(texts))
            }
        }
    }
}

/// A list or map that is not closed yet.
struct Open {
    line: usize,
    anchor: usize,
    size: usize,
    items: Items,
}

enum Items {
    List(Vec<Value>, Vec<Value>),
    Map {
        entries: Vec<Entry>,
        names: HashSet<String>,
        /// The key whose value comes next, and its line.
        key: Option<(String, usize)>,
    },
}

/// Puts the events of one document together.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    values: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), YamlError> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(fault(line, "expected one document, found several"))
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
            Event::Alias(id) => match self.anchors.get(&id) {
                Some(node) => {
                    let node = Node {
                        line,
                        ..node.clone()
                    };
                    self.add(node, 0)
                }
                None => Err(fault(line, "it stands for a value that is not complete")),
            },
            Event::Scalar(text, style, anchor, tag) => {
                let kind = scalar(&text, style, tag.as_deref(), line)?;
                let size = 1;
                self.add(Node { line, kind, size }, anchor)
            }
            Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                Err(fault(line, "tags are not supported in settings"))
            }
            Event::SequenceStart(anchor, None) => {
                let items = Items::List(Vec::new(), Vec::new());
                self.begin(items, anchor, line)
            }
            Event::MappingStart(anchor, None) => {
                let items = Items::Map {
                    entries: Vec::new(),
                    names: HashSet::new(),
                    key: None,
                };
                self.begin(items, anchor, line)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(line),
        }
    }

    fn begin(&mut self, items: Items, anchor: usize, line: usize) -> Result<(), YamlError> {
        if self.open.len() == DEEPEST {
            return Err(fault(
                line,
                format!("it is nested more than {DEEPEST} deep"),
            ));
        }
        self.open.push(Open {
            line,
            anchor,
            size: 1,
            items,
        });
        Ok(())
    }

    fn end(&mut self, line: usize) -> Result<(), YamlError> {
        let open = self
            .open
            .pop()
            .ok_or_else(|| fault(line, "it closes what was not opened"))?;
        let kind = match open.items {
            Items::List(values, texts) => Kind::Other(Value::Array(values), Value::Array(texts)),
            Items::Map { entries, .. } => Kind::Map(entries),
        };
        let node = Node {
            line: open.line,
            kind,
            size: open.size,
        };
        self.add(node, open.anchor)
    }

    /// Puts a complete value where it belongs.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), YamlError> {
        self.values += node.size;
        if self.values > MOST_VALUES {
            let message = format!("it holds more than {MOST_VALUES} values");
            return Err(fault(node.line, message));
        }
        if anchor != 0 {
            self.values += node.size;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        open.size += node.size;
        match &mut open.items {
            Items::List(values, texts) => {
                let (value, text) = node.into_values();
                values.push(value);
                texts.push(text);
            }
            Items::Map {
                entries,
                names,
                key,
            } => match key.take() {
                None => {
                    let line = node.line;
                    *key = Some((name(node, names)?, line));
                }
                Some((key, line)) => {
                    let (value, as_text) = node.into_values();
                    entries.push(Entry {
                        key,
                        line,
                        value,
                        as_text,
                    });
                }
            },
        }
        Ok(())
    }
}

/// The text of a key that is not among those of its map yet.
fn name(node: Node, names: &mut HashSet<String>) -> Result<String, YamlError> {
    let line = node.line;
    let Kind::Other(_, Value::String(name)) = node.kind else {
        return Err(fault(line, "expected the name of a setting"));
    };
    let mut written = String::new();
    write_text(&mut written, &name);
    let length = written.chars().count();
    if length > LONGEST_KEY {
        let message = format!("a key has {length} characters, expected at most {LONGEST_KEY}");
        return Err(fault(line, message));
    }
    match names.insert(name.clone()) {
        true => Ok(name),
        false => Err(fault(line, format!("`{name}` stands twice"))),
    }
}

/// A scalar by YAML's core schema: quoted ones are text.
fn scalar(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    line: usize,
) -> Result<Kind, YamlError> {
    let as_text = Value::String(text.to_owned());
    let is_text = match tag {
        None => style != ScalarStyle::Plain,
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => true,
        Some(_) => return Err(fault(line, "tags are not supported in settings")),
    };
    if is_text {
        return Ok(Kind::Other(as_text.clone(), as_text));
    }
    let value = match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Kind::Other(Value::Null, Value::Null)),
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => match number(text) {
            Some(Ok(number)) => Value::Number(number),
            Some(Err(())) => return Err(fault(line, "expected a finite number")),
            None => as_text.clone(),
        },
    };
    Ok(Kind::Other(value, as_text))
}

/// A number as YAML writes it; an error for infinity and what is none by its name, nothing for
/// other text.
fn number(text: &str) -> Option<Result<Number, ()>> {
    let of_radix = |digits: &str, radix| i64::from_str_radix(digits, radix).ok();
    let integer = match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
        (Some(digits), _) => of_radix(digits, 16),
        (None, Some(digits)) => of_radix(digits, 8),
        (None, None) => text.parse().ok(),
    };
    if let Some(integer) = integer {
        return Some(Ok(integer.into()));
    }
    if let Ok(large) = text.parse::<u64>() {
        return Some(Ok(large.into()));
    }
    let unsigned = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    if text.len() - unsigned.len() <= 1 && matches!(unsigned.as_str(), ".inf" | ".nan") {
        return Some(Err(()));
    }
    // Words that Rust takes for numbers (`infinity`, `nan`) have no digit.
    if !text.bytes().any(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let float: f64 = text.parse().ok()?;
    Some(Number::from_f64(float).ok_or(()))
}

/// A map as YAML, one setting a line, absent values left out. Values are written as JSON, of which
/// YAML is a superset, but plain words without quotes.
pub fn to_yaml(map: &Map<String, Value>) -> String {
    let mut out = String::new();
    for (key, value) in map.iter().filter(|(_, v)| !v.is_null()) {
        write_text(&mut out, key);
        out.push_str(": ");
        write_value(&mut out, value);
        out.push('\n');
    }
    out
}

fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::String(s) => write_text(out, s),
        Value::Number(n) => out.push_str(&with_point(&n.to_string())),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_value(out, item);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_quoted(out, key);
                out.push_str(": ");
                write_value(out, item);
            }
            out.push('}');
        }
        Value::Null | Value::Bool(_) => out.push_str(&value.to_string()),
    }
}

fn write_text(out: &mut String, text: &str) {
    match is_plain(text) {
        true => out.push_str(text),
        false => write_quoted(out, text),
    }
}

/// Text in double quotes. Characters that YAML does not print or folds (control characters, other
/// line ends, a byte order mark) stand as their numbers, which JSON's own escapes leave raw.
fn write_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            _ if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            _ => out.push(c),
        }
    }
    out.push('"');
}

/// Words that YAML (1.1 or 1.2) reads as themselves.
fn is_plain(s: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let starts = s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let reserved = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    starts && s.chars().all(word) && !reserved.contains(&s.to_ascii_lowercase().as_str())
}

/// `1e-7` as `1.0e-7`: YAML 1.1 readers take the first for text.
fn with_point(number: &str) -> String {
    match number.split_once('e') {
        Some((digits, exponent)) if !digits.contains('.') => format!("{digits}.0e{exponent}"),
        Some(_) | None => number.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_come_with_their_lines_and_texts() {
        let text = "# settings\nr: 8\nlabels: [01, 1.0, yes, true]\n\nlearning_rate: 1e-3\nrank_pattern:\n  layer.0: 4\n";
        let entries = parse(text).unwrap();
        let lines: Vec<_> = entries.iter().map(|e| (e.key.as_str(), e.line)).collect();
        assert_eq!(
            lines,
            [
                ("r", 2),
                ("labels", 3),
                ("learning_rate", 5),
                ("rank_pattern", 6)
            ]
        );
        assert_eq!(entries[1].as_text, json!(["01", "1.0", "yes", "true"]));
        assert_eq!(entries[2].value, json!(1e-3));
        assert_eq!(entries[3].value, json!({"layer.0": 4}));
    }

    #[test]
    fn faults_come_with_their_lines() {
        assert_eq!(parse("r: 8\nr: 9\n").unwrap_err().line, 2);
        assert_eq!(parse("- a\n").unwrap_err().line, 1);
        assert_eq!(
            parse("a: [1\nb: 2\n").map(|_| ()).map_err(|e| e.line > 0),
            Err(true)
        );
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(parse("# nothing\n").unwrap(), []);
        assert!(parse("lr: .nan\n").is_err());
    }

    #[test]
    fn many_values_take_linear_time_and_depth_has_an_end() {
        let many = |n: usize| {
            let numbers: Vec<String> = (0..n).map(|i| i.to_string()).collect();
            format!("labels: [{}]\n", numbers.join(","))
        };
        let entries = parse(&many(200_000)).unwrap();
        assert_eq!(entries[0].as_text[199_999], json!("199999"));
        let error = parse(&many(MOST_VALUES + 1)).unwrap_err();
        assert!(error.message.contains("1000000 values"), "{error:?}");
        let deep = |n: usize| format!("a:\n {}1\n", "- ".repeat(n));
        assert!(parse(&deep(DEEPEST - 1)).is_ok());
        for n in [DEEPEST, 100_000] {
            let error = parse(&deep(n)).unwrap_err();
            assert!(error.message.contains("nested more than 64"), "{error:?}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&format!("a: {}", "{b: ".repeat(100_000))).is_err());
    }

    #[test]
    fn names_that_stand_for_values_are_filled_in_and_cannot_multiply_without_end() {
        let entries = parse("a: &x [1, 01]\nb: *x\nc: {d: *x}\n").unwrap();
        assert_eq!(entries[1].as_text, json!(["1", "01"]));
        assert_eq!(entries[2].value, json!({"d": [1, 1]}));
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            laughs.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(parse(&laughs).unwrap_err().message.contains("values"));
        assert!(parse("a: &x [*x]\n").is_err());
    }

    #[test]
    fn odd_names_and_texts_read_back_equal() {
        let odd = [
            "",
            " ",
            "#",
            "a: b",
            "- a",
            "?",
            "\"",
            "'",
            "\\",
            "a\nb",
            "\t",
            "\u{0}",
            "\u{7f}",
            "\u{85}",
            "\u{2028}",
            "\u{feff}x",
            "null",
            "~",
            "1",
            "0x1f",
            "1e5",
            ".inf",
            "true",
            "é",
            "🙂",
            "&a",
            "*a",
            "!!int",
            "%",
            "@",
            "`",
            "[",
            "{",
            "a #b",
            "---",
            "...",
            "\r",
            "\u{1b}[2J",
        ];
        let mut map = Map::new();
        for text in odd {
            map.insert(text.to_owned(), json!([text, {text: text}]));
        }
        let written = to_yaml(&map);
        let back = parse(&written).unwrap();
        assert_eq!(back.len(), map.len());
        for entry in back {
            assert_eq!(Some(&entry.value), map.get(&entry.key), "{written}");
        }
    }

    #[test]
    fn a_key_that_could_not_be_written_back_is_refused() {
        // Each control character takes six characters when it is written.
        for (key, is_short) in [("\u{1e}".repeat(166), true), ("\u{1e}".repeat(180), false)] {
            let parsed = parse(&format!("{key}: 1\n"));
            assert_eq!(parsed.is_ok(), is_short, "{parsed:?}");
            for entry in parsed.unwrap_or_default() {
                let map = Map::from_iter([(entry.key.clone(), entry.value)]);
                assert_eq!(parse(&to_yaml(&map)).unwrap()[0].key, entry.key);
            }
        }
        assert!(parse(&format!("{}: 1\n", "a".repeat(1001))).is_err());
    }

    #[test]
    fn numbers_are_typed_by_the_core_schema() {
        let entries = parse(
            "a: 0x1F\nb: 0o17\nc: +5\nd: 1e3\ne: 18446744073709551615\nf: infinity\ng: !!str 5\nh: '5'\ni: -0.0\nj: 1_000\n",
        )
        .unwrap();
        let values: Vec<Value> = entries.into_iter().map(|e| e.value).collect();
        assert_eq!(
            json!(values),
            json!([
                31,
                15,
                5,
                1e3,
                18_446_744_073_709_551_615_u64,
                "infinity",
                "5",
                "5",
                -0.0,
                "1_000"
            ])
        );
        for bad in [".nan", "-.inf", "1e999", "!!int 5", "!x 5"] {
            assert!(parse(&format!("a: {bad}\n")).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_written_reads_back_equal() {
        let map = json!({
            "model": "a/b", "r": 8, "learning_rate": 1e-7, "shuffle": false, "eval_strategy": "no", "none": null,
            "target_modules": "(.*\\.)?query", "labels": ["yes", "0", "very good: #1", "é\n"],
            "rank_pattern": {"layer.0": 4}, "big": 18446744073709551615u64
        });
        let Value::Object(map) = map else {
            unreachable!()
        };
        let text = to_yaml(&map);
        assert!(text.contains("1.0e-7"), "{text}");
        for entry in parse(&text).unwrap() {
            assert_eq!(Some(&entry.value), map.get(&entry.key), "{text}");
        }
    }
}
