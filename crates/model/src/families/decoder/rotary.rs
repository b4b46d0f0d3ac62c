//! Layers of decoders with rotary positions: RMS norms, grouped heads, gated feed-forward; and how
//! such a decoder is put together from a family's configuration. It knows no family. M = tokens,
//! N = rows that go on, D = hidden size, F = intermediate size, H, Hkv = heads of queries and of
//! keys, Dh = width of a head. Source: transformers 5.24 `modeling_llama.py`, `modeling_gemma3.py`,
//! `modeling_phi3.py`, `modeling_olmo2.py`, `modeling_granite.py`.

mod frequencies;
mod read;

use lowrank_engine::ops::add::add;
use lowrank_engine::ops::attention::{AttentionForm, AttentionMask};
use lowrank_engine::ops::gated::{gated, gated_halves};
use lowrank_engine::ops::norm::RmsFactor;
use lowrank_engine::ops::rope::{RopeForm, RopeLayout};
use lowrank_engine::ops::scale::scale;
use lowrank_engine::ops::slice::slice;
use lowrank_engine::{Activation, Var};

use crate::config::{Facts, Task};
use crate::error::ModelError;
use crate::families::decoder::{Decoder, FinalNorm, Head};
use crate::families::{Architecture, FamilyConfig, Network};
use crate::load::{LinearSpec, Loader};
use crate::modules::{Linear, RmsNorm, Rope, RopeId, RopeKind};
use crate::pass::{AttentionContext, Block, Pass};
pub(crate) use read::{
    Defaults, LLAMA, Read, RopeRule, WindowRule, local_layers, read_ropes_by_window,
};

/// What a family's configuration says beside the facts.
#[derive(Debug, Clone)]
pub(crate) struct RotaryConfig {
    pub(crate) fusion: Fusion,
    pub(crate) biases: Biases,
    pub(crate) head_norms: HeadNorms,
    pub(crate) norms: NormPlaces,
    pub(crate) norm_factor: RmsFactor,
    pub(crate) rms_norm_eps: f32,
    pub(crate) activation: Activation,
    /// Multiplies the rows of the token table.
    pub(crate) token_scale: f32,
    /// Multiplies the scores.
    pub(crate) score_scale: f32,
    /// Multiplies what a sublayer adds to the residual stream.
    pub(crate) residual_scale: f32,
    /// Multiplies the logits.
    pub(crate) logit_scale: f32,
    /// c of c·tanh(score/c), of scores after their scale.
    pub(crate) score_soft_cap: Option<f32>,
    /// The same of logits.
    pub(crate) logit_soft_cap: Option<f32>,
    /// The rotations that layers name.
    pub(crate) ropes: Vec<RopeKind>,
    pub(crate) layers: Vec<LayerKind>,
}

/// Which linear layers are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fusion {
    /// A layer each.
    None,
    /// `qkv_proj` and `gate_up_proj`.
    QkvAndGateUp,
}

/// Which linear layers have a bias.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Biases {
    pub(crate) qkv: bool,
    pub(crate) output: bool,
    pub(crate) mlp: bool,
}

/// Norms of queries and keys, before they are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadNorms {
    None,
    /// Of each head.
    Each,
    /// Of all heads as one vector.
    Whole,
}

/// Where a layer's norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormPlaces {
    /// Before each sublayer.
    First,
    /// Before and after each sublayer.
    Around,
    /// After each sublayer, before the residual sum.
    Last,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerKind {
    /// Which of the rotations; none leaves positions out.
    pub(crate) rope: Option<usize>,
    /// How many keys a query sees at most; all before it if absent.
    pub(crate) window: Option<usize>,
}

impl Architecture for RotaryConfig {
    fn build(
        &self,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Network>, ModelError> {
        let facts = &config.facts;
        let shape = [facts.vocab_size, facts.hidden_size];
        let is_tied = loader.task() == Task::CausalLm && facts.tie_word_embeddings;
        let tokens = match is_tied {
            true => loader.head_table(TOKENS, shape)?,
            false => loader.embedding(TOKENS, shape, facts.pad_token_id)?,
        };
        let rope = |kind: &RopeKind| {
            let form = RopeForm {
                head_dim: facts.head_dim,
                rotary_dim: 2 * kind.inverse_frequencies.len(),
                layout: RopeLayout::HalfSplit,
            };
            loader.rope(Rope::new(form, kind.clone(), facts.max_positions))
        };
        let ropes: Vec<RopeId> = self.ropes.iter().map(rope).collect();
        let layers = (0..facts.num_hidden_layers)
            .map(|i| self.layer(i, config, &ropes, loader))
            .collect::<Result<_, _>>()?;
        let final_norm = FinalNorm::Rms(self.norm("model.norm", facts.hidden_size, loader)?);
        let head = Head::build(is_tied.then_some(tokens), shape, loader)?;
        let head_scale = match loader.task() {
            Task::CausalLm => self.logit_scale,
            _ => 1.0,
        };
        Ok(Box::new(Decoder::<RotaryLayer> {
            tokens,
            token_scale: self.token_scale,
            positions: None,
            project_in: None,
            embedding_dropout: config.dropouts.embedding.unwrap_or(0.0),
            layers,
            final_norm,
            project_out: None,
            head,
            head_scale,
            logit_soft_cap: self.logit_soft_cap,
            pad_token_id: facts.pad_token_id,
        }))
    }
}

/// The table of tokens.
pub(crate) const TOKENS: &str = "model.embed_tokens";

impl RotaryConfig {
    fn norm(
        &self,
        path: &str,
        width: usize,
        loader: &mut Loader<'_>,
    ) -> Result<RmsNorm, ModelError> {
        loader.rms_norm(path, width, self.norm_factor, self.rms_norm_eps)
    }

    fn layer(
        &self,
        i: usize,
        config: &FamilyConfig,
        ropes: &[RopeId],
        loader: &mut Loader<'_>,
    ) -> Result<RotaryLayer, ModelError> {
        let (facts, dropouts) = (&config.facts, &config.dropouts);
        let (path, kind) = (format!("model.layers.{i}"), self.layers[i]);
        let mask = AttentionMask::Causal {
            window: kind.window,
        };
        let (qkv, output) = self.projections(&format!("{path}.self_attn"), facts, loader)?;
        let head_norms = self.head_norms(&format!("{path}.self_attn"), facts, loader)?;
        let mlp = self.mlp(&format!("{path}.mlp"), facts, loader)?;
        let mut norm = |name: &str| {
            let path = format!("{path}.{name}");
            self.norm(&path, facts.hidden_size, loader).map(Some)
        };
        // LLaMA's `post_attention_layernorm` stands before the feed-forward layer.
        let norms = match self.norms {
            NormPlaces::First => LayerNorms {
                before_attention: norm("input_layernorm")?,
                before_mlp: norm("post_attention_layernorm")?,
                ..LayerNorms::default()
            },
            NormPlaces::Around => LayerNorms {
                before_attention: norm("input_layernorm")?,
                after_attention: norm("post_attention_layernorm")?,
                before_mlp: norm("pre_feedforward_layernorm")?,
                after_mlp: norm("post_feedforward_layernorm")?,
            },
            NormPlaces::Last => LayerNorms {
                after_attention: norm("post_attention_layernorm")?,
                after_mlp: norm("post_feedforward_layernorm")?,
                ..LayerNorms::default()
            },
        };
        Ok(RotaryLayer {
            qkv,
            head_norms,
            rope: kind.rope.map(|rope| ropes[rope]),
            attention: AttentionForm {
                scale: self.score_scale,
                soft_cap: self.score_soft_cap,
                ..facts.attention(mask, dropouts.attention)
            },
            output,
            mlp,
            norms,
            activation: self.activation,
            residual_scale: self.residual_scale,
            dropout: dropouts.hidden,
        })
    }

    /// What gives queries, keys and values, and what takes their context.
    fn projections(
        &self,
        path: &str,
        facts: &Facts,
        loader: &mut Loader<'_>,
    ) -> Result<(Qkv, Linear), ModelError> {
        let (width, q) = (
            facts.hidden_size,
            facts.num_attention_heads * facts.head_dim,
        );
        let kv = facts.num_key_value_heads * facts.head_dim;
        let biases = self.biases;
        let mut linear = |name: &str, shape, has_bias| {
            let path = format!("{path}.{name}");
            let spec = loader.spec(&path, shape);
            loader.linear_of(LinearSpec { has_bias, ..spec })
        };
        match self.fusion {
            Fusion::None => {
                let qkv = Qkv::Separate([
                    linear("q_proj", [width, q], biases.qkv)?,
                    linear("k_proj", [width, kv], biases.qkv)?,
                    linear("v_proj", [width, kv], biases.qkv)?,
                ]);
                Ok((qkv, linear("o_proj", [q, width], biases.output)?))
            }
            Fusion::QkvAndGateUp => {
                let output = linear("o_proj", [q, width], biases.output)?;
                let qkv = linear("qkv_proj", [width, q + 2 * kv], biases.qkv)?;
                Ok((Qkv::Fused(qkv), output))
            }
        }
    }

    fn head_norms(
        &self,
        path: &str,
        facts: &Facts,
        loader: &mut Loader<'_>,
    ) -> Result<Option<[RmsNorm; 2]>, ModelError> {
        let heads = match self.head_norms {
            HeadNorms::None => return Ok(None),
            HeadNorms::Each => [1, 1],
            HeadNorms::Whole => [facts.num_attention_heads, facts.num_key_value_heads],
        };
        let [q, k] = heads.map(|heads| heads * facts.head_dim);
        let q = self.norm(&format!("{path}.q_norm"), q, loader)?;
        let k = self.norm(&format!("{path}.k_norm"), k, loader)?;
        Ok(Some([q, k]))
    }

    fn mlp(&self, path: &str, facts: &Facts, loader: &mut Loader<'_>) -> Result<Mlp, ModelError> {
        let (width, inner) = (facts.hidden_size, facts.intermediate_size);
        let has_bias = self.biases.mlp;
        let mut linear = |name: &str, shape| {
            let path = format!("{path}.{name}");
            let spec = loader.spec(&path, shape);
            loader.linear_of(LinearSpec { has_bias, ..spec })
        };
        let gate_up = match self.fusion {
            Fusion::None => GateUp::Separate([
                linear("gate_proj", [width, inner])?,
                linear("up_proj", [width, inner])?,
            ]),
            Fusion::QkvAndGateUp => GateUp::Fused(linear("gate_up_proj", [width, 2 * inner])?),
        };
        Ok(Mlp {
            gate_up,
            down: linear("down_proj", [inner, width])?,
        })
    }
}

/// One layer.
#[derive(Clone, Copy)]
pub(crate) struct RotaryLayer {
    qkv: Qkv,
    /// Of queries and keys.
    head_norms: Option<[RmsNorm; 2]>,
    rope: Option<RopeId>,
    attention: AttentionForm,
    output: Linear,
    mlp: Mlp,
    norms: LayerNorms,
    activation: Activation,
    /// Multiplies what a sublayer adds.
    residual_scale: f32,
    /// Dropout of what a sublayer adds.
    dropout: f32,
}

/// What gives queries, keys and values.
#[derive(Clone, Copy)]
enum Qkv {
    Separate([Linear; 3]),
    /// Side by side.
    Fused(Linear),
}

/// A gated feed-forward layer: down(f(gate(x))·up(x)).
#[derive(Clone, Copy)]
struct Mlp {
    gate_up: GateUp,
    down: Linear,
}

#[derive(Clone, Copy)]
enum GateUp {
    Separate([Linear; 2]),
    /// The gate first.
    Fused(Linear),
}

#[derive(Clone, Copy, Default)]
struct LayerNorms {
    before_attention: Option<RmsNorm>,
    after_attention: Option<RmsNorm>,
    before_mlp: Option<RmsNorm>,
    after_mlp: Option<RmsNorm>,
}

impl RotaryLayer {
    /// Queries [N, H·Dh], keys and values [M, Hkv·Dh] of x [M, D].
    fn project(&self, pass: &mut Pass<'_, '_>, x: Var, context: &AttentionContext) -> [Var; 3] {
        match self.qkv {
            Qkv::Separate([query, key, value]) => {
                let x_read = context.select(pass, &x);
                let q = query.forward(pass, x_read);
                let k = key.forward(pass, x.clone());
                [q, k, value.forward(pass, x)]
            }
            Qkv::Fused(fused) => {
                let all = fused.forward(pass, x);
                let form = &self.attention;
                let q_width = form.num_heads * form.head_dim;
                let kv_width = form.num_key_value_heads * form.head_dim;
                let (k_end, end) = (q_width + kv_width, q_width + 2 * kv_width);
                let [q, k, v] = [0..q_width, q_width..k_end, k_end..end]
                    .map(|columns| slice(pass, &all, columns));
                [context.select(pass, &q), k, v]
            }
        }
    }

    fn attend(&self, pass: &mut Pass<'_, '_>, x: Var, context: &AttentionContext) -> Var {
        let [mut q, mut k, v] = self.project(pass, x, context);
        if let Some([q_norm, k_norm]) = self.head_norms {
            q = q_norm.forward(pass, q);
            k = k_norm.forward(pass, k);
        }
        if let Some(rope) = self.rope {
            [q, k] = context.rotate(pass, [q, k], rope);
        }
        let y = context.attend(pass, [q, k, v], &self.attention);
        self.output.forward(pass, y)
    }

    /// x plus what a sublayer gave.
    fn sum(&self, pass: &mut Pass<'_, '_>, h: Var, x: Var, after: Option<RmsNorm>) -> Var {
        let h = normed(pass, h, after);
        let h = scale(pass, h, self.residual_scale);
        add(pass, h, x, self.dropout)
    }
}

impl Mlp {
    fn forward(self, pass: &mut Pass<'_, '_>, x: Var, activation: Activation) -> Var {
        let h = match self.gate_up {
            GateUp::Separate([gate, up]) => {
                let gate = gate.forward(pass, x.clone());
                let up = up.forward(pass, x);
                gated(pass, gate, up, activation)
            }
            GateUp::Fused(fused) => {
                let both = fused.forward(pass, x);
                gated_halves(pass, both, activation)
            }
        };
        self.down.forward(pass, h)
    }
}

impl Block for RotaryLayer {
    fn forward(&self, pass: &mut Pass<'_, '_>, x: Var, context: &AttentionContext) -> Var {
        let y = normed(pass, x.clone(), self.norms.before_attention);
        let h = self.attend(pass, y, context);
        let x = context.select(pass, &x);
        let x = self.sum(pass, h, x, self.norms.after_attention);
        let y = normed(pass, x.clone(), self.norms.before_mlp);
        let h = self.mlp.forward(pass, y, self.activation);
        self.sum(pass, h, x, self.norms.after_mlp)
    }
}

fn normed(pass: &mut Pass<'_, '_>, x: Var, norm: Option<RmsNorm>) -> Var {
    match norm {
        Some(norm) => norm.forward(pass, x),
        None => x,
    }
}
