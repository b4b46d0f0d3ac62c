//! The plan: the model run dry over the batches of a run. What is counted is what the run then allocates, because it is
//! the same code.

use lowrank_engine::{Device, Gradients, MemoryReport, StepKey};
use lowrank_formats::peft::LoraConfig;
use lowrank_model::{
    Batch, IGNORE_INDEX, LoadOptions, Model, ModelConfig, ModelError, PassOptions, Targets,
};

use crate::config::{OptimizationSettings, TaskKind};
use crate::optimizer::Optimizer;

/// What trains.
#[derive(Clone, Copy, Debug)]
pub enum Method<'a> {
    /// Adapters under this configuration.
    Lora(&'a LoraConfig),
    /// Every weight.
    Full,
}

/// A model of shapes only, ready to be planned with.
pub struct DryRun {
    model: Model,
    gradients: Gradients,
    _optimizer: Optimizer,
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

impl DryRun {
    /// Builds the model of `config` without weights and attaches what trains.
    ///
    /// # Errors
    /// The adapter configuration does not fit the model.
    pub fn new(
        config: ModelConfig,
        options: &LoadOptions,
        method: Method<'_>,
        settings: &OptimizationSettings,
    ) -> Result<Self, ModelError> {
        let mut model = Model::from_config(config, options, &Device::dry())?;
        match method {
            Method::Lora(lora) => model.attach_lora(lora, options.seed).map(|_| ())?,
            Method::Full => model.train_all().map(|_| ())?,
        }
        Ok(Self::of_model(model, settings))
    }

    /// The same for a model on the dry device on which something trains already, such as a directory loaded there: what its
    /// checkpoint lacks is new there too, but no value is read.
    pub fn of_model(model: Model, settings: &OptimizationSettings) -> Self {
        let gradients = Gradients::zeros(model.device(), model.trainables());
        let optimizer = Optimizer::new(model.device(), model.trainables(), settings);
        Self {
            model,
            gradients,
            _optimizer: optimizer,
        }
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
        recompute: bool,
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
        self.count(batches, |run, batch, targets| {
            run.model
                .forward_backward(batch, targets, &options, &mut run.gradients)
                .map(|_| ())
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
        self.count(batches, |run, batch, targets| {
            run.model.evaluate(batch, targets).map(|_| ())
        })
    }

    fn count(
        &mut self,
        batches: impl IntoIterator<Item = Vec<usize>>,
        mut pass: impl FnMut(&mut Self, &Batch<'_>, Targets<'_>) -> Result<(), ModelError>,
    ) -> Result<Needs, ModelError> {
        let device = self.model.device().clone();
        device.reset_peak();
        let before = device.flops();
        let mut needs = Needs::default();
        for lengths in batches {
            let batch = Blank::new(&lengths, self.model.task().into(), self.model.num_labels());
            needs.tokens += batch.ids.len() as u64;
            pass(self, &batch.batch(), batch.targets())?;
        }
        needs.peak = device.peak_memory();
        needs.flops = device.flops() - before;
        Ok(needs)
    }
}

/// A batch of given lengths with nothing in it; the dry device looks at shapes only.
struct Blank {
    ids: Vec<u32>,
    offsets: Vec<usize>,
    task: TaskKind,
    classes: Vec<i64>,
    values: Vec<f32>,
}

impl Blank {
    fn new(lengths: &[usize], task: TaskKind, num_labels: usize) -> Self {
        let mut offsets = vec![0];
        let ends = lengths.iter().scan(0, |end, n| {
            *end += n;
            Some(*end)
        });
        offsets.extend(ends);
        let tokens: usize = lengths.iter().sum();
        let (classes, values) = match task {
            TaskKind::SingleLabel => (lengths.len(), 0),
            TaskKind::TokenClassification | TaskKind::CausalLm => (tokens, 0),
            TaskKind::MultiLabel | TaskKind::Regression => (0, lengths.len() * num_labels),
        };
        let mut classes = vec![0; classes];
        if task == TaskKind::CausalLm {
            // Nothing predicts a sequence's first token; every other one may count.
            let firsts = &offsets[..lengths.len()];
            firsts.iter().for_each(|&row| classes[row] = IGNORE_INDEX);
        }
        Self {
            ids: vec![0; tokens],
            offsets,
            task,
            classes,
            values: vec![0.0; values],
        }
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            input_ids: &self.ids,
            token_type_ids: Some(&self.ids),
            offsets: &self.offsets,
        }
    }

    fn targets(&self) -> Targets<'_> {
        match self.task {
            TaskKind::SingleLabel | TaskKind::TokenClassification | TaskKind::CausalLm => {
                Targets::Class(&self.classes)
            }
            TaskKind::MultiLabel => Targets::Multi(&self.values),
            TaskKind::Regression => Targets::Value(&self.values),
        }
    }
}

/// Of many batches those that can be the largest: at most `most`, half of them by tokens and half by the sum of squared
/// lengths (attention).
pub fn heaviest(mut batches: Vec<Vec<usize>>, most: usize) -> Vec<Vec<usize>> {
    if batches.len() <= most {
        return batches;
    }
    let squares = |b: &Vec<usize>| b.iter().map(|&n| n * n).sum::<usize>();
    batches.sort_by_key(|b| std::cmp::Reverse(b.iter().sum::<usize>()));
    let mut rest = batches.split_off(most / 2);
    rest.sort_by_key(|b| std::cmp::Reverse(squares(b)));
    rest.truncate(most - most / 2);
    batches.extend(rest);
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_by_both_measures_stay() {
        let mut batches: Vec<Vec<usize>> = (0..50).map(|i| vec![1; i + 1]).collect();
        batches.push(vec![20, 1]);
        let kept = heaviest(batches, 10);
        assert_eq!(kept.len(), 10);
        assert!(kept.contains(&vec![1; 50]) && kept.contains(&vec![20, 1]));
    }
}
