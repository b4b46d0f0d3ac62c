//! Frozen layers: those below the lowest trained value. What they give for a row is a
//! function of that row alone (its values do not depend on its batch), so that it can be computed
//! once and kept. Which layers these are is not read off names: the layers run dry, and the tape
//! tells whether they met a trained value or dropped something out.

use lowrank_engine::{Device, StepKey, Tape};

use crate::error::ModelError;
use crate::model::Model;
use crate::pass::{Batch, Entry, FrozenLayers, LayerRange};
use crate::trained::TrainMode;

/// What passes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Training, with the model's own dropout.
    Training,
    /// Evaluation or prediction, without dropout.
    Inference,
}

impl Model {
    /// The layers that are frozen in passes of a kind.
    pub fn frozen_layers(&self, passes: Passes) -> FrozenLayers {
        let TrainMode::Adapter(_) = self.mode else {
            return FrozenLayers::default();
        };
        let step = match passes {
            Passes::Training => Some(StepKey {
                seed: 0,
                micro_step: 0,
            }),
            Passes::Inference => None,
        };
        // Adapters are packed on the model's own device, whichever device the layers run on.
        self.device.install(|| {
            let (mut least, mut most) =
                (FrozenLayers::default(), self.config.facts.num_hidden_layers);
            // Bisection: layers up to `least` are frozen, those up to `most` are not, or hold the
            // last.
            while most - least.count > 1 {
                let layers = usize::midpoint(least.count, most);
                let tape = self.walk_dry(layers, step);
                if tape.met_trained() || tape.dropped() {
                    most = layers;
                } else {
                    least = FrozenLayers {
                        count: layers,
                        next_site: tape.next_site(),
                    };
                }
            }
            least
        })
    }

    /// The tape after the embeddings and `layers` of them, run with shapes only on a short
    /// sequence.
    fn walk_dry(&self, layers: usize, step: Option<StepKey>) -> Tape<'_> {
        let batch = Batch {
            input_ids: &[0],
            token_type_ids: None,
            offsets: &[0, 1],
        };
        let dry = Device::dry_like(&self.device);
        let mut tape = Tape::training(&dry, &self.trainables, step);
        let range = LayerRange::below(layers);
        self.hidden(&mut tape, &batch, range);
        tape
    }

    /// What frozen layers give for every token of a batch [M, D], without dropout, as
    /// activations are stored.
    ///
    /// # Errors
    /// The batch does not fit the model.
    pub fn run_frozen_layers(
        &self,
        frozen: FrozenLayers,
        batch: &Batch<'_>,
    ) -> Result<Entry, ModelError> {
        self.check(batch, None)?;
        let state = self.device.install(|| {
            let mut tape = Tape::inference(&self.device, &self.trainables);
            let range = LayerRange::below(frozen.count);
            let state = self.hidden(&mut tape, batch, range);
            state.into_tensor()
        });
        Ok(Entry { frozen, state })
    }
}
