//! One row to one example.

use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use lowrank_formats::nearest;

use super::causal::{Laid, Template};
use super::collect::{Outcome, Read};
use super::plan::LabelPlan;
use super::prompt::{self, Prompt, fault};
use super::{Example, LoadSpec, LongRows, blocks};
use crate::columns::{Columns, LabelColumns, PromptColumns, TextColumns};
use crate::error::{RowFault, RowFaultKind, TokenizerError};
use crate::labels::value::{is_gap, number};
use crate::labels::{IGNORE_INDEX, Label, Task, UnlabelledRows, wrong};
use crate::rows::{Cell, Row, Table, parse_list};
use crate::tokenizer::{Encoded, EncodedWords, Part, Tokenizer, refuse_long};

/// Everything that reading a row needs.
pub(super) struct RowReader<'a> {
    pub(super) table: &'a Table,
    pub(super) columns: &'a Columns,
    pub(super) spec: &'a LoadSpec,
    pub(super) tokenizer: Option<&'a Tokenizer>,
    pub(super) plan: &'a LabelPlan,
    /// Whether a prompt with its completion is a chat.
    pub(super) answers_are_chats: bool,
    /// Texts so long that only a part of them was tokenised.
    pub(super) parted: &'a AtomicUsize,
}

/// The tokens of a row, and, for token classification, a label for each.
struct Tokens {
    encoded: Encoded,
    labels: Option<Vec<i64>>,
}

/// Whether a row has a value that may be a label in each of these columns.
pub(super) fn has_label(table: &Table, row: &Row, columns: &LabelColumns) -> bool {
    columns
        .names()
        .iter()
        .all(|column| match table.get(row, column) {
            Some(Cell::Text(text)) => !is_gap(text),
            Some(Cell::Json(Value::String(text))) => !is_gap(text),
            Some(Cell::Json(_)) => true,
            None => false,
        })
}

impl RowReader<'_> {
    pub(super) fn read(&self, row: &Row) -> Result<Read, RowFault> {
        if let Some(chat) = self.chat(row) {
            return chat;
        }
        Ok(match self.tokenised(row)? {
            Outcome::Kept(example) if self.spec.long_rows == LongRows::Blocks => {
                blocks::blocks(example, self.spec.max_length.unwrap_or(usize::MAX))
            }
            outcome => Read::one(outcome),
        })
    }

    fn tokenised(&self, row: &Row) -> Result<Outcome, RowFault> {
        let label = self.columns.label.as_ref();
        let label = match label.map(|label| self.label(row, label)) {
            None => Label::None,
            Some(Ok(label)) => label,
            Some(Err(fault)) => {
                return match (&fault.kind, self.spec.unlabelled) {
                    (RowFaultKind::Unlabelled { .. }, UnlabelledRows::Drop) => {
                        Ok(Outcome::Unlabelled(fault))
                    }
                    _ => Err(fault),
                };
            }
        };
        let (column, mut tokens) = match self.tokens(row, &label) {
            Ok(found) => found,
            Err(fault) => {
                return match &fault.kind {
                    RowFaultKind::NoTokens("words") => Ok(Outcome::NoWords(fault)),
                    _ => Err(fault),
                };
            }
        };
        self.check_ids(&tokens.encoded)
            .map_err(|kind| fault(row, column, kind))?;
        if self.spec.task == Task::CausalLm {
            self.complete_labels(&mut tokens).map_err(|kind| {
                let label = self.columns.label.as_ref().map(LabelColumns::names);
                let label = label.and_then(<[String]>::first);
                fault(row, label.map_or(column, String::as_str), kind)
            })?;
        }
        let length = tokens.encoded.input_ids.len();
        if let Some(too_long) = self.too_long(row, column, length)? {
            return Ok(too_long);
        }
        Ok(Outcome::Kept(Example {
            input_ids: tokens.encoded.input_ids,
            token_type_ids: tokens.encoded.token_type_ids,
            label: tokens.labels.map_or(label, Label::Tokens),
            line: row.line,
            truncated_tokens: u32::try_from(tokens.encoded.truncated_tokens).unwrap_or(u32::MAX),
        }))
    }

    /// The tokens of a row, and the column that they are of.
    fn tokens(&self, row: &Row, label: &Label) -> Result<(&str, Tokens), RowFault> {
        Ok(match &self.columns.text {
            TextColumns::Text { text, .. } if self.spec.task == Task::CausalLm => {
                (text, self.causal(row, text)?)
            }
            TextColumns::Completion { prompt, completion } => {
                (&prompt.prompt, self.completed(row, prompt, completion)?)
            }
            TextColumns::Text { text, pair } => (text, self.text(row, text, pair.as_deref())?),
            // Columns of turns are refused where nothing lays them out.
            TextColumns::Chat { turns, .. } => {
                let kind = RowFaultKind::Chat("no chat template".into());
                return Err(fault(row, turns, kind));
            }
            TextColumns::Words { words } => {
                let tokens = self.words(row, words, label);
                (words, tokens.map_err(|kind| fault(row, words, kind))?)
            }
            TextColumns::Ids {
                input_ids,
                token_type_ids,
                attention_mask,
            } => {
                let (types, mask) = (token_type_ids.as_deref(), attention_mask.as_deref());
                (input_ids, self.ids(row, input_ids, types, mask, label)?)
            }
        })
    }

    fn text(&self, row: &Row, text: &str, pair: Option<&str>) -> Result<Tokens, RowFault> {
        let first = prompt::string(self.table, row, text)?;
        let second = pair
            .map(|pair| prompt::string(self.table, row, pair))
            .transpose()?;
        let refused = |error: String| fault(row, text, RowFaultKind::Tokenize(error));
        // The caller has made sure that there is a tokenizer wherever there is text.
        let tokenizer = self
            .tokenizer
            .ok_or_else(|| refused("no tokenizer".into()))?;
        let encoded = self
            .kept(tokenizer, first, second)
            .and_then(|(first, second)| tokenizer.encode(first, second, self.cut_at()))
            .map_err(|error| refused(error.to_string()))?;
        if encoded.input_ids.is_empty() {
            return Err(fault(row, text, RowFaultKind::NoTokens("tokens")));
        }
        Ok(Tokens {
            encoded,
            labels: None,
        })
    }

    /// What of a text, or of a pair, decides on the tokens that are kept.
    fn kept<'t>(
        &self,
        tokenizer: &Tokenizer,
        first: &'t str,
        second: Option<&'t str>,
    ) -> Result<(&'t str, Option<&'t str>), TokenizerError> {
        let part = |text, tokens| self.part(tokenizer, text, tokens, tokenizer.kept_part());
        Ok(match second {
            None => (part(first, 0)?, None),
            // Which text of a pair is cut hangs on which has more tokens: only the longer one is
            // parted, and stays the longer.
            Some(second) if first.len() >= second.len() => {
                refuse_long(second)?;
                (part(first, second.len())?, Some(second))
            }
            Some(second) => {
                refuse_long(first)?;
                (first, Some(part(second, first.len())?))
            }
        })
    }

    /// A part of a long text with as many tokens as may be kept, and more than `tokens`.
    fn part<'t>(
        &self,
        tokenizer: &Tokenizer,
        text: &'t str,
        tokens: usize,
        part: Part,
    ) -> Result<&'t str, TokenizerError> {
        let Some(most) = self.spec.max_length else {
            return Ok(text);
        };
        let found = tokenizer.part(text, most.max(tokens + 1), part)?;
        if found.len() < text.len() {
            self.parted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(found)
    }

    /// A language model's row that counts as a whole.
    fn causal(&self, row: &Row, column: &str) -> Result<Tokens, RowFault> {
        let text = prompt::string(self.table, row, column)?;
        self.laid(row, column, |template, tokenizer| {
            template.text(text, tokenizer)
        })
    }

    /// A language model's row of a prompt and what follows, which alone counts.
    fn completed(
        &self,
        row: &Row,
        columns: &PromptColumns,
        completion: &str,
    ) -> Result<Tokens, RowFault> {
        let prompt = Prompt::of_row(self.table, row, columns)?;
        let completion = prompt::completion(self.table, row, completion)?;
        // A row that is too long loses its prompt's beginning and its completion's end.
        self.laid(row, &columns.prompt, |template, tokenizer| {
            let end = |text| self.part(tokenizer, text, 0, Part::End).map(String::from);
            let prompt = Prompt {
                text: end(&prompt.text)?,
                context: end(&prompt.context)?,
            };
            let completion = self.part(tokenizer, completion, 0, Part::Beginning)?;
            template.pair(&prompt, completion, tokenizer)
        })
    }

    /// A row as the template lays it out: which tokens count is said by the labels.
    fn laid(
        &self,
        row: &Row,
        column: &str,
        lay: impl FnOnce(&Template, &Tokenizer) -> Result<Laid, TokenizerError>,
    ) -> Result<Tokens, RowFault> {
        let refused = |error: String| fault(row, column, RowFaultKind::Tokenize(error));
        let tokenizer = self
            .tokenizer
            .ok_or_else(|| refused("no tokenizer".into()))?;
        let mut laid =
            lay(&self.spec.template, tokenizer).map_err(|error| refused(error.to_string()))?;
        if laid.input_ids.is_empty() {
            return Err(fault(row, column, RowFaultKind::NoTokens("tokens")));
        }
        let truncated_tokens = laid.cut(self.cut_at());
        let labels = laid.labels();
        Ok(Tokens {
            encoded: Encoded {
                input_ids: laid.input_ids,
                token_type_ids: None,
                truncated_tokens,
            },
            labels: Some(labels),
        })
    }

    fn words(&self, row: &Row, column: &str, label: &Label) -> Result<Tokens, RowFaultKind> {
        const WANTED: &str = "a list of words";
        let cell = self
            .table
            .get(row, column)
            .ok_or_else(|| self.missing(row, column))?;
        let items = list(cell, WANTED)?;
        let words: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
        let words = words.ok_or_else(|| wrong(&cell, WANTED))?;
        let none_labelled = match label {
            Label::Tokens(labels) => labels.is_empty(),
            Label::None | Label::Class(_) | Label::Multi(_) | Label::Value(_) => true,
        };
        if words.is_empty() && none_labelled {
            return Err(RowFaultKind::NoTokens("words"));
        }
        let Some(tokenizer) = self.tokenizer else {
            return Err(RowFaultKind::Tokenize("no tokenizer".into()));
        };
        let encoded = self
            .encode_words(tokenizer, &words)
            .map_err(|error| RowFaultKind::Tokenize(error.to_string()))?;
        let labels = match label {
            Label::Tokens(labels) if labels.len() != words.len() => {
                return Err(RowFaultKind::Unequal {
                    expected: words.len(),
                    found: labels.len(),
                    of: "labels",
                    each: "words",
                });
            }
            Label::Tokens(labels) => Some(encoded.align(labels)),
            Label::None | Label::Class(_) | Label::Multi(_) | Label::Value(_) => None,
        };
        Ok(Tokens {
            encoded: encoded.encoded,
            labels,
        })
    }

    /// Encodes the words, or so many of the first that no more can be kept: each is tokenised by
    /// itself.
    fn encode_words(
        &self,
        tokenizer: &Tokenizer,
        words: &[&str],
    ) -> Result<EncodedWords, TokenizerError> {
        const FIRST: usize = 4096;
        for word in words {
            refuse_long(word)?;
        }
        let owned = |words: &[&str]| {
            words
                .iter()
                .map(|word| word.to_string())
                .collect::<Vec<_>>()
        };
        let most = self
            .spec
            .max_length
            .filter(|_| tokenizer.kept_part() == Part::Beginning);
        let mut n = FIRST;
        while let Some(most) = most.filter(|_| n < words.len()) {
            let first = owned(&words[..n]);
            if tokenizer.encode_words(&first, None)?.word_ids.len() > most {
                self.parted.fetch_add(1, Ordering::Relaxed);
                return tokenizer.encode_words(&first, self.cut_at());
            }
            n = n.saturating_mul(4);
        }
        tokenizer.encode_words(&owned(words), self.cut_at())
    }

    fn ids(
        &self,
        row: &Row,
        column: &str,
        types: Option<&str>,
        mask: Option<&str>,
        label: &Label,
    ) -> Result<Tokens, RowFault> {
        let at = |column: &str, kind| fault(row, column, kind);
        let cell = self
            .table
            .get(row, column)
            .ok_or_else(|| at(column, self.missing(row, column)))?;
        let mut input_ids = whole_numbers(cell).map_err(|kind| at(column, kind))?;
        let mut labels = match label {
            Label::Tokens(labels) => Some(labels.clone()),
            Label::None | Label::Class(_) | Label::Multi(_) | Label::Value(_) => None,
        };
        let n = input_ids.len();
        if let Some(labels) = labels.as_ref().filter(|labels| labels.len() != n) {
            return Err(at(column, unequal_to_ids(n, labels.len(), "labels")));
        }
        let mut token_type_ids = match types {
            Some(name) => self.per_token(row, name, n, "token types")?,
            None => None,
        };
        let keep = self.unmasked(row, mask, n)?;
        if keep == 0 {
            return Err(at(column, RowFaultKind::NoTokens("token ids")));
        }
        let cut = self.cut_at().unwrap_or(usize::MAX).min(keep);
        input_ids.truncate(cut);
        for values in [&mut token_type_ids, &mut labels].into_iter().flatten() {
            values.truncate(cut);
        }
        let vocab_size = self.spec.vocab_size.unwrap_or(u32::MAX as usize);
        let out_of_vocabulary = |(position, id)| {
            at(
                column,
                RowFaultKind::IdOutOfVocabulary {
                    id,
                    position,
                    vocab_size,
                },
            )
        };
        let type_vocab_size = self.spec.type_vocab_size.unwrap_or(u32::MAX as usize);
        let out_of_types = |(position, id)| {
            let kind = RowFaultKind::TypeOutOfRange {
                id,
                position,
                type_vocab_size,
            };
            at(types.unwrap_or(column), kind)
        };
        let encoded = Encoded {
            input_ids: narrow(&input_ids, vocab_size).map_err(out_of_vocabulary)?,
            token_type_ids: token_type_ids
                .map(|values| narrow(&values, type_vocab_size))
                .transpose()
                .map_err(out_of_types)?
                .filter(|values| values.iter().any(|id| *id != 0)),
            truncated_tokens: keep - cut,
        };
        Ok(Tokens { encoded, labels })
    }

    /// How many of `n` token ids are not padding.
    fn unmasked(&self, row: &Row, mask: Option<&str>, n: usize) -> Result<usize, RowFault> {
        if let Some(name) = mask
            && let Some(mask) = self.per_token(row, name, n, "mask values")?
        {
            let keep = mask.iter().take_while(|value| **value == 1).count();
            if mask[keep..].iter().any(|value| *value != 0) {
                return Err(fault(row, name, RowFaultKind::MaskNotAPrefix));
            }
            return Ok(keep);
        }
        Ok(n)
    }

    /// A column with a number for each of `n` token ids; it may be missing from single rows.
    fn per_token(
        &self,
        row: &Row,
        column: &str,
        n: usize,
        of: &'static str,
    ) -> Result<Option<Vec<i64>>, RowFault> {
        let Some(cell) = self.table.get(row, column) else {
            return Ok(None);
        };
        let values = whole_numbers(cell).map_err(|kind| fault(row, column, kind))?;
        if values.len() != n {
            return Err(fault(row, column, unequal_to_ids(n, values.len(), of)));
        }
        Ok(Some(values))
    }

    /// Refuses ids that the model has no row for.
    pub(super) fn check_vocabulary(&self, input_ids: &[u32]) -> Result<(), RowFaultKind> {
        let vocab_size = self.spec.vocab_size.unwrap_or(usize::MAX);
        match input_ids.iter().position(|id| *id as usize >= vocab_size) {
            None => Ok(()),
            Some(position) => Err(RowFaultKind::IdOutOfVocabulary {
                id: input_ids[position].into(),
                position,
                vocab_size,
            }),
        }
    }

    fn check_ids(&self, encoded: &Encoded) -> Result<(), RowFaultKind> {
        self.check_vocabulary(&encoded.input_ids)?;
        if let (Some(type_vocab_size), Some(types)) =
            (self.spec.type_vocab_size, &encoded.token_type_ids)
            && let Some(position) = types.iter().position(|id| *id as usize >= type_vocab_size)
        {
            let id = types[position].into();
            return Err(RowFaultKind::TypeOutOfRange {
                id,
                position,
                type_vocab_size,
            });
        }
        Ok(())
    }

    /// A language model's labels: every token where none are given, and never a row's first, which
    /// nothing predicts.
    fn complete_labels(&self, tokens: &mut Tokens) -> Result<(), RowFaultKind> {
        let ids = &tokens.encoded.input_ids;
        let labels = tokens
            .labels
            .get_or_insert_with(|| ids.iter().map(|id| (*id).into()).collect());
        if let Some(first) = labels.first_mut() {
            *first = IGNORE_INDEX;
        }
        let vocab_size = self.spec.vocab_size.unwrap_or(usize::MAX);
        let in_range = |label: &i64| {
            *label == IGNORE_INDEX || usize::try_from(*label).is_ok_and(|id| id < vocab_size)
        };
        match labels.iter().position(|label| !in_range(label)) {
            None => Ok(()),
            Some(position) => Err(RowFaultKind::IdOutOfVocabulary {
                id: labels[position],
                position,
                vocab_size,
            }),
        }
    }

    fn label(&self, row: &Row, columns: &LabelColumns) -> Result<Label, RowFault> {
        let column = match columns {
            LabelColumns::One(column) => column,
            LabelColumns::Each(columns) => {
                let label = self.plan.each(self.table, row, columns);
                return label.map_err(|(column, kind)| self.label_fault(row, column, kind));
            }
        };
        let cell = self.table.get(row, column);
        let label = match self.spec.task {
            Task::Regression => number(cell).map(Label::Value),
            Task::SingleLabel => self.plan.class(cell).map(Label::Class),
            Task::MultiLabel => self.plan.several(cell),
            Task::TokenClassification => self.plan.classes(cell).map(Label::Tokens),
            Task::CausalLm => match cell {
                Some(cell) => whole_numbers(cell).map(Label::Tokens),
                None => Err(self.missing(row, column)),
            },
        };
        label.map_err(|kind| self.label_fault(row, column, kind))
    }

    /// The fault with the nearest key, where the row lacks the column.
    fn label_fault(&self, row: &Row, column: &str, kind: RowFaultKind) -> RowFault {
        let kind = match (kind, self.table.get(row, column)) {
            (RowFaultKind::Unlabelled { found: None, .. }, None) => RowFaultKind::Unlabelled {
                found: None,
                nearest: nearest(column, self.table.keys(row)).map(str::to_owned),
            },
            (kind, _) => kind,
        };
        fault(row, column, kind)
    }

    pub(super) fn missing(&self, row: &Row, column: &str) -> RowFaultKind {
        prompt::missing(self.table, row, column)
    }
}

fn unequal_to_ids(expected: usize, found: usize, of: &'static str) -> RowFaultKind {
    RowFaultKind::Unequal {
        expected,
        found,
        of,
        each: "token ids",
    }
}

/// A list in a cell; in text written as JSON, or as Python prints it.
pub(super) fn list<'a>(
    cell: Cell<'a>,
    expected: &'static str,
) -> Result<Cow<'a, [Value]>, RowFaultKind> {
    match cell {
        Cell::Json(Value::Array(items)) => Ok(Cow::Borrowed(items)),
        Cell::Text(text) => parse_list(text)
            .map(Cow::Owned)
            .ok_or_else(|| wrong(&cell, expected)),
        // A table that went through JSON still holds its lists as text.
        Cell::Json(Value::String(text)) => parse_list(text)
            .map(Cow::Owned)
            .ok_or_else(|| wrong(&cell, expected)),
        Cell::Json(_) => Err(wrong(&cell, expected)),
    }
}

/// The words in a cell that holds a list of them.
pub fn words_of(cell: Cell<'_>) -> Option<Vec<String>> {
    let items = list(cell, "a list of words").ok()?;
    let words = items.iter().map(|item| item.as_str().map(str::to_owned));
    words.collect()
}

fn whole_numbers(cell: Cell) -> Result<Vec<i64>, RowFaultKind> {
    const WANTED: &str = "a list of whole numbers";
    let items = list(cell, WANTED)?;
    let numbers: Option<Vec<i64>> = items.iter().map(Value::as_i64).collect();
    numbers.ok_or_else(|| wrong(&cell, WANTED))
}

/// Numbers that must be below `limit`; else the first that is not, with its position.
fn narrow(values: &[i64], limit: usize) -> Result<Vec<u32>, (usize, i64)> {
    let narrowed = values.iter().enumerate().map(|(position, value)| {
        u32::try_from(*value)
            .ok()
            .filter(|id| (*id as usize) < limit)
            .ok_or((position, *value))
    });
    narrowed.collect()
}
