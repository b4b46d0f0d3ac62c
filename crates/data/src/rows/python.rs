//! Lists as Python and numpy print them into a cell of a table: `['a', "it's"]`, `('a',)`,
//! `['a' 'b']`, `[0. 1.]`. Knows nothing of what the items mean.

use serde_json::{Number, Value};

/// How deep lists may stand in lists.
const DEEPEST: usize = 8;

/// The items of a list that is written as JSON, as a Python list, tuple or set, or as a numpy
/// array; `None` for all else. An array that numpy shortened (`...`) is no list, because its items
/// are lost.
pub(crate) fn parse_list(text: &str) -> Option<Vec<Value>> {
    let text = text.trim();
    if !text.starts_with(['[', '(', '{']) {
        return None;
    }
    if let Ok(items) = serde_json::from_str::<Vec<Value>>(text) {
        return Some(items);
    }
    let mut reader = Reader { text, at: 0 };
    let items = reader.list(0)?;
    reader.rest().is_empty().then_some(items)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Steps over `mark` if it comes next.
    fn take(&mut self, mark: char) -> bool {
        let found = self.rest().starts_with(mark);
        self.at += if found { mark.len_utf8() } else { 0 };
        found
    }

    /// A list from its opening bracket to its closing one; items stand between commas, or, as numpy
    /// writes them, blanks.
    fn list(&mut self, depth: usize) -> Option<Vec<Value>> {
        let open = self.rest().chars().next()?;
        let close = match open {
            '[' => ']',
            '(' => ')',
            '{' => '}',
            _ => return None,
        };
        if depth > DEEPEST {
            return None;
        }
        self.take(open);
        let mut items = Vec::new();
        loop {
            self.skip_blanks();
            if self.take(close) {
                return Some(items);
            }
            items.push(self.item(depth)?);
            let behind = self.at;
            self.skip_blanks();
            let comma = self.take(',');
            let ends = self.rest().starts_with(close);
            if !comma && !ends && self.at == behind {
                return None;
            }
        }
    }

    fn item(&mut self, depth: usize) -> Option<Value> {
        match self.rest().chars().next()? {
            quote @ ('\'' | '"') => self.string(quote).map(Value::String),
            '[' | '(' => self.list(depth + 1).map(Value::Array),
            _ => self.word(),
        }
    }

    /// A string with Python's escapes.
    fn string(&mut self, quote: char) -> Option<String> {
        self.take(quote);
        let mut found = String::new();
        loop {
            let c = self.next()?;
            if c == quote {
                return Some(found);
            }
            if c != '\\' {
                found.push(c);
                continue;
            }
            match self.next()? {
                'n' => found.push('\n'),
                't' => found.push('\t'),
                'r' => found.push('\r'),
                'x' => found.push(self.code_point(2)?),
                'u' => found.push(self.code_point(4)?),
                'U' => found.push(self.code_point(8)?),
                '\n' => {}
                same @ ('\\' | '\'' | '"') => found.push(same),
                // Python keeps the backslash of an escape that it does not know.
                other => found.extend(['\\', other]),
            }
        }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn code_point(&mut self, digits: usize) -> Option<char> {
        let hex = self.rest().get(..digits)?;
        let code = u32::from_str_radix(hex, 16).ok()?;
        self.at += digits;
        char::from_u32(code)
    }

    /// A number, a truth value or nothing.
    fn word(&mut self) -> Option<Value> {
        let rest = self.rest();
        let ends = |c: char| c.is_whitespace() || ",])}".contains(c);
        let word = &rest[..rest.find(ends).unwrap_or(rest.len())];
        self.at += word.len();
        match word {
            "True" => return Some(Value::Bool(true)),
            "False" => return Some(Value::Bool(false)),
            "None" | "nan" => return Some(Value::Null),
            _ => {}
        }
        if let Ok(whole) = word.parse::<i64>() {
            return Some(Value::Number(whole.into()));
        }
        let numeric = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
        let real = word
            .parse::<f64>()
            .ok()
            .filter(|_| word.chars().all(numeric))?;
        Number::from_f64(real).map(Value::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_of_json_python_and_numpy_are_read() {
        for (text, expected) in [
            (r#"["a", "b"]"#, json!(["a", "b"])),
            ("['a', 'b']", json!(["a", "b"])),
            ("['a' 'b'\n 'c']", json!(["a", "b", "c"])),
            (r#"["it's", 'say "x"']"#, json!(["it's", "say \"x\""])),
            (
                r"['it\'s', 'a\\b', '\xe9', '\u00e9\n']",
                json!(["it's", "a\\b", "é", "é\n"]),
            ),
            ("[1, -2, 0.5]", json!([1, -2, 0.5])),
            ("[0. 1.]", json!([0.0, 1.0])),
            ("[0 1\t0]", json!([0, 1, 0])),
            ("('a',)", json!(["a"])),
            ("{'a', 'b'}", json!(["a", "b"])),
            ("[True, None, False]", json!([true, null, false])),
            ("[['a'], ('b', 1)]", json!([["a"], ["b", 1]])),
            (" [] ", json!([])),
            ("['a',]", json!(["a"])),
        ] {
            let found = parse_list(text).map(Value::Array);
            assert_eq!(found, Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_list_is_none() {
        let deep = "[".repeat(100_000);
        for text in [
            "",
            "a",
            "'a'",
            "['a'",
            "['a'] x",
            "[a, b]",
            "['a''b']",
            "['a' ... 'z']",
            "[1;2]",
            "['a', ,]",
            r"['\u12']",
            "{'a': 1}",
            "[inf]",
            deep.as_str(),
        ] {
            assert_eq!(parse_list(text), None, "{}", &text[..text.len().min(20)]);
        }
    }
}
