//! The frame of every decoder: tables, causal layers, a last norm, a head. It knows no layer's
//! insides: those of GPT-2, GPT-Neo and OPT are in `absolute`, those with rotary positions in
//! `rotary`. Each family's file says how its parts are named. D = hidden size, M = tokens of the
//! batch, N = tokens that the head reads, B = sequences.

mod absolute;
mod rotary;

use lowrank_engine::Var;
use lowrank_engine::ops::add::add;
use lowrank_engine::ops::dropout::dropout;
use lowrank_engine::ops::embedding::embedding;
use lowrank_engine::ops::lm_head::LmHead;
use lowrank_engine::ops::scale::scale;

use crate::config::Task;
use crate::error::ModelError;
use crate::families::{HeadTensors, LM_HEAD, LanguageModel, Network};
use crate::load::{LinearSpec, Loader, Presence};
use crate::modules::{Embedding, LayerNorm, Linear, ModuleId, RmsNorm};
use crate::pass::{Batch, Block, CausalBatch, LayerRange, Pass};
pub(crate) use absolute::{DecoderConfig, Names, Projections, Scores};
pub(crate) use rotary::{
    Defaults, Fusion, HeadNorms, LLAMA, NormPlaces, Read, RopeRule, TOKENS, WindowRule,
    local_layers, read_ropes_by_window,
};

/// A decoder's classification head.
pub(crate) const SCORE: HeadTensors = HeadTensors {
    sequence: &["score.weight"],
    tokens: None,
};

/// A decoder with a head.
struct Decoder<L> {
    tokens: Embedding,
    /// Multiplies a token's row, rounded to the precision.
    token_scale: f32,
    positions: Option<PositionTable>,
    /// From the width of the token table to D, where they differ.
    project_in: Option<Linear>,
    embedding_dropout: f32,
    layers: Vec<L>,
    final_norm: FinalNorm,
    /// From D to the width of the token table.
    project_out: Option<Linear>,
    head: Head,
    /// Multiplies what the head reads.
    head_scale: f32,
    /// Of a language model's logits.
    logit_soft_cap: Option<f32>,
    /// What does not count as a sequence's last token, for the classification head.
    pad_token_id: Option<u32>,
}

/// What reads the last hidden states.
enum Head {
    /// A table of tokens, which may be that of the input.
    Table {
        table: Embedding,
        /// The module that adapters of the output name.
        end: ModuleId,
    },
    /// A classifier of each sequence's last token.
    Score(Linear),
}

impl Head {
    /// Loads the head of the loader's task; a language model's is the tied table, if there is one.
    /// Tables are [V, `width`].
    fn build(
        tied: Option<Embedding>,
        [vocab, width]: [usize; 2],
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        match loader.task() {
            Task::CausalLm => Ok(match tied {
                Some(table) => Head::Table {
                    table,
                    end: loader.other_end(LM_HEAD),
                },
                None => {
                    let table = loader.head_table(LM_HEAD, [vocab, width])?;
                    let end = table.id;
                    Head::Table { table, end }
                }
            }),
            _ => {
                let score = loader.spec("score", [width, loader.num_labels()]);
                let score = loader.linear_of(LinearSpec {
                    presence: Presence::NewIfAbsent,
                    ..score.unbiased()
                })?;
                Ok(Head::Score(score))
            }
        }
    }
}

/// Learned positions.
#[derive(Clone, Copy)]
struct PositionTable {
    table: Embedding,
    /// The row of a sequence's first token.
    first: u32,
}

/// The norm of the last layer's output.
enum FinalNorm {
    None,
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl<L> Decoder<L> {
    /// The sum of the tables' rows [M, D].
    fn embed(&self, pass: &mut Pass<'_, '_>, batch: &CausalBatch) -> Var {
        let tokens = self.tokens.lookup(pass, &batch.input_ids);
        let Some(positions) = self.positions else {
            let x = embedding(pass, &[tokens]);
            let factor = pass.device().numerics().activations.round(self.token_scale);
            return scale(pass, x, factor);
        };
        let places = batch.context.positions().iter();
        let places: Vec<u32> = places.map(|place| positions.first + place).collect();
        let positions = positions.table.lookup(pass, &places);
        let Some(project) = &self.project_in else {
            return embedding(pass, &[tokens, positions]);
        };
        let x = embedding(pass, &[tokens]);
        let x = project.forward(pass, x);
        let positions = embedding(pass, &[positions]);
        add(pass, x, positions, 0.0)
    }

    fn finish(&self, pass: &mut Pass<'_, '_>, x: Var) -> Var {
        let x = match &self.final_norm {
            FinalNorm::None => x,
            FinalNorm::Layer(norm) => norm.forward(pass, x),
            FinalNorm::Rms(norm) => norm.forward(pass, x),
        };
        let x = scale(pass, x, self.head_scale);
        match &self.project_out {
            Some(project) => project.forward(pass, x),
            None => x,
        }
    }

    /// The row of each sequence's last token that is not padding; its first row if all are. Source:
    /// transformers `GPT2ForSequenceClassification`.
    fn last_rows(&self, batch: &Batch<'_>) -> Vec<usize> {
        let last = |range: &[usize]| {
            let (start, end) = (range[0], range[1]);
            let is_token = |&row: &usize| Some(batch.input_ids[row]) != self.pad_token_id;
            (start..end).rev().find(is_token).unwrap_or(start)
        };
        batch.offsets.windows(2).map(last).collect()
    }
}

impl<L: Block + Copy + Send + Sync + 'static> LanguageModel for Decoder<L> {
    fn hidden_of<'m>(
        &self,
        pass: &mut Pass<'_, 'm>,
        batch: &CausalBatch,
        range: LayerRange,
    ) -> Var {
        let ends_below = range.ends_below();
        let range = batch.narrow(pass, range);
        let embed = |pass: &mut Pass<'_, 'm>| {
            let x = self.embed(pass, batch);
            dropout(pass, x, self.embedding_dropout)
        };
        let count = self.layers.len();
        let x = range.run(pass, count, &batch.context, embed, |i| self.layers[i]);
        if ends_below {
            return x;
        }
        let x = batch.wanted(pass, x);
        self.finish(pass, x)
    }

    fn num_layers(&self) -> usize {
        self.layers.len()
    }

    fn head<'m>(&self, pass: &Pass<'_, 'm>) -> LmHead<'m> {
        match self.head {
            Head::Table { table, end } => LmHead {
                soft_cap: self.logit_soft_cap,
                ..table.as_head(pass, end)
            },
            Head::Score(_) => unreachable!("a classifier is no language model"),
        }
    }
}

impl<L: Block + Copy + Send + Sync + 'static> Network for Decoder<L> {
    fn hidden(&self, pass: &mut Pass<'_, '_>, batch: &Batch<'_>, range: LayerRange) -> Var {
        let rows = if range.ends_below() {
            // With every last token wanted, all tokens are needed.
            batch.offsets[1..].iter().map(|end| end - 1).collect()
        } else {
            self.last_rows(batch)
        };
        self.hidden_of(pass, &CausalBatch::of_rows(batch, &rows), range)
    }

    fn classify(&self, pass: &mut Pass<'_, '_>, hidden: Var) -> Var {
        match self.head {
            Head::Score(score) => score.logits(pass, hidden),
            Head::Table { .. } => unreachable!("a language model has no classifier"),
        }
    }

    fn language_model(&self) -> Option<&dyn LanguageModel> {
        match &self.head {
            Head::Table { .. } => Some(self),
            Head::Score(_) => None,
        }
    }
}
