//! Which column holds what: named by the user, or found by the names that common data sets use.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{ColumnRole, DataError};
use crate::labels::Task;
use crate::load::LabelNeed;
use crate::nearest::nearest;
use crate::rows::{FileFormat, Table};

/// Columns named by the user; what is not named is found by common names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ColumnSpec {
    /// The text, or the first of a pair; for token classification the list of words; or a column of token ids named
    /// `input_ids`.
    pub text: Option<String>,
    /// The second text of a pair. If `text` is named and this is not, there is no second text.
    pub text_pair: Option<String>,
    /// The label.
    pub label: Option<String>,
}

/// Where a row's text is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextColumns {
    /// One text, or two.
    Text {
        /// The text, or the first of a pair.
        text: String,
        /// The second.
        pair: Option<String>,
    },
    /// What a language model is given, and what it is to go on with.
    Completion {
        /// What is given.
        prompt: String,
        /// What follows.
        completion: String,
    },
    /// A list of words.
    Words {
        /// The words.
        words: String,
    },
    /// Rows that are already tokenised.
    Ids {
        /// The token ids.
        input_ids: String,
        /// The token types, if there are any.
        token_type_ids: Option<String>,
        /// 1 for tokens, 0 for padding at the end, which is taken away.
        attention_mask: Option<String>,
    },
}

/// The columns that a file's rows are read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    /// The text.
    pub text: TextColumns,
    /// The label, where one is read.
    pub label: Option<String>,
}

/// Pairs of common data sets, in order of preference: GLUE, SNLI and MNLI, QNLI, QQP, and plain names.
const PAIRS: [(&str, &str); 8] = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("text", "text_pair"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("query", "passage"),
];
/// Pairs for language models: what is given, what follows.
const COMPLETIONS: [(&str, &str); 7] = [
    ("prompt", "completion"),
    ("context", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("source", "target"),
    ("input", "output"),
];
const SINGLES: [&str; 7] = [
    "text",
    "sentence",
    "content",
    "review",
    "tweet",
    "document",
    "sentence1",
];
const WORDS: [&str; 2] = ["tokens", "words"];
const LABELS: [&str; 7] = [
    "label",
    "labels",
    "gold_label",
    "class",
    "target",
    "category",
    "sentiment",
];
const TAGS: [&str; 7] = [
    "ner_tags",
    "tags",
    "labels",
    "label",
    "pos_tags",
    "chunk_tags",
    "ner",
];
const SCORES: [&str; 7] = [
    "label",
    "labels",
    "score",
    "target",
    "rating",
    "similarity_score",
    "stars",
];

impl ColumnSpec {
    /// The columns of a file for a task.
    pub fn resolve(
        &self,
        table: &Table,
        task: Task,
        need: LabelNeed,
    ) -> Result<Columns, DataError> {
        let finder = Finder {
            path: table.path(),
            columns: table.columns(),
            format: table.format(),
        };
        let text = self.text_columns(&finder, task)?;
        if task == Task::CausalLm {
            // Only rows of ids carry labels of their own: which tokens count.
            let name = self.label.clone().unwrap_or_else(|| "labels".into());
            let of_ids = matches!(text, TextColumns::Ids { .. }) && need != LabelNeed::Ignored;
            let label = match &self.label {
                Some(label) if of_ids => Some(finder.named(label, ColumnRole::Label)?),
                Some(_) | None => finder.first(&[&name]).filter(|_| of_ids),
            };
            return Ok(Columns { text, label });
        }
        let label = match need {
            LabelNeed::Ignored => None,
            LabelNeed::IfPresent => match &self.label {
                Some(name) => finder.has(name).then(|| name.clone()),
                None => finder.label(task),
            },
            LabelNeed::Required => Some(match &self.label {
                Some(name) => finder.named(name, ColumnRole::Label)?,
                None => finder
                    .label(task)
                    .ok_or_else(|| finder.none(ColumnRole::Label))?,
            }),
        };
        Ok(Columns { text, label })
    }

    fn text_columns(&self, finder: &Finder, task: Task) -> Result<TextColumns, DataError> {
        let words_wanted = task == Task::TokenClassification;
        let pair = self
            .text_pair
            .as_ref()
            .map(|name| finder.named(name, ColumnRole::TextPair))
            .transpose()?;
        if task == Task::CausalLm {
            return self.causal_columns(finder, pair);
        }
        if let Some(name) = &self.text {
            let role = if words_wanted {
                ColumnRole::Words
            } else {
                ColumnRole::Text
            };
            let text = finder.named(name, role)?;
            return Ok(match () {
                () if text == "input_ids" => finder.ids(text),
                () if words_wanted => TextColumns::Words { words: text },
                () => TextColumns::Text { text, pair },
            });
        }
        // Only typed formats can hold lists of ids.
        let typed = matches!(finder.format, FileFormat::Jsonl | FileFormat::Parquet);
        if typed && finder.has("input_ids") && pair.is_none() {
            return Ok(finder.ids("input_ids".into()));
        }
        if words_wanted {
            let words = finder
                .first(&WORDS)
                .ok_or_else(|| finder.none(ColumnRole::Words))?;
            return Ok(TextColumns::Words { words });
        }
        if pair.is_none()
            && let Some((text, pair)) = PAIRS.iter().find(|(a, b)| finder.has(a) && finder.has(b))
        {
            return Ok(TextColumns::Text {
                text: text.to_string(),
                pair: Some(pair.to_string()),
            });
        }
        let text = match &pair {
            // The other half of a known pair, before any other text.
            Some(second) => PAIRS
                .iter()
                .find(|(a, b)| b == second && finder.has(a))
                .map(|(a, _)| a.to_string())
                .or_else(|| {
                    SINGLES
                        .iter()
                        .find(|name| *name != second && finder.has(name))
                        .map(|n| n.to_string())
                }),
            None => finder.first(&SINGLES),
        };
        let text = text.ok_or_else(|| finder.none(ColumnRole::Text))?;
        Ok(TextColumns::Text { text, pair })
    }
}

impl ColumnSpec {
    /// A text to go on with, or a prompt and its completion; `pair` is the column of the completion, if it was named.
    fn causal_columns(
        &self,
        finder: &Finder,
        pair: Option<String>,
    ) -> Result<TextColumns, DataError> {
        let typed = matches!(finder.format, FileFormat::Jsonl | FileFormat::Parquet);
        let named = match &self.text {
            Some(name) => Some(finder.named(name, ColumnRole::Text)?),
            None if typed && finder.has("input_ids") && pair.is_none() => Some("input_ids".into()),
            None => None,
        };
        if let Some(text) = named {
            return Ok(match pair {
                Some(completion) => TextColumns::Completion {
                    prompt: text,
                    completion,
                },
                None if text == "input_ids" => finder.ids(text),
                None => TextColumns::Text { text, pair: None },
            });
        }
        let known = COMPLETIONS.iter().find(|(prompt, completion)| {
            finder.has(prompt)
                && pair
                    .as_deref()
                    .map_or(finder.has(completion), |p| p == *completion)
        });
        if let Some((prompt, completion)) = known {
            return Ok(TextColumns::Completion {
                prompt: prompt.to_string(),
                completion: completion.to_string(),
            });
        }
        let text = finder.first(&SINGLES).filter(|_| pair.is_none());
        let text = text.ok_or_else(|| finder.none(ColumnRole::Text))?;
        Ok(TextColumns::Text { text, pair: None })
    }
}

impl Columns {
    /// The columns of a file that are not read.
    pub fn ignored(&self, table: &Table) -> Vec<String> {
        let mut used: Vec<&String> = self.label.iter().collect();
        match &self.text {
            TextColumns::Text { text, pair } => used.extend([text].into_iter().chain(pair)),
            TextColumns::Completion { prompt, completion } => used.extend([prompt, completion]),
            TextColumns::Words { words } => used.push(words),
            TextColumns::Ids {
                input_ids,
                token_type_ids,
                attention_mask,
            } => {
                used.extend(
                    [input_ids]
                        .into_iter()
                        .chain(token_type_ids)
                        .chain(attention_mask),
                );
            }
        }
        table
            .columns()
            .iter()
            .filter(|name| !used.contains(name))
            .cloned()
            .collect()
    }
}

struct Finder<'a> {
    path: &'a Path,
    columns: &'a [String],
    format: FileFormat,
}

impl Finder<'_> {
    fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column == name)
    }

    fn first(&self, names: &[&str]) -> Option<String> {
        names
            .iter()
            .find(|name| self.has(name))
            .map(|name| name.to_string())
    }

    fn label(&self, task: Task) -> Option<String> {
        match task {
            Task::SingleLabel | Task::MultiLabel => self.first(&LABELS),
            Task::Regression => self.first(&SCORES),
            Task::TokenClassification => self.first(&TAGS),
            Task::CausalLm => None,
        }
    }

    fn ids(&self, input_ids: String) -> TextColumns {
        TextColumns::Ids {
            input_ids,
            token_type_ids: self.first(&["token_type_ids"]),
            attention_mask: self.first(&["attention_mask"]),
        }
    }

    fn named(&self, name: &str, role: ColumnRole) -> Result<String, DataError> {
        if self.has(name) {
            return Ok(name.to_string());
        }
        Err(DataError::MissingColumn {
            path: self.path.into(),
            column: name.to_string(),
            role,
            columns: self.columns.to_vec(),
            nearest: nearest(name, self.columns),
        })
    }

    fn none(&self, role: ColumnRole) -> DataError {
        DataError::NoColumnFor {
            path: self.path.into(),
            role,
            columns: self.columns.to_vec(),
        }
    }
}
