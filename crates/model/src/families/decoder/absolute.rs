//! Layers of decoders with learned positions, GPT-2's, GPT-Neo's and OPT's, and how such a decoder
//! is put together from a family's names and configuration. It knows no family. M = tokens, D =
//! hidden size. Source: transformers `modeling_gpt2.py`, `modeling_gpt_neo.py`, `modeling_opt.py`.

use lowrank_engine::ops::attention::{AttentionForm, AttentionMask};
use lowrank_engine::ops::slice::slice;
use lowrank_engine::{Activation, Var};

use crate::config::Task;
use crate::error::ModelError;
use crate::families::decoder::{Decoder, FinalNorm, Head, PositionTable};
use crate::families::residual::{Norms, Residual};
use crate::families::{Architecture, FamilyConfig, Network};
use crate::load::{Layout, LinearSpec, Loader};
use crate::modules::{LayerNorm, Linear};
use crate::pass::{AttentionContext, Block, Pass};

/// How a family names its modules.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) tokens: &'static str,
    pub(crate) positions: &'static str,
    /// From the width of the token table to D and back, where they differ.
    pub(crate) projects: Option<[&'static str; 2]>,
    pub(crate) final_norm: &'static str,
    /// The list of layers; the names below are those within one.
    pub(crate) layers: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) projections: Projections<&'static str>,
    pub(crate) attention_output: &'static str,
    pub(crate) mlp_norm: &'static str,
    pub(crate) mlp_input: &'static str,
    pub(crate) mlp_output: &'static str,
}

/// What gives queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Projections<T> {
    /// One layer gives all three side by side.
    Fused(T),
    /// A layer each: keys, values, queries, in the order of the checkpoints.
    Separate([T; 3]),
}

/// What a family's configuration says beside the facts.
#[derive(Debug)]
pub(crate) struct DecoderConfig {
    pub(crate) names: &'static Names,
    /// How the weights of its layers are stored.
    pub(crate) layout: Layout,
    /// Width of the token table.
    pub(crate) token_width: usize,
    /// A row of the token table that full training leaves alone, unless the table is the head too.
    pub(crate) padding_idx: Option<u32>,
    /// The row of the position table of a sequence's first token.
    pub(crate) first_position: u32,
    pub(crate) activation: Activation,
    pub(crate) norms: Norms,
    pub(crate) has_final_norm: bool,
    pub(crate) layer_norm_eps: f32,
    /// Whether norms have parameters; otherwise they have weight 1 and bias 0.
    pub(crate) has_norm_parameters: bool,
    /// Whether the layers that give queries, keys and values have a bias.
    pub(crate) has_projection_bias: bool,
    /// Whether a layer's other linear layers have one.
    pub(crate) has_bias: bool,
    /// Standard deviation of new weights of what is summed into the residual stream.
    pub(crate) residual_std: f32,
    /// Of each layer.
    pub(crate) scores: Vec<Scores>,
}

/// The scores of one layer's attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scores {
    /// Multiplies them.
    pub(crate) scale: f32,
    /// How many keys a query sees at most; all before it if absent.
    pub(crate) window: Option<usize>,
}

impl Architecture for DecoderConfig {
    fn build(
        &self,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Network>, ModelError> {
        let (names, facts) = (self.names, &config.facts);
        let (vocab, width, narrow) = (facts.vocab_size, facts.hidden_size, self.token_width);
        let is_tied = loader.task() == Task::CausalLm && facts.tie_word_embeddings;
        let tokens = if is_tied {
            loader.head_table(names.tokens, [vocab, narrow])?
        } else {
            loader.embedding(names.tokens, [vocab, narrow], self.padding_idx)?
        };
        let rows = facts.max_positions + self.first_position as usize;
        let positions = PositionTable {
            table: loader.embedding(names.positions, [rows, width], None)?,
            first: self.first_position,
        };
        let (mut project_in, mut project_out) = (None, None);
        if let Some([inward, outward]) = names.projects.filter(|_| narrow != width) {
            project_in = Some(loader.linear_of(loader.spec(inward, [narrow, width]).unbiased())?);
            project_out = Some(loader.linear_of(loader.spec(outward, [width, narrow]).unbiased())?);
        }
        let layers = (0..facts.num_hidden_layers)
            .map(|i| self.layer(i, config, loader))
            .collect::<Result<_, _>>()?;
        let final_norm = match self.has_final_norm {
            true => FinalNorm::Layer(self.norm(names.final_norm, width, loader)?),
            false => FinalNorm::None,
        };
        let head = Head::build(is_tied.then_some(tokens), [vocab, narrow], loader)?;
        Ok(Box::new(Decoder {
            tokens,
            token_scale: 1.0,
            positions: Some(positions),
            project_in,
            embedding_dropout: config.dropouts.embedding.unwrap_or(0.0),
            layers,
            final_norm,
            project_out,
            head,
            head_scale: 1.0,
            logit_soft_cap: None,
            pad_token_id: facts.pad_token_id,
        }))
    }
}

impl DecoderConfig {
    fn layer(
        &self,
        i: usize,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Layer, ModelError> {
        let (names, facts, dropouts) = (self.names, &config.facts, &config.dropouts);
        let (width, inner) = (facts.hidden_size, facts.intermediate_size);
        let at = |name: &str| format!("{}.{i}.{name}", names.layers);
        let linear = |loader: &mut Loader<'_>, name, shape, (std, has_bias)| {
            loader.linear_of(LinearSpec {
                layout: self.layout,
                has_bias,
                std,
                ..loader.spec(&at(name), shape)
            })
        };
        let first = (facts.initializer_range, self.has_bias);
        let projection = (facts.initializer_range, self.has_projection_bias);
        let residual = (self.residual_std, self.has_bias);
        let attention_norm = self.norm(&at(names.attention_norm), width, loader)?;
        let projections = match names.projections {
            Projections::Fused(name) => {
                Projections::Fused(linear(loader, name, [width, 3 * width], projection)?)
            }
            Projections::Separate([key, value, query]) => Projections::Separate([
                linear(loader, key, [width, width], projection)?,
                linear(loader, value, [width, width], projection)?,
                linear(loader, query, [width, width], projection)?,
            ]),
        };
        let Scores { scale, window } = self.scores[i];
        Ok(Layer {
            projections,
            attention: AttentionForm {
                scale,
                ..facts.attention(AttentionMask::Causal { window }, dropouts.attention)
            },
            residual: Residual {
                norms: self.norms,
                attention_norm,
                attention_output: linear(loader, names.attention_output, [width, width], residual)?,
                mlp_norm: self.norm(&at(names.mlp_norm), width, loader)?,
                mlp_input: linear(loader, names.mlp_input, [width, inner], first)?,
                mlp_output: linear(loader, names.mlp_output, [inner, width], residual)?,
                activation: self.activation,
                dropout: dropouts.hidden,
            },
        })
    }

    fn norm(
        &self,
        path: &str,
        width: usize,
        loader: &mut Loader<'_>,
    ) -> Result<LayerNorm, ModelError> {
        if self.has_norm_parameters {
            loader.layer_norm(path, width, self.layer_norm_eps)
        } else {
            Ok(loader.plain_layer_norm(path, width, self.layer_norm_eps))
        }
    }
}

/// One layer.
#[derive(Clone, Copy)]
struct Layer {
    projections: Projections<Linear>,
    attention: AttentionForm,
    residual: Residual,
}

impl Layer {
    /// Queries of the context's rows, keys and values of x [M, D].
    fn project(&self, pass: &mut Pass<'_, '_>, x: Var, context: &AttentionContext) -> [Var; 3] {
        match self.projections {
            Projections::Fused(fused) => {
                let all = fused.forward(pass, x);
                let form = &self.attention;
                let width = form.num_heads * form.head_dim;
                let [q, k, v] = [0, 1, 2].map(|i| slice(pass, &all, i * width..(i + 1) * width));
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
