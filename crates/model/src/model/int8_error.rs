//! How far int8 weights are from the original ones on given rows: as a whole, and layer by layer,
//! each from the very state that the original weights give.

use lowrank_engine::{Tape, Tensor};

use crate::error::ModelError;
use crate::model::Model;
use crate::pass::{Batch, FrozenLayers, LayerRange, Recompute};

/// Relative errors: the norm of the difference by that of the original.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Error {
    /// Of the logits, from the embeddings on.
    pub logits: f64,
    /// Of what each layer gives, from the original state below it; of the last one the logits.
    pub layers: Vec<f64>,
    /// Columns of the layers' inputs that are kept beside, by all of them.
    pub beside: f64,
}

impl Int8Error {
    /// The layer with the largest error, and that; none of a model without layers.
    pub fn worst(&self) -> Option<(usize, f64)> {
        let layers = self.layers.iter().copied().enumerate();
        layers.max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

fn relative_error(found: &[f32], exact: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let pairs = found.iter().zip(exact);
    let off: f64 = pairs
        .map(|(&found, &exact)| square(f64::from(found) - f64::from(exact)))
        .sum();
    let all: f64 = exact.iter().map(|&exact| square(f64::from(exact))).sum();
    match off == 0.0 {
        true => 0.0,
        false => (off / all).sqrt(),
    }
}

impl Model {
    /// What int8 weights do to the results of a batch; `exact` is the same model with the original
    /// weights.
    ///
    /// # Errors
    /// The batch does not fit the model.
    pub fn int8_error(&self, exact: &Model, batch: &Batch<'_>) -> Result<Int8Error, ModelError> {
        let count = self.config.facts.num_hidden_layers;
        let wanted = exact.logits(batch)?;
        let mut layers = Vec::new();
        let mut below = exact.state(batch, LayerRange::below(0));
        for layer in 0..count {
            let own = self.layer_on(batch, layer, count, &below);
            if layer + 1 == count {
                layers.push(relative_error(&own, &wanted));
                break;
            }
            below = exact.layer_on(batch, layer, count, &below);
            layers.push(relative_error(&own, &below));
        }
        let outliers = self.outliers();
        let beside: usize = outliers.values().map(|of| of.inputs.len()).sum();
        let columns: usize = (self.modules.linears())
            .filter(|(module, _)| outliers.contains_key(&module.parameters[0].name))
            .map(|(_, [_, inp])| inp)
            .sum();
        Ok(Int8Error {
            logits: relative_error(&self.logits(batch)?, &wanted),
            layers,
            beside: beside as f64 / columns.max(1) as f64,
        })
    }

    fn state(&self, batch: &Batch<'_>, range: LayerRange) -> Vec<f32> {
        self.device.install(|| {
            let mut tape = Tape::inference(&self.device, &self.trainables);
            self.hidden(&mut tape, batch, range).tensor().read()
        })
    }

    /// What a layer gives from a state below it, the last one as logits.
    fn layer_on(&self, batch: &Batch<'_>, layer: usize, count: usize, below: &[f32]) -> Vec<f32> {
        let (rows, width) = (batch.tokens(), below.len() / batch.tokens().max(1));
        self.device.install(|| {
            let mut tape = Tape::inference(&self.device, &self.trainables);
            let mut state = Tensor::activations(&self.device, rows, width);
            state.write(below);
            let layers = FrozenLayers {
                count: layer,
                ..FrozenLayers::default()
            };
            let range = LayerRange::above(layers, tape.constant(state), Recompute::Off);
            match layer + 1 == count {
                true => self.to_vec(&self.logits_in(&mut tape, batch, range)),
                false => {
                    let range = range.ending_before(layer + 1);
                    self.hidden(&mut tape, batch, range).tensor().read()
                }
            }
        })
    }
}
