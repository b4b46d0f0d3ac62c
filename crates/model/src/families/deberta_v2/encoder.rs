//! What DeBERTa v1 and v2 share: embeddings, post-norm layers over disentangled attention, pooler and classifier. How a layer
//! projects its queries, keys, values and positions is each version's own: [`Projections`].

use std::sync::Arc;

use lowrank_engine::ops::activation::activation;
use lowrank_engine::ops::attention::{AttentionMask, AttentionSpec, attention};
use lowrank_engine::ops::disentangled_attention::{Positions, disentangled_attention};
use lowrank_engine::ops::dropout::dropout;
use lowrank_engine::ops::embedding::embedding;
use lowrank_engine::ops::rows::select_rows;
use lowrank_engine::{Activation, Tape, Var};

use crate::config::Task;
use crate::error::ModelError;
use crate::families::deberta_v2::DebertaConfig;
use crate::families::deberta_v2::positions::RelativeRows;
use crate::families::{Network, first_rows};
use crate::loader::{LinearSpec, Loader, Presence};
use crate::model::Batch;
use crate::modules::{Convolution, Embedding, LayerNorm, Layout, Linear, ModuleMut, ModuleRef};
use crate::stretch::Stretch;

/// The projections of one layer's attention.
pub(crate) trait Projections: Sized + Send + Sync {
    /// Loads them; `path` is that of the module that holds them.
    fn build(
        path: &str,
        config: &DebertaConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError>;

    /// Queries of the rows `read` (all if absent), keys and values of x [M, D].
    fn content<'m>(&'m self, tape: &mut Tape<'m>, x: Var, read: Option<&[usize]>) -> [Var; 3];

    /// Keys and queries of relative positions from their table [R, D], where the model has these terms.
    fn positions<'m>(&'m self, tape: &mut Tape<'m>, table: Var) -> [Option<Var>; 2];

    /// The modules, in the order of PyTorch's `named_modules`.
    fn modules(&self) -> Vec<ModuleRef<'_>>;

    /// The modules, to change them; the same order.
    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>>;
}

/// x, or the rows of it that are read.
pub(crate) fn rows_of(tape: &mut Tape<'_>, x: &Var, read: Option<&[usize]>) -> Var {
    match read {
        None => x.clone(),
        Some(rows) => select_rows(tape, x, rows),
    }
}

/// DeBERTa with a classification head.
pub(crate) struct Classifier<P> {
    embeddings: Embeddings,
    layers: Vec<Layer<P>>,
    relative: Option<RelativeTable>,
    conv: Option<ConvLayer>,
    pooler: Option<Pooler>,
    classifier: Linear,
    classifier_dropout: f32,
}

impl<P: Projections> Classifier<P> {
    pub(crate) fn build(
        config: &DebertaConfig,
        task: Task,
        num_labels: usize,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let embeddings = Embeddings::build(config, loader)?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::build(&format!("deberta.encoder.layer.{i}"), config, loader))
            .collect::<Result<_, _>>()?;
        let relative = config
            .relative
            .map(|rows| RelativeTable::build(rows, config, loader))
            .transpose()?;
        let conv = match config.conv {
            None => None,
            Some((taps, activation)) => Some(ConvLayer {
                conv: loader.convolution("deberta.encoder.conv.conv", width, taps)?,
                activation,
                norm: loader.layer_norm("deberta.encoder.conv.LayerNorm", width, eps)?,
                dropout: config.hidden_dropout_prob,
            }),
        };
        let mut linear = |path: &str, out| loader.linear(path, width, out, Presence::NewIfAbsent);
        let (pooler, classifier_dropout) = match task {
            Task::TokenClassification | Task::CausalLm => (None, config.hidden_dropout_prob),
            Task::SingleLabel | Task::MultiLabel | Task::Regression => {
                let pooler = Pooler {
                    dense: linear("pooler.dense", width)?,
                    activation: config.pooler_hidden_act,
                    dropout: config.pooler_dropout,
                };
                (Some(pooler), config.cls_dropout)
            }
        };
        Ok(Classifier {
            embeddings,
            layers,
            relative,
            conv,
            pooler,
            classifier: linear("classifier", num_labels)?,
            classifier_dropout,
        })
    }

    /// The hidden states that the head reads: [M, D], or [B, D] of the first tokens if there is a pooler.
    fn hidden<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>, stretch: Stretch) -> Var {
        let lengths = batch.offsets.windows(2).map(|range| range[1] - range[0]);
        let longest = lengths.max().unwrap_or(0);
        let relative = self.relative.as_ref().map(|t| t.of_length(longest));
        let offsets: Arc<[usize]> = batch.offsets.into();
        let count = self.layers.len();
        let embed = |tape: &mut Tape<'m>| self.embeddings.forward(tape, batch);
        stretch.run(tape, count, embed, |i| {
            let is_last = i + 1 == count;
            let run = LayerRun {
                layer: &self.layers[i],
                offsets: offsets.clone(),
                firsts_only: is_last && self.pooler.is_some(),
                relative: relative.clone(),
                conv: self.conv.as_ref().filter(|_| i == 0),
            };
            move |tape: &mut Tape<'m>, x| run.forward(tape, x)
        })
    }
}

impl<P: Projections> Network for Classifier<P> {
    fn prefix<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>, layers: usize) -> Var {
        self.hidden(tape, batch, Stretch::below(layers))
    }

    fn logits<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>, stretch: Stretch) -> Var {
        let mut x = self.hidden(tape, batch, stretch);
        if let Some(pooler) = &self.pooler {
            x = dropout(tape, x, pooler.dropout);
            x = (pooler.dense).forward_activation(tape, x, pooler.activation);
        }
        let x = dropout(tape, x, self.classifier_dropout);
        self.classifier.logits(tape, x)
    }

    fn modules(&self) -> Vec<ModuleRef<'_>> {
        let mut modules = self.embeddings.modules();
        for layer in &self.layers {
            modules.extend(layer.projections.modules());
            modules.extend([
                ModuleRef::Linear(&layer.attention_output),
                ModuleRef::LayerNorm(&layer.attention_norm),
                ModuleRef::Linear(&layer.intermediate),
                ModuleRef::Linear(&layer.output),
                ModuleRef::LayerNorm(&layer.output_norm),
            ]);
        }
        if let Some(relative) = &self.relative {
            modules.push(ModuleRef::Embedding(&relative.table));
            modules.extend(relative.norm.as_ref().map(ModuleRef::LayerNorm));
        }
        if let Some(conv) = &self.conv {
            modules.push(ModuleRef::Convolution(&conv.conv));
            modules.push(ModuleRef::LayerNorm(&conv.norm));
        }
        modules.extend(self.pooler.as_ref().map(|p| ModuleRef::Linear(&p.dense)));
        modules.push(ModuleRef::Linear(&self.classifier));
        modules
    }

    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let mut modules = self.embeddings.modules_mut();
        for layer in &mut self.layers {
            modules.extend(layer.projections.modules_mut());
            modules.extend([
                ModuleMut::Linear(&mut layer.attention_output),
                ModuleMut::LayerNorm(&mut layer.attention_norm),
                ModuleMut::Linear(&mut layer.intermediate),
                ModuleMut::Linear(&mut layer.output),
                ModuleMut::LayerNorm(&mut layer.output_norm),
            ]);
        }
        if let Some(relative) = &mut self.relative {
            modules.push(ModuleMut::Embedding(&mut relative.table));
            modules.extend(relative.norm.as_mut().map(ModuleMut::LayerNorm));
        }
        if let Some(conv) = &mut self.conv {
            modules.push(ModuleMut::Convolution(&mut conv.conv));
            modules.push(ModuleMut::LayerNorm(&mut conv.norm));
        }
        let pooler = self.pooler.as_mut();
        modules.extend(pooler.map(|p| ModuleMut::Linear(&mut p.dense)));
        modules.push(ModuleMut::Linear(&mut self.classifier));
        modules
    }
}

/// The first token's hidden state through a layer.
struct Pooler {
    dense: Linear,
    activation: Activation,
    dropout: f32,
}

/// Tokens, and what is added to them.
struct Embeddings {
    words: Embedding,
    positions: Option<Embedding>,
    token_types: Option<Embedding>,
    /// From the width of the tables to D, where they differ.
    projection: Option<Linear>,
    norm: LayerNorm,
    dropout: f32,
}

impl Embeddings {
    fn build(config: &DebertaConfig, loader: &mut Loader<'_>) -> Result<Self, ModelError> {
        let (inner, width) = (config.embedding_size, config.hidden_size);
        let mut table = |name: &str, rows, padding| {
            let path = format!("deberta.embeddings.{name}");
            loader.embedding(&path, rows, inner, padding)
        };
        let words = table(
            "word_embeddings",
            config.vocab_size,
            Some(config.pad_token_id),
        )?;
        let positions = config
            .position_biased_input
            .then(|| table("position_embeddings", config.max_position_embeddings, None))
            .transpose()?;
        let token_types = (config.type_vocab_size > 0)
            .then(|| table("token_type_embeddings", config.type_vocab_size, None))
            .transpose()?;
        let spec = LinearSpec {
            path: "deberta.embeddings.embed_proj",
            in_features: inner,
            out_features: width,
            presence: Presence::Required,
            has_bias: false,
            layout: Layout::Linear,
            std: config.initializer_range,
        };
        let projection = (inner != width)
            .then(|| loader.linear_of(spec))
            .transpose()?;
        let path = "deberta.embeddings.LayerNorm";
        Ok(Embeddings {
            words,
            positions,
            token_types,
            projection,
            norm: loader.layer_norm(path, width, config.layer_norm_eps)?,
            dropout: config.hidden_dropout_prob,
        })
    }

    fn forward<'m>(&'m self, tape: &mut Tape<'m>, batch: &Batch<'_>) -> Var {
        let positions = batch.positions();
        let zeros = vec![0; batch.tokens()];
        let mut tables = vec![self.words.lookup(batch.input_ids)];
        tables.extend(self.positions.as_ref().map(|t| t.lookup(&positions)));
        tables.extend(self.token_types.as_ref().map(|table| {
            let types = batch.token_type_ids.filter(|_| table.num_embeddings > 1);
            table.lookup(types.unwrap_or(&zeros))
        }));
        let mut x = embedding(tape, &tables);
        if let Some(projection) = &self.projection {
            x = projection.forward(tape, x);
        }
        let x = self.norm.forward(tape, x, None, 0.0);
        dropout(tape, x, self.dropout)
    }

    fn modules(&self) -> Vec<ModuleRef<'_>> {
        let tables = [&self.words].into_iter().chain(&self.positions);
        let tables = tables.chain(&self.token_types).map(ModuleRef::Embedding);
        let mut modules: Vec<_> = tables.collect();
        modules.extend(self.projection.as_ref().map(ModuleRef::Linear));
        modules.push(ModuleRef::LayerNorm(&self.norm));
        modules
    }

    fn modules_mut(&mut self) -> Vec<ModuleMut<'_>> {
        let tables = [&mut self.words].into_iter().chain(&mut self.positions);
        let tables = tables.chain(&mut self.token_types);
        let mut modules: Vec<_> = tables.map(ModuleMut::Embedding).collect();
        modules.extend(self.projection.as_mut().map(ModuleMut::Linear));
        modules.push(ModuleMut::LayerNorm(&mut self.norm));
        modules
    }
}

/// The table of relative positions, shared by all layers.
struct RelativeTable {
    table: Embedding,
    norm: Option<LayerNorm>,
    rows: RelativeRows,
}

impl RelativeTable {
    fn build(
        rows: RelativeRows,
        config: &DebertaConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let (width, path) = (config.hidden_size, "deberta.encoder.rel_embeddings");
        let table = loader.embedding(path, rows.table_rows(), width, None)?;
        let eps = config.layer_norm_eps;
        let norm = config
            .norm_rel_ebd
            .then(|| loader.layer_norm("deberta.encoder.LayerNorm", width, eps))
            .transpose()?;
        Ok(RelativeTable { table, norm, rows })
    }

    /// The part that a batch reads.
    fn of_length(&self, longest: usize) -> Relative<'_> {
        let (ids, places) = self.rows.of_length(longest);
        Relative {
            table: &self.table,
            norm: self.norm.as_ref(),
            ids: ids.into(),
            places: places.into(),
        }
    }
}

/// The rows of the table that one batch reads.
#[derive(Clone)]
struct Relative<'m> {
    table: &'m Embedding,
    norm: Option<&'m LayerNorm>,
    ids: Arc<[u32]>,
    /// Of each distance its place among the rows.
    places: Arc<[u32]>,
}

impl<'m> Relative<'m> {
    /// The rows [R, D], normalised. Each layer makes its own: dropout differs, and a layer that is run again has no other
    /// input than x.
    fn forward(&self, tape: &mut Tape<'m>, p: f32) -> Var {
        let mut x = embedding(tape, &[self.table.lookup(&self.ids)]);
        if let Some(norm) = self.norm {
            x = norm.forward(tape, x, None, 0.0);
        }
        dropout(tape, x, p)
    }
}

/// The convolution over the embeddings, added to what the first layer gives.
struct ConvLayer {
    conv: Convolution,
    activation: Activation,
    norm: LayerNorm,
    dropout: f32,
}

/// One layer.
struct Layer<P> {
    projections: P,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
    form: LayerForm,
}

/// What a layer does besides its weights.
#[derive(Clone, Copy)]
struct LayerForm {
    num_heads: usize,
    head_dim: usize,
    /// Multiplies the scores.
    scale: f32,
    activation: Activation,
    hidden_dropout: f32,
    attention_dropout: f32,
}

impl<P: Projections> Layer<P> {
    fn build(
        path: &str,
        config: &DebertaConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let (width, inner, eps) = (
            config.hidden_size,
            config.intermediate_size,
            config.layer_norm_eps,
        );
        let projections = P::build(&format!("{path}.attention.self"), config, loader)?;
        let mut linear = |name: &str, from, to| {
            loader.linear(&format!("{path}.{name}"), from, to, Presence::Required)
        };
        let attention_output = linear("attention.output.dense", width, width)?;
        let intermediate = linear("intermediate.dense", width, inner)?;
        let output = linear("output.dense", inner, width)?;
        let mut norm = |name: &str| loader.layer_norm(&format!("{path}.{name}"), width, eps);
        let head_dim = config.head_dim();
        Ok(Layer {
            projections,
            attention_output,
            attention_norm: norm("attention.output.LayerNorm")?,
            intermediate,
            output,
            output_norm: norm("output.LayerNorm")?,
            form: LayerForm {
                num_heads: config.num_attention_heads,
                head_dim,
                scale: 1.0 / ((head_dim * config.scale_factor) as f32).sqrt(),
                activation: config.hidden_act,
                hidden_dropout: config.hidden_dropout_prob,
                attention_dropout: config.attention_probs_dropout_prob,
            },
        })
    }
}

/// One layer over one batch: what a recomputed block has to remember.
struct LayerRun<'m, P> {
    layer: &'m Layer<P>,
    offsets: Arc<[usize]>,
    /// Whether only first tokens are read.
    firsts_only: bool,
    relative: Option<Relative<'m>>,
    conv: Option<&'m ConvLayer>,
}

impl<'m, P: Projections> LayerRun<'m, P> {
    fn forward(&self, tape: &mut Tape<'m>, x: Var) -> Var {
        let (layer, form) = (self.layer, self.layer.form);
        let firsts = self.firsts_only.then(|| first_rows(&self.offsets));
        let (read, q_offsets) = match &firsts {
            Some((rows, single)) => (Some(&rows[..]), single.clone()),
            None => (None, self.offsets.clone()),
        };
        let spec = AttentionSpec {
            num_heads: form.num_heads,
            head_dim: form.head_dim,
            q_offsets,
            kv_offsets: self.offsets.clone(),
            scale: form.scale,
            mask: AttentionMask::Full,
            dropout: form.attention_dropout,
        };
        let x_read = rows_of(tape, &x, read);
        let embedded = self.conv.map(|_| x.clone());
        let [q, k, v] = layer.projections.content(tape, x, read);
        let context = match &self.relative {
            None => attention(tape, q, k, v, spec),
            Some(relative) => {
                let table = relative.forward(tape, form.hidden_dropout);
                let [keys, queries] = layer.projections.positions(tape, table);
                let positions = Positions {
                    rows: relative.places.clone(),
                    keys,
                    queries,
                };
                disentangled_attention(tape, [q, k, v], positions, spec)
            }
        };
        let p = form.hidden_dropout;
        let h = layer.attention_output.forward(tape, context);
        let x = layer.attention_norm.forward(tape, h, Some(x_read), p);
        let h = (layer.intermediate).forward_activation(tape, x.clone(), form.activation);
        let h = layer.output.forward(tape, h);
        let x = layer.output_norm.forward(tape, h, Some(x), p);
        match self.conv.zip(embedded) {
            None => x,
            Some((conv, embedded)) => {
                let h = conv.conv.forward(tape, &embedded, &self.offsets, read);
                let h = dropout(tape, h, conv.dropout);
                let h = activation(tape, h, conv.activation);
                conv.norm.forward(tape, h, Some(x), 0.0)
            }
        }
    }
}
