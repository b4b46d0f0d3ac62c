//! Which of a network's layers a pass runs, and how: the one loop that every family runs its layers
//! in. It knows no family.

use lowrank_engine::{Site, Tape, Tensor, Var};

use crate::modules::Pass;
use crate::pass::AttentionContext;

/// One layer: written once for training, inference and generation, which differ in the context
/// alone.
pub(crate) trait Block {
    /// What the layer gives: of every row of x [M, D], or of the context's queries [N, D].
    fn forward(&self, pass: &mut Pass<'_, '_>, x: Var, context: &AttentionContext) -> Var;
}

/// Whether layers run again in backward (gradient checkpointing).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Activations are kept.
    #[default]
    Off,
    /// Each layer keeps its input only and runs again in backward.
    Layers,
}

/// As the setting `gradient_checkpointing` says it.
impl From<bool> for Recompute {
    fn from(gradient_checkpointing: bool) -> Self {
        match gradient_checkpointing {
            true => Recompute::Layers,
            false => Recompute::Off,
        }
    }
}

/// Layers from the bottom whose output depends on nothing but the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrozenLayers {
    /// How many they are, the last layer of the network never among them; 0 where there
    /// are none.
    pub count: usize,
    /// The dropout site that follows them: masks above do not depend on whether
    /// they are run.
    pub(crate) next_site: Site,
}

/// What a pass starts from in place of token ids.
#[derive(Debug)]
pub struct Entry {
    /// The layers that are not run.
    pub frozen: FrozenLayers,
    /// What they give for every token of the batch [M, D].
    pub state: Tensor,
}

impl Entry {
    pub(crate) fn range(self, tape: &Tape<'_>, recompute: Recompute) -> LayerRange {
        LayerRange::above(self.frozen, tape.constant(self.state), recompute)
    }
}

/// The layers that a pass runs.
pub struct LayerRange {
    /// What stands below the first of them, where that has been computed already.
    entry: Option<(FrozenLayers, Var)>,
    /// The layer before which the pass ends; absent where it goes through to the head.
    end: Option<usize>,
    recompute: Recompute,
}

impl LayerRange {
    /// All of them.
    pub fn whole(recompute: Recompute) -> Self {
        LayerRange {
            entry: None,
            end: None,
            recompute,
        }
    }

    /// Those above frozen layers, whose state [M, D] is known: neither these nor the embeddings are
    /// run.
    pub fn above(frozen: FrozenLayers, state: Var, recompute: Recompute) -> Self {
        LayerRange {
            entry: Some((frozen, state)),
            end: None,
            recompute,
        }
    }

    /// The embeddings and the first `layers`; the pass ends there.
    pub fn below(layers: usize) -> Self {
        LayerRange {
            entry: None,
            end: Some(layers),
            recompute: Recompute::Off,
        }
    }

    /// The same up to a layer, before which it ends.
    pub(crate) fn ending_before(self, layer: usize) -> Self {
        LayerRange {
            end: Some(layer),
            ..self
        }
    }

    /// Whether the pass ends before the head.
    pub(crate) fn ends_below(&self) -> bool {
        self.end.is_some()
    }

    /// What the pass does to the state that it starts from, if it starts from one.
    pub(crate) fn map_entry(mut self, map: impl FnOnce(Var) -> Var) -> Self {
        self.entry = self.entry.map(|(frozen, state)| (frozen, map(state)));
        self
    }

    /// Runs the range of a network of `count` layers: `embed` gives what enters the lowest,
    /// `block(i)` is the i-th.
    pub(crate) fn run<'m, B: Block + 'm>(
        self,
        pass: &mut Pass<'_, 'm>,
        count: usize,
        context: &AttentionContext,
        embed: impl FnOnce(&mut Pass<'_, 'm>) -> Var,
        block: impl Fn(usize) -> B,
    ) -> Var {
        let (first, mut x) = match self.entry {
            None => (0, embed(pass)),
            Some((frozen, state)) => {
                pass.enter_at(frozen.next_site);
                (frozen.count, state)
            }
        };
        for i in first..self.end.unwrap_or(count) {
            let (block, context) = (block(i), context.of_layer(i, count));
            x = match self.recompute {
                Recompute::Off => block.forward(pass, x, &context),
                Recompute::Layers => {
                    pass.recompute(x, move |pass, x| block.forward(pass, x, &context))
                }
            };
        }
        x
    }
}
