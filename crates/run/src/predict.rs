//! Predictions of rows, one JSON object a row: the label, the probabilities and the logits at full
//! precision. What becomes of the objects is the caller's.

mod tokens;

use lowrank_data::{Example, Loaded, RowFault, RowFaultKind};
use lowrank_train::config::Task;
use lowrank_train::evaluate::{PassSettings, predict};
use lowrank_train::metrics::argmax;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::base::Head;
use crate::error::{RunError, RunResult};
use crate::fits::check_pass;
use crate::loaded::LoadedModel;
use crate::rows::{load_rows, load_spec, unlabelled};
use crate::settings::RowSettings;
use tokens::TokenRows;

/// How labels of tokens are merged into spans. Source: transformers `AggregationStrategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Not at all.
    None,
    /// Neighbouring tokens of one kind.
    Simple,
    /// Words, each with the label of its first token, then as `Simple`.
    First,
    /// Words, each by the mean of its tokens' probabilities, then as `Simple`.
    Average,
    /// Words, each with the most probable label of a token, then as `Simple`.
    Max,
}

/// Where rows come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A file.
    File(&'a str),
    /// Texts, each of which is a row.
    Texts(&'a [String]),
}

/// A model that gives rows labels or values.
pub struct Predictor<'m> {
    loaded: &'m LoadedModel,
    aggregation: Option<Aggregation>,
}

/// Rows that were read for a [`Predictor`], and rows of them a batch.
pub struct PredictRows {
    rows: Rows,
    batch_size: usize,
}

enum Rows {
    /// One prediction a row.
    Whole(Loaded),
    /// One a word or a token.
    Tokens(TokenRows),
}

impl PredictRows {
    /// What was read.
    pub fn loaded(&self) -> &Loaded {
        match &self.rows {
            Rows::Whole(loaded) => loaded,
            Rows::Tokens(rows) => &rows.loaded,
        }
    }

    /// Words that were cut off for length, in all rows.
    pub fn cut_words(&self) -> usize {
        match &self.rows {
            Rows::Whole(_) => 0,
            Rows::Tokens(rows) => rows.cut_words(),
        }
    }
}

impl<'m> Predictor<'m> {
    /// The model with how it merges labels of tokens: as its rows are, where nothing is said.
    ///
    /// # Errors
    /// It is a language model, or has no labels of tokens that could be merged.
    pub fn new(loaded: &'m LoadedModel, aggregation: Option<Aggregation>) -> RunResult<Self> {
        if loaded.head.task == Task::CausalLm {
            let hint = match &loaded.base.head.stored {
                Some(_) => {
                    "`lowrank generate` writes it; --task single_label uses the classification head of this checkpoint"
                }
                None => "`lowrank generate` writes it",
            };
            return Err(RunError::usage("a language model predicts text, not labels").hint(hint));
        }
        if aggregation.is_some() && loaded.head.task != Task::TokenClassification {
            return Err(RunError::usage(
                "there are no labels of tokens to merge: the head is another",
            )
            .hint("leave --aggregation-strategy out"));
        }
        Ok(Self {
            loaded,
            aggregation,
        })
    }

    /// Reads rows, whose labels are not needed.
    ///
    /// # Errors
    /// A row cannot be used, or a batch of `batch_size` cannot be held.
    pub fn read(
        &self,
        source: &Source<'_>,
        data: &RowSettings,
        batch_size: usize,
    ) -> RunResult<PredictRows> {
        let LoadedModel {
            base, head, model, ..
        } = self.loaded;
        let rows = match (head.task, source) {
            (Task::TokenClassification, _) => {
                Rows::Tokens(TokenRows::read(source, data, self.loaded)?)
            }
            (_, Source::File(path)) => {
                let spec = load_spec(base, data, head.task, None, self.loaded.max_length)?;
                Rows::Whole(load_rows(path, &unlabelled(spec), base, model.device())?)
            }
            (_, Source::Texts(texts)) => Rows::Whole(self.loaded.examples_of_texts(texts, data)?),
        };
        let read = PredictRows { rows, batch_size };
        let examples = &read.loaded().examples;
        check_pass(base, head, examples, batch_size, model.device())?;
        Ok(read)
    }

    /// Hands out a JSON object for each row, in the order of the rows; also for those that were
    /// left out, with the reason.
    ///
    /// # Errors
    /// Labels of a row cannot be merged, or `on_line` fails, after which it is not called again.
    pub fn predict(
        &self,
        rows: &PredictRows,
        on_line: &mut dyn FnMut(&Value) -> RunResult,
    ) -> RunResult {
        let (head, read) = (&self.loaded.head, rows.loaded());
        let settings = PassSettings {
            labels: &head.labels,
            batch_size: rows.batch_size,
            stop: None,
            progress: &|_, _| {},
        };
        let mut left_out = read.left_out.iter().peekable();
        let mut outcome = Ok(());
        predict(
            &self.loaded.model,
            &read.examples,
            &settings,
            |row, logits| {
                if outcome.is_ok() {
                    outcome = (|| {
                        let example = &read.examples[row];
                        while let Some(fault) = left_out.next_if(|fault| fault.line < example.line)
                        {
                            on_line(&no_prediction(fault))?;
                        }
                        on_line(&match &rows.rows {
                            Rows::Tokens(tokens) => {
                                tokens.line(row, head, logits, self.aggregation)?
                            }
                            Rows::Whole(_) => prediction(head, example, logits),
                        })
                    })();
                }
            },
        )?;
        outcome?;
        left_out.try_for_each(|fault| on_line(&no_prediction(fault)))
    }
}

/// The line of a row that was left out, so that there is one for each row of the input. One without
/// words has a label for each of them all the same: none.
fn no_prediction(fault: &RowFault) -> Value {
    match &fault.kind {
        RowFaultKind::NoTokens("words") => json!({
            "line": fault.line, "words": [], "labels": [], "probabilities": [], "logits": [],
        }),
        kind => json!({ "line": fault.line, "skipped": kind.to_string() }),
    }
}

/// One line. Logits keep every digit of their f32.
fn prediction(head: &Head, example: &Example, logits: &[f32]) -> Value {
    let mut line = Map::new();
    line.insert("line".to_owned(), json!(example.line));
    match head.task {
        Task::SingleLabel => {
            line.insert("label".to_owned(), json!(head.labels[argmax(logits)]));
            line.insert("probabilities".to_owned(), by_label(head, &softmax(logits)));
            line.insert("logits".to_owned(), floats(logits));
        }
        Task::MultiLabel => {
            let probabilities: Vec<f64> = logits
                .iter()
                .map(|&x| 1.0 / (1.0 + (-f64::from(x)).exp()))
                .collect();
            let chosen: Vec<_> = head
                .labels
                .iter()
                .zip(logits)
                .filter(|(_, x)| **x > 0.0)
                .map(|(l, _)| l)
                .collect();
            line.insert("labels".to_owned(), json!(chosen));
            line.insert("probabilities".to_owned(), by_label(head, &probabilities));
            line.insert("logits".to_owned(), floats(logits));
        }
        Task::CausalLm => unreachable!("a language model was refused before any row"),
        Task::Regression => {
            match logits {
                [value] => line.insert("value".to_owned(), json!(f64::from(*value))),
                values => line.insert("values".to_owned(), floats(values)),
            };
            line.insert("logits".to_owned(), floats(logits));
        }
        Task::TokenClassification => {
            unreachable!("rows of tokens are written by their own module")
        }
    }
    Value::Object(line)
}

fn by_label(head: &Head, probabilities: &[f64]) -> Value {
    let pairs = head.labels.iter().zip(probabilities);
    Value::Object(pairs.map(|(label, &p)| (label.clone(), json!(p))).collect())
}

/// In f64 and shifted by the largest, so that it never overflows.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits
        .iter()
        .map(|&x| (f64::from(x) - f64::from(largest)).exp())
        .collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}

/// The f32 values as the f64 that they are exactly: every reader gets the same bits back.
fn floats(values: &[f32]) -> Value {
    values.iter().map(|&v| json!(f64::from(v))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_never_overflows() {
        let p = softmax(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(p, [0.5, 0.5, 0.0]);
    }

    #[test]
    fn logits_come_back_bit_for_bit() {
        let values = [0.1f32, -3.4e-38, 1.0 / 3.0];
        let text = floats(&values).to_string();
        let back: Vec<f64> = serde_json::from_str(&text).unwrap();
        assert!(
            back.iter()
                .zip(values)
                .all(|(b, v)| (*b as f32).to_bits() == v.to_bits())
        );
    }
}
