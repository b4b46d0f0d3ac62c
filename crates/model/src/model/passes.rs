//! Passes of a model over batches: training, evaluation, logits. Of a language model it knows which
//! rows predict which tokens: a token's label stands at its own place, as in transformers, and is
//! predicted by the row before it.

use lowrank_engine::ops::lm_head::{LmTargets, lm_logits, lm_loss, lm_loss_backward};
use lowrank_engine::ops::loss::{IGNORE_INDEX, Targets, loss};
use lowrank_engine::{Adapters, Gradients, StepKey, Tape, Var};

use crate::error::ModelError;
use crate::model::Model;
use crate::pass::{Batch, CausalBatch, Entry, LayerRange, Pass, Recompute};

/// How a training pass is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct PassOptions {
    /// With a key, dropout is on and its masks come from it.
    pub dropout: Option<StepKey>,
    /// Multiplies the gradient of the loss's sum: 1 / (counted targets of the whole optimizer
    /// step).
    pub grad_scale: f32,
    /// ε of label smoothing, of a language model only.
    pub label_smoothing: f32,
    /// Whether layers run again in backward.
    pub recompute: Recompute,
}

/// What a model says of a batch beside its targets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluated {
    /// The logits, as [`Model::logits`]; a language model's are not kept.
    pub logits: Vec<f32>,
    /// The loss's sum over the counted targets.
    pub loss_sum: f64,
    /// Targets that count.
    pub counted: usize,
    /// Of a language model, those that are the most probable token.
    pub hits: usize,
}

impl Model {
    /// Forward and backward over one micro-batch; gradients are added to `gradients`. Returns the
    /// loss's sum over the counted targets and their number. Errors if the batch or its targets do
    /// not fit.
    pub fn forward_backward(
        &self,
        batch: &Batch<'_>,
        targets: Targets<'_>,
        options: &PassOptions,
        gradients: &mut Gradients,
    ) -> Result<(f64, usize), ModelError> {
        self.forward_backward_from(None, batch, targets, options, gradients)
    }

    /// As [`Model::forward_backward`] from what frozen layers gave for the same batch, if there
    /// is that: the same bits.
    ///
    /// # Errors
    /// As there.
    pub fn forward_backward_from(
        &self,
        entry: Option<Entry>,
        batch: &Batch<'_>,
        targets: Targets<'_>,
        options: &PassOptions,
        gradients: &mut Gradients,
    ) -> Result<(f64, usize), ModelError> {
        self.check(batch, Some(targets))?;
        Ok(self.device.install(|| {
            let mut tape = Tape::training(&self.device, &self.trainables, options.dropout);
            let range = range(&tape, entry, options.recompute);
            if let Some(model) = self.network.language_model() {
                let (rows, labels) = next_tokens(targets);
                if rows.is_empty() {
                    return (0.0, 0);
                }
                let pass = &mut self.pass(&mut tape);
                let hidden = model.hidden_of(pass, &CausalBatch::of_rows(batch, &rows), range);
                let targets = LmTargets {
                    head: model.head(pass),
                    labels: &labels,
                    smoothing: options.label_smoothing,
                };
                let scale = options.grad_scale;
                let sum = lm_loss_backward(tape, hidden, targets, scale, gradients);
                return (sum, rows.len());
            }
            let logits = self.classify(&mut tape, batch, range);
            let out = loss(&logits, targets, options.grad_scale);
            tape.backward(&logits, out.d_logits, gradients);
            (out.sum, out.count)
        }))
    }

    /// The logits without dropout [N, num_labels], row by row; one row a sequence, or one a token
    /// for token classification and for a language model. Empty on the dry device.
    ///
    /// # Errors
    /// The batch does not fit the model.
    pub fn logits(&self, batch: &Batch<'_>) -> Result<Vec<f32>, ModelError> {
        self.logits_with(batch, Adapters::Own)
    }

    /// As [`Model::logits`] with the adapters switched off.
    ///
    /// # Errors
    /// As there.
    pub fn base_logits(&self, batch: &Batch<'_>) -> Result<Vec<f32>, ModelError> {
        self.logits_with(batch, Adapters::Off)
    }

    fn logits_with(&self, batch: &Batch<'_>, adapters: Adapters) -> Result<Vec<f32>, ModelError> {
        self.check(batch, None)?;
        Ok(self
            .device
            .install(|| self.to_vec(&self.infer(batch, adapters))))
    }

    /// What the model says of a batch beside its targets.
    ///
    /// # Errors
    /// The batch or its targets do not fit.
    pub fn evaluate(
        &self,
        batch: &Batch<'_>,
        targets: Targets<'_>,
    ) -> Result<Evaluated, ModelError> {
        self.evaluate_from(None, batch, targets)
    }

    /// As [`Model::evaluate`] from what frozen layers gave for the same batch, if there is that:
    /// the same bits.
    ///
    /// # Errors
    /// As there.
    pub fn evaluate_from(
        &self,
        entry: Option<Entry>,
        batch: &Batch<'_>,
        targets: Targets<'_>,
    ) -> Result<Evaluated, ModelError> {
        self.check(batch, Some(targets))?;
        Ok(self.device.install(|| {
            let mut tape = Tape::inference(&self.device, &self.trainables);
            let range = range(&tape, entry, Recompute::Off);
            if let Some(model) = self.network.language_model() {
                let (rows, labels) = next_tokens(targets);
                if rows.is_empty() {
                    return Evaluated::default();
                }
                let pass = &mut self.pass(&mut tape);
                let hidden = model.hidden_of(pass, &CausalBatch::of_rows(batch, &rows), range);
                let targets = LmTargets {
                    head: model.head(pass),
                    labels: &labels,
                    smoothing: 0.0,
                };
                let loss = lm_loss(&hidden, targets, &self.trainables);
                return Evaluated {
                    logits: Vec::new(),
                    loss_sum: loss.sum,
                    counted: rows.len(),
                    hits: loss.hits,
                };
            }
            let logits = self.classify(&mut tape, batch, range);
            let out = loss(&logits, targets, 1.0);
            Evaluated {
                logits: self.to_vec(&logits),
                loss_sum: out.sum,
                counted: out.count,
                hits: 0,
            }
        }))
    }

    pub(crate) fn infer(&self, batch: &Batch<'_>, adapters: Adapters) -> Var {
        let mut tape = Tape::inference(&self.device, &self.trainables).with_adapters(adapters);
        self.logits_in(&mut tape, batch, LayerRange::whole(Recompute::Off))
    }

    /// The logits of a range that goes through to the head.
    pub(super) fn logits_in<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        batch: &Batch<'_>,
        range: LayerRange,
    ) -> Var {
        let Some(model) = self.network.language_model() else {
            return self.classify(tape, batch, range);
        };
        let rows: Vec<usize> = (0..batch.tokens()).collect();
        let batch = CausalBatch::of_rows(batch, &rows);
        let pass = &mut self.pass(tape);
        let hidden = model.hidden_of(pass, &batch, range);
        let head = model.head(pass);
        let logits = lm_logits(hidden.tensor(), head, &self.trainables);
        tape.constant(logits)
    }

    pub(crate) fn pass<'t, 'm>(&'m self, tape: &'t mut Tape<'m>) -> Pass<'t, 'm> {
        let modules = &self.modules;
        Pass { modules, tape }
    }

    /// What a classifier reads, or the range's last layer gives.
    pub(super) fn hidden<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        batch: &Batch<'_>,
        range: LayerRange,
    ) -> Var {
        (self.network).hidden(&mut self.pass(tape), batch, range)
    }

    fn classify<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>, range: LayerRange) -> Var {
        let hidden = self.hidden(tape, batch, range);
        self.network.classify(&mut self.pass(tape), hidden)
    }

    pub(crate) fn to_vec(&self, logits: &Var) -> Vec<f32> {
        if self.device.is_dry() {
            Vec::new()
        } else {
            logits.tensor().read()
        }
    }
}

fn range(tape: &Tape<'_>, entry: Option<Entry>, recompute: Recompute) -> LayerRange {
    match entry {
        Some(entry) => entry.range(tape, recompute),
        None => LayerRange::whole(recompute),
    }
}

/// The rows that predict a counted token, and those tokens. A sequence's first token is never
/// counted: see the checks.
fn next_tokens(targets: Targets<'_>) -> (Vec<usize>, Vec<i64>) {
    let Targets::Class(labels) = targets else {
        return (Vec::new(), Vec::new());
    };
    let counted = labels.iter().enumerate();
    counted
        .filter(|&(_, &label)| label != IGNORE_INDEX)
        .map(|(i, &label)| (i - 1, label))
        .unzip()
}
