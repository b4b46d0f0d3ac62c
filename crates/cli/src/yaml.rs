//! YAML files of settings: read with the line of every key, so that each fault can be shown where it stands; and the
//! small writer that prints a configuration that can be read back.
//!
//! A file is one flat map whose keys are the names of flags. This file knows nothing of which flags there are.

use std::borrow::Cow;

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use serde_json::{Map, Number, Value};

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
/// The text is not YAML, not one document, or not a map with text keys.
pub fn parse(text: &str) -> Result<Vec<Entry>, YamlError> {
    let documents = MarkedYaml::load_from_str(text).map_err(|error| YamlError {
        line: error.marker().line(),
        message: error.info().to_owned(),
    })?;
    let fault = |node: &MarkedYaml<'_>, message: &str| YamlError {
        line: node.span.start.line(),
        message: message.to_owned(),
    };
    let root = match documents.as_slice() {
        [] => return Ok(Vec::new()),
        [root] => root,
        [_, second, ..] => return Err(fault(second, "expected one document, found several")),
    };
    let map = match &root.data {
        YamlData::Mapping(map) => map,
        YamlData::Value(Scalar::Null) => return Ok(Vec::new()),
        _ => return Err(fault(root, "expected a map of settings, `name: value`")),
    };
    map.iter()
        .map(|(key, node)| {
            let YamlData::Value(Scalar::String(name)) = &key.data else {
                return Err(fault(key, "expected the name of a setting"));
            };
            Ok(Entry {
                key: name.clone().into_owned(),
                line: key.span.start.line(),
                value: convert(node, text, Scalars::Typed)?,
                as_text: convert(node, text, Scalars::AsText)?,
            })
        })
        .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scalars {
    Typed,
    AsText,
}

fn convert(node: &MarkedYaml<'_>, text: &str, scalars: Scalars) -> Result<Value, YamlError> {
    let fault = |message: &str| YamlError {
        line: node.span.start.line(),
        message: message.to_owned(),
    };
    Ok(match &node.data {
        YamlData::Value(Scalar::Null) => Value::Null,
        YamlData::Value(Scalar::String(s)) => Value::String(s.clone().into_owned()),
        YamlData::Value(scalar) if scalars == Scalars::AsText => {
            Value::String(written(node, scalar, text))
        }
        YamlData::Value(Scalar::Boolean(b)) => Value::Bool(*b),
        YamlData::Value(Scalar::Integer(i)) => Value::Number((*i).into()),
        // Integers above i64 come as floats; their text still has all digits.
        YamlData::Value(scalar @ Scalar::FloatingPoint(f)) => {
            if let Ok(large) = written(node, scalar, text).parse::<u64>() {
                return Ok(Value::Number(large.into()));
            }
            Value::Number(Number::from_f64(f.0).ok_or_else(|| fault("expected a finite number"))?)
        }
        YamlData::Sequence(items) => {
            let items: Result<Vec<_>, _> = items
                .iter()
                .map(|item| convert(item, text, scalars))
                .collect();
            Value::Array(items?)
        }
        YamlData::Mapping(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                let Value::String(name) = convert(key, text, Scalars::AsText)? else {
                    return Err(fault("expected a name as key"));
                };
                out.insert(name, convert(value, text, scalars)?);
            }
            Value::Object(out)
        }
        YamlData::Tagged(..) => return Err(fault("tags are not supported in settings")),
        YamlData::Representation(..) | YamlData::Alias(_) | YamlData::BadValue => {
            return Err(fault("cannot read this value"));
        }
    })
}

/// The text of a scalar as it stands in the file (`01` stays `01`), or as it would be printed where it cannot be found.
fn written(node: &MarkedYaml<'_>, scalar: &Scalar<'_>, text: &str) -> String {
    let (start, end) = (node.span.start.index(), node.span.end.index());
    let slice: String = text
        .chars()
        .skip(start)
        .take(end.saturating_sub(start))
        .collect();
    let slice = slice.trim();
    if Scalar::parse_from_cow(Cow::Borrowed(slice)) == *scalar {
        return slice.to_owned();
    }
    match scalar {
        Scalar::Null => "null".to_owned(),
        Scalar::Boolean(b) => b.to_string(),
        Scalar::Integer(i) => i.to_string(),
        Scalar::FloatingPoint(f) => f.0.to_string(),
        Scalar::String(s) => s.clone().into_owned(),
    }
}

/// A map as YAML, one setting a line, absent values left out. Values are written as JSON, of which YAML is a superset,
/// but plain words without quotes.
pub fn to_yaml(map: &Map<String, Value>) -> String {
    let mut out = String::new();
    for (key, value) in map.iter().filter(|(_, v)| !v.is_null()) {
        out.push_str(key);
        out.push_str(": ");
        write_value(&mut out, value);
        out.push('\n');
    }
    out
}

fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::String(s) if is_plain(s) => out.push_str(s),
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
                out.push_str(&Value::String(key.clone()).to_string());
                out.push_str(": ");
                write_value(out, item);
            }
            out.push('}');
        }
        Value::Null | Value::Bool(_) | Value::String(_) => out.push_str(&value.to_string()),
    }
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
