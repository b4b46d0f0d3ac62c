//! JSON as Python reads and writes it: `json.dumps(value, indent=2, sort_keys=True)`, floats as
//! `repr` prints them. Knows no key of any file.

use std::path::Path;

use serde_json::{Map, Value};

use crate::Result;
use crate::error::FormatError;
use crate::files::{Ceiling, read};

/// Reads a JSON file; keys keep the file's order, of a key given twice the last value counts (as in
/// Python).
pub fn read_json(path: &Path) -> Result<Value> {
    let bytes = read(path, Ceiling::JSON)?;
    parse(path, &bytes)
}

/// Parses the bytes of the file `path`.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(FormatError::Json {
            path: path.to_owned(),
            line: 1,
            column: 1,
            message: "the file is empty".into(),
        });
    }
    serde_json::from_slice(bytes).map_err(|error| FormatError::Json {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
        message: without_position(&error),
    })
}

/// The parser's message without the position that it appends: we say that in our own words.
pub(crate) fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// `json.dumps(value, indent=2, sort_keys=True)`: keys sorted by code point, everything but ASCII
/// escaped, no newline at the end.
pub fn to_python_json(value: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, value, 0);
    text
}

fn write_value(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(true) => text.push_str("true"),
        Value::Bool(false) => text.push_str("false"),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), _, _) => text.push_str(&integer.to_string()),
            (_, Some(integer), _) => text.push_str(&integer.to_string()),
            (_, _, float) => text.push_str(&python_float_repr(float.unwrap_or(f64::NAN))),
        },
        Value::String(string) => write_python_string(text, string, NonAscii::Escape),
        Value::Array(items) => write_array(text, items, depth),
        Value::Object(map) => write_object(text, map, depth),
    }
}

fn write_array(text: &mut String, items: &[Value], depth: usize) {
    if items.is_empty() {
        return text.push_str("[]");
    }
    text.push('[');
    for (i, item) in items.iter().enumerate() {
        text.push_str(if i == 0 { "\n" } else { ",\n" });
        indent(text, depth + 1);
        write_value(text, item, depth + 1);
    }
    text.push('\n');
    indent(text, depth);
    text.push(']');
}

fn write_object(text: &mut String, map: &Map<String, Value>, depth: usize) {
    if map.is_empty() {
        return text.push_str("{}");
    }
    // Byte order of UTF-8 is code point order, which is how Python compares strings.
    let mut entries: Vec<(&String, &Value)> = map.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    text.push('{');
    for (i, (key, value)) in entries.into_iter().enumerate() {
        text.push_str(if i == 0 { "\n" } else { ",\n" });
        indent(text, depth + 1);
        write_python_string(text, key, NonAscii::Escape);
        text.push_str(": ");
        write_value(text, value, depth + 1);
    }
    text.push('\n');
    indent(text, depth);
    text.push('}');
}

fn indent(text: &mut String, depth: usize) {
    for _ in 0..depth {
        text.push_str("  ");
    }
}

/// What becomes of characters beyond ASCII: `ensure_ascii` of `json.dumps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonAscii {
    /// They are escaped, and so is DEL.
    Escape,
    /// They stand as they are.
    Keep,
}

/// Appends a text in quotes as `json.dumps` writes it.
pub fn write_python_string(text: &mut String, string: &str, non_ascii: NonAscii) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            ' '..='~' => text.push(c),
            '\u{7f}'.. if non_ascii == NonAscii::Keep => text.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    text.push('"');
}

/// A float as Python's `repr` prints it: the shortest digits that give it back, an exponent below
/// 1e-4 and from 1e16 on.
pub fn python_float_repr(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific
        .split_once('e')
        .expect("the `e` format always has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is an integer");
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_printed_as_python_prints_them() {
        // Each right side was printed by Python 3.11.
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (0.05, "0.05"),
            (1.5e-5, "1.5e-05"),
            (1.25e300, "1.25e+300"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.2345e22, "1.2345e+22"),
            (1e100, "1e+100"),
            (5e-324, "5e-324"),
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::INFINITY, "Infinity"),
        ];
        for (value, expected) in cases {
            assert_eq!(python_float_repr(value), expected);
        }
    }

    #[test]
    fn text_is_escaped_and_keys_are_sorted() {
        let value: Value =
            serde_json::from_str(r#"{"b":[],"a":{"é":"😀\u007f\n"},"c":{},"B":[1,2.0,null]}"#)
                .unwrap();
        let expected = "{\n  \"B\": [\n    1,\n    2.0,\n    null\n  ],\n  \"a\": {\n    \"\\u00e9\": \"\\ud83d\\ude00\\u007f\\n\"\n  },\n  \"b\": [],\n  \"c\": {}\n}";
        assert_eq!(to_python_json(&value), expected);
        let mut kept = String::new();
        write_python_string(&mut kept, "é😀\u{7f}\n\u{1}", NonAscii::Keep);
        assert_eq!(kept, "\"é😀\u{7f}\\n\\u0001\"");
    }
}
