//! BERT (Devlin et al. 2018): embeddings, post-norm encoder, pooler, classification heads. RoBERTa
//! shares the encoder.
//! Source: transformers `modeling_bert.py`. D = hidden size, F = intermediate size, M = tokens of
//! the batch, B = sequences.

use std::sync::Arc;

use lowrank_engine::ops::attention::{AttentionForm, AttentionMask};
use lowrank_engine::ops::dropout::dropout;
use lowrank_engine::ops::embedding::embedding;
use lowrank_engine::{Activation, Var};
use lowrank_formats::ConfigReader;

use crate::config::{
    Dropouts, Facts, read_activation, read_dropout, read_dropout_else, read_heads,
};
use crate::error::ModelError;
use crate::families::residual::Residual;
use crate::families::{Architecture, Classes, Family, FamilyConfig, HeadTensors, Network};
use crate::load::{Loader, Naming, Presence};
use crate::modules::{Embedding, LayerNorm, Linear};
use crate::pass::{AttentionContext, Batch, Block, LayerRange, Pass, Queries};

/// The registry's line.
pub const FAMILY: Family = Family {
    naming: Naming {
        model_type: "bert",
        prefix: "bert.",
        tokens: "bert.embeddings.word_embeddings",
    },
    heads: HeadTensors {
        sequence: &["classifier.weight", "bert.pooler.dense.weight"],
        tokens: Some("classifier.weight"),
    },
    classes: Classes {
        sequence: "BertForSequenceClassification",
        tokens: Some("BertForTokenClassification"),
        causal_lm: None,
    },
    default_targets: &["query", "value"],
    default_saved: &[],
    fused: &[],
    // Buffers that older versions of transformers stored; they hold 0, 1, 2, …
    ignored: &["position_ids", "embeddings.token_type_ids"],
    read: |reader| read(reader, 0, |_| 0, BertConfig),
};

/// What BERT's and RoBERTa's configurations say beside the facts.
#[derive(Debug, Clone)]
pub(crate) struct EncoderConfig {
    hidden_act: Activation,
    layer_norm_eps: f32,
    /// Rows of the position table that are not for tokens.
    position_offset: usize,
    pub(crate) pad_token_id: u32,
}

/// Reads the fields, which RoBERTa has too, and notes every fault. `position_offset` tells how many
/// rows of the position table are not for tokens, given the padding token.
pub(crate) fn read<A: Architecture + 'static>(
    reader: &ConfigReader<'_>,
    default_pad: usize,
    position_offset: fn(u32) -> usize,
    architecture: fn(EncoderConfig) -> A,
) -> FamilyConfig {
    let width = reader.usize("hidden_size", 1..=1 << 16);
    let hidden = read_dropout(reader, "hidden_dropout_prob", 0.1);
    let vocab_size = reader.usize("vocab_size", 1..=1 << 24);
    let num_hidden_layers = reader.usize("num_hidden_layers", 1..=1 << 10);
    let heads = read_heads(reader, "num_attention_heads", 12, "hidden_size", width);
    let pad_token_id = reader.usize_or("pad_token_id", default_pad, 0..=1 << 24) as u32;
    let (rows, offset) = (
        reader.usize("max_position_embeddings", 1..=1 << 20),
        position_offset(pad_token_id),
    );
    if rows <= offset {
        let message = format!("expected more than {offset}, found {rows}");
        reader.fault("max_position_embeddings", message);
    }
    let facts = Facts {
        vocab_size,
        hidden_size: width,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: width / heads,
        intermediate_size: reader.usize("intermediate_size", 1..=1 << 20),
        max_positions: rows.saturating_sub(offset),
        type_vocab_size: reader.usize_or("type_vocab_size", 2, 1..=1 << 16),
        pad_token_id: Some(pad_token_id),
        initializer_range: reader.f64_or("initializer_range", 0.02, 0.0..=10.0) as f32,
        tie_word_embeddings: true,
    };
    let positions = reader.string_or("position_embedding_type", "absolute");
    if positions != "absolute" {
        let message = format!("expected `absolute`, found `{positions}`");
        reader.fault("position_embedding_type", message);
    }
    for key in ["is_decoder", "add_cross_attention"] {
        if reader.bool_or(key, false) {
            reader.fault(key, "expected false: this family is trained as an encoder");
        }
    }
    FamilyConfig {
        facts,
        dropouts: Dropouts {
            hidden,
            attention: read_dropout(reader, "attention_probs_dropout_prob", 0.1),
            embedding: None,
            pooler: None,
            classifier: Some(read_dropout_else(reader, "classifier_dropout", hidden)),
        },
        architecture: Arc::new(architecture(EncoderConfig {
            hidden_act: read_activation(reader, "hidden_act", Activation::Gelu),
            layer_norm_eps: reader.f64_or("layer_norm_eps", 1e-12, 0.0..=1.0) as f32,
            position_offset: offset,
            pad_token_id,
        })),
    }
}

#[derive(Debug)]
struct BertConfig(EncoderConfig);

impl Architecture for BertConfig {
    fn build(
        &self,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Network>, ModelError> {
        let (width, new) = (config.facts.hidden_size, Presence::NewIfAbsent);
        let encoder = Encoder::build("bert.", config, &self.0, None, loader)?;
        let pooler = match loader.task().is_per_token() {
            true => None,
            false => Some(loader.linear("bert.pooler.dense", [width, width], new)?),
        };
        let classifier = loader.linear("classifier", [width, loader.num_labels()], new)?;
        Ok(Box::new(Bert {
            encoder,
            pooler,
            classifier,
            classifier_dropout: config.dropouts.before_classifier(),
        }))
    }
}

/// BERT with a classification head.
struct Bert {
    encoder: Encoder,
    pooler: Option<Linear>,
    classifier: Linear,
    classifier_dropout: f32,
}

impl Network for Bert {
    fn hidden(&self, pass: &mut Pass<'_, '_>, batch: &Batch<'_>, range: LayerRange) -> Var {
        let rows = match self.pooler {
            None => Rows::All,
            Some(_) => Rows::First,
        };
        (self.encoder).forward(pass, batch, &batch.positions(), rows, range)
    }

    fn classify(&self, pass: &mut Pass<'_, '_>, mut x: Var) -> Var {
        if let Some(pooler) = self.pooler {
            x = pooler.forward_activation(pass, x, Activation::Tanh);
        }
        let x = dropout(pass, x, self.classifier_dropout);
        self.classifier.logits(pass, x)
    }
}

/// Which rows of the last layer the head reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Every token.
    All,
    /// The first token of each sequence: the last layer computes nothing else but keys and values.
    First,
}

/// Embeddings and layers, shared with RoBERTa.
pub(crate) struct Encoder {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    layer_norm: LayerNorm,
    dropout: f32,
    layers: Vec<Layer>,
}

impl Encoder {
    /// `position_padding` is the row of the position table that padding tokens would read, if there
    /// is one.
    pub(crate) fn build(
        prefix: &str,
        config: &FamilyConfig,
        own: &EncoderConfig,
        position_padding: Option<u32>,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let facts = &config.facts;
        let (width, eps) = (facts.hidden_size, own.layer_norm_eps);
        let mut table = |name: &str, rows, padding| {
            loader.embedding(
                &format!("{prefix}embeddings.{name}"),
                [rows, width],
                padding,
            )
        };
        let positions = facts.max_positions + own.position_offset;
        Ok(Encoder {
            word_embeddings: table("word_embeddings", facts.vocab_size, Some(own.pad_token_id))?,
            position_embeddings: table("position_embeddings", positions, position_padding)?,
            token_type_embeddings: table("token_type_embeddings", facts.type_vocab_size, None)?,
            layer_norm: loader.layer_norm(&format!("{prefix}embeddings.LayerNorm"), width, eps)?,
            dropout: config.dropouts.hidden,
            layers: (0..facts.num_hidden_layers)
                .map(|i| Layer::build(&format!("{prefix}encoder.layer.{i}"), config, own, loader))
                .collect::<Result<_, _>>()?,
        })
    }

    /// The hidden states that the head reads: [M, D], or [B, D] for [`Rows::First`]. `positions`
    /// `[M]` are rows of the position table.
    pub(crate) fn forward<'m>(
        &self,
        pass: &mut Pass<'_, 'm>,
        batch: &Batch<'_>,
        positions: &[u32],
        rows: Rows,
        range: LayerRange,
    ) -> Var {
        let queries = match rows {
            Rows::All => None,
            Rows::First => Some(Queries::firsts(batch.offsets)),
        };
        let context = AttentionContext::of_batch(batch.offsets.into(), queries);
        let embed = |pass: &mut Pass<'_, 'm>| self.embed(pass, batch, positions);
        let count = self.layers.len();
        range.run(pass, count, &context, embed, |i| self.layers[i])
    }

    /// The sum of the tables' rows, normalised [M, D].
    fn embed(&self, pass: &mut Pass<'_, '_>, batch: &Batch<'_>, positions: &[u32]) -> Var {
        let types = self.token_type_embeddings;
        let zeros = vec![0; batch.tokens()];
        let type_ids = batch.token_type_ids.filter(|_| types.rows > 1);
        let tables = [
            self.word_embeddings.lookup(pass, batch.input_ids),
            types.lookup(pass, type_ids.unwrap_or(&zeros)),
            self.position_embeddings.lookup(pass, positions),
        ];
        let x = embedding(pass, &tables);
        let x = self.layer_norm.forward(pass, x);
        dropout(pass, x, self.dropout)
    }
}

/// One encoder layer.
#[derive(Clone, Copy)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention: AttentionForm,
    residual: Residual,
}

impl Layer {
    fn build(
        path: &str,
        config: &FamilyConfig,
        own: &EncoderConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let (facts, dropouts) = (&config.facts, &config.dropouts);
        let width = facts.hidden_size;
        let mut linear = |name: &str| {
            let path = format!("{path}.attention.self.{name}");
            loader.linear(&path, [width, width], Presence::Required)
        };
        let (activation, dropout) = (own.hidden_act, dropouts.hidden);
        let eps = own.layer_norm_eps;
        Ok(Layer {
            query: linear("query")?,
            key: linear("key")?,
            value: linear("value")?,
            attention: facts.attention(AttentionMask::Full, dropouts.attention),
            residual: Residual::of_bert(path, facts, eps, activation, dropout, loader)?,
        })
    }
}

impl Block for Layer {
    fn forward(&self, pass: &mut Pass<'_, '_>, x: Var, context: &AttentionContext) -> Var {
        let x_read = context.select(pass, &x);
        let q = self.query.forward(pass, x_read.clone());
        let k = self.key.forward(pass, x.clone());
        let v = self.value.forward(pass, x);
        let y = context.attend(pass, [q, k, v], &self.attention);
        self.residual.after_attention(pass, y, x_read)
    }
}
