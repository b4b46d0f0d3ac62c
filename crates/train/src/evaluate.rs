//! Passes without training: evaluation on labelled rows and prediction. Rows go through the model as they come, without
//! padding, so batches need no sorting; a row's result does not depend on the batch it is in.

use std::sync::atomic::{AtomicBool, Ordering};

use lowrank_data::{BatchLabels, Example, Label, PackedBatch, batches};
use lowrank_model::{Batch, Model, ModelError, Targets};

use crate::config::TaskKind;
use crate::metrics::{Evaluation, MetricAccumulator};
use crate::prefix_cache::PrefixCache;

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

/// As [`evaluate`] with what frozen layers give kept for the next time, and used if it is there: the same bits.
///
/// # Errors
/// A row does not fit the model.
pub fn evaluate_keeping(
    model: &Model,
    examples: &[Example],
    settings: &PassSettings<'_>,
    mut kept: Option<&mut PrefixCache>,
) -> Result<Option<Evaluation>, ModelError> {
    let task = TaskKind::from(model.task());
    let labels = model.num_labels();
    let mut metrics = MetricAccumulator::new(task, labels);
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
        let entry = PrefixCache::entry_if_kept(kept.as_deref_mut(), model, &input, &batch.rows)?;
        let (logits, loss_sum, counted) = model.evaluate_from(entry, &input, targets)?;
        metrics.add_batch(batch.len(), batch.total_tokens(), loss_sum, counted);
        add_predictions(&mut metrics, &batch.labels, &logits, labels);
        (settings.progress)(end, examples.len());
    }
    Ok(Some(metrics.finish()))
}

fn add_predictions(
    metrics: &mut MetricAccumulator,
    labels: &BatchLabels,
    logits: &[f32],
    num_labels: usize,
) {
    let rows = logits.chunks_exact(num_labels.max(1));
    match labels {
        BatchLabels::None => {}
        BatchLabels::Class(classes) | BatchLabels::Tokens(classes) => {
            for (row, &class) in rows.zip(classes) {
                // Negative labels are the ignored ones.
                if let Ok(class) = u32::try_from(class) {
                    metrics.add_class(row, class);
                }
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

/// Runs rows through the model and hands out the logits of each: `[num_labels]`, or `[tokens, num_labels]` for token
/// classification. Returns whether all rows were done.
///
/// # Errors
/// A row does not fit the model.
pub fn predict(
    model: &Model,
    examples: &[Example],
    settings: &PassSettings<'_>,
    mut take: impl FnMut(usize, &[f32]),
) -> Result<bool, ModelError> {
    let per_token = TaskKind::from(model.task()) == TaskKind::TokenClassification;
    for range in batches(examples.len(), settings.batch_size) {
        if settings.stopped() {
            return Ok(false);
        }
        let end = range.end;
        let batch = pack_range(examples, range);
        let logits = model.logits(&model_batch(&batch), true)?;
        for (i, &row) in batch.rows.iter().enumerate() {
            let (first, last) = if per_token {
                (batch.offsets[i], batch.offsets[i + 1])
            } else {
                (i, i + 1)
            };
            take(
                row,
                &logits[first * model.num_labels()..last * model.num_labels()],
            );
        }
        (settings.progress)(end, examples.len());
    }
    Ok(true)
}

fn pack_range(examples: &[Example], range: std::ops::Range<usize>) -> PackedBatch {
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
