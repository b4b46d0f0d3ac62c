//! Language models: which rows predict which tokens, and the loss over them. A token's label stands at its own place, as in
//! transformers, and is predicted by the row before it.

use lowrank_engine::ops::lm_head::{LmTargets, lm_logits, lm_loss, lm_loss_backward};
use lowrank_engine::ops::loss::{IGNORE_INDEX, Targets};
use lowrank_engine::{Gradients, Tape, Var};

use crate::families::LanguageModel;
use crate::model::{Model, PassOptions};
use crate::pass::{Batch, LayerRange};

impl Model {
    /// Forward and backward; the loss's sum and the number of counted tokens.
    pub(crate) fn train_on_next_tokens<'m>(
        &'m self,
        model: &'m dyn LanguageModel,
        (mut tape, range): (Tape<'m>, LayerRange),
        batch: &Batch<'_>,
        targets: Targets<'_>,
        (options, gradients): (&PassOptions, &mut Gradients),
    ) -> (f64, usize) {
        let (rows, labels) = next_tokens(targets);
        if rows.is_empty() {
            return (0.0, 0);
        }
        let hidden = model.hidden(&self.modules, &mut tape, batch, &rows, range);
        let targets = LmTargets {
            table: model.head(&self.modules),
            labels: &labels,
            smoothing: options.label_smoothing,
        };
        let scale = options.grad_scale;
        let sum = lm_loss_backward(tape, hidden, targets, scale, gradients);
        (sum, rows.len())
    }

    /// Forward alone, without label smoothing; the loss's sum and the number of counted tokens.
    pub(crate) fn loss_of_next_tokens<'m>(
        &'m self,
        model: &'m dyn LanguageModel,
        (mut tape, range): (Tape<'m>, LayerRange),
        batch: &Batch<'_>,
        targets: Targets<'_>,
    ) -> (f64, usize) {
        let (rows, labels) = next_tokens(targets);
        if rows.is_empty() {
            return (0.0, 0);
        }
        let hidden = model.hidden(&self.modules, &mut tape, batch, &rows, range);
        let targets = LmTargets {
            table: model.head(&self.modules),
            labels: &labels,
            smoothing: 0.0,
        };
        (lm_loss(&hidden, targets, &self.trainables), rows.len())
    }

    /// The logits [M, V] of every token.
    pub(crate) fn logits_of_all<'m>(
        &'m self,
        model: &'m dyn LanguageModel,
        mut tape: Tape<'m>,
        batch: &Batch<'_>,
    ) -> Var {
        let rows: Vec<usize> = (0..batch.tokens()).collect();
        let (modules, range) = (&self.modules, LayerRange::whole(false));
        let hidden = model.hidden(modules, &mut tape, batch, &rows, range);
        let table = model.head(modules);
        tape.constant(lm_logits(hidden.tensor(), table, &self.trainables))
    }
}

/// The rows that predict a counted token, and those tokens. A sequence's first token is never counted: see the checks.
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
