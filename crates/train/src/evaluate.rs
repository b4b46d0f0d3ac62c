//! Passes without training: evaluation on labelled rows and prediction. Rows go through the model
//! as they come, without padding, so batches need no sorting; a row's result does not depend on the
//! batch it is in.

use std::sync::atomic::{AtomicBool, Ordering};

use lowrank_data::{BatchLabels, Example, Label, PackedBatch, batches};
use lowrank_model::{Batch, Model, ModelError, Targets};

use crate::frozen_cache::FrozenCache;
use crate::metrics::{Evaluation, MetricAccumulator};

// Rows and losses mean the same by it.
const _: () = assert!(lowrank_data::IGNORE_INDEX == lowrank_model::IGNORE_INDEX);

/// The part of a packed batch that goes into the model.
pub fn model_batch(batch: &PackedBatch) -> Batch<'_> {
    Batch {
        input_ids: &batch.input_ids,
        token_type_ids: Some(&batch.token_type_ids),
        offsets: &batch.offsets,
    }
}

/// The part that the loss compares with; `None` without labels.
pub fn model_targets(batch: &PackedBatch) -> Option<Targets<'_>> {
    match &batch.labels {
        BatchLabels::None => None,
        BatchLabels::Class(classes) | BatchLabels::Tokens(classes) => Some(Targets::Class(classes)),
        BatchLabels::Multi { values, .. } => Some(Targets::Multi(values)),
        BatchLabels::Value(values) => Some(Targets::Value(values)),
    }
}

/// How a pass is run.
#[derive(Clone, Copy)]
pub struct PassSettings<'a> {
    /// Rows a batch.
    pub batch_size: usize,
    /// Names of the labels, by which entities of token classification are known; their scores are
    /// NaN without.
    pub labels: &'a [String],
    /// Raised by somebody else to end the pass between two batches.
    pub stop: Option<&'a AtomicBool>,
    /// Called after each batch with the rows done and the rows in all.
    pub progress: &'a dyn Fn(usize, usize),
}

impl PassSettings<'_> {
    fn stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }
}

/// Evaluates labelled rows. `None` when told to stop.
///
/// # Errors
/// A row does not fit the model.
pub fn evaluate(
    model: &Model,
    examples: &[Example],
    settings: &PassSettings<'_>,
) -> Result<Option<Evaluation>, ModelError> {
    evaluate_keeping(model, examples, settings, None)
}

/// As [`evaluate`] with what frozen layers give kept for the next time, and used if it is there:
/// the same bits.
///
/// # Errors
/// A row does not fit the model.
pub fn evaluate_keeping(
    model: &Model,
    examples: &[Example],
    settings: &PassSettings<'_>,
    mut kept: Option<&mut FrozenCache>,
) -> Result<Option<Evaluation>, ModelError> {
    let task = model.task();
    let labels = model.num_labels();
    let mut metrics = MetricAccumulator::new(task, labels).with_labels(settings.labels);
    for range in batches(examples.len(), settings.batch_size) {
        if settings.stopped() {
            return Ok(None);
        }
        let end = range.end;
        let batch = pack_range(examples, range);
        let Some(targets) = model_targets(&batch) else {
            return Err(ModelError::State(
                "rows without labels cannot be evaluated".to_owned(),
            ));
        };
        let input = model_batch(&batch);
        let entry = FrozenCache::entry_if_cached(kept.as_deref_mut(), model, &input, &batch.rows)?;
        let found = model.evaluate_from(entry, &input, targets)?;
        check_finite(model, examples, &batch, &found.logits)?;
        if !found.loss_sum.is_finite() {
            return Err(not_finite_loss(model, examples, &batch)?);
        }
        let tokens = batch.total_tokens();
        metrics.add_batch(batch.len(), tokens, found.loss_sum, found.counted);
        metrics.add_hits(found.hits);
        add_predictions(&mut metrics, &batch, &found.logits, labels);
        (settings.progress)(end, examples.len());
    }
    Ok(Some(metrics.finish()))
}

fn add_predictions(
    metrics: &mut MetricAccumulator,
    batch: &PackedBatch,
    logits: &[f32],
    num_labels: usize,
) {
    let width = num_labels.max(1);
    let rows = logits.chunks_exact(width);
    // Negative labels are the ignored ones.
    let counted = |(row, class): (_, &i64)| Some((row, u32::try_from(*class).ok()?));
    match &batch.labels {
        BatchLabels::None => {}
        BatchLabels::Class(classes) => {
            for (row, class) in rows.zip(classes).filter_map(counted) {
                metrics.add_class(row, class);
            }
        }
        // A language model's logits are not kept.
        BatchLabels::Tokens(_) if logits.is_empty() => {}
        BatchLabels::Tokens(classes) => {
            for range in batch.offsets.windows(2) {
                let (first, last) = (range[0], range[1]);
                let rows = logits[first * width..last * width].chunks_exact(width);
                metrics.add_sequence(rows.zip(&classes[first..last]).filter_map(counted));
            }
        }
        BatchLabels::Multi { values, width } => {
            rows.zip(values.chunks_exact(*width))
                .for_each(|(row, targets)| metrics.add_multi(row, targets));
        }
        BatchLabels::Value(values) => {
            logits
                .iter()
                .zip(values)
                .for_each(|(&x, &y)| metrics.add_value(x, y));
        }
    }
}

/// Runs rows through the model and hands out the logits of each: `[num_labels]`, or
/// `[tokens, num_labels]` for token classification. Returns whether all rows were done.
///
/// # Errors
/// A row does not fit the model.
pub fn predict(
    model: &Model,
    examples: &[Example],
    settings: &PassSettings<'_>,
    mut take: impl FnMut(usize, &[f32]),
) -> Result<bool, ModelError> {
    for range in batches(examples.len(), settings.batch_size) {
        if settings.stopped() {
            return Ok(false);
        }
        let end = range.end;
        let batch = pack_range(examples, range);
        let logits = model.logits(&model_batch(&batch))?;
        check_finite(model, examples, &batch, &logits)?;
        for (i, &row) in batch.rows.iter().enumerate() {
            take(row, &logits[values_of_row(model, &batch, i)]);
        }
        (settings.progress)(end, examples.len());
    }
    Ok(true)
}

/// Where the logits of a row of a batch lie: one set a row, or one a token.
fn values_of_row(model: &Model, batch: &PackedBatch, row: usize) -> std::ops::Range<usize> {
    let (first, last) = match model.task().is_per_token() {
        false => (row, row + 1),
        true => (batch.offsets[row], batch.offsets[row + 1]),
    };
    first * model.num_labels()..last * model.num_labels()
}

/// Logits that are no numbers are no answer: the row is named. Nothing is looked at where none were
/// kept.
fn check_finite(
    model: &Model,
    examples: &[Example],
    batch: &PackedBatch,
    logits: &[f32],
) -> Result<(), ModelError> {
    let Some(at) = logits.iter().position(|logit| !logit.is_finite()) else {
        return Ok(());
    };
    let row = (0..batch.len()).find(|&row| values_of_row(model, batch, row).contains(&at));
    let rows: Vec<usize> = row.map(|row| batch.rows[row]).into_iter().collect();
    Err(not_finite(
        examples,
        &rows,
        "a logit",
        f64::from(logits[at]),
    ))
}

/// The error for a batch whose loss is no number: its rows one by one, until the one is found.
fn not_finite_loss(
    model: &Model,
    examples: &[Example],
    batch: &PackedBatch,
) -> Result<ModelError, ModelError> {
    for &row in &batch.rows {
        let one = pack_range(examples, row..row + 1);
        if let Some(targets) = model_targets(&one) {
            let loss = model.evaluate(&model_batch(&one), targets)?.loss_sum;
            if !loss.is_finite() {
                return Ok(not_finite(examples, &[row], "the loss", loss));
            }
        }
    }
    Ok(not_finite(examples, &batch.rows, "the loss", f64::NAN))
}

/// The error that names the line of the first of these rows.
fn not_finite(examples: &[Example], rows: &[usize], what: &str, value: f64) -> ModelError {
    let lines: Vec<String> = rows
        .iter()
        .take(1)
        .filter_map(|&row| examples.get(row))
        .map(|example| example.line.to_string())
        .collect();
    let place = match rows.len() {
        0 | 1 => format!("the row of line {}", lines.join("")),
        n => format!("the batch of {n} rows from line {} on", lines.join("")),
    };
    ModelError::NotFinite(format!(
        "{what} of {place} is {value}, expected a finite number"
    ))
}

pub(crate) fn pack_range(examples: &[Example], range: std::ops::Range<usize>) -> PackedBatch {
    let rows: Vec<u32> = range.map(|row| row as u32).collect();
    PackedBatch::from_rows(examples, &rows)
}

/// Targets of one row that the loss counts.
pub fn counted_targets(example: &Example) -> usize {
    match &example.label {
        Label::None => 0,
        Label::Class(_) | Label::Value(_) => 1,
        Label::Multi(values) => values.len(),
        Label::Tokens(labels) => labels
            .iter()
            .filter(|&&l| l != lowrank_data::IGNORE_INDEX)
            .count(),
    }
}
