//! ModernBERT (Warner et al. 2024): an encoder with rotary positions, GeGLU, norms first and no
//! biases; of three layers two look at the tokens around. Source: transformers
//! `modeling_modernbert.py`. M = tokens of the batch, B = sequences, N = rows that go on, D =
//! hidden size, F = intermediate size.

mod config;

use std::sync::Arc;

use lowrank_engine::ops::add::add;
use lowrank_engine::ops::attention::{AttentionForm, AttentionMask, AttentionSpec, attention};
use lowrank_engine::ops::dropout::dropout;
use lowrank_engine::ops::embedding::embedding;
use lowrank_engine::ops::gated::gated_halves;
use lowrank_engine::ops::gather::gather;
use lowrank_engine::ops::rope::{RopeForm, RopeLayout};
use lowrank_engine::ops::slice::slice;
use lowrank_engine::{Activation, Var};

use crate::error::ModelError;
use crate::families::{Architecture, Classes, Family, FamilyConfig, Fused, HeadTensors, Network};
use crate::load::{LinearSpec, Loader, Naming, Presence};
use crate::modules::{Embedding, LayerNorm, Linear, Rope, RopeId};
use crate::pass::{AttentionContext, Batch, Block, LayerRange, Pass, Queries};
use config::{ModernBertConfig, Pooling};

/// The registry's line. PEFT has no targets of its own for this family: these are what it has for
/// other layers that are fused.
pub const FAMILY: Family = Family {
    naming: Naming {
        model_type: "modernbert",
        prefix: "model.",
        tokens: TOKENS,
    },
    heads: HeadTensors {
        sequence: &["classifier.weight", "head.dense.weight"],
        tokens: Some("classifier.weight"),
    },
    classes: Classes {
        sequence: "ModernBertForSequenceClassification",
        tokens: Some("ModernBertForTokenClassification"),
        causal_lm: None,
    },
    default_targets: &["Wqkv"],
    default_saved: &[],
    fused: &[
        Fused::qkv("Wqkv"),
        Fused {
            parts: &["input", "gate"],
            ..Fused::gate_up("Wi")
        },
    ],
    ignored: &["inv_freq"],
    read: config::read,
};

const TOKENS: &str = "model.embeddings.tok_embeddings";

impl Architecture for ModernBertConfig {
    fn build(
        &self,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Network>, ModelError> {
        let (facts, dropouts) = (&config.facts, &config.dropouts);
        let width = facts.hidden_size;
        let shape = [facts.vocab_size, width];
        let tokens = loader.embedding(TOKENS, shape, facts.pad_token_id)?;
        let norm = self.norm("model.embeddings.norm", width, loader)?;
        let ropes = self.ropes.clone().map(|kind| {
            let form = RopeForm {
                head_dim: facts.head_dim,
                rotary_dim: 2 * kind.inverse_frequencies.len(),
                layout: RopeLayout::HalfSplit,
            };
            loader.rope(Rope::new(form, kind, facts.max_positions))
        });
        let layers = (0..facts.num_hidden_layers)
            .map(|i| self.layer(i, config, ropes, loader))
            .collect::<Result<_, _>>()?;
        let final_norm = self.norm("model.final_norm", width, loader)?;
        let dense = loader.spec("head.dense", [width, width]);
        let dense = loader.linear_of(LinearSpec {
            presence: Presence::NewIfAbsent,
            has_bias: self.classifier_bias,
            ..dense
        })?;
        let head_norm = self.norm_of("head.norm", width, Presence::NewIfAbsent, loader)?;
        let classifier = loader.spec("classifier", [width, loader.num_labels()]);
        let classifier = loader.linear_of(LinearSpec {
            presence: Presence::NewIfAbsent,
            std: 1.0 / (width as f32).sqrt(),
            ..classifier
        })?;
        Ok(Box::new(ModernBert {
            tokens,
            norm,
            embedding_dropout: dropouts.embedding.unwrap_or(0.0),
            layers,
            final_norm,
            head: PredictionHead {
                dense,
                activation: self.classifier_activation,
                norm: head_norm,
            },
            classifier,
            classifier_dropout: dropouts.before_classifier(),
            reads: match (loader.task().is_per_token(), self.pooling) {
                (true, _) => Reads::Tokens,
                (false, Pooling::First) => Reads::Firsts,
                (false, Pooling::Mean) => Reads::Means(facts.attention(AttentionMask::Full, 0.0)),
            },
        }))
    }
}

impl ModernBertConfig {
    fn norm(
        &self,
        path: &str,
        width: usize,
        loader: &mut Loader<'_>,
    ) -> Result<LayerNorm, ModelError> {
        self.norm_of(path, width, Presence::Required, loader)
    }

    fn norm_of(
        &self,
        path: &str,
        width: usize,
        presence: Presence,
        loader: &mut Loader<'_>,
    ) -> Result<LayerNorm, ModelError> {
        let eps = self.norm_eps;
        match self.norm_bias {
            true => loader.layer_norm_of(path, width, eps, presence),
            false => loader.unbiased_layer_norm(path, width, eps, presence),
        }
    }

    fn layer(
        &self,
        i: usize,
        config: &FamilyConfig,
        [global, local]: [RopeId; 2],
        loader: &mut Loader<'_>,
    ) -> Result<Layer, ModelError> {
        let (facts, path) = (&config.facts, format!("model.layers.{i}"));
        let (width, inner) = (facts.hidden_size, facts.intermediate_size);
        let linear = |loader: &mut Loader<'_>, name: &str, shape, has_bias| {
            let path = format!("{path}.{name}");
            let spec = loader.spec(&path, shape);
            loader.linear_of(LinearSpec { has_bias, ..spec })
        };
        let (rope, mask) = match self.is_local[i] {
            false => (global, AttentionMask::Full),
            true => (local, AttentionMask::Near { reach: self.reach }),
        };
        let attention_norm = match i {
            0 => None,
            _ => Some(self.norm(&format!("{path}.attn_norm"), width, loader)?),
        };
        Ok(Layer {
            attention_norm,
            qkv: linear(loader, "attn.Wqkv", [width, 3 * width], self.attention_bias)?,
            rope,
            attention: facts.attention(mask, config.dropouts.attention),
            output: linear(loader, "attn.Wo", [width, width], self.attention_bias)?,
            mlp_norm: self.norm(&format!("{path}.mlp_norm"), width, loader)?,
            input_gate: linear(loader, "mlp.Wi", [width, 2 * inner], self.mlp_bias)?,
            activation: self.activation,
            mlp_dropout: config.dropouts.hidden,
            down: linear(loader, "mlp.Wo", [inner, width], self.mlp_bias)?,
        })
    }
}

/// What the head reads of the last layer.
#[derive(Clone, Copy)]
enum Reads {
    /// Every token.
    Tokens,
    /// The first token of each sequence.
    Firsts,
    /// The mean over each sequence's tokens: attention of this form with equal scores.
    Means(AttentionForm),
}

/// The encoder with its head.
struct ModernBert {
    tokens: Embedding,
    norm: LayerNorm,
    embedding_dropout: f32,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    head: PredictionHead,
    classifier: Linear,
    classifier_dropout: f32,
    reads: Reads,
}

/// norm(f(dense(x))).
#[derive(Clone, Copy)]
struct PredictionHead {
    dense: Linear,
    activation: Activation,
    norm: LayerNorm,
}

impl Network for ModernBert {
    fn hidden<'m>(&self, pass: &mut Pass<'_, 'm>, batch: &Batch<'_>, range: LayerRange) -> Var {
        let ends_below = range.ends_below();
        let offsets: Arc<[usize]> = batch.offsets.into();
        // A layer that looks around knows its queries' places only where all tokens are queries.
        let last_sees_all =
            (self.layers.last()).is_some_and(|layer| layer.attention.mask == AttentionMask::Full);
        let only_firsts = matches!(self.reads, Reads::Firsts) && last_sees_all;
        let queries = (only_firsts && !ends_below).then(|| Queries::firsts(batch.offsets));
        let context = AttentionContext::of_batch(offsets.clone(), queries);
        let context = context.at(batch.positions(), batch.lengths());
        let embed = |pass: &mut Pass<'_, 'm>| {
            let x = self.tokens.lookup(pass, batch.input_ids);
            let x = embedding(pass, &[x]);
            let x = self.norm.forward(pass, x);
            dropout(pass, x, self.embedding_dropout)
        };
        let x = range.run(pass, self.layers.len(), &context, embed, |i| self.layers[i]);
        if ends_below {
            return x;
        }
        let firsts = &batch.offsets[..batch.sequences()];
        let x = match self.reads {
            Reads::Firsts if !only_firsts => gather(pass, &x, firsts),
            Reads::Firsts | Reads::Tokens | Reads::Means(_) => x,
        };
        let x = self.final_norm.forward(pass, x);
        let Reads::Means(form) = self.reads else {
            return x;
        };
        let q = gather(pass, &x, firsts);
        let spec = AttentionSpec {
            form: AttentionForm { scale: 0.0, ..form },
            q_offsets: (0..=batch.sequences()).collect(),
            kv_offsets: offsets,
        };
        attention(pass, q, x.clone(), x, spec)
    }

    fn classify(&self, pass: &mut Pass<'_, '_>, x: Var) -> Var {
        let head = self.head;
        let x = (head.dense).forward_activation(pass, x, head.activation);
        let x = head.norm.forward(pass, x);
        let x = dropout(pass, x, self.classifier_dropout);
        self.classifier.logits(pass, x)
    }
}

/// One layer.
#[derive(Clone, Copy)]
struct Layer {
    /// Absent in the first layer, whose input the embeddings' norm gives.
    attention_norm: Option<LayerNorm>,
    /// Queries, keys and values side by side [D, 3D].
    qkv: Linear,
    rope: RopeId,
    attention: AttentionForm,
    output: Linear,
    mlp_norm: LayerNorm,
    /// What goes through the activation and what multiplies it, side by side [D, 2F].
    input_gate: Linear,
    activation: Activation,
    mlp_dropout: f32,
    down: Linear,
}

impl Block for Layer {
    fn forward(&self, pass: &mut Pass<'_, '_>, x: Var, context: &AttentionContext) -> Var {
        let y = match self.attention_norm {
            Some(norm) => norm.forward(pass, x.clone()),
            None => x.clone(),
        };
        let (all, width) = (self.qkv.forward(pass, y), x.cols());
        let [q, k, v] = [0, 1, 2].map(|i| slice(pass, &all, i * width..(i + 1) * width));
        drop(all);
        let q = context.select(pass, &q);
        let [q, k] = context.rotate(pass, [q, k], self.rope);
        let h = context.attend(pass, [q, k, v], &self.attention);
        let h = self.output.forward(pass, h);
        let x = context.select(pass, &x);
        // transformers drops out what attention gives with the probability of its probabilities.
        let x = add(pass, h, x, self.attention.dropout);
        let y = self.mlp_norm.forward(pass, x.clone());
        let h = self.input_gate.forward(pass, y);
        let h = gated_halves(pass, h, self.activation);
        let h = dropout(pass, h, self.mlp_dropout);
        let h = self.down.forward(pass, h);
        add(pass, h, x, 0.0)
    }
}
