//! What the JSON files beside a vocabulary say about a tokenizer: `tokenizer_config.json`,
//! `special_tokens_map.json`, `added_tokens.json`, and of `config.json` and
//! `generation_config.json` the few keys that speak of it. [`Settings::parse`] is a pure function
//! of their bytes.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::class::{Class, TokenizerFamily, drops_token_types};
use super::read::read_if_there;
use crate::error::TokenizerError;

/// The bytes of the files, where they are there.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) tokenizer_config: Option<Vec<u8>>,
    pub(super) special_tokens_map: Option<Vec<u8>>,
    pub(super) added_tokens: Option<Vec<u8>>,
    pub(super) config: Option<Vec<u8>>,
    pub(super) generation_config: Option<Vec<u8>>,
}

impl Sources {
    /// Reads what is there. The model's own files are the model loader's to complain of.
    pub(super) fn read(dir: &Path) -> Result<Self, TokenizerError> {
        let model = |name| read_if_there(&dir.join(name)).unwrap_or_default();
        Ok(Self {
            tokenizer_config: read_if_there(&dir.join("tokenizer_config.json"))?,
            special_tokens_map: read_if_there(&dir.join("special_tokens_map.json"))?,
            added_tokens: read_if_there(&dir.join("added_tokens.json"))?,
            config: model("config.json"),
            generation_config: model("generation_config.json"),
        })
    }
}

/// The settings beside a vocabulary, as transformers joins them.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// `tokenizer_config.json`; over it `special_tokens_map.json`, which counts only without
    /// `added_tokens_decoder`.
    values: Map<String, Value>,
    /// Keys that come from `special_tokens_map.json`.
    from_map: HashSet<String>,
    /// Tokens with the ids that they must have, in the order of these.
    decoder: Vec<(u32, AddedToken)>,
    /// Where a token stands in `decoder`.
    places: HashMap<String, usize>,
    model: Map<String, Value>,
    generation: Map<String, Value>,
}

/// The roles of special tokens that each class knows, in the order in which transformers adds them.
pub(super) const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

impl Settings {
    /// Parses the files. `dir` is only for the names in errors.
    pub(super) fn parse(dir: &Path, sources: &Sources) -> Result<Self, TokenizerError> {
        let object = |name: &str, bytes: &Option<Vec<u8>>| match bytes {
            Some(bytes) => parse_object(&dir.join(name), bytes),
            None => Ok(Map::new()),
        };
        let quiet = |bytes: &Option<Vec<u8>>| -> Map<String, Value> {
            let parsed = bytes.as_deref().map(serde_json::from_slice);
            parsed.and_then(Result::ok).unwrap_or_default()
        };
        let mut settings = Self {
            values: object("tokenizer_config.json", &sources.tokenizer_config)?,
            model: quiet(&sources.config),
            generation: quiet(&sources.generation_config),
            ..Self::default()
        };
        if let Some(table) = settings.values.get("added_tokens_decoder") {
            settings.decoder = decoder(&dir.join("tokenizer_config.json"), table)?;
        } else {
            let map = object("special_tokens_map.json", &sources.special_tokens_map)?;
            settings.from_map = map.keys().cloned().collect();
            settings.values.extend(map);
            let added = object("added_tokens.json", &sources.added_tokens)?;
            settings.decoder = settings.listed(&dir.join("added_tokens.json"), added)?;
        }
        let contents = settings.decoder.iter().map(|(_, t)| t.content.clone());
        settings.places = contents.zip(0..).collect();
        Ok(settings)
    }

    /// The tokens of `added_tokens.json`: special are those that have a role or stand in the list
    /// of special ones.
    fn listed(
        &self,
        path: &Path,
        added: Map<String, Value>,
    ) -> Result<Vec<(u32, AddedToken)>, TokenizerError> {
        let named = self.named_tokens().into_iter().map(|(_, token)| token);
        let special: HashSet<String> = named
            .chain(self.extra_tokens())
            .map(|token| token.content)
            .collect();
        let mut tokens = Vec::with_capacity(added.len());
        for (content, id) in added {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| {
                malformed(
                    path,
                    None,
                    format!("the id of `{content}` is not a token id"),
                )
            })?;
            let special = special.contains(&content);
            tokens.push((id, AddedToken::from(content, special)));
        }
        tokens.sort_by_key(|(id, _)| *id);
        Ok(tokens)
    }

    /// A boolean setting, if it is set.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.values.get(key)?.as_bool()
    }

    /// Whether the ids of added tokens come from `tokenizer_config.json`.
    pub(super) fn has_decoder(&self) -> bool {
        self.values.contains_key("added_tokens_decoder")
    }

    /// The limit that the tokenizer's author set; values as large as 1e30 mean none.
    pub(super) fn model_max_length(&self) -> Option<usize> {
        let key = ["model_max_length", "max_len"];
        let value = key.iter().find_map(|key| self.values.get(*key));
        let limit = value?.as_f64()?;
        (1.0..1e9).contains(&limit).then_some(limit as usize)
    }

    /// Whether long texts lose their beginning.
    pub(super) fn truncates_left(&self) -> bool {
        self.values.get("truncation_side").and_then(Value::as_str) == Some("left")
    }

    /// Whether token types are inputs, where the settings list the inputs or name a class that has
    /// none.
    pub(super) fn wants_token_types(&self) -> Option<bool> {
        match self
            .values
            .get("model_input_names")
            .and_then(Value::as_array)
        {
            Some(names) => Some(names.iter().any(|name| name == "token_type_ids")),
            None => {
                let (class, _) = self.class()?;
                drops_token_types(class).then_some(false)
            }
        }
    }

    /// The token that the files give to a role, if they name one. `null` names none.
    pub(super) fn named(&self, role: &str) -> Option<AddedToken> {
        let value = self.values.get(role)?;
        self.token(role, value)
    }

    /// What the files say under a key.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Whether the files speak of a role at all, `null` included.
    pub(super) fn speaks_of(&self, role: &str) -> bool {
        self.values.contains_key(role)
    }

    /// The token of a role, or the class's usual one, or `usual`.
    pub(super) fn special_token(&self, role: &str, usual: &str) -> AddedToken {
        self.named(role)
            .unwrap_or_else(|| AddedToken::from(usual, true))
    }

    /// All tokens that have a role, in the order in which they are added: the roles that every
    /// class knows, then others.
    pub(super) fn named_tokens(&self) -> Vec<(String, AddedToken)> {
        let usual = ROLES.iter().map(|role| (*role).to_string());
        let own = self.values.iter().filter(|(key, value)| {
            key.ends_with("_token") && !ROLES.contains(&key.as_str()) && value.as_str().is_some()
        });
        let mut tokens: Vec<(String, AddedToken)> = usual
            .chain(own.map(|(key, _)| key.clone()))
            .filter_map(|role| Some((role.clone(), self.named(&role)?)))
            .collect();
        if let Some(Value::Object(table)) = self.values.get("extra_special_tokens") {
            let token = |(role, value): (&String, _)| {
                Some((role.clone(), self.token("extra_special_tokens", value)?))
            };
            tokens.extend(table.iter().filter_map(token));
        }
        tokens
    }

    /// The list of special tokens without a role, if the files have one (it may be empty):
    /// `extra_special_tokens`, or under its old name `additional_special_tokens`.
    pub(super) fn extra_list(&self) -> Option<Vec<AddedToken>> {
        let keys = ["extra_special_tokens", "additional_special_tokens"];
        let lists = keys.into_iter().filter_map(|key| {
            let list = self.values.get(key)?.as_array()?;
            Some((key, list))
        });
        // An empty new list leaves the word to the old one.
        let (key, list) = lists.max_by_key(|(_, list)| !list.is_empty())?;
        Some(list.iter().filter_map(|v| self.token(key, v)).collect())
    }

    /// Whether that list stands in `special_tokens_map.json` alone, where it adds to what a
    /// vocabulary file has.
    pub(super) fn extra_is_from_map(&self) -> bool {
        let keys = ["extra_special_tokens", "additional_special_tokens"];
        let there: Vec<_> = keys
            .into_iter()
            .filter(|k| self.values.contains_key(*k))
            .collect();
        !there.is_empty() && there.iter().all(|key| self.from_map.contains(*key))
    }

    /// The special tokens without a role.
    pub(super) fn extra_tokens(&self) -> Vec<AddedToken> {
        self.extra_list().unwrap_or_default()
    }

    /// Tokens added to the vocabulary, with the ids that they must have, in order of id.
    pub(super) fn decoder(&self) -> &[(u32, AddedToken)] {
        &self.decoder
    }

    /// A token by a string or an object. One that stands in the table of added tokens has that
    /// entry's flags.
    fn token(&self, key: &str, value: &Value) -> Option<AddedToken> {
        let token = match value.as_str() {
            Some(content) => AddedToken::from(content, true),
            None => {
                let from_map = self.from_map.contains(key);
                AddedToken {
                    special: true,
                    ..added_token(value, from_map)?
                }
            }
        };
        let place = self.places.get(&token.content);
        Some(match place.map(|&place| &self.decoder[place].1) {
            Some(listed) => AddedToken {
                special: true,
                ..listed.clone()
            },
            None => token,
        })
    }

    /// An id that config.json, or else generation_config.json, gives to a role (`eos_token_id`);
    /// the first of a list.
    pub(super) fn id(&self, key: &str) -> Option<u32> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        [&self.model, &self.generation]
            .into_iter()
            .filter_map(|file| file.get(key))
            .find_map(|value| match value {
                Value::Array(ids) => ids.first().and_then(id),
                value => id(value),
            })
    }

    /// The class that the files name: in `tokenizer_config.json`, or else in `config.json`.
    pub(super) fn class(&self) -> Option<(&str, &'static str)> {
        let tables = [
            ("tokenizer_config.json", &self.values),
            ("config.json", &self.model),
        ];
        tables.into_iter().find_map(|(file, values)| {
            let name = values.get("tokenizer_class")?.as_str()?;
            (!name.is_empty()).then_some((name, file))
        })
    }

    /// Python code that `tokenizer_config.json` brings along: the class's name.
    pub(super) fn own_code(&self) -> Option<String> {
        let classes = match self.values.get("auto_map")? {
            Value::Object(map) => map.get("AutoTokenizer")?,
            list => list,
        };
        let names: Vec<&str> = match classes {
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            name => name.as_str().into_iter().collect(),
        };
        names.last().map(|name| (*name).to_string())
    }

    /// The model's type, as config.json has it.
    pub(super) fn model_type(&self) -> Option<&str> {
        self.model.get("model_type")?.as_str()
    }

    /// The family that the named class belongs to, or where none is named the model's type.
    pub(super) fn family(&self) -> Option<TokenizerFamily> {
        match self.class() {
            Some((name, _)) => match Class::from_name(name) {
                Class::Known(family) => Some(family),
                Class::PythonOnly | Class::Foreign => None,
            },
            None => TokenizerFamily::from_name(self.model_type()?),
        }
    }
}

/// The table of added tokens: `{"171": {"content": "[brand]", ...}}`.
fn decoder(path: &Path, table: &Value) -> Result<Vec<(u32, AddedToken)>, TokenizerError> {
    let fault =
        |problem: String| malformed(path, None, format!("`added_tokens_decoder`: {problem}"));
    let Value::Object(table) = table else {
        return Err(fault("expected an object of ids and tokens".into()));
    };
    let mut tokens = Vec::with_capacity(table.len());
    for (id, value) in table {
        let token = id.parse().ok().zip(added_token(value, false));
        tokens.push(token.ok_or_else(|| fault(format!("entry `{id}` is not an id with a token")))?);
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}

/// A token by a string or an object with its flags. `special` says what the object's own word is
/// where it has none.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    if let Some(content) = value.as_str() {
        return Some(AddedToken::from(content, special));
    }
    let flag = |key: &str, usual| value.get(key).and_then(Value::as_bool).unwrap_or(usual);
    let special = flag("special", special);
    Some(
        AddedToken::from(value.get("content")?.as_str()?, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special)),
    )
}

/// Parses the content of a JSON file that must hold an object.
pub(super) fn parse_object(
    path: &Path,
    bytes: &[u8],
) -> Result<Map<String, Value>, TokenizerError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(malformed(path, None, "expected a JSON object".into())),
        Err(error) => {
            let problem = format!("not JSON: {error}");
            Err(malformed(path, Some(error.line()), problem))
        }
    }
}

pub(super) fn malformed(path: &Path, line: Option<usize>, problem: String) -> TokenizerError {
    TokenizerError::Malformed {
        path: PathBuf::from(path),
        line,
        problem,
    }
}
