//! Which column holds what: named by the user, or found by the names that common data sets use.

mod finder;
mod names;

use serde::{Deserialize, Serialize};

use self::finder::Finder;
use self::names::{PAIRS, PROMPTS, SINGLES, TAGS, WORDS};
use crate::error::{ColumnRole, DataError};
use crate::labels::{LabelMap, Task};
use crate::load::LabelNeed;
use crate::rows::{FileFormat, Header, Table};

/// The word for no column, in the place of one.
pub const NO_COLUMN: &str = "none";

/// Columns named by the user; what is not named is found by common names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ColumnSpec {
    /// The text, or the first of a pair; for token classification the list of words; or a column of
    /// token ids named `input_ids`.
    pub text: Option<String>,
    /// The second text of a pair. If `text` is named and this is not, there is no second text.
    pub text_pair: Option<String>,
    /// What a language model's prompt is about, which becomes part of the prompt. If `text` and
    /// `text_pair` are named and this is not, there is none. [`NO_COLUMN`], where no column has
    /// that name, says that nothing beside the prompt is read.
    pub context: Option<String>,
    /// The label.
    pub label: Option<String>,
    /// Columns of 0 and 1, each of which is a label; in place of `label`.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// Where a row's label is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LabelColumns {
    /// In one column.
    One(String),
    /// One column of 0 and 1 for each label, in order of the classes.
    Each(Vec<String>),
}

impl LabelColumns {
    /// The names of the columns.
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Each(names) => names,
        }
    }
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
        prompt: PromptColumns,
        /// What follows.
        completion: String,
    },
    /// Turns of a chat, which the model's chat template lays out.
    Chat {
        /// The list of turns.
        turns: String,
        /// What is said to the model before it, where that stands apart.
        system: Option<String>,
        /// The tools that it may call.
        tools: Option<String>,
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

/// The columns that a language model's prompt is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PromptColumns {
    /// The prompt itself.
    pub prompt: String,
    /// What it is about: Alpaca's `input`, Dolly's `context`.
    pub context: Option<String>,
    /// What is said to the model before it.
    pub system: Option<String>,
    /// Earlier turns, which must be empty: conversations are not read.
    pub history: Option<String>,
}

impl PromptColumns {
    pub(crate) fn all(&self) -> impl Iterator<Item = &String> {
        let others = [&self.context, &self.system, &self.history];
        [&self.prompt]
            .into_iter()
            .chain(others.into_iter().flatten())
    }
}

impl TextColumns {
    /// The columns with what they hold, for a line.
    pub fn describe(&self) -> String {
        match self {
            Self::Text { text, pair: None } => format!("text `{text}`"),
            Self::Text {
                text,
                pair: Some(pair),
            } => format!("text `{text}`, second text `{pair}`"),
            Self::Completion { prompt, completion } => {
                let parts = [
                    ("system prompt", prompt.system.as_ref()),
                    ("prompt", Some(&prompt.prompt)),
                    ("context", prompt.context.as_ref()),
                    ("completion", Some(completion)),
                ];
                let named = parts
                    .iter()
                    .filter_map(|(name, column)| Some(format!("{name} `{}`", (*column)?)));
                named.collect::<Vec<_>>().join(", ")
            }
            Self::Chat {
                turns,
                system,
                tools,
            } => {
                let beside = [("system prompt", system), ("tools", tools)];
                let beside = beside.map(|(name, column)| {
                    let named = column.as_ref().map(|column| format!(", {name} `{column}`"));
                    named.unwrap_or_default()
                });
                format!("chats `{turns}`{}", beside.concat())
            }
            Self::Words { words } => format!("words `{words}`"),
            Self::Ids { input_ids, .. } => format!("token ids `{input_ids}`"),
        }
    }
}

/// The columns that a file's rows are read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    /// The text.
    pub text: TextColumns,
    /// The label, where one is read.
    pub label: Option<LabelColumns>,
}

impl ColumnSpec {
    /// The columns of a file for a task; classes that are `known` may have a column each.
    pub fn resolve(
        &self,
        table: &Table,
        task: Task,
        need: LabelNeed,
        known: Option<&LabelMap>,
    ) -> Result<Columns, DataError> {
        self.by_place(table).resolve_named(table, task, need, known)
    }

    fn resolve_named(
        &self,
        table: &Table,
        task: Task,
        need: LabelNeed,
        known: Option<&LabelMap>,
    ) -> Result<Columns, DataError> {
        let finder = Finder::new(table);
        let text = self.text_columns(&finder, task)?;
        if task == Task::CausalLm {
            // Only rows of ids carry labels of their own: which tokens count.
            let name = self.label.clone().unwrap_or_else(|| "labels".into());
            let of_ids = matches!(text, TextColumns::Ids { .. }) && need != LabelNeed::Ignored;
            let label = match &self.label {
                Some(label) if of_ids => Some(finder.named(label, ColumnRole::Label)?),
                Some(_) | None => finder.first(&[&name]).filter(|_| of_ids),
            };
            let label = label.map(LabelColumns::One);
            return Ok(Columns { text, label });
        }
        let taken = Columns { text, label: None };
        let label = match need {
            LabelNeed::Ignored => None,
            LabelNeed::IfPresent if self.label.as_ref().is_some_and(|name| !finder.has(name)) => {
                None
            }
            LabelNeed::IfPresent => self.label_columns(&finder, &taken, task, known)?,
            LabelNeed::Required => Some(
                self.label_columns(&finder, &taken, task, known)?
                    .ok_or_else(|| finder.none(ColumnRole::Label))?,
            ),
        };
        Ok(Columns { label, ..taken })
    }

    /// The columns named, or else found: by a known name, by the names of the classes, or as all
    /// columns of 0 and 1.
    fn label_columns(
        &self,
        finder: &Finder,
        taken: &Columns,
        task: Task,
        known: Option<&LabelMap>,
    ) -> Result<Option<LabelColumns>, DataError> {
        if !self.labels.is_empty() {
            return self.named_label_columns(finder, task, known).map(Some);
        }
        if let Some(name) = &self.label {
            return Ok(Some(LabelColumns::One(
                finder.named(name, ColumnRole::Label)?,
            )));
        }
        if task == Task::TokenClassification {
            return Ok(finder.first(&TAGS).map(LabelColumns::One));
        }
        if task == Task::MultiLabel
            && let Some(columns) = finder.column_each(taken, known)
        {
            return Ok(Some(LabelColumns::Each(columns)));
        }
        Ok(finder.label(taken)?.map(LabelColumns::One))
    }

    fn named_label_columns(
        &self,
        finder: &Finder,
        task: Task,
        known: Option<&LabelMap>,
    ) -> Result<LabelColumns, DataError> {
        if self.label.is_some() || task != Task::MultiLabel {
            return Err(DataError::Spec(
                "--label-columns names one column of 0 and 1 for each label: it needs --task multi_label, and no --label-column".into(),
            ));
        }
        for name in &self.labels {
            finder.named(name, ColumnRole::Label)?;
        }
        let Some(known) = known else {
            return Ok(LabelColumns::Each(self.labels.clone()));
        };
        // In the order of the classes where they have the columns' names; else the order named is
        // theirs.
        if known.names().iter().all(|name| self.labels.contains(name)) {
            return Ok(LabelColumns::Each(known.names().to_vec()));
        }
        if known.len() != self.labels.len() {
            return Err(DataError::Spec(format!(
                "{} columns of labels for {} classes",
                self.labels.len(),
                known.len()
            )));
        }
        Ok(LabelColumns::Each(self.labels.clone()))
    }

    /// The same with columns that the form of a table without a header gives away, where none is
    /// named.
    fn by_place(&self, table: &Table) -> Self {
        match table.by_place().filter(|_| *self == Self::default()) {
            None => self.clone(),
            Some((text, label)) => Self {
                text: Some(text.into()),
                label: Some(label.into()).filter(|label: &String| !label.is_empty()),
                ..Self::default()
            },
        }
    }

    fn text_columns(&self, finder: &Finder, task: Task) -> Result<TextColumns, DataError> {
        if self.context.is_some() && task != Task::CausalLm {
            return Err(DataError::Spec(
                "--context-column is for a language model's prompts; a second text is named with --text-pair-column".into(),
            ));
        }
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
            None => finder.text(),
        };
        let text = text.ok_or_else(|| finder.none(ColumnRole::Text))?;
        Ok(TextColumns::Text { text, pair })
    }
}

/// What a prompt's own column has beside it.
enum Beside {
    /// What is found by the names that data sets use.
    Found,
    /// A column that was named, and what is found besides.
    Named(String),
    /// Nothing.
    Nothing,
}

impl Beside {
    fn named(self) -> Option<String> {
        match self {
            Self::Named(name) => Some(name),
            Self::Found | Self::Nothing => None,
        }
    }
}

impl ColumnSpec {
    /// A text to go on with, or a prompt and its completion; `pair` is the column of the
    /// completion, if it was named.
    fn causal_columns(
        &self,
        finder: &Finder,
        pair: Option<String>,
    ) -> Result<TextColumns, DataError> {
        let typed = matches!(finder.format, FileFormat::Jsonl | FileFormat::Parquet);
        let beside = self.beside(finder)?;
        let named = match &self.text {
            Some(name) => Some(finder.named(name, ColumnRole::Text)?),
            None if typed && finder.has("input_ids") && pair.is_none() => Some("input_ids".into()),
            None => None,
        };
        if let Some(prompt) = named {
            return match (pair, beside) {
                (Some(completion), beside) => Ok(TextColumns::Completion {
                    prompt: PromptColumns {
                        prompt,
                        context: beside.named(),
                        ..PromptColumns::default()
                    },
                    completion,
                }),
                (None, Beside::Named(_)) => Err(Self::context_alone()),
                (None, Beside::Found | Beside::Nothing) if prompt == "input_ids" => {
                    Ok(finder.ids(prompt))
                }
                (None, Beside::Found | Beside::Nothing) if finder.holds_turns(&prompt) => {
                    Ok(finder.chat(prompt))
                }
                (None, Beside::Found | Beside::Nothing) => Ok(TextColumns::Text {
                    text: prompt,
                    pair: None,
                }),
            };
        }
        if pair.is_none()
            && let Some(turns) = finder.turns()
        {
            return Ok(finder.chat(turns));
        }
        if let Some((prompt, completion)) = finder.completion(pair.as_deref()) {
            return Ok(TextColumns::Completion {
                prompt: finder.around(prompt, completion, beside),
                completion: completion.into(),
            });
        }
        if matches!(beside, Beside::Named(_)) {
            return Err(Self::context_alone());
        }
        let text = finder.text().filter(|_| pair.is_none());
        let text = text.ok_or_else(|| finder.none_causal(ColumnRole::Text))?;
        Ok(TextColumns::Text { text, pair: None })
    }

    fn beside(&self, finder: &Finder) -> Result<Beside, DataError> {
        match &self.context {
            None => Ok(Beside::Found),
            Some(name) if name == NO_COLUMN && !finder.has(name) => Ok(Beside::Nothing),
            Some(name) => Ok(Beside::Named(finder.named(name, ColumnRole::Context)?)),
        }
    }

    fn context_alone() -> DataError {
        DataError::Spec("--context-column needs a prompt and its completion beside it".into())
    }

    /// The columns of a file's prompts, as in training; completions need not be there.
    ///
    /// # Errors
    /// A named column is not there, or none is known to hold prompts.
    pub fn resolve_prompt(&self, table: &Table) -> Result<PromptColumns, DataError> {
        let finder = Finder::new(table);
        let beside = self.beside(&finder)?;
        if let Some(name) = &self.text {
            return Ok(PromptColumns {
                prompt: finder.named(name, ColumnRole::Prompt)?,
                context: beside.named(),
                ..PromptColumns::default()
            });
        }
        let (prompt, completion) = match finder.completion(self.text_pair.as_deref()) {
            Some(pair) => pair,
            None => {
                let found = PROMPTS.into_iter().find(|name| finder.has(name));
                let alone = (finder.columns.len() == 1).then(|| finder.columns[0].as_str());
                let found = found.or(alone.filter(|_| finder.header == Header::Absent));
                (
                    found.ok_or_else(|| finder.none_causal(ColumnRole::Prompt))?,
                    "",
                )
            }
        };
        Ok(finder.around(prompt, completion, beside))
    }
}

impl Columns {
    /// The columns that are read.
    pub fn read(&self) -> Vec<&String> {
        let mut used: Vec<&String> = self.label.iter().flat_map(LabelColumns::names).collect();
        match &self.text {
            TextColumns::Text { text, pair } => used.extend([text].into_iter().chain(pair)),
            TextColumns::Completion { prompt, completion } => {
                used.extend(prompt.all().chain([completion]));
            }
            TextColumns::Chat {
                turns,
                system,
                tools,
            } => used.extend([turns].into_iter().chain(system).chain(tools)),
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
        used
    }

    /// The columns of a file that are not read.
    pub fn ignored(&self, table: &Table) -> Vec<String> {
        let used = self.read();
        let columns = table.columns().iter();
        columns
            .filter(|name| !used.contains(name))
            .cloned()
            .collect()
    }
}
