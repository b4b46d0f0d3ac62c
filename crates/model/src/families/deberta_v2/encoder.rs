//! What DeBERTa v1 and v2 share: embeddings, post-norm layers over disentangled attention, pooler and classifier. How a layer
//! projects its queries, keys, values and positions is each version's own: [`Projections`].

use std::sync::Arc;

use lowrank_engine::ops::activation::activation;
use lowrank_engine::ops::attention::{AttentionMask, AttentionSpec, attention};
use lowrank_engine::ops::attention::{Positions, disentangled_attention};
use lowrank_engine::ops::dropout::dropout;
use lowrank_engine::ops::embedding::embedding;
use lowrank_engine::ops::rows::select_rows;
use lowrank_engine::{Activation, Var};

use crate::config::Task;
use crate::error::ModelError;
use crate::families::deberta_v2::DebertaConfig;
use crate::families::deberta_v2::positions::RelativeRows;
use crate::families::post_norm::PostNorm;
use crate::families::{FamilyConfig, Network, first_rows};
use crate::load::{Loader, Presence};
use crate::modules::{Convolution, Embedding, LayerNorm, Linear};
use crate::pass::{Batch, LayerRange, Pass};

/// The projections of one layer's attention.
pub(crate) trait Projections: Copy + Send + Sync + 'static {
    /// Loads them; `path` is that of the module that holds them.
    fn build(
        path: &str,
        own: &DebertaConfig,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError>;

    /// Queries of the rows `read` (all if absent), keys and values of x [M, D].
    fn content(&self, pass: &mut Pass<'_, '_>, x: Var, read: Option<&[usize]>) -> [Var; 3];

    /// Keys and queries of relative positions from their table [R, D], where the model has these terms.
    fn positions(&self, pass: &mut Pass<'_, '_>, table: Var) -> [Option<Var>; 2];
}

/// x, or the rows of it that are read.
pub(crate) fn rows_of(pass: &mut Pass<'_, '_>, x: &Var, read: Option<&[usize]>) -> Var {
    match read {
        None => x.clone(),
        Some(rows) => select_rows(pass, x, rows),
    }
}

/// DeBERTa with a classification head.
pub(crate) struct Classifier<P> {
    embeddings: Embeddings,
    layers: Vec<Layer<P>>,
    form: LayerForm,
    relative: Option<RelativeTable>,
    conv: Option<ConvLayer>,
    pooler: Option<Pooler>,
    classifier: Linear,
    classifier_dropout: f32,
}

impl<P: Projections> Classifier<P> {
    pub(crate) fn build(
        own: &DebertaConfig,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Box<dyn Network>, ModelError> {
        let (facts, dropouts) = (&config.facts, &config.dropouts);
        let (width, eps) = (facts.hidden_size, own.layer_norm_eps);
        let embeddings = Embeddings::build(own, config, loader)?;
        let layers = (0..facts.num_hidden_layers)
            .map(|i| Layer::build(&format!("deberta.encoder.layer.{i}"), own, config, loader))
            .collect::<Result<_, _>>()?;
        let relative = own
            .relative
            .map(|rows| RelativeTable::build(rows, own, width, loader))
            .transpose()?;
        let conv = match own.conv {
            None => None,
            Some((taps, activation)) => Some(ConvLayer {
                conv: loader.convolution("deberta.encoder.conv.conv", width, taps)?,
                activation,
                norm: loader.layer_norm("deberta.encoder.conv.LayerNorm", width, eps)?,
                dropout: dropouts.hidden,
            }),
        };
        let (task, labels) = (loader.task(), loader.num_labels());
        let mut linear = |path: &str, out| loader.linear(path, [width, out], Presence::NewIfAbsent);
        let (pooler, classifier_dropout) = match task {
            Task::TokenClassification | Task::CausalLm => (None, dropouts.hidden),
            Task::SingleLabel | Task::MultiLabel | Task::Regression => {
                let pooler = Pooler {
                    dense: linear("pooler.dense", width)?,
                    activation: own.pooler_hidden_act,
                    dropout: dropouts.pooler.unwrap_or(0.0),
                };
                (Some(pooler), dropouts.before_classifier())
            }
        };
        let head_dim = facts.head_dim;
        Ok(Box::new(Classifier::<P> {
            embeddings,
            layers,
            form: LayerForm {
                num_heads: facts.num_attention_heads,
                head_dim,
                scale: 1.0 / ((head_dim * own.scale_factor()) as f32).sqrt(),
                activation: own.hidden_act,
                hidden_dropout: dropouts.hidden,
                attention_dropout: dropouts.attention,
            },
            relative,
            conv,
            pooler,
            classifier: linear("classifier", labels)?,
            classifier_dropout,
        }))
    }
}

impl<P: Projections> Network for Classifier<P> {
    fn hidden<'m>(&self, pass: &mut Pass<'_, 'm>, batch: &Batch<'_>, range: LayerRange) -> Var {
        let lengths = batch.offsets.windows(2).map(|range| range[1] - range[0]);
        let longest = lengths.max().unwrap_or(0);
        let relative = self.relative.as_ref().map(|t| t.of_length(longest));
        let offsets: Arc<[usize]> = batch.offsets.into();
        let count = self.layers.len();
        let embed = |pass: &mut Pass<'_, 'm>| self.embeddings.forward(pass, batch);
        range.run(pass, count, embed, |i| {
            let is_last = i + 1 == count;
            let run = LayerRun {
                layer: self.layers[i],
                form: self.form,
                offsets: offsets.clone(),
                firsts_only: is_last && self.pooler.is_some(),
                relative: relative.clone(),
                conv: self.conv.filter(|_| i == 0),
            };
            move |pass: &mut Pass<'_, 'm>, x| run.forward(pass, x)
        })
    }

    fn classify(&self, pass: &mut Pass<'_, '_>, mut x: Var) -> Var {
        if let Some(pooler) = self.pooler {
            x = dropout(pass, x, pooler.dropout);
            x = (pooler.dense).forward_activation(pass, x, pooler.activation);
        }
        let x = dropout(pass, x, self.classifier_dropout);
        self.classifier.logits(pass, x)
    }
}

/// The first token's hidden state through a layer.
#[derive(Clone, Copy)]
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
    fn build(
        own: &DebertaConfig,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let (facts, inner) = (&config.facts, own.embedding_size);
        let width = facts.hidden_size;
        let mut table = |name: &str, rows, padding| {
            let path = format!("deberta.embeddings.{name}");
            loader.embedding(&path, [rows, inner], padding)
        };
        let words = table("word_embeddings", facts.vocab_size, facts.pad_token_id)?;
        let positions = (own.position_biased_input)
            .then(|| table("position_embeddings", facts.max_positions, None))
            .transpose()?;
        let token_types = (own.type_vocab_size > 0)
            .then(|| table("token_type_embeddings", own.type_vocab_size, None))
            .transpose()?;
        let spec = loader.spec("deberta.embeddings.embed_proj", [inner, width]);
        let projection = (inner != width)
            .then(|| loader.linear_of(spec.unbiased()))
            .transpose()?;
        let path = "deberta.embeddings.LayerNorm";
        Ok(Embeddings {
            words,
            positions,
            token_types,
            projection,
            norm: loader.layer_norm(path, width, own.layer_norm_eps)?,
            dropout: config.dropouts.hidden,
        })
    }

    fn forward(&self, pass: &mut Pass<'_, '_>, batch: &Batch<'_>) -> Var {
        let positions = batch.positions();
        let zeros = vec![0; batch.tokens()];
        let modules = pass.modules;
        let mut tables = vec![self.words.lookup(modules, batch.input_ids)];
        tables.extend(self.positions.map(|t| t.lookup(modules, &positions)));
        tables.extend(self.token_types.map(|table| {
            let types = batch.token_type_ids.filter(|_| table.rows > 1);
            table.lookup(modules, types.unwrap_or(&zeros))
        }));
        let mut x = embedding(pass, &tables);
        if let Some(projection) = self.projection {
            x = projection.forward(pass, x);
        }
        let x = self.norm.forward(pass, x);
        dropout(pass, x, self.dropout)
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
        own: &DebertaConfig,
        width: usize,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let path = "deberta.encoder.rel_embeddings";
        let table = loader.embedding(path, [rows.table_rows(), width], None)?;
        let eps = own.layer_norm_eps;
        let norm = (own.norm_rel_ebd)
            .then(|| loader.layer_norm("deberta.encoder.LayerNorm", width, eps))
            .transpose()?;
        Ok(RelativeTable { table, norm, rows })
    }

    /// The part that a batch reads.
    fn of_length(&self, longest: usize) -> Relative {
        let (ids, places) = self.rows.of_length(longest);
        Relative {
            table: self.table,
            norm: self.norm,
            ids: ids.into(),
            places: places.into(),
        }
    }
}

/// The rows of the table that one batch reads.
#[derive(Clone)]
struct Relative {
    table: Embedding,
    norm: Option<LayerNorm>,
    ids: Arc<[u32]>,
    /// Of each distance its place among the rows.
    places: Arc<[u32]>,
}

impl Relative {
    /// The rows [R, D], normalised. Each layer makes its own: dropout differs, and a layer that is run again has no other
    /// input than x.
    fn forward(&self, pass: &mut Pass<'_, '_>, p: f32) -> Var {
        let table = self.table.lookup(pass.modules, &self.ids);
        let mut x = embedding(pass, &[table]);
        if let Some(norm) = self.norm {
            x = norm.forward(pass, x);
        }
        dropout(pass, x, p)
    }
}

/// The convolution over the embeddings, added to what the first layer gives.
#[derive(Clone, Copy)]
struct ConvLayer {
    conv: Convolution,
    activation: Activation,
    norm: LayerNorm,
    dropout: f32,
}

/// One layer.
#[derive(Clone, Copy)]
struct Layer<P> {
    projections: P,
    rest: PostNorm,
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
        own: &DebertaConfig,
        config: &FamilyConfig,
        loader: &mut Loader<'_>,
    ) -> Result<Self, ModelError> {
        let (facts, eps) = (&config.facts, own.layer_norm_eps);
        Ok(Layer {
            projections: P::build(&format!("{path}.attention.self"), own, config, loader)?,
            rest: PostNorm::build(path, facts, eps, loader)?,
        })
    }
}

/// One layer over one batch: what a recomputed block has to remember.
struct LayerRun<P> {
    layer: Layer<P>,
    form: LayerForm,
    offsets: Arc<[usize]>,
    /// Whether only first tokens are read.
    firsts_only: bool,
    relative: Option<Relative>,
    conv: Option<ConvLayer>,
}

impl<P: Projections> LayerRun<P> {
    fn forward(&self, pass: &mut Pass<'_, '_>, x: Var) -> Var {
        let (layer, form) = (self.layer, self.form);
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
        let x_read = rows_of(pass, &x, read);
        let embedded = self.conv.map(|_| x.clone());
        let [q, k, v] = layer.projections.content(pass, x, read);
        let context = match &self.relative {
            None => attention(pass, q, k, v, spec),
            Some(relative) => {
                let table = relative.forward(pass, form.hidden_dropout);
                let [keys, queries] = layer.projections.positions(pass, table);
                let positions = Positions {
                    rows: relative.places.clone(),
                    keys,
                    queries,
                };
                disentangled_attention(pass, [q, k, v], positions, spec)
            }
        };
        let p = form.hidden_dropout;
        let x = (layer.rest).forward(pass, [context, x_read], form.activation, p);
        let Some((conv, embedded)) = self.conv.zip(embedded) else {
            return x;
        };
        let h = (conv.conv).forward(pass, &embedded, &self.offsets, read);
        let h = dropout(pass, h, conv.dropout);
        let h = activation(pass, h, conv.activation);
        (conv.norm).forward_sum(pass, [h, x], 0.0)
    }
}
