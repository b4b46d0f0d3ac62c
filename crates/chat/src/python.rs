//! What templates know of Python: values as Python prints them, `json.dumps`, and methods of
//! strings that templates call.

use lowrank_formats::{NonAscii, python_float_repr, write_python_string};
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;
use serde_json::Value as Json;

/// A template's value for one of JSON.
pub(crate) fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value_of).collect::<Vec<_>>()),
        Json::Object(fields) => map_of(fields),
    }
}

/// A template's map of fields, in their order.
pub(crate) fn map_of(fields: &serde_json::Map<String, Json>) -> Value {
    Value::from_pairs(
        fields
            .iter()
            .map(|(name, value)| (name.as_str(), value_of(value))),
    )
}

/// `tojson` as transformers defines it: `json.dumps` with its arguments, `ensure_ascii` off where
/// it is not given.
pub(crate) fn tojson(state: &State, value: &Value, args: Kwargs) -> Result<Value, Error> {
    let indent = match args
        .get::<Option<Value>>("indent")?
        .filter(|v| !v.is_none())
    {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent).map(|n| n.min(64))?),
        }),
    };
    let separators = args
        .get::<Option<Value>>("separators")?
        .filter(|v| !v.is_none());
    let (between, behind_key) = match separators {
        Some(pair) => {
            let at = |i| pair.get_item_by_index(i).map(|text| text.to_string());
            (at(0)?, at(1)?)
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let writer = Dumps {
        non_ascii: match args.get::<Option<bool>>("ensure_ascii")? {
            Some(true) => NonAscii::Escape,
            Some(false) | None => NonAscii::Keep,
        },
        sort_keys: args.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent,
        between,
        behind_key,
    };
    args.assert_all_used()?;
    let mut out = String::new();
    writer.write(state, value, 0, &mut out)?;
    Ok(Value::from(out))
}

/// Python's `json.dumps`.
struct Dumps {
    non_ascii: NonAscii,
    sort_keys: bool,
    indent: Option<String>,
    between: String,
    behind_key: String,
}

/// Levels of nesting beyond which a value is refused.
const DEEPEST: usize = 200;

impl Dumps {
    fn write(
        &self,
        state: &State,
        value: &Value,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(Error::new(ErrorKind::BadSerialization, "nested too deeply"));
        }
        state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value, out)?,
            ValueKind::String => {
                write_python_string(out, value.as_str().unwrap_or_default(), self.non_ascii)
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.items(state, ['[', ']'], items, depth, out)?;
            }
            ValueKind::Map => {
                let mut fields = Vec::new();
                for key in value.try_iter()? {
                    let field = value.get_item(&key)?;
                    fields.push((Some(key_text(&key)?), field));
                }
                if self.sort_keys {
                    fields.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.items(state, ['{', '}'], fields, depth, out)?;
            }
            kind => {
                let message = format!("tojson: {kind} is no value of JSON");
                return Err(Error::new(ErrorKind::BadSerialization, message));
            }
        }
        Ok(())
    }

    fn items(
        &self,
        state: &State,
        [open, close]: [char; 2],
        items: Vec<(Option<String>, Value)>,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        out.push(open);
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        let is_empty = items.is_empty();
        for (i, (key, item)) in items.into_iter().enumerate() {
            if i > 0 {
                out.push_str(&self.between);
            }
            line(depth + 1, out);
            if let Some(key) = key {
                write_python_string(out, &key, self.non_ascii);
                out.push_str(&self.behind_key);
            }
            self.write(state, &item, depth + 1, out)?;
        }
        if !is_empty {
            line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn number(&self, value: &Value, out: &mut String) -> Result<(), Error> {
        match value.is_integer() {
            true => out.push_str(&value.to_string()),
            false => out.push_str(&python_float_repr(f64::try_from(value.clone())?)),
        }
        Ok(())
    }
}

/// A key as `json.dumps` writes it.
fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
        ValueKind::Number if key.is_integer() => key.to_string(),
        ValueKind::Number => python_float_repr(f64::try_from(key.clone())?),
        kind => {
            let message = format!("tojson: {kind} is no key of JSON");
            return Err(Error::new(ErrorKind::BadSerialization, message));
        }
    })
}

/// Whether something can be taken by number: Jinja's `sequence`, which holds for texts and maps
/// too.
pub(crate) fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map
    )
}

/// Jinja's `iterable`, which does not hold for none.
pub(crate) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Methods of Python beyond those of `pycompat`; what neither knows is said by its name.
pub(crate) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(found) = text_method(text, name, args)?
    {
        return Ok(found);
    }
    let index = (value.kind() == ValueKind::Seq && name == "index").then_some(args);
    if let Some([wanted]) = index {
        let at = value.try_iter()?.position(|item| item == *wanted);
        return at.map(Value::from).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidOperation,
                format!("{wanted} is not in the list"),
            )
        });
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

fn text_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let part = |start: usize, end: usize| Value::from(&text[start..end]);
    Ok(Some(match name {
        // Python takes the separators of information for blanks, too.
        "strip" | "lstrip" | "rstrip" if args.is_empty() => {
            let blank = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
            Value::from(match name {
                "strip" => text.trim_matches(blank),
                "lstrip" => text.trim_start_matches(blank),
                _ => text.trim_end_matches(blank),
            })
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let (sep,): (&str,) = from_args(args)?;
            let at = if name == "partition" {
                text.find(sep)
            } else {
                text.rfind(sep)
            };
            let all = || part(0, text.len());
            Value::from(match (at, name) {
                (Some(at), _) => {
                    let end = at + sep.len();
                    vec![part(0, at), part(at, end), part(end, text.len())]
                }
                (None, "partition") => vec![all(), Value::from(""), Value::from("")],
                (None, _) => vec![Value::from(""), Value::from(""), all()],
            })
        }
        "index" | "rindex" => {
            let (wanted,): (&str,) = from_args(args)?;
            let at = if name == "index" {
                text.find(wanted)
            } else {
                text.rfind(wanted)
            };
            let at = at.ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidOperation,
                    format!("{wanted:?} is not in the text"),
                )
            })?;
            Value::from(text[..at].chars().count())
        }
        "rsplit" => {
            let (sep, most): (&str, Option<usize>) = from_args(args)?;
            let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
            let mut parts: Vec<Value> = text.rsplitn(most, sep).map(Value::from).collect();
            parts.reverse();
            Value::from(parts)
        }
        _ => return Ok(None),
    }))
}
