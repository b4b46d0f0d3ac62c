//! BERT (Devlin et al. 2018): embeddings, post-norm encoder, pooler, classification heads. RoBERTa shares the encoder.
//! Source: transformers `modeling_bert.py`. D = hidden size, F = intermediate size, M = tokens of the batch, B = sequences.

use std::sync::Arc;

use lowrank_engine::ops::attention::{AttentionMask, AttentionSpec, attention};
use lowrank_engine::ops::dropout::dropout;
use lowrank_engine::ops::embedding::embedding;
use lowrank_engine::ops::rows::select_rows;
use lowrank_engine::{Activation, Tape, Var};
use lowrank_formats::ConfigReader;

use crate::config::{Facts, Task, read_activation, read_dropout, read_heads};
use crate::error::ModelError;
use crate::families::{Family, Network, first_rows};
use crate::loader::{Loader, Presence};
use crate::model::Batch;
use crate::modules::{Embedding, LayerNorm, Linear, ModuleMut, ModuleRef};
use crate::stored_head::HeadTensors;
use crate::stretch::Stretch;

/// The registry's line.
pub const FAMILY: Family = Family {
    model_type: "bert",
    prefix: "bert.",
    tokens: "bert.embeddings.word_embeddings",
    heads: HeadTensors {
        sequence: &["classifier.weight", "bert.pooler.dense.weight"],
        tokens: Some("classifier.weight"),
    },
    default_targets: &["query", "value"],
    default_saved: &[],
    architecture: |task| match task {
        Task::SingleLabel | Task::MultiLabel | Task::Regression => {
            Some("BertForSequenceClassification")
        }
        Task::TokenClassification => Some("BertForTokenClassification"),
        Task::CausalLm => None,
    },
    facts: |reader| BertConfig::read(reader, 0, |_| 0).facts(),
    fused: &[],
    dropouts: DROPOUTS,
    ignored: IGNORED,
    build: |config, task, num_labels, loader| {
        let config = BertConfig::read(&config.reader(), 0, |_| 0);
        Ok(Box::new(Bert::build(&config, task, num_labels, loader)?))
    },
};

/// The keys of the dropout probabilities.
pub(crate) const DROPOUTS: &[&str] = &[
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
];

/// Buffers that older versions of transformers stored; they hold 0, 1, 2, …
pub(crate) const IGNORED: &[&str] = &["position_ids", "embeddings.token_type_ids"];

/// BERT's own fields of config.json; RoBERTa has the same.
pub(crate) struct BertConfig {
    vocab_size: usize,
    pub(crate) hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: Activation,
    max_position_embeddings: usize,
    /// Rows of the position table that are not for tokens.
    position_offset: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    pub(crate) pad_token_id: u32,
    initializer_range: f32,
    hidden_dropout_prob: f32,
    attention_probs_dropout_prob: f32,
    /// Dropout before the classifier.
    pub(crate) classifier_dropout: f32,
}

impl BertConfig {
    /// Reads the fields and notes every fault. `position_offset` tells how many rows of the position table are not for
    /// tokens, given the padding token.
    pub(crate) fn read(
        reader: &ConfigReader<'_>,
        default_pad: usize,
        position_offset: fn(u32) -> usize,
    ) -> Self {
        let hidden_size = reader.usize("hidden_size", 1..=1 << 16);
        let hidden_dropout_prob = read_dropout(reader, "hidden_dropout_prob", 0.1);
        let config = BertConfig {
            vocab_size: reader.usize("vocab_size", 1..=1 << 24),
            hidden_size,
            num_hidden_layers: reader.usize("num_hidden_layers", 1..=1 << 10),
            num_attention_heads: read_heads(
                reader,
                "num_attention_heads",
                12,
                ("hidden_size", hidden_size),
            ),
            intermediate_size: reader.usize("intermediate_size", 1..=1 << 20),
            hidden_act: read_activation(reader, "hidden_act", Activation::Gelu),
            max_position_embeddings: reader.usize("max_position_embeddings", 1..=1 << 20),
            position_offset: 0,
            type_vocab_size: reader.usize_or("type_vocab_size", 2, 1..=1 << 16),
            layer_norm_eps: reader.f64_or("layer_norm_eps", 1e-12, 0.0..=1.0) as f32,
            pad_token_id: reader.usize_or("pad_token_id", default_pad, 0..=1 << 24) as u32,
            initializer_range: reader.f64_or("initializer_range", 0.02, 0.0..=10.0) as f32,
            hidden_dropout_prob,
            attention_probs_dropout_prob: read_dropout(reader, "attention_probs_dropout_prob", 0.1),
            classifier_dropout: reader
                .opt_f64("classifier_dropout", 0.0..=0.999)
                .map_or(hidden_dropout_prob, |p| p as f32),
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
        let offset = position_offset(config.pad_token_id);
        if config.max_position_embeddings <= offset {
            let message = format!(
                "expected more than {offset}, found {}",
                config.max_position_embeddings
            );
            reader.fault("max_position_embeddings", message);
            return config;
        }
        BertConfig {
            position_offset: offset,
            ..config
        }
    }

    /// What the rest of the program needs to know.
    pub(crate) fn facts(&self) -> Facts {
        Facts {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            intermediate_size: self.intermediate_size,
            max_positions: self.max_position_embeddings - self.position_offset,
            type_vocab_size: self.type_vocab_size,
            pad_token_id: Some(self.pad_token_id),
            initializer_range: self.initializer_range,
        }
    }
}

/// BERT with a classification head.
struct Bert {
    encoder: Encoder,
    pooler: Option<Linear>,
    classifier: Linear,
    classifier_dropout: f32,
}

impl Bert {
    fn build(
        config: &BertConfig,
        task: Task,
        num_labels: usize,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let encoder = Encoder::build("bert.", config, None, loader)?;
        let width = config.hidden_size;
        let pooler = match task {
            Task::TokenClassification | Task::CausalLm => None,
            Task::SingleLabel | Task::MultiLabel | Task::Regression => {
                Some(loader.linear("bert.pooler.dense", width, width, Presence::NewIfAbsent)?)
            }
        };
        let classifier = loader.linear("classifier", width, num_labels, Presence::NewIfAbsent)?;
        Ok(Bert {
            encoder,
            pooler,
            classifier,
            classifier_dropout: config.classifier_dropout,
        })
    }
}

impl Network for Bert {
    fn logits<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>, stretch: Stretch) -> Var {
        let positions = batch.positions();
        let Some(pooler) = &self.pooler else {
            let x = self
                .encoder
                .forward(tape, batch, &positions, Rows::All, stretch);
            let x = dropout(tape, x, self.classifier_dropout);
            return self.classifier.logits(tape, x);
        };
        let x = self
            .encoder
            .forward(tape, batch, &positions, Rows::First, stretch);
        let x = pooler.forward_activation(tape, x, Activation::Tanh);
        let x = dropout(tape, x, self.classifier_dropout);
        self.classifier.logits(tape, x)
    }

    fn prefix<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>, layers: usize) -> Var {
        self.encoder.prefix(tape, batch, &batch.positions(), layers)
    }

    fn modules(&self) -> Vec<ModuleRef<'_>> {
        let mut modules = self.encoder.modules();
        modules.extend(
            self.pooler
                .iter()
                .chain([&self.classifier])
                .map(ModuleRef::Linear),
        );
        modules
    }

    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let mut modules = self.encoder.modules_mut();
        modules.extend(
            self.pooler
                .iter_mut()
                .chain([&mut self.classifier])
                .map(ModuleMut::Linear),
        );
        modules
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
    layers: Vec<Layer>,
    num_heads: usize,
    head_dim: usize,
    hidden_dropout: f32,
    attention_dropout: f32,
}

impl Encoder {
    /// `position_padding` is the row of the position table that padding tokens would read, if there is one.
    pub(crate) fn build(
        prefix: &str,
        config: &BertConfig,
        position_padding: Option<u32>,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let width = config.hidden_size;
        let at = |name: &str| format!("{prefix}embeddings.{name}");
        let word_embeddings = loader.embedding(
            &at("word_embeddings"),
            config.vocab_size,
            width,
            Some(config.pad_token_id),
        )?;
        let positions = config.max_position_embeddings;
        let position_embeddings = loader.embedding(
            &at("position_embeddings"),
            positions,
            width,
            position_padding,
        )?;
        let types = config.type_vocab_size;
        let token_type_embeddings =
            loader.embedding(&at("token_type_embeddings"), types, width, None)?;
        let layer_norm = loader.layer_norm(&at("LayerNorm"), width, config.layer_norm_eps)?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::build(&format!("{prefix}encoder.layer.{i}"), config, loader))
            .collect::<Result<_, _>>()?;
        Ok(Encoder {
            word_embeddings,
            position_embeddings,
            token_type_embeddings,
            layer_norm,
            layers,
            num_heads: config.num_attention_heads,
            head_dim: width / config.num_attention_heads,
            hidden_dropout: config.hidden_dropout_prob,
            attention_dropout: config.attention_probs_dropout_prob,
        })
    }

    /// The hidden states that the head reads: [M, D], or [B, D] for [`Rows::First`]. `positions` `[M]` are rows of the
    /// position table.
    pub(crate) fn forward<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        batch: &Batch<'_>,
        positions: &[u32],
        rows: Rows,
        stretch: Stretch,
    ) -> Var {
        let offsets: Arc<[usize]> = batch.offsets.into();
        let count = self.layers.len();
        let embed = |tape: &mut Tape<'m>| self.embed(tape, batch, positions);
        stretch.run(tape, count, embed, |i| {
            let is_last = i + 1 == count;
            let run = LayerRun {
                layer: &self.layers[i],
                offsets: offsets.clone(),
                rows: if is_last { rows } else { Rows::All },
                num_heads: self.num_heads,
                head_dim: self.head_dim,
                hidden_dropout: self.hidden_dropout,
                attention_dropout: self.attention_dropout,
            };
            move |tape: &mut Tape<'m>, x| run.forward(tape, x)
        })
    }

    /// What the first `layers` give for every token [M, D].
    pub(crate) fn prefix<'m>(
        &'m self,
        tape: &mut Tape<'m>,
        batch: &Batch<'_>,
        positions: &[u32],
        layers: usize,
    ) -> Var {
        self.forward(tape, batch, positions, Rows::All, Stretch::below(layers))
    }

    /// The sum of the tables' rows, normalised [M, D].
    fn embed<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>, positions: &[u32]) -> Var {
        let zeros;
        let token_types = match batch.token_type_ids {
            Some(ids) if self.token_type_embeddings.num_embeddings > 1 => ids,
            _ => {
                zeros = vec![0; batch.input_ids.len()];
                &zeros
            }
        };
        let x = embedding(
            tape,
            &[
                self.word_embeddings.lookup(batch.input_ids),
                self.token_type_embeddings.lookup(token_types),
                self.position_embeddings.lookup(positions),
            ],
        );
        let x = self.layer_norm.forward(tape, x, None, 0.0);
        dropout(tape, x, self.hidden_dropout)
    }

    pub(crate) fn modules(&self) -> Vec<ModuleRef<'_>> {
        let tables = [
            &self.word_embeddings,
            &self.position_embeddings,
            &self.token_type_embeddings,
        ];
        let mut modules: Vec<_> = tables.into_iter().map(ModuleRef::Embedding).collect();
        modules.push(ModuleRef::LayerNorm(&self.layer_norm));
        for layer in &self.layers {
            modules.extend([
                ModuleRef::Linear(&layer.query),
                ModuleRef::Linear(&layer.key),
                ModuleRef::Linear(&layer.value),
                ModuleRef::Linear(&layer.attention_output),
                ModuleRef::LayerNorm(&layer.attention_norm),
                ModuleRef::Linear(&layer.intermediate),
                ModuleRef::Linear(&layer.output),
                ModuleRef::LayerNorm(&layer.output_norm),
            ]);
        }
        modules
    }

    pub(crate) fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let tables = [
            &mut self.word_embeddings,
            &mut self.position_embeddings,
            &mut self.token_type_embeddings,
        ];
        let mut modules: Vec<_> = tables.into_iter().map(ModuleMut::Embedding).collect();
        modules.push(ModuleMut::LayerNorm(&mut self.layer_norm));
        for layer in &mut self.layers {
            modules.extend([
                ModuleMut::Linear(&mut layer.query),
                ModuleMut::Linear(&mut layer.key),
                ModuleMut::Linear(&mut layer.value),
                ModuleMut::Linear(&mut layer.attention_output),
                ModuleMut::LayerNorm(&mut layer.attention_norm),
                ModuleMut::Linear(&mut layer.intermediate),
                ModuleMut::Linear(&mut layer.output),
                ModuleMut::LayerNorm(&mut layer.output_norm),
            ]);
        }
        modules
    }
}

/// One encoder layer.
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    activation: Activation,
    output: Linear,
    output_norm: LayerNorm,
}

impl Layer {
    fn build(path: &str, config: &BertConfig, loader: &mut Loader<'_>) -> Result<Self, ModelError> {
        let (width, inner, eps) = (
            config.hidden_size,
            config.intermediate_size,
            config.layer_norm_eps,
        );
        let mut linear = |name: &str, from, to| {
            loader.linear(&format!("{path}.{name}"), from, to, Presence::Required)
        };
        let query = linear("attention.self.query", width, width)?;
        let key = linear("attention.self.key", width, width)?;
        let value = linear("attention.self.value", width, width)?;
        let attention_output = linear("attention.output.dense", width, width)?;
        let intermediate = linear("intermediate.dense", width, inner)?;
        let output = linear("output.dense", inner, width)?;
        let attention_norm =
            loader.layer_norm(&format!("{path}.attention.output.LayerNorm"), width, eps)?;
        let output_norm = loader.layer_norm(&format!("{path}.output.LayerNorm"), width, eps)?;
        let activation = config.hidden_act;
        Ok(Layer {
            query,
            key,
            value,
            attention_output,
            attention_norm,
            intermediate,
            activation,
            output,
            output_norm,
        })
    }
}

/// One layer over one batch: what a recomputed block has to remember.
struct LayerRun<'m> {
    layer: &'m Layer,
    offsets: Arc<[usize]>,
    rows: Rows,
    num_heads: usize,
    head_dim: usize,
    hidden_dropout: f32,
    attention_dropout: f32,
}

impl<'m> LayerRun<'m> {
    fn forward(&self, tape: &mut Tape<'m>, x: Var) -> Var {
        let layer = self.layer;
        let (x_read, q_offsets) = match self.rows {
            Rows::All => (x.clone(), self.offsets.clone()),
            Rows::First => {
                let (firsts, single) = first_rows(&self.offsets);
                (select_rows(tape, &x, &firsts), single)
            }
        };
        let spec = AttentionSpec {
            num_heads: self.num_heads,
            head_dim: self.head_dim,
            q_offsets,
            kv_offsets: self.offsets.clone(),
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            mask: AttentionMask::Full,
            dropout: self.attention_dropout,
        };
        let q = layer.query.forward(tape, x_read.clone());
        let k = layer.key.forward(tape, x.clone());
        let v = layer.value.forward(tape, x);
        let context = attention(tape, q, k, v, spec);
        let h = layer.attention_output.forward(tape, context);
        let x = layer
            .attention_norm
            .forward(tape, h, Some(x_read), self.hidden_dropout);
        let h = (layer.intermediate).forward_activation(tape, x.clone(), layer.activation);
        let h = layer.output.forward(tape, h);
        layer
            .output_norm
            .forward(tape, h, Some(x), self.hidden_dropout)
    }
}
