//! The decoder that GPT-2, GPT-Neo and OPT share: tables of tokens and positions, causal blocks, a head. Each family's file
//! says how its parts are named; this one knows no names. D = hidden size, M = tokens of the batch, N = tokens that the head
//! reads, B = sequences. Source: transformers `modeling_gpt2.py`, `modeling_gpt_neo.py`, `modeling_opt.py`.

mod assembly;

use lowrank_engine::ops::add::add;
use lowrank_engine::ops::attention::AttentionForm;
use lowrank_engine::ops::columns::select_columns;
use lowrank_engine::ops::dropout::dropout;
use lowrank_engine::ops::embedding::embedding;
use lowrank_engine::{Matrix, Var};

use crate::families::residual::Residual;
use crate::families::{LanguageModel, Network};
use crate::modules::{Embedding, LayerNorm, Linear, Modules};
use crate::pass::{AttentionContext, Batch, Block, CausalBatch, LayerRange, Pass};
pub(crate) use assembly::{DecoderConfig, Names, Projections, SCORE, Scores};

/// A decoder with a head.
struct Decoder {
    tokens: Embedding,
    positions: Embedding,
    /// The row of the position table of a sequence's first token.
    first_position: u32,
    /// From the width of the token table to D, where they differ.
    project_in: Option<Linear>,
    embedding_dropout: f32,
    layers: Vec<Layer>,
    final_norm: Option<LayerNorm>,
    /// From D to the width of the token table.
    project_out: Option<Linear>,
    head: Head,
    /// What does not count as a sequence's last token, for the classification head.
    pad_token_id: Option<u32>,
}

/// What reads the last hidden states.
enum Head {
    /// A table of tokens, which may be that of the input.
    Table(Embedding),
    /// A classifier of each sequence's last token.
    Score(Linear),
}

/// One layer.
#[derive(Clone, Copy)]
struct Layer {
    projections: Projections<Linear>,
    attention: AttentionForm,
    residual: Residual,
}

impl Decoder {
    /// The sum of the tables' rows [M, D].
    fn embed(&self, pass: &mut Pass<'_, '_>, batch: &CausalBatch) -> Var {
        let places = batch.positions.iter();
        let places: Vec<u32> = places.map(|place| self.first_position + place).collect();
        let tokens = self.tokens.lookup(pass.modules, &batch.input_ids);
        let positions = self.positions.lookup(pass.modules, &places);
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
            Some(norm) => norm.forward(pass, x),
            None => x,
        };
        match &self.project_out {
            Some(project) => project.forward(pass, x),
            None => x,
        }
    }

    /// The row of each sequence's last token that is not padding; its first row if all are. Source: transformers
    /// `GPT2ForSequenceClassification`.
    fn last_rows(&self, batch: &Batch<'_>) -> Vec<usize> {
        let last = |range: &[usize]| {
            let (start, end) = (range[0], range[1]);
            let is_token = |&row: &usize| Some(batch.input_ids[row]) != self.pad_token_id;
            (start..end).rev().find(is_token).unwrap_or(start)
        };
        batch.offsets.windows(2).map(last).collect()
    }
}

impl LanguageModel for Decoder {
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

    fn head<'m>(&self, modules: &'m Modules) -> &'m Matrix {
        match self.head {
            Head::Table(table) => table.as_head(modules),
            Head::Score(_) => unreachable!("a classifier is no language model"),
        }
    }
}

impl Network for Decoder {
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
            Head::Table(_) => unreachable!("a language model has no classifier"),
        }
    }

    fn language_model(&self) -> Option<&dyn LanguageModel> {
        match &self.head {
            Head::Table(_) => Some(self),
            Head::Score(_) => None,
        }
    }
}

impl Layer {
    /// Queries of the context's rows, keys and values of x [M, D].
    fn project(&self, pass: &mut Pass<'_, '_>, x: Var, context: &AttentionContext) -> [Var; 3] {
        match self.projections {
            Projections::Fused(fused) => {
                let all = fused.forward(pass, x);
                let form = &self.attention;
                let width = form.num_heads * form.head_dim;
                let [q, k, v] =
                    [0, 1, 2].map(|i| select_columns(pass, &all, i * width..(i + 1) * width));
                [context.select(pass, &q), k, v]
            }
            Projections::Separate([key, value, query]) => {
                let k = key.forward(pass, x.clone());
                let v = value.forward(pass, x.clone());
                let x = context.select(pass, &x);
                [query.forward(pass, x), k, v]
            }
        }
    }
}

impl Block for Layer {
    fn forward(&self, pass: &mut Pass<'_, '_>, x: Var, context: &AttentionContext) -> Var {
        let y = self.residual.before_attention(pass, &x);
        let qkv = self.project(pass, y, context);
        let x = context.select(pass, &x);
        let y = context.attend(pass, qkv, &self.attention);
        self.residual.after_attention(pass, y, x)
    }
}
