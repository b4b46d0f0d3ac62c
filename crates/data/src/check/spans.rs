//! A language model's row in runs of tokens that are learned, and of tokens that are not.

use serde::Serialize;

use crate::labels::{IGNORE_INDEX, Label};
use crate::load::Example;
use crate::tokenizer::Tokenizer;

/// Tokens in a row of which all are learned, or none is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Whether they count in the loss.
    pub is_learned: bool,
    /// Their text; their ids if there is no tokenizer.
    pub text: String,
}

impl Run {
    /// The text between the marks that show what is learned.
    pub fn marked(&self) -> String {
        match self.is_learned {
            true => format!("«{}»", self.text),
            false => self.text.clone(),
        }
    }
}

/// The runs of a row whose labels are tokens.
pub(super) fn runs(example: &Example, tokenizer: Option<&Tokenizer>) -> Vec<Run> {
    let Label::Tokens(labels) = &example.label else {
        return Vec::new();
    };
    let ids = &example.input_ids;
    let (mut end, mut before, mut found) = (0, String::new(), Vec::new());
    for run in labels.chunk_by(|a, b| (*a == IGNORE_INDEX) == (*b == IGNORE_INDEX)) {
        let start = end;
        end += run.len();
        let alone = &ids[start..end];
        let text = tokenizer.and_then(|tokenizer| {
            // What a run adds to the text, since some tokenizers decode a first token otherwise.
            let all = tokenizer.decode(&ids[..end]).ok()?;
            let text = match all.strip_prefix(before.as_str()) {
                Some(added) => added.to_owned(),
                None => tokenizer.decode(alone).ok()?,
            };
            before = all;
            Some(text)
        });
        found.push(Run {
            is_learned: run[0] != IGNORE_INDEX,
            text: text.unwrap_or_else(|| format!("{alone:?}")),
        });
    }
    found
}
