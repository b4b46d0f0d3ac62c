//! What `tokenizer_config.json`, `special_tokens_map.json` and `config.json` say about a tokenizer. Other files are
//! not read here.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::TokenizerFamily;
use crate::error::TokenizerError;

/// The settings beside a vocabulary, as one map: `tokenizer_config.json` under `special_tokens_map.json`.
pub(super) struct Settings {
    values: Map<String, Value>,
    model_type: Option<String>,
}

impl Settings {
    /// Reads what is there; files that are missing count as empty.
    pub(super) fn read(dir: &Path) -> Result<Self, TokenizerError> {
        let mut values = read_object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        // As transformers does: the older map of special tokens counts only where the newer table is absent.
        if !values.contains_key("added_tokens_decoder") {
            let map = read_object(&dir.join("special_tokens_map.json"))?.unwrap_or_default();
            values.extend(map);
        }
        // A broken config.json is the model loader's to report; here it only helps to tell the family.
        let model_type = read_object(&dir.join("config.json"))
            .ok()
            .flatten()
            .and_then(|config| config.get("model_type")?.as_str().map(str::to_string));
        Ok(Self { values, model_type })
    }

    /// A boolean setting, if it is set.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.values.get(key)?.as_bool()
    }

    /// Whether `key` is given at all, `null` included.
    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The limit that the tokenizer's author set; values as large as 1e30 mean none.
    pub(super) fn model_max_length(&self) -> Option<usize> {
        let limit = self.values.get("model_max_length")?.as_f64()?;
        (1.0..1e9).contains(&limit).then_some(limit as usize)
    }

    /// Whether long texts lose their beginning.
    pub(super) fn truncates_left(&self) -> bool {
        self.values.get("truncation_side").and_then(Value::as_str) == Some("left")
    }

    /// The special token of a role such as `cls_token`, or its usual name.
    pub(super) fn special_token(&self, role: &str, usual: &str) -> AddedToken {
        self.values
            .get(role)
            .and_then(|value| self.added_token(value, true))
            .unwrap_or_else(|| AddedToken::from(usual, true))
    }

    /// Tokens added to the vocabulary, with their ids, in order of id.
    pub(super) fn added_tokens(
        &self,
        dir: &Path,
    ) -> Result<Vec<(u32, AddedToken)>, TokenizerError> {
        let mut tokens = Vec::new();
        if let Some(Value::Object(table)) = self.values.get("added_tokens_decoder") {
            for (id, value) in table {
                let token = id.parse().ok().zip(self.added_token(value, false));
                tokens.push(token.ok_or_else(|| TokenizerError::Malformed {
                    path: dir.join("tokenizer_config.json"),
                    line: None,
                    problem: format!(
                        "`added_tokens_decoder`: entry `{id}` is not an id with a token"
                    ),
                })?);
            }
        } else {
            let path = dir.join("added_tokens.json");
            for (content, id) in read_object(&path)?.unwrap_or_default() {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let id = id.ok_or_else(|| TokenizerError::Malformed {
                    path: path.clone(),
                    line: None,
                    problem: format!("the id of `{content}` is not a token id"),
                })?;
                tokens.push((id, AddedToken::from(content, false)));
            }
        }
        tokens.sort_by_key(|(id, _)| *id);
        Ok(tokens)
    }

    fn added_token(&self, value: &Value, special: bool) -> Option<AddedToken> {
        if let Some(content) = value.as_str() {
            return Some(AddedToken::from(content, special));
        }
        let flag = |key: &str, usual| value.get(key).and_then(Value::as_bool).unwrap_or(usual);
        let special = special || flag("special", false);
        Some(
            AddedToken::from(value.get("content")?.as_str()?, special)
                .single_word(flag("single_word", false))
                .lstrip(flag("lstrip", false))
                .rstrip(flag("rstrip", false))
                .normalized(flag("normalized", !special)),
        )
    }

    /// The family that the class named in the settings, or else the model's type, belongs to.
    pub(super) fn family(&self) -> Option<TokenizerFamily> {
        let class = self.values.get("tokenizer_class").and_then(Value::as_str);
        [class, self.model_type.as_deref()]
            .into_iter()
            .flatten()
            .find_map(TokenizerFamily::from_name)
    }
}

/// A JSON file that must hold an object; `None` where there is no such file.
pub(super) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, TokenizerError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(TokenizerError::Read {
                path: path.into(),
                source,
            });
        }
    };
    parse_object(path, &bytes).map(Some)
}

/// Parses the content of a JSON file that must hold an object.
pub(super) fn parse_object(
    path: &Path,
    bytes: &[u8],
) -> Result<Map<String, Value>, TokenizerError> {
    let malformed = |line, problem| TokenizerError::Malformed {
        path: PathBuf::from(path),
        line,
        problem,
    };
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(malformed(None, "expected a JSON object".into())),
        Err(error) => Err(malformed(Some(error.line()), format!("not JSON: {error}"))),
    }
}
