//! The plan: the model run dry over the batches of a run. What is counted is what the run then
//! allocates, because it is the same code.

use std::cmp::Reverse;

use lowrank_data::{Example, Label};
use lowrank_engine::{MemoryReport, StepKey};
use lowrank_model::{
    Batch, IGNORE_INDEX, Model, ModelError, PassOptions, Passes, Recompute, Targets,
};

use crate::config::{OptimizationSettings, Task, TrainConfig};
use crate::evaluate::{model_batch, model_targets, pack_range};
use crate::frozen_cache::{FrozenCache, FrozenCaches, RowLengths};
use crate::optimizer::Optimizer;
use crate::reduce::StepGradients;

/// A model of shapes only, ready to be planned with.
pub struct DryRun {
    model: Model,
    gradients: StepGradients,
    _optimizer: Optimizer,
    frozen_caches: FrozenCaches,
}

/// What a set of batches needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Bytes by purpose at the largest moment.
    pub peak: MemoryReport,
    /// Floating-point operations over all batches.
    pub flops: u64,
    /// Tokens of all batches.
    pub tokens: u64,
}

impl Needs {
    /// Floating-point operations a token.
    pub fn flops_per_token(&self) -> f64 {
        self.flops as f64 / self.tokens.max(1) as f64
    }
}

impl DryRun {
    /// Of a model on the dry device on which something trains already, such as a directory loaded
    /// there: what its checkpoint lacks is new there too, but no value is read.
    pub fn of_model(model: Model, settings: &OptimizationSettings) -> Self {
        let micro_batches = settings.gradient_accumulation_steps;
        let gradients = StepGradients::zeros(model.device(), model.trainables(), micro_batches);
        let optimizer = Optimizer::new(model.device(), model.trainables(), settings);
        Self {
            model,
            gradients,
            _optimizer: optimizer,
            frozen_caches: FrozenCaches::default(),
        }
    }

    /// Makes place for what frozen layers give for the rows of a run; [`DryRun::train_rows`] and
    /// [`DryRun::evaluate_rows`] use it as the run does.
    pub fn cache_frozen_layers(
        &mut self,
        config: &TrainConfig,
        lengths: &RowLengths,
        limit_bytes: u64,
    ) {
        self.frozen_caches = FrozenCaches::default();
        self.frozen_caches = FrozenCaches::new(&self.model, config, lengths, limit_bytes);
    }

    /// What a later pass over a batch of these lengths needs if everything that frozen layers give
    /// is kept; none where there is nothing to keep.
    ///
    /// # Errors
    /// A sequence is longer than the model's positions.
    pub fn train_cached(
        &mut self,
        lengths: &[usize],
        recompute: Recompute,
    ) -> Result<Option<Needs>, ModelError> {
        let frozen = self.model.frozen_layers(Passes::Training);
        let Some(mut cache) =
            FrozenCache::new(&self.model, frozen, lengths.iter().copied(), u64::MAX)
        else {
            return Ok(None);
        };
        cache.assume_known();
        self.frozen_caches.train = Some(cache);
        let batch = (0..lengths.len() as u32).collect();
        let needs = self.train_rows(&[batch], lengths, recompute);
        self.frozen_caches.train = None;
        Ok(Some(needs?))
    }

    /// What is kept of frozen layers, and its place.
    pub fn frozen_caches(&mut self) -> &mut FrozenCaches {
        &mut self.frozen_caches
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Bytes that are held through the whole run, whatever the batches.
    pub fn fixed(&self) -> MemoryReport {
        self.model.device().memory()
    }

    /// What training on batches of these sequence lengths needs.
    ///
    /// # Errors
    /// A sequence is longer than the model's positions.
    pub fn train(
        &mut self,
        batches: impl IntoIterator<Item = Vec<usize>>,
        recompute: Recompute,
    ) -> Result<Needs, ModelError> {
        let batches = batches.into_iter().map(|lengths| (lengths, Vec::new()));
        self.train_batches(batches, recompute)
    }

    /// As [`DryRun::train`] for batches of rows whose lengths are `lengths`, with what frozen
    /// layers give kept.
    ///
    /// # Errors
    /// As there.
    pub fn train_rows(
        &mut self,
        batches: &[Vec<u32>],
        lengths: &[usize],
        recompute: Recompute,
    ) -> Result<Needs, ModelError> {
        self.train_batches(with_lengths(batches, lengths), recompute)
    }

    fn train_batches(
        &mut self,
        batches: impl Iterator<Item = (Vec<usize>, Vec<usize>)>,
        recompute: Recompute,
    ) -> Result<Needs, ModelError> {
        let options = PassOptions {
            dropout: Some(StepKey {
                seed: 0,
                micro_step: 0,
            }),
            grad_scale: 1.0,
            recompute,
            ..PassOptions::default()
        };
        self.count(batches, |run, batch, targets, rows| {
            let (model, gradients) = (&run.model, &mut run.gradients);
            let kept = run
                .frozen_caches
                .train
                .as_mut()
                .filter(|_| !rows.is_empty());
            let entry = FrozenCache::entry_if_cached(kept, model, batch, rows)?;
            // Whichever micro-batch of a step it is: the place of the others' gradients is held
            // too.
            gradients.add(0, |gradients| {
                model.forward_backward_from(entry, batch, targets, &options, gradients)
            })?;
            Ok(())
        })
    }

    /// What evaluating batches of these sequence lengths needs.
    ///
    /// # Errors
    /// A sequence is longer than the model's positions.
    pub fn evaluate(
        &mut self,
        batches: impl IntoIterator<Item = Vec<usize>>,
    ) -> Result<Needs, ModelError> {
        let batches = batches.into_iter().map(|lengths| (lengths, Vec::new()));
        self.evaluate_batches(batches)
    }

    /// As [`DryRun::evaluate`] for batches of rows whose lengths are `lengths`, with what frozen
    /// layers give kept.
    ///
    /// # Errors
    /// As there.
    pub fn evaluate_rows(
        &mut self,
        batches: &[Vec<u32>],
        lengths: &[usize],
    ) -> Result<Needs, ModelError> {
        self.evaluate_batches(with_lengths(batches, lengths))
    }

    fn evaluate_batches(
        &mut self,
        batches: impl Iterator<Item = (Vec<usize>, Vec<usize>)>,
    ) -> Result<Needs, ModelError> {
        self.count(batches, |run, batch, targets, rows| {
            let kept = run.frozen_caches.validation.as_mut();
            let kept = kept.filter(|_| !rows.is_empty());
            let entry = FrozenCache::entry_if_cached(kept, &run.model, batch, rows)?;
            run.model.evaluate_from(entry, batch, targets)?;
            Ok(())
        })
    }

    fn count(
        &mut self,
        batches: impl Iterator<Item = (Vec<usize>, Vec<usize>)>,
        mut pass: impl FnMut(&mut Self, &Batch<'_>, Targets<'_>, &[usize]) -> Result<(), ModelError>,
    ) -> Result<Needs, ModelError> {
        let device = self.model.device().clone();
        device.reset_peak();
        let before = device.flops();
        let mut needs = Needs::default();
        for (lengths, rows) in batches {
            let (task, num_labels) = (self.model.task(), self.model.num_labels());
            let example = |&tokens: &usize| blank(tokens, task, num_labels);
            let examples: Vec<Example> = lengths.iter().map(example).collect();
            let batch = pack_range(&examples, 0..examples.len());
            let targets = model_targets(&batch).expect("blank examples have labels");
            needs.tokens += batch.total_tokens() as u64;
            pass(self, &model_batch(&batch), targets, &rows)?;
        }
        needs.peak = device.peak_memory();
        needs.flops = device.flops() - before;
        Ok(needs)
    }
}

/// The lengths of each batch's rows, and the rows.
fn with_lengths<'a>(
    batches: &'a [Vec<u32>],
    lengths: &'a [usize],
) -> impl Iterator<Item = (Vec<usize>, Vec<usize>)> + 'a {
    batches.iter().map(|batch| {
        let rows: Vec<usize> = batch.iter().map(|&row| row as usize).collect();
        (rows.iter().map(|&row| lengths[row]).collect(), rows)
    })
}

/// An example of so many tokens with nothing in it; the dry device looks at shapes only.
fn blank(tokens: usize, task: Task, num_labels: usize) -> Example {
    let mut classes = vec![0; if task.is_per_token() { tokens } else { 0 }];
    if task == Task::CausalLm {
        // Nothing predicts a sequence's first token; every other one may count.
        classes
            .iter_mut()
            .take(1)
            .for_each(|class| *class = IGNORE_INDEX);
    }
    Example {
        input_ids: vec![0; tokens],
        token_type_ids: None,
        label: match task {
            Task::SingleLabel => Label::Class(0),
            Task::TokenClassification | Task::CausalLm => Label::Tokens(classes),
            Task::MultiLabel => Label::Multi(vec![0.0; num_labels]),
            Task::Regression => Label::Value(0.0),
        },
        line: 0,
        truncated_tokens: 0,
    }
}

/// Of many batches of rows those that can be the largest: at most `most`, half of them by tokens
/// and half by the sum of squared lengths (attention). `lengths` are the tokens of each row.
pub fn heaviest(mut batches: Vec<Vec<u32>>, lengths: &[usize], most: usize) -> Vec<Vec<u32>> {
    if batches.len() <= most {
        return batches;
    }
    let sum = |batch: &Vec<u32>, of: fn(usize) -> usize| -> Reverse<usize> {
        Reverse(batch.iter().map(|&row| of(lengths[row as usize])).sum())
    };
    batches.sort_by_cached_key(|batch| sum(batch, |n| n));
    let mut rest = batches.split_off(most / 2);
    rest.sort_by_cached_key(|batch| sum(batch, |n| n * n));
    rest.truncate(most - most / 2);
    batches.extend(rest);
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_by_both_measures_stay() {
        // Row 0 has one token, row 1 has twenty.
        let mut batches: Vec<Vec<u32>> = (0..50).map(|i| vec![0; i + 1]).collect();
        batches.push(vec![1, 0]);
        let kept = heaviest(batches, &[1, 20], 10);
        assert_eq!(kept.len(), 10);
        assert!(kept.contains(&vec![0; 50]) && kept.contains(&vec![1, 0]));
    }
}
