//! Reading `config.json`: every field is asked for with its range, all faults are collected, then
//! reported together. Knows no model: the families say which fields they need.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Result;
use crate::error::{Fault, FormatError};
use crate::files;
use crate::gguf::{self, Gguf};
use crate::pyjson::read_json;
use crate::suggest::nearest;

/// The file that a model's configuration stands in: `config.json` of its folder, or the GGUF file
/// itself.
pub fn model_config_file(model: &Path) -> PathBuf {
    match files::is_file(model) {
        true => model.to_owned(),
        false => model.join("config.json"),
    }
}

/// The configuration of a model in a folder or in a GGUF file, as the object that `config.json`
/// holds.
///
/// # Errors
/// The file cannot be read, or is no JSON; a GGUF file of an architecture that is not known, or
/// without its settings.
pub fn read_model_config(model: &Path) -> Result<Value> {
    match gguf::is_gguf(model)? {
        true => Gguf::open(model)?.config(),
        false => read_json(&model_config_file(model)),
    }
}

/// Reads fields of one JSON object. A faulty field gives a harmless stand-in and is remembered;
/// [`finish`](Self::finish) tells.
///
/// ```
/// # use lowrank_formats::ConfigReader;
/// let value = serde_json::json!({ "hidden_size": 384, "layer_norm_eps": "small" });
/// let reader = ConfigReader::new("config.json".as_ref(), &value);
/// let hidden_size = reader.usize("hidden_size", 1..=65_536);
/// let eps = reader.f64_or("layer_norm_eps", 1e-12, 0.0..=1.0);
/// assert_eq!(hidden_size, 384);
/// assert_eq!(
///     reader.finish().unwrap_err().to_string(),
///     "`config.json` has a fault\n  layer_norm_eps: expected a number from 0 to 1, \
///      found `\"small\"`"
/// );
/// # let _ = eps;
/// ```
#[derive(Debug)]
pub struct ConfigReader<'a> {
    path: PathBuf,
    object: Option<&'a Map<String, Value>>,
    aliases: Vec<(String, String)>,
    faults: RefCell<Vec<Fault>>,
}

impl<'a> ConfigReader<'a> {
    /// A reader of the object `value`, which came from `path`.
    pub fn new(path: &Path, value: &'a Value) -> ConfigReader<'a> {
        let reader = ConfigReader {
            path: path.to_owned(),
            object: value.as_object(),
            aliases: Vec::new(),
            faults: RefCell::default(),
        };
        if reader.object.is_none() {
            reader.fault("(whole file)", "expected a JSON object");
        }
        reader
    }

    /// Lets `key` also be found under another name, as in GPT-2's `n_embd` for `hidden_size`. `key`
    /// itself goes first.
    pub fn alias(mut self, key: &str, other: &str) -> Self {
        self.aliases.push((key.into(), other.into()));
        self
    }

    /// The value of a key as it stands, `null` included.
    pub fn raw(&self, key: &str) -> Option<&'a Value> {
        let object = self.object?;
        object.get(key).or_else(|| {
            let others = self.aliases.iter().filter(|(name, _)| name == key);
            others
                .into_iter()
                .find_map(|(_, other)| object.get(other.as_str()))
        })
    }

    /// Whether the key is there and not `null`.
    pub fn has(&self, key: &str) -> bool {
        self.raw(key).is_some_and(|value| !value.is_null())
    }

    /// Remembers a fault of one's own.
    pub fn fault(&self, place: &str, message: impl Into<String>) {
        self.faults.borrow_mut().push(Fault {
            place: place.to_owned(),
            message: message.into(),
        });
    }

    /// An integer that must be there. The stand-in is the range's start.
    pub fn usize(&self, key: &str, range: RangeInclusive<usize>) -> usize {
        self.required(key, &integer_range(&range), |value| as_usize(value, &range))
            .unwrap_or(*range.start())
    }

    /// An integer, or `default` where the key is missing or `null`.
    pub fn usize_or(&self, key: &str, default: usize, range: RangeInclusive<usize>) -> usize {
        self.opt_usize(key, range).unwrap_or(default)
    }

    /// An integer, if the key is there and not `null`.
    pub fn opt_usize(&self, key: &str, range: RangeInclusive<usize>) -> Option<usize> {
        self.optional(key, &integer_range(&range), |value| as_usize(value, &range))
    }

    /// A number that must be there. The stand-in is the range's start.
    pub fn f64(&self, key: &str, range: RangeInclusive<f64>) -> f64 {
        self.required(key, &number_range(&range), |value| as_f64(value, &range))
            .unwrap_or(*range.start())
    }

    /// A number, or `default` where the key is missing or `null`.
    pub fn f64_or(&self, key: &str, default: f64, range: RangeInclusive<f64>) -> f64 {
        self.opt_f64(key, range).unwrap_or(default)
    }

    /// A number, if the key is there and not `null`.
    pub fn opt_f64(&self, key: &str, range: RangeInclusive<f64>) -> Option<f64> {
        self.optional(key, &number_range(&range), |value| as_f64(value, &range))
    }

    /// True or false; must be there. The stand-in is false.
    pub fn bool(&self, key: &str) -> bool {
        self.required(key, "true or false", Value::as_bool)
            .unwrap_or(false)
    }

    /// True or false, or `default` where the key is missing or `null`.
    pub fn bool_or(&self, key: &str, default: bool) -> bool {
        self.optional(key, "true or false", Value::as_bool)
            .unwrap_or(default)
    }

    /// Text that must be there. The stand-in is empty.
    pub fn string(&self, key: &str) -> String {
        self.required(key, "text", as_string).unwrap_or_default()
    }

    /// Text, or `default` where the key is missing or `null`.
    pub fn string_or(&self, key: &str, default: &str) -> String {
        self.opt_string(key).unwrap_or_else(|| default.to_owned())
    }

    /// Text, if the key is there and not `null`.
    pub fn opt_string(&self, key: &str) -> Option<String> {
        self.optional(key, "text", as_string)
    }

    /// A list of text, if the key is there and not `null`.
    pub fn opt_strings(&self, key: &str) -> Option<Vec<String>> {
        self.optional(key, "a list of text", |value| {
            value.as_array()?.iter().map(as_string).collect()
        })
    }

    /// A map of text to text in the file's order (`id2label`), if the key is there and not `null`.
    pub fn opt_string_map(&self, key: &str) -> Option<Vec<(String, String)>> {
        self.optional(key, "an object of text", |value| {
            let entries = value.as_object()?.iter();
            entries
                .map(|(key, value)| Some((key.clone(), as_string(value)?)))
                .collect()
        })
    }

    /// A list of true and false, if the key is there and not `null`; numbers count as in Python.
    pub fn opt_bools(&self, key: &str) -> Option<Vec<bool>> {
        self.optional(key, "a list of true and false", |value| {
            let truth = |value: &Value| value.as_bool().or(Some(value.as_i64()? != 0));
            value.as_array()?.iter().map(truth).collect()
        })
    }

    /// A list of numbers, if the key is there and not `null`.
    pub fn opt_numbers(&self, key: &str, range: RangeInclusive<f64>) -> Option<Vec<f64>> {
        let expected = format!("a list of {}", number_range(&range));
        self.optional(key, &expected, |value| {
            let values = value.as_array()?.iter();
            values.map(|value| as_f64(value, &range)).collect()
        })
    }

    /// What `read` makes of the object under `key`, if it is there and not `null`; its faults are
    /// named `key.field`.
    pub fn within<T>(&self, key: &str, read: impl FnOnce(&ConfigReader<'a>) -> T) -> Option<T> {
        let value = self.optional(key, "an object", |value| value.is_object().then_some(value))?;
        let inner = ConfigReader::new(&self.path, value);
        let found = read(&inner);
        for fault in inner.faults.into_inner() {
            self.fault(&format!("{key}.{}", fault.place), fault.message);
        }
        Some(found)
    }

    /// One of several words; must be there. The stand-in is the first choice.
    ///
    /// Panics if `choices` is empty.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> T {
        self.required(key, &choice_list(choices), Value::as_str)
            .and_then(|word| self.pick(key, word, choices))
            .unwrap_or(choices[0].1)
    }

    /// One of several words, or `default` where the key is missing or `null`.
    pub fn choice_or<T: Copy>(&self, key: &str, default: T, choices: &[(&str, T)]) -> T {
        self.optional(key, &choice_list(choices), Value::as_str)
            .and_then(|word| self.pick(key, word, choices))
            .unwrap_or(default)
    }

    /// Ends the reading: an error that lists every fault, if there was one.
    pub fn finish(self) -> Result<()> {
        let faults = self.faults.into_inner();
        if faults.is_empty() {
            return Ok(());
        }
        Err(FormatError::Config {
            path: self.path,
            faults,
        })
    }

    fn pick<T: Copy>(&self, key: &str, word: &str, choices: &[(&str, T)]) -> Option<T> {
        let found = choices.iter().find(|(name, _)| *name == word);
        if found.is_none() {
            let meant = nearest(word, choices.iter().map(|(name, _)| *name));
            let meant = meant.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
            let expected = choice_list(choices);
            self.fault(key, format!("expected {expected}, found `{word}`{meant}"));
        }
        found.map(|(_, value)| *value)
    }

    fn required<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        // A file that is no object has that one fault, not one for each key.
        let object = self.object?;
        let Some(value) = self.raw(key) else {
            let meant = nearest(key, object.keys().map(String::as_str));
            let meant = meant.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
            self.fault(key, format!("missing, expected {expected}{meant}"));
            return None;
        };
        self.convert(key, expected, value, convert)
    }

    /// A value of one's own kind, if the key is there and not `null`; `expected` names the kind.
    pub fn optional<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.raw(key).filter(|value| !value.is_null())?;
        self.convert(key, expected, value, convert)
    }

    fn convert<T>(
        &self,
        key: &str,
        expected: &str,
        value: &'a Value,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let converted = convert(value);
        if converted.is_none() {
            self.fault(
                key,
                format!("expected {expected}, found `{}`", shown(value)),
            );
        }
        converted
    }
}

/// A value as it stands, cut where it is long.
pub(crate) fn shown(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string();
    if text.chars().count() <= LONGEST {
        return text;
    }
    let cut: String = text.chars().take(LONGEST).collect();
    cut + "…"
}

fn as_usize(value: &Value, range: &RangeInclusive<usize>) -> Option<usize> {
    let number = usize::try_from(value.as_u64()?).ok()?;
    range.contains(&number).then_some(number)
}

fn as_f64(value: &Value, range: &RangeInclusive<f64>) -> Option<f64> {
    let number = value.as_f64()?;
    range.contains(&number).then_some(number)
}

fn as_string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn integer_range(range: &RangeInclusive<usize>) -> String {
    if *range.end() == usize::MAX {
        return format!("an integer from {} on", range.start());
    }
    format!("an integer from {} to {}", range.start(), range.end())
}

fn number_range(range: &RangeInclusive<f64>) -> String {
    match (range.start().is_finite(), range.end().is_finite()) {
        (false, false) => "a number".to_owned(),
        (true, false) => format!("a number from {} on", range.start()),
        (false, true) => format!("a number up to {}", range.end()),
        (true, true) => format!("a number from {} to {}", range.start(), range.end()),
    }
}

fn choice_list<T>(choices: &[(&str, T)]) -> String {
    let names: Vec<String> = choices
        .iter()
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    match names.as_slice() {
        [only] => only.clone(),
        _ => format!("one of {}", names.join(", ")),
    }
}
