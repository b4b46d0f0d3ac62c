//! `lowrank predict`: one JSON line a row with the label, the probabilities and the logits at full
//! precision.

mod tokens;

use lowrank_data::{Example, Loaded, RowFault, RowFaultKind};
use lowrank_engine::Device;
use lowrank_run::base::Head;
use lowrank_run::fits::check_pass;
use lowrank_run::loaded::{BATCH_SIZE, LoadedModel, batch_size};
use lowrank_run::rows::{load_rows, load_spec, unlabelled};
use lowrank_run::{RunError, RunResult};
use lowrank_train::config::Task;
use lowrank_train::evaluate::{PassSettings, predict};
use lowrank_train::metrics::argmax;
use serde_json::{Map, Value, json};

use crate::args::PredictArgs;
use crate::session::{device, open_model, say_notes};
use crate::sink::Sink;
use crate::{output, settings, targets, unused};
use tokens::TokenRows;

/// Runs the command.
pub fn run(flags: PredictArgs) -> RunResult {
    let file = flags.common.config.clone();
    let args = settings::with_file(flags, file.as_deref())?;
    targets::check_file(
        args.output_file.as_deref(),
        &[
            ("--data-file", args.data_file.as_deref()),
            ("--config", args.common.config.as_deref()),
        ],
    )?;
    let device = device(&args.common, args.numerics.choices().or_f32())?;
    let size = batch_size(args.per_device_eval_batch_size, BATCH_SIZE)?;
    let loaded = open_model(&args.model, &args.adapter, &args.data.settings(), &device)?;
    if loaded.head.task == Task::CausalLm {
        let hint = match &loaded.base.head.stored {
            Some(_) => {
                "`lowrank generate` writes it; --task single_label uses the classification head of this checkpoint"
            }
            None => "`lowrank generate` writes it",
        };
        return Err(RunError::usage("a language model predicts text, not labels").hint(hint));
    }
    let is_of_tokens = loaded.head.task == Task::TokenClassification;
    if args.aggregation_strategy.is_some() && !is_of_tokens {
        return Err(
            RunError::usage("there are no labels of tokens to merge: the head is another")
                .hint("leave --aggregation-strategy out"),
        );
    }
    unused::check_predict(unused::given_args(&args), &args, &loaded)?;
    let rows = match is_of_tokens {
        true => Rows::Tokens(TokenRows::read(&args, &loaded, &device)?),
        false => Rows::Whole(read_rows(&args, &loaded, &device)?),
    };
    let read = rows.loaded();
    check_pass(&loaded.base, &loaded.head, &read.examples, size, &device)?;
    if !args.common.is_quiet() {
        loaded.notes.iter().for_each(output::note);
    }
    let source = args.data_file.as_deref().unwrap_or("the texts given");
    say_notes(source, read, &args.common);
    if let (Rows::Tokens(tokens), false) = (&rows, args.common.is_quiet())
        && let cut @ 1.. = tokens.cut_words()
    {
        output::note(format_args!(
            "{cut} words are beyond --max-length {} and have no label (null)",
            loaded.max_length
        ));
    }
    let settings = PassSettings {
        labels: &loaded.head.labels,
        batch_size: size,
        stop: None,
        progress: &|_, _| {},
    };
    let mut sink = Sink::open(args.output_file.as_deref())?;
    let mut failed = None;
    let mut left_out = read.left_out.iter().peekable();
    predict(&loaded.model, &read.examples, &settings, |row, logits| {
        if failed.is_some() {
            return;
        }
        let example = &read.examples[row];
        while let Some(fault) = left_out.next_if(|fault| fault.line < example.line) {
            failed = failed.take().or(sink.write(&no_prediction(fault)).err());
        }
        let line = match &rows {
            Rows::Tokens(tokens) => {
                tokens.line(row, &loaded.head, logits, args.aggregation_strategy)
            }
            Rows::Whole(_) => Ok(prediction(&loaded.head, example, logits)),
        };
        let written = line.and_then(|line| sink.write(&line));
        failed = failed.take().or(written.err());
    })?;
    for fault in left_out {
        failed = failed.or(sink.write(&no_prediction(fault)).err());
    }
    match failed {
        Some(error) => Err(error),
        None => sink.commit(),
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

/// The rows to predict.
enum Rows {
    /// One prediction a row.
    Whole(Loaded),
    /// One a word or a token.
    Tokens(TokenRows),
}

impl Rows {
    fn loaded(&self) -> &Loaded {
        match self {
            Rows::Whole(loaded) => loaded,
            Rows::Tokens(rows) => &rows.loaded,
        }
    }
}

fn no_rows() -> RunError {
    RunError::usage("no rows given")
        .hint("pass --data-file FILE (.jsonl, .csv or .tsv), or --text with one or more texts")
}

fn read_rows(args: &PredictArgs, loaded: &LoadedModel, device: &Device) -> RunResult<Loaded> {
    match (&args.data_file, &args.text) {
        (Some(path), _) => {
            let spec = load_spec(
                &loaded.base,
                &args.data.settings(),
                loaded.head.task,
                None,
                loaded.max_length,
            )?;
            load_rows(path, &unlabelled(spec), &loaded.base, device)
        }
        (None, Some(texts)) => loaded.examples_of_texts(texts, &args.data.settings()),
        (None, None) => Err(no_rows()),
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
