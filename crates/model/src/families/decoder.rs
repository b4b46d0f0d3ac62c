//! The decoder that GPT-2, GPT-Neo and OPT share: tables of tokens and positions, causal blocks, a head. Each family's file
//! says how its parts are named; this one knows no names. D = hidden size, M = tokens of the batch, N = tokens that the head
//! reads, B = sequences. Source: transformers `modeling_gpt2.py`, `modeling_gpt_neo.py`, `modeling_opt.py`.

mod assembly;

use std::sync::Arc;

use lowrank_engine::ops::add::add;
use lowrank_engine::ops::attention::{AttentionMask, AttentionSpec, attention};
use lowrank_engine::ops::cached_attention::{
    CachedSequence, CachedShape, QueryRole, cached_attention,
};
use lowrank_engine::ops::columns::select_columns;
use lowrank_engine::ops::dropout::dropout;
use lowrank_engine::ops::embedding::embedding;
use lowrank_engine::ops::rows::select_rows;
use lowrank_engine::{Activation, Matrix, Var};

use crate::families::{LanguageModel, Network};
use crate::modules::{Embedding, LayerNorm, Linear, Modules};
use crate::pass::{Batch, Kept, LayerRange, Pass};
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
    blocks: Vec<Block>,
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
struct Block {
    attention_norm: LayerNorm,
    projections: Projections<Linear>,
    attention_output: Linear,
    mlp_norm: LayerNorm,
    mlp_input: Linear,
    mlp_output: Linear,
    form: BlockForm,
}

/// What a layer does besides its weights.
#[derive(Debug, Clone, Copy)]
struct BlockForm {
    num_heads: usize,
    head_dim: usize,
    scores: Scores,
    activation: Activation,
    /// Whether norms stand before their sublayer, or after the residual sum.
    norm_first: bool,
    attention_dropout: f32,
    /// Dropout of a sublayer's output.
    dropout: f32,
}

/// The part of a batch that the wanted rows depend on: what comes after a sequence's last wanted row changes none of them.
struct Needed {
    /// Their rows in the batch.
    rows: Vec<usize>,
    input_ids: Vec<u32>,
    positions: Vec<u32>,
    /// Where each kept sequence starts, and the end.
    offsets: Arc<[usize]>,
    /// The rows of the last layer's queries: in each sequence from the first wanted row on.
    queries: Vec<usize>,
    /// Where each sequence's queries start, and the end.
    query_offsets: Arc<[usize]>,
    /// The wanted rows among the queries.
    wanted: Vec<usize>,
}

impl Needed {
    /// `rows` rise.
    fn new(batch: &Batch<'_>, rows: &[usize], first_position: u32) -> Self {
        let (mut input_ids, mut positions, mut queries) = (Vec::new(), Vec::new(), Vec::new());
        let mut kept = Vec::new();
        let (mut offsets, mut query_offsets, mut wanted) = (vec![0], vec![0], Vec::new());
        let mut rest = rows;
        for range in batch.offsets.windows(2) {
            let (start, end) = (range[0], range[1]);
            let here;
            (here, rest) = rest.split_at(rest.partition_point(|&row| row < end));
            let (Some(&first), Some(&last)) = (here.first(), here.last()) else {
                continue;
            };
            let shift = input_ids.len();
            wanted.extend(here.iter().map(|row| queries.len() + row - first));
            queries.extend((first..=last).map(|row| shift + row - start));
            kept.extend(start..=last);
            input_ids.extend_from_slice(&batch.input_ids[start..=last]);
            positions.extend((start..=last).map(|row| first_position + (row - start) as u32));
            offsets.push(input_ids.len());
            query_offsets.push(queries.len());
        }
        Needed {
            rows: kept,
            input_ids,
            positions,
            offsets: offsets.into(),
            queries,
            query_offsets: query_offsets.into(),
            wanted,
        }
    }
}

impl Decoder {
    /// The sum of the tables' rows [M, D].
    fn embed(&self, pass: &mut Pass<'_, '_>, ids: &[u32], positions: &[u32]) -> Var {
        let tokens = self.tokens.lookup(pass.modules, ids);
        let positions = self.positions.lookup(pass.modules, positions);
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
        batch: &Batch<'_>,
        rows: &[usize],
        range: LayerRange,
    ) -> Var {
        let needed = Needed::new(batch, rows, self.first_position);
        let (count, ends_below) = (self.blocks.len(), range.ends_below());
        let range = range.map_entry(|state| {
            if needed.rows.len() < state.rows() {
                select_rows(pass, &state, &needed.rows)
            } else {
                state
            }
        });
        let embed = |pass: &mut Pass<'_, 'm>| {
            let x = self.embed(pass, &needed.input_ids, &needed.positions);
            dropout(pass, x, self.embedding_dropout)
        };
        let mut x = range.run(pass, count, embed, |i| {
            let is_part = i + 1 == count && needed.queries.len() < needed.input_ids.len();
            let run = BlockRun {
                block: self.blocks[i],
                offsets: needed.offsets.clone(),
                queries: is_part.then(|| (needed.queries.clone(), needed.query_offsets.clone())),
            };
            move |pass: &mut Pass<'_, 'm>, x| run.forward(pass, x)
        });
        if ends_below {
            return x;
        }
        if needed.wanted.len() < x.rows() {
            x = select_rows(pass, &x, &needed.wanted);
        }
        self.finish(pass, x)
    }

    fn num_layers(&self) -> usize {
        self.blocks.len()
    }

    fn extend(&self, pass: &mut Pass<'_, '_>, batch: &Batch<'_>, kept: &mut Kept) -> Var {
        let starts: Vec<usize> = kept.lengths().collect();
        let is_prompt = starts.iter().all(|&n| n == 0);
        let positions: Vec<u32> = (batch.offsets.windows(2).zip(&starts))
            .flat_map(|(range, start)| *start..start + range[1] - range[0])
            .map(|place| self.first_position + place as u32)
            .collect();
        kept.extend(batch.offsets);
        let offsets: Arc<[usize]> = batch.offsets.into();
        let mut x = self.embed(pass, batch.input_ids, &positions);
        for (i, block) in self.blocks.iter().enumerate() {
            let y = block.before_attention(pass, &x);
            let [q, k, v] = block.project(pass, y, None);
            kept.write(i, &k, &v);
            let context = if is_prompt {
                attention(pass, q, k, v, block.attention_spec(&offsets, &offsets))
            } else {
                let new_token = |rows| CachedSequence {
                    queries: 1,
                    rows,
                    role: QueryRole::NewToken,
                };
                let rows = kept.rows(block.form.scores.window);
                let sequences: Vec<_> = rows.into_iter().map(new_token).collect();
                let shape = CachedShape {
                    num_heads: block.form.num_heads,
                    num_key_value_heads: block.form.num_heads,
                    head_dim: block.form.head_dim,
                    scale: block.form.scores.scale,
                    soft_cap: None,
                    window: block.form.scores.window,
                    sequences: &sequences,
                };
                cached_attention(pass, &q, kept.layer(i), shape)
            };
            x = block.after_attention(pass, context, x);
        }
        let lasts: Vec<usize> = batch.offsets[1..].iter().map(|end| end - 1).collect();
        if lasts.len() < x.rows() {
            x = select_rows(pass, &x, &lasts);
        }
        self.finish(pass, x)
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
        self.hidden_of(pass, batch, &rows, range)
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

impl Block {
    /// Queries, keys and values of x, which stands after the norm. Queries are of the rows `queries` alone, if given.
    fn project(&self, pass: &mut Pass<'_, '_>, x: Var, queries: Option<&[usize]>) -> [Var; 3] {
        let narrowed = |pass: &mut Pass<'_, '_>, x: Var| match queries {
            Some(rows) => select_rows(pass, &x, rows),
            None => x,
        };
        match self.projections {
            Projections::Fused(fused) => {
                let all = fused.forward(pass, x);
                let width = self.form.num_heads * self.form.head_dim;
                let [q, k, v] =
                    [0, 1, 2].map(|i| select_columns(pass, &all, i * width..(i + 1) * width));
                [narrowed(pass, q), k, v]
            }
            Projections::Separate([key, value, query]) => {
                let k = key.forward(pass, x.clone());
                let v = value.forward(pass, x.clone());
                let x = narrowed(pass, x);
                [query.forward(pass, x), k, v]
            }
        }
    }

    /// What attention reads: x after the norm, where that stands first.
    fn before_attention(&self, pass: &mut Pass<'_, '_>, x: &Var) -> Var {
        if self.form.norm_first {
            self.attention_norm.forward(pass, x.clone())
        } else {
            x.clone()
        }
    }

    fn attention_spec(&self, queries: &Arc<[usize]>, keys: &Arc<[usize]>) -> AttentionSpec {
        let form = &self.form;
        AttentionSpec {
            num_heads: form.num_heads,
            head_dim: form.head_dim,
            q_offsets: queries.clone(),
            kv_offsets: keys.clone(),
            scale: form.scores.scale,
            mask: AttentionMask::Causal {
                window: form.scores.window,
            },
            dropout: form.attention_dropout,
        }
    }

    /// The second half of a layer, and the end of the first: `context` is what attention gave, `x` the residual stream.
    fn after_attention(&self, pass: &mut Pass<'_, '_>, context: Var, x: Var) -> Var {
        let (form, p) = (&self.form, self.form.dropout);
        let h = self.attention_output.forward(pass, context);
        let (x, y) = if form.norm_first {
            let x = add(pass, h, x, p);
            let y = self.mlp_norm.forward(pass, x.clone());
            (x, y)
        } else {
            let x = (self.attention_norm).forward_sum(pass, [h, x], p);
            (x.clone(), x)
        };
        let h = (self.mlp_input).forward_activation(pass, y, form.activation);
        let h = self.mlp_output.forward(pass, h);
        if form.norm_first {
            add(pass, h, x, p)
        } else {
            (self.mlp_norm).forward_sum(pass, [h, x], p)
        }
    }
}

/// One layer over one batch: what a recomputed block has to remember.
struct BlockRun {
    block: Block,
    offsets: Arc<[usize]>,
    /// The rows that go on, and where each sequence's start; all of them if absent.
    queries: Option<(Vec<usize>, Arc<[usize]>)>,
}

impl BlockRun {
    fn forward(&self, pass: &mut Pass<'_, '_>, x: Var) -> Var {
        let block = self.block;
        let y = block.before_attention(pass, &x);
        let rows = self.queries.as_ref().map(|(rows, _)| rows.as_slice());
        let [q, k, v] = block.project(pass, y, rows);
        let x = match rows {
            Some(rows) => select_rows(pass, &x, rows),
            None => x,
        };
        let queries = match &self.queries {
            Some((_, offsets)) => offsets,
            None => &self.offsets,
        };
        let spec = block.attention_spec(queries, &self.offsets);
        let context = attention(pass, q, k, v, spec);
        block.after_attention(pass, context, x)
    }
}
